"""The invariants of several processes, tested by a Hypothesis state machine: schedulers, one coordinator, one cache.

Processes are killed, stopped and cut off from the coordinator, replies fail and are lost, on a virtual clock.
Invariants are numbered as in CONTRIBUTING.md; each check refers to its number.
"""

import os
from bisect import bisect_right
from collections import Counter
from itertools import accumulate

import numpy as np
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.virtual_processes import Caller, Process, SharedCache

from embedkit_core.common.errors import (
    BadTextError,
    BudgetError,
    ProviderError,
    RateLimitError,
    TextTooLongError,
    TimedOutError,
    UnavailableError,
)
from embedkit_core.common.types import Limits, RateSettings, Reply
from embedkit_core.coordination.port import LEASE_SECONDS
from embedkit_core.costs.amounts import Amount
from embedkit_core.costs.budget import Budget
from embedkit_core.engine.scheduler.queues import Request
from embedkit_core.testing import MemoryCoordinator, fake_vector

LONG, REJECTED = "long " * 20, "rejected"
WORDS = [f"text {i}" for i in range(20)] + [REJECTED, LONG]
LONG_TOKENS, MINUTE, BUDGET = 15, 60.0, "ingest"
FAILURES = {
    "500": UnavailableError("failed", status=500),
    "lost": UnavailableError("connection lost"),
    "503": UnavailableError("overloaded", status=503),
    "429": RateLimitError("slow down"),
    "429 later": RateLimitError("slow down", retry_after=7.0),
    "timeout": TimedOutError("no answer"),
}
LOST = ("500", "lost", "timeout")  # the server may have done the work


