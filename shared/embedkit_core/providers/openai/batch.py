"""OpenAI's batch endpoint, and that of compatible servers, through the `openai` SDK's async client.

Wire format: a file of lines `{"custom_id", "method", "url", "body"}` with purpose "batch", and result files of lines
`{"custom_id", "response": {"status_code", "body"}, "error": {"code"}}` in any order. Sources, read 2026-11-30: the
guide developers.openai.com/api/docs/guides/batch, SDK 3.57 (types/batch.py, resources/files.py). The guide says that a
body has the parameters of the endpoint; lists of texts and base64 in batches have no example there.

Partial results: a batch that expired or was cancelled has an output file with its completed lines, and one whose lines
all failed is "completed" without an output file (BerriAI/litellm#33987). A missing file may be "" instead of null.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from embedkit_core.common.errors import BadReplyError, BatchNotFoundError, FileNotReadyError, ProviderError
from embedkit_core.common.types import Reply
from embedkit_core.common.vectors import NUMPY_DTYPES
from embedkit_core.providers.base import Provider
from embedkit_core.providers.batch_endpoint import BatchEndpoint, BatchLimits, BatchOrder, LineResult, RemoteBatch
from embedkit_core.providers.http import batch_lines
from embedkit_core.providers.http.bodies import BYTES_PER_NUMBER, MAX_WIDTH, limit_bodies_to
from embedkit_core.providers.http.decoding import ReplyReader
from embedkit_core.providers.openai.base import OpenAIProvider, http_package
from embedkit_core.providers.openai.client import read_refusal, transport_error
from embedkit_core.providers.openai.refusals import error_status, error_without_texts
from embedkit_core.providers.openai.servers import BASE64, FLOATS, BatchRules

if TYPE_CHECKING:
    from embedkit_core.providers.openai.sdk import IsolatedClient

ENDPOINT: Final = "/v1/embeddings"  # also where the address of a server has another path
ENDED: Final = frozenset({"completed", "failed", "expired", "cancelled", "canceled"})
RUNNING: Final = frozenset({"validating", "in_progress", "finalizing", "cancelling"})
QUEUE_IS_FULL: Final = "token_limit_exceeded"  # openai/openai-python#2084
QUEUE_LIMIT = re.compile(r"Limit: (\d[\d,]{0,17})")
NO_FILE = re.compile(r"\bfile\b.{0,80}(not found|not exist|n't exist|not ready)|no such file", re.I | re.S)
ANSWER_BYTES: Final = 32 << 20  # of a page of batches, whose validation errors may be one per line
ANSWER_SECONDS: Final = 60.0
CONNECT_SECONDS: Final = 30.0
SILENT_SECONDS: Final = 600.0  # without a byte of a file
LISTED_SECONDS: Final = 2 * 24 * 3600
LISTED_PAGES: Final = 20


class OpenAIBatches(BatchEndpoint):
    """Batches of OpenAI, and of servers with the same API."""

    def __init__(self, provider: Provider) -> None:
        if not isinstance(provider, OpenAIProvider):
            raise TypeError(f"provider: not a server with OpenAI's API (got {type(provider).__name__}).")
        rules = provider.server.batch or BatchRules()
        self.limits = BatchLimits(
            *(rules.window, rules.texts, rules.lines, rules.file_bytes),
            line_texts=min(rules.line_texts, provider.limits.texts),
        )
        self._provider, self._reader = provider, ReplyReader()
        is_base64 = provider.negotiates and provider.documents_base64
        field = provider.server.encoding_field
        self._encoding = {} if field is None else {field: BASE64 if is_base64 else FLOATS}
        # Base64 that was not requested is of an unknown dtype, unless the numbers have one byte.
        self._accepts = None if is_base64 or provider.dtype != "float32" else lambda _n_bytes: False

    async def __aenter__(self) -> Self:
        import openai

        self._provider.check_not_lost()
        http = http_package()
        self._openai, self._http_error = openai, http.HTTPError
        self._file_timeout = http.Timeout(SILENT_SECONDS, connect=CONNECT_SECONDS)
        self._sdk: IsolatedClient = self._provider.open_sdk()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._sdk.close()

    def line(self, custom_id: str, body: Mapping[str, Any], texts: Sequence[str]) -> bytes:
        """Return a line of the file."""
        fields = {name: value for name, value in body.items() if name != "prompt"}
        request = {**self._encoding, **fields, "input": list(texts)}
        line = {"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": request}
        return batch_lines.dump_line(self._reader, line)

    def texts_of(self, line: bytes) -> list[str]:
        """Return the texts of a line."""
        texts: list[str] = self._reader.load(line)["body"]["input"]
        return texts

    async def upload(self, file: Path, name: str) -> str:
        """Upload a file of lines, which the SDK reads in small parts, and return its ID."""
        with file.open("rb") as lines:
            request = self._sdk.files.with_raw_response.create(
                file=(name, lines, "application/jsonl"), purpose="batch", timeout=self._file_timeout
            )
            return batch_lines.read_id(await self._answer("upload", request))

    async def create(self, order: BatchOrder) -> RemoteBatch:
        """Create a batch."""
        request = self._sdk.batches.with_raw_response.create(
            input_file_id=order.file_id,
            endpoint=ENDPOINT,
            completion_window="24h",
            metadata={batch_lines.NONCE_FIELD: order.nonce},
            timeout=ANSWER_SECONDS,
        )
        return _read_batch(await self._answer("create", request))

    async def find(self, nonce: str) -> list[RemoteBatch]:
        """Return the batches with a nonce among those of the last days."""
        found: list[RemoteBatch] = []
        oldest = time.time() - LISTED_SECONDS
        after: dict[str, Any] = {}
        for _ in range(LISTED_PAGES):
            request = self._sdk.batches.with_raw_response.list(limit=100, timeout=ANSWER_SECONDS, **after)
            page = await self._answer("list", request)
            batches = batch_lines.read_list(page.get("data"))
            found += [_read_batch(batch) for batch in batches if batch_lines.has_nonce(batch, nonce)]
            created = batch_lines.read_time(batches[-1].get("created_at")) if batches else None
            if not batches or not page.get("has_more") or (created or oldest) < oldest:
                break
            after = {"after": batch_lines.read_id(batches[-1])}
        return found

    async def retrieve(self, batch_id: str) -> RemoteBatch:
        """Return the current state of a batch."""
        request = self._sdk.batches.with_raw_response.retrieve(batch_id, timeout=ANSWER_SECONDS)
        return _read_batch(await self._answer("retrieve", request))

    async def download(self, output: str, file: Path) -> None:
        """Write the lines of a result file to `file`."""
        self._prepare(BYTES_PER_NUMBER * MAX_WIDTH * self.limits.texts)
        with file.open("wb") as lines:
            async with self._errors("download"):
                request = self._sdk.files.with_streaming_response.content(output, timeout=self._file_timeout)
                async with request as response:
                    async for chunk in response.iter_bytes():
                        lines.write(chunk)

    async def _cancel(self, batch_id: str) -> None:
        await self._answer("cancel", self._cancellation(batch_id))

    def _cancellation(self, batch_id: str) -> Awaitable[Any]:
        return self._sdk.batches.with_raw_response.cancel(batch_id, timeout=ANSWER_SECONDS)

    async def delete_upload(self, file_id: str) -> None:
        """Delete an uploaded file."""
        try:
            await self._answer("delete", self._sdk.files.with_raw_response.delete(file_id, timeout=ANSWER_SECONDS))
        except ProviderError as error:
            if error.status != 404:
                raise

    def parse(self, line: bytes) -> LineResult:
        """Return the result that a line of a result file has."""
        result = batch_lines.parse_line(self._reader, line)
        status = error_status(result.reply) if isinstance(result.reply, Mapping) else None
        if status in (None, 200):  # a reply without an error, or one that cannot be decoded
            return result
        code, is_transient = batch_lines.read_code(result.reply), batch_lines.is_transient(status)
        return LineResult(result.custom_id, status, code=code, is_transient=is_transient)

    def decode(self, result: LineResult, n_texts: int) -> Reply:
        """Return the vectors of a result, and its billed tokens."""
        element = NUMPY_DTYPES[self._provider.dtype]
        fields = ("total_tokens", "prompt_tokens")
        return self._reader.read_data(result.reply, n_texts, element, *fields, accepts=self._accepts)

    def _prepare(self, size: int) -> None:
        """Set the key and the limit of the response for the next request of this task."""
        self._sdk.api_key = self._provider.secret.constant().reveal()  # it may have changed
        limit_bodies_to(size)

    async def _answer(self, operation: str, request: Awaitable[Any]) -> dict[str, Any]:
        """Send a request that was not awaited yet, and return the JSON object of its response."""
        self._prepare(ANSWER_BYTES)
        async with self._errors(operation):
            response = await request
        try:
            answer = self._reader.load(response.content or b"{}")  # 204 after a deletion
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise BadReplyError(f"Server response to {operation} is not a JSON object")
        return answer

    @asynccontextmanager
    async def _errors(self, operation: str) -> AsyncIterator[None]:
        """Raise the errors of the SDK as those of this library."""
        try:
            yield
        except self._openai.APIStatusError as error:
            raise self._refusal_error(operation, error.status_code, error.body, error.response.headers) from None
        except (self._openai.APIConnectionError, self._http_error) as error:  # the latter in a download
            raise transport_error(self._provider, error, self._sdk.base_url) from None

    def _refusal_error(self, operation: str, status: int, body: object, headers: Mapping[str, str]) -> ProviderError:
        provider = self._provider
        refusal, detail = read_refusal(provider, status, body, headers, provider.secret.constant())
        if operation in ("upload", "create"):  # a message about the file may repeat its lines
            refusal = replace(refusal, message=batch_lines.read_code(body))
            detail = replace(detail, param="")
        if operation == "create" and status in (400, 404) and NO_FILE.search(detail.message):
            return FileNotReadyError(
                f"Server does not know the uploaded file yet (HTTP {status})", **refusal.error_fields
            )
        if operation in ("retrieve", "download") and status == 404:
            lost = "batch" if operation == "retrieve" else "result file"
            return BatchNotFoundError(
                f"Server does not know the {lost} (HTTP 404). It was deleted, or api_key= is that of another project",
                **refusal.error_fields,
            )
        fix = ""
        if status == 404:
            fix = provider.address_fix(self._sdk.base_url.path.rstrip("/"))
            fix = fix or (
                "Does the server at base_url= have the routes /files and /batches?" if provider.endpoint else ""
            )
        codes = provider.server.rate_limit_codes
        return error_without_texts(refusal, detail, provider.key_variable, fix=fix, rate_limit_codes=codes)


def _read_batch(batch: Mapping[str, Any]) -> RemoteBatch:
    """Return a batch; one with an unknown status has ended if it has results."""
    status, counts = str(batch.get("status")), batch.get("request_counts")
    counts = counts if isinstance(counts, Mapping) else {}
    total, done, failed = (batch_lines.read_count(counts.get(name)) for name in ("total", "completed", "failed"))
    outputs = batch_lines.read_outputs(batch.get("output_file_id"), batch.get("error_file_id"))
    errors = batch_lines.read_errors(batch.get("errors"))
    queue = next((str(error.get("message")) for error in errors if error.get("code") == QUEUE_IS_FULL), None)
    limit = QUEUE_LIMIT.search(queue or "")
    return RemoteBatch(
        id=batch_lines.read_id(batch),
        status=status,
        has_ended=status in ENDED or (status not in RUNNING and bool(outputs)),
        outputs=outputs,
        lines=total or None,
        done=done,
        failed=failed,
        expires_at=batch_lines.read_time(batch.get("expires_at")),
        error=(batch_lines.describe_errors(errors) or "no reason stated") if status == "failed" else "",
        queue_is_full=queue is not None,
        queue_tokens=int(limit[1].replace(",", "")) if limit else None,
    )
