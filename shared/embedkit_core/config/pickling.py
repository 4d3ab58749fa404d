"""What of an embedder goes into a pickle: its settings, a key only where the user says so, and never a key's source."""

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
from embedkit_core.providers.catalogue.rows import VECTORLESS
from embedkit_core.providers.http.connection import Connection
from embedkit_core.providers.secrets import Secret

if TYPE_CHECKING:
    from embedkit_core.providers.base import Provider

logger = logging.getLogger("embedkit_core")
T = TypeVar("T")


SECRETS = ("api_key", "headers", "proxy")  # arguments that hold secrets, or may


class PickledSecrets:
    """The secrets among an embedder's arguments, which travel only where the user says so."""

    __slots__ = ("_given", "_may_pickle")

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        may = arguments["pickle_api_key"]
        if not isinstance(may, bool):
            raise ConfigurationError(f"pickle_api_key={may!r:.80} must be True or False")
        self._given = {name: arguments[name] for name in SECRETS if arguments[name] is not None}
        self._may_pickle = may

    def to_pickle(self) -> dict[str, Any]:
        """Give them as a pickle holds them: True stands for one that stays here."""
        if not self._may_pickle:
            return dict.fromkeys(self._given, True)
        packed = {n: v.reveal() if isinstance(v, Secret) and not v.is_lost else v for n, v in self._given.items()}
        return {n: v if isinstance(v, (str, dict)) or _can_pickle(v) else True for n, v in packed.items()}


def snapshot_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Give the arguments to remember, without the secrets; mappings as copies, which nobody else can change."""
    kept = {name: value for name, value in arguments.items() if name not in SECRETS}
    for name in ("provider_options", "model_info", "prices"):
        if isinstance(arguments[name], Mapping):
            kept[name] = copy.deepcopy(dict(arguments[name]))
    return kept


def identity_arguments(arguments: Mapping[str, Any], provider: Provider, form: VectorFormat) -> dict[str, Any]:
    """Give the arguments that change vectors and that have several spellings, each in one; `form` is that of a row."""
    options = arguments["provider_options"]
    info = {n: v for n, v in (arguments["model_info"] or {}).items() if n not in VECTORLESS}
    return {
        "model_name": f"{provider.name}:{provider.model}",
        "base_url": provider.endpoint or None,
        "dimensions": form.dimensions,
        "provider_options": json.loads(json.dumps(options, sort_keys=True)) if options else None,
        "model_info": {n: _plain(v) for n, v in sorted(info.items())} or None,
    }


def _plain(value: Any) -> Any:
    return {"min": value.start, "max": value.stop - 1} if isinstance(value, range) else value


def to_pickle(arguments: Mapping[str, Any], provider: Provider) -> dict[str, Any]:
    """Give the arguments that travel.

    The address and the folder are those of this process: another one's environment or working folder would send texts
    elsewhere, or pay for them again.

    Raises:
        ConfigurationError: the cache is an object of the user's, whose copy would be another cache.
    """
    cache, limiter = arguments["cache"], arguments["rate_limiter"]
    if not isinstance(cache, (str, PathLike, type(None), bool)):
        raise ConfigurationError("an embedder with a cache object of your own cannot be pickled; give a folder")
    if isinstance(cache, PathLike) or (isinstance(cache, str) and "://" not in cache):
        cache = Path(cache).expanduser().absolute()
    if limiter is not None and not _can_pickle(limiter):
        logger.warning("the rate_limiter of %s:%s cannot be pickled: the copy has none", provider.name, provider.model)
        limiter = None
    progress = arguments["progress"]
    return {
        **arguments,
        "cache": cache,
        "rate_limiter": limiter,
        "progress": progress if isinstance(progress, bool) or _can_pickle(progress) else None,
        "base_url": provider.url or None,
    }


def from_pickle(cls: type[T], arguments: Mapping[str, Any], luggage: Mapping[str, Any]) -> T:
    """Make the embedder again.

    Unpickling must not fail for a key: a worker that cannot read its task is lost without a word.
    """
    given = dict(luggage)
    if given.get("api_key") is True:
        given["api_key"] = Secret.lost()
    if True in (given.get("headers"), given.get("proxy")):
        given |= {"headers": Connection(lost=True), "proxy": None}
    return cls(**arguments, **given)


def _can_pickle(thing: object) -> bool:
    try:
        pickle.dumps(thing)
    except Exception:
        return False
    return True
