"""Checks of a cache folder: permissions, foreign files, network file systems; and its quarantine."""

from __future__ import annotations

import os
import re
import stat
import sys
import time
from pathlib import Path
from typing import NamedTuple

from embedkit_core.common.errors import CacheError

OWN_FOLDER = "embedkit-v1"  # inside the user's folder, whose permissions must not be changed
DATABASE = "cache.db"

# SQLite's WAL needs shared memory, which network file systems do not provide.
# Source: SQLite, https://www.sqlite.org/wal.html ("does not work over a network filesystem").
_NETWORK_TYPES = frozenset(
    {
        "9p", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "fuse.ceph", "fuse.curlftpfs", "fuse.davfs2",
        "fuse.gcsfuse", "fuse.glusterfs", "fuse.juicefs", "fuse.rclone", "fuse.s3fs", "fuse.sshfs", "glusterfs", "gpfs",
        "lustre", "ncpfs", "nfs", "nfs4", "orangefs", "panfs", "pvfs2", "smb3", "smbfs", "sshfs",
    }
)  # fmt: skip


class Identity(NamedTuple):
    """Identity of a file or folder that does not depend on its name."""

    device: int
    inode: int


def identity(path: Path) -> Identity | None:
    """Return the identity of the file or folder at a path. None if there is none."""
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return Identity(status.st_dev, status.st_ino)


def harden(folder: Path) -> None:
    """Remove the permissions of other users on an existing cache folder.

    Raises:
        CacheError: It is a link, belongs to another user, or its permissions cannot be changed.
    """
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise CacheError(f"{folder} is a link or a file, not a folder")
    if not _is_own(status):
        raise CacheError(f"{folder} belongs to another user")
    if os.name != "posix" or not status.st_mode & 0o077:
        return
    try:
        folder.chmod(status.st_mode & 0o700)
    except OSError as error:
        if status.st_mode & 0o022:
            raise CacheError(f"{folder} is writable by other users, and its permissions cannot be changed") from error


def foreign_file(folder: Path, database: str = DATABASE) -> str | None:
    """Return the reason why a folder has files that this library did not create. None if it has no such files."""
    for name in (database, f"{database}-wal", f"{database}-shm"):
        try:
            status = (folder / name).lstat()
        except FileNotFoundError:
            if name == database and any(folder.iterdir()):
                return f"{database} is missing"
            continue
        if not stat.S_ISREG(status.st_mode) or not _is_own(status):
            return f"{name} is a link, not a file, or belongs to another user"
    # The library never creates a rollback journal. To replay a forged one can delete the file that it refers to.
    if os.path.lexists(folder / f"{database}-journal"):
        return f"{database}-journal exists"
    return None


def quarantine(folder: Path, seen: Identity | None) -> Path | None:
    """Rename a folder and return its new path. None if it is no longer the one that was seen.

    Raises:
        OSError: The folder cannot be renamed.
    """
    if seen is None or identity(folder) != seen:
        return None  # another process did it, and this is the new folder
    name = f"{folder.name}.set-aside-{time.strftime('%Y%m%dT%H%M%S')}-{os.urandom(4).hex()}"
    return folder.rename(folder.with_name(name))


def network_filesystem(mountinfo: str, path: str) -> str | None:
    """Return the type of the network file system of a path. None if it is local.

    Args:
        mountinfo: Content of /proc/self/mountinfo on Linux. Source: proc(5).
        path: An absolute path.
    """
    best, best_type = "", ""
    for line in mountinfo.splitlines():
        before, separator, after = line.partition(" - ")
        fields = before.split(" ")
        if not separator or len(fields) < 5:
            continue
        mount = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4])
        inside = path == mount or path.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best):  # a later mount hides an earlier one at the same path
            best, best_type = mount, after.split(" ")[0]
    return best_type if best_type in _NETWORK_TYPES else None


def network_of(folder: Path) -> str | None:
    """Return the network file system of a folder that may not exist yet. None if it is local or unknown."""
    if sys.platform == "win32":
        return "a network share" if folder.drive.startswith("\\\\") else None
    try:
        mountinfo = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return None
    return network_filesystem(mountinfo, os.path.realpath(folder))


def _is_own(status: os.stat_result) -> bool:
    return os.name != "posix" or status.st_uid == os.geteuid()
