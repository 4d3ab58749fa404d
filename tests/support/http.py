"""A small HTTP/1.1 server on 127.0.0.1 in its own thread, which can hold requests and records them.

It serves this process and its children. A forked child inherits the open sockets, so connections are shut down and not
only closed: that ends them in every process.
"""

import asyncio
import contextlib
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from http import HTTPStatus
from types import TracebackType
from typing import Any, Literal, Self


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]  # names in lower case
    body: bytes
    query: str = ""


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    def head(self) -> bytes:
        try:
            phrase = HTTPStatus(self.status).phrase
        except ValueError:
            phrase = "Unknown"
        headers = {"content-type": "application/json", "date": formatdate(usegmt=True)}
        headers |= {name.lower(): value for name, value in self.headers.items()}
        headers["content-length"] = str(len(self.body))
        lines = [f"HTTP/1.1 {self.status} {phrase}", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        return "\r\n".join(lines).encode("latin-1")


@dataclass(frozen=True, slots=True)
class Connection:
    """The TCP connection of a client."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @property
    def client_left(self) -> bool:
        return self.reader.at_eof() or self.writer.is_closing()

    async def wait_until_client_leaves(self) -> None:
        while await self.reader.read(65536):
            pass

    async def read(self) -> Request | None:
        """Return the next request, or None after the client has closed the connection."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
            first, *lines = head[:-4].decode("latin-1").split("\r\n")
            method, target, _ = first.split(" ", 2)
            pairs = (line.partition(":") for line in lines)
            headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
            body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        path, _, query = target.partition("?")
        return Request(method, path, headers, body, query)

    async def write(self, response: Response) -> None:
        self.writer.write(response.head())
        self.writer.write(response.body)
        await self.writer.drain()

    def end(self) -> None:
        with contextlib.suppress(OSError):
            self.writer.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
        self.writer.transport.abort()


class LocalServer:
    """Serves HTTP requests while its `with` block is open; subclasses implement `answer`."""

    def __init__(self) -> None:
        self.connections = 0  # accepted so far
        self.crashes: list[Exception] = []  # errors in `answer` or in a hook of a test; the first is raised at exit
        self._address: Future[tuple[str, int]] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name=type(self).__name__)
        self._open: dict[asyncio.Task[None], Connection] = {}

    async def answer(self, request: Request, connection: Connection) -> Response | None:
        """Return the response to a request; None closes the connection."""
        raise NotImplementedError

    @property
    def origin(self) -> str:
        """As in "http://127.0.0.1:54321"."""
        host, port = self._address.result(timeout=0)
        return f"http://{host}:{port}"

    def __enter__(self) -> Self:
        self._thread.start()
        self._address.result(timeout=10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed already
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(timeout=10)
        if self._thread.is_alive():
            raise RuntimeError("the server's thread did not end")
        if self.crashes and error is None:
            raise self.crashes[0]

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        try:
            server = await asyncio.start_server(self._accept, "127.0.0.1", 0, backlog=1024, limit=2**20)
        except OSError as error:
            self._address.set_exception(error)
            return
        self._address.set_result(server.sockets[0].getsockname())
        await self._stop.wait()
        for listener in server.sockets:
            self._loop.remove_reader(listener.fileno())
        for _ in range(3):  # asyncio finishes the connections it has accepted; it cannot once the server is closed
            await asyncio.sleep(0)
        for listener in server.sockets:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
        server.close()
        for task, connection in self._open.items():
            connection.end()
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        await server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(reader, writer)
        if self._stop.is_set():
            connection.end()
            return
        task = self._loop.create_task(self._converse(connection))
        self._open[task] = connection
        task.add_done_callback(self._open.pop)
        self.connections += 1

    async def _converse(self, connection: Connection) -> None:
        try:
            await self._answer_all(connection)
        except (ConnectionError, asyncio.CancelledError):
            pass  # the client has disconnected, or the server stops
        except Exception as error:
            self.crashes.append(error)
        finally:
            connection.end()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await connection.writer.wait_closed()

    async def _answer_all(self, connection: Connection) -> None:
        while (request := await connection.read()) is not None:
            response = await self.answer(request, connection)
            if response is None:
                return
            await connection.write(response)
            if request.headers.get("connection", "").lower() == "close":
                return


class Gate:
    """Holds requests and releases them in order of arrival."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held = False
        self._permits = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    def hold(self) -> None:
        with self._lock:
            self._held, self._permits = True, 0

    def release(self, n: int | None = None) -> None:
        """Release all requests; with `n`, the next `n` only, those that are held first."""
        with self._lock:
            if n is None:
                self._held, leaving = False, len(self._waiting)
            else:
                leaving = min(n, len(self._waiting))
                self._permits += n - leaving
            for _ in range(leaving):
                turn = self._waiting.popleft()
                turn.get_loop().call_soon_threadsafe(self._let_go, turn)

    @staticmethod
    def _let_go(turn: asyncio.Future[None]) -> None:
        if not turn.done():  # the server may be stopping
            turn.set_result(None)

    async def wait(self) -> None:
        with self._lock:
            if not self._held:
                return
            if self._permits:
                self._permits -= 1
                return
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
        try:
            await turn
        finally:
            with self._lock, contextlib.suppress(ValueError):
                self._waiting.remove(turn)


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request and its outcome."""

    number: int  # from 1, in order of arrival
    texts: tuple[str, ...]  # empty if the input was not made of strings
    tokens: int
    body: dict[str, Any]
    headers: dict[str, str]  # names in lower case
    started: float  # time.monotonic()
    ended: float | None = None
    status: int | None = None  # None while it is held, and if the connection was closed
    outcome: Literal["waiting", "answered", "refused", "cut"] = "waiting"
    billed: bool = False


class Traffic:
    """Thread-safe record of the requests of a server; every value returned is a copy."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._exchanges: dict[int, Exchange] = {}
        self._billed: Counter[str] = Counter()
        self._billed_tokens = 0
        self._in_flight = 0
        self._peak = 0

    def arrive(self, texts: tuple[str, ...], tokens: int, body: dict[str, Any], headers: dict[str, str]) -> Exchange:
        with self._changed:
            number = len(self._exchanges) + 1
            exchange = self._exchanges[number] = Exchange(number, texts, tokens, body, headers, time.monotonic())
            self._in_flight += 1
            self._peak = max(self._peak, self._in_flight)
            self._changed.notify_all()
            return exchange

    def leave(self, exchange: Exchange, status: int | None, *, billed: bool) -> None:
        """Record the outcome, before the response is written: a client that has read it finds it counted."""
        outcome: Literal["answered", "refused", "cut"]
        outcome = "cut" if status is None else "answered" if status < 400 else "refused"
        with self._changed:
            self._exchanges[exchange.number] = replace(
                exchange, ended=time.monotonic(), status=status, outcome=outcome, billed=billed
            )
            self._in_flight -= 1
            if billed:
                self._billed.update(exchange.texts)
                self._billed_tokens += exchange.tokens
            self._changed.notify_all()

    def wait(self, until: Callable[[], bool], timeout: float) -> None:
        with self._changed:
            if not self._changed.wait_for(until, timeout):
                raise TimeoutError(f"{len(self._exchanges)} requests have arrived, {self._in_flight} are in flight")

    @property
    def exchanges(self) -> list[Exchange]:
        with self._changed:
            return list(self._exchanges.values())

    @property
    def billed_texts(self) -> Counter[str]:
        with self._changed:
            return self._billed.copy()

    @property
    def billed_tokens(self) -> int:
        return self._billed_tokens

    @property
    def in_flight(self) -> int:
        return self._in_flight

    @property
    def peak_in_flight(self) -> int:
        return self._peak
