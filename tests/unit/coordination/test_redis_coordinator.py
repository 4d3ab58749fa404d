"""The coordinator in Redis when replies, the server's data or its memory are lost, and what it stores."""

import hashlib
import logging
import time

import pytest
from support.coordination import LIMIT, begin, request, reservation
from support.redis_coordinators import (
    ACTIVE,
    ATTEMPTS,
    BUDGETS,
    CLAIMS,
    FORGET,
    HOLDS,
    HORIZONS,
    LEASES,
    META,
    MODELS,
    OWNERS,
    USED,
    VirtualParticipant,
    connection,
    coordinator,
    stop,
)

from embedkit_core.common.errors import ConfigurationError, CoordinationError
from embedkit_core.common.types import RateSettings
from embedkit_core.coordination.port import LEASE_SECONDS, MODEL_SECONDS, Bill, End
from embedkit_core.coordination.redis.coordinator import RedisCoordinator
from embedkit_core.coordination.redis.scripts import KEYS, LATE_SECONDS, MAX_INTEGER
from embedkit_core.costs.amounts import Amount, BudgetLimit
from embedkit_core.testing.coordination_cases import API_KEY, claim, new_keys
from embedkit_core.testing.coordination_cases import request as suite_request

NOTHING = Amount()


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def participant(redis, clock):
    """A participant on a virtual clock."""
    return VirtualParticipant(redis, clock)


def ask(one: VirtualParticipant, *names, **settings):
    """Begin a request for texts that were looked up just now, by the participant's clock."""
    (grant,) = one.exchange([request(*names, clock=one.clock, **settings)], [])
    return grant


def granted(one: RedisCoordinator, *names, **settings):
    """Begin a request for texts that no other participant sends, as often as they must be looked up again.

    Times are converted to the server's with an error: a text that has just ended may be looked up once too often.
    """
    until = time.monotonic() + 20
    while (grant := begin(one, *names, **settings)).recheck:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert grant.lease is not None
    return grant


class LosesReply:
    """A connection that loses the reply of its next operation. It keeps the last script that it has sent."""

    def __init__(self, server):
        self.connection, self.name = connection(server), "lossy"
        self.is_lossy = False

    def run(self, operation):
        reply = self.connection.run(lambda client: operation(_Recorder(client, self)))
        if self.is_lossy:
            self.is_lossy = False
            raise CoordinationError("the reply was lost")
        return reply

    def close(self):
        self.connection.close()


class _Recorder:
    def __init__(self, client, recorder):
        self._client, self._recorder = client, recorder

    def __getattr__(self, name):
        return getattr(self._client, name)

    def evalsha(self, *arguments):
        self._recorder.sent = arguments
        return self._client.evalsha(*arguments)


def wait_for_answer(one: RedisCoordinator) -> None:
    until = time.monotonic() + 20
    while True:
        try:
            return one.exchange([], [])
        except CoordinationError:
            assert time.monotonic() < until
            time.sleep(0.02)


# Lost replies


@pytest.fixture
def lossy(redis):
    """A participant with a connection that loses a reply, after a first call."""
    one = RedisCoordinator(LosesReply(redis))
    one.open_budget("ingest", LIMIT)
    one.exchange([], [])
    return one


def lose(one: RedisCoordinator, *begins, ends=()):
    one._connection.is_lossy = True
    with pytest.raises(CoordinationError, match="the reply was lost"):
        one.exchange(begins, ends)


@pytest.mark.parametrize("next_call", ["exchange", "renew", "close"])
def test_what_a_lost_reply_has_granted_is_released_by_the_next_call(redis, lossy, next_call):
    two = coordinator(redis)
    kept = begin(lossy, "kept").lease
    limited = {"limits": RateSettings(1, None), "reservations": [reservation(700)]}
    lose(lossy, request("a", **limited))
    assert list(begin(two, "a").others) == [0]
    assert two.budgets()[0].held == Amount(700, 10)
    {"exchange": lambda: lossy.exchange([], []), "renew": lossy.renew, "close": lossy.close}[next_call]()
    assert two.budgets()[0].held == two.budgets()[0].lost == NOTHING
    assert granted(two, "a", **limited).wait == 0.0
    assert dict(begin(two, "kept").others) == {0: kept}


