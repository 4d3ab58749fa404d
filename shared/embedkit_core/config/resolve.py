"""From a user's arguments to a provider: everything that can be wrong is found here, before any I/O."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.formatting import suggest
from embedkit_core.common.types import LongText, ModelInfo
from embedkit_core.common.validation import check_choice, check_integer, is_valid_text
from embedkit_core.common.vectors import DType
from embedkit_core.config.output_spec import OutputSpec, resolve_output_spec
from embedkit_core.providers import catalogue
from embedkit_core.providers.base import Provider, ProviderSettings
from embedkit_core.providers.http.connection import Connection, connection
from embedkit_core.providers.registry import is_provider, provider_class, provider_names
from embedkit_core.providers.secrets import Secret, clean

API_KEY_PREFIXES = ("sk-", "pa-", "al-")  # as OpenAI's and Voyage's begin


@dataclass(frozen=True, slots=True)
class ResolvedProvider:
    """What a user's arguments come to: the class of a provider, the settings to make one from, and the row known."""

    provider: type[Provider]
    settings: ProviderSettings

    @property
    def info(self) -> ModelInfo | None:
        """The catalogue's row."""
        return self.settings.info

    def output_spec(self, dimensions: int | None, dtype: DType) -> OutputSpec:
        """Share out the work on vectors of these dimensions and this type between the provider and us."""
        info, chosen = self.info, self.provider
        own = info is not None and info.provider == chosen.cache_key_provider
        return resolve_output_spec(
            self.settings.name,
            info,
            dimensions=dimensions,
            dtype=dtype,
            offered=tuple(kind for kind in chosen.dtypes if kind in (info.dtypes if own and info else chosen.dtypes)),
            unit=chosen.returns_normalized,
            cuts=info is None or (chosen.takes_dimensions and own),
        )

    def make(self, asked: OutputSpec) -> Provider:
        """Make the provider that is asked so."""
        return self.provider(replace(self.settings, dimensions=asked.dimensions, dtype=asked.dtype))


def resolve_provider(arguments: Mapping[str, Any]) -> ResolvedProvider:
    """Find the provider a model string names, and check what goes to it.

    Raises:
        ConfigurationError: for a model, provider, key or setting that cannot work; the message names the way out.
    """
    check_choice("on_long_text", arguments["on_long_text"], get_args(LongText))
    check_choice("dtype", arguments["dtype"], get_args(DType))
    if arguments["dimensions"] is not None:
        check_integer("dimensions", arguments["dimensions"], 1)
    for name in ("query_prompt", "document_prompt"):
        if arguments[name] is not None and not is_valid_text(arguments[name]):
            raise ConfigurationError(f"{name} must be a string of valid Unicode, not {type(arguments[name]).__name__}")
    model, base_url = arguments["model"], arguments["base_url"]
    if isinstance(model, str):
        model = str.__str__(model)  # an enumeration may show itself otherwise
    provider, name = split_model(model, base_url)
    chosen = provider_class(provider)
    info = _catalogue_entry(chosen, chosen.catalogue_name(name), base_url, arguments["model_info"])
    if chosen.is_own_host(base_url) and not chosen.is_local:
        _check_served(provider, name, info)
    chosen.check_installed()
    return ResolvedProvider(
        chosen,
        ProviderSettings(
            name=name,
            api_key=_secret(arguments["api_key"]),
            base_url=base_url,
            query_prompt=_prompt(arguments, "query"),
            document_prompt=_prompt(arguments, "document"),
            on_long_text=arguments["on_long_text"],
            options=_options(chosen, arguments["provider_options"]),
            info=info,
            connection=_connection(arguments),
        ),
    )


def _catalogue_entry(
    chosen: type[Provider], name: str, base_url: str | None, given: Mapping[str, Any] | None
) -> ModelInfo | None:
    """Give what is known of a model: at a provider's own host only of its own, elsewhere of any that it may serve.

    What nobody but the user knows is one of the last of these: an open model's vectors are cut here, if at all.
    """
    homes, unknown = chosen.catalogue_providers or (chosen.name,), chosen.default_info(name)
    if chosen.is_own_host(base_url):
        return catalogue.find_for(name, homes[:1], given, unknown)
    return catalogue.find_for(name, homes, given, replace(unknown, provider=homes[-1]))


