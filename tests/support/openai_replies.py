"""What OpenAI's embeddings endpoint answers: vectors, bodies, headers, and the ways in which it fails."""

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
    """The server's idea of tokens: words, at least one."""
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
    """What the server answers for a text: a unit vector, float32 (dimensions,), read-only.

    Fewer dimensions than the native width give the prefix, renormalised.
    """
    whole = _native_vector(text, native, model)
    return whole if dimensions == native else _unit(whole[:dimensions])


def error(
    message: str, *, kind: str = "invalid_request_error", param: str | None = None, code: str | None = None
) -> Json:
    """The body of a refusal."""
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
    """As in "12ms", "1.5s" and "6m0s"."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    minutes, rest = divmod(round(seconds, 3), 60)
    return f"{int(minutes)}m{rest:g}s" if minutes else f"{rest:g}s"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What goes wrong with one request; the fields left alone change nothing.

    `transform` gets the reply as a dict whose embeddings are writable float32 arrays, whatever the encoding asked for,
    and changes it or returns another; what is no longer an array is sent as it is.
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
        """Too many tokens a minute; `date`, with a time zone, is Retry-After as an HTTP date."""
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


async def breathe(step: int) -> None:
    """Let other requests be served between the rows of a large one."""
    if step % 64 == 63:
        await asyncio.sleep(0)


def make_writable(reply: Json) -> None:
    for item in reply["data"]:
        item["embedding"] = item["embedding"].copy()


async def encoded(reply: Json, *, as_base64: bool) -> bytes:
    """The reply as JSON, its arrays as base64 of little-endian float32 or as numbers that round-trip to float32."""

    def plain(value: Vector) -> str | list[float]:
        return base64.b64encode(value.astype("<f4").tobytes()).decode() if as_base64 else value.tolist()

    return await as_json(reply, plain)


async def as_json(reply: Json, plain: Callable[[Any], Any]) -> bytes:
    """The reply as JSON, what is not JSON's own by `plain`, with a breath between the rows of its "data"."""
    encode = json.JSONEncoder(default=plain).encode
    if not isinstance(reply.get("data"), list):
        return encode(reply).encode()
    rows = []
    for index, item in enumerate(reply["data"]):
        await breathe(index)
        rows.append(encode(item))
    rest = encode({name: value for name, value in reply.items() if name != "data"})
    return f'{{"data": [{", ".join(rows)}]{", " if rest != "{}" else ""}{rest[1:]}'.encode()
