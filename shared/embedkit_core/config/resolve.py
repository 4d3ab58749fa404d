"""Resolve an embedder's arguments to a provider. All invalid arguments are found here, before any I/O."""

from __future__ import annotations

import inspect
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast, get_args

from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.formatting import suggest
from embedkit_core.common.plugins import COMPATIBLE
from embedkit_core.common.types import EmptyText, InputType, LongText, ModelInfo, Task
from embedkit_core.common.validation import check_choice, check_integer, is_valid_text
from embedkit_core.common.vectors import DType
from embedkit_core.config.output_spec import OutputSpec, resolve_output_spec
from embedkit_core.providers import catalogue
from embedkit_core.providers.base import Provider, ProviderSettings
from embedkit_core.providers.http.connection import make_connection
from embedkit_core.providers.registry import is_provider, provider_class, provider_names
from embedkit_core.providers.secrets import KEY_PREFIXES, Hidden, Secret, reveal

CONNECTION_ARGUMENTS = ("headers", "proxy", "ca_bundle", "client_cert")


@dataclass(frozen=True, slots=True)
class ResolvedProvider:
    """The provider class and the settings that an embedder's arguments resolve to."""

    provider: type[Provider]
    settings: ProviderSettings

    @property
    def info(self) -> ModelInfo | None:
        """The catalogue entry of the model, None if it is unknown."""
        return self.settings.info

    def output_spec(self, dimensions: int | None, dtype: DType) -> OutputSpec:
        """Return what to request and what to compute locally for these dimensions and this dtype."""
        info, provider_cls = self.info, self.provider
        own = (provider_cls.name, provider_cls.cache_key_provider, *provider_cls.served_providers)
        is_own = info is not None and info.provider in own
        supported = info.dtypes if info is not None and is_own else provider_cls.dtypes
        return resolve_output_spec(
            self.settings.name,
            info,
            dimensions=dimensions,
            dtype=dtype,
            provider_dtypes=tuple(name for name in provider_cls.dtypes if name in supported),
            returns_normalized=provider_cls.returns_normalized,
            accepts_dimensions=info is None or (provider_cls.takes_dimensions and is_own),
        )

    def make(self, output: OutputSpec) -> Provider:
        """Return the provider, configured for this output."""
        return self.provider(replace(self.settings, dimensions=output.dimensions, dtype=output.dtype))


def resolve_provider(arguments: Mapping[str, Any]) -> ResolvedProvider:
    """Return the provider that the arguments name.

    Raises:
        ConfigurationError: A model, provider, key or setting is invalid; the message names the fix.
    """
    check_choice("on_long_text", arguments["on_long_text"], get_args(LongText))
    check_choice("on_empty_text", arguments["on_empty_text"], get_args(EmptyText))
    check_choice("dtype", arguments["dtype"], get_args(DType))
    if arguments["dimensions"] is not None:
        check_integer("dimensions", arguments["dimensions"], 1)
    for name in ("query_prompt", "document_prompt"):
        if arguments[name] is not None and not is_valid_text(arguments[name]):
            raise ConfigurationError(
                f"{name}: must be a string of valid Unicode (got {type(arguments[name]).__name__})"
            )
    model, base_url = arguments["model"], arguments["base_url"]
    if isinstance(model, str):
        model = str.__str__(model)  # str() of an enum member differs
    provider, name = split_model(model, base_url)
    provider_cls = provider_class(provider)
    info = _catalogue_entry(provider_cls, provider_cls.catalogue_name(name), base_url, arguments["model_info"])
    if provider_cls.is_own_host(base_url) and not provider_cls.is_local:
        _check_available(provider, name, info)
    _check_task(arguments, f"{provider}:{name}", info, takes_roles=provider_cls.takes_roles)
    provider_cls.check_installed()
    return ResolvedProvider(
        provider_cls,
        ProviderSettings(
            name=name,
            api_key=_secret(arguments["api_key"]),
            base_url=base_url,
            query_prompt=_prompt(arguments, "query"),
            document_prompt=_prompt(arguments, "document"),
            task=arguments["task"],
            on_long_text=arguments["on_long_text"],
            options=_options(provider_cls, arguments["provider_options"]),
            info=info,
            connection=make_connection(*(arguments[name] for name in CONNECTION_ARGUMENTS)),
        ),
    )


