"""The scheduler's invariants, tested by a Hypothesis state machine on a virtual clock, without threads and sleeps.

The machine simulates a server that replies or fails in any way and order, callers that come and go, a rate limiter, and
a cache that is written late. Invariants are numbered as in CONTRIBUTING.md; each check refers to its number.
"""

import os
import random
from collections.abc import Sequence
from decimal import Decimal

import numpy as np
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.virtual import UserLimitsCheck

from embedkit_core.calls.rows import MatrixBuffer
from embedkit_core.common.errors import (
    AuthenticationError,
    BadTextError,
    BudgetError,
    EncodingRefusedError,
    ProviderError,
    RateLimitError,
    RequestTooLargeError,
    TextTooLongError,
    TimedOutError,
    UnavailableError,
)
from embedkit_core.common.types import Limits, LimitStatus, RateLimitStatus, RateSettings, Reply
from embedkit_core.common.usage import Usage
from embedkit_core.costs.billing import CallBilling
from embedkit_core.costs.budget import Budget
from embedkit_core.costs.meter import Meter
from embedkit_core.engine.rate_limits.controller import MAX_TOKENS_PER_ESTIMATED
from embedkit_core.engine.rate_limits.limiter import LimiterAdapter
from embedkit_core.engine.scheduler.dispatch import MAX_CONSECUTIVE_QUERIES
from embedkit_core.engine.scheduler.items import RequestSpec, Ticket
from embedkit_core.engine.scheduler.queues import Request
from embedkit_core.engine.scheduler.scheduler import Scheduler
from embedkit_core.testing import fake_vector

PRICE = Decimal("0.02")
LONG = "long " * 20
REJECTED = "rejected"
WORDS = [f"text {i}" for i in range(24)] + [REJECTED, LONG]
LONG_TOKENS = 15


class FakeCache:
    """The committed rows. The scheduler only uses its identity."""

    def __init__(self) -> None:
        self.rows: dict[bytes, np.ndarray] = {}

    def set_many(self, items):
        raise AssertionError("the scheduler must not write")


class UnusedLimiter:
    """A rate limiter that only the runtime may call, not the scheduler."""

    def acquire(self) -> None:
        raise AssertionError("the scheduler must not block")


