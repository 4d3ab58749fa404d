"""The cache in a Redis database, on a real server."""

import hashlib
import logging
import os
import time
from contextlib import closing

import numpy as np
import pytest
from support.slow_network import SlowNetwork

from embedkit_core.cache.redis.address import PASSWORD, USERNAME
from embedkit_core.cache.redis.cache import KEY_PREFIX, MAX_BYTES_PER_TRIP, RedisCache, open_address
from embedkit_core.cache.redis.connection import ANSWER_SECONDS, CONNECT_SECONDS, RedisConnection, connection_of
from embedkit_core.common.errors import CoordinationError
from embedkit_core.common.types import Entry
from embedkit_core.coordination.redis.coordinator import RedisCoordinator

RIGHTS = "+mget +set +ping +select"


def rows(n, width=8, start=0):
    vectors = np.random.default_rng(start).standard_normal((n, width)).astype(np.float32)
    return [(hashlib.sha256(str(start + i).encode()).digest(), Entry(vector)) for i, vector in enumerate(vectors)]


def keys(items):
    return [key for key, _ in items]


def wait_for(condition, seconds=20):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.fixture
def cache(redis):
    cache = open_address(redis.address)
    yield cache
    cache.close()


def trips(redis, command):
    with redis.client() as client:
        return client.info("commandstats").get(f"cmdstat_{command}", {"calls": 0})["calls"]


def test_a_read_takes_a_trip_for_each_500_keys(redis, cache):
    cache.set_many(rows(1200))
    before = trips(redis, "mget")
    assert [len(block) for block in cache.get_blocks(keys(rows(1200)))] == [500, 500, 200]
    assert trips(redis, "mget") - before == 3


def test_a_read_of_wide_vectors_takes_trips_of_at_most_four_megabytes(redis, cache):
    items = rows(1000, 8192)
    cache.set_many(items)
    cache.get_many(keys(items[:1]))
    per_trip = MAX_BYTES_PER_TRIP // (8192 * 4)
    assert max(len(block) for block in cache.get_blocks(keys(items))) == per_trip < 500
    assert len(cache.get_many(keys(items))) == 1000


@pytest.mark.parametrize(("query", "seconds"), [("", -1), ("?ttl_days=30", 30 * 86400), ("?ttl_days=0.5", 43200)])
def test_a_vector_is_kept_for_ttl_days(redis, query, seconds):
    cache = open_address(redis.address + query)
    items = rows(2)
    cache.set_many(items)
    with redis.client() as client:
        assert {client.ttl(KEY_PREFIX + key) for key in keys(items)} <= {seconds, seconds - 1}
    cache.close()


def test_a_damaged_or_foreign_value_is_a_miss_and_counted(redis, cache):
    (first, _), (second, _), (third, _), (fourth, other) = items = rows(4)
    cache.set_many(items)
    with redis.client() as client:
        client.set(KEY_PREFIX + first, b"no vector")
        client.set(KEY_PREFIX + second, client.get(KEY_PREFIX + third))
        client.delete(KEY_PREFIX + third)
        client.lpush(KEY_PREFIX + third, b"a list")
    found = cache.get_many(keys(items))
    assert list(found) == [fourth]
    assert np.array_equal(found[fourth].vector, other.vector)
    assert cache.stats.damaged == 2


def test_a_server_that_hangs_delays_once_and_is_used_again_when_it_answers(new_redis, caplog):
    server, items = new_redis(), rows(3)
    cache = open_address(server.address)
    cache.set_many(items)
    server.suspend()
    caplog.set_level(logging.INFO, "embedkit_core")
    began = time.monotonic()
    assert cache.get_many(keys(items)) == {}
    assert time.monotonic() - began < 2 * (CONNECT_SECONDS + ANSWER_SECONDS)
    began = time.monotonic()
    for _ in range(1000):
        assert cache.get_many(keys(items)) == {}
        cache.set_many(items)
    assert time.monotonic() - began < 2 * ANSWER_SECONDS
    assert cache.stats.write_failures == 3000
    server.resume()
    wait_for(lambda: len(cache.get_many(keys(items))) == 3)
    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) == 2
    assert f"{server.address} cannot be used: it did not answer within" in texts[0]
    assert texts[1].endswith("answers again.")
    cache.close()


def test_closing_does_not_make_the_next_call_wait_for_a_server_that_hangs(new_redis, caplog):
    server, items = new_redis(), rows(1)
    first, second = open_address(server.address), open_address(server.address)
    server.suspend()
    assert first.get_many(keys(items)) == {}
    began = time.monotonic()
    for _ in range(20):
        first.close()
        assert second.get_many(keys(items)) == {}
    assert time.monotonic() - began < 2 * ANSWER_SECONDS
    assert len(caplog.records) == 1
    server.resume()
    wait_for(lambda: first.connection._failure is None)
    second.close()


