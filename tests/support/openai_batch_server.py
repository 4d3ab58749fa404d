"""A local server that implements OpenAI's files and batches besides `POST /v1/embeddings`, and fails on request.

Formats: github.com/openai/openai-openapi (Files, Batch); openai-python 3.57, types/batch.py, types/file_object.py; the
guide developers.openai.com/api/docs/guides/batch; read 2026-11-30.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qs

from .batch_server import BatchServer, StoredBatch, StoredFile, lines_of
from .http import Request
from .openai_replies import Json
from .openai_server import OpenAIServer

REASONS = {
    "expired": "This request could not be executed before the completion window expired.",
    "cancelled": "This request was not executed because the batch was cancelled.",
}
MAX_METADATA = 16


@dataclass(kw_only=True, eq=False, repr=False)
class OpenAIBatchServer(BatchServer, OpenAIServer):
    """OpenAI's server. The ID of a missing error file is "" if `empty_error_id`, else null."""

    empty_error_id: bool = False

    def read_order(self, order: Json) -> tuple[str, Mapping[str, str]] | None:
        metadata = order.get("metadata") or {}
        is_valid = (
            order.keys() <= {"input_file_id", "endpoint", "completion_window", "metadata", "output_expires_after"}
            and order.get("endpoint") == "/v1/embeddings"
            and order.get("completion_window") == "24h"
            and isinstance(order.get("input_file_id"), str)
            and len(metadata) <= MAX_METADATA
            and all(len(name) <= 64 and len(value) <= 512 for name, value in metadata.items())
        )
        return (order["input_file_id"], metadata) if is_valid else None

    def read_line(self, line: Json, order: Json) -> tuple[str, Json]:
        return line["custom_id"], line["body"]

    def flaw(self, batch: StoredBatch) -> tuple[str, str] | None:
        lines = lines_of(self.files[batch.file_id].content) if batch.file_id in self.files else []
        if any((line.get("method"), line.get("url")) != ("POST", "/v1/embeddings") for line in lines):
            return "url_mismatch", "The URL provided for this request does not match the batch endpoint."
        if len({body.get("model") for body in batch.bodies}) > 1:
            return "model_mismatch", "The model must be the same for all requests in the batch."
        if any(count > 1 for count in Counter(custom_id for custom_id, _ in batch.lines).values()):
            return "duplicate_custom_id", "The custom_id for this request is a duplicate of another request."
        if not batch.lines:
            return "empty_file", "The input file is empty."
        n_texts = sum(len(texts) for _, texts in batch.lines)
        if len(batch.lines) > self.max_batch_lines or n_texts > self.max_batch_texts:
            return "too_many_tasks", "The batch has too many requests or embedding inputs."
        return None

    def describe_file(self, file: StoredFile) -> Json:
        return {
            "id": file.id,
            "object": "file",
            "bytes": len(file.content),
            "created_at": int(file.created_at),
            "filename": file.name,
            "purpose": file.purpose,
            "status": "processed",
            "status_details": None,
            "expires_at": int(file.created_at) + 30 * 24 * 3600,
        }

    def describe(self, batch: StoredBatch) -> Json:
        ended_at = None if batch.ended_at is None else int(batch.ended_at)
        errors = None
        if batch.refusal is not None:
            code, message = batch.refusal
            errors = {"object": "list", "data": [{"code": code, "message": message, "param": None, "line": None}]}
        return {
            "id": batch.id,
            "object": "batch",
            "endpoint": "/v1/embeddings",
            "errors": errors,
            "input_file_id": batch.file_id,
            "completion_window": "24h",
            "status": batch.status,
            "output_file_id": batch.output_file_id,
            "error_file_id": batch.error_file_id or ("" if self.empty_error_id else None),
            "created_at": int(batch.created_at),
            "expires_at": int(batch.expires_at),
            **{f"{name}_at": ended_at if batch.status == name else None for name in self.endings},
            "request_counts": {
                "total": len(batch.lines) if batch.status != "validating" and batch.refusal is None else 0,
                "completed": batch.done,
                "failed": batch.failed,
            },
            "metadata": dict(batch.metadata) or None,
            "usage": {
                "input_tokens": batch.tokens,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": 0,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": batch.tokens,
            },
        }

    def describe_list(self, batches: Sequence[StoredBatch], request: Request) -> Json:
        query = parse_qs(request.query)
        after, limit = query.get("after", [None])[0], int(query.get("limit", ["20"])[0])
        start = next((n + 1 for n, batch in enumerate(batches) if batch.id == after), 0)
        page = [self.describe(batch) for batch in batches[start : start + limit]]
        ends = {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
        return {"object": "list", "data": page, **ends, "has_more": len(batches) > start + limit}

    def result_line(self, number: int, custom_id: str, status: int, body: Json) -> Json:
        response = {"status_code": status, "request_id": f"req_{number:08x}", "body": body}
        return {"id": f"batch_req_{number:08x}", "custom_id": custom_id, "response": response, "error": None}

    def unsent_line(self, number: int, custom_id: str, ending: str) -> Json:
        error = {"code": f"batch_{ending}", "message": REASONS.get(ending, "This request was not executed.")}
        return {"id": f"batch_req_{number:08x}", "custom_id": custom_id, "response": None, "error": error}
