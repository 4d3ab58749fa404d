"""One call: plan, look up, submit, wait, assemble. The steps are the same for sync and async callers."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from embedkit_core.calls.call_info import call_info, response_model
from embedkit_core.calls.failures import attribute_refusals, call_error, error_name, price_error
from embedkit_core.calls.lookup import CacheLookup
from embedkit_core.calls.plan import plan_call, unknown_width_error
from embedkit_core.calls.rows import ListBuffer, MatrixBuffer
from embedkit_core.calls.shared_budgets import check_budgets, open_budgets, unopened
from embedkit_core.calls.waiting import await_, wait
from embedkit_core.common.errors import BudgetError, EmbedKitError, ProviderError
from embedkit_core.common.float_lists import relaxed_gc
from embedkit_core.common.fork_safety import import_module
from embedkit_core.common.results import EmbeddingResult
from embedkit_core.common.threads import BULK, LOOKUPS, SLOW_LOOKUPS, off_loop, running_loop
from embedkit_core.common.types import Vectors
from embedkit_core.common.usage import Usage
from embedkit_core.config.base import BaseEmbedder
from embedkit_core.config.roles import InputTypeSpec, OnError
from embedkit_core.costs.billing import CallBilling
from embedkit_core.costs.meter import TextCounts
from embedkit_core.costs.tracker import UsageTracker, active_trackers
from embedkit_core.engine.runtime.process import engine, is_running, refuse_engine_thread
from embedkit_core.engine.scheduler.items import Ticket, max_tokens_to_send
from embedkit_core.engine.scheduler.long_text import may_be_counted, maybe_truncated, min_tokens
from embedkit_core.observability.hooks import CallInfo, CallOutcome, observe_call
from embedkit_core.observability.progress import ProgressOption, make_reporter

# The most of which an async call computes the keys and assembles the rows on the caller's event loop.
MAX_INLINE_TEXTS, MAX_INLINE_CHARACTERS = 64, 50_000
NO_CONTEXT = contextlib.nullcontext()
T = TypeVar("T")

logger = logging.getLogger("embedkit_core.engine")


class Call:
    """The state of one call.

    `prepare` and `finish` do the work of the caller; `wait` or `await_` from `calls.waiting` run between them. A call
    that waited must be left with `leave` before it is finished, also after an error; `run` and `arun` do both.

    Args:
        embedder: The embedder whose settings, cache, budget and meter the call uses.
        spec: The input type's specification.
        texts: The texts to embed.
        lists: Whether the result is lists of floats, made while the call waits and returned by `finish_lists`.
        warns: Whether to warn of truncated texts; False for the chunks of a stream, which warns itself.
        tracked: The usage trackers to count in; by default those active in the current context.
        progress: Where progress is reported.
    """

    __slots__ = (
        "_billing",
        "_counts",
        "_deadline",
        "_embedder",
        "_failed",
        "_left",
        "_lists",
        "_lookup",
        "_plan",
        "_spec",
        "_texts",
        "_too_long",
        "_truncated",
        "_warns",
        "reporter",
        "rows",
        "ticket",
    )

    rows: MatrixBuffer | ListBuffer

    def __init__(
        self,
        embedder: BaseEmbedder,
        spec: InputTypeSpec,
        texts: Iterable[str],
        *,
        lists: bool = False,
        warns: bool = True,
        tracked: tuple[UsageTracker, ...] | None = None,
        progress: ProgressOption = None,
    ) -> None:
        self._embedder = embedder
        self._spec = spec
        self._texts = texts
        self._lists = lists
        self._warns = warns
        self._lookup: CacheLookup | None = None
        self.ticket: Ticket | None = None
        self._left = False
        self._counts: TextCounts | None = None  # None until the texts are counted
        self._truncated: list[int] = []
        self._too_long: dict[int, int] = {}
        self._failed: dict[int, EmbedKitError] = {}
        self._billing = CallBilling.of_call(
            embedder.meter,
            embedder.budget,
            embedder.price,
            active_trackers() if tracked is None else tracked,
            model=embedder.model,
            input_type=spec.input_type,
        )
        self.reporter = make_reporter(progress, embedder.model)
        deadline = embedder.settings.deadline
        self._deadline = math.inf if deadline is None else time.monotonic() + deadline

    # The whole call

    def run(self, method_name: str, finish: Callable[[], T]) -> T:
        """Run all steps on a thread that may block and return the result of `finish`.

        Args:
            method_name: The public method, for error messages.
            finish: The last step, such as `self.finish`.

        Raises:
            EmbedKitError: The current thread is one of the engine's threads.
        """
        refuse_engine_thread(method_name)
        with observe_call(self._info, self._outcome):
            try:
                with relaxed_gc() if self._lists and not self._is_small else NO_CONTEXT:
                    self.prepare()
                    self.report()
                    if self.needs_engine:
                        wait(self)
                    self.report(finished=True)
            finally:
                self.leave()
            return finish()

    async def arun(self, finish: Callable[[], T]) -> T:
        """Run all steps without blocking the caller's event loop, which is asyncio's; return the result of `finish`."""
        running_loop()
        is_small = self._is_small
        finished: list[T] = []
        with observe_call(self._info, self._outcome):
            try:
                with relaxed_gc() if self._lists and not is_small else NO_CONTEXT:
                    if is_small:
                        self.plan()
                    if is_small and not self._may_block():
                        self.prepare()
                    else:
                        finished = await self._aprepare(finish, is_small=is_small)
                    self.report()
                    if self.needs_engine:
                        await await_(self)
                    self.report(finished=True)
            finally:
                self.leave()
            if finished:
                return finished[0]
            return finish() if is_small and not self._result_may_block else await off_loop(finish, BULK)

    async def _aprepare(self, finish: Callable[[], T], *, is_small: bool) -> list[T]:
        """Run `prepare` and, if no text must be sent, `finish` on a worker thread, in one job.

        Returns:
            The result of `finish`, or an empty list if texts must be sent.
        """

        def steps() -> list[T]:
            self.prepare()
            return [] if self.needs_engine or self._left else [finish()]

        pool = self._embedder.bulk_pool(self._spec.input_type)
        queries = SLOW_LOOKUPS if self._embedder.vector_cache.may_block else LOOKUPS
        return await off_loop(steps, queries if is_small and pool is BULK else pool)

    def _info(self) -> CallInfo:
        return call_info(self._embedder, self._spec, self._texts)

    def _outcome(self) -> CallOutcome:
        if self._counts is not None:
            return CallOutcome(self.usage, error_name(self._failed, len(self._plan.keys)), response_model(self.ticket))
        usage = Usage(texts=0 if self._lookup is None else self._plan.n) + self.progress()[1]
        return CallOutcome(usage, response_model=response_model(self.ticket))

    def _may_block(self) -> bool:
        """Return True if the look-up or the result may read a file, start the engine or load a tokenizer."""
        lookup = self._lookup
        if lookup is None or not lookup.misses:
            return self._result_may_block
        reads_files = self._embedder.vector_cache.backend is not None or not is_running()
        return (
            reads_files
            or bool(unopened(self._billing.budgets))
            or may_be_counted(self._plan.sizes, self._spec.request_spec)
        )

    @property
    def _result_may_block(self) -> bool:
        """True if the result may load a tokenizer, to list the texts that may be truncated."""
        return self._spec.request_spec.may_truncate_silently and may_be_counted(
            self._plan.sizes, self._spec.request_spec
        )

    @property
    def _is_small(self) -> bool:
        texts = self._texts
        if not isinstance(texts, list) or len(texts) > MAX_INLINE_TEXTS:
            return False
        return sum(len(text) for text in texts if isinstance(text, str)) <= MAX_INLINE_CHARACTERS

    # Steps

    def plan(self) -> None:
        """Check the texts and compute their keys."""
        check_budgets(self._billing.budgets, self._spec.request_spec.coordination)
        plan = self._plan = plan_call(self._texts, self._spec.key_prefix, allows_empty=self._spec.allows_empty)
        self.rows = (ListBuffer if self._lists else MatrixBuffer)(plan.n, plan.first, self._spec.format)
        self._lookup = CacheLookup(self._embedder, self._spec, plan, self.rows)

    def prepare(self) -> None:
        """Run `plan`, unless that is done, and read the cache. If texts are missing, open the named budgets."""
        if self._lookup is None:
            self.plan()
        lookup = self._lookup
        assert lookup is not None
        try:
            lookup.run()
            # Queries are always sent.
            if lookup.misses and self._spec.input_type == "document" and self._embedder.jobs_folder is not None:
                heed_jobs = import_module("embedkit_core.calls.in_batch").heed_jobs
                if heed_jobs(self._embedder, self._plan, lookup, self._deadline, self._has_left):
                    lookup.run()
            # A cancelled caller may have left while this ran on a worker thread.
            is_done = not lookup.misses or self._left
            refusal = None if is_done else self._refusal()
        except BaseException:
            lookup.close()
            raise
        if is_done:
            lookup.close()
        elif refusal is not None:
            lookup.close()
            self._failed = dict.fromkeys(lookup.misses, refusal)
        elif limit := self._spec.request_spec.limits.text_tokens:
            self._check_lengths(lookup.misses, limit)

    def _has_left(self) -> bool:
        return self._left

    def _refusal(self) -> BudgetError | None:
        """Return the error of a budget that can pay for no text. None if all budgets can be used."""
        if self._billing.needs_price:
            return price_error(self._embedder.model, self._billing.price)
        return open_budgets(self._billing.budgets, self._spec.request_spec.coordination)

    def _check_lengths(self, misses: Sequence[int], limit: int) -> None:
        """Count the tokens of texts that may exceed the limit, if the tokenizer is available locally.

        If the provider may truncate silently, the texts that certainly exceed the limit are noted.
        """
        sizes, texts = self._plan.sizes, self._plan.texts
        for want, index in enumerate(misses):
            if sizes[index] > limit // 2:
                tokens = self._embedder.provider.count_tokens(texts[index])
                sizes[index] = tokens or sizes[index]
                if self._spec.request_spec.may_truncate_silently:
                    least = min_tokens(texts[index], tokens)
                    if least > limit:
                        self._too_long[want] = least

    @property
    def needs_engine(self) -> bool:
        """Return True if any text must be sent."""
        return self._lookup is not None and bool(self._lookup.misses) and not self._failed

    def submit(self, wake: Callable[[], None]) -> None:
        """Submit the cache misses; the engine calls `wake` on its thread when all of them are done."""
        plan, embedder, lookup = self._plan, self._embedder, self._lookup
        assert lookup is not None
        assert lookup.account is not None
        self.rows.positions = plan.first[lookup.misses]
        self.ticket = Ticket(
            rows=self.rows,
            pending=len(lookup.misses),
            is_query=self._spec.input_type == "query",
            max_retries=embedder.settings.max_retries,
            max_in_flight=embedder.settings.max_concurrency,
            rates=embedder.settings.rates,
            deadline=self._deadline,
            cache=embedder.vector_cache.backend,
            billing=self._billing,
            wake=wake,
            looked_up_at=lookup.started_at,
            vector_format=self._spec.format,
        )
        texts = [(plan.keys[index], plan.texts[index], plan.sizes[index]) for index in lookup.misses]
        embedder.use_account(lookup.account)
        engine().submit(lookup.account, self.ticket, self._spec.request_spec, texts, self._too_long, lookup)

    def report(self, *, finished: bool = False) -> None:
        """Report progress, if it was requested."""
        if self.reporter is not None:
            self.reporter.begin(self._plan.n)
            self.reporter.report(*self.progress(), finished=finished)

    def log(self) -> None:
        """Write the log lines that the engine queued for this call, on the caller's thread."""
        events = self.ticket.log_events if self.ticket is not None else ()
        while events:
            event = events.popleft()
            logger.log(event.level, "%s", event.text)

    def progress(self) -> tuple[int, Usage]:
        """Return the number of finished texts and the usage so far. Safe to call from any thread at any time."""
        lookup, ticket = self._lookup, self.ticket
        if lookup is None:
            return 0, Usage()
        unique = len(self._plan.keys)
        pending = len(lookup.misses) if ticket is None else ticket.pending
        pending = 0 if self._failed else pending  # the call failed before anything was sent
        usage = Usage(cache_hits=len(lookup.hits), failed=len(self._failed or (ticket.failed if ticket else ())))
        done = self._plan.n * (unique - pending) // unique if unique else self._plan.n
        return done, usage if ticket is None else usage + ticket.usage

    def leave(self) -> None:
        """Withdraw the texts that are still pending, if any."""
        self._left = True
        if self.reporter is not None:
            self.reporter.close()
        lookup = self._lookup
        if lookup is None:
            return
        if self.ticket is None:
            lookup.close()
        elif not self.ticket.closed:
            assert lookup.account is not None
            engine().withdraw(lookup.account, self.ticket, lookup)

    def finish(self, on_error: OnError | None = None) -> EmbeddingResult:
        """Return the result of the call.

        Raises:
            EmbedKitError: Texts failed and `on_error`, by default the embedder's, is "raise".
        """
        vectors = self._assemble()
        assert isinstance(vectors, np.ndarray)
        result = self._result(vectors)
        self._raise_failures(result, on_error)
        return result

    def finish_vectors(self) -> Vectors:
        """Return only the vectors. Raises the same errors as `finish`."""
        vectors = self._assemble()
        assert isinstance(vectors, np.ndarray)
        if self._failed:
            self._raise_failures(self._result(vectors))
        return vectors

    def finish_lists(self) -> list[list[float]]:
        """Return the vectors of a call with `lists=True` as lists of floats. Raises the same errors as `finish`."""
        rows = self._assemble()
        assert isinstance(rows, list)
        if self._failed:
            self._raise_failures(self._result(np.array(rows).astype(self._spec.format.numpy_dtype)))
        return rows

    @property
    def usage(self) -> Usage:
        """The usage of a finished call."""
        assert self._counts is not None
        usage = self._billing.usage(self._counts)
        return usage if self.ticket is None else usage + self.ticket.usage

    # The result

    def _count_texts(self) -> TextCounts:
        plan, ticket = self._plan, self.ticket
        coalesced, sent = (0, 0) if ticket is None else (ticket.coalesced, ticket.sent)
        assert self._lookup is not None
        hits, sizes = self._lookup.hits, plan.sizes
        saved = sum(sizes) if len(hits) == len(sizes) else sum(sizes[index] for index in hits)
        return TextCounts(
            plan.n, len(hits), plan.n_duplicates, coalesced, sent, len(self._failed), len(plan.empty), saved
        )

    def _assemble(self) -> Vectors | list[list[float]]:
        """Count the call and return its rows in the order of the texts."""
        plan, embedder, ticket, lookup = self._plan, self._embedder, self.ticket, self._lookup
        assert lookup is not None
        vector_format = self._spec.format
        width = vector_format.width_of(embedder.dimensions or 0)
        if plan.empty and not plan.keys and not width:
            raise unknown_width_error(embedder.model, plan.empty)
        self._truncated = lookup.truncated
        if ticket is not None:
            if ticket.internal_error is not None:
                raise ticket.internal_error
            failed = self._billing.refresh_errors(ticket.failed)
            if failed:
                failed = attribute_refusals(failed, len(lookup.misses))
            self._failed = {lookup.misses[want]: error for want, error in failed.items()}
            self._truncated += [lookup.misses[want] for want in ticket.truncated]
        self._counts = self._count_texts()
        self._billing.count(self._counts)
        if self.rows.put_count + len(self._failed) != len(plan.keys):
            raise ProviderError("Internal error: a text has neither a vector nor an error. Please report it.")
        rows = self.rows.assemble(plan.origin(), self._positions(self._failed), width, empty=plan.empty)
        if embedder.dimensions is None and self.rows.width:
            embedder.learn_dimensions(vector_format.dimensions_of(self.rows.width))
        if self._truncated and self._warns:
            embedder.warn_of_truncation(self._positions(self._truncated), plan.n)
        return rows

    def _result(self, vectors: Vectors) -> EmbeddingResult:
        embedder, failed = self._embedder, self._positions(self._failed)
        texts, sizes, settled = self._plan.texts, self._plan.sizes, {*self._truncated, *self._failed}
        long = maybe_truncated(texts, sizes, self._spec.request_spec, embedder.provider.count_tokens, settled)
        return EmbeddingResult(
            vectors=vectors,
            usage=self.usage,
            model=embedder.model,
            input_type=self._spec.input_type,
            space=embedder.space,
            truncated=self._positions(self._truncated),
            maybe_truncated=self._positions(long),
            failed={p: self._failed[int(self._plan.source[p])] for p in failed},
            empty=tuple(self._plan.empty),
            texts=self._plan.call_texts,
        )

    def _positions(self, indexes: Iterable[int]) -> tuple[int, ...]:
        """Return the positions in the call of these distinct texts, duplicates included."""
        wanted = list(indexes)
        return tuple(np.flatnonzero(np.isin(self._plan.source, wanted)).tolist()) if wanted else ()

    def _raise_failures(self, result: EmbeddingResult, on_error: OnError | None = None) -> None:
        if result.failed and (on_error or self._embedder.settings.on_error) == "raise":
            needed = sum(max_tokens_to_send(self._plan.texts[index], self._spec.request_spec) for index in self._failed)
            result = replace(result, texts=())  # no error contains a text
            raise call_error(result, needed, is_cached=self._embedder.vector_cache.backend is not None)
