"""Discovery of plugins through entry points. A plugin is imported on first use and cannot replace a built-in name.

Built-in providers and caches are registered as entry points too, and listed here: a scan of the installed packages
takes as long as thousands of cache reads.
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
_DISTRIBUTION = "rag-embedkit"
COMPATIBLE = (  # servers with OpenAI's API: rows of `providers.openai.presets`
    *("ollama", "vllm", "tei", "infinity", "lmstudio", "llamacpp", "sglang", "xinference", "localai", "docker"),
    *("litellm", "databricks", "mistral", "nvidia", "openrouter", "vercel", "jina", "fireworks", "together"),
    *("nebius", "deepinfra", "dashscope", "perplexity", "zhipu", "siliconflow", "cloudflare", "mixedbread"),
    *("scaleway", "novita"),
)
BUILT_IN: Mapping[str, Mapping[str, str]] = {
    PROVIDERS: {
        "openai": "embedkit_core.providers.openai.provider:OpenAI",
        "voyage": "embedkit_core.providers.voyage:Voyage",
        "cohere": "embedkit_core.providers.cohere:Cohere",
        "nomic": "embedkit_core.providers.nomic:Nomic",
        "hf-inference": "embedkit_core.providers.hf_inference:HFInference",
        "google": "embedkit_core.providers.google.provider:Google",
        "vertex": "embedkit_core.providers.google.provider:Vertex",
        "bedrock": "embedkit_core.providers.bedrock.provider:Bedrock",
        "local": "embedkit_core.providers.local.provider:Local",
        "fastembed": "embedkit_core.providers.local.fastembed:FastEmbed",
        "model2vec": "embedkit_core.providers.local.model2vec:Model2Vec",
        "azure": "embedkit_core.providers.openai.azure:Azure",
        **{name: f"embedkit_core.providers.openai.presets:{name}" for name in COMPATIBLE},
        "fake": "embedkit_core.testing:Fake",
    },
    CACHES: {
        "file": "embedkit_core.cache.urls:open_file_url",
        "redis": "embedkit_core.cache.redis.cache:open_address",
        "rediss": "embedkit_core.cache.redis.cache:open_address",
    },
}
_GROUP_NOUNS = {PROVIDERS: "provider", CACHES: "cache"}

logger = logging.getLogger("embedkit_core.config")


@cache
def registered(group: str) -> Mapping[str, tuple[EntryPoint, ...]]:
    """Return the entry points of a group by name. Several packages may claim a name, except for built-in names."""
    from importlib.metadata import entry_points

    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=group):
        found.setdefault(point.name, []).append(point)
    return {name: _prefer_built_in(group, points) for name, points in found.items()}


def is_registered(group: str, name: str) -> bool:
    """Return True if an entry point has this name."""
    return name in BUILT_IN[group] or name in registered(group)


def _prefer_built_in(group: str, points: list[EntryPoint]) -> tuple[EntryPoint, ...]:
    built_in = tuple(point for point in points if is_built_in(point))
    for other in points if built_in else ():
        if not is_built_in(other):  # not `other not in built_in`: points with one target are equal
            logger.warning("Plugin ignored: %s uses the name of a built-in %s", describe(other), _GROUP_NOUNS[group])
    return built_in or tuple(points)


def is_built_in(point: EntryPoint) -> bool:
    """Return True if this library registered the entry point; its target does not matter."""
    return point.dist is not None and re.sub(r"[-_.]+", "-", point.dist.name).lower() == _DISTRIBUTION


def describe(point: EntryPoint) -> str:
    """Return the name, target and package of an entry point, for a message."""
    package = f" of the package {point.dist.name}" if point.dist else ""
    return f"entry point {point.name} = {point.value}{package}"


def load(group: str, name: str) -> object:
    """Import the object registered under a name.

    Raises:
        ConfigurationError: The import fails, or two packages claim the name.
    """
    if target := BUILT_IN[group].get(name):
        module, _, attribute = target.partition(":")
        built_in: object = getattr(import_module(module), attribute)
        return built_in
    noun = _GROUP_NOUNS[group]
    first, *others = registered(group)[name]
    for other in others:
        if other.value != first.value:
            raise ConfigurationError(
                f"Two packages register the {noun} {name!r}: {describe(first)}, {describe(other)}. Remove one of them."
            )
    try:
        loaded: object = first.load()
    except Exception as error:  # an import may raise anything
        refused = plugin_error(
            error, f"The {noun} {name!r} cannot be loaded", f"{describe(first)}. Repair or remove this package."
        )
    else:
        return loaded
    raise refused


def plugin_error(error: Exception, problem: str, where: str) -> ConfigurationError:
    """Return the error to raise for an exception of a plugin.

    A plugin's message may contain a secret, so the result has only the exception's type, and the module that an
    ImportError names. A ConfigurationError is returned itself, as its message is for the user. Raise the result outside
    of the `except` block, so that it does not carry the plugin's exception as its context.
    """
    if isinstance(error, ConfigurationError):
        error.__cause__ = error.__context__ = None
        return error
    cause = type(error).__name__
    if isinstance(error, ImportError) and error.name and error.name.replace(".", "").isidentifier():
        cause += f": {error.name}"
    return ConfigurationError(f"{problem} ({cause}): {where}")
