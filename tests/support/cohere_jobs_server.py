"""A local server that implements Cohere's datasets and embed jobs besides `POST /v2/embed`, and fails on request.

Formats: cohere-openapi.yaml and embed-jobs-api.mdx at github.com/cohere-ai/cohere-developer-experience, and cohere 5.21
(utils.py), read 2026-11-30. A dataset is validated after some requests. Results are in Avro files at signed addresses,
which credentials must not be sent to. A cancelled job has no results and is billed.
"""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, ClassVar
from urllib.parse import parse_qs

import fastavro

from .batch_server import BatchServer, Operation, StoredBatch, StoredFile, read_multipart
from .cohere_server import CohereServer
from .http import Connection, Request, Response
from .openai_replies import Json

TYPES = {"float": "float", "int8": "int", "uint8": "int", "binary": "int", "ubinary": "int"}
SCHEMA: Any = {
    "type": "record",
    "name": "embed_result",
    "fields": [
        {"name": "text", "type": "string"},
        {"name": "custom_id", "type": ["null", "string"]},
        {
            "name": "embeddings",
            "type": {
                "type": "record",
                "name": "embeddings",
                "fields": [
                    {"name": name, "type": ["null", {"type": "array", "items": item}]} for name, item in TYPES.items()
                ],
            },
        },
    ],
}
SIGNATURE = "X-Signature=signed-8fj2kq"


@dataclass(kw_only=True, eq=False, repr=False)
class CohereJobsServer(BatchServer, CohereServer):
    """Cohere's server.

    Attributes:
        refuse_dataset: Returns True if the validation of a dataset fails.
    """

    refuse_dataset: Callable[[StoredFile], bool] = lambda file: False

    endings: ClassVar[Mapping[str, str]] = {
        "completed": "complete",
        "expired": "failed",
        "cancelled": "cancelled",
        "failed": "failed",
    }
    running_word: ClassVar[str] = "processing"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.parts: dict[str, list[str]] = {}  # of result datasets, IDs of files

    async def answer(self, request: Request, connection: Connection) -> Response | None:
        kind, _, name = request.path.removeprefix("/v1/").partition("/")
        if request.method == "GET" and kind == "datasets" and self.is_authorized(request.headers):
            return self.show_dataset(name)
        if request.path.startswith("/parts/"):
            assert not {"authorization", "x-gateway"} & request.headers.keys()
            shown = {**request.headers, "authorization": f"Bearer {self.api_key}"}
            request = replace(request, headers=shown)
        return await super().answer(request, connection)

    def show_dataset(self, name: str) -> Response:
        if name in self.parts:
            parts = [
                {"id": part, "name": part, "index": n, "url": f"{self.origin}/parts/{part}?{SIGNATURE}"}
                for n, part in enumerate(self.parts[name])
            ]
            return self.ok({"dataset": {"id": name, "validation_status": "validated", "dataset_parts": parts}})
        file = self.files.get(name)
        if file is None:
            return self.not_found(f"dataset {name}")
        status = "failed" if self.refuse_dataset(file) else "processing" if file.not_ready else "validated"
        error = {"validation_error": f"line 1 is not valid: {file.content[:80]!r}"} if status == "failed" else {}
        file.not_ready = max(0, file.not_ready - 1)
        return self.ok({"dataset": {"id": name, "validation_status": status, **error}})

    def route(self, request: Request) -> tuple[Operation, str] | None:
        if request.path.startswith("/parts/"):
            assert request.query == SIGNATURE
            return "download", request.path.removeprefix("/parts/")
        kind, *rest = request.path.removeprefix("/v1/").split("/")
        routes: dict[tuple[str, str, int], Operation] = {
            ("POST", "datasets", 0): "upload",
            ("DELETE", "datasets", 1): "delete",
            ("POST", "embed-jobs", 0): "create",
            ("GET", "embed-jobs", 0): "list",
            ("GET", "embed-jobs", 1): "retrieve",
            ("POST", "embed-jobs", 2): "cancel",
        }
        operation = routes.get((request.method, kind, len(rest)))
        return (operation, rest[0] if rest else "") if operation else None

    async def on_create(self, name: str, request: Request) -> Response:
        response = await super().on_create(name, request)
        return self.ok({"job_id": json.loads(response.body)["job_id"]}) if response.status == 200 else response

    def read_upload(self, request: Request) -> tuple[str, str, bytes] | None:
        query, form = parse_qs(request.query), read_multipart(request)
        if query["type"] != ["embed-input"] or len(query["name"][0]) >= 50 or not form["data"][0].endswith(".jsonl"):
            return None
        return query["name"][0], " ".join(query.get("keep_fields", [])), form["data"][1]

    def read_order(self, order: Json) -> tuple[str, Mapping[str, str]] | None:
        is_valid = (
            order.keys() <= {"model", "dataset_id", "input_type", "embedding_types", "truncate", "name"}
            and set(order["embedding_types"]) <= TYPES.keys()
            and order["truncate"] in ("START", "END")
        )
        return (order["dataset_id"], {"name": order["name"]}) if is_valid else None

    def nonce_of(self, metadata: Mapping[str, str]) -> str:
        return metadata["name"]

    def read_line(self, line: Json, order: Json) -> tuple[str, Json]:
        kept = {name: order[name] for name in ("model", "input_type", "embedding_types", "truncate")}
        has_id = "custom_id" in self.files[order["dataset_id"]].purpose.split()
        return line["custom_id"] if has_id else "", {"texts": [line["text"]], **kept}

    def describe_file(self, file: StoredFile) -> Json:
        return {"id": file.id}

    def describe(self, batch: StoredBatch) -> Json:
        return {
            "job_id": batch.id,
            "name": batch.nonce,
            "status": batch.status.replace("validating", "processing"),
            "created_at": datetime.fromtimestamp(batch.created_at, UTC).isoformat(),
            "input_dataset_id": batch.file_id,
            **({"output_dataset_id": batch.output_file_id} if batch.output_file_id else {}),
            "model": batch.order["model"],
            "truncate": batch.order["truncate"],
            "meta": {"api_version": {"version": "1"}},
        }

    def describe_list(self, batches: Sequence[StoredBatch], request: Request) -> Json:
        return {"embed_jobs": [self.describe(batch) for batch in batches]}

    def result_line(self, number: int, custom_id: str, status: int, body: Json) -> Json:
        if status != 200:
            return {}
        rows = {name: body["embeddings"].get(name, [None])[0] for name in TYPES}
        return {"text": body["texts"][0], "custom_id": custom_id or None, "embeddings": rows}

    def unsent_line(self, number: int, custom_id: str, ending: str) -> Json:
        return {}

    def write_results(self, batch: StoredBatch, errors: list[Json]) -> None:
        """Write a dataset of two Avro files. Records that failed are missing."""
        results = batch.results or []
        if batch.is_cancelling or not results:
            return
        batch.output_file_id = self.new_id("dataset-")
        half = -(-len(results) // 2)
        self.parts[batch.output_file_id] = []
        for records in (results[:half], results[half:]):
            content = io.BytesIO()
            fastavro.writer(content, SCHEMA, records)
            part = self.store("part.avro", content.getvalue(), "part")
            self.parts[batch.output_file_id].append(part.id)
