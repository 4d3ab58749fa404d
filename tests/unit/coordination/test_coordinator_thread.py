"""What the coordinator thread sends together."""

import threading

import pytest

from embedkit_core.coordination.opening import CoordinatorHandle
from embedkit_core.coordination.port import Begin, End, Grant
from embedkit_core.engine.runtime.coordinator_thread import CoordinatorThread, Exchange
from embedkit_core.testing.coordination_cases import ACCOUNT

TIMEOUT = 20
FOREVER = 3600.0


class RecordingCoordinator:
    """Grants everything, and records the number of requests and the leases of each exchange."""

    def __init__(self) -> None:
        self.exchanges: list[tuple[int, list]] = []
        self.called = threading.Event()

    def exchange(self, begins, ends):
        self.exchanges.append((len(begins), [end.lease for end in ends]))
        self.called.set()
        return [Grant(f"lease {number}") for number in range(len(begins))]

    def renew(self):
        pass

    def ended(self, leases):
        return []

    def open_budget(self, name, limit):
        pass

    def hold(self, hold, budget, limit, amount):
        pass

    def settle(self, hold, budget, billed, lost=None, *, is_final):
        pass

    def close(self):
        pass


@pytest.fixture
def coordinator():
    return RecordingCoordinator()


def start(coordinator, end_delay):
    return CoordinatorThread(CoordinatorHandle("far away", make=lambda: coordinator, end_delay=end_delay))


def test_an_end_that_may_wait_goes_with_the_next_begin(coordinator):
    thread, granted = start(coordinator, FOREVER), threading.Event()
    thread.put(Exchange([], [End("first")]))
    thread.put(Exchange([], [End("second")]))
    thread.put(Exchange([(Begin(ACCOUNT, "acme:small", [b""], [1], 0.0), lambda grant: granted.set())], []))
    assert granted.wait(TIMEOUT)
    thread.stop(TIMEOUT)
    assert coordinator.exchanges == [(1, ["first", "second"])]


def test_an_end_goes_alone_if_no_request_begins(coordinator):
    thread = start(coordinator, 0.02)
    thread.put(Exchange([], [End("first")]))
    assert coordinator.called.wait(TIMEOUT)
    thread.stop(TIMEOUT)
    assert coordinator.exchanges == [(0, ["first"])]


def test_the_pause_that_a_provider_asks_for_does_not_wait(coordinator):
    thread = start(coordinator, FOREVER)
    thread.put(Exchange([], [End("first")]))
    thread.put(Exchange([], [End("second", pause=1.0)]))
    assert coordinator.called.wait(TIMEOUT)
    thread.stop(TIMEOUT)
    assert coordinator.exchanges == [(0, ["first", "second"])]


def test_ends_that_wait_are_sent_when_the_thread_stops(coordinator):
    thread = start(coordinator, FOREVER)
    thread.put(Exchange([], [End("first")]))
    thread.stop(TIMEOUT)
    assert coordinator.exchanges == [(0, ["first"])]
