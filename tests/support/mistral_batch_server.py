"""A local server that implements Mistral's files and batch jobs besides `POST /v1/embeddings`, and fails on request.

Formats: the sources in `embedkit_core.providers.openai.mistral_batch`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import parse_qs

from .batch_server import BatchServer, StoredBatch, StoredFile
from .http import Exchange, Request
from .openai_replies import Json, as_json
from .openai_server import OpenAIServer
from .voyage_server import to_dtype

FIELDS = {"model", "input", "encoding_format", "output_dimension", "output_dtype"}
ORDER = {"input_files", "endpoint", "model", "metadata", "timeout_hours"}


@dataclass(kw_only=True, eq=False, repr=False)
class MistralBatchServer(BatchServer, OpenAIServer):
    """Mistral's server. Vectors are numbers for every encoding."""

    dimensions: int = 1536

    endings: ClassVar[Mapping[str, str]] = {
        "completed": "SUCCESS",
        "expired": "TIMEOUT_EXCEEDED",
        "cancelled": "CANCELLED",
        "failed": "FAILED",
    }
    batches_path: ClassVar[str] = "batch/jobs"
    running_word: ClassVar[str] = "RUNNING"
    cancelling_word: ClassVar[str] = "CANCELLATION_REQUESTED"

    def error(self, message: str) -> Json:
        return {"object": "error", "message": message, "type": "invalid_request_error", "param": None, "code": "3051"}

    def refusal(self, exchange: Exchange) -> tuple[int, Json] | None:
        if unknown := exchange.body.keys() - FIELDS:
            finding = {"type": "extra_forbidden", "loc": ["body", next(iter(unknown))], "msg": "Extra inputs"}
            return 422, {"detail": [finding]}
        return super().refusal(exchange)

    async def reply(self, exchange: Exchange) -> Json:
        exchange.body["dimensions"] = exchange.body.get("output_dimension")
        reply = await super().reply(exchange)
        for row in reply["data"]:
            row["embedding"] = to_dtype(row["embedding"], exchange.body.get("output_dtype") or "float")
        reply["usage"] = {"prompt_tokens": exchange.tokens, "completion_tokens": 0, "total_tokens": exchange.tokens}
        return reply

    async def encoded(self, reply: Json, exchange: Exchange) -> bytes:
        def plain(value: Any) -> Any:
            return value.tolist()

        return await as_json(reply, plain)

    def new_id(self, prefix: str) -> str:
        """Return a UUID."""
        number = int(super().new_id(prefix).removeprefix(prefix))
        return f"{prefix[:1].encode().hex():0>8}-0000-4000-8000-{number:012}"

    def read_order(self, order: Json) -> tuple[str, Mapping[str, str]] | None:
        files, metadata = order.get("input_files"), order.get("metadata") or {}
        is_valid = (
            order.keys() <= ORDER
            and order.get("endpoint") == "/v1/embeddings"
            and isinstance(files, list)
            and len(files) == 1
            and order.get("timeout_hours", 24) < 7 * 24
            and all(1 <= len(name) <= 32 and 1 <= len(value) <= 512 for name, value in metadata.items())
        )
        return (files[0], metadata) if is_valid else None

    def read_line(self, line: Json, order: Json) -> tuple[str, Json]:
        assert line.keys() == {"custom_id", "body"}
        model = {} if order.get("model") is None else {"model": order["model"]}
        return line["custom_id"], line["body"] | model

    def describe_file(self, file: StoredFile) -> Json:
        return {
            "id": file.id,
            "object": "file",
            "bytes": len(file.content),
            "created_at": int(file.created_at),
            "filename": file.name,
            "purpose": file.purpose,
            "sample_type": "batch_request",
            "source": "upload",
        }

    def describe(self, batch: StoredBatch) -> Json:
        status = "QUEUED" if batch.status == "validating" else batch.status
        return {
            "id": batch.id,
            "object": "batch",
            "input_files": [batch.file_id],
            "metadata": dict(batch.metadata) or None,
            "endpoint": "/v1/embeddings",
            "model": batch.order.get("model"),
            "agent_id": None,
            "output_file": batch.output_file_id,
            "error_file": batch.error_file_id,
            "errors": [{"message": batch.refusal[1], "count": 1}] if batch.refusal else [],
            "outputs": None,
            "status": status,
            "created_at": int(batch.created_at),
            "started_at": None if status == "QUEUED" else int(batch.created_at),
            "completed_at": None if batch.ended_at is None else int(batch.ended_at),
            "total_requests": len(batch.lines),
            "completed_requests": batch.done + batch.failed,
            "succeeded_requests": batch.done,
            "failed_requests": batch.failed,
        }

    def describe_list(self, batches: Sequence[StoredBatch], request: Request) -> Json:
        query = {name: values[0] for name, values in parse_qs(request.query).items()}
        size = int(query.get("page_size", "100"))
        start = int(query.get("page", "0")) * size
        ordered = batches if query.get("order_by", "-created") == "-created" else batches[::-1]
        page = [self.describe(batch) for batch in ordered[start : start + size]]
        return {"object": "list", "data": page, "total": len(batches)}

    def result_line(self, number: int, custom_id: str, status: int, body: Json) -> Json:
        response = {"status_code": status, "body": body if status == 200 else None}
        error = None if status == 200 else str(body)
        return {"id": f"batch-{number}", "custom_id": custom_id, "response": response, "error": error}

    def unsent_line(self, number: int, custom_id: str, ending: str) -> Json:
        error = {"message": "The job ended before this request."}
        return {"id": f"batch-{number}", "custom_id": custom_id, "response": None, "error": error}
