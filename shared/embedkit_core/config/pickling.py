"""Pickling of embedders: settings always, secrets only with `pickle_api_key=True`, environment variables never."""

from __future__ import annotations

import copy
import json
import logging
import pickle
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.vectors import VectorFormat
from embedkit_core.providers.catalogue.rows import NON_VECTOR_FIELDS
from embedkit_core.providers.http.connection import Connection
from embedkit_core.providers.secrets import SECRET_ARGUMENTS, SIGN_IN, Secret, hide, hide_secrets, is_sign_in, reveal

if TYPE_CHECKING:
    from embedkit_core.providers.base import Provider

logger = logging.getLogger("embedkit_core.config")
T = TypeVar("T")
JOB_ARGUMENTS = (
    *("model", "dimensions", "dtype", "model_info", "account", "provider_options"),
    *("query_prompt", "document_prompt", "task", "on_long_text"),
)


class PickledSecrets:
    """The secrets among an embedder's arguments, which are pickled only with `pickle_api_key=True`."""

    __slots__ = ("_given", "_may_pickle")

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        may_pickle = arguments["pickle_api_key"]
        if not isinstance(may_pickle, bool):
            raise ConfigurationError(f"pickle_api_key: must be True or False (got {may_pickle!r:.80})")
        self._given = {name: arguments[name] for name in SECRET_ARGUMENTS if arguments[name] is not None}
        self._may_pickle = may_pickle

    @property
    def signs_in(self) -> bool:
        """True if a package signs in, so that there is no API key."""
        return is_sign_in(self._given.get("api_key"))

    def to_pickle(self) -> dict[str, Any]:
        """Return the secrets for a pickle; True replaces a secret that is not pickled."""
        if not self._may_pickle:
            return {name: SIGN_IN if is_sign_in(value) else True for name, value in self._given.items()}
        given = {name: reveal(value) for name, value in self._given.items()}
        revealed = {n: v.reveal() if isinstance(v, Secret) and not v.is_lost else v for n, v in given.items()}
        return {n: v if isinstance(v, (str, dict, tuple)) or _can_pickle(v) else True for n, v in revealed.items()}

    def check_can_be_sent(self, key_variable: str | None) -> None:
        """Check that other processes get all that was given, and that it has no API key.

        Args:
            key_variable: The environment variable of the provider's API key.

        Raises:
            ConfigurationError: An API key was given, or something that would not be pickled.
        """
        variable = key_variable or "the provider's variable"
        for name in (name for name, value in self._given.items() if not is_sign_in(value)):
            if name == "api_key" and not callable(reveal(self._given[name])):
                raise ConfigurationError(
                    f"api_key: no key is sent to workers. Omit it and set {variable} in their environment, or pass "
                    "a function of a module that returns the key, with pickle_api_key=True."
                )
            if not self._may_pickle:
                raise ConfigurationError(
                    f"{name}: is not sent to workers, since it may hold a secret. Set pickle_api_key=True to send it."
                )
            if name == "api_key" and not _can_pickle(reveal(self._given[name])):
                raise ConfigurationError(
                    "api_key: the function cannot be pickled. Define it in a module that the workers can import."
                )


def check_limiter_can_be_sent(limiter: object) -> None:
    """Check that other processes get a rate limiter.

    Raises:
        ConfigurationError: It would not be pickled.
    """
    if limiter is not None and not _can_pickle(limiter):
        raise ConfigurationError(
            f"rate_limiter: the {type(limiter).__name__} cannot be pickled, so workers would have none. Use "
            "requests_per_minute= or tokens_per_minute=, which they share."
        )


