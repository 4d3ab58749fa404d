"""Maintenance of a cache folder: size, verification, copy, deletion."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

from embedkit_core.cache.disk.cache import DiskCache
from embedkit_core.cache.disk.folder import OWN_FOLDER
from embedkit_core.cache.opening import default_folder, open_folder
from embedkit_core.common.errors import CacheError, ConfigurationError
from embedkit_core.common.types import Entry


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Contents of a cache folder.

    Attributes:
        folder: Path of the folder.
        vectors: Number of vectors.
        bytes_on_disk: Size of the files.
        damaged: Number of damaged vectors, which are cache misses. None if the vectors were not verified.
        quarantined: True if the database was damaged or foreign, and was renamed.
    """

    folder: str
    vectors: int
    bytes_on_disk: int
    damaged: int | None = None
    quarantined: bool = False


class CacheFolder:
    """Maintenance operations on a cache folder.

    Args:
        folder: The folder, as in `cache=`. None for the user's cache folder.

    Attributes:
        folder: Absolute path of the folder.
    """

    def __init__(self, folder: str | PathLike[str] | None) -> None:
        folder = default_folder() if folder is None else folder
        cache = open_folder(folder)
        assert isinstance(cache, DiskCache)
        self._cache = cache
        self.folder = Path(folder).expanduser().resolve()

    @property
    def _subfolder(self) -> Path:
        return self.folder / OWN_FOLDER

    @property
    def holds_cache(self) -> bool:
        """True if the folder has a cache, which may be empty or damaged."""
        return os.path.lexists(self._subfolder)

    def stats(self) -> CacheStats:
        """Return the contents, without verification of the vectors.

        Raises:
            CacheError: The cache cannot be read.
        """
        before = self._cache.stats.quarantined
        vectors = sum(len(keys) for keys in self._cache.all_keys())
        size = (
            sum(path.stat().st_size for path in self._subfolder.glob("*") if path.is_file())
            if self._subfolder.is_dir()
            else 0
        )
        if self._cache.is_off:
            raise CacheError(f"Cache {self.folder} cannot be used. The log has the reason.")
        return CacheStats(str(self.folder), vectors, size, quarantined=self._cache.stats.quarantined > before)

    def verify(self) -> CacheStats:
        """Return the contents after a check of every vector against its checksum."""
        before = self._cache.stats.quarantined
        stats = self.stats()
        intact = sum(len(block) for block in self.entries())
        quarantined = self._cache.stats.quarantined > before
        return replace(stats, damaged=stats.vectors - intact, quarantined=quarantined)

    def entries(self) -> Iterator[dict[bytes, Entry]]:
        """Yield all intact entries, block by block."""
        for keys in self._cache.all_keys():
            yield self._cache.get_many(keys)

    def copy_to(self, other: CacheFolder) -> int:
        """Copy all intact vectors into another folder; return their number.

        Raises:
            ConfigurationError: The other folder is this one.
        """
        if other.folder == self.folder:
            raise ConfigurationError(f"Cache {self.folder} cannot be copied into itself.")
        copied = 0
        for block in self.entries():
            other._cache.set_many(list(block.items()))
            copied += len(block)
        other._cache.close()
        return copied

    def clear(self) -> int:
        """Delete all vectors; return their number. An empty cache and other files in the folder stay."""
        vectors = self.stats().vectors
        self._cache.close()
        if self._subfolder.is_dir():
            shutil.rmtree(self._subfolder)
            self._subfolder.mkdir(mode=0o700)
        return vectors
