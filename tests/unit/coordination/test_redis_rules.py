"""The scripts in Redis decide as the rules in Python do, for any order of calls on the same clock."""

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support.redis_coordinators import VirtualParticipant

from embedkit_core.common.types import RateSettings
from embedkit_core.coordination.port import Begin, Bill, End, Grant, LeaseID, ProviderAccount, Reservation
from embedkit_core.coordination.redis.scripts import MAX_INTEGER
from embedkit_core.costs.amounts import Amount, BudgetLimit
from embedkit_core.testing import MemoryCoordinator
from embedkit_core.testing.memory_coordinator import _Transaction

ACCOUNT = ProviderAccount("acme", "")
BUDGETS = {"both": BudgetLimit(1000, 100), "usd": BudgetLimit(700, None), "large": BudgetLimit(MAX_INTEGER, None)}
KEYS = [b"", *(bytes([n]) * 32 for n in range(4))]
TICK = 1 / 64  # exact as a float, and in microseconds
START = 1_795_000_000.0  # with as many digits as the time of a server
# Rates whose paces and waits are never on the clock's ticks: a rounding error would decide there.
LIMITS = [RateSettings(), RateSettings(7, None), RateSettings(None, 97), RateSettings(61, 793), RateSettings(29, None)]

AMOUNTS = st.one_of(st.integers(0, 400), st.integers(MAX_INTEGER // 2 - 9, MAX_INTEGER))
BEGIN = st.fixed_dictionaries(
    {
        "keys": st.lists(st.sampled_from(KEYS), min_size=1, max_size=4, unique=True),
        "model": st.sampled_from(["acme:small", "acme:small", "acme:large"]),
        "tokens": st.lists(st.integers(0, 60), min_size=4, max_size=4),
        "age": st.integers(0, 256),
        "limits": st.sampled_from(LIMITS),
        "is_query": st.booleans(),
        "backlog": st.tuples(st.integers(1, 900), st.integers(0, 900)),
        "budgets": st.lists(st.sampled_from(["both", "usd", "large", "usd"]), max_size=3),
        "amounts": st.lists(AMOUNTS, min_size=4, max_size=4),
    }
)
END = st.fixed_dictionaries(
    {
        "number": st.integers(0, 20),
        "sent_ago": st.one_of(st.none(), st.integers(0, 64)),
        "tokens": st.one_of(st.none(), st.integers(0, 80)),
        "pause": st.sampled_from([0.0, 0.0, 0.0, 1.5, 20.0]),
        "bill": st.tuples(st.integers(0, 400), st.integers(0, 9), st.integers(0, 50)),
    }
)
HOLD = st.fixed_dictionaries(
    {
        "hold": st.sampled_from(["one", "two"]),
        "budget": st.sampled_from(["both", "usd", "removed"]),
        "amount": st.tuples(st.integers(0, 400), st.integers(0, 9)),
        "lost": st.integers(0, 9),
        "kind": st.sampled_from(["hold", "hold", "settle", "end"]),
    }
)
PARTICIPANTS = st.integers(0, 2)
OPERATION = st.one_of(
    st.tuples(st.just("exchange"), PARTICIPANTS, st.lists(BEGIN, min_size=1, max_size=2), st.just([])),
    st.tuples(st.just("exchange"), PARTICIPANTS, st.lists(BEGIN, max_size=2), st.lists(END, min_size=1, max_size=2)),
    st.tuples(st.just("pass"), st.sampled_from([1, 1, 10, 64, 200, 400, 700])),
    st.tuples(st.just("ended"), PARTICIPANTS),
    st.tuples(st.just("hold_or_settle"), PARTICIPANTS, HOLD),
)


LOSE_LEASES = _Transaction.lose_leases


def lose_leases(transaction: _Transaction, owner: MemoryCoordinator) -> None:
    """Lose the leases of a participant, and forget what it had to send: it is dead or stopped, and not waiting."""
    shared = transaction._shared
    for owned in shared.leases.values():
        if owned.owner is owner and not owned.lease.lost:
            shared.backlog.get((owned.lease.account, owned.lease.model), {}).pop(owner, None)
    LOSE_LEASES(transaction, owner)


class Pair:
    """Three participants of both coordinators."""

    def __init__(self, server) -> None:
        self.now = START
        self.memory = [MemoryCoordinator(self.clock)]
        self.redis = [VirtualParticipant(server, self.clock)]
        for participants in (self.memory, self.redis):
            for name, limit in BUDGETS.items():
                participants[0].open_budget(name, limit)
            participants += [participants[0].process() for _ in range(2)]
        self.leases: list[tuple[LeaseID, LeaseID]] = []  # of the same request at both
        self.late_at = 0.0
        self.exchange(0, [], [])  # in memory, it has shown that it runs by opening the budgets

    def clock(self) -> float:
        return self.now

    def begin(self, keys, model, tokens, age, limits, is_query, backlog, budgets, amounts) -> Begin:
        tokens = tokens[: len(keys)]
        reservations = [
            Reservation(
                name, BUDGETS[name], {i: Amount(n, n % 30) for i, n in enumerate(amounts[: len(keys)]) if n % 5}
            )
            for name in budgets
        ]
        # A bill that comes after a loss lets others look up all texts again in Redis, but in memory those of the lease.
        since = max(self.now - age * TICK, self.late_at + TICK)
        return Begin(ACCOUNT, model, keys, tokens, since, limits, is_query, *backlog, reservations)

    def begins(self, number, begins) -> list[Begin]:
        """Return requests of a participant, which never sends a text twice at the same time."""
        owned = [one for one in self.memory[0]._shared.leases.values() if one.owner is self.memory[number]]
        own = {key for one in owned for key in one.lease.keys}
        found = []
        for one in begins:
            keys = [b"" if key in own else key for key in one["keys"]]
            own.update(keys)
            found.append(self.begin(**{**one, "keys": keys}))
        return found

    def end(self, lease, number, sent_ago, tokens, pause, bill) -> End:
        billed, billed_tokens, lost = bill
        bills = {name: Bill(Amount(billed, billed_tokens), Amount(lost, 1)) for name in ("usd", "both")}
        return End(lease, None if sent_ago is None else self.now - sent_ago * TICK, tokens, pause, bills)

    def lost(self) -> set[LeaseID]:
        return {one for one, owned in self.memory[0]._shared.leases.items() if owned.lease.lost}

    def exchange(self, number, begins, ends) -> None:
        asked = self.begins(number, begins)
        ended = [(self.leases[one["number"] % len(self.leases)], one) for one in ends if self.leases]
        lost = self.lost()
        expected = self.memory[number].exchange(asked, [self.end(lease[0], **one) for lease, one in ended])
        found = self.redis[number].exchange(asked, [self.end(lease[1], **one) for lease, one in ended])
        if lost - set(self.memory[0]._shared.leases):
            self.late_at = self.now
        pairs = list(zip(expected, found, strict=True))
        self.leases += [(one.lease, other.lease) for one, other in pairs if one.lease is not None]
        assert [self.comparable(grant, 0) for grant in expected] == [self.comparable(grant, 1) for grant in found]
        for one, other in pairs:
            assert other.wait == pytest.approx(one.wait, abs=2e-5)
            assert other.paused == pytest.approx(one.paused, abs=2e-6)
        assert sorted(self.memory[0].budgets()) == self.redis[0].budgets()

    def comparable(self, grant: Grant, side: int) -> tuple:
        numbers = {lease[side]: number for number, lease in enumerate(self.leases)}
        others = {index: numbers[lease] for index, lease in grant.others.items()}
        lease = None if grant.lease is None else numbers[grant.lease]
        return lease, others, sorted(grant.recheck), dict(grant.unfunded), grant.processes

    def hold_or_settle(self, number, one) -> None:
        self.exchange(number, [], [])  # which shows that this participant runs
        hold, budget, amount, lost = one["hold"], one["budget"], Amount(*one["amount"]), Amount(one["lost"], 1)
        for participants in (self.memory, self.redis):
            if one["kind"] == "hold":
                full = participants[number].hold(hold, budget, BUDGETS.get(budget, BudgetLimit(500, None)), amount)
            else:
                full = None
                participants[number].settle(hold, budget, amount, lost, is_final=one["kind"] == "end")
            if participants is self.memory:
                expected = full
        assert full == expected
        assert sorted(self.memory[0].budgets()) == self.redis[0].budgets()

    def ended(self, number) -> None:
        self.exchange(number, [], [])  # which shows that this participant runs
        for side, participants in enumerate((self.memory, self.redis)):
            ended = set(participants[number].ended([lease[side] for lease in self.leases]))
            found = [lease[side] in ended for lease in self.leases]
            if side == 0:
                expected = found
        assert found == expected


@settings(
    max_examples=60,
    phases=[Phase.generate],  # to shrink a failure takes minutes
    report_multiple_bugs=False,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(OPERATION, min_size=25, max_size=40))
def test_redis_grants_what_the_rules_grant(redis, monkeypatch, operations):
    monkeypatch.setattr(_Transaction, "lose_leases", lose_leases)
    with redis.client() as client:
        client.flushdb()
    pair = Pair(redis)
    for kind, *arguments in operations:
        if kind == "pass":
            if pair.now < START + 110:  # models that were not used for two minutes are forgotten
                pair.now += arguments[0] * TICK
        else:
            getattr(pair, kind)(*arguments)
