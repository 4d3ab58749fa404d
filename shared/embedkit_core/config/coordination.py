"""Coordination of an embedder with other processes, from its arguments. Nothing is opened."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias
from weakref import WeakSet

from embedkit_core.cache.access import OpenCache
from embedkit_core.cache.urls import scheme_of
from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.fork_safety import import_module
from embedkit_core.common.redis_clients import RedisClient, is_redis_client
from embedkit_core.common.validation import check_name
from embedkit_core.coordination.opening import (
    Coordination,
    CoordinatorHandle,
    coordinator_of_folder,
    coordinator_of_redis,
    handle_of,
)
from embedkit_core.coordination.port import Coordinator, ProviderAccount
from embedkit_core.costs.budget import Budget
from embedkit_core.providers.base import Provider

if TYPE_CHECKING:
    from embedkit_core.cache.redis.connection import RedisConnection

CoordinationArgument: TypeAlias = Literal[False] | str | RedisClient | Coordinator | None
REDIS_SCHEMES = frozenset({"redis", "rediss"})
logger = logging.getLogger("embedkit_core.coordination")

_logged: WeakSet[CoordinatorHandle] = WeakSet()  # coordinators whose processes share no cache


def check_coordination(coordination: object) -> None:
    """Check that a `coordination` argument is None, False, an address, a client or a coordinator.

    Raises:
        ConfigurationError: It is none of these. The message has no value, since an address may have a password.
    """
    if coordination is None or coordination is False or _is_coordinator(coordination):
        return
    if scheme_of(coordination) in REDIS_SCHEMES or is_redis_client("coordination", coordination):
        return
    raise ConfigurationError(
        "coordination: must be None (the processes that share the cache), False (off), an address (redis:// or "
        "rediss://), a redis.Redis, or an object with the methods of Coordinator "
        f"(got {coordination if coordination is True else type(coordination).__name__})."
    )


def _is_coordinator(coordination: object) -> bool:
    try:
        return isinstance(coordination, Coordinator) and not isinstance(coordination, type)
    except Exception:  # an attribute of a user's object may raise anything
        return False


def make_coordination(
    coordination: object, account: str | None, provider: Provider, caches: Sequence[OpenCache]
) -> Coordination | None:
    """Return the coordination of an embedder's requests. None if there is none.

    Args:
        coordination: The embedder's argument.
        account: The user's name for the provider's account.
        provider: The provider.
        caches: The caches of the embedder.

    Raises:
        ConfigurationError: `coordination` or `account` is not valid.
    """
    check_coordination(coordination)
    if account is not None:
        check_name("account", account)
    if coordination is False:
        return None
    handle, has_claims = _handle_and_claims(coordination, caches)
    if handle is None:
        return None
    return Coordination(handle, make_account(provider, account), has_claims)


def make_account(provider: Provider, name: str | None) -> ProviderAccount:
    """Return the provider's account that requests are sent on; `name` is the user's name for it."""
    return ProviderAccount(provider.name, provider.endpoint, provider.secret, name)


def _handle_and_claims(coordination: object, caches: Sequence[OpenCache]) -> tuple[CoordinatorHandle | None, bool]:
    """Return the coordinator, and whether its processes share a cache."""
    if isinstance(coordination, Coordinator):
        return handle_of(coordination), True
    folders = [folder for cache in caches if (folder := cache.folder) is not None]
    if coordination is None:
        connection = next((found for cache in caches if (found := cache.redis_connection) is not None), None)
        if connection is None:
            return (coordinator_of_folder(folders[0]) if folders else None), True
        return coordinator_of_redis(connection), True
    handle = coordinator_of_redis(redis_connection(coordination, "coordination"))
    has_claims = not caches or len(folders) < len(caches)
    if not has_claims and handle not in _logged:
        _logged.add(handle)
        logger.warning(
            "Machines that coordinate through %s share no cache, so each pays for its texts. Pass a cache that they "
            "share, such as cache=['folder', 'redis://host:6379/0'].",
            handle,
        )
    return handle, has_claims


def redis_connection(value: object, argument: str) -> RedisConnection:
    """Return the connection to the Redis database that an address or a client names. It is opened on first use.

    Args:
        value: A redis:// or rediss:// address, or a redis.Redis.
        argument: The argument that it was passed as, for errors.

    Raises:
        ConfigurationError: The address or the client is not valid.
        MissingExtraError: The package redis is not installed.
    """
    connections = import_module("embedkit_core.cache.redis.connection")
    if not isinstance(value, str):
        of_client: RedisConnection = connections.connection_of(value, argument)
        return of_client
    address, _ = import_module("embedkit_core.cache.redis.address").parse(value, argument)
    to_address: RedisConnection = connections.connection_to(address)
    return to_address


def check_budget_is_shared(budget: Budget, coordination: Coordination | None) -> None:
    """Check that a named budget is used with a coordinator, and always with the same one.

    Raises:
        ConfigurationError: It is not.
    """
    if coordination is None:
        raise ConfigurationError(
            f"budget_name: needs a coordinator, which counts for all processes (got {budget.name!r} without one). Use "
            "a cache folder or a redis:// address without coordination=False, or pass coordination=."
        )
    if budget.coordinator not in (None, coordination.handle):
        raise ConfigurationError(
            f"budget_name: {budget.name!r} is used with two coordinators ({budget.coordinator} and "
            f"{coordination.handle}). Use one cache folder, or one coordination=, with it."
        )
