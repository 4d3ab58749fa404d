"""Deadlines: unfinished texts fail at the deadline, and requests in flight are still cached."""

import asyncio

import numpy as np
import pytest
from support.embedders import fake_embedder
from support.rows import check_rows

from embedkit_core.common.errors import ConfigurationError, PartialFailureError, TimedOutError
from embedkit_core.testing import FakeServer

SOON = 2.0  # seconds that suffice to send the first request on a busy machine


def test_a_call_ends_at_its_deadline_if_the_server_never_replies(tmp_path):
    server = FakeServer()
    server.hold()
    with pytest.raises(TimedOutError, match="deadline") as caught:
        fake_embedder(server, cache=tmp_path, deadline=SOON).embed([f"text {i}" for i in range(100)])
    assert caught.value.usage.failed == 100
    assert len(server.received) == 1
    server.release()


async def test_an_async_call_ends_at_its_deadline_too():
    server = FakeServer()
    server.hold()
    with pytest.raises(TimedOutError, match="deadline"):
        await fake_embedder(server, deadline=0.2).aembed(["a", "b"])
    server.release()


def test_requests_in_flight_at_the_deadline_are_cached_for_a_rerun(tmp_path):
    server = FakeServer()
    server.hold()
    hasty = fake_embedder(server, cache=tmp_path, deadline=SOON)
    with pytest.raises(TimedOutError):
        hasty.embed(["a", "b"])
    server.release()
    patient = fake_embedder(server, cache=tmp_path)
    for _ in range(2):
        patient.embed(["a", "b"])
    assert len(server.received) == 1
    assert patient.usage.sent == 0


def test_rows_finished_before_the_deadline_are_in_the_result(tmp_path):
    server = FakeServer()
    chosen = fake_embedder(server, cache=tmp_path, deadline=SOON, max_batch_texts=10, max_concurrency=1)
    first = chosen.embed([f"text {i}" for i in range(10)])
    server.hold()
    texts = [f"text {i}" for i in range(30)]
    with pytest.raises(PartialFailureError, match="deadline") as caught:
        chosen.embed(texts)
    assert caught.value.succeeded == tuple(range(10))
    assert sorted(caught.value.failed) == list(range(10, 30))
    assert np.array_equal(caught.value.result.vectors[:10], first.vectors)
    assert np.isnan(caught.value.result.vectors[10:]).all()
    server.release()


def test_with_on_error_return_unfinished_rows_are_nan_and_listed():
    server = FakeServer()
    server.hold()
    result = fake_embedder(server, deadline=0.2, on_error="return", dimensions=8).embed(["a", "b"])
    assert np.isnan(result.vectors).all()
    assert sorted(result.failed) == [0, 1]
    assert result.to_lists() == [None, None]
    server.release()


async def test_callers_with_different_deadlines_share_a_text():
    server = FakeServer()
    server.hold()
    patient = asyncio.create_task(fake_embedder(server).aembed(["a"]))
    await asyncio.to_thread(server.wait_for_requests, 1)
    with pytest.raises(TimedOutError):
        await fake_embedder(server, deadline=0.1).aembed(["a"])
    server.release()
    assert (await patient).usage.sent == 1
    assert len(server.received) == 1


def test_an_invalid_deadline_is_refused():
    def check(wrong):
        with pytest.raises(ConfigurationError, match="deadline"):
            fake_embedder(FakeServer(), deadline=wrong)

    check_rows([0, -1, float("nan"), float("inf"), "5", True], check)


def test_an_invalid_limit_per_minute_is_refused():
    def check(row):
        wrong, name = row
        with pytest.raises(ConfigurationError, match=name):
            fake_embedder(FakeServer(), **{name: wrong})

    check_rows(
        [(wrong, name) for name in ["requests_per_minute", "tokens_per_minute"] for wrong in [0, -1, 1.5, "60", True]],
        check,
    )


def test_a_limit_per_minute_delays_requests_and_a_deadline_ends_the_wait():
    server = FakeServer()
    slow = fake_embedder(server, requests_per_minute=2, max_batch_texts=5, deadline=SOON)
    with pytest.raises(PartialFailureError, match="deadline"):
        slow.embed([f"text {i}" for i in range(20)])
    assert len(server.received) == 1
