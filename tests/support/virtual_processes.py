"""A process with a scheduler and a participant of a coordinator, on a virtual clock, step by step."""

import random
from collections.abc import Callable
from decimal import Decimal

import numpy as np

from embedkit_core.cache import Entry
from embedkit_core.calls.rows import MatrixBuffer
from embedkit_core.common.errors import CoordinationError
from embedkit_core.common.types import Limits, RateSettings
from embedkit_core.coordination.opening import Coordination, handle_of
from embedkit_core.coordination.port import Begin, End, LeaseID, ProviderAccount
from embedkit_core.costs.billing import CallBilling
from embedkit_core.costs.budget import Budget
from embedkit_core.costs.meter import Meter
from embedkit_core.engine.scheduler.items import Item, RequestSpec, Ticket
from embedkit_core.engine.scheduler.queues import Request
from embedkit_core.engine.scheduler.scheduler import Scheduler
from embedkit_core.testing import MemoryCoordinator

ACCOUNT = ProviderAccount("fake", "")


class SharedCache:
    """The committed rows, which all processes read."""

    def __init__(self) -> None:
        self.rows: dict[bytes, np.ndarray] = {}

    def set_many(self, items):
        raise AssertionError("the scheduler must not write")


class Caller:
    """A call, and whether it waits."""

    def __init__(self, ticket: Ticket, texts: list[str]) -> None:
        self.ticket, self.texts = ticket, texts
        self.finished = self.left = False

    @property
    def waits(self) -> bool:
        return not self.finished and not self.left


