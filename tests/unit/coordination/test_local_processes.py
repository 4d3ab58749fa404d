"""The coordinator of one machine with real processes: killed, stopped, forked, and in other PID namespaces."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from support.coordination import LIMIT, begin, go_on, reservation, start, told

from embedkit_core.common.errors import CoordinationError
from embedkit_core.coordination.local import rows, store
from embedkit_core.costs.amounts import Amount, BudgetStatus

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the programs use signals and forks")


@pytest.fixture
def run(folder):
    """A function that starts a program on the folder; the program is killed at the end of the test."""
    with contextlib.ExitStack() as programs:

        def starting(body, *prefix):
            program = programs.enter_context(start(folder, body, *prefix))
            programs.callback(program.kill)
            return program

        yield starting


def kill(program):
    program.kill()
    program.wait()


def lock_files(folder):
    return {path.stem for path in (folder / "owners").iterdir()}


# Killed


def test_what_a_killed_process_holds_is_lost_at_once(run, coordinator, folder):
    program = run('tell(begin(coordinator, "a", reservations=[reservation(100)]).lease); input()')
    lease = int(told(program))
    begin(coordinator, "b")
    assert not coordinator.ended([lease])
    assert begin(coordinator, "a").others == {0: lease}
    looked_up_at = time.monotonic()
    kill(program)
    assert list(coordinator.ended([lease])) == [lease]
    assert coordinator.budgets()[0].lost == Amount(100, 10)
    assert list(begin(coordinator, "a", since=looked_up_at).recheck) == [0], "its row may be in the cache"
    assert begin(coordinator, "a").lease is not None
    assert len(lock_files(folder)) == 1


def test_a_request_finds_out_itself_that_the_owner_of_a_claim_is_dead(run, coordinator):
    program = run('tell(begin(coordinator, "a").lease); input()')
    told(program)
    begin(coordinator, "b")
    kill(program)
    assert not begin(coordinator, "a").others


def test_a_budget_that_waits_for_a_dead_process_counts_its_reservation_as_lost(run, coordinator):
    begin(coordinator, "z")
    program = run('tell(begin(coordinator, "a", reservations=[reservation(1000)]).lease); input()')
    told(program)
    kill(program)
    assert begin(coordinator, "b", reservations=[reservation(1)]).unfunded
    budget = begin(coordinator, "b", reservations=[reservation(1)]).unfunded[0]
    assert (budget.held, budget.lost) == (Amount(), Amount(1000, 10))


def test_a_process_that_is_killed_inside_a_transaction_leaves_nothing_of_it(run, coordinator):
    program = run("""
    coordinator.exchange([], [])
    store = coordinator._store
    with store.transaction(durable=True):
        transaction = coordinator._begin(store)
        rules.begin(transaction, request("b", reservations=[reservation(100)]))
        tell("inside")
        time.sleep(60)
    """)
    assert told(program) == "inside"
    kill(program)
    grant = begin(coordinator, "a", "b", reservations=[reservation(100, 100)])
    assert grant.lease is not None
    assert not grant.others
    assert coordinator.budgets()[0].held == Amount(200, 20)


def test_money_that_killed_processes_have_spent_is_never_missing(run, folder, coordinator):
    """Each of them is killed at another moment of its work."""
    acknowledged = 0
    for round_number in range(4):
        program = run("""
        while True:
            lease = begin(coordinator, None, reservations=[reservation(10, limit=BudgetLimit(10**6, None))]).lease
            coordinator.exchange([], [End(lease, time.monotonic(), 10, bills={"ingest": Bill(Amount(7, 10))})])
            tell(".")
        """)
        told(program)
        time.sleep(0.05 * round_number)
        program.send_signal(signal.SIGKILL)
        acknowledged += 1 + len(program.communicate()[0].split())
    coordinator.exchange([], [])
    (budget,) = coordinator.budgets()
    assert budget.held == Amount()
    assert 7 * acknowledged <= budget.spent.nano_usd <= 7 * (acknowledged + 4)
    assert budget.lost.nano_usd in range(0, 50, 10)
    with coordinator._resources.guard.lock:
        assert coordinator._store.execute("PRAGMA integrity_check").fetchone() == ("ok",)


# Stopped


def test_a_process_that_is_stopped_inside_a_transaction_is_an_error_of_others(run, coordinator, monkeypatch):
    monkeypatch.setattr(store, "BUSY_SECONDS", 0.3)
    begin(coordinator, "z")
    program = run("""
    coordinator.exchange([], [])
    store = coordinator._store
    with store.transaction(durable=False):
        tell("inside")
        os.kill(os.getpid(), signal.SIGSTOP)
    tell("committed")
    """)
    assert told(program) == "inside"
    with pytest.raises(CoordinationError, match=r"is locked by another process\. If a process is stopped, continue it"):
        begin(coordinator, "a")
    program.send_signal(signal.SIGCONT)
    assert told(program) == "committed"
    assert begin(coordinator, "a").lease is not None


def test_a_stopped_process_loses_its_claims_and_settles_when_it_goes_on(run, coordinator, monkeypatch):
    monkeypatch.setattr(rows, "LEASE_SECONDS", 0.5)
    program = run("""
    lease = begin(coordinator, "a", reservations=[reservation(100)]).lease
    tell(lease)
    input()
    coordinator.renew()
    coordinator.exchange([], [End(lease, time.monotonic(), 10, bills={"ingest": Bill(Amount(70, 7))})])
    tell("settled")
    """)
    lease = int(told(program))
    program.send_signal(signal.SIGSTOP)
    begin(coordinator, "b")
    until = time.monotonic() + 30
    while not coordinator.ended([lease]):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert coordinator.budgets()[0].lost == Amount(100, 10)
    assert begin(coordinator, "a").lease is not None
    program.send_signal(signal.SIGCONT)
    go_on(program)
    assert told(program) == "settled"
    assert coordinator.budgets() == [BudgetStatus("ingest", LIMIT, Amount(70, 7))]


# Forked, spawned, ended


def test_a_forked_child_is_another_process_and_keeps_no_claim_of_its_dead_parent(run, coordinator):
    program = run("""
    parent = begin(coordinator, "a").lease
    child = os.fork()
    if child == 0:
        grant = begin(coordinator, "a", "b")
        coordinator.exchange([], [End(parent)])  # not its own
        tell(parent, grant.lease, dict(grant.others) == {0: parent}, os.getpid())
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    time.sleep(60)
    """)
    parent, child, is_refused, child_pid = told(program).split()
    try:
        assert is_refused == "True"
        program.wait()
        begin(coordinator, "z")
        assert [str(lease) for lease in coordinator.ended([int(parent), int(child)])] == [parent]
        grant = begin(coordinator, "a", "b")
        assert grant.others == {1: int(child)}
    finally:
        os.kill(int(child_pid), signal.SIGKILL)


def test_a_forked_child_that_ends_takes_nothing_from_its_parent(run, coordinator):
    program = run("""
    lease = begin(coordinator, "a").lease
    for exits in (lambda: sys.exit(0), lambda: os._exit(0)):
        child = os.fork()
        if child == 0:
            coordinator.exchange([], [End(begin(coordinator, "b").lease)])
            coordinator.close()
            exits()
        os.waitpid(child, 0)
    tell(lease, begin(coordinator, "c").lease)
    input()
    """)
    leases = [int(lease) for lease in told(program).split()]
    begin(coordinator, "z")
    assert not coordinator.ended(leases)
    assert begin(coordinator, "a", "c").others == dict(enumerate(leases))


def test_forks_while_another_thread_coordinates_disturb_neither_process(run):
    program = run("""
    done = threading.Event()
    failures = []
    def work():
        while not done.is_set():
            try:
                coordinator.exchange([], [End(begin(coordinator, "a").lease)])
            except BaseException as error:
                failures.append(error)
    thread = threading.Thread(target=work)
    thread.start()
    codes = []
    for _ in range(5):
        time.sleep(0.02)
        child = os.fork()
        if child == 0:
            grant = begin(coordinator, "b", "c", since=time.monotonic() + 60)
            coordinator.exchange([], [End(grant.lease)])
            os._exit(0 if grant.lease and not grant.others else 1)
        codes.append(os.waitpid(child, 0)[1])
    done.set()
    thread.join()
    tell(codes, failures)
    """)
    assert told(program) == "[0, 0, 0, 0, 0] []"


def test_a_program_that_a_process_starts_does_not_keep_its_claims(run, coordinator):
    program = run("""
    lease = begin(coordinator, "a").lease
    child = subprocess.Popen(["sleep", "60"], close_fds=False, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL)
    tell(lease, child.pid)
    input()
    """)
    lease, child = map(int, told(program).split())
    kill(program)
    try:
        begin(coordinator, "z")
        assert list(coordinator.ended([lease])) == [lease]
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_process_that_ends_without_closing_leaves_a_file_that_the_next_one_deletes(run, folder, coordinator):
    program = run('coordinator.exchange([], [End(begin(coordinator, "a").lease)])')
    assert program.wait(timeout=60) == 0
    assert {path.name for path in folder.iterdir()} == {"coordination.db", "owners"}
    (left,) = lock_files(folder)
    assert begin(coordinator, "b").processes == 1
    assert left not in lock_files(folder)


def test_a_signal_handler_that_forks_during_a_transaction_repeats_it_in_both_processes(run):
    program = run("""
    coordinator.exchange([], [])
    codes = []
    for n in range(30):
        pids = []
        signal.signal(signal.SIGALRM, lambda signum, frame: pids.append(os.fork()))
        signal.setitimer(signal.ITIMER_REAL, 0.001 + 0.0002 * n)
        while not pids:
            coordinator.exchange([], [End(begin(coordinator, "a", since=time.monotonic() + 60).lease)])
        coordinator.exchange([], [End(begin(coordinator, "b", since=time.monotonic() + 60).lease)])
        if pids == [0]:
            os._exit(7)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1]))
    tell(set(codes))
    """)
    assert told(program) == "{7}"


# Other namespaces


def _can_unshare():
    if sys.platform != "linux" or shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "-r", "-p", "-f", "true"], capture_output=True).returncode == 0


@pytest.mark.skipif(not _can_unshare(), reason="PID namespaces are not permitted here")
def test_processes_that_do_not_see_each_other_coordinate(run, coordinator):
    """As in two containers with one volume."""
    program = run(
        'tell(begin(coordinator, "a").lease, os.getpid()); input()', "unshare", "-r", "-p", "-f", "--kill-child"
    )
    lease, pid = map(int, told(program).split())
    assert pid == 1
    assert begin(coordinator, "a", "b").others == {0: lease}
    assert not coordinator.ended([lease])
    kill(program)
    until = time.monotonic() + 30
    while not coordinator.ended([lease]):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert begin(coordinator, "a").lease is not None
