"""A local server that implements Amazon Bedrock's `POST /model/{id}/invoke` and fails on request.

It knows the families of models that the library does, by their documented requests and the words of quoted refusals
(fixtures/recorded/bedrock). Tokens are words. Vectors are those of `vector_of` and differ by role; only those of Titan
2 are normalized. Signatures are not verified: a request needs the bearer token, or a signature with the access key.
"""

import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote

import numpy as np

from embedkit_core import Embedder

from .embeddings_server import EmbeddingsServer
from .http import Connection, Exchange, Request, Response
from .openai_replies import Json, tokens_of, vector_of, yield_to_loop
from .voyage_server import to_dtype

INVOKE = re.compile(r"/model/([^/]+)/invoke")
ACCESS_KEY, SECRET_KEY = "AKIAEXAMPLEOFTHETESTS", "Zx81Qp77LmSecretKeyOfAWS"
SESSION_TOKEN = "Qw55SessionTokenOfAWS"
TITAN_1, TITAN_2 = "amazon.titan-embed-text-v1", "amazon.titan-embed-text-v2:0"
NOVA = "amazon.nova-2-multimodal-embeddings-v1:0"
COHERE_4, COHERE_3 = "cohere.embed-v4:0", "cohere.embed-english-v3"
NATIVE = {TITAN_1: 1536, TITAN_2: 1024, NOVA: 3072, COHERE_4: 1536, COHERE_3: 1024}
ALLOWED = {TITAN_2: (256, 512, 1024), NOVA: (256, 384, 1024, 3072), COHERE_4: (256, 512, 1024, 1536)}
PURPOSES = ("GENERIC_INDEX", "GENERIC_RETRIEVAL", "TEXT_RETRIEVAL", "CLASSIFICATION", "CLUSTERING")
INPUT_TYPES = ("search_document", "search_query", "classification", "clustering")
COHERE_FIELDS = {"texts", "input_type", "embedding_types", "truncate"}
FIELDS = {
    TITAN_1: {"inputText"},
    TITAN_2: {"inputText", "dimensions", "normalize", "embeddingTypes"},
    NOVA: {"schemaVersion", "taskType", "singleEmbeddingParams"},
    COHERE_3: COHERE_FIELDS,
    COHERE_4: COHERE_FIELDS | {"output_dimension", "max_tokens"},
}
MAX_CHARACTERS = {TITAN_1: 50_000, TITAN_2: 50_000, NOVA: 50_000, COHERE_4: 1_000_000, COHERE_3: 2_048}
LENGTH = np.float32(1.25)
CODES = {
    400: "ValidationException",
    403: "AccessDeniedException",
    404: "ResourceNotFoundException",
    408: "ModelTimeoutException",
    424: "ModelErrorException",
    429: "ThrottlingException",
    500: "InternalServerException",
    503: "ServiceUnavailableException",
}
REFORMAT = "please reformat your input and try again."


def bedrock_vector(text: str, model: str = COHERE_4, role: str = "", dimensions: int | None = None):
    """Return the vector of a text, float32 (dimensions,), by the model's bare name and the value of its role field."""
    unit = vector_of(f"{role}\0{text}", dimensions or NATIVE[model], NATIVE[model], model)
    return unit if model == TITAN_2 else unit * LENGTH


def bedrock(server: "BedrockServer", model=TITAN_2, **settings: Any) -> Embedder:
    """Return an embedder of a model that asks the server."""
    settings = {"base_url": server.base_url, "api_key": server.api_key, "cache": False, **settings}
    return Embedder(f"bedrock:{model}", **settings)


def request_threads() -> set[threading.Thread]:
    """Return the threads that send requests."""
    return {thread for thread in threading.enumerate() if thread.name == "embedkit-bedrock"}


