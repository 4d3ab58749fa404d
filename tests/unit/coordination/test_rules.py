"""The decisions of a coordinator, over any order of begins, ends, kills and stops."""

from collections import Counter
from decimal import Decimal

from hypothesis import given, settings
from hypothesis import strategies as st

from embedkit_core.common.types import RateSettings
from embedkit_core.coordination.port import (
    LEASE_SECONDS,
    MAX_WAIT_AHEAD,
    Begin,
    Bill,
    End,
    ProviderAccount,
    Reservation,
)
from embedkit_core.costs.amounts import Amount, BudgetLimit, BudgetStatus, amount_of
from embedkit_core.testing import MemoryCoordinator

ACCOUNT, LIMIT, SMALL = ProviderAccount("acme", ""), BudgetLimit(1000, 100), BudgetLimit(300, None)
KEYS = [bytes([n]) * 32 for n in range(6)]

OPERATION = st.one_of(
    st.tuples(
        st.just("begin"),
        st.integers(0, 2),
        st.lists(st.sampled_from(KEYS), min_size=1, max_size=4, unique=True),
        st.lists(st.integers(0, 400), min_size=8, max_size=8),
        st.sampled_from([("all",), ("small",), ("all", "small"), ("all", "all")]),
    ),
    st.tuples(st.just("end"), st.integers(0, 20), st.floats(0, 1), st.floats(0, 1)),
    st.tuples(st.just("kill"), st.integers(0, 2)),
    st.tuples(st.just("pass"), st.floats(0, 0.8)),
    st.tuples(st.just("stop"), st.integers(0, 2)),
)


