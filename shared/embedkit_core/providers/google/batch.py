"""Batches of the Gemini API, from an uploaded file.

Wire format, read 2026-11-30: ai.google.dev/api/batch-api, ai.google.dev/api/files, google-genai 3.6.1 (files.py,
batches.py), and for the lines developers.googleblog.com/en/gemini-batch-api-now-supports-embeddings-and-openai-
compatibility. Requests that are part of a `create` ("inlined") are not used: their results come back unordered and
without keys (github.com/googleapis/js-genai/issues/1207).

The requests are sent without the SDK: it drops a batch's error and counts, replaces the headers of an upload, which
would lose the key, repeats a request after a failed connection, and warns that the method is experimental.

Tested against a local server that follows the documentation, not against the live service.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, urlsplit, urlunsplit

from embedkit_core.common.errors import (
    BadReplyError,
    BadTextError,
    BatchNotFoundError,
    FileNotReadyError,
    ProviderError,
    TextTooLongError,
)
from embedkit_core.common.types import Reply
from embedkit_core.providers.base import Provider
from embedkit_core.providers.batch_endpoint import BatchEndpoint, BatchLimits, BatchOrder, LineResult, RemoteBatch
from embedkit_core.providers.google.base import KEY_VARIABLE
from embedkit_core.providers.google.provider import Google
from embedkit_core.providers.google.refusals import read_error, to_provider_error, with_retry_info
from embedkit_core.providers.google.wire import BatchEmbedContents
from embedkit_core.providers.http.batch_lines import dump_line, read_list
from embedkit_core.providers.http.batch_transport import BatchTransport, read_file
from embedkit_core.providers.http.decoding import NUMPY_FLOAT32, ReplyReader, read_tokens
from embedkit_core.providers.http.public_sdk import RawResponse
from embedkit_core.providers.http.redaction import safe_excerpt
from embedkit_core.providers.http.refusals import Refusal, shorten_message

# Google states a target of 24 hours, 2 GB per file, and no number of lines. Source: ai.google.dev/gemini-api/docs/
# batch-api, read 2026-11-30. 50,000 lines: what OpenClaw sends (extensions/google/embedding-batch.ts).
LIMITS = BatchLimits(window=24 * 3600.0, texts=50_000, lines=50_000, file_bytes=200_000_000, line_texts=1)
# The API's words begin with BATCH_STATE_, the SDK's with JOB_STATE_.
ENDED = frozenset({"SUCCEEDED", "PARTIALLY_SUCCEEDED", "FAILED", "CANCELLED", "EXPIRED"})
PAGE, LISTED_PAGES = 100, 200
# google.rpc.Code, the code of an error in a file or an operation: its name and HTTP status. Source:
# github.com/googleapis/googleapis, google/rpc/code.proto.
RPC_CODES = {
    1: ("CANCELLED", 499),
    2: ("UNKNOWN", 500),
    3: ("INVALID_ARGUMENT", 400),
    4: ("DEADLINE_EXCEEDED", 504),
    5: ("NOT_FOUND", 404),
    6: ("ALREADY_EXISTS", 409),
    7: ("PERMISSION_DENIED", 403),
    8: ("RESOURCE_EXHAUSTED", 429),
    9: ("FAILED_PRECONDITION", 400),
    10: ("ABORTED", 409),
    11: ("OUT_OF_RANGE", 400),
    12: ("UNIMPLEMENTED", 501),
    13: ("INTERNAL", 500),
    14: ("UNAVAILABLE", 503),
    15: ("DATA_LOSS", 500),
    16: ("UNAUTHENTICATED", 401),
}
TRANSIENT = frozenset({408, 409, 429, 499})  # and 5xx
WORD = re.compile(r"[A-Za-z0-9_]{1,60}")
# "You do not have permission to access the File x or it may not exist", "The File x is not in an ACTIVE state".
NO_FILE = re.compile(r"\bfiles?\b.*(may not exist|not found|not in an active state)", re.I | re.S)
QUEUE_LIMIT = re.compile(r"limit\D{0,20}?(\d[\d,]{3,17})", re.I)


class GeminiBatches(BatchEndpoint):
    """The batch endpoint of a model of the Gemini API."""

    ended_statuses = (400, 409)

    def __init__(self, provider: Provider) -> None:
        assert isinstance(provider, Google)
        self.limits = LIMITS
        self._provider = provider
        self._reader = ReplyReader()
        self._transport: BatchTransport

    async def __aenter__(self) -> Self:
        self._provider.connection.check_not_lost()
        self._provider.secret.reveal()
        genai = import_module("google.genai")
        # The SDK depends on httpx until version 2, then on httpx2.
        httpx = import_module("httpx" if genai.__version__.startswith("2.") else "httpx2")
        self._transport = BatchTransport(self._provider, httpx, lambda key: {"x-goog-api-key": key})
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._transport.aclose()

    def line(self, custom_id: str, body: Mapping[str, Any], texts: Sequence[str]) -> bytes:
        """Return a line: the ID, and the request that the normal endpoint would get for this text."""
        fields = {name: value for name, value in body.items() if name not in ("model", "prompt")}
        [request] = BatchEmbedContents.body(body["model"], fields, texts)["requests"]
        return dump_line(self._reader, {"key": custom_id, "request": request})

    def texts_of(self, line: bytes) -> list[str]:
        """Return the text of a line."""
        return ["".join(part["text"] for part in self._reader.load(line)["request"]["content"]["parts"])]

    async def upload(self, file: Path, name: str) -> str:
        """Upload a file of lines in one piece, with the protocol for resumable uploads."""
        size = file.stat().st_size  # noqa: ASYNC240 - the loop has no other work
        started = await self._transport.send(
            "POST",
            f"{self._provider.place.host}/upload/{self._provider.place.version}/files",
            headers={
                "content-type": "application/json",
                "X-Goog-Upload-Protocol": "resumable",
                "X-Goog-Upload-Command": "start",
                "X-Goog-Upload-Header-Content-Length": str(size),
                "X-Goog-Upload-Header-Content-Type": "application/jsonl",
            },
            content=self._reader.dump({"file": {"displayName": name}}),
        )
        if started.status != 200:  # the body of a success is empty
            raise self._refused(started)
        if not (session := started.headers.get("x-goog-upload-url")):
            raise BadReplyError("Server returned no address for the upload of a file. Check base_url=.")
        response = await self._transport.send(
            "POST",
            self._own_address(session),
            headers={
                "content-length": str(size),
                "X-Goog-Upload-Offset": "0",
                "X-Goog-Upload-Command": "upload, finalize",
            },
            content=read_file(file),
        )
        uploaded = self._check(response, quotes=False).get("file")
        if not isinstance(uploaded, dict) or not isinstance(uploaded.get("name"), str):
            raise BadReplyError("Server did not confirm the upload of a file. Check base_url=.")
        return str(uploaded["name"])

    async def create(self, order: BatchOrder) -> RemoteBatch:
        """Create a batch; its display name is the nonce."""
        batch = {"displayName": order.nonce, "inputConfig": {"fileName": order.file_id}}
        response = await self._send("POST", f"models/{order.body['model']}:asyncBatchEmbedContent", {"batch": batch})
        error = self._error_of(response)
        if error and response.status in (400, 403, 404) and NO_FILE.search(str(error.get("message"))):
            raise FileNotReadyError(
                f"Uploaded file is not ready yet (HTTP {response.status}).",
                provider=self._provider.name,
                status=response.status,
            )
        created = self._read(self._check(response, "Check that the model has batches, and base_url=."))
        if not created.id:
            raise BadReplyError("Server response does not name the batch that was created. Check base_url=.")
        return created

    async def find(self, nonce: str) -> list[RemoteBatch]:
        """Return the batches whose display name is the nonce, from all pages of the list."""
        found: list[RemoteBatch] = []
        token = ""
        for _ in range(LISTED_PAGES):
            following = f"&pageToken={quote(token, safe='')}" if token else ""
            page = self._check(await self._send("GET", f"batches?pageSize={PAGE}{following}"))
            operations = read_list(page.get("operations"))
            named = [one for one in operations if _mapping(one.get("metadata")).get("displayName") == nonce]
            found += map(self._read, named)
            if not (token := str(page.get("nextPageToken") or "")):
                break
        return found

    async def retrieve(self, batch_id: str) -> RemoteBatch:
        """Return the current state of a batch."""
        response = await self._send("GET", _resource("batches", batch_id))
        if response.status == 404:
            raise self._not_found("Batch", response)
        return self._read({"name": batch_id, **self._check(response)})

    async def download(self, output: str, file: Path) -> None:
        """Write the lines of a result file to `file`."""
        url = self._url(f"{_resource('files', output)}:download?alt=media")
        response = await self._transport.send("GET", url, to=file)
        if self._is_gone(response):
            raise self._not_found("Result file", response)
        if response.status != 200:
            raise self._refused(response)

    async def _cancel(self, batch_id: str) -> None:
        response = await self._send("POST", f"{_resource('batches', batch_id)}:cancel", {})
        if response.status == 404:
            raise self._not_found("Batch", response)
        self._check(response)

    async def delete_upload(self, file_id: str) -> None:
        """Delete an uploaded file, which Google otherwise keeps for 48 hours."""
        response = await self._send("DELETE", _resource("files", file_id))
        if not self._is_gone(response):
            self._check(response)

    def parse(self, line: bytes) -> LineResult:
        """Return the result in a line: `{"key", "response"}` or `{"key", "error"}`."""
        value = self._reader.load(line)
        if not isinstance(value, dict) or not value.keys() & {"response", "error"}:
            raise ValueError("not a line of a result file")
        custom_id = value["key"] if isinstance(value.get("key"), str) else None
        response = _mapping(value.get("response"))
        if error := _mapping(value.get("error")) or _mapping(response.get("error")):
            code, status = _code_of(error)
            return LineResult(custom_id, status, code=code, is_transient=status in TRANSIENT or status >= 500)
        model = response.get("model")
        name = model.removeprefix("models/") if isinstance(model, str) else None
        return LineResult(custom_id, 200, response, name)

    def decode(self, result: LineResult, n_texts: int) -> Reply:
        """Return the vector of a line. Its tokens may be missing."""
        try:
            vectors = [result.reply["embedding"]["values"]]
        except (KeyError, TypeError):
            raise BadReplyError("Result of a batch has no embedding") from None
        tokens = read_tokens(result.reply.get("usageMetadata"), "promptTokenCount")
        if tokens is None:
            tokens = _count(result.reply.get("tokenCount"))
        return self._reader.read_rows(vectors, n_texts, NUMPY_FLOAT32, tokens)

    def _url(self, path: str) -> str:
        return f"{self._provider.place.host}/{self._provider.place.version}/{path}"

    def _own_address(self, url: str) -> str:
        """Return the address of an upload at the provider's host, as the SDK does for a `base_url`."""
        own, given = urlsplit(self._provider.place.host), urlsplit(url)
        return urlunsplit((own.scheme, own.netloc, given.path, given.query, ""))

    async def _send(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> RawResponse:
        content = None if body is None else self._reader.dump(body)
        headers = {"content-type": "application/json"} if body is not None else {}
        return await self._transport.send(method, self._url(path), headers=headers, content=content)

    def _check(self, response: RawResponse, fix: str = "", *, quotes: bool = True) -> dict[str, Any]:
        """Return the JSON object of a success.

        Args:
            response: The response.
            fix: What to do if the server does not know the address, as a sentence.
            quotes: False if the message of the server is not to be shown, because the request had texts.

        Raises:
            ProviderError: The response is not a success.
        """
        if response.status != 200:
            raise self._refused(response, fix, quotes=quotes)
        try:
            reply = self._reader.load(response.body)
        except ValueError:
            reply = None
        if not isinstance(reply, dict):
            raise BadReplyError("Server response is not JSON. Check base_url=.")
        return reply

    def _error_of(self, response: RawResponse) -> dict[str, Any]:
        """Return the `error` of a response, empty if there is none."""
        if response.status == 200:
            return {}
        try:
            return read_error(self._reader.load(response.body))
        except ValueError:
            return {}

    def _refused(self, response: RawResponse, fix: str = "", *, quotes: bool = True) -> ProviderError:
        error = self._error_of(response)
        message = shorten_message(str(error.get("message") or ""))
        headers = with_retry_info({name.lower(): value for name, value in response.headers.items()}, error, message)
        refusal = Refusal(
            *(self._provider.name, self._provider.model, response.status, message if quotes else "", headers, ()),
            secrets=self._transport.secrets(),
        )
        failure = to_provider_error(refusal, error, variable=KEY_VARIABLE, credentials=self._provider.credentials_fix)
        if response.status == 404 and fix:
            return refusal.bad_request(fix)
        # Requests of this endpoint are about files.
        return refusal.bad_request() if isinstance(failure, BadTextError | TextTooLongError) else failure

    def _is_gone(self, response: RawResponse) -> bool:
        """Return True if a file does not exist; then Google answers 403 too."""
        if response.status == 404:
            return True
        return response.status == 403 and NO_FILE.search(str(self._error_of(response).get("message"))) is not None

    def _not_found(self, what: str, response: RawResponse) -> ProviderError:
        return BatchNotFoundError(
            f"{what} does not exist at Google (HTTP {response.status}). It was deleted, or belongs to another project.",
            provider=self._provider.name,
            status=response.status,
        )

    def _read(self, operation: Mapping[str, Any]) -> RemoteBatch:
        """Return the batch of an operation."""
        metadata, error = _mapping(operation.get("metadata")), _mapping(operation.get("error"))
        state = str(metadata.get("state") or "")
        word, stats = state.rpartition("_STATE_")[2], _mapping(metadata.get("batchStats"))
        output = _mapping(metadata.get("output")) or _mapping(operation.get("response"))
        file = output.get("responsesFile")
        done = _count(stats.get("successfulRequestCount")) or 0
        code, status = _code_of(error)
        is_refused = bool(error) and code != "CANCELLED"
        is_over_limit = is_refused and status == 429
        # Another message may be about a line, and repeat its text.
        message = str(error.get("message") or "") if is_over_limit else ""
        limit = QUEUE_LIMIT.search(message)
        return RemoteBatch(
            id=str(operation.get("name") or ""),
            status=state,
            has_ended=operation.get("done") is True or word in ENDED,
            outputs=(file,) if isinstance(file, str) and file else (),
            lines=_count(stats.get("requestCount")),
            done=done,
            failed=_count(stats.get("failedRequestCount")) or 0,
            error=f"{code}{safe_excerpt(message, (), self._transport.secrets())}" if is_refused else "",
            queue_is_full=is_over_limit and not file and not done,
            queue_tokens=int(limit[1].replace(",", "")) if limit else None,
        )


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _resource(kind: str, name: str) -> str:
    """Return the path of a resource whose ID may lack its kind."""
    return f"{kind}/{quote(name.removeprefix(f'{kind}/'), safe='')}"


def _count(value: object) -> int | None:
    """Return a count; JSON has 64-bit integers as strings."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        return int(value)
    return value if type(value) is int and value >= 0 else None


def _code_of(error: Mapping[str, Any]) -> tuple[str, int]:
    """Return the name and the HTTP status of an error, whose code is one of google.rpc.Code or an HTTP status."""
    code = error.get("code")
    number = code if type(code) is int else 2
    name, status = RPC_CODES.get(number, ("", number if 400 <= number < 600 else 500))
    given = error.get("status")
    return (given if isinstance(given, str) and WORD.fullmatch(given) else name or str(number)), status
