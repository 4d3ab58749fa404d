"""Lock files of owners with the locks of Windows, which a module with the errors of msvcrt replaces."""

import os
import subprocess
import sys

import pytest

# Where flock raises BlockingIOError, msvcrt.locking raises PermissionError. On Windows, lstat may name another device
# than fstat.
PROGRAM = """
import fcntl, importlib, sys, types
from pathlib import Path

def locking(descriptor, mode, size):
    assert (mode, size) == (7, 1)
    if attempts:
        attempts.pop()
        raise PermissionError(13, "Permission denied")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise PermissionError(13, "Permission denied") from error

attempts = []
sys.modules["msvcrt"] = types.SimpleNamespace(LK_NBLCK=7, locking=locking)
import embedkit_core.coordination.journal.locks  # with what it imports, for this system
del sys.modules["embedkit_core.coordination.journal.locks"], sys.modules["embedkit_core.coordination.local.owners"]
sys.platform = "win32"
owners = importlib.import_module("embedkit_core.coordination.local.owners")
from embedkit_core.coordination.journal.locks import FileLock
owners.identity = lambda path: owners.Identity(0, 0)

folder = Path(sys.argv[1])
attempts.append(True)  # another process holds the file for a moment, since it takes its owner for dead
owner = owners.OwnerLock(folder)
assert owner.is_held and not attempts
assert not owners.remove_if_dead(folder, owner.name)
owner.release()
assert not owner.is_held and owners.names(folder) == []
assert owners.remove_if_dead(folder, owner.name)

first, second = FileLock(folder / "lock"), FileLock(folder / "lock")
assert first.acquire() and not second.acquire()
first.release()
assert second.acquire()
"""


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX processes")
def test_a_lock_that_another_process_holds_is_noticed_with_the_errors_of_windows(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, timeout=100, check=False
    )
    assert run.returncode == 0, run.stderr
