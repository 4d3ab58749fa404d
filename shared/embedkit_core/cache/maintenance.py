"""Maintenance of a cache folder: contents by vector space, verification, copy, deletion."""

from __future__ import annotations

import logging
import re
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TypeVar

from embedkit_core.cache.access import OpenCache, exclusive_writes
from embedkit_core.cache.codec import decode_all
from embedkit_core.cache.disk import records
from embedkit_core.cache.disk.cache import DiskCache
from embedkit_core.cache.disk.folder import OWN_FOLDER, identity
from embedkit_core.cache.disk.pool import RENEW_AFTER_SECONDS
from embedkit_core.cache.opening import (
    CACHE_VARIABLE,
    cache_errors_name,
    default_folder,
    environment_cache,
    open_folder,
)
from embedkit_core.cache.urls import mask_secrets, scheme_of
from embedkit_core.common.errors import CacheError, ConfigurationError
from embedkit_core.common.formatting import count_noun, suggest
from embedkit_core.common.types import Cache, Entry

T = TypeVar("T")
logger = logging.getLogger("embedkit_core.cache")

_ROWS_PER_DELETE = 5000  # in one transaction: other processes write in between
_MAX_ROUNDS = 20  # of a deletion by size, while other processes may write
# A space is "provider:model@address/dimensions/dtype/digest", where the address and the digest are optional.
_SPACE = re.compile(r"(?P<model>.+?)(?P<address>@[a-z]+://.+)?/(\d+|unknown)/[a-z]+\d*(/[0-9a-f]{8})?")