def test_a_server_that_answers_pings_only_is_tried_again_less_and_less_often(new_redis, caplog):
    server, items = new_redis(), rows(1)
    cache = open_address(server.address)
    with server.client() as client:
        client.client_pause(60_000, all=False)  # no command that writes is answered, as in a failover
    pauses = []
    for _ in range(3):
        cache.set_many(items)
        pauses.append(cache.connection._pause)
        wait_for(lambda: cache.connection._failure is None)
    assert pauses == [0.25, 0.5, 1.0]
    assert len(caplog.records) == 1
    cache.close()


def test_a_log_handler_that_raises_does_not_keep_a_server_from_being_used_again(new_redis, monkeypatch):
    server, items = new_redis(), rows(1)
    cache = open_address(server.address)
    cache.set_many(items)
    server.kill()
    handler = logging.Handler()
    handler.emit = lambda record: 1 / 0
    monkeypatch.setattr(logging.getLogger("embedkit_core"), "handlers", [handler])
    assert cache.get_many(keys(items)) == {}
    server.start()
    wait_for(lambda: cache.connection._failure is None)
    cache.close()


def test_a_server_that_refuses_pings_is_used_again(new_redis, monkeypatch):
    server = new_redis("--user", f"app on >pass-Z9 ~embedkit:* {RIGHTS} -ping", "--user", "default off")
    monkeypatch.setenv(USERNAME, "app")
    monkeypatch.setenv(PASSWORD, "pass-Z9")
    cache = open_address(server.address)
    server.suspend()
    assert cache.get_many(keys(rows(1))) == {}
    server.resume()
    wait_for(lambda: cache.connection._failure is None)
    cache.close()


def test_a_server_that_restarts_is_used_again(new_redis, caplog):
    server, items = new_redis(), rows(3)
    cache = open_address(server.address)
    cache.set_many(items)
    server.kill()
    assert cache.get_many(keys(items)) == {}
    server.start()
    wait_for(lambda: cache.connection.run(lambda client: client.ping()) if not cache.connection._failure else False)
    cache.set_many(items)
    assert len(cache.get_many(keys(items))) == 3
    assert "cannot be reached (ConnectionRefusedError)" in caplog.text
    cache.close()


def test_a_connection_that_the_server_has_closed_is_replaced_without_a_miss(redis, cache, caplog):
    items = rows(3)
    cache.set_many(items)
    for _ in range(3):
        with redis.client() as client:
            client.client_kill_filter(_type="normal", skipme=True)
        assert len(cache.get_many(keys(items))) == 3
    assert not caplog.records


def test_a_database_that_the_server_does_not_have_is_said_once(redis, caplog):
    with closing(open_address(redis.address.removesuffix("0") + "99")) as cache:
        assert cache.get_many(keys(rows(1))) == {}
        cache.set_many(rows(1))
    [record] = caplog.records
    assert "it has no database of this number. Use a smaller one" in record.getMessage()


def test_a_full_server_keeps_serving_hits_and_says_what_to_do(new_redis, caplog):
    server = new_redis("--maxmemory", "6mb", "--maxmemory-policy", "noeviction")
    cache = open_address(server.address)
    kept = rows(10)
    cache.set_many(kept)
    cache.set_many(rows(2000, 1536, start=100))
    cache.set_many(rows(2000, 1536, start=5000))
    assert len(cache.get_many(keys(kept))) == 10
    assert cache.stats.write_failures > 0
    [record] = caplog.records
    assert "its memory is full. Raise maxmemory" in record.getMessage()
    cache.close()


def test_an_evicting_server_forgets_vectors_and_gives_no_wrong_one(new_redis):
    server = new_redis("--maxmemory", "8mb", "--maxmemory-policy", "allkeys-lru")
    cache = open_address(server.address)
    items = rows(2000, 1536)
    cache.set_many(items)
    found = cache.get_many(keys(items))
    assert 0 < len(found) < 2000
    assert all(np.array_equal(found[key].vector, entry.vector) for key, entry in items if key in found)
    assert cache.stats.write_failures == 0
    cache.close()


def test_a_read_only_replica_serves_hits_and_says_where_to_write(new_redis, caplog):
    primary = new_redis()
    items = rows(3)
    with closing(open_address(primary.address)) as cache:
        cache.set_many(items)
    replica = new_redis("--replicaof", f"127.0.0.1 {primary.port}")
    with closing(open_address(replica.address)) as cache:
        wait_for(lambda: len(cache.get_many(keys(items))) == 3)
        caplog.clear()
        cache.set_many(rows(1, start=50))
    assert cache.stats.write_failures == 1
    assert "it is a read-only replica. Use the address of the primary" in caplog.text