class Process:
    """What the runtime does for a scheduler, one step at a time.

    Attributes:
        is_stopped: True if nothing runs, as after SIGSTOP.
        renewed_at: When the coordinator last heard of it.
        in_flight: The requests that the server has not answered.
        rows: The rows in the cache of its own, which it reads before the cache of all.
        to_commit: The requests whose rows are not in a cache yet.
        to_store: The requests whose rows are in its own cache only.
    """

    def __init__(
        self,
        coordinator: MemoryCoordinator,
        cache: SharedCache,
        clock: Callable[[], float],
        limits: Limits,
        policy: str,
        budget: Budget | None,
        seed: int,
    ) -> None:
        self.coordinator, self.cache, self.clock = coordinator, cache, clock
        self.scheduler = Scheduler(rng=random.Random(seed), request_poll=lambda: None)
        coordination = Coordination(handle_of(coordinator), ACCOUNT)
        self.spec = RequestSpec(b"one", 60.0, limits, policy, "fake:model", 8, {"id": "one"}, coordination=coordination)
        self.budget = budget
        self.meter = Meter(Decimal("0.02"))
        self.is_stopped = False
        self.renewed_at = clock()
        self.callers: list[Caller] = []
        self.lookups: list[tuple[object, list[str], float]] = []
        self.in_flight: list[Request] = []
        self.rows: dict[bytes, np.ndarray] = {}
        self.to_commit: list[Request] = []
        self.to_store: list[Request] = []
        self.wake_at: float | None = None
        self._begins: list[Request] = []
        self._ends: list[End] = []
        self._checks: list[list[LeaseID]] = []
        self._reads: list[list[Item]] = []
        self._answers: list[Callable[[], None]] = []
        self.on_send: Callable[[Process, Request], None] = lambda process, request: None
        self.on_finish: Callable[[Process, Caller], None] = lambda process, caller: None

    # Callers

    def open_lookup(self, texts: list[str]) -> None:
        """Read the caches; what they lack is submitted later."""
        lookup = object()
        self.scheduler.recent.lookups[lookup] = self.scheduler.recent.sequence
        self.lookups.append((lookup, [t for t in texts if self.cached(t.encode()) is None], self.clock()))

    def submit(
        self, number: int, *, is_query: bool, retries: int, bound: int, rates: RateSettings, timeout: float
    ) -> None:
        lookup, texts, looked_up_at = self.lookups.pop(number)
        caller: list[Caller] = []
        ticket = Ticket(
            rows=MatrixBuffer(len(texts), np.arange(len(texts))),
            pending=len(texts),
            is_query=is_query,
            max_retries=retries,
            max_in_flight=bound,
            rates=rates,
            deadline=self.clock() + timeout,
            cache=self.cache,
            billing=CallBilling([self.meter], Decimal("0.02"), [] if self.budget is None else [self.budget]),
            wake=lambda: self._finish(caller[0]),
            looked_up_at=looked_up_at,
        )
        caller.append(Caller(ticket, texts))
        self.callers.append(caller[0])
        wants = [(text.encode(), text, len(text) // 4 + 1) for text in texts]
        self.scheduler.submit(ticket, self.spec, wants, self.clock())
        self.scheduler.recent.lookups.pop(lookup)
        self.pump()

    def cached(self, key: bytes) -> np.ndarray | None:
        """Return a row in the caches."""
        row = self.rows.get(key)
        return self.cache.rows.get(key) if row is None else row

    def _finish(self, caller: Caller) -> None:
        assert not caller.finished
        assert not caller.left
        caller.finished = True
        self.on_finish(self, caller)

    @property
    def waits(self) -> bool:
        """True if a caller waits."""
        return any(caller.waits for caller in self.callers)

    # Steps

    def pump(self) -> None:
        actions = self.scheduler.poll(self.clock())
        self._begins += actions.begin
        self._ends += [end for _, end in actions.end]
        self._checks += [leases for _, leases in actions.check]
        self._reads += actions.look_up
        for request in actions.send:
            request.sent_at = self.clock()
            self.in_flight.append(request)
            self.on_send(self, request)
        self.to_commit += actions.commit
        for ticket in actions.wake:
            ticket.wake()
        self.wake_at = actions.wake_at

    @property
    def has_jobs(self) -> bool:
        """True if the coordinator or the cache must be asked."""
        return bool(self._begins or self._ends or self._checks or self._reads)

    @property
    def can_work(self) -> bool:
        """True if work brings anything: ends wait until the coordinator can be reached."""
        return bool(self._begins or self._checks or self._reads or (self._ends and self.coordinator.is_reachable))

    @property
    def has_answers(self) -> bool:
        """True if the scheduler has not got an answer yet."""
        return bool(self._answers)

    @property
    def asking(self) -> list[Request]:
        """The requests that the coordinator has not been asked for."""
        return self._begins

    def work(self) -> None:
        """Ask the coordinator and read the cache, as other threads do. The scheduler gets the answers later."""
        begins, self._begins = self._begins, []
        checks, self._checks = self._checks, []
        reads, self._reads = self._reads, []
        if begins or self._ends:
            self._exchange(begins)
        for leases in checks:
            self._check(leases)
        for items in reads:
            started_at = self.clock()
            found = {
                item.root.key: (Entry(row.copy()), self.cache)
                for item in items
                if (row := self.cached(item.root.key)) is not None
            }
            self._answers.append(
                lambda items=items, found=found, at=started_at: self.scheduler.looked_up(items, found, at)
            )

    def _exchange(self, begins: list[Request]) -> None:
        asked: list[Begin] = [request.begin for request in begins if request.begin is not None]
        shared = self.scheduler.shared
        try:
            grants = self.coordinator.exchange(asked, self._ends)
        except CoordinationError as error:
            for request in begins:
                self._answers.append(
                    lambda request=request, reason=str(error): shared.unreachable(request, reason, self.clock())
                )
            return
        self._ends = []
        at = self.renewed_at = self.clock()
        for request, grant in zip(begins, grants, strict=True):
            self._answers.append(lambda request=request, grant=grant: shared.granted(request, grant, self.clock(), at))

    def _check(self, leases: list[LeaseID]) -> None:
        coordination = self.spec.coordination
        assert coordination is not None
        try:
            ended = self.coordinator.ended(leases)
        except CoordinationError:
            ended = None
        self._answers.append(lambda: self.scheduler.shared.checked(coordination.handle, ended, self.clock()))

    def hear(self) -> None:
        """Give the oldest answer to the scheduler."""
        self._answers.pop(0)()
        self.pump()

    def commit(self, number: int, *, is_stored: bool = True) -> None:
        """Write the rows of a request to the cache of all, or to that of this process only; `store` follows."""
        request = self.to_commit.pop(number)
        ((cache, indices),) = request.take_writes() or [(self.cache, [])]
        assert cache is self.cache
        for index in indices:
            self.rows[request.done[index].key] = request.rows[index].copy()
        self.to_store.append(request)
        if is_stored:
            self._share(request)
        self.scheduler.committed(request, is_stored=is_stored)
        self.pump()

    def store(self, number: int) -> None:
        """Write the rows of a request to the cache of all."""
        request = self.to_store[number]
        self._share(request)
        self.scheduler.stored(request)
        self.pump()

    def _share(self, request: Request) -> None:
        self.to_store.remove(request)
        self.cache.rows |= {item.key: self.rows[item.key] for item in request.done if item.key in self.rows}

    def renew(self) -> None:
        """Keep the leases, as the coordinator thread does every few seconds."""
        if self.coordinator.is_reachable:
            self.coordinator.renew()
            self.renewed_at = self.clock()


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        self.now += 1e-6
        return self.now


def two_processes(texts: int = 8, policy: str = "truncate") -> tuple[Clock, Process, Process]:
    """Return a clock and two processes, whose requests have up to `texts` texts."""
    clock, cache = Clock(), SharedCache()
    limits = Limits(texts=texts, tokens=None, text_tokens=100)
    coordinator = MemoryCoordinator(clock)
    one, two = (Process(coordinator.process(), cache, clock, limits, policy, None, seed) for seed in (1, 2))
    return clock, one, two
