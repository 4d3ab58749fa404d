"""Batches of Voyage AI, over HTTP: the `voyageai` SDK has no method for them.

Wire format: POST /files, POST /batches, GET /batches/{id}, GET /files/{id}/content; the model and all parameters are
those of the batch, and a line has only the input. Sources, read 2026-11-30: docs.voyageai.com/docs/batch-inference and
/reference/create-batch (Public Preview); a notebook with real replies, mongodb-developer/GenAI-Showcase,
tools/voyageai_batch_api. Tested against a local server that follows them, not against the live service.

- "`request_params` specifies all endpoint parameters", so base64 is requested; no public example shows it. Vectors are
  read in either encoding, and a batch that is refused because of it is created without it.
- The window is 12 hours. `expected_completion_at` is its end: a batch that is not completed then has partial results.
- An uploaded file may be unknown for more than a minute: "Input file not found" (GenAI-Showcase#175).
- At most 10 batches and 500 million tokens of an organization may be in flight. How more are refused is not documented.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast
from urllib.parse import quote, urlsplit

from embedkit_core.common.errors import (
    BadRequestError,
    BatchNotFoundError,
    FileNotReadyError,
    ProviderError,
    TimedOutError,
)
from embedkit_core.common.types import Reply
from embedkit_core.common.vectors import NUMPY_DTYPES
from embedkit_core.providers.base import Provider
from embedkit_core.providers.batch_endpoint import BatchEndpoint, BatchLimits, BatchOrder, LineResult, RemoteBatch
from embedkit_core.providers.http import batch_lines
from embedkit_core.providers.http.decoding import ReplyReader
from embedkit_core.providers.http.refusals import CHECK_ADDRESS, Refusal, connection_error
from embedkit_core.providers.secrets import Secret
from embedkit_core.providers.voyage import ENCODING, Voyage, account_error, address_fix, read_message

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession

WINDOW_HOURS = 12
ENDPOINT = "/v1/embeddings"
CONNECT_SECONDS, READ_SECONDS = 60, 600
MAX_JSON_BYTES = 1 << 24  # a page of batches is the largest
MAX_FILE_BYTES = 1 << 40  # of results: no limit, as zlib needs a number
PAGE, LISTED_PAGES = 100, 200
NO_ROUTES = "Does the server at base_url= have the routes /files and /batches?"
RUNNING = frozenset({"validating", "in_progress", "finalizing", "cancelling", "canceling"})
# "canceled" and "expired" are in the notebook, not in the documentation.
ENDED = frozenset({"completed", "failed", "cancelled", "canceled", "expired"})
END_TIMES = ("completed_at", "failed_at", "cancelled_at", "canceled_at", "expired_at")
NO_FILE = re.compile(r"\bfile not found", re.I)
QUEUE_IS_FULL = re.compile(r"in.?flight|too many batch|token_limit|500,?(000,?000|M)", re.I)
ABOUT_LINE = re.compile(r"\bline\b|custom_id", re.I)  # such a message may repeat a text


class VoyageBatches(BatchEndpoint):
    """Batches of one model, at the address of the normal requests."""

    def __init__(self, provider: Provider) -> None:
        self._provider = cast(Voyage, provider)
        # 1 GB per file by the announcement of 2026-03-09; smaller files, so that an upload that fails costs less.
        self.limits = BatchLimits(
            window=WINDOW_HOURS * 3600,
            texts=100_000,
            lines=100_000,
            file_bytes=200_000_000,
            line_texts=min(256, provider.limits.texts),
            tokens=500_000_000,
        )
        self._reader = ReplyReader()

    async def __aenter__(self) -> Self:
        import aiohttp

        from embedkit_core.providers.http.bodies import BodyLimits, read_decompressed

        self._provider.connection.check_not_lost()
        self._body_limits, self._read_decompressed = BodyLimits, read_decompressed
        self._connection_errors = (aiohttp.ClientError, OSError)
        self._form = aiohttp.FormData
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)
        self._session: ClientSession = self._provider.session_opener()()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._session.close()

    def line(self, custom_id: str, body: Mapping[str, Any], texts: Sequence[str]) -> bytes:  # noqa: ARG002 - batch's
        """Return a line: its ID and its texts."""
        return batch_lines.dump_line(self._reader, {"custom_id": custom_id, "body": {"input": list(texts)}})

    def texts_of(self, line: bytes) -> list[str]:
        """Return the texts of a line."""
        texts: list[str] = self._reader.load(line)["body"]["input"]
        return texts

    async def upload(self, file: Path, name: str) -> str:
        """Upload a file in pieces."""
        with file.open("rb") as content:
            form = self._form(quote_fields=False)
            form.add_field("purpose", "batch")
            form.add_field("file", content, filename=name, content_type="application/jsonl")
            return batch_lines.read_id(await self._call("POST", "/files", data=form))

    async def create(self, order: BatchOrder) -> RemoteBatch:
        """Create a batch; without base64 if that is refused."""
        fields = {name: value for name, value in order.body.items() if name != "prompt"}
        try:
            return await self._create(order, {**fields, "encoding_format": ENCODING})
        except BadRequestError as error:
            if "encoding_format" not in str(error):
                raise
        return await self._create(order, fields)

    async def _create(self, order: BatchOrder, params: Mapping[str, Any]) -> RemoteBatch:
        request = {
            "input_file_id": order.file_id,
            "endpoint": ENDPOINT,
            "completion_window": f"{WINDOW_HOURS}h",
            "request_params": params,
            "metadata": {batch_lines.NONCE_FIELD: order.nonce},
        }
        return _read_batch(await self._call("POST", "/batches", json=request))

    async def find(self, nonce: str) -> list[RemoteBatch]:
        """Return the batches with a nonce from all pages of the list."""
        found: list[RemoteBatch] = []
        seen: set[str] = set()
        after = ""
        for _ in range(LISTED_PAGES):
            reply = await self._call("GET", f"/batches?limit={PAGE}{after}")
            page: list[Any] = reply["data"] if isinstance(reply.get("data"), list) else []
            new = [entry for entry in page if batch_lines.read_id(entry) not in seen]
            found += [_read_batch(entry) for entry in new if batch_lines.has_nonce(entry, nonce)]
            if not new or reply.get("has_more") is False:
                break
            seen.update(entry["id"] for entry in new)
            after = f"&after={quote(page[-1]['id'], safe='')}"
        return found

    async def retrieve(self, batch_id: str) -> RemoteBatch:
        """Return the current state of a batch."""
        return _read_batch(await self._call("GET", f"/batches/{quote(batch_id, safe='')}", sought="batch"))

    async def download(self, output: str, file: Path) -> None:
        """Write a result file to disk, piece by piece."""
        path = f"/files/{quote(output, safe='')}/content"
        with file.open("wb") as target:
            async with aclosing(self._stream("GET", path, MAX_FILE_BYTES, sought="result file")) as chunks:
                async for chunk in chunks:
                    target.write(chunk)

    async def _cancel(self, batch_id: str) -> None:
        await self._call("POST", f"/batches/{quote(batch_id, safe='')}/cancel", sought="batch")

    async def delete_upload(self, file_id: str) -> None:
        """Delete an uploaded file."""
        try:
            await self._call("DELETE", f"/files/{quote(file_id, safe='')}")
        except ProviderError as error:
            if error.status not in (404, 410):
                raise

    def parse(self, line: bytes) -> LineResult:
        """Return the result of a line."""
        return batch_lines.parse_line(self._reader, line)

    def decode(self, result: LineResult, n_texts: int) -> Reply:
        """Return the vectors of a line, in base64 or as numbers."""
        return self._reader.read_data(result.reply, n_texts, NUMPY_DTYPES[self._provider.dtype], "total_tokens")

    async def _call(self, method: str, path: str, *, sought: str = "", **arguments: Any) -> dict[str, Any]:
        """Send a request and return the JSON of its response, {} without one."""
        chunks = self._stream(method, path, MAX_JSON_BYTES, sought=sought, **arguments)
        body = await _join(chunks)
        return self._reader.parse(body) if body else {}

    async def _stream(
        self, method: str, path: str, max_bytes: int, *, sought: str, **arguments: Any
    ) -> AsyncGenerator[bytes, None]:
        """Send a request and yield the body of its response.

        Args:
            method: HTTP method.
            path: Path and query.
            max_bytes: Largest body.
            sought: What is missing after HTTP 404; "" for no special error.
            **arguments: Arguments of aiohttp for the body.
        """
        key = self._provider.secret.constant()
        address = self._provider.address_for(key.reveal())
        try:
            async with self._session.request(
                *(method, address + path),
                headers=self._provider.connection.authorization_header or {"Authorization": f"Bearer {key.reveal()}"},
                timeout=self._timeout,
                allow_redirects=False,
                **arguments,
            ) as response:
                chunks = self._read_decompressed(
                    response.content.iter_any(),
                    status=response.status,
                    encoding=response.headers.get("Content-Encoding", ""),
                    limits=self._body_limits(max_bytes, MAX_JSON_BYTES),
                )
                if response.status >= 300:
                    quotes = not path.startswith("/files")  # a message about a file may repeat its lines
                    # Not in a local variable: the body may repeat the key.
                    raise _to_provider_error(
                        self._refusal(response, await _join(chunks) if quotes else b"", key), address, path, sought
                    )
                async for chunk in chunks:
                    yield chunk
        except TimeoutError:
            raise TimedOutError(f"Server did not respond in {READ_SECONDS} s.") from None
        except self._connection_errors as error:
            fix = CHECK_ADDRESS if self._provider.endpoint else ""
            raise connection_error(urlsplit(address).netloc, error, fix) from None

    def _refusal(self, response: ClientResponse, body: bytes, key: Secret) -> Refusal:
        headers = {name.lower(): value for name, value in response.headers.items()}
        message = read_message(self._reader, body)
        return Refusal(
            *("voyage", self._provider.model, response.status, "" if ABOUT_LINE.search(message) else message, headers),
            texts=(),
            secrets=self._provider.connection.secrets_with(key),
            request_id=headers.get("x-request-id") or headers.get("request-id"),
        )


async def _join(chunks: AsyncIterable[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


def _to_provider_error(refusal: Refusal, address: str, path: str, sought: str) -> ProviderError:
    """Return the error for an error response, by status, message and path."""
    status, message = refusal.status, refusal.message
    if path == "/batches" and status == 404 and NO_FILE.search(message):
        return FileNotReadyError("Voyage does not know the uploaded file yet", **refusal.error_fields)
    if sought and status in (404, 410):
        return BatchNotFoundError(
            f"Voyage does not know this {sought} (HTTP {status}). It is visible to the keys of its project only.",
            **refusal.error_fields,
        )
    if path == "/batches" and status in (400, 403, 422) and QUEUE_IS_FULL.search(message):
        return refusal.rate_limit("Too many batches or tokens in flight")
    fix = address_fix(status, address)
    if status == 404 and not Voyage.is_own_host(address):
        fix = fix or NO_ROUTES
    return account_error(refusal, address) or refusal.bad_request(fix)


def _read_batch(fields: Mapping[str, Any]) -> RemoteBatch:
    """Return a batch; one with an unknown status has ended if it states the time of its end."""
    status, counts = str(fields.get("status")), fields.get("request_counts")
    counts = counts if isinstance(counts, Mapping) else {}
    errors = batch_lines.read_errors(fields.get("errors"))
    return RemoteBatch(
        id=batch_lines.read_id(fields),
        status=status,
        has_ended=status in ENDED or (status not in RUNNING and any(fields.get(name) for name in END_TIMES)),
        outputs=batch_lines.read_outputs(fields.get("output_file_id"), fields.get("error_file_id")),
        lines=batch_lines.read_count(counts.get("total")) or None,
        done=batch_lines.read_count(counts.get("completed")),
        failed=batch_lines.read_count(counts.get("failed")),
        expires_at=batch_lines.read_time(fields.get("expires_at") or fields.get("expected_completion_at")),
        error=(batch_lines.describe_errors(errors) or "no reason stated") if status == "failed" else "",
        queue_is_full=status == "failed" and any(QUEUE_IS_FULL.search(str(error)) for error in errors),
    )
