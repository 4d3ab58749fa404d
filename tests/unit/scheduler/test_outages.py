"""Outages: a server that answers nothing fails a job of any size in the time of one text's retries."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.embedders import fake_embedder
from support.virtual import Simulation, VirtualServer

from embedkit_core.common.errors import ProviderError, RateLimitError, UnavailableError
from embedkit_core.testing import FakeServer

FAILURES = {
    "429": lambda: RateLimitError("no", status=429),
    "429 later": lambda: RateLimitError("no", status=429, retry_after=2.0),
    "503": lambda: UnavailableError("no", status=503),
    "500": lambda: UnavailableError("no", status=500),
    "refused": lambda: UnavailableError("could not be reached"),
}
failures = st.sampled_from(sorted(FAILURES))


class Job:
    """A simulated server, and a call with so many texts."""

    def __init__(self, texts: int, *, seed: int = 0, retries: int = 6, warm: bool = False, max_in_flight: int = 16):
        self.server = VirtualServer(latency=0.003)
        self.sim = Simulation(self.server, seed=seed)
        if warm:
            self.sim.submit([f"warm {i}" for i in range(500)])
            self.sim.run()
        self.server.requests, self.start = 0, self.sim.now
        self.seconds = float("inf")
        self._options = {"retries": retries, "max_in_flight": max_in_flight}
        self._texts = [f"text {i}" for i in range(texts)]

    def run(self, **options):
        self.ticket = self.sim.submit(self._texts, **self._options | options)
        self.ticket.wake = self._end
        self.sim.run()
        return self

    def _end(self) -> None:
        self.seconds = self.sim.now - self.start


@given(
    failure=failures,
    texts=st.sampled_from([1, 40, 300, 8_000]),
    retries=st.sampled_from([0, 1, 6]),
    warm=st.booleans(),
    max_in_flight=st.sampled_from([1, 16, 64]),
    seed=st.integers(0, 99),
)
@settings(max_examples=20, deadline=None, derandomize=True)
def test_a_job_of_any_size_fails_in_bounded_time_after_few_requests(failure, texts, retries, warm, max_in_flight, seed):
    job = Job(texts, seed=seed, retries=retries, warm=warm, max_in_flight=max_in_flight)
    job.server.fault = lambda number: FAILURES[failure]()
    job.run()
    assert {type(error) for error in job.ticket.failed.values()} == {type(FAILURES[failure]())}
    assert len(job.ticket.failed) == texts
    assert job.seconds < 180
    assert job.server.requests < 30 + 6 * max_in_flight
    assert not job.sim.scheduler.registry.items


@given(failure=failures, seconds=st.floats(0, 30), warm=st.booleans(), seed=st.integers(0, 999))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_a_job_outlives_an_outage_shorter_than_its_retries(failure, seconds, warm, seed):
    job = Job(4_000, seed=seed, warm=warm)
    job.server.fault = lambda number: FAILURES[failure]() if job.sim.now - job.start < seconds else None
    job.run()
    # A text that was in the requests of each attempt may have used up its own retries.
    assert len(job.ticket.failed) <= 300
    assert all(error.retries <= 6 for error in job.ticket.failed.values())


@given(failure=st.sampled_from(["503", "500", "refused"]), rate=st.floats(0, 0.4), seed=st.integers(0, 999))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_a_server_that_fails_at_random_is_no_outage(failure, rate, seed):
    job, rng = Job(4_000, seed=seed), random.Random(seed)
    job.server.fault = lambda number: FAILURES[failure]() if rng.random() < rate else None
    assert job.run().ticket.failed == {}


@pytest.mark.parametrize("failure", FAILURES)
def test_texts_that_make_the_server_fail_are_no_outage(failure):
    job = Job(4_000)
    answer, poison = job.server.answer, {f"text {i}" for i in range(3)}

    def refuse_poison(texts, sizes, now):
        bad = not poison.isdisjoint(texts)
        job.server.fault = lambda number: FAILURES[failure]() if bad else None
        return answer(texts, sizes, now)

    job.server.answer = refuse_poison
    job.run()
    assert 3 <= len(job.ticket.failed) <= 256
    assert {0, 1, 2} <= set(job.ticket.failed)


def test_a_bare_429_until_the_end_of_a_minute_loses_no_text():
    job = Job(4_000)
    job.server.tokens_per_second, job.server.burst, job.server.window = 1.0, 100_000, 60.0
    assert job.run().ticket.failed == {}


def test_a_caller_that_comes_later_has_its_own_retries():
    job = Job(4_000)
    job.server.fault = lambda number: UnavailableError("no", status=503)
    late = []
    job.sim.at(job.start + 20, lambda: late.append(job.sim.submit([f"late {i}" for i in range(400)])))
    recovered = job.start + 50
    job.server.fault = lambda number: UnavailableError("no", status=503) if job.sim.now < recovered else None
    job.run()
    assert len(job.ticket.failed) == 4_000
    assert late[0].failed == {}


def test_a_call_after_an_outage_is_sent_at_once():
    job = Job(4_000)
    job.server.fault = lambda number: UnavailableError("no", status=503)
    job.run()
    job.server.fault = lambda number: None
    start = job.sim.now
    job.sim.submit(["again"])
    job.sim.run()
    assert job.sim.now - start < 1


def test_the_error_states_the_attempts_of_the_outage():
    server = FakeServer()
    server.fault_for = lambda texts: UnavailableError("down", retry_after=0.001)
    with pytest.raises(ProviderError, match=r"down \(after \d+ retries in \d+\.\d s, at ") as caught:
        fake_embedder(server, max_retries=2).embed([f"text {i}" for i in range(20)])
    assert isinstance(caught.value, UnavailableError)
