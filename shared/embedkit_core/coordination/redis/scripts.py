"""The Lua scripts that decide in Redis, with the numbers that the Python rules have too."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

import redis

from embedkit_core.coordination.port import LEASE_SECONDS, MAX_WAIT_AHEAD
from embedkit_core.coordination.sliding_window import BURST_SECONDS, MARGIN, MINUTE, QUERY_SHARE, RESOLUTION

VERSION = 1
PREFIX_BYTES = 8  # of each key; the texts that are in flight do not share them by chance
KEEP_SECONDS = 5.0  # that an ended lease is kept, for processes that looked into the cache before
LATE_SECONDS = 86_400.0  # that a lost lease is kept, for its bill
MODEL_SECONDS = 2 * MINUTE  # that the windows of a model are kept after their last use
MAX_NUMBER = 2**53 - 1  # that Lua represents exactly

_NAMES = ["meta", "owners", "horizons", "leases", "active", "forget", "claims", "models", "used", "budgets", "attempts"]
KEYS = [f"embedkit:{{coordination-v{VERSION}}}:{name}" for name in _NAMES]  # with one hash tag; none of them expires


def microseconds(seconds: float) -> int:
    """Return a time or a duration as Redis has it."""
    return round(max(-(2.0**33), min(seconds, 2.0**33)) * 1_000_000)


_TIMES = {
    "LEASE": LEASE_SECONDS,
    "KEEP": KEEP_SECONDS,
    "LATE": LATE_SECONDS,
    "MODEL_KEEP": MODEL_SECONDS,
    "AHEAD": MAX_WAIT_AHEAD,
    "MINUTE": MINUTE,
    "RESOLUTION": RESOLUTION,
    "COUNTED": MINUTE + MARGIN + RESOLUTION,
    "BURST": BURST_SECONDS,
}


class Script(NamedTuple):
    """A Lua script.

    Attributes:
        source: Its text.
        digest: Its SHA-1, by which Redis knows it.
    """

    source: str
    digest: str

    def run(self, client: redis.Redis, *arguments: str | int | bytes) -> Sequence[Any]:
        """Run it, and send its text if Redis does not have it. Return its reply."""
        values = [*KEYS, *arguments]
        try:
            reply: Any = client.evalsha(self.digest, len(KEYS), *values)
        except redis.exceptions.NoScriptError:
            reply = client.eval(self.source, len(KEYS), *values)
        assert isinstance(reply, list)
        return reply


@cache
def script(name: str) -> Script:
    """Return the script of an operation."""
    constants = [f"local {constant} = {microseconds(seconds)}" for constant, seconds in _TIMES.items()]
    constants += [f"local QUERY_SHARE = {QUERY_SHARE!r}", f"local VERSION = '{VERSION}'"]
    folder = resources.files(__package__) / "lua"
    texts = [(folder / f"{part}.lua").read_text(encoding="utf-8") for part in ("state", name)]
    source = "\n".join([*constants, *texts])
    return Script(source, hashlib.sha1(source.encode()).hexdigest())  # noqa: S324 - Redis names scripts so
