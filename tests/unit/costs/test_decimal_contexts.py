"""Amounts and budgets in an application that changes the decimal context of its threads."""

import decimal
import subprocess
import sys
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedkit_core import Usage, track_usage
from embedkit_core.common.money import decimal_context, exact_decimal, format_usd
from embedkit_core.costs.budget import Budget
from embedkit_core.costs.meter import Meter, TextCounts

ALL_TRAPS = list(Context().flags)
HOSTILE = {
    "one digit": Context(prec=1),
    "one digit, down": Context(prec=1, rounding=decimal.ROUND_DOWN),
    "up": Context(prec=2, rounding=decimal.ROUND_UP),
    "small exponents": Context(prec=3, Emin=-2, Emax=2, traps=[]),
    "all traps": Context(prec=2, traps=ALL_TRAPS),
    "no traps": Context(prec=1, traps=[]),
}
prices = st.decimals(min_value=0, max_value=1000, places=4)
steps = st.lists(
    st.tuples(st.sampled_from(["settle", "lost"]), st.integers(0, 10**7), st.integers(0, 10**7)), max_size=8
)


def spend(price: Decimal, limit: Decimal, events: list[tuple[str, int, int]]) -> tuple[object, ...]:
    """Return what a budget, a meter and the sums of usage hold after these events."""
    budget, meter, log = Budget(limit), Meter(price), []
    for outcome, reserved, billed in events:
        log.append(budget.allows(reserved, price))
        budget.reserve(reserved, price)
        log.append(budget.left_usd)
        if outcome == "settle":
            budget.settle(reserved, billed, price)
        else:
            budget.mark_unconfirmed(reserved, price)
        meter.add(Usage(tokens=billed, priced_usd=budget.spent_usd))
        meter.count(TextCounts(**dict.fromkeys(TextCounts._fields, 0) | {"saved_tokens": billed}))
    usage = meter.read() + meter.read()
    return (log, budget.left_usd, budget.used_usd, budget.reserved_usd, usage.to_dict(), str(usage))


@pytest.mark.parametrize("context", HOSTILE)
@given(price=prices, limit=prices, events=steps)
def test_amounts_do_not_depend_on_the_context_of_the_thread(context, price, limit, events):
    expected = spend(price, limit, events)
    with decimal.localcontext(HOSTILE[context].copy()):
        assert spend(price, limit, events) == expected


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-1_000_000, max_value=1_000_000))
def test_an_amount_is_printed_exactly(usd):
    with decimal.localcontext(Context(prec=1, traps=[])):
        printed = exact_decimal(usd)
    assert Decimal(printed) == usd
    assert "E" not in printed
    assert "." not in printed or not printed.endswith(("0", "."))


def test_an_amount_is_shown_in_cents_or_with_two_significant_digits():
    shown = {
        "0E-9": "$0", "0.00000018": "$0.00000018", "0.0000697999": "$0.00007", "0.0036": "$0.0036", "0.00999": "$0.01",
        "0.01234": "$0.012", "0.02": "$0.02", "0.5": "$0.50", "4.99999992": "$5.00", "1234.5": "$1,234.50",
        "5E+3": "$5,000.00", "-0.5": "-$0.50",
    }  # fmt: skip
    assert {usd: format_usd(Decimal(usd)) for usd in shown} == shown
    assert format_usd(None) == "unknown"
    assert format_usd(Decimal("0.00000201"), ROUND_CEILING) == "$0.0000021"
    assert format_usd(Decimal("4.99999992"), ROUND_FLOOR) == "$4.99"


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-1_000_000, max_value=1_000_000))
def test_a_bound_is_never_shown_on_the_wrong_side(usd):
    expected = [format_usd(usd, rounding) for rounding in (ROUND_FLOOR, ROUND_CEILING)]
    low, high = (Decimal(text.replace("$", "").replace(",", "")) for text in expected)
    assert low <= usd <= high
    with decimal.localcontext(Context(prec=1, traps=ALL_TRAPS)):
        assert [format_usd(usd, rounding) for rounding in (ROUND_FLOOR, ROUND_CEILING)] == expected


def test_a_budget_is_parsed_exactly():
    with decimal.localcontext(Context(prec=1)):
        budget = track_usage(budget_usd="0.123456789").budget
    assert budget is not None
    assert budget.limit_usd == Decimal("0.123456789")


APPLICATION = """
import decimal
decimal.DefaultContext.prec = 1
decimal.DefaultContext.rounding = decimal.ROUND_DOWN
decimal.setcontext(decimal.DefaultContext.copy())
from embedkit_core import BudgetError, Embedder
from embedkit_core.testing import FakeServer

server = FakeServer()
embedder = Embedder(
    "fake:model", base_url=server.url, cache=False, budget_usd="0.0001", prices={"fake:model": "0.7"}, max_batch_texts=1
)
try:
    embedder.embed([f"text {n:05}" for n in range(400)])
except BudgetError as error:
    assert error.spent_usd <= error.limit_usd, error.spent_usd
billed = embedder.usage.tokens
assert 0 < billed * 7 <= 1000, billed
print(len(server.received), embedder.usage.priced_usd * 0 + embedder.usage.tokens)
"""


def test_a_budget_holds_in_an_application_that_computes_with_one_digit():
    done = subprocess.run([sys.executable, "-c", APPLICATION], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) < 400


def test_the_contexts_of_amounts_take_nothing_from_the_default_context(monkeypatch):
    before = repr(decimal_context(6))
    for name, value in {
        "prec": 1,
        "rounding": decimal.ROUND_UP,
        "Emin": -1,
        "Emax": 1,
        "capitals": 0,
        "clamp": 1,
    }.items():
        monkeypatch.setattr(decimal.DefaultContext, name, value)
    monkeypatch.setitem(decimal.DefaultContext.traps, decimal.Inexact, True)
    assert repr(decimal_context(6)) == before