def snapshot_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments without secrets; mappings are copied, so that later changes by the caller have no effect."""
    kept = {name: value for name, value in arguments.items() if name not in SECRET_ARGUMENTS}
    for name in ("provider_options", "model_info", "prices"):
        if isinstance(arguments[name], Mapping):
            kept[name] = copy.deepcopy(dict(arguments[name]))
    if isinstance(arguments["cache"], list):
        kept["cache"] = list(arguments["cache"])
    return kept


def identity_arguments(arguments: Mapping[str, Any], provider: Provider, vector_format: VectorFormat) -> dict[str, Any]:
    """Return the arguments that change vectors and have several spellings, in one canonical spelling.

    Args:
        arguments: The constructor arguments.
        provider: The provider made from them.
        vector_format: The dtype and dimensions of the result.
    """
    options = arguments["provider_options"]
    info = {n: v for n, v in (arguments["model_info"] or {}).items() if n not in NON_VECTOR_FIELDS}
    return {
        "model_name": f"{provider.name}:{provider.model}",
        "base_url": provider.identity_url,
        "dimensions": vector_format.dimensions,
        "provider_options": json.loads(json.dumps(options, sort_keys=True)) if options else None,
        "model_info": {n: _plain(v) for n, v in sorted(info.items())} or None,
    }


def _plain(value: Any) -> Any:
    return {"min": value.start, "max": value.stop - 1} if isinstance(value, range) else value


def job_arguments(arguments: Mapping[str, Any], defaults: Mapping[str, Any], provider: Provider) -> dict[str, Any]:
    """Return the arguments for an embedder that can work on a job, as JSON types: those that are not the defaults.

    Without the API key and other secrets, the cache and what matters to the process only.
    """
    kept = {name: arguments[name] for name in JOB_ARGUMENTS} | {"base_url": provider.url}
    return arguments_as_json(kept, defaults)


def arguments_as_json(arguments: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that are not the defaults, as JSON types."""
    kept = {name: value for name, value in arguments.items() if not _is_same(value, defaults[name])}
    as_json: dict[str, Any] = json.loads(json.dumps(kept, default=_to_json))
    return as_json


def check_has_no_objects(arguments: Mapping[str, Any], purpose: str) -> None:
    """Check that caches and coordinator are named, so that another embedder can use the same ones.

    Args:
        arguments: The constructor arguments.
        purpose: What an embedder with an object cannot do, for errors.

    Raises:
        ConfigurationError: One of them is an object.
    """
    if not isinstance(arguments["coordination"], (str, type(None), bool)):
        raise ConfigurationError(
            f"coordination: an embedder with a coordinator object or a client cannot {purpose}. Use an address, or "
            "create an embedder in each process."
        )
    cache = arguments["cache"]
    for one in cache if isinstance(cache, (list, tuple)) else [cache]:
        if not isinstance(one, (str, PathLike, type(None), bool)):
            raise ConfigurationError(
                f"cache: an embedder with a cache object or a client cannot {purpose}. Use a folder or an address."
            )


def _to_json(value: object) -> object:
    plain = _plain(value)
    return str(value) if plain is value else plain


def to_pickle(arguments: Mapping[str, Any], defaults: Mapping[str, Any], provider: Provider) -> dict[str, Any]:
    """Return the arguments to pickle: those that are not the defaults.

    The base URL and the cache folder are resolved here: with another environment or working directory they would name
    another server or folder.

    Raises:
        ConfigurationError: A cache or the coordinator is an object: its copy would be another one.
    """
    cache, limiter = arguments["cache"], arguments["rate_limiter"]
    check_has_no_objects(arguments, "be pickled")
    cache = [_cache_to_pickle(one) for one in cache] if isinstance(cache, (list, tuple)) else _cache_to_pickle(cache)
    if limiter is not None and not _can_pickle(limiter):
        logger.warning("rate_limiter of %s:%s cannot be pickled; the copy has none", provider.name, provider.model)
        limiter = None
    progress = arguments["progress"]
    pickled = {
        **arguments,
        "cache": cache,
        "rate_limiter": limiter,
        "progress": progress if isinstance(progress, bool) or _can_pickle(progress) else None,
        "base_url": provider.url or None,
    }
    return {name: value for name, value in pickled.items() if not _is_same(value, defaults[name])}


def _is_same(value: object, default: object) -> bool:
    """Return True for the default of an argument, of which all are constants."""
    return type(value) is type(default) and value == default


def _cache_to_pickle(cache: object) -> object:
    """Return one cache of an argument: a folder as an absolute path, anything else as it is."""
    if isinstance(cache, PathLike) or (isinstance(cache, str) and "://" not in cache):
        return Path(cache).expanduser().absolute()
    return cache


def from_pickle(cls: type[T], arguments: Mapping[str, Any], secrets: Mapping[str, Any]) -> T:
    """Return the unpickled embedder.

    A missing key must not make this fail: a worker that cannot unpickle its task is lost without an error message.
    """
    secrets = hide_secrets(secrets)
    if reveal(secrets.get("api_key")) is True:
        secrets["api_key"] = hide(Secret.lost())
    connection = {name: secrets.pop(name, None) for name in ("headers", "proxy", "client_cert")}
    if any(reveal(value) is True for value in connection.values()):
        connection = {"headers": hide(Connection(lost=True))}
    return cls(**arguments, **secrets, **connection)


def _can_pickle(thing: object) -> bool:
    try:
        pickle.dumps(thing)
    except Exception:
        return False
    return True
