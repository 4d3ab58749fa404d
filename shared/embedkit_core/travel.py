"""What of an embedder goes into a pickle: its settings, a key only where the user says so, and never a key's source."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

from embedkit_core.errors import ConfigurationError
from embedkit_core.secrets import Secret

if TYPE_CHECKING:
    from embedkit_core.embedder import Embedder

logger = logging.getLogger("embedkit_core")


def packed_key(api_key: str | Secret | None, may_travel: bool) -> str | bool:
    """Give what of a key travels: all of it, or only whether one was given."""
    if may_travel and api_key is not None:
        return api_key.reveal() if isinstance(api_key, Secret) else api_key
    return api_key is not None


def packed(arguments: Mapping[str, Any], model: str) -> dict[str, Any]:
    """Give the arguments that travel.

    Raises:
        ConfigurationError: the cache is an object of the user's, whose copy would be another cache.
    """
    if not isinstance(arguments["cache"], (str, PathLike, type(None), bool)):
        raise ConfigurationError("an embedder with a cache object of your own cannot be pickled; give a folder")
    limiter = arguments["rate_limiter"]
    if limiter is None or _can_travel(limiter):
        return dict(arguments)
    logger.warning("the rate_limiter of %s cannot be pickled: the copy has none", model)
    return {**arguments, "rate_limiter": None}


def unpacked(arguments: Mapping[str, Any], key: str | bool) -> Embedder:
    """Make the embedder again.

    Unpickling must not fail for a key: a worker that cannot read its task is lost without a word.
    """
    from embedkit_core.embedder import Embedder

    return Embedder(**arguments, api_key=key if isinstance(key, str) else Secret.lost() if key else None)


def _can_travel(thing: object) -> bool:
    try:
        pickle.dumps(thing)
    except Exception:
        return False
    return True
