"""Local servers with OpenAI's API and the limits, error formats and encodings of other products.

`embedkit_core.providers.openai.refusals` names the sources of the error formats.
"""

import asyncio
import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .http import Exchange
from .openai_replies import Json, as_json, tokens_of
from .openai_server import OpenAIServer

KINDS = {"float32": "<f4", "float64": "<f8", "float16": "<f2", "int8": "<i1"}


@dataclass(kw_only=True, eq=False, repr=False)
class CompatibleServer(OpenAIServer):
    """Base of the compatible servers.

    Attributes:
        encoding: Format of the vectors in a reply: "asked", "floats", "ints", or a dtype sent as base64.
    """

    dimensions: int = 384
    api_key: str | None = None
    encoding: str = "asked"

    def texts_of(self, body: Json) -> tuple[str, ...]:
        return super().texts_of(body) if "encoding_format" in body else ()

    def refusal(self, exchange: Exchange) -> tuple[int, Json | str] | None:  # type: ignore[override]
        if self.api_key is not None and exchange.headers.get("authorization") != f"Bearer {self.api_key}":
            return self.unauthorized()
        return self.validation_error(exchange)

    def unauthorized(self) -> tuple[int, Json | str]:
        return 401, self.error("Unauthorized")

    def validation_error(self, exchange: Exchange) -> tuple[int, Json | str] | None:
        """Return the status and body of the refusal of an authorized request, or None."""
        return None

    def echo(self, body: Json, seen: str) -> Json:
        return super().echo(body, seen) if isinstance(body.get("error"), dict) else {"message": f"{body}{seen}"}

    async def encoded(self, reply: Json, exchange: Exchange) -> bytes:
        if self.encoding == "asked" or not isinstance(reply.get("data"), list):
            return await super().encoded(reply, exchange)

        def plain(value: Any) -> Any:
            if self.encoding == "ints":
                return np.round(value * 127).astype(int).tolist()
            if self.encoding == "floats" or exchange.body.get("encoding_format") == "float":
                return value.tolist()
            kind = np.dtype(KINDS[self.encoding])
            return base64.b64encode((value * (127 if kind.kind == "i" else 1)).astype(kind).tobytes()).decode()

        return await as_json(reply, plain)


@dataclass(kw_only=True, eq=False, repr=False)
class TEIServer(CompatibleServer):
    """text-embeddings-inference 1.9 with its defaults; more than `out_of_memory` tokens fail in the GPU."""

    ignores_dimensions: bool = True
    max_inputs: int = 32
    max_tokens_per_text: int = 512
    auto_truncate: bool = False
    payload_limit: int = 2_000_000
    out_of_memory: int = 1_000_000
    untokenizable: str = "\ufffe"

    def error(self, message: str, code: int = 413, kind: str = "Validation") -> Json:
        return {"message": message, "code": code, "type": kind}

    def unauthorized(self) -> tuple[int, Json | str]:
        return 401, ""

    def validation_error(self, exchange: Exchange) -> tuple[int, Json | str] | None:
        texts = exchange.texts
        if int(exchange.headers["content-length"]) > self.payload_limit:
            return 413, "Failed to buffer the request body: length limit exceeded"
        if not texts:
            return 400, self.error("`inputs` cannot be empty", 400, "Empty")
        if len(texts) > self.max_inputs:
            return 413, self.error(f"batch size {len(texts)} > maximum allowed batch size {self.max_inputs}")
        longest = max(map(tokens_of, texts))
        if longest > self.max_tokens_per_text and not self.auto_truncate:
            limit = self.max_tokens_per_text
            return 413, self.error(
                f"Input validation error: `inputs` must have less than {limit} tokens. Given: {longest}"
            )
        if any(self.untokenizable in text for text in texts) or not self.rejected_texts.isdisjoint(texts):
            return 422, self.error("Tokenization error: invalid sequence", 422, "Tokenizer")
        if exchange.tokens > self.out_of_memory:
            why = 'Backend error: Inference error: DriverError(CUDA_ERROR_OUT_OF_MEMORY, "out of memory")'
            return 424, self.error(why, 424, "Backend")
        return None


@dataclass(kw_only=True, eq=False, repr=False)
class VLLMServer(CompatibleServer):
    """vLLM; it accepts `dimensions` for Matryoshka models only."""

    is_matryoshka: bool = False
    max_tokens_per_text: int = 512

    def error(self, message: str, code: int = 400, kind: str = "BadRequestError") -> Json:
        return {"error": {"message": message, "type": kind, "param": None, "code": code}}

    def validation_error(self, exchange: Exchange) -> tuple[int, Json | str] | None:
        model, longest = exchange.body.get("model"), max(map(tokens_of, exchange.texts))
        if self.models is not None and model not in self.models:
            return 404, self.error(f"The model `{model}` does not exist.", 404, "NotFoundError")
        if exchange.body.get("dimensions") is not None and not self.is_matryoshka:
            return 400, self.error(
                f'Model "{model}" does not support matryoshka representation, changing output dimensions will lead to '
                "poor results."
            )
        if longest > self.max_tokens_per_text:
            return 400, self.error(
                f"This model's maximum context length is {self.max_tokens_per_text} tokens. However, you requested "
                f"{longest} tokens in the input for embedding generation. Please reduce the length of the input."
            )
        return None


