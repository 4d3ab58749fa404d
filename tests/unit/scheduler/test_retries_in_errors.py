"""What the final error states about the retries: how many, for how long, at which server."""

import copy
import pickle

import pytest
from support.embedders import fake_embedder, openai_embedder
from support.openai_server import Fault
from support.virtual import Simulation, VirtualServer

from embedkit_core import (
    AuthenticationError,
    PartialFailureError,
    ProviderError,
    RateLimitError,
    TimedOutError,
    UnavailableError,
)
from embedkit_core.testing import FakeServer


def host(server):
    return server.base_url.removeprefix("http://").partition("/")[0]


@pytest.mark.parametrize(("retries", "times"), [(1, "1 retry"), (3, "3 retries")])
@pytest.mark.parametrize("status", [429, 500, 503])
def test_the_final_error_states_the_retries_their_time_and_the_server(server, retries, times, status):
    server.fault_for(lambda texts, number: Fault(status=status, headers={"retry-after-ms": "1"}))
    with pytest.raises(ProviderError, match=rf"\(after {times} in \d+\.\d s, at {host(server)}\)\.?$") as caught:
        openai_embedder(server, max_retries=retries).embed_query("text")
    error = caught.value
    assert (error.retries, len(server.requests)) == (retries, retries + 1)
    assert 0 < error.retry_seconds < 60
    for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert (str(twin), twin.retries, twin.retry_seconds) == (str(error), retries, error.retry_seconds)


def test_an_error_that_ends_the_retries_states_them_too(server):
    server.faults += [Fault(status=503, headers={"retry-after-ms": "1"})] * 2 + [Fault.unauthorized()]
    with pytest.raises(AuthenticationError, match=r"\(after 2 retries in .* s, at 127.0.0.1:\d+\)\.$"):
        openai_embedder(server).embed_query("text")


def test_an_error_without_retries_does_not_mention_them(server):
    server.faults.append(Fault(status=503))
    with pytest.raises(UnavailableError) as caught:
        openai_embedder(server, max_retries=0).embed_query("text")
    assert (caught.value.retries, caught.value.retry_seconds) == (0, 0.0)
    assert "after" not in str(caught.value)


def test_a_partial_failure_states_the_retries_of_its_texts():
    server = FakeServer()
    server.fault_for = lambda texts: UnavailableError("down", retry_after=0.001) if "bad" in texts else None
    embedder = fake_embedder(server, max_retries=2, max_batch_texts=1)
    with pytest.raises(PartialFailureError, match=r"down \(after 2 retries in ") as caught:
        embedder.embed(["good", "bad"])
    assert caught.value.failed[1].retries == 2


def test_a_passed_deadline_states_the_retries_and_the_last_failure():
    server = VirtualServer(fault=lambda number: UnavailableError("down", status=503))
    sim = Simulation(server)
    ticket = sim.submit([f"text {i}" for i in range(32)], deadline=sim.now + 9, retries=50)
    sim.run(until=10)
    error = ticket.failed[31]
    assert isinstance(error, TimedOutError)
    assert error.retries == server.requests - 1 > 1
    assert f"(after {error.retries} retries in " in str(error)
    assert "The last failure was UnavailableError (HTTP 503)." in str(error)


def test_a_caller_that_joins_later_counts_its_own_retries():
    server = VirtualServer(fault=lambda number: RateLimitError("slow down", retry_after=1.0))
    sim = Simulation(server)
    first = sim.submit(["text"], retries=5)
    sim.run(until=3.5)
    second = sim.submit(["text"], retries=1)
    sim.run()
    assert (first.failed[0].retries, second.failed[0].retries) == (5, 1)
