"""What memory and the cache have of a call's texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

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
    from embedkit_core.cache.tiered import Found
    from embedkit_core.engine.runtime.account import Account


class NullRows:
    """Takes rows that nobody wants: it is enough to know that they are there."""

    def put(self, places: Sequence[int], vectors: Sequence[Vectors] | Vectors) -> None:
        """Let go of them."""


class CacheLookup:
    """Fills in the rows that there are; `hits`, `misses` and `truncated` are places in the plan.

    It is open from before the cache is read until the misses are handed over: what the engine finishes meanwhile is
    remembered for it, so that a miss that raced a finish is not paid for again. Whoever runs it must `close` it, or
    hand it over with the misses.
    """

    __slots__ = (
        "_dimensions",
        "_embedder",
        "_found_dimensions",
        "_plan",
        "_rows",
        "_spec",
        "account",
        "hits",
        "misses",
        "truncated",
    )

    def __init__(
        self, owner: BaseEmbedder, role: InputTypeSpec, plan: Plan, rows: MatrixBuffer | ListBuffer | NullRows
    ) -> None:
        self._embedder = owner
        self._spec = role
        self._plan = plan
        self._rows = rows
        self._dimensions = role.format.dimensions or owner.dimensions
        self._found_dimensions: set[int] = set()  # dimensions that there are
        self.account: Account | None = None
        self.hits: set[int] = set()
        self.misses: Sequence[int] = range(len(plan.keys))
        self.truncated: list[int] = []

    def run(self) -> None:
        """Look in memory, then in the cache.

        Raises:
            ConfigurationError: the cache holds vectors of two widths.
        """
        self._look_in_memory()
        if not self.misses:
            return
        running = is_running()
        if running:
            self._open()
        self._accept(self._read())
        if self.misses and not running:  # nothing was under way when we began
            started = is_running()
            if self._open() or started:
                self._accept(self._read())
        self._look_in_variants()

    def peek(self) -> None:
        """Look as `run` does, for who only wants to know: nothing is remembered for it."""
        self._look_in_memory()
        if self.misses:
            self._accept(self._read())
        self._look_in_variants()

    def _look_in_memory(self) -> None:
        if self._spec.input_type == "query":
            self._accept([self._embedder.tiered_cache.from_memory(self._plan.keys)])

    def _look_in_variants(self) -> None:
        for source in self._spec.cached_variants:
            if self.misses:
                self._read_variant(source)

    def close(self) -> None:
        """Have nothing more remembered."""
        if self.account is not None:
            self.account.close_lookup(self)

    def _open(self) -> int:
        """Have what is finished from now on remembered; give how often anything was finished before."""
        self.account = engine().account(self._embedder.provider)
        return self.account.open_lookup(self)

    def _read(self) -> Iterator[Found]:
        keys = [self._plan.keys[place] for place in self.misses]
        return self._embedder.tiered_cache.read(keys, hot=self._spec.input_type == "query")

    def _read_variant(self, source: CachedVariant) -> None:
        """Look for vectors that those asked for can be made from; queries' are remembered as if they were these."""
        texts, hot = self._plan.texts, self._spec.input_type == "query"
        places = {key_of(source.prefix, texts[place]): place for place in self.misses}
        for found in self._embedder.tiered_cache.read(list(places), hot=False):
            entries = {
                places[key]: e for key, e in found.items() if key in places and self._is_usable(e, source.format)
            }
            made = self._finished(entries, source.post_processing)
            self._put(made)
            if hot:
                self._embedder.tiered_cache.remember({self._plan.keys[place]: entry for place, entry in made.items()})
        self._check_widths()
        self.misses = [place for place in self.misses if place not in self.hits]

    def _accept(self, blocks: Iterable[Found]) -> None:
        for found in blocks:
            entries: dict[int, Entry] = {}
            for key, entry in found.items():
                place = self._plan.places.get(key)
                if place is not None and place not in self.hits and self._fits(entry):
                    entries[place] = entry
            self._put(entries)
        self._check_widths()
        if self.hits:
            self.misses = [place for place in self.misses if place not in self.hits]

    @staticmethod
    def _finished(entries: dict[int, Entry], finish: PostProcessing) -> dict[int, Entry]:
        """Return entries as `finish` makes them, without those that do not fit into the type."""
        if not entries:
            return entries
        rows = finish(np.stack([entry.vector for entry in entries.values()]))
        lost = set(overflowed_rows(rows))
        made = enumerate(zip(entries.items(), rows, strict=True))
        return {place: Entry(row, entry.truncated) for n, ((place, entry), row) in made if n not in lost}

    def _put(self, entries: dict[int, Entry]) -> None:
        """Put entries into the rows and count them as hits."""
        if entries:
            self._rows.put(list(entries), [entry.vector for entry in entries.values()])
            self.hits.update(entries)
            self.truncated += [place for place, entry in entries.items() if entry.truncated]

    def _check_widths(self) -> None:
        if len(self._found_dimensions) > 1 and self._spec.format.dimensions is None:
            raise ConfigurationError(
                f"the cache holds vectors of two widths for {self._embedder.model}: the model behind that name has "
                "changed; name dimensions=, or another cache"
            )

    def _fits(self, entry: Entry) -> bool:
        form = self._spec.format
        return self._is_of_one_width(form.dimensions_of(len(entry.vector))) and entry.vector.dtype == form.numpy_dtype

    def _is_usable(self, entry: Entry, form: VectorFormat) -> bool:
        """Tell whether the vector asked for can be made of one of a source: of as many dimensions at least."""
        if entry.vector.dtype != form.numpy_dtype or form.width not in (None, len(entry.vector)):
            return False
        dimensions, asked = form.dimensions_of(len(entry.vector)), self._spec.format.dimensions
        return self._is_of_one_width(dimensions) if asked is None else dimensions >= asked

    def _is_of_one_width(self, dimensions: int) -> bool:
        """Tell whether this is the width of what was found before, in whichever type, or is known otherwise."""
        self._found_dimensions.add(dimensions)
        if self._dimensions is None:
            self._dimensions = dimensions
        return dimensions == self._dimensions
