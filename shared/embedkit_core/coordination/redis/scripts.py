"""The Lua scripts that decide in Redis, with the numbers that the Python rules have too."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

import redis
from redis.exceptions import NoScriptError

from embedkit_core.coordination.port import (
    KEEP_SECONDS,
    LEASE_SECONDS,
    MAX_WAIT_AHEAD,
    MODEL_SECONDS,
    PREFIX_BYTES,
)
from embedkit_core.coordination.sliding_window import BURST_SECONDS, MARGIN, MINUTE, QUERY_SHARE, RESOLUTION

VERSION = 1
OWNER_DIGITS = 16  # hexadecimal; a lease's ID begins with its owner's
LATE_SECONDS = 86_400.0  # that a lost lease is kept, for its bill
MAX_INTEGER = 2**53 - 1  # that Lua represents exactly

_NAMES = ["meta", "owners", "horizons", "leases", "active", "forget", "claims", "models", "used", "budgets", "attempts"]
_NAMES += ["holds"]
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
_CONSTANTS: dict[str, object] = {
    **{name: microseconds(seconds) for name, seconds in _TIMES.items()},
    "QUERY_SHARE": QUERY_SHARE,
    "OWNER_DIGITS": OWNER_DIGITS,
    "PREFIX_BYTES": PREFIX_BYTES,
    "MAX_INTEGER": MAX_INTEGER,
    "VERSION": f"'{VERSION}'",
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
        except NoScriptError:
            reply = client.eval(self.source, len(KEYS), *values)
        assert isinstance(reply, list)
        return reply


@cache
def script(name: str) -> Script:
    """Return the script of an operation."""
    constants = [f"local {constant} = {value}" for constant, value in _CONSTANTS.items()]
    folder = resources.files("embedkit_core.coordination.redis") / "lua"
    texts = [(folder / f"{part}.lua").read_text(encoding="utf-8") for part in ("state", name)]
    source = "\n".join([*constants, *texts])
    return Script(source, hashlib.sha1(source.encode()).hexdigest())  # noqa: S324 - Redis names scripts so
