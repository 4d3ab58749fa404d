"""The engine's laws, held by a state machine on a virtual clock: no thread, no sleep, no luck.

The world here is a server that answers as it likes, callers that come and go, and a cache that is written late. The
laws are numbered as in CONTRIBUTING.md; each check names the one it holds.
"""

import os
import random
from collections.abc import Sequence
from decimal import Decimal

import numpy as np
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

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
from embedkit_core.common.types import Limits, LimitStatus, RateLimitStatus, Reply
from embedkit_core.common.usage import Usage
from embedkit_core.costs.billing import CallBilling
from embedkit_core.costs.budget import Budget
from embedkit_core.costs.meter import Meter
from embedkit_core.engine.rate_limits.limiter import LimiterAdapter
from embedkit_core.engine.rate_limits.user_limits import RateSettings
from embedkit_core.engine.scheduler.dispatch import MAX_CONSECUTIVE_QUERIES
from embedkit_core.engine.scheduler.items import RequestSpec, Ticket
from embedkit_core.engine.scheduler.queues import Request
from embedkit_core.engine.scheduler.scheduler import Scheduler
from embedkit_core.testing import fake_vector

PRICE = Decimal("0.02")
LONG = "long " * 20
POISON = "poison"
WORDS = [f"text {i}" for i in range(24)] + [POISON, LONG]
LONG_TOKENS = 15


class FakeCache:
    """What the writer has kept, and the identity the scheduler knows a cache by."""

    def __init__(self) -> None:
        self.rows: dict[bytes, np.ndarray] = {}

    def set_many(self, items):
        raise AssertionError("the scheduler never writes")


class Unasked:
    """A rate limiter that the scheduler must not call: its shell does."""

    def acquire(self) -> None:
        raise AssertionError("the scheduler never waits")


class Caller:
    def __init__(self, ticket: Ticket, texts: list[str], opened: object) -> None:
        self.ticket = ticket
        self.texts = texts
        self.opened = opened
        self.finished = False
        self.left = False


