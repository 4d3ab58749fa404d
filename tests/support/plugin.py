"""Third-party packages: the example plugin, and packages written into a folder."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

EXAMPLE = Path(__file__).parents[1] / "fixtures" / "plugin_example"


def install_example(folder: Path) -> Path:
    """Build the example and install it into a folder, without network access."""
    source, site = folder / "source", folder / "site"
    shutil.copytree(EXAMPLE, source, ignore=shutil.ignore_patterns("__pycache__"))
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "-qq"]
    run_command(sys.executable, "-m", "pip", "install", *options, "--target", str(site), str(source))
    return site


def run_command(*command: str, path: Path | None = None, folder: Path | None = None, ok: bool = True) -> str:
    """Run a command, `path` first on PYTHONPATH; check that it succeeds (or fails, if not `ok`); return its output."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=100)
    assert (run.returncode == 0) is ok, run.stdout + run.stderr
    return run.stdout + run.stderr


def run_suite(
    site: Path, folder: Path, *, changes: Mapping[str, str] | None = None, only: str = "", ok: bool = True
) -> str:
    """Run the example's tests after replacing code in it (old: new); return the output of pytest."""
    copied = folder / "site"
    shutil.copytree(site, copied)
    for old, new in (changes or {}).items():
        files = [file for file in copied.glob("acme_*.py") if old in file.read_text(encoding="utf-8")]
        assert files, old
        for file in files:
            file.write_text(file.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    tests = folder / "tests"
    tests.mkdir()
    shutil.copy(EXAMPLE / "test_acme.py", tests)
    return run_pytest(tests, path=copied, only=only, ok=ok)


def run_pytest(tests: Path, *, path: Path | None = None, only: str = "", ok: bool = True) -> str:
    """Run the tests of a folder with pytest, without plugins, warnings as errors; return the output."""
    options = ["-q", "-rfE", "-W", "error", "-p", "no:cacheprovider", "--tb=line", "--rootdir", str(tests), "-k", only]
    return run_command(sys.executable, "-m", "pytest", *options, str(tests), path=path, folder=tests, ok=ok)


def write_package(site: Path, package: str, points: Mapping[str, Mapping[str, str]], code: str = "") -> None:
    """Write a package into a folder: its entry points by group, and the code of its module."""
    metadata = site / f"{package}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n", encoding="utf-8")
    listed = "".join(
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in named.items())
        for group, named in points.items()
    )
    (metadata / "entry_points.txt").write_text(listed, encoding="utf-8")
    (site / f"{package}.py").write_text(code, encoding="utf-8")
