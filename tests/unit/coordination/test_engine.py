"""The engine and its coordinators: answers that no caller waits for, and coordinators that answer anything."""

import threading

import pytest
from support.caches import DictCache
from support.coordinators import LoneCoordinator
from support.embedders import fake_embedder
from support.rows import check_rows

from embedkit_core import EmbedKitError
from embedkit_core.coordination.port import Grant
from embedkit_core.costs.amounts import BudgetLimit, BudgetStatus
from embedkit_core.engine.runtime.process import engine
from embedkit_core.testing import FakeServer, MemoryCoordinator

TIMEOUT = 20


class AnyCoordinator(LoneCoordinator):
    """A coordinator with prepared answers."""

    def __init__(self, grants: object = None, ended: object = ()) -> None:
        super().__init__()
        self.grants, self.answer = grants, ended

    def exchange(self, begins, ends):
        return self.grants if begins else []

    def ended(self, leases):
        return self.answer


class SlowCoordinator(MemoryCoordinator):
    """Answers a request only when the gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.arrived, self.gate = threading.Event(), threading.Event()

    def exchange(self, begins, ends):
        grants = super().exchange(begins, ends)
        if begins:
            self.arrived.set()
            assert self.gate.wait(TIMEOUT)
        return grants


def test_a_coordinator_that_answers_anything_counts_as_unreachable():
    def check(grant):
        server = FakeServer()
        embedder = fake_embedder(server, cache=DictCache(), coordination=AnyCoordinator([grant]))
        assert len(embedder.embed(["a text"]).vectors) == 1
        assert len(server.received) == 1

    status = BudgetStatus("other", BudgetLimit())
    check_rows(
        [
            None,
            Grant([]),
            Grant(1, processes="many"),
            Grant(1, wait=float("nan")),
            Grant(1, wait=1e9),
            Grant(None),
            Grant(1, others={1: 2}),
            Grant(1, others={0: []}),
            Grant(1, recheck=["0"]),
            Grant(1, unfunded={0: status}),
        ],
        check,
    )


def test_a_coordinator_that_answers_anything_about_leases_keeps_no_text_waiting():
    def check(ended):
        server = FakeServer()
        coordinator = AnyCoordinator([Grant(None, others={0: 1})], ended)
        embedder = fake_embedder(server, cache=DictCache(), coordination=coordinator)
        assert len(embedder.embed(["a text"]).vectors) == 1

    check_rows([None, 5, [[]]], check)


def test_a_lease_is_ended_whose_scheduler_was_replaced(monkeypatch):
    server, coordinator = FakeServer(), SlowCoordinator()
    embedder = fake_embedder(server, cache=DictCache(), coordination=coordinator)
    errors = []

    def embed():
        with pytest.raises(EmbedKitError, match="Internal error") as caught:
            embedder.embed(["a text"])
        errors.append(caught.value)

    thread = threading.Thread(target=embed)
    thread.start()
    assert coordinator.arrived.wait(TIMEOUT)
    account = engine().known_account(embedder.provider)

    def fail():
        raise RuntimeError

    engine().call(account, fail)
    thread.join(TIMEOUT)
    assert errors
    coordinator.gate.set()
    other = fake_embedder(server, cache=DictCache(), coordination=coordinator.process())
    assert len(other.embed(["a text"]).vectors) == 1
