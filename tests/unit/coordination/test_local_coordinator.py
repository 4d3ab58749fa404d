"""The coordinator of the processes on one machine, with several coordinators in one process."""

import os
import stat
import time

import pytest
from support.coordination import LIMIT, Clock, request, reservation
from support.coordination import begin as begin_with

from embedkit_core import ConfigurationError
from embedkit_core.common.types import RateSettings
from embedkit_core.coordination.local import owners
from embedkit_core.coordination.local.coordinator import LocalCoordinator
from embedkit_core.coordination.port import Begin, Bill, End, ProviderAccount
from embedkit_core.costs.amounts import Amount, BudgetLimit, BudgetStatus
from embedkit_core.providers.secrets import Secret


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def coordinators(folder, clock):
    """Two coordinators of one folder, as two processes have them."""
    both = [LocalCoordinator(folder, clock) for _ in range(2)]
    yield both
    for one in both:
        one.close()


def begin(coordinator, clock, *names, **settings):
    return begin_with(coordinator, *names, clock=clock, **settings)


def lock_files(folder):
    return list((folder / "owners").iterdir())


# Claims


def test_a_text_that_another_process_sends_is_not_granted(coordinators, clock):
    first, second = coordinators
    lease = begin(first, clock, "a", "b").lease
    grant = begin(second, clock, "b", "c", None)
    assert grant.others == {0: lease}
    assert grant.lease is not None
    assert not second.ended([lease])
    first.exchange([], [End(lease)])
    assert list(second.ended([lease])) == [lease]
    clock.now += 0.1
    assert begin(second, clock, "b").lease is not None


def test_a_request_of_which_nothing_is_free_has_no_lease(coordinators, clock):
    first, second = coordinators
    lease = begin(first, clock, "a").lease
    grant = begin(second, clock, "a")
    assert (grant.lease, grant.others) == (None, {0: lease})


def test_a_text_that_another_process_completed_since_the_look_up_is_looked_up_again(coordinators, clock):
    first, second = coordinators
    looked_up_at = clock()
    first.exchange([], [End(begin(first, clock, "a").lease)])
    assert list(begin(second, clock, "b", "a", since=looked_up_at).recheck) == [1]
    clock.now += 0.1
    assert not begin(second, clock, "a").recheck


def test_after_a_lease_is_forgotten_an_older_look_up_is_repeated(coordinators, clock):
    first, second = coordinators
    begin(second, clock, "z")
    looked_up_at = clock()
    first.exchange([], [End(begin(first, clock, "a").lease)])
    clock.now += 6
    first.exchange([], [])
    assert list(begin(second, clock, "x", None, "y", since=looked_up_at).recheck) == [0, 2]
    assert not begin(second, clock, "x", None, "y").recheck


def test_a_lone_process_never_looks_up_again(folder, clock):
    other = LocalCoordinator(folder, clock)
    other.exchange([], [End(begin(other, clock, "a").lease)])
    other.close()
    clock.now += 1
    lone = LocalCoordinator(folder, clock)
    looked_up_at = clock()
    for _ in range(20):
        grant = begin(lone, clock, "a", "b", since=looked_up_at)
        assert not grant.recheck
        lone.exchange([], [End(grant.lease)])
        clock.now += 1
    lone.close()


def test_many_leases_of_others_are_found_after_the_forgotten_ones_are_dropped(coordinators, clock, monkeypatch):
    monkeypatch.setattr("embedkit_core.coordination.local.mirror._SMALLEST_LIMIT", 50)
    first, second = coordinators
    for one in coordinators:
        one.close()
    first, second = (LocalCoordinator(first._folder, clock) for _ in range(2))
    for step in range(20):
        lease = begin(first, clock, *(f"{step} {n}" for n in range(10))).lease
        assert begin(second, clock, f"{step} 5").others == {0: lease}
        first.exchange([], [End(lease)])
        clock.now += 1
    assert second._mirror._size <= 120
    first.close()
    second.close()


def test_an_end_that_is_repeated_or_of_another_process_changes_nothing(coordinators, clock):
    first, second = coordinators
    lease = begin(first, clock, "a", reservations=[reservation(100)]).lease
    end = End(lease, clock(), 10, bills={"ingest": Bill(Amount(90, 10))})
    second.exchange([], [end])
    assert first.budgets()[0].spent == Amount()
    first.exchange([], [end, end])
    first.exchange([], [end])
    (budget,) = first.budgets()
    assert (budget.spent, budget.held) == (Amount(90, 10), Amount())


# Limits and pauses


def test_the_limits_of_a_model_apply_to_all_processes(coordinators, clock):
    limits = RateSettings(20, None)
    granted = [begin(one, clock, None, limits=limits).lease for one in coordinators * 15]
    assert sum(lease is not None for lease in granted) <= 19  # one is kept for queries
    assert begin(coordinators[0], clock, None, limits=limits, is_query=True).lease is not None


