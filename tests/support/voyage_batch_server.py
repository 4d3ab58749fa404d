"""A local server that implements Voyage AI's files and batches besides `POST /v1/embeddings`, and fails on request.

Formats: the sources in `embedkit_core.providers.voyage_batch`. What is not documented there follows OpenAI's format.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal
from urllib.parse import parse_qs

from .batch_server import BatchServer, StoredBatch, StoredFile
from .http import Request, Response
from .openai_replies import Json
from .voyage_server import VoyageServer

ORDER = {"input_file_id", "endpoint", "completion_window", "request_params", "metadata"}
ENDINGS = ("completed", "failed", "cancelled")


def iso(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat()


@dataclass(kw_only=True, eq=False, repr=False)
class VoyageBatchServer(BatchServer, VoyageServer):
    """Voyage's server.

    Attributes:
        encoding: What a batch does with `encoding_format`: sends it, ignores it, or is refused.
    """

    window: float = 12 * 3600
    max_batch_texts: int = 100_000
    encoding: Literal["sent", "ignored", "refused"] = "sent"

    def new_id(self, prefix: str) -> str:
        return super().new_id(prefix.replace("_", "-"))

    def read_order(self, order: Json) -> tuple[str, Mapping[str, str]] | None:
        params, metadata = order.get("request_params"), order.get("metadata", {})
        is_valid = (
            order.keys() <= ORDER
            and order.get("endpoint") == "/v1/embeddings"
            and order.get("completion_window") == "12h"
            and isinstance(params, dict)
            and "input" not in params
            and len(metadata) <= 16
        )
        return (order["input_file_id"], metadata) if is_valid else None

    def read_line(self, line: Json, order: Json) -> tuple[str, Json]:
        assert line.keys() == {"custom_id", "body"}
        assert line["body"].keys() == {"input"}
        params = dict(order["request_params"])
        if self.encoding == "ignored":
            params.pop("encoding_format", None)
        return line["custom_id"], params | line["body"]

    async def on_create(self, name: str, request: Request) -> Response:
        params = json.loads(request.body).get("request_params", {})
        found = self._malformed(params)
        if self.encoding == "refused" and "encoding_format" in params:
            found = "Argument 'encoding_format' is not supported by our API"
        if found:
            return self._refuse(400, self.error(found))
        response = await super().on_create(name, request)
        return replace(response, body=b'{"detail": "Input file not found"}') if response.status == 404 else response

    def flaw(self, batch: StoredBatch) -> tuple[str, str] | None:
        n_texts = sum(len(texts) for _, texts in batch.lines)
        is_valid = len({custom_id for custom_id, _ in batch.lines}) == len(batch.lines)
        return None if is_valid and n_texts <= self.max_batch_texts else ("invalid_input_file", "See the file.")

    def describe_file(self, file: StoredFile) -> Json:
        return {
            "id": file.id,
            "object": "file",
            "bytes": len(file.content),
            "created_at": iso(file.created_at),
            "expires_at": iso(file.created_at + 30 * 24 * 3600),
            "filename": file.name,
            "purpose": file.purpose,
        }

    def describe(self, batch: StoredBatch) -> Json:
        code, message = batch.refusal or ("", "")
        return {
            "id": batch.id,
            "object": "batch",
            "endpoint": "/v1/embeddings",
            "errors": {"data": [{"code": code, "message": message}]} if batch.refusal else None,
            "input_file_id": batch.file_id,
            "completion_window": "12h",
            "status": batch.status,
            "output_file_id": batch.output_file_id,
            "error_file_id": batch.error_file_id,
            "created_at": iso(batch.created_at),
            "expected_completion_at": iso(batch.expires_at),
            **{f"{name}_at": iso(batch.ended_at) if batch.status == name else None for name in ENDINGS},
            "request_counts": {
                "total": len(batch.lines) if batch.status != "validating" else 0,
                "completed": batch.done,
                "failed": batch.failed,
            },
            "metadata": dict(batch.metadata) or None,
            "model": batch.order["request_params"]["model"],
        }

    def describe_list(self, batches: Sequence[StoredBatch], request: Request) -> Json:
        query = parse_qs(request.query)
        after, limit = query.get("after", [None])[0], min(int(query.get("limit", ["20"])[0]), 100)
        start = next((n + 1 for n, batch in enumerate(batches) if batch.id == after), 0)
        return {"object": "list", "data": [self.describe(batch) for batch in batches[start : start + limit]]}

    def result_line(self, number: int, custom_id: str, status: int, body: Json) -> Json:
        response = {"status_code": status, **({"body": body} if status == 200 else {"message": body["detail"]})}
        return {"batch_id": "batch-0001", "custom_id": custom_id, "response": response, "error": None}

    def unsent_line(self, number: int, custom_id: str, ending: str) -> Json:
        error = {"code": f"batch_{ending}", "message": "This request was not executed before the batch ended."}
        return {"batch_id": "batch-0001", "custom_id": custom_id, "response": None, "error": error}
