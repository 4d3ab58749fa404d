"""What of an embedder goes into a pickle: its settings, a key only where the user says so, and never a key's source."""

from __future__ import annotations

import copy
import json
import logging
import pickle
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedkit_core.errors import ConfigurationError
from embedkit_core.secrets import Secret

if TYPE_CHECKING:
    from embedkit_core.embedder import Embedder
    from embedkit_core.providers import Provider

logger = logging.getLogger("embedkit_core")


def traveller(api_key: str | Secret | None, may_travel: bool) -> Secret | bool:
    """Give what of a key may travel: all of it, or only whether one was given."""
    if may_travel and api_key is not None:
        return api_key if isinstance(api_key, Secret) else Secret(api_key)
    return api_key is not None


def packed_key(key: Secret | bool) -> str | bool:
    """Give the same as a pickle holds it."""
    return key.reveal() if isinstance(key, Secret) else key


def kept(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Give the arguments to remember, without the key; options as copies, which nobody else can change."""
    options = arguments["provider_options"]
    copied = copy.deepcopy(dict(options)) if isinstance(options, Mapping) else options
    return {name: value for name, value in arguments.items() if name != "api_key"} | {"provider_options": copied}


def described(arguments: Mapping[str, Any], provider: Provider) -> dict[str, Any]:
    """Give the arguments that change vectors and that have several spellings, each in one."""
    options = arguments["provider_options"]
    return {
        "model_name": f"{provider.name}:{provider.model}",
        "base_url": provider.endpoint or None,
        "dimensions": provider.dimensions,
        "provider_options": json.loads(json.dumps(options, sort_keys=True)) if options else None,
    }


def packed(arguments: Mapping[str, Any], provider: Provider) -> dict[str, Any]:
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
    if limiter is not None and not _can_travel(limiter):
        logger.warning("the rate_limiter of %s:%s cannot be pickled: the copy has none", provider.name, provider.model)
        limiter = None
    return {**arguments, "cache": cache, "rate_limiter": limiter, "base_url": provider.endpoint or None}


def unpacked(cls: type[Embedder], arguments: Mapping[str, Any], key: str | bool) -> Embedder:
    """Make the embedder again.

    Unpickling must not fail for a key: a worker that cannot read its task is lost without a word.
    """
    return cls(**arguments, api_key=key if isinstance(key, str) else Secret.lost() if key else None)


def _can_travel(thing: object) -> bool:
    try:
        pickle.dumps(thing)
    except Exception:
        return False
    return True
