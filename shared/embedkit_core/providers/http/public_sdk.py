"""Requests through an SDK's public methods, for versions of the SDK whose internals have moved."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from importlib.metadata import version
from typing import NamedTuple

logger = logging.getLogger("embedkit_core.providers")


class RawResponse(NamedTuple):
    """Response of a server, or what an SDK has left of it: no headers if the request succeeded."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@functools.cache
def warn_of_public_sdk(package: str, internal: str) -> None:
    """Log once per process that the internals of an SDK have moved."""
    logger.warning(
        "%s %s has no %s: its public method is used, which is slower and hides rate limits and request ids of "
        "replies. Vectors are the same. Use a version that docs/providers.md names.",
        package,
        version(package),
        internal,
    )
