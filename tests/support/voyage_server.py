"""A local server that implements Voyage AI's `POST /v1/embeddings` and fails on request.

Its prompts are those that Voyage documents for each input type, so that a query and a document have different vectors.
Tokens are words; tokens of the prompt are not counted, as in the replies of the real API. The refusals have the words
of the real API (tests/fixtures/recorded/voyage). Vectors are those of `vector_of`.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .embeddings_server import EmbeddingsServer
from .http import Exchange
from .openai_replies import Json, as_json, tokens_of, vector_of, yield_to_loop

PROMPTS = {
    "query": "Represent the query for retrieving supporting documents: ",
    "document": "Represent the document for retrieval: ",
    None: "",
}
ALLOWED = (256, 512, 1024, 2048)
DTYPES = ("float", "int8", "uint8", "binary", "ubinary")
FIELDS = {"input", "model", "input_type", "truncation", "output_dimension", "output_dtype", "encoding_format"}
MALFORMED = "The request body is not valid JSON, or some arguments were not specified properly. In particular, "
NATIVE = 2048


def voyage_vector(text: str, input_type: str | None = "document", dimensions: int = 1024, model: str = "voyage-4"):
    """Return the vector of a text: normalized, float32 (dimensions,), a prefix of 2048 numbers."""
    return vector_of(PROMPTS[input_type] + text, dimensions, NATIVE, model)


def to_dtype(vector: Any, dtype: str) -> Any:
    """Return the vector in another dtype, quantized as the provider might do it."""
    if dtype == "float":
        return vector
    if dtype in ("binary", "ubinary"):
        packed = np.packbits(vector > 0)
        return packed if dtype == "ubinary" else (packed.astype(np.int16) - 128).astype(np.int8)
    whole = np.clip(np.round(vector * 127 * 4), -128, 127)
    return whole.astype(np.int8) if dtype == "int8" else (whole + 128).astype(np.uint8)


@dataclass(kw_only=True, eq=False, repr=False)
class VoyageServer(EmbeddingsServer):
    max_inputs: int = 1000
    max_tokens_per_text: int = 32_000
    max_tokens_per_request: int = 120_000
    shuffle_index: bool = False

    def error(self, message: str) -> Json:
        return {"detail": message}

    def echo(self, body: Json, seen: str) -> Json:
        return {**body, "detail": f"{body['detail']}{seen}"} if isinstance(body.get("detail"), str) else body

    def refusal(self, exchange: Exchange) -> tuple[int, Json] | None:
        if found := self._malformed(exchange.body):
            return 400, self.error(MALFORMED + found)
        if self.api_key is not None and exchange.headers.get("authorization") != f"Bearer {self.api_key}":
            return 401, self.error("Provided API key is invalid.")
        texts = exchange.texts
        if not texts or "" in texts or not self.rejected_texts.isdisjoint(texts):
            empty = "Error for argument 'input': Value error, Input cannot contain empty strings or empty lists"
            return 400, self.error(MALFORMED + empty)
        return self._beyond(exchange)

    def _malformed(self, body: Json) -> str | None:
        if unknown := next(iter(body.keys() - FIELDS), None):
            return f"Argument '{unknown}' is not supported by our API"
        if not isinstance(body.get("model"), str):
            return "Your request body was missing one or more required arguments."
        allowed = {
            "input_type": tuple(PROMPTS),
            "truncation": (None, True, False),
            "output_dimension": (None, *ALLOWED),
            "output_dtype": (None, *DTYPES),
            "encoding_format": (None, "base64"),
        }
        wrong = next((name for name, values in allowed.items() if body.get(name) not in values), None)
        return f"Value '{body[wrong]}' supplied for {wrong} is not allowed" if wrong else None

    def _beyond(self, exchange: Exchange) -> tuple[int, Json] | None:
        failed = f"Request to model '{exchange.body['model']}' failed. "
        if len(exchange.texts) > self.max_inputs:
            said = f"The batch size limit is {self.max_inputs}. Your batch size is {len(exchange.texts)}."
            return 400, self.error(failed + said)
        lengths, limit = [tokens_of(text) for text in exchange.texts], self.max_tokens_per_text
        over = next((place for place, n in enumerate(lengths) if n > limit), None)
        if over is not None and not exchange.body.get("truncation", True):
            return 400, self.error(
                f"{failed}The example at index {over} in your batch has too many tokens and does not fit into the "
                f"model's context window of {limit} tokens. Please lower the number of tokens in the listed example(s) "
                "or use truncation."
            )
        total = sum(min(n, limit) for n in lengths)
        if total > self.max_tokens_per_request:
            said = (
                f"{failed}The max allowed tokens per submitted batch is {self.max_tokens_per_request}. Your batch has "
                f"{total} tokens after truncation. Please lower the number of tokens in the batch."
            )
            return 400, self.error(said) | {"error_code": "TOO_MANY_TOKENS_IN_BATCH"}
        return None

    def kept(self, text: str) -> str:
        """Return the text, truncated to the token limit."""
        whole = tokens_of(text) <= self.max_tokens_per_text
        return text if whole else " ".join(text.split()[: self.max_tokens_per_text])

    async def reply(self, exchange: Exchange) -> Json:
        body = exchange.body
        dimensions, dtype = body.get("output_dimension") or 1024, body.get("output_dtype") or "float"
        data: list[Json] = []
        for index, text in enumerate(exchange.texts):
            await yield_to_loop(index)
            vector = voyage_vector(self.kept(text), body.get("input_type"), dimensions, body["model"])
            data.append({"object": "embedding", "embedding": to_dtype(vector, dtype), "index": index})
        if self.shuffle_index:
            data = data[1::2] + data[::2]
        total = sum(tokens_of(self.kept(text)) for text in exchange.texts)
        return {"object": "list", "data": data, "model": body["model"], "usage": {"total_tokens": total}}

    def response_headers(self, exchange: Exchange) -> Mapping[str, str]:
        return {"x-request-id": f"{exchange.number:032x}", **self.headers}

    async def encoded(self, reply: Json, exchange: Exchange) -> bytes:
        def plain(value: Any) -> Any:
            if exchange.body.get("encoding_format") == "base64":
                return base64.b64encode(value.tobytes()).decode()
            return value.tolist()

        return await as_json(reply, plain)
