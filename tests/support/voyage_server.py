"""A local server that answers `POST /v1/embeddings` as Voyage AI documents it, and misbehaves on request.

Its prompts are those that Voyage documents it puts before texts of an input type, so that a query has another vector
than a document; tokens are words, and those of the prompt are billed. Its vectors are those of `vector_of`.
"""

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np

from support.embeddings_server import EmbeddingsServer
from support.http import Exchange
from support.openai_replies import Json, as_json, breathe, tokens_of, vector_of

PROMPTS = {
    "query": "Represent the query for retrieving supporting documents: ",
    "document": "Represent the document for retrieval: ",
    None: "",
}
ALLOWED = (256, 512, 1024, 2048)
NATIVE = 2048


def voyage_vector(text: str, input_type: str | None = "document", dimensions: int = 1024, model: str = "voyage-4"):
    """float32 (dimensions,), of length 1: the first numbers of 2048."""
    return vector_of(PROMPTS[input_type] + text, dimensions, NATIVE, model)


def of_type(vector: Any, dtype: str) -> Any:
    """The vector in a type as the provider might make it; int8 and uint8 by ranges of its own."""
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

    def texts_of(self, body: Json) -> tuple[str, ...]:
        given = body.get("input")
        return tuple(given) if isinstance(given, list) and all(isinstance(text, str) for text in given) else ()

    def refusal(self, exchange: Exchange) -> tuple[int, Json] | None:
        body, texts = exchange.body, exchange.texts
        if self.api_key is not None and exchange.headers.get("authorization") != f"Bearer {self.api_key}":
            return 401, self.error("Provided API key is invalid.")
        if not isinstance(body.get("model"), str):
            return 400, self.error("The request body is not valid JSON, or the argument 'model' is missing.")
        if body.get("output_dimension") not in (None, *ALLOWED):
            return 400, self.error(f"Value '{body['output_dimension']}' is not supported for output_dimension.")
        if body.get("input_type") not in PROMPTS:
            return 400, self.error(f"Value '{body['input_type']}' provided for input_type is not valid.")
        if len(texts) > self.max_inputs:
            return 400, self.error(f"The batch size limit is {self.max_inputs}. Your batch size is {len(texts)}.")
        if not texts or "" in texts or not self.poison.isdisjoint(texts):
            return 400, self.error("Input cannot contain empty strings or empty lists")
        lengths = self._lengths(exchange)
        if not body.get("truncation", True):
            for place, n in enumerate(lengths):
                if n > self.max_tokens_per_text:
                    return 400, self.error(
                        f"The example at index {place} in your batch has too many tokens and does not fit into the "
                        f"model's context window of {self.max_tokens_per_text} tokens. Please lower the number of "
                        "tokens in the listed example(s) or use truncation."
                    )
        total = sum(min(n, self.max_tokens_per_text) for n in lengths)
        if total > self.max_tokens_per_request:
            return 400, self.error(
                f"Request to model '{body['model']}' failed. The max allowed tokens per submitted batch is "
                f"{self.max_tokens_per_request}. Your batch has {total} tokens after truncation. Please lower the "
                "number of tokens in the batch."
            )
        return None

    def _lengths(self, exchange: Exchange) -> list[int]:
        prompt = PROMPTS[exchange.body.get("input_type")]
        return [tokens_of(prompt + text) for text in exchange.texts]

    async def reply(self, exchange: Exchange) -> Json:
        body = exchange.body
        data: list[Json] = []
        for index, text in enumerate(exchange.texts):
            await breathe(index)
            prompt = PROMPTS[body.get("input_type")]
            kept = " ".join((prompt + text).split()[: self.max_tokens_per_text])
            seen = prompt + text if tokens_of(prompt + text) <= self.max_tokens_per_text else kept
            vector = vector_of(seen, body.get("output_dimension") or 1024, NATIVE, body["model"])
            row = of_type(vector, body.get("output_dtype") or "float")
            data.append({"object": "embedding", "embedding": row, "index": index})
        if self.shuffle_index:
            data = data[1::2] + data[::2]
        total = sum(min(n, self.max_tokens_per_text) for n in self._lengths(exchange))
        return {"object": "list", "data": data, "model": body["model"], "usage": {"total_tokens": total}}

    async def encoded(self, reply: Json, exchange: Exchange) -> bytes:
        def plain(value: Any) -> Any:
            if exchange.body.get("encoding_format") == "base64":
                return base64.b64encode(value.tobytes()).decode()
            return value.tolist()

        return await as_json(reply, plain)
