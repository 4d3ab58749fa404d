"""A local server that implements the embedding methods of the Gemini API and of Vertex AI, and fails on request.

Its paths, bodies and refusals are those of the documentation, and of refusals that users have quoted
(tests/fixtures/recorded/google). Tokens are words. A vector depends on the task type, and is normalized only at the
native width. A content with several parts gets one vector, as the service does.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .embeddings_server import EmbeddingsServer
from .http import Connection, Exchange, Request, Response
from .openai_replies import Json, Vector, as_json, tokens_of, vector_of, yield_to_loop

PATH = re.compile(
    r"/(?P<version>v1|v1beta|v1beta1)/(projects/(?P<project>[^/]+)/locations/(?P<location>[^/]+)/)?"
    r"(publishers/google/)?models/(?P<model>[^/:]+):(?P<method>\w+)"
)
METHODS = {False: {"batchEmbedContents"}, True: {"predict", "embedContent"}}
TASKS = ("RETRIEVAL_QUERY", "RETRIEVAL_DOCUMENT", "SEMANTIC_SIMILARITY", "CLASSIFICATION", "CLUSTERING")
TASKS += ("QUESTION_ANSWERING", "FACT_VERIFICATION", "CODE_RETRIEVAL_QUERY")
OLD_MODELS = re.compile(r"text-|gemini-embedding-001")
NO_KEY = "API key not valid. Please pass a valid API key."
ROUTE, KEY = "x-route", "authorization"  # in which the shared tests expect a key


def google_vector(
    text: str, task: str | None, dimensions: int | None = None, model: str = "gemini-embedding-001"
) -> Vector:
    """Return the vector of a text: float32 (dimensions,), a prefix of the native vector."""
    native = 768 if model.startswith("text-") else 3072
    whole = vector_of(f"{task}\0{text}", native, native, model)
    return whole[: dimensions or native]


@dataclass(kw_only=True, eq=False, repr=False)
class GoogleServer(EmbeddingsServer):
    """The Gemini API; `VertexServer` is Vertex AI."""

    path = "/v1beta/models/gemini-embedding-001:batchEmbedContents"
    is_vertex = False

    max_inputs: int = 100
    max_tokens_per_text: int = 2_048
    max_tokens_per_request: int = 20_000
    truncates_silently: bool = False
    reports_usage: bool = True
    max_bytes: int = 4_194_304
    paths: list[str] = field(default_factory=list)  # of all requests to an embedding method
    token_requests: int = 0  # for an access token
    access_token: str | None = None  # accepted as a bearer

    @property
    def base_url(self) -> str:
        return self.origin

    async def answer(self, request: Request, connection: Connection) -> Response | None:
        if request.path == "/token":
            self.token_requests += 1
            body = b'{"access_token": "%s", "expires_in": 3600, "token_type": "Bearer"}'
            return Response(200, body % str(self.access_token).encode())
        found = PATH.fullmatch(request.path)
        if found is None or request.method != "POST" or found["method"] not in METHODS[self.is_vertex]:
            return await super().answer(request, connection)
        self.paths.append(request.path)
        key = request.headers.get("x-goog-api-key")
        shown = {KEY: f"Bearer {key}"} if key is not None and KEY not in request.headers else {}
        headers = {**request.headers, **shown, ROUTE: request.path, "x-bytes": str(len(request.body))}
        return await super().answer(replace(request, path=self.path, headers=headers), connection)

    def error(self, message: str, status: int = 400, name: str = "INVALID_ARGUMENT", *details: Json) -> Json:
        error = {"code": status, "message": message, "status": name}
        return {"error": error | ({"details": list(details)} if details else {})}

    def echo(self, body: Json, seen: str) -> Json:
        error = body.get("error")
        return {"error": {**error, "message": f"{error['message']}{seen}"}} if isinstance(error, dict) else body

    def texts_of(self, body: Json) -> tuple[str, ...]:
        if isinstance(instances := body.get("instances"), list):
            return tuple(instance["content"] for instance in instances)
        requests = body.get("requests", [body] if "content" in body else [])
        return tuple("".join(part["text"] for part in request["content"]["parts"]) for request in requests)

    def config_of(self, body: Json) -> Json:
        """Return taskType, outputDimensionality and autoTruncate of a request."""
        if "instances" in body:
            tasks = {instance.get("task_type") for instance in body["instances"]}
            return {**body["parameters"], "taskType": tasks.pop()}
        return body["requests"][0] if "requests" in body else body["embedContentConfig"]

    def refusal(self, exchange: Exchange) -> tuple[int, Json] | None:
        body, texts, headers = exchange.body, exchange.texts, exchange.headers
        if not self.is_authorized(headers):
            reason = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}
            return 400, self.error(NO_KEY, 400, "INVALID_ARGUMENT", reason)
        route = PATH.fullmatch(headers[ROUTE])
        assert route is not None
        if "requests" in body and any(r["model"] != f"models/{route['model']}" for r in body["requests"]):
            return 400, self.error(
                "* BatchEmbedContentsRequest.requests[0].model: does not match the model in the path"
            )
        if int(headers["x-bytes"]) > self.max_bytes:
            return 400, self.error(f"Request payload size exceeds the limit: {self.max_bytes} bytes.")
        if len(texts) > self.max_inputs:
            return 400, self.error(self.too_many(len(texts)))
        config = self.config_of(body)
        if config.get("taskType") not in (None, *TASKS):
            return 400, self.error(f"Invalid value at 'requests[0].task_type': \"{config['taskType']}\"")
        if not 1 <= config.get("outputDimensionality", 1) <= 3072:
            return 400, self.error("output_dimensionality must be between 1 and 3072")
        for place, text in enumerate(texts):
            if not text or text in self.rejected_texts:
                return 400, self.error(
                    f"* BatchEmbedContentsRequest.requests[{place}].content: contents is not specified"
                )
        lengths = [tokens_of(text) for text in texts]
        cuts = config.get("autoTruncate", self.truncates_silently)
        if not cuts and max(lengths) > self.max_tokens_per_text:
            return 400, self.error(self.too_long(max(lengths), self.max_tokens_per_text))
        total = sum(min(length, self.max_tokens_per_text) for length in lengths)
        if total > self.max_tokens_per_request:
            return 400, self.error(self.too_long(total, self.max_tokens_per_request))
        return None

    def is_authorized(self, headers: Mapping[str, str]) -> bool:
        if self.access_token is not None:
            return headers.get("authorization") == f"Bearer {self.access_token}"
        return self.api_key is None or headers.get("x-goog-api-key") == self.api_key

    def too_many(self, texts: int) -> str:
        return f"* BatchEmbedContentsRequest.requests: at most {self.max_inputs} requests can be in one batch\n"

    def too_long(self, tokens: int, limit: int) -> str:
        return f"The input token count ({tokens}) exceeds the maximum number of tokens allowed ({limit})."

    async def reply(self, exchange: Exchange) -> Json:
        route = PATH.fullmatch(exchange.headers[ROUTE])
        assert route is not None
        model, config, limit = route["model"], self.config_of(exchange.body), self.max_tokens_per_text
        task = config.get("taskType") if OLD_MODELS.match(model) else None  # later models ignore it
        rows: list[Any] = []
        for n, text in enumerate(exchange.texts):
            await yield_to_loop(n)
            kept = text if tokens_of(text) <= limit else " ".join(text.split()[:limit])
            row = google_vector(kept, task, config.get("outputDimensionality"), model)
            rows.append({"embedding": row, "tokens": min(tokens_of(text), limit), "truncated": tokens_of(text) > limit})
        return {"data": rows, "usage": not OLD_MODELS.match(model) and self.reports_usage}

    async def encoded(self, reply: Json, exchange: Exchange) -> bytes:
        if "data" not in reply:
            return await as_json(reply, _plain)
        return await as_json(self.shaped(reply, exchange), _plain)

    def shaped(self, reply: Json, exchange: Exchange) -> Json:
        """Return a reply as the method of the request has it."""
        rows, tokens = reply["data"], sum(row["tokens"] for row in reply["data"])
        usage = {"promptTokenCount": tokens, "promptTokenDetails": [{"modality": "TEXT", "tokenCount": tokens}]}
        return {"embeddings": [{"values": _numbers(row)} for row in rows]} | (
            {"usageMetadata": usage} if reply["usage"] else {}
        )


@dataclass(kw_only=True, eq=False, repr=False)
class VertexServer(GoogleServer):
    """Vertex AI."""

    path = "/v1beta1/publishers/google/models/gemini-embedding-001:predict"
    is_vertex = True

    max_inputs: int = 250

    def too_many(self, texts: int) -> str:
        return f"{self.max_inputs} instance(s) is allowed per prediction. Actual: {texts}"

    def too_long(self, tokens: int, limit: int) -> str:
        return (
            f"Unable to submit request because the input token count is {tokens} but the model supports up to {limit}. "
            "Reduce the input token count and try again."
        )

    def refusal(self, exchange: Exchange) -> tuple[int, Json] | None:
        if self.access_token is not None and not self.is_authorized(exchange.headers):
            return 401, self.error("Request had invalid authentication credentials.", 401, "UNAUTHENTICATED")
        return super().refusal(exchange)

    def shaped(self, reply: Json, exchange: Exchange) -> Json:
        rows = reply["data"]
        if "instances" not in exchange.body:
            [row] = rows
            usage = {"promptTokenCount": row["tokens"]}
            return {"embedding": {"values": _numbers(row)}, "usageMetadata": usage, "truncated": row["truncated"]}
        predictions = []
        for row in rows:
            statistics = {"truncated": row.get("truncated", False), "token_count": row.get("tokens", 0)}
            predictions.append({"embeddings": {"values": _numbers(row), "statistics": statistics}})
        return {"predictions": predictions, "metadata": {"billableCharacterCount": 1}}


def _numbers(row: Json) -> Any:
    vector = row["embedding"]
    return vector.tolist() if isinstance(vector, np.ndarray) else vector


def _plain(value: Any) -> Any:
    return value