@dataclass(frozen=True, slots=True)
class SpaceStats:
    """Vectors of one vector space in a cache folder.

    Attributes:
        space: Name of the space, as `Embedder.space`. None for vectors that were written by a version without it.
        vectors: Number of vectors.
        bytes: Size of the vectors.
        last_used: Last recorded use, in Unix seconds; a use is recorded if the one before is over 30 days ago.
    """

    space: str | None
    vectors: int
    bytes: int
    last_used: float | None


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Contents of a cache folder.

    Attributes:
        folder: Path of the folder.
        vectors: Number of vectors.
        bytes_on_disk: Size of the database and its log.
        damaged: Number of damaged vectors, which are cache misses. None if the vectors were not verified.
        quarantined: True if the database was damaged or foreign, and was renamed.
        spaces: The contents by vector space, the largest first.
    """

    folder: str
    vectors: int
    bytes_on_disk: int
    damaged: int | None = None
    quarantined: bool = False
    spaces: tuple[SpaceStats, ...] = ()

    def check(self) -> None:
        """Check that the database was not quarantined.

        Raises:
            CacheError: It was.
        """
        if self.quarantined:
            raise _quarantined(self.folder)

    def of_model(self, model: str) -> dict[str, SpaceStats]:
        """Return the vector spaces of a model, by name.

        Args:
            model: "provider:model", with or without the "@address" of a server, or the name of one space. Vectors that
                were written without a space belong to none.

        Raises:
            ConfigurationError: There are none.
        """
        known = {space.space: space for space in self.spaces if space.space is not None}
        found = {name: space for name, space in known.items() if model in _names_of(name)}
        if not found:
            hint = suggest(model, [other for name in known for other in _names_of(name)])
            raise ConfigurationError(
                f"model: the cache has no vectors of this model (got {model!r:.200}{f'; {hint}' if hint else ''}). "
                f"Its vector spaces: {', '.join(known) or 'none'}."
            )
        return found


class CacheFolder:
    """Maintenance operations on a cache folder.

    Args:
        folder: The folder, as in `cache=`. None for the one in RAG_EMBEDKIT_CACHE, else the user's cache folder.

    Attributes:
        folder: Absolute path of the folder.

    Raises:
        ConfigurationError: It cannot be a folder.
    """

    def __init__(self, folder: str | PathLike[str] | None) -> None:
        named = mask_secrets(environment_cache()) if folder is None else None
        if scheme_of(named) is not None:
            raise ConfigurationError(f"{CACHE_VARIABLE}: a folder is needed (got an address). Name the folder instead.")
        found = (named or default_folder()) if folder is None else folder
        with cache_errors_name("cache" if named is None else CACHE_VARIABLE):
            cache = open_folder(found)
        assert isinstance(cache, DiskCache)
        self._cache = cache
        self.folder = Path(found).expanduser().resolve()

    @property
    def _subfolder(self) -> Path:
        return self.folder / OWN_FOLDER

    @property
    def holds_cache(self) -> bool:
        """True if the folder has a cache, which may be empty or damaged.

        Raises:
            OSError: The folder cannot be read.
        """
        return identity(self._subfolder) is not None

    def stats(self) -> CacheStats:
        """Return the contents, from a scan of the database without verification of the vectors.

        Raises:
            CacheError: The cache cannot be read.
        """
        before = self._cache.stats.quarantined
        totals = sorted(self._cache.maintain(records.totals) or (), key=lambda total: -total.vectors)
        return CacheStats(
            folder=str(self.folder),
            vectors=sum(total.vectors for total in totals),
            bytes_on_disk=self._bytes_on_disk(),
            quarantined=self._cache.stats.quarantined > before,
            spaces=tuple(SpaceStats(*total) for total in totals),
        )

    def verify(self) -> CacheStats:
        """Return the contents after a check of every vector against its checksum.

        Raises:
            CacheError: The cache cannot be read.
        """
        before = self._cache.stats.quarantined
        stats = self.stats()
        intact = sum(map(len, self.entries()))
        quarantined = self._cache.stats.quarantined > before
        return replace(stats, damaged=max(0, stats.vectors - intact), quarantined=quarantined)

    def entries(self, model: str | None = None) -> Iterator[dict[bytes, Entry]]:
        """Yield all intact entries with their vector spaces, block by block.

        Args:
            model: Only the vectors of a model or space; see `CacheStats.of_model`.

        Raises:
            CacheError: The cache cannot be read.
            ConfigurationError: The cache has no vectors of the model.
        """
        for space in [None] if model is None else self.stats().of_model(model):
            after = -1
            while rows := self._cache.maintain(partial(records.read, after=after, space=space)):
                after = rows[-1].id
                spaces = {row.key: row.space for row in rows}
                decoded = decode_all((row.key, row.value) for row in rows)
                yield {key: entry._replace(space=spaces[key]) for key, entry in decoded.items()}

    def copy_to(self, other: CacheFolder | Cache, *, model: str | None = None) -> int:
        """Copy intact vectors into another cache and return their number.

        Args:
            other: The folder or the cache to copy to. Vectors that it has under the same keys are replaced.
            model: Only the vectors of a model or space; see `CacheStats.of_model`.

        Raises:
            ConfigurationError: The other cache is this one, or this one has no vectors of the model.
            CacheError: This cache cannot be read, or not all vectors arrived in the other one.
        """
        cache, name = (other._cache, str(other.folder)) if isinstance(other, CacheFolder) else (other, repr(other))
        if cache is self._cache:
            raise ConfigurationError(f"Cache {self.folder} cannot be copied into itself.")
        copied, quarantined = 0, self._cache.stats.quarantined
        for block in self.entries(model):
            arrived = _write(cache, block)
            copied += arrived
            if arrived < len(block):
                raise CacheError(
                    f"Cache {name}: only {count_noun(copied, 'vector')} arrived, then writing failed; the log has the "
                    "reason. Use a cache that is writable and has free space, and copy again."
                )
        if self._cache.stats.quarantined > quarantined:
            raise CacheError(
                f"Cache {self.folder} was damaged or of an unknown format and was quarantined. "
                f"Only {count_noun(copied, 'vector')} could be copied."
            )
        cache.close()
        return copied

    def clear(self, *, model: str | None = None) -> int:
        """Delete vectors and return their number. An empty cache and other files in the folder stay.

        Args:
            model: Only the vectors of a model or space; see `CacheStats.of_model`. None for all.

        Raises:
            ConfigurationError: The cache has no vectors of the model.
            CacheError: The cache cannot be read, or not all vectors could be deleted.
        """
        stats = self.stats()
        stats.check()
        if model is not None:
            conditions = [records.of_space(space) for space in stats.of_model(model)]
            deleted = sum(self._delete(self._select(condition), condition) for condition in conditions)
            self._compact(deleted)
            self._cache.close()
            return deleted
        self._cache.close()
        try:
            if self._subfolder.is_dir():
                shutil.rmtree(self._subfolder)
                self._subfolder.mkdir(mode=0o700)
        except OSError as error:
            raise CacheError(f"Cache {self.folder} could not be deleted ({type(error).__name__}).") from None
        return stats.vectors

    def prune(self, *, unused_days: float | None = None, max_bytes: int | None = None) -> int:
        """Delete vectors that were not used for some time, then the least recently used ones of a large cache.

        The last use of a vector is recorded to within 30 days. A vector is deleted if it certainly was not used for
        `unused_days`, which is up to 30 days later.

        Args:
            unused_days: Delete the vectors that were not used for this many days. None for no limit.
            max_bytes: Delete the least recently used vectors until the files have at most this size. None for no limit.

        Returns:
            The number of deleted vectors. The file shrinks.

        Raises:
            ConfigurationError: No limit was passed, or one is not positive.
            CacheError: The cache cannot be read, or not all vectors could be deleted.
        """
        if unused_days is None and max_bytes is None:
            raise ConfigurationError("unused_days, max_bytes: at least one is required (got none).")
        for name, limit in (("unused_days", unused_days), ("max_bytes", max_bytes)):
            if limit is not None and not 0 < limit < float("inf"):
                raise ConfigurationError(f"{name}: must be a positive number (got {limit!r}).")
        deleted = 0
        if unused_days is not None:
            condition = records.unused_since(time.time() - unused_days * 86400 - RENEW_AFTER_SECONDS)
            deleted += self._delete(self._select(condition), condition)
        if deleted or (max_bytes is not None and self._bytes_on_disk() > max_bytes):
            self._compact(deleted)
        for _ in range(_MAX_ROUNDS if max_bytes is not None else 0):
            excess = self._change(partial(records.select_excess, max_bytes=max_bytes or 0))
            if not excess:
                break
            deleted += self._delete(excess)
            self._compact(deleted)
        self._cache.close()
        return deleted

    def _bytes_on_disk(self) -> int:
        if not self._subfolder.is_dir():
            return 0
        size = 0
        for path in self._subfolder.iterdir():
            if path.suffix != ".db-shm":  # exists only while the database is open
                with suppress(FileNotFoundError):  # another process closed the database
                    size += path.stat().st_size
        return size

    def _select(self, condition: records.Condition) -> list[int]:
        return self._change(partial(records.select, condition=condition)) or []

    def _change(self, operation: Callable[[sqlite3.Connection], T], *, writes: bool = False) -> T | None:
        """Return the result of a step of a deletion. None if there is no database.

        Raises:
            CacheError: The step failed, or the database was quarantined.
        """
        before = self._cache.stats.quarantined
        result = self._cache.maintain(operation, writes=writes)
        if self._cache.stats.quarantined > before:
            raise _quarantined(str(self.folder))
        return result

    def _delete(self, ids: list[int], condition: records.Condition = records.ANY) -> int:
        deleted = 0
        for start in range(0, len(ids), _ROWS_PER_DELETE):
            delete = partial(records.delete, ids=ids[start : start + _ROWS_PER_DELETE], condition=condition)
            try:
                deleted += self._change(delete, writes=True) or 0
            except CacheError as error:
                raise CacheError(f"{error} {count_noun(deleted, 'vector')} of {len(ids):,} were deleted.") from None
        return deleted

    def _compact(self, deleted: int) -> None:
        try:
            self._change(records.compact, writes=True)
        except CacheError as error:
            raise CacheError(
                f"{error} {count_noun(deleted, 'vector')} deleted, but the file keeps its size; new vectors use the "
                "free space."
            ) from None


def _write(cache: Cache, block: Mapping[bytes, Entry]) -> int:
    """Write entries to a cache, and return how many of them it has then."""
    opened = OpenCache(cache)
    try:
        failures = opened.write_failures
        with exclusive_writes(cache):
            cache.set_many(list(block.items()))
        # After a failure, the cache may have older vectors of these keys.
        return 0 if opened.write_failures > failures else len(cache.get_many(list(block)))
    except Exception as error:  # a cache that is not built in may raise anything
        logger.warning("Cache could not be written (%s).", type(error).__name__)
        return 0


def _quarantined(folder: str) -> CacheError:
    return CacheError(
        f"Cache {folder}: the database was damaged or of an unknown format and was quarantined. Its vectors must be "
        "embedded again."
    )


def _names_of(space: str) -> list[str]:
    """Return the names by which a vector space is found: its own, and its model with and without the address."""
    match = _SPACE.fullmatch(space)
    if match is None:
        return [space]
    model, address = match["model"], match["address"] or ""
    return [space, f"{model}{address}", model]
