"""Requests that several processes coordinate: late ones ask again, and nothing waits for a lost coordinator."""

import numpy as np
from support.virtual_processes import ACCOUNT, Process, two_processes

from embedkit_core.common.errors import TextTooLongError
from embedkit_core.common.types import RateSettings, Reply
from embedkit_core.coordination.port import LEASE_SECONDS, Begin, End
from embedkit_core.engine.scheduler.queues import Request
from embedkit_core.testing.coordination_cases import new_keys


def submit(process: Process, text: str) -> None:
    process.open_lookup([text])
    process.submit(0, is_query=False, retries=0, bound=4, rates=RateSettings(10, None), timeout=float("inf"))


def work_and_hear(process: Process) -> None:
    while process.has_jobs or process.has_answers:
        process.hear() if process.has_answers else process.work()


def test_a_process_that_was_stopped_before_sending_does_not_send_what_another_one_sends():
    clock, one, two = two_processes()
    submit(one, "a text")
    one.work()
    clock.now += LEASE_SECONDS + 1  # stopped with the grant in its hands
    submit(two, "a text")
    work_and_hear(two)
    assert len(two.in_flight) == 1
    work_and_hear(one)
    assert not one.in_flight
    assert len(one.scheduler.shared.waiting) == 1


def test_an_answer_that_comes_late_is_asked_for_again():
    clock, one, _ = two_processes()
    submit(one, "a text")
    one.work()
    clock.now += 1
    one.hear()
    assert not one.in_flight
    work_and_hear(one)
    assert len(one.in_flight) == 1
    assert len(one.coordinator._shared.leases) == 1


def test_a_request_that_waits_for_its_permit_and_misses_it_asks_again():
    clock, one, two = two_processes()
    two.coordinator.exchange([], [End(pause_lease(two), clock.now, pause=1.5)])
    submit(one, "a text")
    work_and_hear(one)
    assert not one.in_flight
    clock.now += 5
    one.pump()
    assert not one.in_flight
    work_and_hear(one)
    assert len(one.in_flight) == 1
    assert len(one.coordinator._shared.leases) == 1


def test_a_request_that_waits_for_its_permit_is_sent_in_time():
    clock, one, two = two_processes()
    two.coordinator.exchange([], [End(pause_lease(two), clock.now, pause=1.5)])
    submit(one, "a text")
    work_and_hear(one)
    clock.now += 1.5
    one.pump()
    assert len(one.in_flight) == 1


def pause_lease(process: Process) -> int:
    """Return a lease on the model of the processes."""
    begin = Begin(ACCOUNT, "fake:model", new_keys(), [1], process.clock())
    (grant,) = process.coordinator.exchange([begin], [])
    return grant.lease


def test_a_text_that_waits_for_another_process_is_sent_if_the_coordinator_cannot_be_reached():
    clock, one, two = two_processes()
    submit(one, "a text")
    work_and_hear(one)
    submit(two, "a text")
    work_and_hear(two)
    assert len(two.scheduler.shared.waiting) == 1
    two.coordinator.is_reachable = False
    clock.now += 1
    two.pump()
    work_and_hear(two)
    assert len(two.in_flight) == 1
    assert two.scheduler.shared.uncoordinated == 1


def test_no_claim_on_a_split_text_ends_before_other_machines_can_read_its_row():
    """Also not that of the piece that was sent last, if its reply comes first."""
    clock, one, two = two_processes(texts=1, policy="mean")
    text = "one two three four five six seven eight"
    for known in ("a text that verifies the queue", text):
        submit(one, known)
        work_and_hear(one)
        request = one.in_flight.pop()
        if known != text:
            reply(one, request)
            one.commit(0)
        else:
            one.scheduler.failed(request, TextTooLongError(limit=2, tokens=4), clock())
            one.pump()
            work_and_hear(one)
    first, *later = one.in_flight
    for request in later:
        reply(one, request)
        one.commit(0)
    reply(one, first)
    request = one.to_commit.pop()
    assert request.take_writes() == [(one.cache, [0])]
    one.scheduler.committed(request, is_stored=False)
    one.pump()
    work_and_hear(one)
    begin = Begin(ACCOUNT, "fake:model", [text.encode()], [1], clock())
    (grant,) = two.coordinator.exchange([begin], [])
    assert list(grant.others) == [0]
    assert not two.coordinator.ended(grant.others.values())
    one.scheduler.stored(request)
    one.pump()
    work_and_hear(one)
    assert two.coordinator.ended(grant.others.values())


def reply(process: Process, request: Request) -> None:
    process.scheduler.replied(request, Reply(np.ones((len(request.items), 8), np.float32), 1), process.clock())
    process.pump()
