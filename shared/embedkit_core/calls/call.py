"""One call through the library, in steps that both colours share: plan, look up, hand over, wait, assemble."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np

from embedkit_core.calls.failures import call_error, error_name, unknown_price_error
from embedkit_core.calls.lookup import CacheLookup
from embedkit_core.calls.plan import plan_call
from embedkit_core.calls.rows import ListBuffer, MatrixBuffer
from embedkit_core.calls.waiting import Waits
from embedkit_core.common.errors import EmbedKitError, ProviderError
from embedkit_core.common.float_lists import relaxed_gc
from embedkit_core.common.results import EmbeddingResult
from embedkit_core.common.types import Vectors
from embedkit_core.common.usage import Usage
from embedkit_core.config.base import BaseEmbedder
from embedkit_core.config.roles import InputTypeSpec
from embedkit_core.costs.billing import CallBilling
from embedkit_core.costs.meter import TextCounts
from embedkit_core.costs.tracker import UsageTracker, active_trackers
from embedkit_core.engine.runtime.process import engine, off_loop, refuse_engine_thread
from embedkit_core.engine.scheduler.items import Ticket, max_tokens_to_send
from embedkit_core.observability.hooks import CallInfo, CallOutcome, observe_call
from embedkit_core.observability.progress import ProgressOption, make_reporter

# What an async caller's loop is held for at most; more is prepared and assembled on threads of our own.
INLINE_TEXTS, INLINE_CHARACTERS = 64, 50_000
NO_CONTEXT = contextlib.nullcontext()
T = TypeVar("T")


class Call(Waits):
    """The state of one call. `prepare` and `finish` do the work; `wait` or `await_` stand between them.

    Whoever makes a call must `leave` it, whatever happens, before it is finished; `serve` and `arun` do. A call for
    `lists` makes them while it waits, and is finished with `finish_lists`. `start` is where its first text stands in a
    stream that it is a piece of; it is `tracked` by those of the caller, unless others are named.
    """

    __slots__ = (
        "_billing",
        "_deadline",
        "_done",
        "_embedder",
        "_failed",
        "_left",
        "_lists",
        "_lookup",
        "_plan",
        "_spec",
        "_start",
        "_texts",
        "_truncated",
    )

    def __init__(
        self,
        owner: BaseEmbedder,
        role: InputTypeSpec,
        texts: Iterable[str],
        *,
        lists: bool = False,
        start: int = 0,
        tracked: tuple[UsageTracker, ...] | None = None,
        progress: ProgressOption = None,
    ) -> None:
        self._embedder = owner
        self._spec = role
        self._texts = texts
        self._lists = lists
        self._start = start
        self._lookup: CacheLookup | None = None
        self._ticket = None
        self._left = False
        self._done = False
        self._truncated: list[int] = []
        self._failed: dict[int, EmbedKitError] = {}
        self._billing = CallBilling.of_call(
            owner.meter,
            owner.budget,
            owner.price.usd_per_million,
            active_trackers() if tracked is None else tracked,
            model=owner.model,
            input_type=role.input_type,
        )
        self._reporter = make_reporter(progress, owner.model)
        patience = owner.settings.deadline
        self._deadline = math.inf if patience is None else time.monotonic() + patience

    # All the steps

    def run(self, door: str, finish: Callable[[], T]) -> T:
        """Get everything there is to get, and `finish`, on a thread that may block: `door` names who asks.

        Raises:
            EmbedKitError: it is one of the engine's own threads.
        """
        refuse_engine_thread(door)
        with observe_call(self._info, self._outcome):
            try:
                with self._collector():
                    self.prepare()
                    self.report()
                    if self.needs_engine:
                        self.wait()
                    self.report(finished=True)
            finally:
                self.leave()
            return finish()

    async def arun(self, finish: Callable[[], T]) -> T:
        """Get everything there is to get, and `finish`, without holding the caller's loop."""
        with observe_call(self._info, self._outcome):
            try:
                with self._collector():
                    await self.off_loop(self.prepare)
                    self.report()
                    if self.needs_engine:
                        await self.await_()
                    self.report(finished=True)
            finally:
                self.leave()
            return await self.off_loop(finish)

    def _info(self) -> CallInfo:
        return call_info(self._embedder, self._spec, self._texts)

    def _outcome(self) -> CallOutcome:
        if self._done:
            return CallOutcome(self.usage, error_name(self._failed, len(self._plan.keys)))
        asked = 0 if self._lookup is None else self._plan.n
        return CallOutcome(Usage(texts=asked) + self.progress()[1])

    def _collector(self) -> contextlib.AbstractContextManager[None]:
        return relaxed_gc() if self._lists and not self._is_small else NO_CONTEXT

    async def off_loop(self, step: Callable[[], T]) -> T:
        """Take a step of an async caller's, on a thread of ours where it may take long."""
        return step() if self._is_small and not self._embedder.tiered_cache.may_block else await off_loop(step)

    @property
    def _is_small(self) -> bool:
        texts = self._texts
        if not isinstance(texts, list) or len(texts) > INLINE_TEXTS:
            return False
        return sum(len(text) for text in texts if isinstance(text, str)) <= INLINE_CHARACTERS

    # The steps

    def prepare(self) -> None:
        """Check the texts, key them, and fill in the rows that the cache has."""
        plan = self._plan = plan_call(self._texts, self._spec.key_prefix)
        role = self._spec
        self._rows = (ListBuffer if self._lists else MatrixBuffer)(plan.n, plan.first, role.format)
        look_up = self._lookup = CacheLookup(self._embedder, self._spec, plan, self._rows)
        try:
            look_up.run()
        except BaseException:
            look_up.close()
            raise
        # A cancelled caller has left already, while this ran on a thread of ours.
        if not look_up.misses or self._left:
            look_up.close()
        elif self._billing.price_is_missing:
            look_up.close()
            self._failed = dict.fromkeys(look_up.misses, unknown_price_error(self._embedder.model))
        elif limit := role.request_spec.limits.text_tokens:
            self._count_long(look_up.misses, limit // 2)

    def _count_long(self, misses: Iterable[int], most: int) -> None:
        """Count the tokens of texts that may be too long, where that can be done here, rather than estimate them."""
        sizes = self._plan.sizes
        for place in misses:
            if sizes[place] > most and (tokens := self._embedder.provider.count_tokens(self._plan.texts[place])):
                sizes[place] = tokens

    @property
    def needs_engine(self) -> bool:
        """Tell whether anything has to be sent."""
        return self._lookup is not None and bool(self._lookup.misses) and not self._failed

    def submit(self, wake: Callable[[], None]) -> None:
        """Hand the misses over; `wake` is called on the engine's side when all are served or given up."""
        plan, owner, look_up = self._plan, self._embedder, self._lookup
        assert look_up is not None
        assert look_up.account is not None
        self._rows.positions = plan.first[look_up.misses]
        self._ticket = Ticket(
            rows=self._rows,
            pending=len(look_up.misses),
            is_query=self._spec.input_type == "query",
            max_retries=owner.settings.max_retries,
            max_in_flight=owner.settings.max_concurrency,
            rates=owner.settings.rates,
            deadline=self._deadline,
            cache=owner.tiered_cache.backend,
            billing=self._billing,
            wake=wake,
            vector_format=self._spec.format,
        )
        wants = [(plan.keys[place], plan.texts[place], plan.sizes[place]) for place in look_up.misses]
        owner.use_account(look_up.account)
        engine().submit(look_up.account, self._ticket, self._spec.request_spec, wants, look_up)

    def report(self, *, finished: bool = False) -> None:
        """Tell the user how far it is, where they want to know."""
        if self._reporter is not None:
            self._reporter.begin(self._plan.n)
            self._reporter.report(*self.progress(), finished=finished)

    def progress(self) -> tuple[int, Usage]:
        """Give how many texts are done, and the usage so far; from any thread, at any time."""
        look_up, ticket = self._lookup, self._ticket
        if look_up is None:
            return 0, Usage()
        unique = len(self._plan.keys)
        pending = len(look_up.misses) if ticket is None else ticket.pending
        pending = 0 if self._failed else pending  # nothing of this call was sent
        usage = Usage(cache_hits=len(look_up.hits), failed=len(self._failed or (ticket.failed if ticket else ())))
        done = self._plan.n * (unique - pending) // unique if unique else self._plan.n
        return done, usage if ticket is None else usage + ticket.usage

    def leave(self) -> None:
        """Withdraw what is still pending; nothing is where all is served."""
        self._left = True
        if self._reporter is not None:
            self._reporter.close()
        look_up = self._lookup
        if look_up is None:
            return
        if self._ticket is None:
            look_up.close()
        elif not self._ticket.closed:
            assert look_up.account is not None
            engine().withdraw(look_up.account, self._ticket, look_up)

    def finish(self) -> EmbeddingResult:
        """Put rows, usage and failures together in the order asked, and raise what is to be raised."""
        vectors = self._finished()
        assert isinstance(vectors, np.ndarray)
        result = self._result(vectors)
        self._raise_failures(result)
        return result

    def finish_vectors(self) -> Vectors:
        """Give the vectors alone, as `finish` does."""
        vectors = self._finished()
        assert isinstance(vectors, np.ndarray)
        if self._failed:
            self._raise_failures(self._result(vectors))
        return vectors

    def finish_lists(self) -> list[list[float]]:
        """Give the vectors as Python floats, for a call that makes lists, and raise what `finish` does."""
        rows = self._finished()
        assert isinstance(rows, list)
        if self._failed:
            self._raise_failures(self._result(np.array(rows).astype(self._spec.format.numpy_dtype)))
        return rows

    @property
    def usage(self) -> Usage:
        """What a finished call took."""
        usage = self._billing.usage(self._counts())
        return usage if self._ticket is None else usage + self._ticket.usage

    # What it comes to

    def _counts(self) -> TextCounts:
        plan, ticket = self._plan, self._ticket
        joined, sent = (0, 0) if ticket is None else (ticket.coalesced, ticket.sent)
        assert self._lookup is not None
        hits, sizes = self._lookup.hits, plan.sizes
        saved = sum(sizes) if len(hits) == len(sizes) else sum(sizes[place] for place in hits)
        return TextCounts(plan.n, len(hits), plan.n - len(plan.keys), joined, sent, len(self._failed), saved)

    def _finished(self) -> Vectors | list[list[float]]:
        """Count the call, and give its rows in the order asked."""
        plan, owner, ticket, look_up = self._plan, self._embedder, self._ticket, self._lookup
        assert look_up is not None
        self._truncated = look_up.truncated
        if ticket is not None:
            if ticket.internal_error is not None:
                raise ticket.internal_error
            failed = self._billing.refresh_errors(ticket.failed)
            self._failed = {look_up.misses[index]: error for index, error in failed.items()}
            self._truncated += [look_up.misses[index] for index in ticket.truncated]
        self._billing.count(self._counts())
        self._done = True
        if self._rows.put_count + len(self._failed) != len(plan.keys):
            raise ProviderError("internal error: a text has neither a vector nor a failure; please report it")
        origin = plan.first[plan.source] if len(plan.keys) < plan.n else None
        form = self._spec.format
        width = form.width_of(owner.dimensions or 0)
        rows = self._rows.finished(origin, self._positions(self._failed), width)
        if owner.dimensions is None and self._rows.width:
            owner.learn_dimensions(form.dimensions_of(self._rows.width))
        if self._truncated:
            owner.warn_of_truncation([self._start + p for p in self._positions(self._truncated)], plan.n)
        return rows

    def _result(self, vectors: Vectors) -> EmbeddingResult:
        owner, failed = self._embedder, self._positions(self._failed)
        return EmbeddingResult(
            vectors=vectors,
            usage=self.usage,
            model=owner.model,
            input_type=self._spec.input_type,
            space=owner.space,
            truncated=self._positions(self._truncated),
            failed={p: self._failed[int(self._plan.source[p])] for p in failed},
        )

    def _positions(self, places: Iterable[int]) -> tuple[int, ...]:
        """Give the positions in the call of distinct texts, duplicates included."""
        chosen = list(places)
        return tuple(np.flatnonzero(np.isin(self._plan.source, chosen)).tolist()) if chosen else ()

    def _raise_failures(self, result: EmbeddingResult) -> None:
        if result.failed and self._embedder.settings.on_error == "raise":
            needed = sum(max_tokens_to_send(self._plan.texts[place], self._spec.request_spec) for place in self._failed)
            raise call_error(result, needed, kept=self._embedder.tiered_cache.backend is not None)


def call_info(owner: BaseEmbedder, role: InputTypeSpec, texts: object = None) -> CallInfo:
    """Return what observers are given when a call or a stream begins; `texts` only if they are a list or a tuple."""
    provider = owner.provider
    return CallInfo(
        provider=provider.telemetry_name,
        model=provider.model,
        address=provider.url,
        input_type=role.input_type,
        dimensions=owner.dimensions,
        dtype=role.format.dtype,
        encodings=provider.encodings,
        texts=texts if isinstance(texts, (list, tuple)) else None,
    )