class Caller:
    def __init__(self, ticket: Ticket, spec: RequestSpec, texts: list[str]) -> None:
        self.ticket = ticket
        self.spec = spec
        self.texts = texts
        self.finished = False
        self.left = False

    @property
    def waits(self) -> bool:
        return not self.finished and not self.left


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(
        texts=st.integers(1, 12),
        tokens=st.one_of(st.none(), st.integers(4, 40)),
        policy=st.sampled_from(["truncate", "error", "mean"]),
        seed=st.integers(0, 10),
        with_limiter=st.booleans(),
    )
    def start(self, texts: int, tokens: int | None, policy: str, seed: int, with_limiter: bool) -> None:
        self.now = 100.0
        self.scheduler = Scheduler(rng=random.Random(seed))
        self.meter = Meter(PRICE)
        self.cache = FakeCache()
        self.limits = Limits(texts=texts, tokens=tokens, text_tokens=LONG_TOKENS)
        self.policy = policy
        limiter = LimiterAdapter(UnusedLimiter()) if with_limiter else None
        # The last spec has the texts of the first, and no rate limiter.
        self.specs = [self.spec(b"one", limiter), self.spec(b"two"), self.spec(b"one")]
        self.callers: list[Caller] = []
        self.lookups: list[tuple[object, list[str], RequestSpec]] = []
        self.awaiting_permit: list[Request] = []
        self.permitted: list[Request] = []
        self.in_flight: list[Request] = []
        self.to_commit: list[Request] = []
        self.answered: set[bytes] = set()
        self.sends = 0
        self.user_limits = UserLimitsCheck()
        self.known_tokens: dict[Request, list[float]] = {}
        self.billed = 0
        self.consecutive_queries = 0
        self.wake_at: float | None = None
        self.headers: RateLimitStatus | None = None
        self.budgets = [None, None, Budget(PRICE * 200 / 10**6), Budget(None, 60), Budget(PRICE * 40 / 10**6, 1000)]
        self.lost_bill = 0  # billed by the server for requests whose reply was lost

    def spec(self, id_: bytes, limiter: LimiterAdapter | None = None) -> RequestSpec:
        return RequestSpec(id_, 60.0, self.limits, self.policy, "fake:model", 8, {"id": id_.decode()}, limiter)

    def key(self, spec: RequestSpec, text: str) -> bytes:
        return spec.id + text.encode()

    def expected_vector(self, spec: RequestSpec, text: str) -> np.ndarray:
        return fake_vector(text, model=spec.id.decode())

    # Callers

    @rule(
        first=st.integers(0, len(WORDS) - 1),
        count=st.one_of(st.integers(1, 3), st.integers(1, len(WORDS))),
        spec_index=st.sampled_from([0, 0, 1, 2]),
    )
    def open_lookup(self, first: int, count: int, spec_index: int) -> None:
        """Open a cache look-up; its misses are submitted later, with other events in between."""
        texts = [WORDS[(first + i) % len(WORDS)] for i in range(count)]
        lookup = object()
        self.scheduler.recent.lookups[lookup] = self.scheduler.recent.sequence
        spec = self.specs[spec_index]
        misses = [text for text in texts if self.key(spec, text) not in self.cache.rows]
        self.lookups.append((lookup, misses, spec))

    @precondition(lambda self: self.lookups)
    @rule(
        is_query=st.booleans(),
        retries=st.integers(0, 3),
        bound=st.integers(1, 4),
        rates=st.sampled_from(
            [RateSettings(), RateSettings(), RateSettings(3, None), RateSettings(None, 30), RateSettings(30, 300)]
        ),
        timeout=st.sampled_from([float("inf"), float("inf"), 5.0, 30.0]),
        budgets=st.sets(st.integers(0, 4), max_size=2),
        data=st.data(),
    )
    def submit(
        self,
        is_query: bool,
        retries: int,
        bound: int,
        rates: RateSettings,
        timeout: float,
        budgets: set[int],
        data: st.DataObject,
    ) -> None:
        lookup, texts, spec = self.lookups.pop(data.draw(st.integers(0, len(self.lookups) - 1)))
        caller: list[Caller] = []
        ticket = Ticket(
            rows=MatrixBuffer(len(texts), np.arange(len(texts))),
            pending=len(texts),
            is_query=is_query,
            max_retries=retries,
            max_in_flight=bound,
            rates=rates,
            deadline=self.now + timeout,
            cache=self.cache,
            billing=CallBilling([self.meter], PRICE, [b for n in budgets if (b := self.budgets[n]) is not None]),
            wake=lambda: self.finish(caller[0]),
        )
        caller.append(Caller(ticket, spec, texts))
        self.callers.append(caller[0])
        self.user_limits.tickets.append(ticket)
        # Whether the provider may truncate silently, so that long texts are handled before they are sent.
        too_long = {texts.index(LONG): len(LONG.split())} if LONG in texts and data.draw(st.booleans()) else {}
        self.scheduler.submit(
            ticket, spec, [(self.key(spec, t), t, len(t) // 4 + 1) for t in texts], self.now, too_long
        )
        self.scheduler.recent.lookups.pop(lookup)
        self.pump()

    @precondition(lambda self: any(caller.waits for caller in self.callers))
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        caller = data.draw(st.sampled_from([caller for caller in self.callers if caller.waits]))
        caller.left = True
        self.scheduler.withdraw(caller.ticket)
        self.pump()

    # The rate limiter

    @precondition(lambda self: self.awaiting_permit)
    @rule()
    def grant_permit(self) -> None:
        request = self.awaiting_permit.pop()
        self.permitted.append(request)
        self.scheduler.permit_granted(request)
        self.pump()

    @precondition(lambda self: self.awaiting_permit)
    @rule()
    def fail_limiter(self) -> None:
        self.scheduler.limiter_failed(self.awaiting_permit.pop(), ProviderError("the rate limiter failed"))
        self.pump()

    # The server

    @rule(
        limit=st.sampled_from([10.0, 100.0, 1e6]),
        remaining=st.floats(0, 1),
        reset=st.sampled_from([None, 0.05, 3.0, 60.0]),
    )
    def set_headers(self, limit: float, remaining: float, reset: float | None) -> None:
        """Send these rate limit headers from now on, right or wrong."""
        self.headers = RateLimitStatus(
            LimitStatus(limit, limit * remaining, reset), LimitStatus(10 * limit, 10 * limit * remaining, reset)
        )

    def bill_of(self, texts: Sequence[str]) -> int:
        """Return the billed tokens: up to 3 for each text, and never more than its bytes."""
        return sum(min(3, len(text.encode())) for text in texts)

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def reply_to_any(self, data: st.DataObject) -> None:
        request = self.in_flight.pop(data.draw(st.integers(0, len(self.in_flight) - 1)))
        self.reply(request)
        self.pump()

    def reply(self, request: Request) -> None:
        texts = list(request.batch.texts)
        over = {i: len(t) // 4 for i, t in enumerate(texts) if len(t) // 4 > LONG_TOKENS}
        if over:
            named = {} if len(texts) > 1 and len(texts) % 2 else over
            error = TextTooLongError(positions=named, tokens=max(over.values()), limit=LONG_TOKENS)
            self.scheduler.failed(request, error, self.now)
        elif REJECTED in texts:
            self.scheduler.failed(request, BadTextError("a text is rejected"), self.now)
        else:
            spec = request.queue.spec
            vectors = np.stack([self.expected_vector(spec, text) for text in texts])
            self.billed += self.bill_of(texts)
            self.known_tokens.pop(request)[0] = min(self.bill_of(texts), request.size * MAX_TOKENS_PER_ESTIMATED)
            for item in request.items:
                if item.parent is None:
                    # Invariant 2: after its reply, a text is never sent again.
                    assert item.key not in self.answered
                    self.answered.add(item.key)
            self.scheduler.replied(request, Reply(vectors, self.bill_of(texts), (), self.headers), self.now)

    @precondition(lambda self: self.in_flight)
    @rule(
        data=st.data(),
        failure=st.sampled_from(["500", "503", "429", "429 later", "large", "timeout", "lost", "key", "encoding"]),
        billed=st.booleans(),
    )
    def fail_request(self, data: st.DataObject, failure: str, billed: bool) -> None:
        request = self.in_flight.pop(data.draw(st.integers(0, len(self.in_flight) - 1)))
        if failure in ("500", "timeout", "lost") and billed:  # the server did the work, but its reply was lost
            self.lost_bill += self.bill_of(request.batch.texts)
        error = {
            "500": UnavailableError("failed", status=500),
            "lost": UnavailableError("connection lost"),
            "503": UnavailableError("overloaded", status=503),
            "429": RateLimitError("slow down"),
            "429 later": RateLimitError("slow down", retry_after=7.0),
            "large": RequestTooLargeError("too many tokens"),
            "timeout": TimedOutError("no answer"),
            "key": AuthenticationError("no such key"),
            "encoding": EncodingRefusedError("no base64"),
        }[failure]
        self.scheduler.failed(request, error, self.now)
        self.pump()

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data(), damage=st.sampled_from(["short", "nan", "wide", "double"]))
    def reply_with_damage(self, data: st.DataObject, damage: str) -> None:
        """Invariant 1: a reply that does not match its request is discarded."""
        request = self.in_flight.pop(data.draw(st.integers(0, len(self.in_flight) - 1)))
        n = len(request.items)
        vectors = {
            "short": np.zeros((n - 1, 8), np.float32),
            "nan": np.full((n, 8), np.nan, np.float32),
            "wide": np.zeros((n, 9), np.float32),
            "double": np.zeros((n, 8), np.float64),
        }[damage]
        self.billed += self.bill_of(request.batch.texts)
        self.scheduler.replied(request, Reply(vectors, self.bill_of(request.batch.texts)), self.now)
        self.pump()

    @precondition(lambda self: self.to_commit)
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        self.write_and_commit(self.to_commit.pop(data.draw(st.integers(0, len(self.to_commit) - 1))))
        self.pump()

    def write_and_commit(self, request: Request) -> None:
        """Invariant 9: each row is in its callers' cache before they get it."""
        ((cache, indices),) = request.take_writes() or [(self.cache, [])]
        assert cache is self.cache
        for index in indices:
            self.cache.rows[request.done[index].key] = request.rows[index].copy()
        self.scheduler.committed(request)

    @rule(seconds=st.floats(0.01, 40.0))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.pump()

    # Checks

    def pump(self) -> None:
        actions = self.scheduler.poll(self.now)
        bounds = [c.ticket.max_in_flight for c in self.callers if not c.ticket.closed]
        for request in actions.acquire:
            self.check_priority(request)
        for request in actions.send:
            self.check_send(request)
        self.in_flight += actions.send
        self.awaiting_permit += actions.acquire
        # A query waits for at most one request that has no permit yet.
        assert len(self.awaiting_permit) <= 1
        if actions.send:
            # Invariant 4: requests in flight never exceed the strictest bound of callers with pending work.
            assert len(self.in_flight) + len(self.to_commit) <= min(bounds)
        if actions.acquire:
            assert self.scheduler.in_flight <= min(bounds)
        self.to_commit += actions.commit
        for ticket in actions.wake:
            ticket.wake()
        self.wake_at = actions.wake_at
        # Invariant 17: no caller waits beyond its deadline.
        assert all(caller.ticket.deadline > self.now for caller in self.callers if caller.waits)

    def check_send(self, request: Request) -> None:
        self.sends += 1
        # Invariant 16: no minute has more than the strictest caller with work allows.
        self.known_tokens[request] = self.user_limits.on_sent(request, self.now)
        if request.queue.spec.limiter is not None:
            # Invariant 15: each request has its own permit. The permit of a request without callers is lost.
            self.permitted.remove(request)
        else:
            self.check_priority(request)
        items = request.items
        sizes = [item.size for item in items]
        # Invariant 3: no request exceeds a limit; a text over a limit is sent alone.
        assert len(items) <= self.limits.texts
        assert len(items) == 1 or self.limits.tokens is None or sum(sizes) <= self.limits.tokens
        for item in items:
            # Invariant 6: withdrawn texts are not sent.
            assert any(not w.ticket.closed for w in item.waiters)
            # Invariant 2: a text is in one request at a time.
            if item.parent is None:
                assert item.key not in {
                    other.key for sent in self.in_flight for other in sent.items if other.parent is None
                }

    def check_priority(self, request: Request) -> None:
        """Invariant 8: a new request with queries has queries only, and bulk gets at least every eighth slot."""
        assert len({item.is_query for item in request.items}) == 1
        is_query = request.items[0].is_query
        self.consecutive_queries = self.consecutive_queries + 1 if is_query and self.bulk_waits() else 0
        assert self.consecutive_queries <= MAX_CONSECUTIVE_QUERIES + 1

    def bulk_waits(self) -> bool:
        return any(queue.ready(is_query=False, now=self.now) for queue in self.scheduler.dispatcher.busy)

    def finish(self, caller: Caller) -> None:
        assert not caller.finished
        assert not caller.left
        caller.finished = True
        spec = caller.spec
        for index, text in enumerate(caller.texts):
            if index in caller.ticket.failed:
                error = caller.ticket.failed[index]
                assert not isinstance(error, BudgetError) or caller.ticket.billing.budgets
                continue
            row = caller.ticket.rows.matrix[index]
            assert self.key(spec, text) in self.cache.rows
            # Invariant 1: each row is its text's vector, whatever failed.
            if text != LONG:
                assert np.array_equal(row, self.expected_vector(spec, text))
            elif self.policy == "truncate":
                assert index in caller.ticket.truncated
                assert any(np.array_equal(row, self.expected_vector(spec, LONG[:n])) for n in range(len(LONG)))
            else:
                assert self.policy == "mean"
                assert np.isfinite(row).all()
        ticket = caller.ticket
        # Invariant 7: usage adds up.
        assert ticket.sent + ticket.coalesced + len(ticket.failed) == len(caller.texts)

    @invariant()
    def usage_adds_up(self) -> None:
        """Invariant 7: the callers' usage adds up to what was sent and billed, also if callers left."""
        if not hasattr(self, "callers"):
            return
        total = sum((c.ticket.usage for c in self.callers), Usage())
        assert total.requests == self.sends
        assert total.tokens == self.billed
        assert total.priced_usd == self.billed * PRICE / 1_000_000
        assert self.meter.read().tokens == self.billed

    @invariant()
    def no_budget_is_exceeded(self) -> None:
        """Invariant 18: billed, possibly billed and reserved tokens together never exceed a budget."""
        if not hasattr(self, "callers"):
            return
        for budget in self.budgets:
            if budget is not None:
                assert budget.left_usd is None or budget.left_usd >= 0
                assert budget.left_tokens is None or budget.left_tokens >= 0
        total = sum((c.ticket.usage for c in self.callers), Usage())
        assert total.possibly_billed_usd == total.possibly_billed_tokens * PRICE / 1_000_000
        # Invariant 18: the server's bill is at most the billed and the possibly billed tokens.
        assert total.tokens == self.billed
        assert self.lost_bill <= total.possibly_billed_tokens
        for budget in self.budgets:
            if budget is not None:
                payers = [c.ticket for c in self.callers if budget in c.ticket.billing.budgets]
                assert budget.spent_tokens == sum(ticket.usage.tokens for ticket in payers)
                assert budget.unconfirmed_tokens == sum(ticket.usage.possibly_billed_tokens for ticket in payers)

    @invariant()
    def every_waiting_caller_is_woken_later(self) -> None:
        """Invariant 5: while a caller waits, there is a request in flight, a permit or commit to come, or a timer."""
        if not hasattr(self, "callers"):
            return
        if any(caller.waits for caller in self.callers):
            assert self.awaiting_permit or self.in_flight or self.to_commit or self.wake_at is not None

    def teardown(self) -> None:
        """Invariant 5: if the server replies, every caller is served, and nothing is left over."""
        if not hasattr(self, "callers"):
            return
        for lookup, _, _ in self.lookups:
            self.scheduler.recent.lookups.pop(lookup)
        for _ in range(5000):
            if self.awaiting_permit:
                self.grant_permit()
            if self.in_flight:
                self.reply(self.in_flight.pop())
            while self.to_commit:
                self.write_and_commit(self.to_commit.pop())
            if not self.in_flight and self.wake_at is not None:
                self.now = max(self.now, self.wake_at)
            self.pump()
            if not self.awaiting_permit and not self.in_flight and not self.to_commit and self.wake_at is None:
                break
        assert not any(caller.waits for caller in self.callers)
        assert self.scheduler.in_flight == 0
        assert not self.scheduler.registry.items
        assert not any(budget.reserved_tokens for budget in self.budgets if budget is not None)
        assert not list(self.scheduler.recent) or self.scheduler.recent.lookups


TestInvariants = SchedulerMachine.TestCase
TestInvariants.settings = settings(
    max_examples=300,
    stateful_step_count=60,
    report_multiple_bugs=False,
    # If an invariant was removed on purpose, a failure is enough: do not shrink it.
    phases=[Phase.generate] if "INVARIANT_REMOVED" in os.environ else tuple(Phase),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
