"""A fake OpenAI server, several times faster than its clients: `python -m benchmarks.speed.server` prints its port.

`POST /v1/embeddings` is the provider's endpoint; `POST /reset` takes settings (`service.Settings`) and resets the
counts, `GET /stats` returns them, `GET /arrivals` the requests by time. For loopback and trusted clients only: the
parser handles only their requests.
"""

import asyncio
import re
import signal
from functools import partial
from typing import cast

import orjson
import uvloop

from benchmarks.speed.service import Answer, Service, Stats

CONTENT_LENGTH = re.compile(rb"content-length: *(\d+)", re.I)
PHRASES = {200: "OK", 400: "Bad Request", 404: "Not Found", 429: "Too Many Requests", 500: "Internal Server Error"}


class Connection(asyncio.Protocol):
    """The connection of a client, with one request at a time."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._buffer = bytearray()
        self._needed = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= self._needed and (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._buffer[:end])
            length = CONTENT_LENGTH.search(head)
            self._needed = end + 4 + (int(length[1]) if length else 0)
            if len(self._buffer) < self._needed:
                return
            body = bytes(self._buffer[end + 4 : self._needed])
            del self._buffer[: self._needed]
            self._needed = 0
            self._handle(head.partition(b" HTTP")[0], body)

    def _handle(self, what: bytes, body: bytes) -> None:
        service = self._service
        if what == b"POST /v1/embeddings":
            answer = service.embed(body)
            if answer.delay or answer.works:
                asyncio.get_running_loop().call_later(answer.delay, partial(self._send, answer, service.stats))
            else:
                self._send(answer, None)
        elif what == b"POST /reset":
            service.reset(orjson.loads(body))
            self._send(Answer(200, lambda: b"{}"), None)
        elif what == b"GET /stats":
            self._send(Answer(200, lambda: orjson.dumps(service.stats.summary())), None)
        elif what == b"GET /arrivals":
            self._send(Answer(200, lambda: orjson.dumps(service.stats.arrivals)), None)
        else:
            self._send(Answer(404, lambda: b"{}"), None)

    def _send(self, answer: Answer, working: Stats | None) -> None:
        if working:
            working.in_flight -= 1
        if answer.body is None or self._transport.is_closing():
            self._transport.abort()
            return
        body = answer.body()
        head = (
            f"HTTP/1.1 {answer.status} {PHRASES[answer.status]}\r\ncontent-type: application/json\r\n"
            f"{answer.headers}content-length: {len(body)}\r\n\r\n"
        )
        self._transport.writelines([head.encode(), body])


async def serve() -> None:
    """Serve until told to stop."""
    loop = asyncio.get_running_loop()
    service = Service()
    server = await loop.create_server(lambda: Connection(service), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    stopped = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    await stopped.wait()


if __name__ == "__main__":
    uvloop.run(serve())
