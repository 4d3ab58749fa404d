"""Base of the local embeddings servers: faults, held requests, and a record of the traffic.

Refusals are sent at once, replies after the latency. A client that disconnects stops neither the work nor the bill.
The wait methods block: from a coroutine, `await asyncio.to_thread(server.wait_for_requests, 3)`.
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
    """A server that can fail, hold requests, and count what it received, answered and billed."""

    path = "/v1/embeddings"
    texts_field = "input"  # of a request

    latency: float = 0.0  # seconds of work for a request that is not refused
    latency_per_token: float = 0.0
    api_key: str | None = "test-key"  # None: no key is required
    echo_input_in_errors: bool = False  # shows the first text and the Authorization header
    headers: Mapping[str, str] = field(default_factory=dict)  # on every answer
    faults: list[Fault | None] = field(default_factory=list)  # one per request, in order; None: no fault
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

    # Subclasses implement the provider's documented behavior

    def error(self, message: str) -> Json:
        """Return the body of a refusal with this message."""
        raise NotImplementedError

    def texts_of(self, body: Json) -> tuple[str, ...]:
        """Return the texts of a request; empty if the input is not made of strings."""
        given = body.get(self.texts_field)
        return tuple(given) if isinstance(given, list) and all(isinstance(text, str) for text in given) else ()

    def refusal(self, exchange: Exchange) -> tuple[int, Json] | None:
        """Return the status and body of the refusal of a request, or None."""
        raise NotImplementedError

    async def reply(self, exchange: Exchange) -> Json:
        """Return the reply, its vectors as arrays, its rows under "data"."""
        raise NotImplementedError

    async def encoded(self, reply: Json, exchange: Exchange) -> bytes:
        """Return the reply as the bytes that are sent."""
        raise NotImplementedError

    def response_headers(self, exchange: Exchange) -> Mapping[str, str]:
        """Return the headers of the response to a request."""
        return self.headers

    def echo(self, body: Json, seen: str) -> Json:
        """Return a refusal that also contains part of the request."""
        raise NotImplementedError

    def fault_for(self, hook: FaultHook) -> FaultHook:
        """Call `hook(texts, request_number)` for the fault of each request after those in `faults`."""
        self._hook = hook
        return hook

    def hold(self) -> None:
        """Hold requests after they have arrived."""
        self._gate.hold()

    def release(self, n: int | None = None) -> None:
        """Release all requests; with `n`, the next `n` in order of arrival only."""
        self._gate.release(n)

    def wait_for_requests(self, n: int, timeout: float = 10) -> None:
        """Block until `n` requests have arrived since the start, or raise TimeoutError."""
        self._traffic.wait(lambda: len(self.requests) >= n, timeout)

    def wait_in_flight(self, n: int, timeout: float = 10) -> None:
        """Block until at least `n` requests are in flight, for 0 until none is, or raise TimeoutError."""
        self._traffic.wait(lambda: self.in_flight >= n if n else not self.in_flight, timeout)

    @property
    def requests(self) -> list[Exchange]:
        """Every request to the endpoint, in order of arrival, including those that are held."""
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
            await self._gate.wait()
            response, billed = await self._outcome(exchange, fault, connection)
            if response is None or connection.client_left:
                response = None
                return None
            return replace(response, headers={**self.response_headers(exchange), **response.headers})
        except Exception as crash:
            self.crashes.append(crash)
            return None
        finally:
            self._traffic.leave(exchange, response.status if response else None, billed=billed)

    async def _outcome(self, exchange: Exchange, fault: Fault, connection: Connection) -> tuple[Response | None, bool]:
        """Return the response (None: close the connection) and whether the texts are billed."""
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
