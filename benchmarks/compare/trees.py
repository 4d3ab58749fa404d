"""The two source trees of a comparison, and the commits they are."""

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from benchmarks.record import ROOT, SOURCES, git


def commit_id(name: str) -> str | None:
    """Return the id of a commit, None if there is no such commit."""
    try:
        return git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    except subprocess.CalledProcessError:
        return None


def known_names() -> list[str]:
    """Return names that a commit can have: the newest branches and tags."""
    names = git("for-each-ref", "--sort=-creatordate", "--count=8", "--format=%(refname:short)")
    return ["HEAD", "HEAD~1", *names.split()]


@contextlib.contextmanager
def two_trees(base: str, folder: Path) -> Iterator[dict[str, Path]]:
    """Check out BASE, and copy the current sources, so that they can be edited during the run."""
    folder = folder.resolve()
    current, checkout = folder / "current", folder / "base"
    for name in SOURCES:
        shutil.copytree(ROOT / name, current / name, ignore=shutil.ignore_patterns("__pycache__"))
    git("worktree", "add", "--detach", str(checkout), base)
    try:
        yield {"base": checkout, "current": current}
    finally:
        git("worktree", "remove", "--force", str(checkout))
