"""What installed packages add to us: found by entry points, imported when named, and never in place of our own.

Our own are entry points too, for whoever lists them, and known here beside that: to look through all that is installed
takes as long as reading some thousand vectors from a cache.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.fork_safety import import_module

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

PROVIDERS = "embedkit_core.providers"
CACHES = "embedkit_core.caches"
_OURS = "rag-embedkit"
BUILT_IN: Mapping[str, Mapping[str, str]] = {
    PROVIDERS: {
        "openai": "embedkit_core.providers.openai.provider:OpenAI",
        "voyage": "embedkit_core.providers.voyage:Voyage",
        "cohere": "embedkit_core.providers.cohere:Cohere",
        "local": "embedkit_core.providers.local.provider:Local",
        "azure": "embedkit_core.providers.openai.presets:Azure",
        "ollama": "embedkit_core.providers.openai.presets:Ollama",
        "vllm": "embedkit_core.providers.openai.presets:VLLM",
        "tei": "embedkit_core.providers.openai.presets:TEI",
        "infinity": "embedkit_core.providers.openai.presets:Infinity",
        "lmstudio": "embedkit_core.providers.openai.presets:LMStudio",
        "fake": "embedkit_core.testing:Fake",
    },
    CACHES: {"file": "embedkit_core.cache.urls:open_file_url"},
}
_KINDS = {PROVIDERS: "provider", CACHES: "cache"}

logger = logging.getLogger("embedkit_core")


@cache
def registered(group: str) -> Mapping[str, tuple[EntryPoint, ...]]:
    """Give what is registered in a group by its name; several packages may claim one, but not one that is built in."""
    from importlib.metadata import entry_points

    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=group):
        found.setdefault(point.name, []).append(point)
    return {name: _ours_first(group, points) for name, points in found.items()}


def is_registered(group: str, name: str) -> bool:
    """Tell whether something is registered under a name."""
    return name in BUILT_IN[group] or name in registered(group)


def _ours_first(group: str, points: list[EntryPoint]) -> tuple[EntryPoint, ...]:
    ours = tuple(point for point in points if is_built_in(point))
    for other in points if ours else ():
        if not is_built_in(other):  # two points that lead to one place are equal, whoever registers them
            logger.warning("%s is ignored: that %s is built in", describe(other), _KINDS[group])
    return ours or tuple(points)


def is_built_in(point: EntryPoint) -> bool:
    """Tell whether an entry point is this library's own, wherever it leads."""
    return point.dist is not None and re.sub(r"[-_.]+", "-", point.dist.name).lower() == _OURS


def describe(point: EntryPoint) -> str:
    """Name an entry point and the package it is from."""
    package = f" of the package {point.dist.name}" if point.dist else ""
    return f"the entry point {point.name} = {point.value}{package}"


def load(group: str, name: str) -> object:
    """Import what is registered under a name.

    Raises:
        ConfigurationError: it cannot be imported, or two packages claim the name.
    """
    if ours := BUILT_IN[group].get(name):
        module, _, attribute = ours.partition(":")
        built_in: object = getattr(import_module(module), attribute)
        return built_in
    first, *others = registered(group)[name]
    for other in others:
        if other.value != first.value:
            raise ConfigurationError(
                f"the {_KINDS[group]} {name!r} is claimed twice: {describe(first)}, {describe(other)}; remove one"
            )
    try:
        loaded: object = first.load()
    except Exception as error:  # whatever a module may do while it is imported
        what = f"the {_KINDS[group]} {name!r} cannot be loaded"
        refused = refusal(error, what, f"{describe(first)}; repair or remove that package")
    else:
        return loaded
    raise refused


def refusal(error: Exception, what: str, where: str) -> ConfigurationError:
    """Give the error of ours for one of a package's; raised outside the `except`, it has none behind it.

    What a package's own exception says may hold a secret, so that only its type is told, and the module that an import
    did not find. A ConfigurationError is meant for the user as it is.
    """
    if isinstance(error, ConfigurationError):
        error.__cause__ = error.__context__ = None
        return error
    said = type(error).__name__
    if isinstance(error, ImportError) and error.name and error.name.replace(".", "").isidentifier():
        said += f": {error.name}"
    return ConfigurationError(f"{what} ({said}): {where}")
