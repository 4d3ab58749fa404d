"""Local servers that implement the embeddings APIs of Nomic and of Hugging Face's hf-inference, and fail on request.

The modules of the providers name the sources of the formats. Tokens are words. Vectors are those of `vector_of`.
"""

import json
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from urllib.parse import unquote

import numpy as np

from .embeddings_server import EmbeddingsServer
from .http import Connection, Exchange, Request, Response
from .openai_replies import Json, as_json, tokens_of, vector_of, yield_to_loop

NOMIC_TASKS = ("search_document", "search_query", "classification", "clustering")
NOMIC_FIELDS = {"texts", "model", "task_type", "dimensionality", "long_text_mode", "max_tokens_per_text"}
NATIVE = 768
PIPELINE = re.compile(r"/hf-inference/models/(.+)/pipeline/feature-extraction")
WIDTHS = {"sentence-transformers/all-MiniLM-L6-v2": 384}  # of the other models: 1024


@lru_cache(maxsize=8192)
def nomic_vector(text, task="search_document", dimensions=NATIVE, model="nomic-embed-text-v1.5"):
    """Return the vector of a text: float32 (dimensions,); v1.5 subtracts the mean before it truncates."""
    whole = vector_of(f"{task}: {text}", NATIVE, NATIVE, model).astype(np.float64)
    if model.endswith("v1.5"):
        whole -= whole.mean()
    kept = whole[:dimensions]
    return (kept / np.linalg.norm(kept)).astype(np.float32)


def hf_vector(text, model="BAAI/bge-m3"):
    """Return the vector of a text: normalized, float32, of the model's width."""
    width = WIDTHS.get(model, 1024)
    return vector_of(text, width, width, model)


def cut(text: str, limit: int) -> str:
    return text if tokens_of(text) <= limit else " ".join(text.split()[:limit])


@dataclass(kw_only=True, eq=False, repr=False)
class NomicServer(EmbeddingsServer):
    """`POST /v1/embedding/text`, which truncates long texts without notice."""

    path = "/v1/embedding/text"
    texts_field = "texts"

    max_inputs: int = 50
    max_tokens_per_text: int = 8192
    max_tokens_per_request: int = 10**9

    @property
    def base_url(self) -> str:
        return self.origin

    def error(self, message: str) -> Json:
        return {"detail": message}

    def echo(self, body: Json, seen: str) -> Json:
        return {"detail": f"{body['detail']}{seen}"}

    def refusal(self, exchange: Exchange) -> tuple[int, Json] | None:
        body, texts = exchange.body, exchange.texts
        if self.api_key is not None and exchange.headers.get("authorization") != f"Bearer {self.api_key}":
            return 401, self.error("Invalid authorization token")
        if unknown := body.keys() - NOMIC_FIELDS:
            return 422, invalid(next(iter(unknown)), "extra fields not permitted")
        if body.get("task_type") not in NOMIC_TASKS:
            return 422, invalid("task_type", f"value is not a valid enumeration member; permitted: {NOMIC_TASKS}")
        if len(texts) > self.max_inputs:
            return 422, invalid("texts", f"ensure this value has at most {self.max_inputs} items")
        if not texts or self.rejected_texts.intersection(texts):
            return 422, invalid("texts", "a text is not valid")
        if sum(min(tokens_of(text), self.max_tokens_per_text) for text in texts) > self.max_tokens_per_request:
            return 413, self.error("Request Entity Too Large")
        return None

    async def reply(self, exchange: Exchange) -> Json:
        body, rows = exchange.body, []
        kept = [cut(text, self.max_tokens_per_text) for text in exchange.texts]
        for n, text in enumerate(kept):
            await yield_to_loop(n)
            dimensions = body.get("dimensionality") or NATIVE
            rows.append(nomic_vector(text, body["task_type"], dimensions, body["model"]))
        tokens = sum(map(tokens_of, kept))
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"data": [{"embedding": row} for row in rows], "usage": usage, "model": body["model"]}

    async def encoded(self, reply: Json, exchange: Exchange) -> bytes:
        if isinstance(reply.get("data"), list):
            reply["embeddings"] = [item["embedding"] for item in reply.pop("data")]
        return await as_json(reply, lambda value: value.tolist())


def invalid(field: str, message: str) -> Json:
    """Return FastAPI's body for an invalid field."""
    return {"detail": [{"loc": ["body", field], "msg": message, "type": "value_error"}]}


@dataclass(kw_only=True, eq=False, repr=False)
class HFInferenceServer(EmbeddingsServer):
    """`POST /hf-inference/models/{model}/pipeline/feature-extraction`; the model is recorded as a header."""

    path = "/pipeline"  # of every model, after `answer` has read it
    texts_field = "inputs"

    max_inputs: int = 32
    max_tokens_per_text: int = 8192
    max_tokens_per_request: int = 10**9

    @property
    def base_url(self) -> str:
        return f"{self.origin}/hf-inference"

    async def answer(self, request: Request, connection: Connection) -> Response | None:
        if match := PIPELINE.fullmatch(request.path):
            request = replace(request, path=self.path, headers={**request.headers, "x-model": unquote(match[1])})
        return await super().answer(request, connection)

    def error(self, message: str) -> Json:
        return {"error": message}

    def echo(self, body: Json, seen: str) -> Json:
        return {**body, "error": f"{body['error']}{seen}"}

    def refusal(self, exchange: Exchange) -> tuple[int, Json] | None:
        body, texts = exchange.body, exchange.texts
        if self.api_key is not None and exchange.headers.get("authorization") != f"Bearer {self.api_key}":
            return 401, self.error("Invalid username or password.")
        if not texts or self.rejected_texts.intersection(texts):
            return 422, self.error("Input validation error: `inputs` cannot be processed")
        if len(texts) > self.max_inputs:
            message = f"batch size {len(texts)} > maximum allowed batch size {self.max_inputs}"
            return 413, {"error": message, "error_type": "Validation"}
        longest, limit = max(map(tokens_of, texts)), self.max_tokens_per_text
        if longest > limit and not body.get("truncate"):
            message = f"Input validation error: `inputs` must have less than {limit} tokens. Given: {longest}"
            return 413, {"error": message, "error_type": "Validation"}
        return None

    async def reply(self, exchange: Exchange) -> Json:
        rows = []
        for n, text in enumerate(exchange.texts):
            await yield_to_loop(n)
            rows.append(hf_vector(cut(text, self.max_tokens_per_text), exchange.headers["x-model"]))
        return {"data": [{"embedding": row} for row in rows]}

    async def encoded(self, reply: Json, exchange: Exchange) -> bytes:
        if not isinstance(reply.get("data"), list):
            return json.dumps(reply).encode()
        rows = [np.asarray(item["embedding"]).tolist() for item in reply["data"]]
        return json.dumps(rows).encode()
