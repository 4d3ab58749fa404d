"""How texts are distributed over requests, and bills over texts."""

from math import ceil, log2

from hypothesis import assume, given
from hypothesis import strategies as st
from support.rows import check_rows

from embedkit_core.common.types import Limits
from embedkit_core.costs.tokens import estimate_tokens, split_bill
from embedkit_core.engine.batching import MAX_TEXTS, MAX_TOKENS, MIN_TEXTS, RequestCapacity, texts_per_request

counts = st.integers(0, 100_000)
few = st.integers(1, 300)
sizes = st.lists(st.integers(1, 10_000), min_size=1, max_size=300)

# Texts per request


@given(waiting=counts, slots=st.integers(0, 100), cap=few)
def test_a_request_holds_no_more_than_the_cap_and_no_fewer_than_the_floor(waiting, slots, cap):
    assert min(MIN_TEXTS, cap) <= texts_per_request(waiting, slots, cap) <= cap


@given(waiting=st.integers(1, 100_000), slots=st.integers(1, 100), cap=st.integers(MIN_TEXTS, 300))
def test_requests_make_no_more_rounds_than_necessary(waiting, slots, cap):
    requests = ceil(waiting / texts_per_request(waiting, slots, cap))
    assert ceil(requests / slots) == ceil(waiting / (slots * cap)) or requests <= ceil(waiting / MIN_TEXTS)


def test_waiting_texts_are_spread_as_documented():
    def check(row):
        waiting, slots, texts = row
        assert texts_per_request(waiting, slots, MAX_TEXTS) == texts

    check_rows([(500, 8, 63), (20, 16, 32), (20_000, 16, 250), (468, 8, 59), (0, 4, 32), (9, 0, 32)], check)


# Capacity of a request

limits = st.builds(
    Limits, texts=st.integers(1, 5000), tokens=st.none() | st.integers(1, 500_000), text_tokens=st.none() | few
)


@given(limits)
def test_the_capacity_of_a_request_is_within_the_limits(limits):
    capacity = RequestCapacity.from_limits(limits)
    assert 1 <= capacity.texts <= limits.texts
    assert 1 <= capacity.tokens <= (limits.tokens or MAX_TOKENS)
    assert 1 <= capacity.text_tokens <= min(capacity.tokens, limits.text_tokens or capacity.tokens)


@given(limits, st.lists(sizes, max_size=5))
def test_a_refusal_never_raises_the_capacity_and_never_makes_it_zero(limits, refused):
    capacity = RequestCapacity.from_limits(limits)
    for one in refused:
        before = (capacity.texts, capacity.tokens)
        capacity.halve(one)
        assert 1 <= capacity.texts <= before[0]
        assert 1 <= capacity.tokens <= before[1]


@given(sizes)
def test_a_refused_batch_exceeds_the_new_capacity(refused):
    assume(len(refused) > 1)
    capacity = RequestCapacity.from_limits(Limits())
    capacity.halve(refused)
    assert capacity.texts < len(refused) or capacity.tokens < sum(refused)


def test_halving_reaches_one_text_in_log2_steps():
    capacity, fitting = RequestCapacity.from_limits(Limits()), [MAX_TEXTS]
    while fitting[-1] > 1 and len(fitting) < 20:
        capacity.halve([10] * fitting[-1])
        fitting.append(min(capacity.texts, capacity.tokens // 10))
    assert len(fitting) == 1 + log2(MAX_TEXTS)


# Sizes, and shares of a bill


@given(st.integers(0, 10**9), st.lists(st.integers(0, 10**6), min_size=1, max_size=300))
def test_shares_of_a_bill_add_up_and_are_proportional_to_the_sizes(total, sizes):
    shares = split_bill(total, sizes)
    assert sum(shares) == total
    assert len(shares) == len(sizes)
    assert min(shares) >= 0
    if weight := sum(sizes):
        assert all(abs(share - total * size / weight) < 1 + 1e-6 for share, size in zip(shares, sizes, strict=True))


def tokens(text: str) -> int:
    return estimate_tokens(text, text.encode())


@given(st.text(), st.text())
def test_a_text_has_at_least_one_token_and_a_longer_text_no_fewer(a, b):
    assert 1 <= tokens(a) <= tokens(a + b)
    assert abs(tokens(a + b) - (tokens(a) + tokens(b))) <= 2