@dataclass(kw_only=True, eq=False, repr=False)
class BedrockServer(EmbeddingsServer):
    path = "/"

    profiles: Mapping[str, str] | None = None  # the models of opaque ARNs
    max_inputs: int = 96
    max_tokens_per_text: int = 8_192
    max_tokens_per_request: int = 128_000

    def __post_init__(self) -> None:
        super().__post_init__()
        self.paths: list[str] = []  # as they were sent
        self.bodies: list[bytes] = []

    @property
    def base_url(self) -> str:
        return self.origin

    def error(self, message: str) -> Json:
        return {"message": message}

    def echo(self, body: Json, seen: str) -> Json:
        return {**body, "message": f"{body.get('message')}{seen}"}

    def texts_of(self, body: Json) -> tuple[str, ...]:
        parameters = body.get("singleEmbeddingParams")
        nested = parameters.get("text", {}) if isinstance(parameters, dict) else {}
        one = body.get("inputText") or nested.get("value")
        given = body.get("texts") if one is None else [one]
        return tuple(given) if isinstance(given, list) and all(isinstance(text, str) for text in given) else ()

    async def answer(self, request: Request, connection: Connection) -> Response | None:
        found = INVOKE.fullmatch(request.path)
        if found is not None:
            self.paths.append(request.path)
            self.bodies.append(request.body)
            body = {**json.loads(request.body), "modelId": unquote(found[1])}
            request = replace(request, path=self.path, body=json.dumps(body).encode())
        response = await super().answer(request, connection)
        if response is None or response.status == 200:
            return response
        headers = {name: value for name, value in response.headers.items() if "token-count" not in name}
        code = f"{CODES.get(response.status, 'UnknownError')}:http://internal.amazon.com/coral/com.amazon.bedrock/"
        return replace(response, headers={"x-amzn-errortype": code, **headers})

    def bare(self, exchange: Exchange) -> str:
        given: str = exchange.body["modelId"]
        name = (self.profiles or {}).get(given) or given.rpartition("/")[2]
        name = re.sub(r"^[a-z-]+\.(?=amazon|cohere)", "", name)
        return COHERE_4 if name.startswith("cohere.") and name not in FIELDS else name

    def refusal(self, exchange: Exchange) -> tuple[int, Json] | None:
        body, texts, model = exchange.body, exchange.texts, self.bare(exchange)
        sent = exchange.headers.get("authorization", "")
        if not sent:
            return 403, self.error("Missing Authentication Token")
        signed = sent.startswith(f"AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/")
        if not signed and self.api_key is not None and sent != f"Bearer {self.api_key}":
            return 403, self.error("Authentication failed: Please make sure your API Key is valid.")
        if model not in FIELDS:
            return 400, self.error("The provided model identifier is invalid.")
        if flaw := self.flaw(body, model):
            return 400, self.error(f"Malformed input request: {flaw}, {REFORMAT}")
        limit, characters = self.max_tokens_per_text, MAX_CHARACTERS[model]
        for place, text in enumerate(texts):
            where = f"#/texts/{place}: " if model.startswith("cohere") else ""
            if len(text) > characters:
                wrong = f"{where}expected maxLength: {characters}, actual: {len(text)}"
                return 400, self.error(f"Malformed input request: {wrong}, {REFORMAT}")
            if not text or text in self.rejected_texts:
                return 400, self.error("The input contains content that the model does not accept.")
            if (count := tokens_of(text)) > limit and not self.truncates(body):
                if model.startswith("amazon.titan"):
                    return 400, self.error(
                        f"400 Bad Request: Too many input tokens. Max input tokens: {limit}, request input token "
                        f"count: {count} "
                    )
                return 400, self.error("Input is too long for requested model.")
        if sum(min(tokens_of(text), limit) for text in texts) > self.max_tokens_per_request:
            return 413, self.error("The request is too large.")
        return None

    def flaw(self, body: Json, model: str) -> str | None:
        """Return what the schema of the model forbids."""
        if extra := sorted(body.keys() - FIELDS[model] - {"modelId"}):
            return f"#: extraneous key [{extra[0]}] is not permitted"
        if len(self.texts_of(body)) > self.max_inputs:
            return f"#/texts: expected maximum item count: {self.max_inputs}, found: {len(self.texts_of(body))}"
        if model.startswith("cohere"):
            modes = ("NONE", "LEFT", "RIGHT") if model == COHERE_4 else ("NONE", "START", "END")
            if body.get("input_type") not in INPUT_TYPES:
                return f"#/input_type: {body.get('input_type')} is not a valid enum value"
            if body.get("truncate") not in modes:
                return f"#/truncate: {body.get('truncate')} is not a valid enum value"
        elif model == NOVA:
            if body.get("taskType") != "SINGLE_EMBEDDING":
                return "#/taskType: is not a valid enum value"
            if body["singleEmbeddingParams"].get("embeddingPurpose") not in PURPOSES:
                return "#/singleEmbeddingParams/embeddingPurpose: is not a valid enum value"
        if not self.texts_of(body):
            return "#: required key [inputText] not found"
        dimensions = self.dimensions(body)
        return None if dimensions in (None, *ALLOWED.get(model, ())) else "#/dimensions: is not a valid enum value"

    def dimensions(self, body: Json) -> int | None:
        parameters = body.get("singleEmbeddingParams") or {}
        return body.get("dimensions") or body.get("output_dimension") or parameters.get("embeddingDimension")

    def truncates(self, body: Json) -> bool:
        mode = body.get("truncate") or (body.get("singleEmbeddingParams") or {}).get("text", {}).get("truncationMode")
        return mode in ("END", "RIGHT")

    def role(self, body: Json) -> str:
        return body.get("input_type") or (body.get("singleEmbeddingParams") or {}).get("embeddingPurpose") or ""

    async def reply(self, exchange: Exchange) -> Json:
        body, model, rows = exchange.body, self.bare(exchange), []
        for n, text in enumerate(exchange.texts):
            await yield_to_loop(n)
            long = tokens_of(text) > self.max_tokens_per_text
            kept = " ".join(text.split()[: self.max_tokens_per_text]) if long else text
            rows.append(bedrock_vector(kept, model, self.role(body), self.dimensions(body)))
        return {"data": [{"embedding": row} for row in rows]}

    def response_headers(self, exchange: Exchange) -> Mapping[str, str]:
        billed = sum(min(tokens_of(text), self.max_tokens_per_text) for text in exchange.texts)
        own = {"x-amzn-requestid": "0f2c4e53-4c9f-4d2c-8d9c-1b8f2a3c4d5e"}
        return {**own, "x-amzn-bedrock-input-token-count": str(billed), **self.headers}

    async def encoded(self, reply: Json, exchange: Exchange) -> bytes:
        model = self.bare(exchange)
        rows = [item["embedding"] for item in reply.pop("data")] if "data" in reply else []
        plain: list[Any] = [row.tolist() if isinstance(row, np.ndarray) else row for row in rows]
        if model.startswith("amazon.titan"):
            one = plain[0] if plain else None
            by_type = {"embeddingsByType": {"float": one}} if model == TITAN_2 else {}
            reply |= {"embedding": one, "inputTextTokenCount": exchange.tokens, **by_type}
        elif model == NOVA:
            reply["embeddings"] = [{"embeddingType": "TEXT", "embedding": row} for row in plain]
        else:
            kinds = exchange.body["embedding_types"]
            by_kind = {kind: [to_dtype(row, kind).tolist() for row in rows] for kind in kinds if kind != "float"}
            reply |= {
                "id": "5807ee2e-0cda-445a-9ec8-864c60a06606",
                "response_type": "embeddings_by_type",
                "texts": list(exchange.texts),
                "embeddings": by_kind | ({"float": plain} if "float" in kinds else {}),
            }
        return json.dumps(reply).encode()