@dataclass(kw_only=True, eq=False, repr=False)
class InfinityServer(CompatibleServer):
    """infinity: no /v1 in the path, errors in FastAPI's format."""

    path = "/embeddings"
    max_inputs: int = 2048
    max_characters: int = 122_880

    def unauthorized(self) -> tuple[int, Json | str]:
        return 401, {"detail": "Unauthorized"}

    def finding(self, kind: str, message: str, *place: Any) -> Json:
        one = {"type": kind, "loc": ["body", "text", "input", *place], "msg": message, "input": "..."}
        other = {
            "type": "string_type",
            "loc": ["body", "text", "input", "constrained-str"],
            "msg": "Input should be a valid string",
        }
        return {"detail": [one, other]}

    def validation_error(self, exchange: Exchange) -> tuple[int, Json | str] | None:
        texts, most = exchange.texts, self.max_inputs
        if len(texts) > most:
            message = f"List should have at most {most} items after validation, not {len(texts)}"
            return 422, self.finding("too_long", message, "list[constrained-str]")
        for place, text in enumerate(texts):
            if len(text) > self.max_characters:
                message = f"String should have at most {self.max_characters} characters"
                return 422, self.finding("string_too_long", message, "list[constrained-str]", place)
        return None


@dataclass(kw_only=True, eq=False, repr=False)
class BusyInfinityServer(InfinityServer):
    """infinity that refuses requests with a 429 and nothing else while it has no free slot, or a full queue.

    Attributes:
        slots: Requests in progress at the same time, each for `work` seconds.
        queued_texts: Texts that may wait, instead of slots; one batch is in progress, for `work` seconds.
        refuses_all: Refuse every request.
    """

    slots: int = 2
    queued_texts: int | None = None
    work: float = 0.02
    overload_status: int = 429
    refuses_all: bool = False
    batch_size = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        self._busy = self._queued = 0
        self._turn = asyncio.Lock()

    def response_headers(self, exchange: Exchange) -> Mapping[str, str]:
        return self.headers

    def validation_error(self, exchange: Exchange) -> tuple[int, Json | str] | None:
        is_full = self._busy == self.slots if self.queued_texts is None else self._queued > self.queued_texts
        if is_full or self.refuses_all:
            message = "model overloaded: it is currently overloaded, please retry later"
            return self.overload_status, {"error": {"message": message, "type": "ModelNotDeployedError", "code": 429}}
        self._busy += 1
        self._queued += len(exchange.texts)
        return None

    async def reply(self, exchange: Exchange) -> Json:
        try:
            if self.queued_texts is None:
                await asyncio.sleep(self.work)
            else:
                async with self._turn:
                    for start in range(0, len(exchange.texts), self.batch_size):
                        self._queued -= len(exchange.texts[start : start + self.batch_size])
                        await asyncio.sleep(self.work)
            return await super().reply(exchange)
        finally:
            self._busy -= 1


@dataclass(kw_only=True, eq=False, repr=False)
class OllamaServer(CompatibleServer):
    """Ollama: pulled models only, and a context length that it enforces."""

    max_tokens_per_text: int = 2048

    def error(self, message: str, kind: str = "invalid_request_error") -> Json:
        return {"error": {"message": message, "type": kind, "param": None, "code": None}}

    def validation_error(self, exchange: Exchange) -> tuple[int, Json | str] | None:
        model = exchange.body.get("model")
        if self.models is not None and model not in self.models:
            return 404, self.error(f'model "{model}" not found, try pulling it first', "not_found_error")
        if not exchange.texts:
            return 400, self.error("invalid input")
        if max(map(tokens_of, exchange.texts)) > self.max_tokens_per_text:
            return 400, self.error("the input length exceeds the context length")
        return None


@dataclass(kw_only=True, eq=False, repr=False)
class LMStudioServer(CompatibleServer):
    """LM Studio: replies with floats for every encoding, and errors are strings."""

    encoding: str = "floats"
    ignores_dimensions: bool = True

    def validation_error(self, exchange: Exchange) -> tuple[int, Json | str] | None:
        if not exchange.texts:
            return 400, {"error": "'input' field must be a string or an array of strings"}
        if self.models is not None and exchange.body.get("model") not in self.models:
            return 404, {"error": "No models loaded. Please load a model in the developer page."}
        return None