def test_an_end_whose_reply_was_lost_may_be_repeated(redis, lossy):
    lease = begin(lossy, "a", reservations=[reservation(700)]).lease
    end = End(lease, time.monotonic(), 10, bills={"ingest": Bill(Amount(600, 9))})
    lose(lossy, ends=[end])
    for _ in range(2):
        lossy.exchange([], [end])
    [status] = coordinator(redis).budgets()
    assert (status.spent, status.held) == (Amount(600, 9), NOTHING)


def test_a_call_that_arrives_after_a_later_one_changes_nothing(redis, lossy):
    begin(lossy, "kept")
    late = lossy._connection
    lose(lossy, request("a", reservations=[reservation(700)]))
    overtaken = late.sent
    lossy.renew()
    with redis.client() as client:
        assert client.evalsha(*overtaken) == [b"overtaken"]
        assert client.zcard(ACTIVE) == 1
    granted(coordinator(redis), "a")


def test_a_copy_of_a_process_becomes_another_owner(redis):
    one, two = coordinator(redis), coordinator(redis)
    begin(one, "a")
    two._owner, two._store = one._owner, one._store  # as a virtual machine that was copied
    assert list(begin(two, "a").others) == [0]
    assert two._owner != one._owner


def test_a_server_that_hangs_grants_nothing_for_long(new_redis):
    server = new_redis()
    one, two = coordinator(server), coordinator(server)
    one.exchange([], [])
    server.suspend()
    with pytest.raises(CoordinationError, match="did not answer within"):
        begin(one, "a")
    server.resume()
    wait_for_answer(one)
    granted(two, "a")


# Lost data


def test_after_a_restart_without_data_named_budgets_count_as_possibly_billed(new_redis, caplog):
    server = new_redis()
    one, two = coordinator(server), coordinator(server)
    lease = None
    for each in (one, two):
        each.open_budget("ingest", LIMIT)
        lease = begin(each, each._owner, reservations=[reservation(100)]).lease
    server.kill()
    server.start()
    fresh = coordinator(server)
    fresh.open_budget("ingest", LIMIT)  # it cannot know that there was one
    for each in (one, two):
        grant = begin(each, "b", reservations=[reservation(1)])
        assert grant.lease is None
        assert grant.unfunded[0].lost == Amount(1000, 0)
    two.exchange([], [End(lease, time.monotonic(), bills={"ingest": Bill(Amount(100, 10))})])
    lost = [record for record in caplog.records if "has lost its data" in record.getMessage()]
    assert len(lost) == 2  # one for each participant
    assert "rag-embedkit budget reset" in lost[0].getMessage()


def test_a_budget_that_was_reset_after_a_loss_is_not_restored_again(new_redis):
    server = new_redis()
    one, two = coordinator(server), coordinator(server)
    for each in (one, two):
        each.open_budget("ingest", LIMIT)
    with server.client() as client:
        client.flushall()
    one.exchange([], [])
    assert one.reset_budget("ingest").lost == Amount(1000, 0)
    assert one.budgets() == []
    assert one.reset_budget("ingest") is None
    two.exchange([], [])
    one.open_budget("ingest", BudgetLimit(2000, None))
    [status] = one.budgets()
    assert (status.limit, status.lost) == (BudgetLimit(2000, None), NOTHING)


def test_after_a_loss_of_data_texts_are_claimed_anew(redis):
    one, two = coordinator(redis), coordinator(redis)
    old = begin(one, "a").lease
    with redis.client() as client:
        client.flushall()
    new = begin(two, "a").lease
    one.exchange([], [End(old)])
    assert dict(begin(one, "a").others) == {0: new}


