"""Cache lookup: which texts of a call the cache already holds."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from embedkit_core.cache.key import key_of
from embedkit_core.calls.plan import Plan
from embedkit_core.calls.rows import ListBuffer, MatrixBuffer
from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.types import Entry, Vectors
from embedkit_core.common.vectors import PostProcessing, VectorFormat, overflowed_rows
from embedkit_core.config.base import BaseEmbedder
from embedkit_core.config.roles import CachedVariant, InputTypeSpec
from embedkit_core.engine.runtime.process import engine, is_running

if TYPE_CHECKING:
    from embedkit_core.cache.access import Found
    from embedkit_core.engine.runtime.account import Account


class NullRows:
    """A row buffer that discards rows, for callers that only need to know which texts are cached."""

    def put(self, indexes: Sequence[int], vectors: Sequence[Vectors] | Vectors) -> None:
        """Discard the rows."""


class CacheLookup:
    """One lookup in the cache, which fills a row buffer.

    It stays open from before the cache is read until the misses are submitted. Rows that the engine completes meanwhile
    are kept for it, so that a miss is not sent again after another caller's request has answered it. After `run`, the
    lookup must be submitted together with the misses or closed with `close`.

    Attributes:
        account: The account that keeps rows for this lookup, None if the engine was not needed.
        hits: The plan indexes of the texts that were found.
        misses: The plan indexes of the others.
        truncated: The plan indexes of hits whose text was truncated.
        started_at: The time before the cache was read, by `time.monotonic`.
    """

    __slots__ = (
        "_dimensions",
        "_embedder",
        "_fitting",
        "_found_dimensions",
        "_plan",
        "_rows",
        "_spec",
        "account",
        "hits",
        "misses",
        "started_at",
        "truncated",
    )

    def __init__(
        self, embedder: BaseEmbedder, spec: InputTypeSpec, plan: Plan, rows: MatrixBuffer | ListBuffer | NullRows
    ) -> None:
        self._embedder = embedder
        self._spec = spec
        self._plan = plan
        self._rows = rows
        self._dimensions = spec.format.dimensions or embedder.dimensions
        self._fitting: dict[tuple[int, np.dtype[Any]], bool] = {}  # by width and dtype of an entry
        self._found_dimensions: set[int] = set()
        self.account: Account | None = None
        self.hits: set[int] = set()
        self.misses: Sequence[int] = range(len(plan.keys))
        self.truncated: list[int] = []
        self.started_at = -math.inf

    def run(self) -> None:
        """Look in the cache.

        Raises:
            ConfigurationError: The cache holds vectors of two widths for this model.
        """
        if not self.misses:
            return
        self.started_at = time.monotonic()
        was_running = is_running()
        if was_running:
            self._open()
        self._accept(self._read())
        if self.misses and not was_running:  # the engine may have started meanwhile
            started = is_running()
            if self._open() or started:
                self._accept(self._read())
        self._look_in_variants()

    def peek(self) -> None:
        """Look in the cache, without keeping rows open: for estimates."""
        if self.misses:
            self._accept(self._read())
        self._look_in_variants()

    def _look_in_variants(self) -> None:
        for variant in self._spec.cached_variants:
            if self.misses:
                self._read_variant(variant)

    def close(self) -> None:
        """Release the rows that are kept for this lookup."""
        if self.account is not None:
            self.account.close_lookup(self)

    def _open(self) -> int:
        """Keep the rows that are completed from now on. Return the number of earlier completions."""
        self.account = engine().account(self._embedder.provider)
        return self.account.open_lookup(self)

    def _read(self) -> Iterator[Found]:
        keys = [self._plan.keys[index] for index in self.misses]
        return self._embedder.vector_cache.read(keys, hot=self._is_single_query, space=self._embedder.vector_space)

    @property
    def _is_single_query(self) -> bool:
        """True if what is found is kept in memory: look-ups of more texts would displace the queries there."""
        return self._spec.input_type == "query" and len(self._plan.keys) == 1

    def _read_variant(self, variant: CachedVariant) -> None:
        """Look for vectors from which the requested ones can be derived. That of a single query is kept in memory."""
        texts = self._plan.texts
        indexes = {key_of(variant.prefix, texts[index]): index for index in self.misses}
        for found in self._embedder.vector_cache.read(list(indexes), hot=False):
            entries = {
                indexes[key]: e for key, e in found.items() if key in indexes and self._is_usable(e, variant.format)
            }
            made = self._post_process(entries, variant.post_processing)
            self._put(made)
            if self._is_single_query:
                self._embedder.vector_cache.remember({self._plan.keys[index]: entry for index, entry in made.items()})
        self._check_widths()
        self.misses = [index for index in self.misses if index not in self.hits]

    def _accept(self, blocks: Iterable[Found]) -> None:
        for found in blocks:
            entries: dict[int, Entry] = {}
            for key, entry in found.items():
                index = self._plan.indexes.get(key)
                if index is not None and index not in self.hits and self._fits(entry):
                    entries[index] = entry
            self._put(entries)
        self._check_widths()
        if self.hits:
            self.misses = [index for index in self.misses if index not in self.hits]

    @staticmethod
    def _post_process(entries: dict[int, Entry], post_processing: PostProcessing) -> dict[int, Entry]:
        """Return the post-processed entries, without those that overflow the dtype."""
        if not entries:
            return entries
        rows = post_processing(np.stack([entry.vector for entry in entries.values()]))
        lost = set(overflowed_rows(rows))
        made = enumerate(zip(entries.items(), rows, strict=True))
        return {index: Entry(row, entry.truncated) for n, ((index, entry), row) in made if n not in lost}

    def _put(self, entries: dict[int, Entry]) -> None:
        """Put entries into the rows and count them as hits."""
        if entries:
            self._rows.put(list(entries), [entry.vector for entry in entries.values()])
            self.hits.update(entries)
            self.truncated += [index for index, entry in entries.items() if entry.truncated]

    def _check_widths(self) -> None:
        if len(self._found_dimensions) > 1 and self._spec.format.dimensions is None:
            raise ConfigurationError(
                f"The cache holds vectors of two widths for {self._embedder.model}: the model behind that name has "
                "changed. Set dimensions= or use another cache=."
            )

    def _fits(self, entry: Entry) -> bool:
        wanted, shape = self._spec.format, (len(entry.vector), entry.vector.dtype)
        fits = self._fitting.get(shape)
        if fits is None:
            fits = self._matches_width(wanted.dimensions_of(shape[0])) and shape[1] == wanted.numpy_dtype
            self._fitting[shape] = fits
        return fits

    def _is_usable(self, entry: Entry, vector_format: VectorFormat) -> bool:
        """Return True if the requested vector can be derived from an entry of this format."""
        if entry.vector.dtype != vector_format.numpy_dtype or vector_format.width not in (None, len(entry.vector)):
            return False
        dimensions, asked = vector_format.dimensions_of(len(entry.vector)), self._spec.format.dimensions
        return self._matches_width(dimensions) if asked is None else dimensions >= asked

    def _matches_width(self, dimensions: int) -> bool:
        """Return True if these are the model's dimensions or, if those are unknown, the dimensions found first."""
        self._found_dimensions.add(dimensions)
        if self._dimensions is None:
            self._dimensions = dimensions
        return dimensions == self._dimensions