def test_a_pause_is_kept_by_all_processes(coordinators, clock):
    first, second = coordinators
    lease = begin(first, clock, "a").lease
    first.exchange([], [End(lease, clock(), pause=30)])
    grant = begin(second, clock, "b")
    assert (grant.lease, grant.paused) == (None, 30)
    clock.now += 29
    assert begin(second, clock, "b").paused == 1


def test_accounts_with_different_keys_have_different_limits(coordinators, clock):
    first, second = coordinators
    first.exchange([], [End(begin(first, clock, "a").lease, clock(), pause=30)])
    other = request("b", clock=clock)
    (grant,) = second.exchange(
        [Begin(ProviderAccount("fake", "", Secret("other")), other.model, other.keys, [1], clock())], []
    )
    assert not grant.paused


def test_the_windows_of_a_model_are_forgotten_when_they_are_not_used(coordinators, clock, folder):
    begin(coordinators[0], clock, "a", limits=RateSettings(20, None))
    clock.now += 121
    coordinators[0].exchange([], [])
    with coordinators[0]._resources.guard.lock:
        assert coordinators[0]._store.execute("SELECT count(*) FROM Models").fetchone() == (0,)


# Budgets


def test_a_named_budget_is_shared(coordinators, clock):
    first, second = coordinators
    first.open_budget("ingest", LIMIT)
    second.open_budget("ingest", LIMIT)
    lease = begin(first, clock, "a", reservations=[reservation(600)]).lease
    grant = begin(second, clock, "b", "c", reservations=[reservation(600, 400)])
    assert list(grant.unfunded) == [0]
    assert grant.unfunded[0].held == Amount(600, 10)
    first.exchange([], [End(lease, clock(), 5, bills={"ingest": Bill(Amount(100, 5))})])
    second.exchange([], [End(grant.lease, bills={"ingest": Bill(lost=Amount(400, 10))})])
    (budget,) = second.budgets()
    assert budget == BudgetStatus("ingest", LIMIT, Amount(100, 5), Amount(400, 10))


def test_another_limit_for_an_existing_budget_is_refused(coordinators):
    first, second = coordinators
    first.open_budget("ingest", BudgetLimit(5 * 10**9, None))
    with pytest.raises(ConfigurationError, match=r"'ingest' exists with a budget of \$5 \(got \$6 and 1,000 tokens\)"):
        second.open_budget("ingest", BudgetLimit(6 * 10**9, 1000))


def test_a_reset_budget_takes_the_next_limit_and_keeps_what_is_held(coordinators, clock):
    first, second = coordinators
    first.open_budget("ingest", LIMIT)
    lease = begin(first, clock, "a", reservations=[reservation(600)]).lease
    assert second.reset_budget("ingest").held == Amount(600, 10)
    assert first.budgets()[0].limit == BudgetLimit()
    first.open_budget("ingest", BudgetLimit(700, None))
    assert begin(second, clock, "b", reservations=[reservation(200)]).unfunded
    first.exchange([], [End(lease, clock(), 5, bills={"ingest": Bill(Amount(500, 5))})])
    assert first.budgets()[0].spent == Amount(500, 5)
    second.reset_budget("ingest")
    assert first.budgets() == []
    assert first.reset_budget("ingest") is None


def test_a_limit_beyond_the_integers_of_the_file_is_no_limit(coordinators):
    for one in coordinators:
        one.open_budget("ingest", BudgetLimit(10**30, 10**30))


def test_budgets_of_a_folder_without_coordination_are_none_and_create_nothing(folder):
    coordinator = LocalCoordinator(folder)
    assert coordinator.budgets() == []
    assert coordinator.reset_budget("ingest") is None
    assert not folder.parent.exists()


# Owners


def test_a_stopped_process_loses_its_claims_and_settles_late(coordinators, clock):
    first, second = coordinators
    lease = begin(first, clock, "a", reservations=[reservation(600)]).lease
    second.exchange([], [])
    clock.now += 9
    first.renew()
    clock.now += 9
    assert not second.ended([lease])
    clock.now += 2
    assert list(second.ended([lease])) == [lease]
    assert second.budgets()[0].lost == Amount(600, 10)
    looked_up_at = clock()
    assert begin(second, clock, "b", since=looked_up_at).lease is not None
    clock.now += 20
    first.exchange([], [End(lease, clock(), 5, bills={"ingest": Bill(Amount(500, 5))})])
    (budget,) = second.budgets()
    assert budget == BudgetStatus("ingest", LIMIT, Amount(500, 5))
    assert list(begin(second, clock, "a", since=looked_up_at).recheck) == [0]


def test_a_late_settlement_takes_nothing_from_a_budget_that_was_reset(coordinators, clock):
    first, second = coordinators
    lease = begin(first, clock, "a", reservations=[reservation(600), reservation(600, name="other")]).lease
    clock.now += 11
    second.reset_budget("ingest")
    second.open_budget("ingest", LIMIT)
    first.exchange([], [End(lease, clock(), 5, bills={"ingest": Bill(Amount(500, 5)), "other": Bill(Amount(500, 5))})])
    ingest, other = second.budgets()
    assert (ingest.spent, ingest.lost) == (Amount(500, 5), Amount())
    assert (other.spent, other.lost) == (Amount(500, 5), Amount())