@pytest.mark.parametrize("next_call", ["renew", "close"])
def test_a_lease_whose_end_was_lost_in_a_crash_of_redis_delays_no_other_process(new_redis, next_call):
    server = new_redis("--save", "3600 1000")
    one, two = coordinator(server), coordinator(server)
    one.open_budget("ingest", LIMIT)
    ended, kept = begin(one, "a", reservations=[reservation(700)]).lease, begin(one, "b").lease
    with server.client() as client:
        client.save()
    one.exchange([], [End(ended)])
    server.kill()
    server.start()
    wait_for_answer(two)
    assert begin(two, "a").others == {0: ended}
    {"renew": one.renew, "close": one.close}[next_call]()
    granted(two, "a")
    assert begin(two, "b").others == {0: kept}
    assert two.budgets()[0].lost == Amount(700, 10)  # its bill may be lost too


def test_scripts_that_redis_has_lost_are_sent_again(redis):
    one = coordinator(redis)
    lease = begin(one, "a").lease
    with redis.client() as client:
        client.script_flush()
    one.exchange([], [End(lease)])
    granted(coordinator(redis), "a")


def test_another_version_is_an_error(redis):
    with redis.client() as client:
        client.hset(META, mapping={"version": "2", "store": "x"})
    for call in (lambda: begin(coordinator(redis), "a"), lambda: coordinator(redis).budgets()):
        with pytest.raises(CoordinationError, match=r"has coordination data of version 2, and .* uses version 1\. Use"):
            call()


def test_without_memory_nothing_is_changed_and_the_end_may_be_repeated(redis):
    one, two = coordinator(redis), coordinator(redis)
    one.open_budget("ingest", LIMIT)
    lease = begin(one, "a", reservations=[reservation(700)]).lease
    end = End(lease, time.monotonic(), bills={"ingest": Bill(Amount(600, 9))})
    with redis.client() as client:
        client.config_set("maxmemory", 1)
        before = [client.dump(key) for key in KEYS]
        try:
            with pytest.raises(CoordinationError, match="its memory is full"):
                one.exchange([request("b")], [end])
            assert [client.dump(key) for key in KEYS] == before
        finally:
            client.config_set("maxmemory", 0)
    one.exchange([], [end])
    [status] = two.budgets()
    assert (status.spent, status.held) == (Amount(600, 9), NOTHING)


# Numbers and times


def test_amounts_up_to_the_largest_integer_add_up_exactly(redis):
    one, largest = coordinator(redis), BudgetLimit(MAX_INTEGER, None)
    one.open_budget("ingest", BudgetLimit(2**70, None))  # stored as the largest
    one.open_budget("ingest", BudgetLimit(2**70, None))
    lease = begin(one, "a", reservations=[reservation(MAX_INTEGER - 1, limit=largest)]).lease
    assert begin(one, "b", reservations=[reservation(2, limit=largest)]).lease is None
    assert begin(one, "b", "c", reservations=[reservation(2**60, 2**60, limit=largest)]).lease is None
    one.exchange([], [End(lease, bills={"ingest": Bill(Amount(MAX_INTEGER - 2, 1))})])
    begin(one, "b", reservations=[reservation(1, limit=largest)])
    [status] = one.budgets()
    assert (status.limit, status.spent.nano_usd, status.held.nano_usd) == (largest, MAX_INTEGER - 2, 1)


def test_a_budget_exists_with_other_limits(redis):
    one = coordinator(redis)
    one.open_budget("ingest", LIMIT)
    with pytest.raises(ConfigurationError, match="exists with a budget of"):
        coordinator(redis).open_budget("ingest", BudgetLimit(1001, None))


def test_a_text_that_was_completed_since_its_look_up_is_rechecked_after_the_clock_was_set_back(redis):
    one, two = coordinator(redis), coordinator(redis)
    two.exchange([], [])
    offset, at = two._offset
    two._offset = offset + 60_000_000, at  # of the server's clock before it was set back
    asked = request("a")
    one.exchange([], [End(begin(one, "a").lease, time.monotonic())])
    (grant,) = two.exchange([asked], [])
    assert grant.recheck == [0]


