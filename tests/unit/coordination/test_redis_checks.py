"""Which Redis servers can coordinate processes."""

import pytest

from embedkit_core.coordination.redis.checks import defect, eviction, is_durable

GOOD = {"redis_version": "7.0.15", "cluster_enabled": 0, "role": "master", "maxmemory_policy": "noeviction"}


@pytest.mark.parametrize("version", ["6.2.0", "7.0.15", "7.2.4", "8.1", "255.255.255"])
def test_current_servers_can_coordinate(version):
    assert defect(GOOD | {"redis_version": version}) is None


@pytest.mark.parametrize(
    ("difference", "reason"),
    [
        ({"redis_version": "6.0.16"}, "it has version 6.0.16. Use Redis 6.2 or later, or Valkey"),
        ({"redis_version": "5.0"}, "it has version 5.0. Use Redis 6.2 or later, or Valkey"),
        ({"redis_version": ""}, "it has version unknown. Use Redis 6.2 or later, or Valkey"),
        ({"cluster_enabled": 1}, "it is a Redis Cluster, which is not supported. Use a server with one primary"),
        ({"role": "slave"}, "it is a read-only replica. Use the address of the primary"),
    ],
)
def test_the_reason_against_a_server_says_what_to_do(difference, reason):
    assert defect(GOOD | difference) == reason


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-lfu", "allkeys-random"])
def test_only_policies_for_all_keys_evict_keys_that_do_not_expire(policy):
    assert eviction(GOOD | {"maxmemory_policy": policy}) == policy
    assert eviction(GOOD | {"maxmemory_policy": policy.replace("allkeys", "volatile")}) is None
    assert eviction(GOOD) is None


def test_a_server_is_durable_if_it_logs_changes():
    assert is_durable({"aof_enabled": 1})
    assert not is_durable({"aof_enabled": 0})
