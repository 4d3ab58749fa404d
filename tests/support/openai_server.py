"""A local server that answers `POST /v1/embeddings` as OpenAI documents it, and misbehaves on request.

A refusal leaves at once, an answer after the latency; a client that leaves stops neither the work nor the bill.
The waiting methods block: from a coroutine, `await asyncio.to_thread(server.wait_for_requests, 3)`.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from support.bucket import Bucket
from support.http import Connection, Exchange, Gate, LocalServer, Request, Response, Traffic
from support.openai_replies import (
    INVALID_INPUT,
    Fault,
    Json,
    breathe,
    encoded,
    error,
    go_duration,
    make_writable,
    tokens_of,
    too_long,
    too_many_tokens,
    vector_of,
)

__all__ = ["Bucket", "Exchange", "Fault", "OpenAIServer", "tokens_of", "vector_of"]

FaultHook = Callable[[tuple[str, ...], int], Fault | None]


@dataclass(kw_only=True, eq=False, repr=False)
class OpenAIServer(LocalServer):
    """How a server answers, and what it has seen; the defaults are OpenAI's."""

    dimensions: int = 1536  # of every model; a request may ask for fewer
    latency: float = 0.0  # seconds of work for a request that is not refused
    latency_per_token: float = 0.0
    max_inputs: int = 2048
    max_tokens_per_text: int = 8192
    max_tokens_per_request: int = 300_000
    api_key: str | None = "test-key"  # None: any or none
    models: Collection[str] | None = None  # None: any
    base64: bool = True  # False: refuses it
    always_floats: bool = False  # whatever encoding is asked for
    ignores_dimensions: bool = False
    shuffle_index: bool = False  # data never in the order of the input, each with its true index
    omit_index: bool = False
    omit_usage: bool = False
    echo_input_in_errors: bool = False  # shows the first text and the Authorization header
    requests_per_minute: int = 10_000  # these two are told, not enforced, unless there is a bucket
    tokens_per_minute: int = 10_000_000
    bucket: Bucket | None = None  # enforces tokens, and tells what it holds unless it is silent
    headers: Mapping[str, str] = field(default_factory=dict)  # on every answer
    faults: list[Fault | None] = field(default_factory=list)  # one a request, in order; None: that one goes well
    poison: set[str] = field(default_factory=set)  # texts no request may contain

    def __post_init__(self) -> None:
        super().__init__()
        self._hook: FaultHook = lambda texts, request_number: None
        self._traffic = Traffic()
        self._gate = Gate()
        self._unknown_paths: list[str] = []

    @property
    def base_url(self) -> str:
        return f"{self.origin}/v1"

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
        if (request.method, request.path) != ("POST", "/v1/embeddings"):
            self._unknown_paths.append(f"{request.method} {request.path}")
            return self._refuse(404, error(f"Invalid URL ({request.method} {request.path})"))
        body = _parsed(request.body)
        texts = _texts_of(body)
        exchange = self._traffic.arrive(texts, sum(map(tokens_of, texts)), body, request.headers)
        response, billed = None, False
        try:
            fault = (self.faults.pop(0) if self.faults else self._hook(texts, exchange.number)) or Fault()
            await self._gate.passed()
            response, billed = await self._outcome(exchange, fault, connection)
            if response is None or connection.client_left:
                response = None
                return None
            return replace(response, headers={**self._told(exchange), **response.headers})
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
            refused = error(f"Refused with status {fault.status}.") if fault.body is None else fault.body
            return self._refuse(fault.status, refused, exchange, fault.headers), fault.billed
        if refusal := self._refusal(exchange):
            return self._refuse(*refusal, exchange, fault.headers), fault.billed
        clock = asyncio.get_running_loop().time
        ready = clock() + self.latency + self.latency_per_token * exchange.tokens
        reply = await self._reply(exchange)
        if fault.transform is not None:
            make_writable(reply)
            reply = fault.transform(reply) or reply
        as_base64 = exchange.body.get("encoding_format") == "base64" and not self.always_floats
        body = await encoded(reply, as_base64=as_base64)
        await asyncio.sleep(ready - clock())
        return None if fault.cut_after_work else Response(200, body, fault.headers), True

    def _refusal(self, exchange: Exchange) -> tuple[int, Json] | None:
        """The status and body OpenAI would refuse this with."""
        body, texts, model = exchange.body, exchange.texts, exchange.body.get("model")
        dimensions = body.get("dimensions")
        if self.api_key is not None and exchange.headers.get("authorization") != f"Bearer {self.api_key}":
            return 401, error("Incorrect API key provided.", code="invalid_api_key")
        if not isinstance(model, str):
            return 400, error("you must provide a model parameter")
        if self.models is not None and model not in self.models:
            return 404, error(f"The model `{model}` does not exist.", code="model_not_found")
        if not 1 <= len(texts) <= self.max_inputs or "" in texts or not self.poison.isdisjoint(texts):
            return 400, error(INVALID_INPUT)
        if dimensions is not None and model == "text-embedding-ada-002":
            return 400, error("This model does not support specifying dimensions.")
        if dimensions is not None and not (type(dimensions) is int and 1 <= dimensions <= self.dimensions):
            return 400, error(f"'dimensions' must be from 1 to {self.dimensions}.", param="dimensions")
        if (body.get("encoding_format") or "float") not in (("float", "base64") if self.base64 else ("float",)):
            return 400, error("This encoding_format is not supported.", param="encoding_format")
        longest = max(map(tokens_of, texts))
        if longest > self.max_tokens_per_text:
            return 400, too_long(longest, self.max_tokens_per_text)
        if exchange.tokens > self.max_tokens_per_request:
            return 400, too_many_tokens(exchange.tokens, self.max_tokens_per_request)
        if self.bucket is not None and not self.bucket.take(exchange.tokens):
            return 429, error("Rate limit reached on tokens per min (TPM).", code="rate_limit_exceeded")
        return None

    def _refuse(
        self, status: int, body: Json | str, exchange: Exchange | None = None, headers: Mapping[str, str] | None = None
    ) -> Response:
        if isinstance(body, str):
            return Response(status, body.encode(), {"content-type": "text/plain", **(headers or {})})
        if self.echo_input_in_errors and exchange is not None and isinstance(body.get("error"), dict):
            seen = f" Input: {exchange.texts[:1]}. Authorization: {exchange.headers.get('authorization')}"
            body = {**body, "error": {**body["error"], "message": f"{body['error'].get('message')}{seen}"}}
        return Response(status, json.dumps(body).encode(), headers or {})

    async def _reply(self, exchange: Exchange) -> Json:
        model = exchange.body["model"]
        asked = None if self.ignores_dimensions else exchange.body.get("dimensions")
        dimensions = asked or self.dimensions
        data: list[Json] = []
        for index, text in enumerate(exchange.texts):
            await breathe(index)
            vector = vector_of(text, dimensions, self.dimensions, model)
            data.append({"object": "embedding", "index": index, "embedding": vector})
        if self.shuffle_index:
            data = data[1::2] + data[::2]
        if self.omit_index:
            for item in data:
                del item["index"]
        reply = {"object": "list", "data": data, "model": model}
        if not self.omit_usage:
            reply["usage"] = {"prompt_tokens": exchange.tokens, "total_tokens": exchange.tokens}
        return reply

    def _told(self, exchange: Exchange) -> dict[str, str]:
        """The headers of every answer."""
        requests, tokens = self.requests_per_minute, self.tokens_per_minute
        always = {
            "x-request-id": f"req_{exchange.number:08x}",
            "openai-processing-ms": str(round((time.monotonic() - exchange.started) * 1000)),
        }
        if self.bucket is not None:
            return {**always, **self.bucket.told(), **self.headers}
        return {
            **always,
            "x-ratelimit-limit-requests": str(requests),
            "x-ratelimit-limit-tokens": str(tokens),
            "x-ratelimit-remaining-requests": str(requests - 1),
            "x-ratelimit-remaining-tokens": str(max(0, tokens - exchange.tokens)),
            "x-ratelimit-reset-requests": go_duration(60 / requests),
            "x-ratelimit-reset-tokens": go_duration(60 * exchange.tokens / tokens),
            **self.headers,
        }


def _parsed(body: bytes) -> Json:
    try:
        value = json.loads(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _texts_of(body: Json) -> tuple[str, ...]:
    """The texts of a request; none if they are not strings, as token arrays are not."""
    given = body.get("input")
    texts: list[Any] = given if isinstance(given, list) else [given]
    return tuple(texts) if all(isinstance(text, str) for text in texts) else ()