class CoordinationMachine(RuleBasedStateMachine):
    @initialize(
        n=st.integers(2, 4),
        texts=st.integers(1, 8),
        policy=st.sampled_from(["truncate", "mean"]),
        rates=st.sampled_from([RateSettings(), RateSettings(4, None), RateSettings(None, 25), RateSettings(8, 40)]),
        budget=st.sampled_from([None, None, 25, 60, 400]),
        with_outages=st.booleans(),
        seed=st.integers(0, 5),
    )
    def start(
        self,
        n: int,
        texts: int,
        policy: str,
        rates: RateSettings,
        budget: int | None,
        with_outages: bool,
        seed: int,
    ) -> None:
        self.now = 1000.0
        self.with_outages = with_outages
        self.coordinator = self.new_coordinator()
        self.cache = SharedCache()
        self.limits = Limits(texts=texts, tokens=None, text_tokens=LONG_TOKENS)
        self.policy, self.rates, self.budget, self.seed = policy, rates, budget, seed
        # What a truncated text costs is not known before: its minute may exceed a limit on tokens.
        self.words = WORDS if rates.tokens_per_minute is None else WORDS[:-1]
        self.paid: Counter[bytes] = Counter()
        self.excused: set[bytes] = set()  # texts that may be paid for again
        self.sent: list[tuple[float, int]] = []
        self.billed = 0
        self.was_cut_off = False
        self.held: dict[str, tuple[int, int]] = {}  # of batches: the tokens that are held, and those that were billed
        self.processes = [self.new_process() for _ in range(n)]
        if self.budget is not None:
            self.coordinator.open_budget(BUDGET, Budget(None, self.budget).limit)

    def new_coordinator(self):
        return MemoryCoordinator(self.clock)

    def has_leases(self) -> bool:
        """Return True if the coordinator has leases or claims that have not ended."""
        return bool(self.coordinator._shared.leases or self.coordinator._shared.claimed)

    def clock(self) -> float:
        """Return the time, which never stands still: a look-up after an event starts later."""
        self.now += 1e-6
        return self.now

    def new_process(self) -> Process:
        self.seed += 1
        budget = None if self.budget is None else Budget(None, self.budget, BUDGET)
        coordinator = self.coordinator.process()
        process = Process(coordinator, self.cache, self.clock, self.limits, self.policy, budget, self.seed)
        process.on_send, process.on_finish = self.check_send, self.check_rows
        return process

    @property
    def running(self) -> list[Process]:
        return [process for process in self.processes if not process.is_stopped]

    def any_of(self, data: st.DataObject, condition) -> Process | None:
        found = [process for process in self.running if condition(process)]
        return data.draw(st.sampled_from(found)) if found else None

    # Callers

    @precondition(lambda self: self.running)
    @rule(data=st.data(), first=st.integers(0, len(WORDS) - 1), count=st.integers(1, len(WORDS)))
    def open_lookup(self, data: st.DataObject, first: int, count: int) -> None:
        process = data.draw(st.sampled_from(self.running))
        process.open_lookup([self.words[(first + i) % len(self.words)] for i in range(min(count, len(self.words)))])

    @precondition(lambda self: any(process.lookups for process in self.running))
    @rule(
        data=st.data(),
        is_query=st.sampled_from([False, False, True]),
        retries=st.integers(0, 3),
        bound=st.integers(1, 4),
        timeout=st.sampled_from([float("inf"), float("inf"), 5.0, 30.0]),
    )
    def submit(self, data: st.DataObject, is_query: bool, retries: int, bound: int, timeout: float) -> None:
        process = self.any_of(data, lambda process: process.lookups)
        number = data.draw(st.integers(0, len(process.lookups) - 1))
        process.submit(number, is_query=is_query, retries=retries, bound=bound, rates=self.rates, timeout=timeout)

    @precondition(lambda self: any(process.waits for process in self.running))
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        process = self.any_of(data, lambda process: process.waits)
        caller = data.draw(st.sampled_from([caller for caller in process.callers if caller.waits]))
        caller.left = True
        process.scheduler.withdraw(caller.ticket)
        process.pump()

    # The threads of a process

    @precondition(lambda self: any(process.has_jobs for process in self.running))
    @rule(data=st.data())
    def ask_coordinator(self, data: st.DataObject) -> None:
        process = self.any_of(data, lambda process: process.has_jobs)
        self.work(process)

    def work(self, process: Process) -> None:
        if not process.coordinator.is_reachable:
            for request in process.asking:
                self.excused |= {item.root.key for item in request.items}
        process.work()

    @precondition(lambda self: any(process.has_answers for process in self.running))
    @rule(data=st.data())
    def hear(self, data: st.DataObject) -> None:
        self.any_of(data, lambda process: process.has_answers).hear()

    @precondition(lambda self: any(process.to_commit for process in self.running))
    @rule(data=st.data(), is_stored=st.booleans())
    def commit(self, data: st.DataObject, is_stored: bool) -> None:
        process = self.any_of(data, lambda process: process.to_commit)
        process.commit(data.draw(st.integers(0, len(process.to_commit) - 1)), is_stored=is_stored)

    @precondition(lambda self: any(process.to_store for process in self.running))
    @rule(data=st.data())
    def store(self, data: st.DataObject) -> None:
        process = self.any_of(data, lambda process: process.to_store)
        process.store(data.draw(st.integers(0, len(process.to_store) - 1)))

    # The server

    def bill_of(self, request: Request) -> int:
        return sum(len(text) // 4 + 1 for text in request.batch.texts)

    @precondition(lambda self: any(process.in_flight for process in self.running))
    @rule(data=st.data())
    def reply_to_any(self, data: st.DataObject) -> None:
        process = self.any_of(data, lambda process: process.in_flight)
        self.reply(process, data.draw(st.integers(0, len(process.in_flight) - 1)))

    def reply(self, process: Process, number: int) -> None:
        request = process.in_flight.pop(number)
        texts = list(request.batch.texts)
        over = {i: len(t) // 4 for i, t in enumerate(texts) if len(t) // 4 > LONG_TOKENS}
        if over:
            error: ProviderError = TextTooLongError(positions=over, tokens=max(over.values()), limit=LONG_TOKENS)
            process.scheduler.failed(request, error, self.now)
        elif REJECTED in texts:
            process.scheduler.failed(request, BadTextError("a text is rejected"), self.now)
        else:
            self.billed += self.bill_of(request)
            for item in request.items:
                if item.parent is None:
                    # Invariant 19: no text is billed twice.
                    assert not self.paid[item.key] or item.key in self.excused
                    self.paid[item.key] += 1
            vectors = np.stack([fake_vector(text) for text in texts])
            process.scheduler.replied(request, Reply(vectors, self.bill_of(request)), self.now)
        process.pump()

    @precondition(lambda self: any(process.in_flight for process in self.running))
    @rule(data=st.data(), failure=st.sampled_from(list(FAILURES)), billed=st.booleans())
    def fail_request(self, data: st.DataObject, failure: str, billed: bool) -> None:
        process = self.any_of(data, lambda process: process.in_flight)
        request = process.in_flight.pop(data.draw(st.integers(0, len(process.in_flight) - 1)))
        self.billed += self.bill_of(request) if failure in LOST and billed else 0
        process.scheduler.failed(request, FAILURES[failure], self.now)
        process.pump()

    # Batches

    @precondition(lambda self: self.budget is not None)
    @rule(batch=st.sampled_from(["one", "two"]), tokens=st.integers(0, 20), is_final=st.booleans())
    def hold_or_settle(self, batch: str, tokens: int, is_final: bool) -> None:
        """Reserve a budget for a batch, or settle a part of it; then do it once more, which changes nothing."""
        if batch not in self.held:
            limit, amount = Budget(None, self.budget).limit, Amount(0, tokens)
            if self.coordinator.hold(batch, BUDGET, limit, amount) is None:
                self.coordinator.hold(batch, BUDGET, limit, amount)
                self.held[batch] = (tokens, 0)
            return
        held, before = self.held[batch]
        billed = min(held, before + tokens)
        for _ in range(2):
            self.coordinator.settle(batch, BUDGET, Amount(0, billed), is_final=is_final)
        self.billed += billed - before
        self.held[batch] = (
            billed if is_final else held,
            billed,
        )  # an ended one holds no more

    # Processes

    def excuse(self, process: Process) -> None:
        """Note that what is in flight in a process, or not where others read it, may be paid for again."""
        for request in [*process.in_flight, *process.to_commit, *process.to_store]:
            self.excused |= {item.root.key for item in [*request.items, *request.done]}

    @precondition(lambda self: self.processes)
    @rule(data=st.data(), billed=st.booleans())
    def kill(self, data: st.DataObject, billed: bool) -> None:
        """Kill a process, and start another one. The server goes on with its requests."""
        number = data.draw(st.integers(0, len(self.processes) - 1))
        process = self.processes[number]
        self.excuse(process)
        self.billed += sum(self.bill_of(request) for request in process.in_flight) if billed else 0
        process.coordinator.kill()
        self.processes[number] = self.new_process()

    @precondition(lambda self: len(self.running) > 1)
    @rule(data=st.data())
    def stop(self, data: st.DataObject) -> None:
        process = data.draw(st.sampled_from(self.running))
        process.is_stopped = True

    @precondition(lambda self: len(self.running) < len(self.processes))
    @rule(data=st.data())
    def resume(self, data: st.DataObject) -> None:
        process = data.draw(st.sampled_from([process for process in self.processes if process.is_stopped]))
        self.wake_up(process)

    def wake_up(self, process: Process) -> None:
        if self.may_have_lost_leases(process):
            self.excuse(process)
        process.is_stopped = False
        process.pump()

    def may_have_lost_leases(self, process: Process) -> bool:
        return self.now >= process.renewed_at + LEASE_SECONDS

    @precondition(lambda self: self.with_outages)
    @rule(data=st.data(), is_reachable=st.booleans())
    def cut_off_or_connect(self, data: st.DataObject, is_reachable: bool) -> None:
        process = data.draw(st.sampled_from(self.processes))
        if self.may_have_lost_leases(process):
            self.excuse(process)
        process.coordinator.is_reachable = is_reachable
        self.was_cut_off |= not is_reachable

    @rule(seconds=st.floats(0.01, 30.0), is_slow=st.booleans())
    def pass_time(self, seconds: float, is_slow: bool) -> None:
        """Let time pass; if it is slow, no process gets an answer meanwhile, and only leases are renewed."""
        end = self.now + seconds
        while self.now < end:
            self.step(end, is_slow=is_slow)

    def step(self, end: float, *, is_slow: bool) -> None:
        times = [process.wake_at for process in self.running if process.wake_at is not None]
        self.now = min(end, self.now + 2.0, max(self.now + 0.05, min(times, default=end)))
        for process in self.processes:
            if self.may_have_lost_leases(process):
                self.excuse(process)  # also if it is only cut off: its requests go on
        for process in self.running:
            process.renew()
            process.pump()
            if not is_slow:
                self.settle_down(process)

    def settle_down(self, process: Process) -> None:
        while process.has_answers or process.can_work:
            if process.has_answers:
                process.hear()
            else:
                self.work(process)

    # Checks

    def check_send(self, process: Process, request: Request) -> None:
        self.sent.append((self.now, request.size))
        for item in request.items:
            if not item.root.is_claimed or not item.is_claimed:
                self.excused.add(item.root.key)  # a query that has waited for another process
        for other in self.processes:
            if other is not process:
                keys = {item.root.key for sent in other.in_flight for item in sent.items}
                both = keys & {item.root.key for item in request.items}
                if self.may_have_lost_leases(other):
                    self.excused |= both
                # Invariant 19: no text is in flight in two processes.
                assert both <= self.excused

    def check_rows(self, process: Process, caller: Caller) -> None:
        """Invariant 22: each row is its text's vector, with and without the coordinator."""
        ticket = caller.ticket
        for index, text in enumerate(caller.texts):
            if index in ticket.failed:
                assert not isinstance(ticket.failed[index], BudgetError) or self.budget is not None
                continue
            row = ticket.rows.matrix[index]
            assert process.cached(text.encode()) is not None
            if text != LONG:
                assert np.array_equal(row, fake_vector(text))
            elif self.policy == "truncate":
                assert any(np.array_equal(row, fake_vector(LONG[:n])) for n in range(len(LONG)))
            else:
                assert np.isfinite(row).all()
        assert ticket.sent + ticket.coalesced + len(ticket.failed) == len(caller.texts)

    @invariant()
    def no_minute_exceeds_the_limits(self) -> None:
        """Invariant 20: no 60 seconds of all processes have more than the limits, as long as all are coordinated."""
        if not hasattr(self, "processes") or self.was_cut_off:
            return
        times = [at for at, _ in self.sent]
        sums = [0, *accumulate(tokens for _, tokens in self.sent)]
        for index, at in enumerate(times):
            last = bisect_right(times, at + MINUTE)
            if self.rates.requests_per_minute is not None:
                assert last - index <= self.rates.requests_per_minute
            if self.rates.tokens_per_minute is not None:
                assert sums[last] - sums[index] <= self.rates.tokens_per_minute

    @invariant()
    def no_budget_is_exceeded(self) -> None:
        """Invariant 21: billed, possibly billed and reserved amounts never exceed a named budget."""
        if not hasattr(self, "processes") or self.budget is None:
            return
        (status,) = self.coordinator.budgets()
        assert status.limit.tokens == self.budget
        assert min(status.spent + status.lost + status.held) >= 0
        used = status.spent.plus(status.lost).plus(status.held)
        assert self.billed <= used.tokens <= self.budget
        assert status.holds.tokens == sum(held - billed for held, billed in self.held.values())

    @invariant()
    def every_waiting_caller_is_woken_later(self) -> None:
        """Invariant 22: while a caller waits, there is something to come."""
        for process in self.processes if hasattr(self, "processes") else ():
            if process.waits:
                assert (
                    process.in_flight
                    or process.to_commit
                    or process.has_answers
                    or process.has_jobs
                    or (process.wake_at is not None)
                )

    def teardown(self) -> None:
        """Invariant 22: if the server replies, every caller is served, with or without the coordinator."""
        if not hasattr(self, "processes"):
            return
        for batch, (_, billed) in self.held.items():
            self.coordinator.settle(batch, BUDGET, Amount(0, billed), is_final=True)
            self.held[batch] = (billed, billed)
        for process in self.processes:
            self.wake_up(process)
            for lookup, _, _ in process.lookups:
                process.scheduler.recent.lookups.pop(lookup)
            process.lookups.clear()
        for _ in range(5000):
            for process in self.processes:
                self.settle_down(process)
                while process.in_flight:
                    self.reply(process, 0)
                while process.to_commit:
                    process.commit(0, is_stored=False)
            if any(p.has_answers or p.can_work for p in self.processes):
                continue  # others must not send what this process has not stored yet
            for process in self.processes:
                while process.to_store:
                    process.store(0)
            if not any(p.in_flight or p.has_answers or p.can_work or p.wake_at for p in self.processes):
                break
            self.step(self.now + 60.0, is_slow=False)
        assert not any(process.waits for process in self.processes)
        for process in self.processes:
            process.coordinator.is_reachable = True
            process.coordinator.renew()  # the next call after a lost reply releases what it has granted
            for _ in range(3):
                process.pump()
                self.settle_down(process)
            assert process.scheduler.in_flight == 0
            assert not process.scheduler.registry.items
            assert process.budget is None or not process.budget.reserved_tokens
        assert not self.has_leases()
        for status in self.coordinator.budgets():
            assert not any(status.held)
        self.no_minute_exceeds_the_limits()
        self.no_budget_is_exceeded()


SETTINGS = settings(
    max_examples=100,
    stateful_step_count=50,
    report_multiple_bugs=False,
    # If an invariant was removed on purpose, a failure is enough: do not shrink it.
    phases=[Phase.generate] if "INVARIANT_REMOVED" in os.environ else tuple(Phase),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)

TestCoordination = CoordinationMachine.TestCase
TestCoordination.settings = SETTINGS
