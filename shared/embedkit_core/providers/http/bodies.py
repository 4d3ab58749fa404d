"""Response bodies: decompression, and limits on their decompressed size that follow from the request.

Without a limit, 2 MB of gzip become gigabytes of memory. The clients decompress here instead of in their HTTP library,
because those have no limit and ask for every compression that an installed package can undo.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable
from contextvars import ContextVar
from typing import Any, NamedTuple

from embedkit_core.common.errors import BadReplyError, UnavailableError
from embedkit_core.common.types import Batch
from embedkit_core.providers.http.surplus import drop_if_surplus

ACCEPT_ENCODING = "gzip"
GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS  # by the first bytes

BYTES_PER_NUMBER = 32  # a float64 as text, indented; base64 and integers need less
BYTES_PER_CHARACTER = 32  # of a text that the server repeats in its response several times, as \uXXXX
BYTES_BESIDES = 1 << 20
MIN_WIDTH = 4_096  # a server that ignores the requested width must get the error about it
MAX_WIDTH = 16_384  # of a vector, if the width is unknown

Decompress = Callable[[bytes, int], bytes]


class BodyLimits(NamedTuple):
    """Largest body of a reply and of a refusal, in bytes after decompression."""

    reply: int
    refusal: int

    @classmethod
    def of(cls, batch: Batch) -> BodyLimits:
        """Return the limits of the response to a request."""
        characters = len(str(batch.body.get("prompt", ""))) * len(batch.texts) + sum(map(len, batch.texts))
        refusal = BYTES_BESIDES + BYTES_PER_CHARACTER * characters
        width = max(MIN_WIDTH, *batch.widths) if batch.widths else MAX_WIDTH
        return cls(refusal + BYTES_PER_NUMBER * width * len(batch.texts), refusal)


_limits: ContextVar[BodyLimits] = ContextVar("body_limits")  # of the request that the current task sends


def limit_bodies(batch: Batch) -> BodyLimits:
    """Return the limits of the response to a request, and set them for the `limiting_hook` in this task."""
    limits = BodyLimits.of(batch)
    _limits.set(limits)
    return limits


def limit_bodies_to(size: int) -> None:
    """Set the limit of a reply without vectors, such as the content of a file, for the `limiting_hook` in this task."""
    _limits.set(BodyLimits(size, BYTES_BESIDES))


class LimitedBody:
    """Decompression of one response body, up to its limit.

    A refusal is cut off where it exceeds its limit or cannot be decompressed: its status is enough for an error.

    Args:
        status: HTTP status.
        encoding: The Content-Encoding header, "" for none.
        limits: Limits of the request.

    Attributes:
        is_cut: True if the rest of the body is not needed.

    Raises:
        BadReplyError: The compression of a reply was not requested.
    """

    def __init__(self, status: int, encoding: str, limits: BodyLimits) -> None:
        self._is_reply = 200 <= status < 300
        self._limit = self._room = limits.reply if self._is_reply else limits.refusal
        self.is_cut = False
        try:
            self._decompress = _decompressor(encoding)
        except BadReplyError:
            self.is_cut = True
            if self._is_reply:
                raise

    def read(self, chunk: bytes) -> bytes:
        """Return the decompressed chunk.

        Raises:
            BadReplyError: A reply exceeds its limit.
            UnavailableError: The compressed bytes of a reply are damaged.
        """
        try:
            part = self._decompress(chunk, self._room + 1)
        except zlib.error:
            self.is_cut = True
            if self._is_reply:
                raise UnavailableError("Server response was damaged: it cannot be decompressed") from None
            return b""
        kept, self._room = part[: self._room], self._room - len(part)
        if self._room < 0:
            self.is_cut = True
            if self._is_reply:
                raise _oversized(self._limit)
        return kept


async def read_decompressed(
    chunks: AsyncIterable[bytes], *, status: int, encoding: str, limits: BodyLimits
) -> AsyncIterator[bytes]:
    """Yield the chunks of a response body as `LimitedBody` reads them, and raise its errors."""
    received = chunks.__aiter__()
    try:
        body = LimitedBody(status, encoding, limits)
        while not body.is_cut and (chunk := await anext(received, None)) is not None:
            yield body.read(chunk)
    finally:
        if isinstance(received, AsyncGenerator):
            await received.aclose()


def _decompressor(encoding: str) -> Decompress:
    """Return a function of a chunk and the most bytes to return."""
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return lambda chunk, _most: chunk
    if name not in ("gzip", "x-gzip", "deflate"):
        raise BadReplyError(f"Server response is compressed in a way that was not requested ({name[:40]!r})")
    return zlib.decompressobj(GZIP_OR_ZLIB).decompress


def _oversized(limit: int) -> BadReplyError:
    error = BadReplyError(
        f"Server response is larger than {limit:,} bytes, more than any reply to this request can have. It was "
        "discarded. Check base_url="
    )
    error.lasts = True
    return error


def limiting_hook(stream_class: type[Any]) -> Callable[[Any], Any]:
    """Return a response hook for a client of httpx or httpx2 that applies `limit_bodies` and decompresses.

    Args:
        stream_class: `AsyncByteStream` of the client's package.
    """

    class LimitedStream(stream_class):  # type: ignore[misc]
        def __init__(self, response: Any) -> None:
            self._stream = response.stream
            self._chunks = read_decompressed(
                response.stream,
                status=response.status_code,
                encoding=response.headers.get("content-encoding", ""),
                limits=_limits.get(),
            )

        def __aiter__(self) -> AsyncIterator[bytes]:
            return self._chunks

        async def aclose(self) -> None:
            drop_if_surplus(self._stream)
            await self._stream.aclose()

    async def limit(response: Any) -> None:
        stream = LimitedStream(response)
        if "content-encoding" in response.headers:
            del response.headers["content-encoding"]
        response.stream = stream

    return limit
