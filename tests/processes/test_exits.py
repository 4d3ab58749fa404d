"""Processes that end: what they have begun is completed, and nothing of them is left behind."""

import sqlite3
import time
from threading import Event

from support.coordinators import LoneCoordinator
from support.embedders import numbered, texts_sent
from support.processes import check, embed, finish_embedding, start_embedding, wait_for_others
from support.waiting import wait_until

from embedkit_core import Embedder
from embedkit_core.coordination.local.owners import FOLDER
from embedkit_core.coordination.local.schema import DATABASE


def rows(workers, statement):
    """Return the rows of a statement on the coordination file."""
    connection = sqlite3.connect(f"file:{workers.coordination / DATABASE}?mode=ro", uri=True)
    try:
        return connection.execute(statement).fetchall()
    finally:
        connection.close()


def assert_nothing_is_left(workers):
    """Check that no process is an owner any more, and that no file but the database is left."""
    assert [path.name for path in workers.coordination.iterdir() if path.name != FOLDER] == [DATABASE]
    assert not list((workers.coordination / FOLDER).iterdir())
    assert not rows(workers, "SELECT name FROM Owners WHERE id != 0")
    assert not rows(workers, "SELECT id FROM Leases WHERE ended_at IS NULL")


def test_a_process_that_ends_leaves_nothing_behind(workers):
    processes = workers(3)
    for process in processes:
        process.run(embed, [f"{process.pid}", "shared"])
    assert [process.close() for process in processes] == [0, 0, 0]
    assert_nothing_is_left(workers)


def test_a_process_ends_while_its_texts_wait_for_another(workers, server):
    server.hold()
    first, second = workers(2)
    first.run(start_embedding, ["shared"])
    server.wait_for_requests(1)
    second.run(start_embedding, ["shared"])
    second.run(wait_for_others)
    assert second.close() == 0
    server.release()
    check(first.run(finish_embedding), ["shared"])
    assert first.close() == 0
    assert texts_sent(server) == ["shared"]
    assert_nothing_is_left(workers)


def test_what_a_process_has_in_flight_when_it_ends_is_not_paid_for_twice(workers, server):
    server.latency = 0.5
    first, second = workers(2)
    first.run(start_embedding, ["shared"])
    server.wait_for_requests(1)
    second.run(start_embedding, ["shared"])
    second.run(wait_for_others)
    assert first.close() == 0
    check(second.run(finish_embedding), ["shared"])
    assert texts_sent(server) == ["shared"]
    second.close()
    assert_nothing_is_left(workers)


def wait_for_permit(embedder):
    """Block until this process has a permit that lies ahead."""
    wait_until(embedder, lambda account: bool(account.scheduler.shared._scheduled))


def test_a_request_whose_permit_lies_ahead_costs_nothing_if_its_process_ends(workers, server):
    limits = {"requests_per_minute": 60, "budget_tokens": 100_000, "budget_name": "ingest"}
    first, second = workers(2, max_batch_texts=1, **limits)
    first.run(start_embedding, numbered(100))
    server.wait_for_requests(4)
    second.run(start_embedding, numbered(200)[100:])
    second.run(wait_for_permit)
    assert [second.close(), first.close()] == [0, 0]
    assert_nothing_is_left(workers)
    ((spent, lost, held),) = rows(workers, "SELECT spent_tokens, lost_tokens, held_tokens FROM Budgets")
    assert (spent, lost, held) == (server.billed_tokens, 0, 0)


class SlowCoordinator(LoneCoordinator):
    """Takes a while for an answer, and writes down which leases it grants and which have ended."""

    def __init__(self, journal):
        super().__init__()
        self._journal = journal
        self.asked = Event()

    def exchange(self, begins, ends):
        self.asked.set()
        if begins:
            time.sleep(0.3)
        grants = super().exchange(begins, ends)
        with self._journal.open("a") as journal:
            journal.write("".join(f"granted {grant.lease}\n" for grant in grants))
            journal.write("".join(f"ended {end.lease}\n" for end in ends))
        return grants


def ask_slow_coordinator(_embedder, url, journal):
    """Embed a text with a slow coordinator, and return when it is asked."""
    coordinator = SlowCoordinator(journal)
    embedder = Embedder("text-embedding-3-small", base_url=url, api_key="test-key", coordination=coordinator)
    start_embedding(embedder, ["text"])
    assert coordinator.asked.wait(20)


def test_a_lease_that_is_granted_while_its_process_ends_is_ended(workers, server, tmp_path):
    worker = workers.one()
    worker.run(ask_slow_coordinator, server.base_url, tmp_path / "journal")
    assert worker.close() == 0
    assert (tmp_path / "journal").read_text() == "granted 0\nended 0\n"
    assert not server.requests
