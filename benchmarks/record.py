"""Raw results as JSON, with the commit and the machine that they were measured on."""

import datetime
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"  # ignored by git
SOURCES = ("shared", "langchain_embedkit", "llamaindex_embedkit")

# Images for containers often set it. Measured processes import compiled modules, as an installed package has them.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def git(*arguments: str) -> str:
    """Return what git prints."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def origin() -> dict[str, Any]:
    """Return the commit, whether the sources differ from it, and facts about the machine.

    Call it before the first measurement: the sources can be edited during the run. Without git the commit is None.
    """
    try:
        head, changed = git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--", *SOURCES))
    except (OSError, subprocess.CalledProcessError):
        head, changed = None, False
    machine = {
        "cpu_count": os.cpu_count(),
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    return {"head": head, "head_has_changes": changed, "machine": machine}


def write(name: str, origin: dict[str, Any], results: dict[str, Any]) -> Path:
    """Write results to a file in RESULTS, whose name ends with the commit, and return the file."""
    changed = "-changed" if origin["head_has_changes"] else ""
    file = RESULTS / f"{name}-{(origin['head'] or 'no-commit')[:10]}{changed}.json"
    file.parent.mkdir(exist_ok=True)
    finished = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    file.write_text(json.dumps({**origin, "finished": finished, **results}, indent=1) + "\n", encoding="utf-8")
    return file