def test_after_the_clock_was_set_back_texts_are_granted_and_limits_hold(participant, clock):
    two, limits = participant.process(), RateSettings(2, None)
    clock.now = 90_000.0
    ended = ask(participant, "a").lease
    participant.exchange([], [End(ended, clock.now)])
    clock.now += 6.0
    held = ask(participant, "b", limits=limits).lease
    ask(participant, "c", limits=limits)
    clock.now = 5000.0
    assert ask(two, "d").recheck == [0]  # once
    clock.now += 0.1
    assert ask(two, "d", limits=limits).wait > 50
    assert dict(ask(two, "b").others) == {0: held}
    participant.exchange([], [End(held)])
    clock.now += 61.0
    assert [ask(participant, name, limits=limits).lease is None for name in "fgh"] == [False, False, True]


# What is stored


def test_what_has_ended_is_forgotten(redis, participant, clock):
    two = participant.process()
    lease = ask(participant, "a", "b", limits=RateSettings(100, None)).lease
    looked_up_at = clock.now
    clock.now += 1.0
    participant.exchange([], [End(lease, clock.now)])
    clock.now += 6.0
    two.exchange([], [])
    with redis.client() as client:
        assert not client.exists(LEASES, ACTIVE, FORGET)
        assert client.hlen(CLAIMS) == 1  # for the encoding
        assert client.hlen(MODELS) == client.zcard(USED) == 1
    assert ask(two, "c", since=looked_up_at).recheck == [0]  # it may have been sent meanwhile
    assert ask(two, "c").lease is not None
    clock.now += MODEL_SECONDS + 1.0
    two.exchange([], [])
    with redis.client() as client:
        assert not client.exists(MODELS, USED)


def test_a_lost_lease_is_settled_within_a_day(redis, participant, clock):
    two = participant.process()
    participant.open_budget("ingest", LIMIT)
    leases = [ask(participant, name, reservations=[reservation(300)]).lease for name in "abc"]
    clock.now += LEASE_SECONDS
    assert list(two.ended(leases)) == leases
    clock.now += LEASE_SECONDS
    two.exchange([], [])
    with redis.client() as client:
        assert client.hlen(CLAIMS) == 1
    for seconds, lost, spent in [(3600.0, 600, 250), (LATE_SECONDS, 600, 250)]:
        clock.now += seconds
        two.exchange([], [])
        participant.exchange([], [End(leases.pop(), clock.now, bills={"ingest": Bill(Amount(250, 9))})])
        [status] = two.budgets()
        assert (status.lost.nano_usd, status.spent.nano_usd, status.held) == (lost, spent, NOTHING)


def test_a_text_whose_lost_lease_ends_late_must_be_looked_up_again(participant, clock):
    two = participant.process()
    lease = ask(participant, "a").lease
    for _ in range(2):  # until it is lost, and forgotten
        clock.now += LEASE_SECONDS
        two.exchange([], [])
    looked_up_at = clock.now
    clock.now += 1.0
    participant.exchange([], [End(lease, clock.now)])  # its rows are in the cache now
    clock.now += 1.0
    assert ask(two, "a", since=looked_up_at).recheck == [0]
    assert ask(two, "a").lease is not None


def test_a_reset_takes_what_is_lost_and_a_late_bill_does_not_take_it_again(redis):
    one, two = coordinator(redis), coordinator(redis)
    one.open_budget("ingest", LIMIT)
    late, later = (begin(one, name, reservations=[reservation(300)]).lease for name in "ab")
    stop(redis, one)
    assert two.reset_budget("ingest").lost == Amount(600, 20)
    two.open_budget("ingest", LIMIT)
    begin(two, "c", reservations=[reservation(100)])
    stop(redis, two)
    one.exchange([], [End(late, time.monotonic(), bills={"ingest": Bill(Amount(300, 10))}), End(later)])
    [status] = one.budgets()
    assert (status.lost, status.spent, status.held) == (Amount(100, 10), Amount(300, 10), NOTHING)


