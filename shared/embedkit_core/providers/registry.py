"""Registered providers, found by name through entry points."""

from __future__ import annotations

from embedkit_core.common import plugins
from embedkit_core.common.errors import ConfigurationError
from embedkit_core.providers.base import Provider


def is_provider(name: str) -> bool:
    """Tell whether a provider is registered under a name."""
    return plugins.is_registered(plugins.PROVIDERS, name)


def provider_names() -> list[str]:
    """Give the names of the registered providers, but for those that are there for tests."""
    points = plugins.registered(plugins.PROVIDERS)
    return sorted(name for name, [point, *_] in points.items() if not point.value.startswith("embedkit_core.testing"))


def provider_class(name: str) -> type[Provider]:
    """Give the class registered under a name.

    Raises:
        ConfigurationError: naming the package, for what cannot be loaded or is no provider of that name.
    """
    loaded = plugins.load(plugins.PROVIDERS, name)
    if not isinstance(loaded, type) or not issubclass(loaded, Provider):
        flaw = "is not a subclass of embedkit_core.providers.base.Provider"
    elif (called := getattr(loaded, "name", None)) == name:
        return loaded
    else:  # it is in the keys: two providers of one name would serve each other's vectors
        flaw = f"calls itself {called!r}, and must not"
    where = plugins.describe(plugins.registered(plugins.PROVIDERS)[name][0])
    raise ConfigurationError(f"the provider {name!r} {flaw}: {where}")
