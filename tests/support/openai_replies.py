"""Replies of OpenAI's embeddings endpoint: vectors, bodies, headers and faults."""

import asyncio
import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from functools import lru_cache
from hashlib import sha256
from typing import Any, Self

import numpy as np

Json = dict[str, Any]
Vector = np.ndarray[tuple[int], np.dtype[np.float32]]
INVALID_INPUT = "'$.input' is invalid. Please check the API reference: https://platform.openai.com/docs/api-reference."


def tokens_of(text: str) -> int:
    """Return the number of tokens of a text in the server's count: words, at least one."""
    return max(1, len(text.split()))


@lru_cache(maxsize=8192)
def _native_vector(text: str, native: int, model: str) -> Vector:
    seed = int.from_bytes(sha256(f"{model}\0{text}".encode("utf-8", "surrogatepass")).digest())
    return _unit(np.random.default_rng(seed).standard_normal(native, dtype=np.float32))


def _unit(vector: Vector) -> Vector:
    wide = vector.astype(np.float64)
    unit = (wide / np.sqrt(wide @ wide)).astype(np.float32)
    unit.flags.writeable = False
    return unit


def vector_of(text: str, dimensions: int = 1536, native: int = 1536, model: str = "text-embedding-3-small") -> Vector:
    """Return the server's vector of a text: normalized, float32 (dimensions,), read-only.

    Fewer dimensions than the native width are the prefix, normalized again.
    """
    whole = _native_vector(text, native, model)
    return whole if dimensions == native else _unit(whole[:dimensions])


def error(
    message: str, *, kind: str = "invalid_request_error", param: str | None = None, code: str | None = None
) -> Json:
    """Return the body of a refusal."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def too_long(tokens: int, limit: int) -> Json:
    return error(
        f"This model's maximum context length is {limit} tokens, however you requested {tokens} tokens "
        f"({tokens} in your prompt; 0 for the completion). Please reduce your prompt; or completion length."
    )


def too_many_tokens(tokens: int, limit: int) -> Json:
    kind = "max_tokens_per_request"
    return error(f"Requested {tokens} tokens, max {limit} tokens per request", kind=kind, code=kind)


def go_duration(seconds: float) -> str:
    """Format seconds as Go does: "12ms", "1.5s", "6m0s"."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    minutes, rest = divmod(round(seconds, 3), 60)
    return f"{int(minutes)}m{rest:g}s" if minutes else f"{rest:g}s"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """The fault of one request; fields with their defaults change nothing.

    `transform` gets the reply as a dict with writable float32 arrays, for every encoding, and changes it or returns
    another. Values that are no arrays are sent as they are.
    """

    status: int | None = None  # answer this, with `body`
    body: Json | str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0  # seconds, before anything else
    cut: bool = False  # close the connection without an answer
    cut_after_work: bool = False  # bill it, then close without an answer
    hang: bool = False  # no answer until the client leaves or the server stops
    billed: bool = False  # bill it although it fails
    transform: Callable[[Json], Json | None] | None = None
    raw: bytes | None = None  # answer these bytes, as an HTML page; status 200 unless given

    @classmethod
    def rate_limited(
        cls, *, retry_after: float | None = None, retry_after_ms: float | None = None, date: datetime | None = None
    ) -> Self:
        """Return a 429 for too many tokens per minute; `date` is sent as an HTTP date in Retry-After."""
        headers = {}
        if date is not None:
            headers["retry-after"] = format_datetime(date.astimezone(UTC), usegmt=True)
        if retry_after is not None:
            headers["retry-after"] = f"{retry_after:g}"
        if retry_after_ms is not None:
            headers["retry-after-ms"] = f"{retry_after_ms:g}"
        message = "Rate limit reached on tokens per min (TPM): Limit 1000000, Used 1000000, Requested 10."
        return cls(status=429, headers=headers, body=error(message, kind="tokens", code="rate_limit_exceeded"))

    @classmethod
    def quota(cls) -> Self:
        message = "You exceeded your current quota, please check your plan and billing details."
        return cls(status=429, body=error(message, kind="insufficient_quota", code="insufficient_quota"))

    @classmethod
    def server_error(cls, status: int = 500) -> Self:
        message = "The server had an error while processing your request. Sorry about that!"
        return cls(status=status, body=error(message, kind="server_error"))

    @classmethod
    def unauthorized(cls) -> Self:
        return cls(status=401, body=error("Incorrect API key provided.", code="invalid_api_key"))


async def yield_to_loop(step: int) -> None:
    """Yield to the event loop every 64 rows, so that other requests are served."""
    if step % 64 == 63:
        await asyncio.sleep(0)


def make_writable(reply: Json) -> None:
    for item in reply["data"]:
        item["embedding"] = item["embedding"].copy()


async def encoded(reply: Json, *, as_base64: bool) -> bytes:
    """Return the reply as JSON, its arrays as base64 of little-endian float32 or as numbers that round-trip."""

    def plain(value: Vector) -> str | list[float]:
        return base64.b64encode(value.astype("<f4").tobytes()).decode() if as_base64 else value.tolist()

    return await as_json(reply, plain)


async def as_json(reply: Json, plain: Callable[[Any], Any]) -> bytes:
    """Return the reply as JSON, other types converted by `plain`; yield to the event loop between rows."""
    encode = json.JSONEncoder(default=plain).encode
    if not isinstance(reply.get("data"), list):
        return encode(reply).encode()
    rows = []
    for index, item in enumerate(reply["data"]):
        await yield_to_loop(index)
        rows.append(encode(item))
    rest = encode({name: value for name, value in reply.items() if name != "data"})
    return f'{{"data": [{", ".join(rows)}]{", " if rest != "{}" else ""}{rest[1:]}'.encode()