class Engine(RuleBasedStateMachine):
    @initialize(
        texts=st.integers(1, 12),
        tokens=st.one_of(st.none(), st.integers(4, 40)),
        policy=st.sampled_from(["truncate", "error", "mean"]),
        seed=st.integers(0, 10),
        gated=st.booleans(),
    )
    def start(self, texts: int, tokens: int | None, policy: str, seed: int, gated: bool) -> None:
        self.now = 100.0
        self.scheduler = Scheduler(rng=random.Random(seed))
        self.meter = Meter(PRICE)
        self.cache = FakeCache()
        self.limits = Limits(texts=texts, tokens=tokens, text_tokens=LONG_TOKENS)
        self.policy = policy
        gate = LimiterAdapter(Unasked()) if gated else None
        # The last has the texts of the first, and no rate limiter.
        self.lanes = [self.lane(b"one", gate), self.lane(b"two"), self.lane(b"one")]
        self.callers: list[Caller] = []
        self.opened: list[tuple[object, list[str], RequestSpec]] = []
        self.asked: list[Request] = []
        self.permitted: list[Request] = []
        self.air: list[Request] = []
        self.to_commit: list[Request] = []
        self.answered: set[bytes] = set()
        self.sends = 0
        self.billed = 0
        self.queries_in_a_row = 0
        self.wake_at: float | None = None
        self.headroom: RateLimitStatus | None = None
        self.budgets = [None, None, Budget(PRICE * 200 / 10**6), Budget(None, 60), Budget(PRICE * 40 / 10**6, 1000)]
        self.unheard = 0  # billed by the server for requests whose answer was lost

    def lane(self, wire_id: bytes, gate: LimiterAdapter | None = None) -> RequestSpec:
        return RequestSpec(wire_id, 60.0, self.limits, self.policy, "fake:model", 8, {"id": wire_id.decode()}, gate)

    def key(self, lane: RequestSpec, text: str) -> bytes:
        return lane.id + text.encode()

    def truth(self, lane: RequestSpec, text: str) -> np.ndarray:
        return fake_vector(text, model=lane.id.decode())

    # What callers do

    @rule(
        first=st.integers(0, len(WORDS) - 1),
        count=st.one_of(st.integers(1, 3), st.integers(1, len(WORDS))),
        lane=st.sampled_from([0, 0, 1, 2]),
    )
    def look_up(self, first: int, count: int, lane: int) -> None:
        """Start a look-up; the misses are handed over later, when much may have happened in between."""
        texts = [WORDS[(first + i) % len(WORDS)] for i in range(count)]
        token = object()
        self.scheduler.recent.lookups[token] = self.scheduler.recent.sequence
        chosen = self.lanes[lane]
        misses = [text for text in texts if self.key(chosen, text) not in self.cache.rows]
        self.opened.append((token, misses, chosen))

    @precondition(lambda self: self.opened)
    @rule(
        urgent=st.booleans(),
        retries=st.integers(0, 3),
        bound=st.integers(1, 4),
        rates=st.sampled_from(
            [RateSettings(), RateSettings(), RateSettings(60, None), RateSettings(None, 300), RateSettings(30, 3000)]
        ),
        patience=st.sampled_from([float("inf"), float("inf"), 5.0, 30.0]),
        budgets=st.sets(st.integers(0, 4), max_size=2),
        data=st.data(),
    )
    def submit(
        self,
        urgent: bool,
        retries: int,
        bound: int,
        rates: RateSettings,
        patience: float,
        budgets: set[int],
        data: st.DataObject,
    ) -> None:
        token, texts, lane = self.opened.pop(data.draw(st.integers(0, len(self.opened) - 1)))
        caller: list[Caller] = []
        ticket = Ticket(
            rows=MatrixBuffer(len(texts), np.arange(len(texts))),
            pending=len(texts),
            is_query=urgent,
            max_retries=retries,
            max_in_flight=bound,
            rates=rates,
            deadline=self.now + patience,
            cache=self.cache,
            billing=CallBilling([self.meter], PRICE, [b for n in budgets if (b := self.budgets[n]) is not None]),
            wake=lambda: self.finish(caller[0]),
        )
        caller.append(Caller(ticket, [(lane, text) for text in texts], token))
        self.callers.append(caller[0])
        self.scheduler.submit(ticket, lane, [(self.key(lane, t), t, len(t) // 4 + 1) for t in texts], self.now)
        self.scheduler.recent.lookups.pop(token)
        self.pump()

    @precondition(lambda self: any(not c.finished and not c.left for c in self.callers))
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        caller = data.draw(st.sampled_from([c for c in self.callers if not c.finished and not c.left]))
        caller.left = True
        self.scheduler.withdraw(caller.ticket)
        self.pump()

    # What a rate limiter does

    @precondition(lambda self: self.asked)
    @rule()
    def permit(self) -> None:
        request = self.asked.pop()
        self.permitted.append(request)
        self.scheduler.permit_granted(request)
        self.pump()

    @precondition(lambda self: self.asked)
    @rule()
    def bar(self) -> None:
        self.scheduler.limiter_failed(self.asked.pop(), ProviderError("the rate limiter failed"))
        self.pump()

    # What the server does

    @rule(
        limit=st.sampled_from([10.0, 100.0, 1e6]), left=st.floats(0, 1), reset=st.sampled_from([None, 0.05, 3.0, 60.0])
    )
    def tell(self, limit: float, left: float, reset: float | None) -> None:
        """From now on say what is left, true or not."""
        self.headroom = RateLimitStatus(
            LimitStatus(limit, limit * left, reset), LimitStatus(10 * limit, 10 * limit * left, reset)
        )

    def bill_of(self, texts: Sequence[str]) -> int:
        """Count tokens as the server does: some for each text, and never more than it has bytes."""
        return sum(min(3, len(text.encode())) for text in texts)

    @precondition(lambda self: self.air)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        request = self.air.pop(data.draw(st.integers(0, len(self.air) - 1)))
        self.reply(request)
        self.pump()

    def reply(self, request: Request) -> None:
        texts = list(request.batch.texts)
        over = {i: len(t) // 4 for i, t in enumerate(texts) if len(t) // 4 > LONG_TOKENS}
        if over:
            named = {} if len(texts) > 1 and len(texts) % 2 else over
            error = TextTooLongError(positions=named, tokens=max(over.values()), limit=LONG_TOKENS)
            self.scheduler.failed(request, error, self.now)
        elif POISON in texts:
            self.scheduler.failed(request, BadTextError("a text is refused"), self.now)
        else:
            lane = request.queue.spec
            vectors = np.stack([self.truth(lane, text) for text in texts])
            self.billed += self.bill_of(texts)
            for item in request.items:
                if item.parent is None:
                    # Law 2: once answered, a text is never sent again.
                    assert item.key not in self.answered
                    self.answered.add(item.key)
            self.scheduler.replied(request, Reply(vectors, self.bill_of(texts), (), self.headroom), self.now)

    @precondition(lambda self: self.air)
    @rule(
        data=st.data(),
        kind=st.sampled_from(["500", "503", "429", "429 later", "large", "timeout", "lost", "key", "encoding"]),
        done=st.booleans(),
    )
    def refuse(self, data: st.DataObject, kind: str, done: bool) -> None:
        request = self.air.pop(data.draw(st.integers(0, len(self.air) - 1)))
        if kind in ("500", "timeout", "lost") and done:  # the work was done, and nobody here hears of it
            self.unheard += self.bill_of(request.batch.texts)
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
        }[kind]
        self.scheduler.failed(request, error, self.now)
        self.pump()

    @precondition(lambda self: self.air)
    @rule(data=st.data(), damage=st.sampled_from(["short", "nan", "wide", "double"]))
    def answer_badly(self, data: st.DataObject, damage: str) -> None:
        """Law 1: a reply that does not fit is never believed."""
        request = self.air.pop(data.draw(st.integers(0, len(self.air) - 1)))
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
        self.keep(self.to_commit.pop(data.draw(st.integers(0, len(self.to_commit) - 1))))
        self.pump()

    def keep(self, request: Request) -> None:
        """Law 9: every row goes to the cache of those who wanted it, and only then to them."""
        ((cache, places),) = request.take_writes() or [(self.cache, [])]
        assert cache is self.cache
        for place in places:
            self.cache.rows[request.done[place].key] = request.rows[place].copy()
        self.scheduler.committed(request)

    @rule(seconds=st.floats(0.01, 40.0))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.pump()

    # What comes of it

    def pump(self) -> None:
        step = self.scheduler.poll(self.now)
        bounds = [c.ticket.max_in_flight for c in self.callers if not c.ticket.closed]
        for request in step.acquire:
            self.check_kind(request)
        for request in step.send:
            self.check_send(request)
        self.air += step.send
        self.asked += step.acquire
        # A query need not wait for more than one request that waits for the limiter.
        assert len(self.asked) <= 1
        if step.send:
            # Law 4: requests in flight never exceed the strictest bound of those with work.
            assert len(self.air) + len(self.to_commit) <= min(bounds)
        if step.acquire:
            assert self.scheduler.in_flight <= min(bounds)
        self.to_commit += step.commit
        for ticket in step.wake:
            ticket.wake()
        self.wake_at = step.wake_at
        # Law 17: nobody waits beyond a deadline.
        assert all(c.finished or c.left or c.ticket.deadline > self.now for c in self.callers)

    def check_send(self, request: Request) -> None:
        self.sends += 1
        if request.queue.spec.limiter is not None:
            # Law 15: a permit for each request, and each permit for one request at most: one that nobody wants is lost.
            self.permitted.remove(request)
        else:
            self.check_kind(request)
        items = request.items
        sizes = [item.size for item in items]
        # Law 3: no request exceeds a limit; a text over one travels alone.
        assert len(items) <= self.limits.texts
        assert len(items) == 1 or self.limits.tokens is None or sum(sizes) <= self.limits.tokens
        for item in items:
            # Law 6: withdrawn work is not sent.
            assert any(not w.ticket.closed for w in item.waiters)
            # Law 2: a text is in one request at a time.
            if item.parent is None:
                assert item.key not in {other.key for f in self.air for other in f.items if other.parent is None}

    def check_kind(self, request: Request) -> None:
        """Law 8: a query's request carries queries only, as it is made, and bulk gets at least every eighth slot."""
        assert len({item.is_query for item in request.items}) == 1
        urgent = request.items[0].is_query
        self.queries_in_a_row = self.queries_in_a_row + 1 if urgent and self.bulk_waits() else 0
        assert self.queries_in_a_row <= MAX_CONSECUTIVE_QUERIES + 1

    def bulk_waits(self) -> bool:
        return any(q.ready(urgent=False) for q in self.scheduler.dispatcher.busy)

    def finish(self, caller: Caller) -> None:
        assert not caller.finished
        assert not caller.left
        caller.finished = True
        for index, (lane, text) in enumerate(caller.texts):
            if index in caller.ticket.failed:
                error = caller.ticket.failed[index]
                assert not isinstance(error, BudgetError) or caller.ticket.billing.budgets
                continue
            row = caller.ticket.rows.matrix[index]
            assert self.key(lane, text) in self.cache.rows
            # Law 1: every row is its text's vector, whatever failed.
            if text != LONG:
                assert np.array_equal(row, self.truth(lane, text))
            elif self.policy == "truncate":
                assert index in caller.ticket.truncated
                assert any(np.array_equal(row, self.truth(lane, LONG[:n])) for n in range(len(LONG)))
            else:
                assert self.policy == "mean"
                assert np.isfinite(row).all()
        ticket = caller.ticket
        # Law 7: usage adds up.
        assert ticket.sent + ticket.coalesced + len(ticket.failed) == len(caller.texts)

    @invariant()
    def usage_adds_up(self) -> None:
        """Law 7: the parts add up to what was sent and billed, also where callers left."""
        if not hasattr(self, "callers"):
            return
        total = sum((c.ticket.usage for c in self.callers), Usage())
        assert total.requests == self.sends
        assert total.tokens == self.billed
        assert total.priced_usd == self.billed * PRICE / 1_000_000
        assert self.meter.read().tokens == self.billed

    @invariant()
    def no_budget_is_exceeded(self) -> None:
        """Law 18: what was billed, what was possibly billed and what is reserved never exceed a budget."""
        if not hasattr(self, "callers"):
            return
        for budget in self.budgets:
            if budget is not None:
                assert budget.left_usd is None or budget.left_usd >= 0
                assert budget.left_tokens is None or budget.left_tokens >= 0
        total = sum((c.ticket.usage for c in self.callers), Usage())
        assert total.possibly_billed_usd == total.possibly_billed_tokens * PRICE / 1_000_000
        # Law 18: the server's bill is what is known, and at most what was possibly billed beside.
        assert total.tokens == self.billed
        assert self.unheard <= total.possibly_billed_tokens
        for budget in self.budgets:
            if budget is not None:
                payers = [c.ticket for c in self.callers if budget in c.ticket.billing.budgets]
                assert budget.spent_tokens == sum(ticket.usage.tokens for ticket in payers)
                assert budget.unconfirmed_tokens == sum(ticket.usage.possibly_billed_tokens for ticket in payers)

    @invariant()
    def somebody_will_act(self) -> None:
        """Law 5: no waiter is forgotten: whoever waits has a request in the air, a commit to come, or a wake-up."""
        if not hasattr(self, "callers"):
            return
        if any(not c.finished and not c.left for c in self.callers):
            assert self.asked or self.air or self.to_commit or self.wake_at is not None

    def teardown(self) -> None:
        """Law 5: with a server that answers, everybody is served, and nothing is left behind."""
        if not hasattr(self, "callers"):
            return
        for token, _, _ in self.opened:
            self.scheduler.recent.lookups.pop(token)
        for _ in range(5000):
            if self.asked:
                self.permit()
            if self.air:
                self.reply(self.air.pop())
            while self.to_commit:
                self.keep(self.to_commit.pop())
            if not self.air and self.wake_at is not None:
                self.now = max(self.now, self.wake_at)
            self.pump()
            if not self.asked and not self.air and not self.to_commit and self.wake_at is None:
                break
        assert all(c.finished or c.left for c in self.callers)
        assert self.scheduler.in_flight == 0
        assert not self.scheduler.registry.items
        assert not any(budget.reserved_tokens for budget in self.budgets if budget is not None)
        assert not list(self.scheduler.recent) or self.scheduler.recent.lookups


TestLaws = Engine.TestCase
TestLaws.settings = settings(
    max_examples=300,
    stateful_step_count=60,
    report_multiple_bugs=False,
    # Where a law is taken away on purpose, that the test fails is enough.
    phases=[Phase.generate] if "LAW_REMOVED" in os.environ else tuple(Phase),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
