"""What a Redis server must have to coordinate processes, and what it should have, from its INFO. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MIN_VERSION = (6, 2)


def defect(info: Mapping[str, Any]) -> str | None:
    """Return why a server cannot coordinate processes, and what to do. None if it can."""
    version = str(info.get("redis_version", ""))
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers < MIN_VERSION:
        return f"it has version {version or 'unknown'}. Use Redis 6.2 or later, or Valkey"
    if info.get("cluster_enabled"):
        return "it is a Redis Cluster, which is not supported. Use a server with one primary"
    if info.get("role") == "slave":
        return "it is a read-only replica. Use the address of the primary"
    return None


def eviction(info: Mapping[str, Any]) -> str | None:
    """Return the eviction policy if it may remove what the coordinator stores; else None."""
    policy = str(info.get("maxmemory_policy", ""))
    return policy if policy.startswith("allkeys-") else None


def is_durable(info: Mapping[str, Any]) -> bool:
    """Return True if what the server has acknowledged is on disk about a second later."""
    return bool(info.get("aof_enabled"))
