"""A local server for embeddings that misbehaves on request; what a provider documents is a subclass's.

A refusal leaves at once, an answer after the latency; a client that leaves stops neither the work nor the bill.
The waiting methods block: from a coroutine, `await asyncio.to_thread(server.wait_for_requests, 3)`.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from .http import Connection, Exchange, Gate, LocalServer, Request, Response, Traffic
from .openai_replies import Fault, Json, make_writable, tokens_of

FaultHook = Callable[[tuple[str, ...], int], Fault | None]


@dataclass(kw_only=True, eq=False, repr=False)
class EmbeddingsServer(LocalServer):
    """What all of them have: faults, a gate, a record of what was asked, answered and billed."""

    path = "/v1/embeddings"

    latency: float = 0.0  # seconds of work for a request that is not refused
    latency_per_token: float = 0.0
    api_key: str | None = "test-key"  # None: any or none
    echo_input_in_errors: bool = False  # shows the first text and the Authorization header
    headers: Mapping[str, str] = field(default_factory=dict)  # on every answer
    faults: list[Fault | None] = field(default_factory=list)  # one a request, in order; None: that one goes well
    rejected_texts: set[str] = field(default_factory=set)  # texts no request may contain

    def __post_init__(self) -> None:
        super().__init__()
        self._hook: FaultHook = lambda texts, request_number: None
        self._traffic = Traffic()
        self._gate = Gate()
        self._unknown_paths: list[str] = []

    @property
    def base_url(self) -> str:
        return f"{self.origin}{self.path.rpartition('/')[0]}"

    # What a provider documents

    def error(self, message: str) -> Json:
        """The body of a refusal that says this."""
        raise NotImplementedError

    def texts_of(self, body: Json) -> tuple[str, ...]:
        """The texts of a request; none if they are not strings, as token arrays are not."""
        raise NotImplementedError

    def refusal(self, exchange: Exchange) -> tuple[int, Json] | None:
        """The status and body that a request is refused with, if it is."""
        raise NotImplementedError

    async def reply(self, exchange: Exchange) -> Json:
        """The answer, its vectors as arrays; a list of its rows is under "data"."""
        raise NotImplementedError

    async def encoded(self, reply: Json, exchange: Exchange) -> bytes:
        """The answer as it goes out."""
        raise NotImplementedError

    def told(self, exchange: Exchange) -> Mapping[str, str]:
        """The headers of every answer to this request."""
        return self.headers

    def echo(self, body: Json, seen: str) -> Json:
        """A refusal that also shows what was asked."""
        raise NotImplementedError

    def fault_for(self, hook: FaultHook) -> FaultHook:
        """Ask `hook(texts, request_number)` for the fault of each request that `faults` is too short for."""
        self._hook = hook
        return hook

    def hold(self) -> None:
        """Make requests wait once they have arrived."""
        self._gate.hold()

    def release(self, n: int | None = None) -> None:
        """Let all requests go; with `n`, only the next `n` in order of arrival, and hold the others."""
        self._gate.release(n)

    def wait_for_requests(self, n: int, timeout: float = 10) -> None:
        """Block until `n` requests have arrived since the start, or raise TimeoutError."""
        self._traffic.wait(lambda: len(self.requests) >= n, timeout)

    def wait_in_flight(self, n: int, timeout: float = 10) -> None:
        """Block until at least `n` requests are in flight, for 0 until none is, or raise TimeoutError."""
        self._traffic.wait(lambda: self.in_flight >= n if n else not self.in_flight, timeout)

    @property
    def requests(self) -> list[Exchange]:
        """Every request to `/v1/embeddings`, in order of arrival, also those that still wait."""
        return self._traffic.exchanges

    @property
    def billed_texts(self) -> Counter[str]:
        return self._traffic.billed_texts

    @property
    def billed_tokens(self) -> int:
        return self._traffic.billed_tokens

    @property
    def in_flight(self) -> int:
        return self._traffic.in_flight

    @property
    def peak_in_flight(self) -> int:
        return self._traffic.peak_in_flight

    @property
    def unknown_paths(self) -> list[str]:
        """As in "GET /v1/models"."""
        return self._unknown_paths.copy()

    async def answer(self, request: Request, connection: Connection) -> Response | None:
        if (request.method, request.path) != ("POST", self.path):
            self._unknown_paths.append(f"{request.method} {request.path}")
            return self._refuse(404, self.error(f"Invalid URL ({request.method} {request.path})"))
        body = _parsed(request.body)
        texts = self.texts_of(body)
        exchange = self._traffic.arrive(texts, sum(map(tokens_of, texts)), body, request.headers)
        response, billed = None, False
        try:
            fault = (self.faults.pop(0) if self.faults else self._hook(texts, exchange.number)) or Fault()
            await self._gate.passed()
            response, billed = await self._outcome(exchange, fault, connection)
            if response is None or connection.client_left:
                response = None
                return None
            return replace(response, headers={**self.told(exchange), **response.headers})
        except Exception as crash:
            self.crashes.append(crash)
            return None
        finally:
            self._traffic.leave(exchange, response.status if response else None, billed=billed)

    async def _outcome(self, exchange: Exchange, fault: Fault, connection: Connection) -> tuple[Response | None, bool]:
        """The answer, or None for a cut, and whether the texts are billed."""
        await asyncio.sleep(fault.delay)
        if fault.hang:
            await connection.wait_until_client_leaves()
        if fault.hang or fault.cut:
            return None, fault.billed
        if fault.raw is not None:
            return Response(
                fault.status or 200, fault.raw, {"content-type": "text/html", **fault.headers}
            ), fault.billed
        if fault.status is not None:
            refused = self.error(f"Refused with status {fault.status}.") if fault.body is None else fault.body
            return self._refuse(fault.status, refused, exchange, fault.headers), fault.billed
        if refusal := self.refusal(exchange):
            return self._refuse(*refusal, exchange, fault.headers), fault.billed
        clock = asyncio.get_running_loop().time
        ready = clock() + self.latency + self.latency_per_token * exchange.tokens
        reply = await self.reply(exchange)
        if fault.transform is not None:
            make_writable(reply)
            reply = fault.transform(reply) or reply
        body = await self.encoded(reply, exchange)
        await asyncio.sleep(ready - clock())
        return None if fault.cut_after_work else Response(200, body, fault.headers), True

    def _refuse(
        self, status: int, body: Json | str, exchange: Exchange | None = None, headers: Mapping[str, str] | None = None
    ) -> Response:
        if isinstance(body, str):
            return Response(status, body.encode(), {"content-type": "text/plain", **(headers or {})})
        if self.echo_input_in_errors and exchange is not None:
            seen = f" Input: {exchange.texts[:1]}. Authorization: {exchange.headers.get('authorization')}"
            body = self.echo(body, seen)
        return Response(status, json.dumps(body).encode(), headers or {})


def _parsed(body: bytes) -> Json:
    try:
        value = json.loads(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
