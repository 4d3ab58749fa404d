"""A local server that implements OpenAI's `POST /v1/embeddings` and fails on request."""

import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from .bucket import Bucket
from .embeddings_server import EmbeddingsServer
from .http import Exchange
from .openai_replies import (
    INVALID_INPUT,
    Fault,
    Json,
    encoded,
    error,
    go_duration,
    tokens_of,
    too_long,
    too_many_tokens,
    vector_of,
    yield_to_loop,
)

__all__ = ["Bucket", "Exchange", "Fault", "OpenAIServer", "tokens_of", "vector_of"]


@dataclass(kw_only=True, eq=False, repr=False)
class OpenAIServer(EmbeddingsServer):
    """A local server with the limits of OpenAI's API."""

    dimensions: int = 1536  # of every model; a request may ask for fewer
    max_inputs: int = 2048
    max_tokens_per_text: int = 8192
    max_tokens_per_request: int = 300_000
    models: Collection[str] | None = None  # None: every name
    base64: bool = True  # False: refused
    always_floats: bool = False  # for every requested encoding
    ignores_dimensions: bool = False
    shuffle_index: bool = False  # rows out of order, each with its index
    omit_index: bool = False
    omit_usage: bool = False
    reply_model: str | None = None
    requests_per_minute: int = 10_000  # sent in headers; enforced by a bucket only
    tokens_per_minute: int = 10_000_000
    bucket: Bucket | None = None  # enforces tokens; sends its state unless it is silent

    def error(self, message: str) -> Json:
        return error(message)

    def echo(self, body: Json, seen: str) -> Json:
        if not isinstance(body.get("error"), dict):
            return body
        return {**body, "error": {**body["error"], "message": f"{body['error'].get('message')}{seen}"}}

    def texts_of(self, body: Json) -> tuple[str, ...]:
        given = body.get("input")
        texts: list[Any] = given if isinstance(given, list) else [given]
        return tuple(texts) if all(isinstance(text, str) for text in texts) else ()

    async def encoded(self, reply: Json, exchange: Exchange) -> bytes:
        as_base64 = exchange.body.get("encoding_format") == "base64" and not self.always_floats
        return await encoded(reply, as_base64=as_base64)

    def refusal(self, exchange: Exchange) -> tuple[int, Json] | None:
        body, texts, model = exchange.body, exchange.texts, exchange.body.get("model")
        dimensions = body.get("dimensions")
        if self.api_key is not None and exchange.headers.get("authorization") != f"Bearer {self.api_key}":
            return 401, error("Incorrect API key provided.", code="invalid_api_key")
        if not isinstance(model, str):
            return 400, error("you must provide a model parameter")
        if self.models is not None and model not in self.models:
            return 404, error(f"The model `{model}` does not exist.", code="model_not_found")
        if not 1 <= len(texts) <= self.max_inputs or "" in texts or not self.rejected_texts.isdisjoint(texts):
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

    async def reply(self, exchange: Exchange) -> Json:
        model = exchange.body["model"]
        asked = None if self.ignores_dimensions else exchange.body.get("dimensions")
        dimensions = asked or self.dimensions
        data: list[Json] = []
        for index, text in enumerate(exchange.texts):
            await yield_to_loop(index)
            vector = vector_of(text, dimensions, self.dimensions, model)
            data.append({"object": "embedding", "index": index, "embedding": vector})
        if self.shuffle_index:
            data = data[1::2] + data[::2]
        if self.omit_index:
            for item in data:
                del item["index"]
        reply = {"object": "list", "data": data, "model": self.reply_model or model}
        if not self.omit_usage:
            reply["usage"] = {"prompt_tokens": exchange.tokens, "total_tokens": exchange.tokens}
        return reply

    def response_headers(self, exchange: Exchange) -> dict[str, str]:
        requests, tokens = self.requests_per_minute, self.tokens_per_minute
        always = {
            "x-request-id": f"req_{exchange.number:08x}",
            "openai-processing-ms": str(round((time.monotonic() - exchange.started) * 1000)),
        }
        if self.bucket is not None:
            return {**always, **self.bucket.headers(), **self.headers}
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