def test_a_reset_keeps_what_is_reserved(redis):
    one = coordinator(redis)
    one.open_budget("ingest", LIMIT)
    begin(one, "a", reservations=[reservation(300)])
    assert one.reset_budget("ingest").held == Amount(300, 10)
    [status] = one.budgets()
    assert (status.limit, status.held) == (BudgetLimit(), Amount(300, 10))
    assert one.reset_budget("another") is None


def test_many_leases_of_a_dead_owner_are_lost_in_several_calls(redis):
    one, two = coordinator(redis), coordinator(redis)
    leases = [grant.lease for grant in one.exchange([request(f"{n}") for n in range(250)], [])]
    stop(redis, one)
    two.ended([])
    assert list(two.ended(leases)) == leases


def test_what_a_participant_that_leaves_had_to_send_delays_no_other(redis):
    one, two, limits = coordinator(redis), coordinator(redis), RateSettings(None, 1000)
    one.exchange([], [End(begin(one, *[None] * 60, limits=limits).lease, time.monotonic())])
    assert begin(one, *[None] * 50, limits=limits, backlog_tokens=500).lease is None
    waiting = begin(two, *[None] * 30, limits=limits)
    assert (waiting.lease, waiting.processes) == (None, 2)
    one.close()
    after = begin(two, *[None] * 30, limits=limits)
    assert (after.wait, after.processes) == (0.0, 1)
    with redis.client() as client:
        assert client.zcard(OWNERS) == client.hlen(ATTEMPTS) == 1


def test_nothing_expires_and_nothing_secret_is_stored(redis):
    one, keys = coordinator(redis), new_keys(3)
    one.open_budget("ingest", LIMIT)
    claim(one, keys)
    one.exchange([suite_request(keys[:1], limits=RateSettings(9, 9))], [])
    stop(redis, one)
    begin(coordinator(redis), "a", reservations=[reservation(1)])
    one.hold("batch", "ingest", LIMIT, Amount(1, 1))
    secrets = [API_KEY.encode(), hashlib.sha256(API_KEY.encode()).digest(), *keys]
    with redis.client() as client:
        found = client.keys()
        assert {key.decode() for key in found} <= set(KEYS)
        names = {META, OWNERS, HORIZONS, LEASES, ACTIVE, FORGET, CLAIMS, MODELS, USED, BUDGETS, ATTEMPTS, HOLDS}
        assert names == set(KEYS)
        for key in found:
            assert client.ttl(key) == -1
            assert not any(secret in client.dump(key) for secret in secrets)
    assert repr(one) == f"RedisCoordinator({redis.address!r})"


# The server


def test_a_server_that_may_evict_is_refused_for_named_budgets_and_warned_about(new_redis, caplog):
    one = coordinator(new_redis("--maxmemory-policy", "allkeys-lru"))
    for _ in range(2):
        with pytest.raises(CoordinationError, match=r"may evict named budgets \(maxmemory-policy allkeys-lru\)\. Set"):
            one.open_budget("ingest", LIMIT)
        with pytest.raises(CoordinationError, match="may evict named budgets"):
            one.hold("batch", "ingest", LIMIT, Amount(1, 1))
    assert begin(one, "a").lease is not None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "may evict what processes coordinate by (maxmemory-policy allkeys-lru)" in caplog.text


@pytest.mark.parametrize(("appendonly", "warnings"), [("yes", 0), ("no", 1)])
def test_a_server_that_does_not_log_changes_is_warned_about_once(new_redis, caplog, appendonly, warnings):
    one = coordinator(new_redis("--appendonly", appendonly))
    begin(one, "a")
    assert not caplog.records
    for name in ("ingest", "another"):
        one.open_budget(name, LIMIT)
    assert len(caplog.records) == warnings


def test_a_missing_right_is_named(new_redis):
    server = new_redis()
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "default", "-info")
    with pytest.raises(CoordinationError, match="no right to use the command info"):
        begin(coordinator(server), "a")


def test_nothing_is_logged_about_keys_or_texts(redis, caplog):
    caplog.set_level(logging.DEBUG)
    one = coordinator(redis)
    one.exchange([], [End(begin(one, "secret-text").lease)])
    assert "secret" not in caplog.text
