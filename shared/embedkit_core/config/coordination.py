"""Coordination of an embedder with other processes, from its arguments. Nothing is opened."""

from __future__ import annotations

from pathlib import Path

from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.validation import check_name
from embedkit_core.coordination.opening import Coordination, coordinator_of_folder, handle_of
from embedkit_core.coordination.port import Coordinator, ProviderAccount
from embedkit_core.costs.budget import Budget
from embedkit_core.providers.base import Provider


def check_coordination(coordination: object) -> None:
    """Check that a `coordination` argument is None, False or a coordinator.

    Raises:
        ConfigurationError: It is none of these. The message has no value, since an address may have a password.
    """
    if coordination is None or coordination is False or _is_coordinator(coordination):
        return
    raise ConfigurationError(
        "coordination: must be None (the processes that share the cache folder), False (off), or an object with the "
        f"methods of Coordinator (got {coordination if coordination is True else type(coordination).__name__})."
    )


def _is_coordinator(coordination: object) -> bool:
    try:
        return isinstance(coordination, Coordinator) and not isinstance(coordination, type)
    except Exception:  # an attribute of a user's object may raise anything
        return False


def make_coordination(
    coordination: object, account: str | None, provider: Provider, cache_folder: Path | None
) -> Coordination | None:
    """Return the coordination of an embedder's requests. None if there is none.

    Args:
        coordination: The embedder's argument.
        account: The user's name for the provider's account.
        provider: The provider.
        cache_folder: The folder of the built-in cache. None for another cache, or none.

    Raises:
        ConfigurationError: `coordination` or `account` is not valid.
    """
    check_coordination(coordination)
    if account is not None:
        check_name("account", account)
    if isinstance(coordination, Coordinator):
        handle = handle_of(coordination)
    elif coordination is None and cache_folder is not None:
        handle = coordinator_of_folder(cache_folder)
    else:
        return None
    return Coordination(handle, ProviderAccount(provider.name, provider.endpoint, provider.secret, account))


def check_budget_is_shared(budget: Budget, coordination: Coordination | None) -> None:
    """Check that a named budget is used with a coordinator, and always with the same one.

    Raises:
        ConfigurationError: It is not.
    """
    if coordination is None:
        raise ConfigurationError(
            f"budget_name: needs a coordinator, which counts for all processes (got {budget.name!r} without one). Use "
            "a cache folder without coordination=False, or pass a coordinator as coordination=."
        )
    if budget.coordinator not in (None, coordination.handle):
        raise ConfigurationError(
            f"budget_name: {budget.name!r} is used with two coordinators ({budget.coordinator} and "
            f"{coordination.handle}). Use one cache folder, or one coordination=, with it."
        )