def _catalogue_entry(
    provider_cls: type[Provider], name: str, base_url: str | None, given: Mapping[str, Any] | None
) -> ModelInfo | None:
    """Return what is known about a model.

    A model that only the user describes belongs to the provider at its own address, and otherwise to the last of the
    providers whose rows apply: open models are truncated locally.
    """
    providers, default = provider_cls.catalogue_providers_at(base_url), provider_cls.default_info(name)
    if not provider_cls.is_own_host(base_url):
        default = replace(default, provider=providers[-1])
    return catalogue.find_for(name, providers, given, default)


def _check_available(provider: str, name: str, info: ModelInfo | None) -> None:
    """Reject misspelled and retired models. New models are accepted without a release of this library."""
    if info is None and (hint := catalogue.suggest_model(name, provider)):
        raise ConfigurationError(
            f"model: unknown model {name!r} of {provider}; {hint} If the name is right, pass model_info={{}}."
        )
    other = catalogue.find(name) if info is None and "/" not in name else None  # owner/name has several hosts
    if other is not None and not provider_class(other.provider).is_local:
        raise ConfigurationError(f"model: {provider} does not serve {name!r}; did you mean '{other.provider}:{name}'?")
    if info is not None and info.status == "retired":
        date = f" on {info.retired}" if info.retired else ""
        successor = f"; the successor '{provider}:{info.successor}' has other vectors" if info.successor else ""
        raise ConfigurationError(
            f"model: {provider} retired {name!r}{date}{successor}. If it is still served, pass "
            "model_info={'status': 'legacy'}."
        )


def split_model(model: str, base_url: str | None) -> tuple[str, str]:
    """Return the provider and the name of a model string.

    The part before the first colon is the provider only if one is registered by that name. Otherwise the provider comes
    from the catalogue, or is "openai" if base_url is set.
    """
    if isinstance(model, str) and model.strip().startswith(KEY_PREFIXES):
        raise ConfigurationError(
            "model: the value looks like an API key. Pass the key as api_key= and a model name as model=."
        )
    if not isinstance(model, str) or not model.strip():
        raise ConfigurationError(
            f"model: must be a model name (got {model!r}). Use a name such as 'openai:text-embedding-3-small'."
        )
    provider, colon, name = model.partition(":")
    if colon and is_provider(provider):
        if not name.strip():
            raise ConfigurationError(f"model: names a provider and no model (got {model!r}). Use 'provider:model'.")
        return provider, name
    if serving := _provider_of(model, base_url):
        return serving, model
    if base_url is not None:
        return "openai", model
    raise ConfigurationError(_unknown_model(model, provider if colon else None, provider_names()))


def _provider_of(model: str, base_url: str | None) -> str | None:
    """Return the provider of a model of the catalogue, None if a name alone does not tell it.

    A name with an owner is that of a local model. With `base_url`, the names of local models and of services with
    OpenAI's API are names at that address.
    """
    found = [(one, is_provider(one) and provider_class(one).is_local) for one in catalogue.providers_of(model)]
    if base_url is not None:
        found = [(one, is_local) for one, is_local in found if not is_local and one not in COMPATIBLE]
    serving = [one for one, is_local in found if "/" not in model or is_local]
    if serving and not is_provider(serving[0]):
        raise ConfigurationError(
            f"model: the provider {serving[0]!r} in the catalogue entry of {model!r} is not installed. Install its "
            "package."
        )
    if len(serving) > 1:
        listed = " or ".join(repr(f"{one}:{model}") for one in serving)
        raise ConfigurationError(f"model: several providers serve {model!r}. Name one: {listed}.")
    return serving[0] if serving else None


def _unknown_model(model: str, provider: str | None, known: list[str]) -> str:
    if os.path.isdir(model):  # noqa: PTH112 - a model name need not be a valid path
        return f"model: {model!r} is a folder. Use 'local:{model}'."
    if meant := _other_spelling(model, known):
        return f"model: unknown model {model!r}; did you mean {meant!r}?"
    if model.strip().lower() in known:
        return f"model: names a provider and no model (got {model!r}). Use '{model.strip().lower()}:MODEL'."
    name = model.partition(":")[2]
    if provider and (hint := suggest(provider, {other: f"{other}:{name}" for other in known}, cutoff=0.6)):
        return f"model: unknown provider {provider!r}; {hint}"
    if hint := catalogue.suggest_model(model):
        return f"model: unknown model {model!r}; {hint}"
    if provider and provider.isalpha():
        return (
            f"model: unknown provider {provider!r} (providers: {', '.join(known)}). "
            "For an OpenAI-compatible server pass base_url=."
        )
    return (
        f"model: unknown model {model!r}. Use 'provider:model' (providers: {', '.join(known)}), "
        "or pass base_url= of an OpenAI-compatible server."
    )


