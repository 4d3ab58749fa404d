"""A local server with the files and batches of the Gemini API besides `batchEmbedContents`, which fails on request.

Formats: ai.google.dev/api/batch-api, ai.google.dev/api/files, google-genai 3.6.1; read 2026-11-30. One result file has
vectors and errors. The address of an upload names Google's own host. An unknown file is refused with HTTP 403.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import ClassVar
from urllib.parse import parse_qs

from .batch_server import BatchServer, Operation, StoredBatch, StoredFile, as_lines
from .google_server import PATH, ROUTE, GoogleServer
from .http import Connection, Request, Response
from .openai_replies import Json

ROOT = "/v1beta/"
CODES = {"CANCELLED": 1, "INVALID_ARGUMENT": 3, "RESOURCE_EXHAUSTED": 8, "INTERNAL": 13, "UNAVAILABLE": 14}
CODE_OF_STATUS = {400: 3, 429: 8, 500: 13, 503: 14}


@dataclass(kw_only=True, eq=False, repr=False)
class GeminiBatchServer(BatchServer, GoogleServer):
    """The Gemini API.

    Attributes:
        unknown_word: The state of all batches, if set.
    """

    unknown_word: str = ""

    endings: ClassVar[Mapping[str, str]] = {
        "completed": "BATCH_STATE_SUCCEEDED",
        **{name: f"BATCH_STATE_{name.upper()}" for name in ("expired", "cancelled", "failed")},
    }
    running_word: ClassVar[str] = "BATCH_STATE_RUNNING"
    cancelling_word: ClassVar[str] = "BATCH_STATE_RUNNING"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.sessions: dict[str, str] = {}  # of uploads, with the name of the file

    def is_authorized(self, headers: Mapping[str, str]) -> bool:
        return GoogleServer.is_authorized(self, headers)

    async def answer(self, request: Request, connection: Connection) -> Response | None:
        if request.path == "/upload/v1beta/files" and request.headers.get("x-goog-upload-command") == "start":
            return self.start_upload(request)
        return await super().answer(request, connection)

    def start_upload(self, request: Request) -> Response:
        if not self.is_authorized(request.headers):
            return self._refuse(400, self.error("API key not valid. Please pass a valid API key."))
        assert request.headers["x-goog-upload-protocol"] == "resumable"
        assert int(request.headers["x-goog-upload-header-content-length"]) > 0
        session = self.new_id("session-")
        self.sessions[session] = json.loads(request.body)["file"]["displayName"]
        address = f"https://generativelanguage.googleapis.com/upload/v1beta/files?upload_id={session}"
        return Response(200, b"", {"X-Goog-Upload-URL": address, "X-Goog-Upload-Status": "active"})

    def route(self, request: Request) -> tuple[Operation, str] | None:
        if request.path == "/upload/v1beta/files":
            return "upload", ""
        found = PATH.fullmatch(request.path)
        if found is not None and found["method"] == "asyncBatchEmbedContent":
            return "create", found["model"]
        kind, _, rest = request.path.removeprefix(ROOT).partition("/")
        name, _, action = rest.partition(":")
        routes: dict[tuple[str, str, bool, str], Operation] = {
            ("GET", "files", True, "download"): "download",
            ("DELETE", "files", True, ""): "delete",
            ("GET", "batches", False, ""): "list",
            ("GET", "batches", True, ""): "retrieve",
            ("POST", "batches", True, "cancel"): "cancel",
        }
        operation = routes.get((request.method, kind, bool(name), action))
        return (operation, name) if operation else None

    def read_upload(self, request: Request) -> tuple[str, str, bytes] | None:
        session = parse_qs(request.query)["upload_id"][0]
        headers = request.headers
        is_valid = headers["x-goog-upload-command"] == "upload, finalize" and headers["x-goog-upload-offset"] == "0"
        return (self.sessions.pop(session), "batch", request.body) if is_valid else None

    async def on_create(self, name: str, request: Request) -> Response:
        order = {**json.loads(request.body), "model": name}
        headers = {**request.headers, ROUTE: f"{ROOT}models/{name}:batchEmbedContents", "x-bytes": "0"}
        return await super().on_create(name, replace(request, body=json.dumps(order).encode(), headers=headers))

    async def on_download(self, name: str, request: Request) -> Response:
        assert request.query == "alt=media"
        return await super().on_download(name, request)

    def read_order(self, order: Json) -> tuple[str, Mapping[str, str]] | None:
        batch = order.get("batch")
        if not isinstance(batch, dict) or batch.keys() != {"displayName", "inputConfig"}:
            return None
        file = batch["inputConfig"]["fileName"]
        return file.removeprefix("files/"), {"displayName": batch["displayName"]}

    def nonce_of(self, metadata: Mapping[str, str]) -> str:
        return metadata["displayName"]

    def read_line(self, line: Json, order: Json) -> tuple[str, Json]:
        assert line.keys() == {"key", "request"}
        return line["key"], {"requests": [line["request"]]}

    def flaw(self, batch: StoredBatch) -> tuple[str, str] | None:
        if any(count > 1 for count in Counter(key for key, _ in batch.lines).values()):
            return "INVALID_ARGUMENT", "Duplicate keys in the input file."
        return None

    def not_found(self, what: str) -> Response:
        if what.startswith("File "):
            message = f"You do not have permission to access the {what} or it may not exist."
            return self._refuse(403, self.error(message, 403, "PERMISSION_DENIED"))
        return self._refuse(404, self.error("Requested entity was not found.", 404, "NOT_FOUND"))

    def describe_file(self, file: StoredFile) -> Json:
        return {
            "file": {
                "name": f"files/{file.id}",
                "displayName": file.name,
                "mimeType": "application/jsonl",
                "sizeBytes": str(len(file.content)),
                "state": "ACTIVE",
            }
        }

    def describe(self, batch: StoredBatch) -> Json:
        state = self.unknown_word or batch.status.replace("validating", "BATCH_STATE_PENDING")
        output = {"responsesFile": f"files/{batch.output_file_id}"} if batch.output_file_id else None
        metadata = {
            "@type": "type.googleapis.com/google.ai.generativelanguage.v1main.EmbedContentBatch",
            "model": f"models/{batch.order['model']}",
            "displayName": batch.nonce,
            "state": state,
            "createTime": datetime.fromtimestamp(batch.created_at, UTC).isoformat().replace("+00:00", "Z"),
            "batchStats": {
                "requestCount": str(len(batch.lines)),
                "successfulRequestCount": str(batch.done),
                "failedRequestCount": str(batch.failed),
            },
            "name": f"batches/{batch.id}",
            **({"output": output} if output else {}),
        }
        operation = {"name": f"batches/{batch.id}", "metadata": metadata}
        if not batch.is_finished:
            return operation
        code, message = batch.refusal or ("CANCELLED", "The operation was cancelled.")
        failed = batch.refusal is not None or batch.status == "BATCH_STATE_CANCELLED"
        outcome = {"error": {"code": CODES[code], "message": message}} if failed else {"response": output or {}}
        return {**operation, "done": True, **outcome}

    def describe_list(self, batches: Sequence[StoredBatch], request: Request) -> Json:
        query = parse_qs(request.query)
        start, size = int(query.get("pageToken", ["0"])[0]), int(query["pageSize"][0])
        page = {"operations": [self.describe(batch) for batch in batches[start : start + size]]}
        return {**page, "nextPageToken": str(start + size)} if start + size < len(batches) else page

    def result_line(self, number: int, custom_id: str, status: int, body: Json) -> Json:
        if status != 200:
            error = {"code": CODE_OF_STATUS.get(status, status), "message": body["error"]["message"]}
            return {"key": custom_id, "error": error}
        usage = {"usageMetadata": body["usageMetadata"]} if "usageMetadata" in body else {}
        return {"key": custom_id, "response": {"embedding": body["embeddings"][0], **usage}}

    def unsent_line(self, number: int, custom_id: str, ending: str) -> Json:
        return {"key": custom_id, "error": {"code": CODES["CANCELLED"], "message": f"The batch was {ending}."}}

    def write_results(self, batch: StoredBatch, errors: list[Json]) -> None:
        lines = [*(batch.results or []), *errors]
        if lines:
            batch.output_file_id = self.store(f"{batch.id}.jsonl", as_lines(lines), "output").id
