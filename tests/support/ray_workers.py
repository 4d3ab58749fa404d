"""The processes of Ray's workers, found from outside: nothing of Ray is imported."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path


def worker_pids(driver: int | None = None) -> list[int]:
    """Return the process IDs of the workers that embed, oldest first.

    Args:
        driver: The process that started Ray on this machine; by default this one.
    """
    driver = os.getpid() if driver is None else driver
    found = subprocess.run(["pgrep", "-f", "^ray::MapWorker"], capture_output=True, text=True, check=False)
    return [pid for pid in map(int, found.stdout.split()) if driver in _ancestors(pid)]


def _ancestors(pid: int) -> Iterator[int]:
    """Yield the parent process, its parent and so on."""
    while pid > 1:
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            return
        yield pid
