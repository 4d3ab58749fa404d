"""One call through the library, in steps that both colours share: plan, look up, hand over, wait, assemble."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from embedkit_core.engine.items import Rows, Ticket
from embedkit_core.engine.loop import engine
from embedkit_core.errors import ConfigurationError, EmbedKitError, PartialFailureError, ProviderError
from embedkit_core.plan import Plan, make_plan
from embedkit_core.roles import Role
from embedkit_core.types import EmbeddingResult, Usage, Vectors

if TYPE_CHECKING:
    from embedkit_core.embedder import Embedder
    from embedkit_core.engine.account import Account

logger = logging.getLogger("embedkit_core")

INLINE = 64  # texts an async caller's loop is held for at most; more are prepared and assembled on our own threads
T = TypeVar("T")


class Call:
    """The state of one call. `prepare` and `finish` do the work; `wait` or `await_` stand between them.

    Whoever makes a call must `leave` it, whatever happens, before it is finished. `start` is where its first text
    stands in a stream that it is a piece of.
    """

    def __init__(self, owner: Embedder, role: Role, texts: Iterable[str], start: int = 0) -> None:
        self._owner = owner
        self._role = role
        self._texts = texts
        self._start = start
        self._account: Account | None = None
        self._lookups: dict[object, int] = {}
        self._ticket: Ticket | None = None
        self._left = False
        self._truncated_wants: list[int] = []

    def run(self) -> EmbeddingResult:
        """Go through all steps, on a thread that may block."""
        try:
            self.prepare()
            if self.needs_engine:
                self.wait()
        finally:
            self.leave()
        return self.finish()

    async def arun(self, *, many: bool) -> EmbeddingResult:
        """Go through all steps, without holding the caller's loop, also where there are many texts."""
        try:
            await off_loop(self.prepare, many)
            if self.needs_engine:
                await self.await_()
        finally:
            self.leave()
        return await off_loop(self.finish, many)

    def prepare(self) -> None:
        """Check the texts, key them, and read what the cache has; open a ticket for the rest."""
        plan = self._plan = make_plan(self._texts, self._role.prefix)
        self._rows = Rows(plan.n, plan.first)
        if not plan.n:
            return
        self._account = account = engine().account(self._owner.provider)
        self._lookups = account.scheduler.recent.lookups
        try:
            self._lookups[self] = account.scheduler.recent.sequence
            self._misses = self._look_up(plan)
        except BaseException:
            self._close_lookup()
            raise
        # A cancelled caller has left already, while this ran on a thread of ours.
        if not self._misses or self._left:
            self._close_lookup()

    def _close_lookup(self) -> None:
        self._lookups.pop(self, None)

    def _look_up(self, plan: Plan) -> list[int]:
        """Fill in the rows the cache has, and give the places in the plan of those it lacks."""
        found = self._owner.store.get_many(plan.keys, hot=self._role.input_type == "query")
        width = self._role.lane.dimensions or self._owner.dimensions
        hits: list[int] = []
        vectors: list[Vectors] = []
        misses: list[int] = []
        for place, key in enumerate(plan.keys):
            entry = found.get(key)
            if entry is not None:
                width = width or len(entry.vector)
            if entry is None or len(entry.vector) != width:
                misses.append(place)
                continue
            hits.append(place)
            vectors.append(entry.vector)
            if entry.truncated:
                self._truncated_wants.append(place)
        if self._role.lane.dimensions is None and len({len(entry.vector) for entry in found.values()}) > 1:
            raise ConfigurationError(
                f"the cache holds vectors of two widths for {self._owner.model}: the model behind that name has "
                "changed; name dimensions=, or another cache"
            )
        if hits:
            self._rows.put_wants(hits, np.stack(vectors))
        self._n_hits = len(hits)
        return misses

    @property
    def needs_engine(self) -> bool:
        """Tell whether anything has to be sent."""
        return bool(self._plan.n and self._misses)

    def submit(self, wake: Callable[[], None]) -> None:
        """Hand the misses over; `wake` is called on the engine's side when all are served or given up."""
        plan, owner = self._plan, self._owner
        assert self._account is not None
        self._rows.positions = plan.first[self._misses]
        self._ticket = Ticket(
            rows=self._rows,
            urgent=self._role.input_type == "query",
            max_retries=owner.settings.max_retries,
            bound=owner.settings.max_concurrency,
            cache=owner.store.keeper,
            meter=owner.meter,
            wake=wake,
        )
        wants = [(plan.keys[place], plan.texts[place], plan.sizes[place]) for place in self._misses]
        owner.join(self._account)
        engine().submit(self._account, self._ticket, self._role.lane, wants, self)

    def wait(self) -> None:
        """Wait for the engine, from a thread that may block."""
        done = threading.Event()
        self.submit(done.set)
        done.wait()

    async def await_(self) -> None:
        """Wait for the engine, from a coroutine on any loop."""
        loop = asyncio.get_running_loop()
        done = loop.create_future()

        def arrive() -> None:
            if not done.done():
                done.set_result(None)

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the caller's loop is closed
                loop.call_soon_threadsafe(arrive)

        self.submit(wake)
        await done

    def leave(self) -> None:
        """Withdraw what is still pending; nothing is where all is served."""
        self._left = True
        if self._account is None:
            return
        if self._ticket is None:
            self._close_lookup()
        elif not self._ticket.closed:
            engine().withdraw(self._account, self._ticket, self)

    def finish(self) -> EmbeddingResult:
        """Put rows, usage and failures together in the order asked, and raise what is to be raised."""
        plan, ticket = self._plan, self._ticket
        if ticket is not None and ticket.broken is not None:
            raise ticket.broken
        failed: dict[int, ProviderError] = {}
        truncated = list(self._truncated_wants)
        usage = Usage(texts=plan.n, duplicates=plan.n - len(plan.keys))
        if plan.n:
            usage += Usage(cache_hits=self._n_hits)
        if ticket is not None:
            failed = {self._misses[index]: error for index, error in ticket.failed.items()}
            truncated += [self._misses[index] for index in ticket.truncated]
            usage += Usage(sent=ticket.sent, joined=ticket.joined, failed=len(failed))
        self._owner.meter.add(usage)
        if ticket is not None:
            usage += ticket.usage
        result = EmbeddingResult(
            vectors=self._assemble(),
            usage=usage,
            model=self._owner.model,
            input_type=self._role.input_type,
            space=self._owner.space,
            truncated=self._positions(truncated),
            failed={p: failed[int(plan.source[p])] for p in self._positions(failed)},
        )
        self._owner.note(result, self._start)
        if result.failed and self._owner.settings.on_error == "raise":
            failure = self._failure(result)
            failure.usage = result.usage
            raise failure
        return result

    def _assemble(self) -> Vectors:
        plan, matrix = self._plan, self._rows.matrix
        if matrix is None:
            return np.full((plan.n, self._owner.dimensions or 0), np.nan, dtype=np.float32)
        if len(plan.keys) < plan.n:
            origin = plan.first[plan.source]
            copies = np.flatnonzero(origin != np.arange(plan.n))
            matrix[copies] = matrix[origin[copies]]
        return matrix

    def _positions(self, places: Iterable[int]) -> tuple[int, ...]:
        """Give the positions in the call of distinct texts, duplicates included."""
        chosen = list(places)
        return tuple(np.flatnonzero(np.isin(self._plan.source, chosen)).tolist()) if chosen else ()

    def _failure(self, result: EmbeddingResult) -> EmbedKitError:
        failed = dict(result.failed)
        first = next(iter(failed.values()))
        succeeded = [p for p in range(self._plan.n) if p not in failed]
        if not succeeded:
            assert isinstance(first, EmbedKitError)
            return first
        kept = " and in the cache: a rerun sends only what failed" if self._owner.store.keeper else ""
        shown = first_positions(failed)
        return PartialFailureError(
            f"{len(failed)} of {self._plan.n} texts failed (positions {shown}): {str(first).rstrip('.')}. "
            f"{len(succeeded)} succeeded and are in .result{kept}",
            failed={p: e for p, e in failed.items() if isinstance(e, EmbedKitError)},
            succeeded=succeeded,
            result=result,
        )


async def off_loop(work: Callable[[], T], many: bool) -> T:
    """Do what may take long on our own threads and the rest at once."""
    return await asyncio.get_running_loop().run_in_executor(engine().pool, work) if many else work()


def first_positions(positions: Iterable[int]) -> str:
    """Name ten positions at most, for a message."""
    named = list(map(str, positions))
    return ", ".join(named[:10]) + (", …" if len(named) > 10 else "")