def _check_served(provider: str, name: str, info: ModelInfo | None) -> None:
    """Refuse slips of the pen, and what the provider has retired. A new model must not wait for a release."""
    other = catalogue.find(name) if info is None else None
    if other is not None and not provider_class(other.provider).is_local:
        raise ConfigurationError(f"{name!r} is not {provider}'s; did you mean '{other.provider}:{name}'?")
    if info is None and (hint := catalogue.suggest_model(name, provider)):
        raise ConfigurationError(f"no model {name!r} is known at {provider}; {hint} If not, model_info={{}} says so")
    if info is not None and info.status == "retired":
        since = f" since {info.retired}" if info.retired else ""
        instead = (
            f"; it names '{provider}:{info.successor}' instead, whose vectors are others" if info.successor else ""
        )
        raise ConfigurationError(
            f"{provider} has retired {name!r}{since}{instead}. If it is still served, "
            "model_info={'status': 'legacy'} says so"
        )


def split_model(model: str, base_url: str | None) -> tuple[str, str]:
    """Give provider and model name of a model string.

    The part before the first colon is the provider only if one is registered by that name; otherwise the provider
    comes from the catalogue, or is "openai" where a base_url is given.
    """
    if isinstance(model, str) and model.strip().startswith(API_KEY_PREFIXES):
        raise ConfigurationError(
            "model= holds what looks like an API key: give the key as api_key=, and a model's name"
        )
    if not isinstance(model, str) or not model.strip():
        raise ConfigurationError(f"model={model!r}: give a name such as 'openai:text-embedding-3-small'")
    provider, colon, name = model.partition(":")
    if colon and is_provider(provider):
        if not name.strip():
            raise ConfigurationError(f"model={model!r} names a provider and no model")
        return provider, name
    info = catalogue.find(model)
    if info is not None and not is_provider(info.provider):
        raise ConfigurationError(f"the provider {info.provider!r}, which a row of {model!r} names, is not installed")
    if info is not None and (base_url is None or not provider_class(info.provider).is_local):
        return info.provider, model
    if base_url is not None:
        return "openai", model
    raise ConfigurationError(_unknown_model(model, provider if colon else None, provider_names()))


def _unknown_model(model: str, provider: str | None, known: list[str]) -> str:
    if os.path.isdir(model):  # noqa: PTH112 - a model's name need not be a path
        return f"model={model!r} is a folder: write 'local:{model}'"
    name = model.partition(":")[2]
    if provider and (hint := suggest(provider, {other: f"{other}:{name}" for other in known}, cutoff=0.6)):
        return f"there is no provider {provider!r}; {hint}"
    if hint := catalogue.suggest_model(model):
        return f"no model {model!r} is known; {hint}"
    if provider and provider.isalpha():
        return (
            f"there is no provider {provider!r} here; there are {', '.join(known)}. "
            "For an OpenAI-compatible server give its base_url"
        )
    return (
        f"which provider serves {model!r}? Write 'provider:model' with one of {', '.join(known)}, "
        "or give the base_url of an OpenAI-compatible server"
    )


def _prompt(arguments: Mapping[str, Any], role: str) -> str | None:
    """Give the user's prompt for a role: the argument, else what they say of the model."""
    given: str | None = arguments[f"{role}_prompt"]
    if given is not None:
        return given
    said = (arguments["model_info"] or {}).get("prompts") or {}
    known: str | None = said.get(role)
    return known


def _connection(arguments: Mapping[str, Any]) -> Connection:
    given = arguments["headers"]
    if isinstance(given, Connection):
        return given
    return connection(given, arguments["proxy"], arguments["ca_bundle"])


def _secret(api_key: object) -> Secret | None:
    if api_key is None or isinstance(api_key, Secret):
        return api_key
    if inspect.iscoroutinefunction(api_key):
        raise ConfigurationError("api_key is an async function; give one that can simply be called: it has a thread")
    if callable(api_key):
        return Secret("", source=api_key)
    if not isinstance(api_key, str):
        raise ConfigurationError(f"api_key must be a string or a function, not {type(api_key).__name__}")
    return Secret(clean(api_key, "api_key"))


def _options(provider: type[Provider], given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Give a copy of the user's options, which nobody else can change, as JSON would carry it."""
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise ConfigurationError("provider_options must be a mapping from names of fields to their values")
    taken = sorted(provider.reserved_fields & given.keys())
    if taken:
        raise ConfigurationError(f"provider_options may not hold {', '.join(taken)}: the library sets that itself")
    try:
        listed = json.dumps(dict(given), allow_nan=False, ensure_ascii=False)
        listed.encode()
        copied: dict[str, Any] = json.loads(listed, parse_int=_parse_int)
    except (TypeError, ValueError, RecursionError):
        raise ConfigurationError("provider_options must hold values that JSON can carry") from None
    return copied


def _parse_int(digits: str) -> int:
    """Read a number that every JSON parser can."""
    number = int(digits)
    if abs(number) >= 1 << 63:
        raise ValueError("too large for JSON")
    return number
