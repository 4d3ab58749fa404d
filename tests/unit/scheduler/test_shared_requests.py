"""Requests that several processes coordinate: late ones ask again, and nothing waits for a lost coordinator."""

from support.virtual_processes import ACCOUNT, Process, two_processes

from embedkit_core.common.types import RateSettings
from embedkit_core.coordination.port import LEASE_SECONDS, Begin, End
from embedkit_core.testing.coordination_cases import new_keys


def submit(process: Process, text: str) -> None:
    process.open_lookup([text])
    process.submit(0, is_query=False, retries=0, bound=2, rates=RateSettings(10, None), timeout=float("inf"))


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
