"""The folder a cache lives in: ours alone, on a disk that can hold it, and set aside where it is not what we made."""

from __future__ import annotations

import os
import re
import secrets
import stat
import sys
import time
from pathlib import Path
from typing import NamedTuple

from embedkit_core.common.errors import CacheError

OWN_FOLDER = "embedkit-v1"  # in the user's folder: what we harden must not be what the user keeps other things in
DATABASE = "cache.db"

# SQLite's WAL needs memory shared by all who use the database, which no network file system gives.
# Source: SQLite, https://www.sqlite.org/wal.html ("does not work over a network filesystem").
_NETWORK_TYPES = frozenset(
    {
        "9p", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "fuse.ceph", "fuse.curlftpfs", "fuse.davfs2",
        "fuse.gcsfuse", "fuse.glusterfs", "fuse.juicefs", "fuse.rclone", "fuse.s3fs", "fuse.sshfs", "glusterfs", "gpfs",
        "lustre", "ncpfs", "nfs", "nfs4", "orangefs", "panfs", "pvfs2", "smb3", "smbfs", "sshfs",
    }
)  # fmt: skip


class Identity(NamedTuple):
    """Which file or folder this is, whatever its name is by now."""

    device: int
    inode: int


def identity(path: Path) -> Identity | None:
    """Tell which file or folder has this name, None where there is none."""
    try:
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return Identity(found.st_dev, found.st_ino)


def harden(own: Path) -> None:
    """Close an existing folder of ours to everybody else.

    Raises:
        CacheError: it is a link, another user's, or open to others in a way we cannot change.
    """
    found = own.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise CacheError(f"{own} is a link or a file, not a folder of its own")
    if not _ours(found):
        raise CacheError(f"{own} belongs to another user")
    if os.name != "posix" or not found.st_mode & 0o077:
        return
    try:
        own.chmod(found.st_mode & 0o700)
    except OSError as error:
        if found.st_mode & 0o022:
            raise CacheError(f"{own} can be written to by others, and that cannot be changed") from error


def foreign_file(own: Path) -> str | None:
    """Say what among the files of a database we would not have put there, None where all are as we make them."""
    for name in (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm"):
        try:
            found = (own / name).lstat()
        except FileNotFoundError:
            if name == DATABASE and any(own.iterdir()):
                return f"{DATABASE} is missing"
            continue
        if not stat.S_ISREG(found.st_mode) or not _ours(found):
            return f"{name} is a link, no file, or another user's"
    # We never make a rollback journal; replaying one can delete whatever file it names.
    if os.path.lexists(own / f"{DATABASE}-journal"):
        return f"{DATABASE}-journal is there"
    return None


def quarantine(own: Path, seen: Identity | None) -> bool:
    """Give a folder another name beside its own; False where it is no longer the one seen.

    Raises:
        OSError: the folder cannot be renamed.
    """
    if seen is None or identity(own) != seen:
        return False  # another process has set it aside already, and this is the new one
    own.rename(own.with_name(f"{own.name}.set-aside-{time.strftime('%Y%m%dT%H%M%S')}-{secrets.token_hex(4)}"))
    return True


def network_filesystem(mountinfo: str, path: str) -> str | None:
    """Name the network file system that holds an absolute path, None where it is a local one.

    `mountinfo` is the text of Linux's /proc/self/mountinfo. Source: proc(5).
    """
    best, best_type = "", ""
    for line in mountinfo.splitlines():
        before, separator, after = line.partition(" - ")
        fields = before.split(" ")
        if not separator or len(fields) < 5:
            continue
        mount = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4])
        inside = path == mount or path.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best):  # a later mount hides an earlier one at the same place
            best, best_type = mount, after.split(" ")[0]
    return best_type if best_type in _NETWORK_TYPES else None


def network_of(folder: Path) -> str | None:
    """Name the network file system a folder is, or would be, on; None where it is local or cannot be told."""
    if sys.platform == "win32":
        return "a network share" if folder.drive.startswith("\\\\") else None
    try:
        mountinfo = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return None
    return network_filesystem(mountinfo, os.path.realpath(folder))


def _ours(found: os.stat_result) -> bool:
    return os.name != "posix" or found.st_uid == os.geteuid()
