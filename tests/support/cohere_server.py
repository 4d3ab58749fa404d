"""A local server that implements Cohere's `POST /v2/embed` and fails on request.

Tokens are words. Vectors are those of `vector_of`, differ by input type, and are not normalized.
"""

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np

from .embeddings_server import EmbeddingsServer
from .http import Exchange
from .openai_replies import Json, as_json, tokens_of, vector_of, yield_to_loop
from .voyage_server import to_dtype

INPUT_TYPES = ("search_document", "search_query", "classification", "clustering", "image")
KINDS = ("float", "int8", "uint8", "binary", "ubinary", "base64")
ALLOWED = (256, 512, 1024, 1536)
NATIVE = 1536
LENGTH = np.float32(1.25)


def native_of(model: str) -> int:
    """Return the dimensions of a model."""
    return 1024 if model.endswith("-v3.0") else NATIVE


def cohere_vector(text: str, input_type: str = "search_document", dimensions: int = NATIVE, model: str = "embed-v4.0"):
    """Return the vector of a text: float32 (dimensions,), not normalized."""
    return vector_of(f"{input_type}\0{text}", dimensions, NATIVE, model) * LENGTH


@dataclass(kw_only=True, eq=False, repr=False)
class CohereServer(EmbeddingsServer):
    path = "/v2/embed"
    texts_field = "texts"

    max_inputs: int = 96
    max_tokens_per_text: int = 128_000
    max_tokens_per_request: int = 128_000

    @property
    def base_url(self) -> str:
        return self.origin

    def error(self, message: str) -> Json:
        return {"message": message, "id": "0f2c4e53-4c9f-4d2c-8d9c-1b8f2a3c4d5e"}

    def echo(self, body: Json, seen: str) -> Json:
        return {**body, "message": f"{body.get('message')}{seen}"}

    def refusal(self, exchange: Exchange) -> tuple[int, Json] | None:
        body, texts = exchange.body, exchange.texts
        if self.api_key is not None and exchange.headers.get("authorization") != f"Bearer {self.api_key}":
            return 401, self.error("invalid api token")
        if body.get("input_type") not in INPUT_TYPES:
            return 400, self.error("valid input_type must be provided with the provided model")
        if any(kind not in KINDS for kind in body.get("embedding_types", ())):
            return 400, self.error("invalid embedding_types")
        if body.get("output_dimension") not in (None, *ALLOWED):
            return 422, self.error("invalid output_dimension for the model")
        if len(texts) > self.max_inputs:
            return 400, self.error(
                f"invalid request: total number of texts must be at most {self.max_inputs} - received {len(texts)}"
            )
        if not texts:
            return 400, self.error("invalid request: texts must be provided")
        for place, text in enumerate(texts):
            if not text or text in self.rejected_texts:
                return 400, self.error(
                    f"invalid request: texts contains an element that is the empty string at {place}"
                )
        lengths = [tokens_of(text) for text in texts]
        if body.get("truncate", "END") == "NONE" and max(lengths) > self.max_tokens_per_text:
            return 400, self.error(
                f"too many tokens: total number of tokens in the prompt cannot exceed {self.max_tokens_per_text} - "
                f"received {max(lengths)}. Try using a shorter prompt, or enabling prompt truncating."
            )
        if sum(min(n, self.max_tokens_per_text) for n in lengths) > self.max_tokens_per_request:
            return 400, self.error("too many tokens: the total number of tokens in the request is over the limit")
        return None

    async def reply(self, exchange: Exchange) -> Json:
        body = exchange.body
        limit = self.max_tokens_per_text
        rows: list[Any] = []
        for n, text in enumerate(exchange.texts):
            await yield_to_loop(n)
            words = text.split()
            kept = text if tokens_of(text) <= limit else " ".join(words[:limit])
            width = body.get("output_dimension") or native_of(body["model"])
            rows.append(cohere_vector(kept, body["input_type"], width, body["model"]))
        billed = sum(min(tokens_of(text), limit) for text in exchange.texts)
        return {
            "id": "5807ee2e-0cda-445a-9ec8-864c60a06606",
            "data": [{"embedding": row} for row in rows],
            "texts": list(exchange.texts),
            "meta": {"api_version": {"version": "2"}, "billed_units": {"input_tokens": billed}},
            "response_type": "embeddings_by_type",
        }

    async def encoded(self, reply: Json, exchange: Exchange) -> bytes:
        rows = [item["embedding"] for item in reply.pop("data")] if "data" in reply else []

        def plain(value: Any) -> Any:
            return value

        if "embeddings" not in reply:
            reply["embeddings"] = {kind: [_as(kind, row) for row in rows] for kind in exchange.body["embedding_types"]}
        return await as_json(reply, plain)


def _as(kind: str, row: Any) -> Any:
    if not isinstance(row, np.ndarray):
        return row
    if kind == "base64":
        return base64.b64encode(row.astype("<f4").tobytes()).decode()
    return to_dtype(row, kind).tolist()
