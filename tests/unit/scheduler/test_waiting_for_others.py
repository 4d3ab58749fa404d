"""Texts and requests that wait for other processes: for their rows, for limits that they use, for budgets they hold."""

import math
import threading
import time

import numpy as np
from support.caches import DictCache
from support.embedders import fake_embedder
from support.virtual_processes import ACCOUNT, Process, SharedCache, two_processes

from embedkit_core import BudgetError
from embedkit_core.cache import Entry
from embedkit_core.common.types import NO_LIMITS, RateSettings
from embedkit_core.coordination.port import Begin, Bill, End, LeaseID, Reservation
from embedkit_core.costs.amounts import Amount, BudgetLimit
from embedkit_core.testing import FakeServer, MemoryCoordinator
from embedkit_core.testing.coordination_cases import new_keys

TIMEOUT = 20


def submit(
    process: Process, text: str, *, is_query: bool = False, bound: int = 2, rates: RateSettings = NO_LIMITS
) -> None:
    process.open_lookup([text])
    process.submit(0, is_query=is_query, retries=0, bound=bound, rates=rates, timeout=math.inf)


def work_and_hear(process: Process) -> None:
    while process.has_jobs or process.has_answers:
        process.hear() if process.has_answers else process.work()


def begin(coordinator: MemoryCoordinator, **settings: object) -> LeaseID:
    """Begin a request of a text on the model of the processes, and return its lease."""
    (grant,) = coordinator.exchange([Begin(ACCOUNT, "fake:model", new_keys(), [1], 0.0, **settings)], [])
    return grant.lease


def spend(coordinator: MemoryCoordinator, limit: int, tokens: int) -> None:
    """Spend tokens of the budget "ingest", more than were reserved."""
    lease = begin(coordinator, reservations=[Reservation("ingest", BudgetLimit(None, limit), {0: Amount(0, 1)})])
    coordinator.exchange([], [End(lease, 1.0, bills={"ingest": Bill(Amount(0, tokens))})])


# Queries, limits and slots


def test_a_query_that_has_waited_for_a_second_is_sent_in_the_same_poll():
    clock, one, two = two_processes()
    submit(one, "a text")
    work_and_hear(one)
    submit(two, "a text", is_query=True)
    work_and_hear(two)
    assert not two.in_flight
    clock.now += 1.1  # so that the next check is due in the same moment
    two.pump()
    work_and_hear(two)
    assert len(two.in_flight) == 1


def test_the_wait_of_bulk_for_a_limit_is_not_that_of_a_query_that_joins_it():
    _, one, two = two_processes()
    rates = RateSettings(1, None)
    begin(one.coordinator, limits=rates)
    submit(two, "a text", rates=rates)
    two.work()
    submit(two, "a text", is_query=True, rates=rates)
    two.hear()
    queue = two.scheduler.dispatcher.queue(two.spec)
    assert queue.not_before(is_query=True) == -math.inf
    assert queue.not_before(is_query=False) > 1000


def test_a_caller_without_limits_does_not_wait_for_those_of_a_caller_who_has_left():
    _, one, two = two_processes()
    rates = RateSettings(1, None)
    begin(one.coordinator, limits=rates)
    submit(two, "a text", rates=rates)
    work_and_hear(two)
    assert not two.in_flight
    two.scheduler.withdraw(two.callers[0].ticket)
    submit(two, "another text")
    work_and_hear(two)
    assert [request.batch.texts for request in two.in_flight] == [["another text"]]


def test_a_request_that_is_due_and_waits_for_a_slot_does_not_keep_the_loop_busy():
    clock, one, two = two_processes()
    one.coordinator.exchange([], [End(begin(one.coordinator), pause=1.5)])
    submit(two, "a text", bound=1)
    work_and_hear(two)
    two.scheduler.dispatcher.in_flight += 1  # another queue takes the slot
    clock.now += 1.6
    two.pump()
    assert two.wake_at is None or two.wake_at > clock.now


# Caches


def test_a_row_found_in_one_cache_is_written_to_the_other_cache_of_its_callers():
    clock, one, two = two_processes()
    caches = [two.cache, SharedCache()]
    for text in ("first", "second"):
        submit(one, text)
        for two.cache in caches:
            submit(two, text)
    work_and_hear(one)
    one.coordinator.exchange([], [])
    items = list(two.scheduler.registry.items.values())
    shared = two.scheduler.shared
    shared._look_up(items)
    row = np.ones(8, np.float32)
    two.scheduler.looked_up(
        items, {item.key: (Entry(row), cache) for item, cache in zip(items, caches, strict=True)}, clock()
    )
    writes = [write for request in two.scheduler.poll(clock()).commit for write in request.take_writes()]
    assert [id(cache) for cache, _ in writes] == [id(cache) for cache in reversed(caches)]


def test_a_text_without_a_cache_does_not_send_the_others_of_its_request_back_to_their_cache():
    clock, one, _ = two_processes()
    one.scheduler.dispatcher.in_flight += 1  # so that both wait for one request
    submit(one, "cached", bound=1)
    one.open_lookup(["not cached"])
    one.lookups[0] = (*one.lookups[0][:2], -math.inf)
    one.cache = None
    one.submit(0, is_query=False, retries=0, bound=1, rates=NO_LIMITS, timeout=math.inf)
    one.scheduler.dispatcher.in_flight -= 1
    one.pump()
    [request] = one.asking
    assert [bool(key) for key in request.begin.keys] == [True, False]
    assert 1000 < request.begin.since < clock.now


# Pieces of long texts, and budgets


def test_the_last_piece_of_a_text_does_not_wait_for_what_the_others_have_reserved():
    embed = LongText(["aaaa bbbb cccc dddd"])  # its pieces reserve 7 tokens or less, and are billed at 1 or 2
    spend(embed.coordinator.process(), 100, 85)
    assert embed.finish() is None
    until = time.monotonic() + TIMEOUT
    while embed.coordinator.budgets()[0].held != Amount():  # the ends of the requests come a little later
        assert time.monotonic() < until
        time.sleep(0.01)


def test_the_other_pieces_of_a_text_are_not_sent_if_one_is_refused():
    embed = LongText(["éééé éééé aaaa aaaa"])  # its first piece reserves 11 tokens, the others fewer
    spend(embed.coordinator.process(), 100, 90)
    assert isinstance(embed.finish(), BudgetError)
    assert len(embed.server.received) == 1


class LongText:
    """A call with a text that the server is about to refuse as too long, and a budget of 100 tokens."""

    def __init__(self, texts: list[str]) -> None:
        self.server, self.coordinator = FakeServer(max_words=2), MemoryCoordinator()
        self.server.hold()
        self._embedder = fake_embedder(
            self.server,
            cache=DictCache(),
            coordination=self.coordinator,
            on_long_text="mean",
            budget_tokens=100,
            budget_name="ingest",
        )
        self._results: list[object] = []
        self._thread = threading.Thread(target=self._embed, args=(texts,), daemon=True)
        self._thread.start()
        self.server.wait_for_requests(1)

    def _embed(self, texts: list[str]) -> None:
        try:
            self._embedder.embed(texts)
        except BudgetError as error:
            self._results.append(error)
        else:
            self._results.append(None)

    def finish(self) -> object:
        """Let the server answer. Return the error of the call, or None."""
        self.server.release()
        self._thread.join(TIMEOUT)
        [result] = self._results
        return result