def _other_spelling(model: str, known: list[str]) -> str | None:
    """Return the model string for LiteLLM's "provider/model", another case, or another library's provider name.

    "owner/name" may be the whole name of a model, of the Hugging Face hub or of NVIDIA.
    """
    from embedkit_core.common.foreign_names import provider_meant  # only errors need it

    if (parts := re.match(r"\s*([\w.-]+)([:/])(.*\S)", model)) is None:
        return None
    provider, name = provider_meant(parts[1], known), parts[3]
    if parts[2] == "/" and (provider is None or catalogue.find(name, provider) is None):
        hosts = [one for one in catalogue.providers_of_owner(parts[1]) if one in known]
        local = next((one for one in hosts if provider_class(one).is_local and parts[1] not in known), None)
        if provider in hosts or local is not None:
            return f"{provider if provider in hosts else local}:{model.strip()}"
    return f"{provider}:{name}" if provider is not None else None


def _check_task(arguments: Mapping[str, Any], model: str, info: ModelInfo | None, *, takes_roles: bool) -> None:
    """Reject a task that the model does not offer, and a task beside prompts, which would replace what it sends."""
    task = arguments["task"]
    if task is None:
        return
    try:
        check_choice("task", task, get_args(Task))
    except ConfigurationError as error:
        raise ConfigurationError(f"{error}{'' if str(error).endswith('?') else '.'} Omit it for retrieval.") from None
    for input_type in get_args(InputType):
        if _prompt(arguments, input_type) is not None:
            raise ConfigurationError(f"task: contradicts {input_type}_prompt (got {task!r}). Pass one of them.")
    offered = info.tasks if info is not None and (info.prompts or takes_roles) else {}
    if task not in offered:
        known = f"it offers {', '.join(map(repr, offered))}" if offered else "no tasks of it are known"
        rows = [row for row in catalogue.rows() if row.provider == model.partition(":")[0] and row.status == "current"]
        if others := [f"'{row.provider}:{row.name}'" for row in rows if task in row.tasks]:
            known += f"; models that do: {', '.join(others[:3])}"
        raise ConfigurationError(
            f"task: {model} does not offer {task!r}; {known}. Omit task= for retrieval, or pass the instruction of the "
            "model's documentation as query_prompt= and document_prompt=."
        )


def _prompt(arguments: Mapping[str, Any], input_type: str) -> str | None:
    """Return the user's prompt for an input type: the argument, else the one in model_info."""
    given: str | None = arguments[f"{input_type}_prompt"]
    if given is not None:
        return given
    prompts = (arguments["model_info"] or {}).get("prompts") or {}
    known: str | None = prompts.get(input_type)
    return known


def _secret(api_key: Hidden | None) -> Secret | None:
    if api_key is None:
        return None
    if isinstance(reveal(api_key), Secret):
        return cast(Secret, reveal(api_key))
    if inspect.iscoroutinefunction(reveal(api_key)):
        raise ConfigurationError(
            "api_key: must be a sync callable (got a coroutine function). It is called on a worker thread before each "
            "request."
        )
    if callable(reveal(api_key)):
        return Secret("", source=reveal(api_key))
    if not isinstance(reveal(api_key), str):
        raise ConfigurationError(f"api_key: must be a string or a callable (got {type(reveal(api_key)).__name__})")
    return Secret.checked(api_key, "api_key")


def _options(provider: type[Provider], given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a copy of provider_options as JSON would carry it; later changes by the caller have no effect."""
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise ConfigurationError(
            f"provider_options: must be a mapping with strings as keys (got {type(given).__name__})"
        )
    reserved = sorted(provider.reserved_fields & given.keys())
    if reserved:
        arguments = [f"{name}=" for name in reserved if name in ("dimensions", "model")]
        fix = f" Use {' and '.join(arguments)}." if arguments else ""
        raise ConfigurationError(
            f"provider_options: must not contain {', '.join(reserved)}; the library sets these fields.{fix}"
        )
    try:
        encoded = json.dumps(dict(given), allow_nan=False, ensure_ascii=False)
        encoded.encode()
        options: dict[str, Any] = json.loads(encoded, parse_int=_parse_int)
    except (TypeError, ValueError, RecursionError):
        raise ConfigurationError("provider_options: must be JSON serializable") from None
    return options


def _parse_int(literal: str) -> int:
    """Return an integer that every JSON parser can read."""
    number = int(literal)
    if abs(number) >= 1 << 63:
        raise ValueError("too large for JSON")
    return number
