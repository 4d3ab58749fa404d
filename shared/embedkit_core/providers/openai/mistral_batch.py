"""Mistral's batch jobs, through the transport of the `openai` SDK, because `mistralai` is not among the dependencies.

Files have the same routes as OpenAI's. A job names the model, so a line has none: {"custom_id", "body": {"input"}}.
Sources, read 2026-11-30: mistralai/platform-docs-public at 222f4ba, openapi.yaml (BatchJobIn, BatchJobOut),
studio-api/batch-processing.md and resources/known-limitations.md; mistralai 3.7.0. Tested against a local server that
follows them, not against the live service.

- The pages contradict each other: a million requests of a workspace, or 100,000 requests of a batch; results that do
  not expire, or that are kept for 24 hours. A text counts as a request here.
- The list can be filtered by metadata, but how the filter is written in an address is not documented. So the list is
  searched here, newest first.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

from embedkit_core.providers.batch_endpoint import BatchOrder, RemoteBatch
from embedkit_core.providers.http import batch_lines
from embedkit_core.providers.openai.base import http_package
from embedkit_core.providers.openai.batch import ANSWER_SECONDS, ENDPOINT, LISTED_PAGES, LISTED_SECONDS, OpenAIBatches

TIMEOUT_HOURS: Final = 24  # the default; "should be lower than 7 days"
PAGE: Final = 100
RUNNING: Final = frozenset({"QUEUED", "RUNNING", "CANCELLATION_REQUESTED"})
ENDED: Final = frozenset({"SUCCESS", "FAILED", "TIMEOUT_EXCEEDED", "CANCELLED"})


class MistralBatches(OpenAIBatches):
    """Batch jobs of Mistral."""

    def line(self, custom_id: str, body: Mapping[str, Any], texts: Sequence[str]) -> bytes:
        """Return a line of the file, without the model."""
        fields = {name: value for name, value in body.items() if name not in ("model", "prompt")}
        request = {**self._encoding, **fields, "input": list(texts)}
        return batch_lines.dump_line(self._reader, {"custom_id": custom_id, "body": request})

    async def create(self, order: BatchOrder) -> RemoteBatch:
        """Create a batch job."""
        job = {
            "input_files": [order.file_id],
            "endpoint": ENDPOINT,
            "model": order.body["model"],
            "metadata": {batch_lines.NONCE_FIELD: order.nonce},
            "timeout_hours": TIMEOUT_HOURS,
        }
        return _read_job(await self._answer("create", self._request("POST", "/batch/jobs", body=job)))

    async def find(self, nonce: str) -> list[RemoteBatch]:
        """Return the jobs with a nonce among those of the last days."""
        found: dict[str, RemoteBatch] = {}  # a job that is created meanwhile moves others to the next page
        oldest = time.time() - LISTED_SECONDS
        for page in range(LISTED_PAGES):
            path = f"/batch/jobs?page={page}&page_size={PAGE}&order_by=-created"
            answer = await self._answer("list", self._request("GET", path))
            jobs = batch_lines.read_list(answer.get("data"))
            found |= {batch_lines.read_id(job): _read_job(job) for job in jobs if batch_lines.has_nonce(job, nonce)}
            if len(jobs) < PAGE or (batch_lines.read_time(jobs[-1].get("created_at")) or oldest) < oldest:
                break
        return list(found.values())

    async def retrieve(self, batch_id: str) -> RemoteBatch:
        """Return the current state of a job."""
        request = self._request("GET", f"/batch/jobs/{quote(batch_id, safe='')}")
        return _read_job(await self._answer("retrieve", request))

    def _cancellation(self, batch_id: str) -> Awaitable[Any]:
        return self._request("POST", f"/batch/jobs/{quote(batch_id, safe='')}/cancel")

    def _request(self, method: str, path: str, **body: Any) -> Awaitable[Any]:
        """Return a request of the SDK for the answer as it is, not awaited yet."""
        send = self._sdk.get if method == "GET" else self._sdk.post
        return send(path, cast_to=http_package().Response, options={"timeout": ANSWER_SECONDS}, **body)


def _read_job(job: Mapping[str, Any]) -> RemoteBatch:
    """Return the batch that a job is. Its errors have no codes, and their messages may repeat texts."""
    status, created_at = str(job.get("status")), batch_lines.read_time(job.get("created_at"))
    outputs = batch_lines.read_outputs(job.get("output_file"), job.get("error_file"))
    error = batch_lines.describe_errors(batch_lines.read_errors(job.get("errors"))) or "no reason stated"
    return RemoteBatch(
        id=batch_lines.read_id(job),
        status=status,
        has_ended=status in ENDED or (status not in RUNNING and bool(job.get("completed_at"))),
        outputs=outputs,
        lines=batch_lines.read_count(job.get("total_requests")) or None,
        done=batch_lines.read_count(job.get("succeeded_requests")),
        failed=batch_lines.read_count(job.get("failed_requests")),
        expires_at=None if created_at is None else created_at + TIMEOUT_HOURS * 3600,
        error=error if status == "FAILED" and not outputs else "",
    )