class Model:
    """Three participants, and what they have been granted."""

    def __init__(self) -> None:
        self.now = 100.0
        self.coordinator = MemoryCoordinator(lambda: self.now)
        self.coordinator.open_budget("all", LIMIT)
        self.coordinator.open_budget("small", SMALL)
        self.participants = [self.coordinator.process() for _ in range(3)]
        self.open: list[tuple] = []  # participant, lease, claimed keys, reserved amounts
        self.settled: Counter[str] = Counter()  # billed nano-USD, by budget
        self.alive = {id(one) for one in self.participants}

    def begin(self, number, keys, sizes, names) -> None:
        one = self.participants[number]
        held_here = {key for holder, _, held, _, is_lost in self.open if holder is one and not is_lost for key in held}
        keys = [key for key in keys if key not in held_here]  # a scheduler does not send a text that it is sending
        amounts = {i: Amount(size, size // 20) for i, size in enumerate(sizes[: len(keys)])}
        reservations = [Reservation(name, LIMIT if name == "all" else SMALL, amounts) for name in names]
        begin = Begin(ACCOUNT, "acme:small", keys, [1] * len(keys), self.now + 1, reservations=reservations)
        (grant,) = one.exchange([begin], [])
        mine = [i for i in range(len(keys)) if i not in grant.others and i not in grant.unfunded]
        assert not grant.recheck
        assert (grant.lease is not None) == bool(mine)
        claimed = {key for other, _, held, _, is_lost in self.open if other is not one and not is_lost for key in held}
        assert {keys[i] for i in grant.others} == claimed & set(keys)
        if mine:
            reserved: dict[str, Amount] = {}
            for name in names:
                for i in mine:
                    reserved[name] = reserved.get(name, Amount()).plus(amounts[i])
            self.open.append((one, grant.lease, {keys[i] for i in mine}, reserved, False))

    def end(self, number, billed, lost) -> None:
        if not self.open:
            return
        one, lease, _, reserved, _ = self.open.pop(number % len(self.open))
        bills = {}
        for name, amount in reserved.items():
            spent = Amount(int(amount.nano_usd * billed), int(amount.tokens * billed))
            rest = amount.minus(spent)
            bills[name] = Bill(spent, Amount(int(rest.nano_usd * lost), int(rest.tokens * lost)))
            self.settled[name] += spent.nano_usd
        for _ in range(2):  # the answer to the first was lost
            one.exchange([], [End(lease, self.now, None, bills=bills)])

    def kill(self, number) -> None:
        one = self.participants[number]
        one.kill()
        self.open = [held for held in self.open if held[0] is not one]
        self.participants[number] = self.coordinator.process()

    def stop(self, number) -> None:
        one = self.participants[number]
        one.stop()
        self.open = [(*held[:4], held[4] or held[0] is one) for held in self.open]

    def check(self) -> None:
        for status in self.coordinator.budgets():
            used = status.spent.plus(status.lost).plus(status.held)
            assert min(status.spent + status.lost + status.held) >= 0
            assert used.nano_usd <= status.limit.nano_usd
            assert status.limit.tokens is None or used.tokens <= status.limit.tokens
            assert status.spent.nano_usd == self.settled[status.name]
            held = [held[3].get(status.name, Amount()) for held in self.open if not held[4]]
            assert status.held == Amount(sum(a.nano_usd for a in held), sum(a.tokens for a in held))


@settings(max_examples=200, deadline=None)
@given(operations=st.lists(OPERATION, max_size=60))
def test_no_budget_is_exceeded_and_each_text_is_claimed_by_one_participant(operations):
    model = Model()
    for name, *arguments in operations:
        if name == "pass":
            for one in model.participants:
                one.renew()
            model.now += arguments[0] * LEASE_SECONDS
        else:
            getattr(model, name)(*arguments)
        model.check()


def test_a_text_that_a_budget_pays_for_twice_is_reserved_twice():
    one = MemoryCoordinator()
    one.open_budget("all", LIMIT)
    twice = [Reservation("all", LIMIT, {0: Amount(600, 1)})] * 2
    (grant,) = one.exchange([Begin(ACCOUNT, "acme:small", KEYS[:1], [1], 0.0, reservations=twice)], [])
    assert list(grant.unfunded) == [0]


def test_a_bill_after_a_reset_makes_no_budget_larger():
    one = MemoryCoordinator()
    one.open_budget("all", LIMIT)
    reservations = [Reservation("all", LIMIT, {0: Amount(600, 1)})]
    (grant,) = one.exchange([Begin(ACCOUNT, "acme:small", KEYS[:1], [1], 0.0, reservations=reservations)], [])
    one.stop()
    one._shared.budgets["all"] = BudgetStatus("all", LIMIT)  # reset, and opened again
    one.exchange([], [End(grant.lease, 1.0, bills={"all": Bill(Amount(500, 1))})])
    (status,) = one.budgets()
    assert (status.spent, status.lost, status.held) == (Amount(500, 1), Amount(), Amount())


def test_two_processes_share_a_limit_and_use_at_least_94_percent_of_it():
    """Each asks again when it was told to, with a job that does not end."""
    now = 0.0
    first = MemoryCoordinator(lambda: now)
    limits = RateSettings(120, None)
    due = {first: 0.0, first.process(): 0.0}
    sent = []
    while now < 240:
        one = min(due, key=due.__getitem__)
        now = due[one]
        begin = Begin(ACCOUNT, "acme:small", [b""], [10], 0.0, limits, backlog_requests=10_000)
        (grant,) = one.exchange([begin], [])
        if grant.lease is None:
            due[one] = now + max(0.05, grant.wait - MAX_WAIT_AHEAD / 2)
            continue
        sent.append(now + grant.wait)
        one.exchange([], [End(grant.lease, now + grant.wait)])
        due[one] = now + 0.05
    assert max(sum(at <= other < at + 60 for other in sent) for at in sent) <= 120
    assert len([at for at in sent if at < 240]) >= 0.94 * 4 * 120


@given(parts=st.lists(st.integers(0, 10**7), max_size=20), price=st.decimals("0.0001", 100, places=4))
def test_amounts_are_rounded_up_by_less_than_a_nano_usd(parts, price):
    exact = [Decimal(tokens) * price * 1000 for tokens in parts]
    amounts = [amount_of(tokens, price) for tokens in parts]
    assert all(0 <= amount.nano_usd - one < 1 for amount, one in zip(amounts, exact, strict=True))
    assert amount_of(sum(parts), price).nano_usd <= sum(amount.nano_usd for amount in amounts)
    assert [amount.tokens for amount in amounts] == parts


def test_an_amount_without_a_price_counts_tokens_only():
    assert amount_of(7, None) == Amount(0, 7)
    assert amount_of(0, Decimal("0.02")) == Amount(0, 0)
