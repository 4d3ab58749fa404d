"""Looking after a cache folder: how much is in it, whether it is whole, and taking it elsewhere."""

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
    """What a cache folder holds: vectors, bytes on disk, and vectors that are damaged, which count as missing.

    `set_aside` says that its database was damaged or not ours, and has another name beside the folder's own now.
    """

    folder: str
    vectors: int
    bytes_on_disk: int
    damaged: int | None = None
    quarantined: bool = False


class CacheFolder:
    """A cache folder to be looked after: the one that `cache=` names, the user's own for None."""

    def __init__(self, folder: str | PathLike[str] | None) -> None:
        folder = default_folder() if folder is None else folder
        cache = open_folder(folder)
        assert isinstance(cache, DiskCache)
        self._cache = cache
        self.folder = Path(folder).expanduser().resolve()

    @property
    def _own(self) -> Path:
        return self.folder / OWN_FOLDER

    @property
    def holds_cache(self) -> bool:
        """Tell whether there is a cache in the folder, be it an empty or a damaged one."""
        return os.path.lexists(self._own)

    def stats(self) -> CacheStats:
        """Count what is there.

        Raises:
            CacheError: there is a cache that cannot be used.
        """
        before = self._cache.stats.quarantined
        vectors = sum(len(keys) for keys in self._cache.all_keys())
        size = sum(path.stat().st_size for path in self._own.glob("*") if path.is_file()) if self._own.is_dir() else 0
        if self._cache.is_off:
            raise CacheError(f"the cache in {self.folder} cannot be used")
        return CacheStats(str(self.folder), vectors, size, quarantined=self._cache.stats.quarantined > before)

    def verify(self) -> CacheStats:
        """Read every vector and check it against its checksum."""
        before = self._cache.stats.quarantined
        stats = self.stats()
        whole = sum(len(block) for block in self.entries())
        aside = self._cache.stats.quarantined > before
        return replace(stats, damaged=stats.vectors - whole, quarantined=aside)

    def entries(self) -> Iterator[dict[bytes, Entry]]:
        """Give all that is whole, block by block."""
        for keys in self._cache.all_keys():
            yield self._cache.get_many(keys)

    def copy_to(self, other: CacheFolder) -> int:
        """Copy all that is whole into another folder, and give how many vectors there were.

        Raises:
            ConfigurationError: it is this folder.
        """
        if other.folder == self.folder:
            raise ConfigurationError(f"{self.folder} cannot be copied into itself")
        copied = 0
        for block in self.entries():
            other._cache.set_many(list(block.items()))
            copied += len(block)
        other._cache.close()
        return copied

    def clear(self) -> int:
        """Delete every vector, and give how many there were. The cache stays, empty, and what else is in the folder."""
        vectors = self.stats().vectors
        self._cache.close()
        if self._own.is_dir():
            shutil.rmtree(self._own)
            self._own.mkdir(mode=0o700)
        return vectors
