"""Lookup of providers by name through entry points."""

from __future__ import annotations

from embedkit_core.common import plugins
from embedkit_core.common.errors import ConfigurationError
from embedkit_core.providers.base import Provider


def is_provider(name: str) -> bool:
    """Return True if a provider is registered under a name."""
    return plugins.is_registered(plugins.PROVIDERS, name)


def provider_names() -> list[str]:
    """Return the names of the registered providers, except those for tests."""
    points = plugins.registered(plugins.PROVIDERS)
    return sorted(name for name, [point, *_] in points.items() if not point.value.startswith("embedkit_core.testing"))


def provider_class(name: str) -> type[Provider]:
    """Return the class registered under a name.

    Raises:
        ConfigurationError: The class cannot be loaded or is not a provider of that name. The message has its package.
    """
    loaded = plugins.load(plugins.PROVIDERS, name)
    if not isinstance(loaded, type) or not issubclass(loaded, Provider):
        flaw = "is not a subclass of embedkit_core.providers.base.Provider"
    elif (class_name := getattr(loaded, "name", None)) == name:
        return loaded
    else:  # the name is in cache keys: two providers of one name would share their vectors
        flaw = f"must have the attribute name={name!r} (got {class_name!r})"
    where = plugins.describe(plugins.registered(plugins.PROVIDERS)[name][0])
    raise ConfigurationError(f"Provider {name!r} {flaw}: {where}")