@pytest.mark.parametrize("use", ["write", "coordinate"])
def test_a_primary_that_becomes_a_replica_is_left_for_the_one_at_its_address(new_redis, use):
    old, new, items = new_redis(), new_redis(), rows(1)
    with SlowNetwork(old.port, 0.0) as network, closing(open_address(f"redis://127.0.0.1:{network.port}/0")) as cache:
        coordinator = RedisCoordinator(cache.connection)
        assert cache.get_many(keys(items)) == {}
        network.target = new.port
        with old.client() as client:
            client.replicaof("127.0.0.1", new.port)
        if use == "write":
            cache.set_many(items)
        else:
            with pytest.raises(CoordinationError, match="it is a read-only replica"):
                coordinator.exchange([], [])
        cache.set_many(items)
        coordinator.exchange([], [])
        with new.client() as client:
            assert client.exists(KEY_PREFIX + keys(items)[0])


def test_user_and_password_are_read_from_the_environment(new_redis, monkeypatch, caplog):
    server = new_redis("--user", f"app on >hunter2-Z9 ~embedkit:* {RIGHTS}", "--user", "default off")
    items = rows(2)
    with closing(open_address(server.address)) as cache:
        cache.set_many(items)
        cache.connection._failure = None  # instead of waiting until it is tried again
    assert "it refuses the user or the password. Set RAG_EMBEDKIT_REDIS_USERNAME" in caplog.text
    for password, expected in (("wrong-Z9", 0), ("hunter2-Z9", 2)):
        monkeypatch.setenv(USERNAME, "app")
        monkeypatch.setenv(PASSWORD, password)
        with closing(open_address(server.address)) as cache:
            cache.set_many(items)
            assert len(cache.get_many(keys(items))) == expected
            cache.connection._failure = None  # instead of waiting until it is tried again
            assert "Z9" not in repr(vars(cache)) + repr(vars(cache.connection))
    assert "Z9" not in caplog.text


def test_a_user_without_a_right_is_told_which_one(new_redis, monkeypatch, caplog):
    server = new_redis("--user", "reader on >pass-Z9 ~embedkit:* +mget +ping +select", "--user", "default off")
    monkeypatch.setenv(USERNAME, "reader")
    monkeypatch.setenv(PASSWORD, "pass-Z9")
    with closing(open_address(server.address)) as cache:
        cache.set_many(rows(2))
        cache.get_many(keys(rows(2)))
    [record] = caplog.records
    assert "its user has no right to use the command set" in record.getMessage()


def test_a_client_of_the_users_gives_the_address_and_keeps_its_own_connections(redis):
    with redis.client(decode_responses=True, socket_timeout=600, protocol=3) as client:
        connection = connection_of(client, "cache")
        assert connection is connection_of(client, "cache")
        assert connection.name == redis.address
        cache = RedisCache(connection)
        items = rows(3)
        cache.set_many(items)
        assert len(cache.get_many(keys(items))) == 3
        cache.close()
        assert client.ping()
        [used] = {kwargs["socket_timeout"] for kwargs in [connection._make_pool().connection_kwargs]}
        assert used == ANSWER_SECONDS


def test_a_forked_child_uses_connections_of_its_own(redis, cache):
    items = rows(50)
    cache.set_many(items)
    assert len(cache.get_many(keys(items))) == 50
    child = os.fork()
    if child == 0:
        good = all(len(cache.get_many(keys(items))) == 50 for _ in range(50))
        os._exit(0 if good else 1)
    for _ in range(50):
        assert len(cache.get_many(keys(items))) == 50
    assert os.waitpid(child, 0)[1] == 0


def test_an_idle_connection_is_replaced_before_its_next_use(redis, cache):
    cache.set_many(rows(1))
    with redis.client() as client:
        before = client.info("stats")["total_connections_received"]
        cache.connection._used_at -= 1000
        assert len(cache.get_many(keys(rows(1)))) == 1
        assert client.info("stats")["total_connections_received"] == before + 1


def test_a_connection_that_is_not_used_any_more_is_collected_while_its_server_is_down(new_redis):
    import gc
    import threading
    import weakref

    server = new_redis()
    server.kill()
    cache = open_address(server.address)
    cache.get_many(keys(rows(1)))
    reference = weakref.ref(cache.connection)
    assert isinstance(reference(), RedisConnection)
    del cache
    gc.collect()
    wait_for(lambda: reference() is None)
    wait_for(lambda: "embedkit-redis-probe" not in {thread.name for thread in threading.enumerate()})
