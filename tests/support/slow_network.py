"""A network with a long way to a server: a local relay that delays what it forwards."""

import asyncio
import contextlib
import threading
from concurrent.futures import Future
from typing import Self


class SlowNetwork:
    """Forwards TCP connections to a port of the loopback interface, and delays each direction.

    Args:
        target: The port of the server.
        seconds: The delay of each direction; a round trip takes twice as long.

    Attributes:
        port: The port of the relay.
        target: The port of the server, for new connections.
    """

    def __init__(self, target: int, seconds: float) -> None:
        self.target, self._seconds = target, seconds
        self._ready: Future[int] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="slow-network")

    @property
    def port(self) -> int:
        return self._ready.result(timeout=5)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(timeout=5)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._writers: list[asyncio.StreamWriter] = []
        server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self._ready.set_result(server.sockets[0].getsockname()[1])
        await self._stop.wait()
        server.close()
        for writer in self._writers:
            writer.transport.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, *(writer.wait_closed() for writer in self._writers), return_exceptions=True)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self.target)
        self._writers += writer, back
        self._tasks += (
            self._loop.create_task(self._forward(source, target))
            for source, target in ((reader, back), (there, writer))
        )

    async def _forward(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(65536):
                self._loop.call_later(self._seconds, target.write, data)
        self._loop.call_later(self._seconds, target.close)