def test_the_number_of_processes_is_that_of_those_that_were_active_lately(coordinators, clock):
    first, second = coordinators
    assert begin(first, clock, "a").processes == 1
    assert begin(second, clock, "b").processes == 2
    clock.now += 11
    assert begin(first, clock, "c").processes == 1


def test_an_idle_process_keeps_no_claims_of_the_past_when_it_returns(coordinators, clock):
    first, second = coordinators
    begin(second, clock, "z")
    clock.now += 60
    lease = begin(second, clock, "a").lease
    assert begin(first, clock, "a").others == {0: lease}


def test_close_leaves_nothing_but_the_database(folder, clock):
    coordinator = LocalCoordinator(folder, clock)
    lease = begin(coordinator, clock, "a").lease
    coordinator.close()
    assert len(lock_files(folder)) == 1, "it has a lease"
    coordinator.exchange([], [End(lease)])
    coordinator.close()
    assert lock_files(folder) == []
    assert {path.name for path in folder.iterdir()} == {"coordination.db", "owners"}
    assert begin(coordinator, clock, "a").processes == 1
    coordinator.close()


def test_a_coordinator_that_is_gone_holds_no_claims(folder, clock):
    gone, other = (LocalCoordinator(folder, clock) for _ in range(2))
    lease = begin(gone, clock, "a").lease
    begin(other, clock, "b")
    del gone
    assert list(other.ended([lease])) == [lease]
    assert len(lock_files(folder)) == 1
    other.close()


def test_the_lock_file_of_a_process_that_died_before_it_registered_is_deleted(folder, clock, coordinators):
    begin(coordinators[0], clock, "a")
    (folder / "owners" / "0123.lock").touch()
    begin(coordinators[1], clock, "b")
    assert len(lock_files(folder)) == 2


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
def test_only_the_user_may_read_the_files(folder, clock, coordinators):
    begin(coordinators[0], clock, "a")
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [folder, *folder.rglob("*")]}
    assert all(not mode & 0o077 for mode in modes.values()), modes


def test_nothing_is_opened_before_the_first_use(folder):
    coordinator = LocalCoordinator(folder)
    coordinator.renew()
    assert not coordinator.ended([])
    coordinator.close()
    assert str(folder) in repr(coordinator)


def test_no_key_is_stored(folder, coordinators, clock):
    secret = "sk-a-very-secret-key"
    (grant,) = coordinators[0].exchange(
        [Begin(ProviderAccount("fake", "", Secret(secret)), "fake:m", [b"k" * 32], [1], clock())], []
    )
    assert grant.lease is not None
    for path in folder.rglob("*"):
        if path.is_file():
            assert secret.encode() not in path.read_bytes()


# Time


def test_after_a_reboot_limits_and_leases_are_gone_and_budgets_are_kept(folder, clock):
    before = LocalCoordinator(folder, clock)
    lease = begin(before, clock, "a", limits=RateSettings(2, None), reservations=[reservation(600)]).lease
    before.exchange([], [End(begin(before, clock, "b").lease, clock(), pause=100)])
    store = before._store
    with store.transaction(durable=False):
        store.execute("UPDATE Meta SET value = 'another' WHERE name = 'boot'")
    clock.now = 5.0
    after = LocalCoordinator(folder, clock)
    grant = begin(after, clock, "a", limits=RateSettings(2, None))
    assert (grant.lease is not None, grant.wait, grant.paused, grant.processes) == (True, 0.0, 0.0, 1)
    assert after.budgets()[0].lost == Amount(600, 10)
    assert list(after.ended([lease])) == [lease]
    after.close()
    before.close()


def test_without_a_boot_identifier_a_time_in_the_future_shows_a_reboot(folder, clock, monkeypatch):
    monkeypatch.setattr("embedkit_core.coordination.local.coordinator.boot_id", lambda: "")
    before = LocalCoordinator(folder, clock)
    before.exchange([], [End(begin(before, clock, "b").lease, clock(), pause=100)])
    before.close()
    clock.now = 5.0
    after = LocalCoordinator(folder, clock)
    assert not begin(after, clock, "a").paused
    after.close()


def test_a_jump_of_the_wall_clock_has_no_effect(folder, monkeypatch):
    coordinators = [LocalCoordinator(folder) for _ in range(2)]
    lease = begin(coordinators[0], time.monotonic, "a").lease
    wall_clock = time.time
    for jump in (1e6, -1e6):
        monkeypatch.setattr(time, "time", lambda jump=jump: wall_clock() + jump)
        assert begin(coordinators[1], time.monotonic, "a").others == {0: lease}
    for one in coordinators:
        one.close()


def test_a_lock_file_is_dead_once_its_owner_releases_it(folder):
    folder.mkdir(parents=True)
    lock = owners.OwnerLock(folder)
    assert not owners.remove_if_dead(folder, lock.name)
    assert lock.is_held
    lock.release()
    assert owners.remove_if_dead(folder, lock.name)
    assert owners.names(folder) == []
