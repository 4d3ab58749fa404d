"""The exact window of a limit per minute: no minute above the limit, no delay below it, an even pace above it."""

from bisect import bisect_right
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedkit_core.coordination.port import MAX_WAIT_AHEAD
from embedkit_core.coordination.sliding_window import MINUTE, SlidingWindow, bulk_limit


def fullest_minute(sent: list[tuple[float, float]]) -> float:
    """Return the largest amount that any interval of 60 seconds has, both ends included."""
    sent = sorted(sent)
    times, sums = [at for at, _ in sent], [0.0, *accumulate(amount for _, amount in sent)]
    return max((sums[bisect_right(times, at + MINUTE)] - sums[i] for i, at in enumerate(times)), default=0.0)


STEP = st.tuples(
    st.floats(0, 15),  # seconds since the last step
    st.integers(1, 25),  # amount
    st.booleans(),  # is it a query?
    st.integers(0, 300),  # what waits besides
    st.floats(0, 3),  # sent so much later than granted
    st.floats(0, 40),  # from sending to its end
    st.sampled_from([1.0, 1.0, 0.5, 0.0]),  # the part that is billed; 0 for a request that is not sent
    st.booleans(),  # is the window stored and read again?
)


@settings(max_examples=150, deadline=None)
@given(steps=st.lists(STEP, max_size=80), limits=st.lists(st.sampled_from([25, 40, 100]), min_size=1, max_size=2))
def test_no_minute_has_more_than_the_limit(steps, limits):
    """The limits are those of several callers: the highest one holds for all, a lower one for its caller's requests."""
    window, now, sent, ends = SlidingWindow(), 1000.0, [], []
    for number, (seconds, amount, is_query, waiting, late, lasts, billed, stored) in enumerate(steps):
        now += seconds
        for end in [end for end in ends if end[0] <= now]:
            ends.remove(end)
            window.correct(*end[1:], now)
        if stored:
            window = SlidingWindow(window.state())
        limit = limits[number % len(limits)]
        wait = window.wait(amount, limit, now, is_query=is_query, demand=amount + waiting)
        if wait > MAX_WAIT_AHEAD:
            continue
        at = now + wait
        if len(limits) == 1 or limit == min(limits):
            assert window.used(at) + amount <= limit
        window.take(amount, at, now)
        if billed:
            sent.append((at + late, amount * billed))
            ends.append((at + late + lasts, amount, at, amount * billed, at + late))
        else:
            ends.append((at + late, amount, at, 0, at))
    assert fullest_minute(sent) <= max(limits)


@given(
    limit=st.integers(20, 10_000),
    share=st.floats(0.01, 1),
    sizes=st.lists(st.floats(0.001, 1), min_size=1, max_size=50),
    seconds=st.floats(0, 0.5),
)
def test_a_job_that_fits_is_not_delayed(limit, share, sizes, seconds):
    total = bulk_limit(limit) * share
    amounts = [size * total / sum(sizes) for size in sizes]
    window, now, left = SlidingWindow(), 0.0, total
    for amount in amounts:
        assert window.wait(amount, limit, now, is_query=False, demand=left * 0.999999) == 0.0
        window.take(amount, now, now)
        left -= amount
        now += seconds


def send_all(window: SlidingWindow, limit: int, amount: float, now: float, end: float) -> list[tuple[float, float]]:
    """Send a job without an end as fast as the window allows it, from `now` to `end`. Return what was sent."""
    sent = []
    while now < end:
        wait = window.wait(amount, limit, now, is_query=False, demand=1e9)
        if wait > MAX_WAIT_AHEAD:
            now += wait
            continue
        window.take(amount, now + wait, now)
        sent.append((now + wait, amount))
        now += 0.01
    return sent


@pytest.mark.parametrize(("limit", "amount"), [(60, 1), (600, 1), (600, 5), (1_000_000, 10_000.0)])
def test_a_job_above_the_limit_is_paced_and_uses_at_least_94_percent(limit, amount):
    sent = send_all(SlidingWindow(), limit, amount, 0.0, 300.0)
    assert fullest_minute(sent) <= bulk_limit(limit)
    assert sum(a for _, a in sent) >= 0.94 * limit * 5
    for seconds in range(60):  # no burst: four seconds ahead of the average rate, and one request
        soon = sum(a for at, a in sent if at <= seconds)
        assert soon <= (seconds + 2 * MAX_WAIT_AHEAD) * limit / MINUTE + amount


@given(limit=st.integers(20, 100_000))
def test_a_query_passes_when_bulk_has_used_its_share(limit):
    assert bulk_limit(limit) == limit - limit // 20
    window = SlidingWindow()
    window.take(bulk_limit(limit), 0.0, 0.0)
    assert window.wait(1, limit, 1.0, is_query=False, demand=1) > 50
    assert window.wait(limit - bulk_limit(limit), limit, 1.0, is_query=True, demand=1e9) == 0.0
    assert window.wait(limit - bulk_limit(limit) + 1, limit, 1.0, is_query=True, demand=1e9) > 50


def test_an_amount_above_the_limit_waits_until_the_minute_is_empty_and_no_longer():
    window = SlidingWindow()
    assert window.wait(500, 100, 0.0, is_query=False, demand=500) == 0.0
    window.take(500, 0.0, 0.0)
    wait = window.wait(500, 100, 1.0, is_query=False, demand=500)
    assert 59 < wait < 60
    assert window.wait(500, 100, 1.0 + wait, is_query=False, demand=500) == 0.0


def test_a_caller_with_a_low_limit_does_not_delay_one_with_a_high_limit():
    window = SlidingWindow()
    assert window.wait(1, 1, 0.0, is_query=False, demand=1) == 0.0
    window.take(1, 0.0, 0.0)
    assert window.wait(1, 1, 0.1, is_query=False, demand=1) > 50
    assert window.wait(1, 1000, 0.1, is_query=False, demand=5000) == 0.0


def test_what_was_not_sent_is_given_back():
    window = SlidingWindow()
    window.take(60, 0.0, 0.0)
    window.correct(60, 0.0, 0, 0.0, 5.0)
    assert window.used(5.0) == 0
    assert window.wait(60, 60, 5.0, is_query=True, demand=60) == 0.0


def test_a_request_that_is_sent_late_counts_from_its_sending():
    window = SlidingWindow()
    window.take(60, 0.0, 0.0)
    window.correct(60, 0.0, 60, 30.0, 31.0)
    assert window.wait(1, 60, 61.0, is_query=True, demand=1) > 25
    assert window.wait(1, 60, 91.0, is_query=True, demand=1) == 0.0


def test_a_correction_after_the_minute_changes_nothing():
    window = SlidingWindow()
    window.take(10, 0.0, 0.0)
    assert window.used(61.0) == 0
    window.correct(10, 0.0, 3, 0.0, 61.0)
    assert window.used(61.0) == 0
    window.take(4, 61.0, 61.0)
    assert window.used(62.0) == 4
