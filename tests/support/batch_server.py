"""Base of the local servers with files and batches, which keep them in memory and misbehave on request.

A batch works its lines off with `refusal`, `reply` and `encoded` of the server's normal endpoint, so the vectors are
the same. Subclasses implement the provider's routes and formats.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from .embeddings_server import EmbeddingsServer
from .http import Connection, Exchange, Request, Response
from .openai_replies import Json, tokens_of

Operation = Literal["upload", "create", "list", "retrieve", "download", "cancel", "delete"]
OperationFault = int | Literal["lost"] | tuple[Literal["cut"], int] | None
Line = tuple[str, tuple[str, ...]]  # custom ID and texts

# OpenAI's, by method, whether it is about files, whether an ID follows, and what follows that.
ROUTES: dict[tuple[str, bool, bool, str], Operation] = {
    ("POST", True, False, ""): "upload",
    ("GET", True, True, "content"): "download",
    ("DELETE", True, True, ""): "delete",
    ("POST", False, False, ""): "create",
    ("GET", False, False, ""): "list",
    ("GET", False, True, ""): "retrieve",
    ("POST", False, True, "cancel"): "cancel",
}


@dataclass
class StoredFile:
    id: str
    name: str
    content: bytes
    purpose: str
    created_at: float
    not_ready: int = 0  # so many times `create` will not find it


@dataclass
class StoredBatch:
    """A batch. Tests may change its times."""

    id: str
    nonce: str
    file_id: str
    order: Json  # the body of the request that created it
    status: str
    lines: list[Line]
    bodies: list[Json]  # of the requests, one per line
    created_at: float
    expires_at: float
    metadata: Mapping[str, str]
    headers: Mapping[str, str]  # of the request that created it
    retrieves: int = 0
    is_finished: bool = False
    is_cancelling: bool = False
    ended_at: float | None = None
    results: list[Json] | None = None  # lines of the output file, once finished
    output_file_id: str | None = None
    error_file_id: str | None = None
    done: int = 0
    failed: int = 0
    tokens: int = 0
    refusal: tuple[str, str] | None = None  # code and message, if it was refused as a whole


def lines_of(content: bytes) -> list[Any]:
    """Return the values of a file with one JSON value per line."""
    return [json.loads(line) for line in content.splitlines() if line.strip()]


def as_lines(values: Sequence[Json]) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


def read_multipart(request: Request) -> dict[str, tuple[str, bytes]]:
    """Return file name and content of each part of a form by name; empty if the request has no form."""
    kind, _, boundary = request.headers.get("content-type", "").partition("boundary=")
    if not kind.startswith("multipart/form-data") or not boundary:
        return {}
    parts = {}
    for part in (b"\r\n" + request.body).split(b"\r\n--" + boundary.strip('"').encode())[1:-1]:
        head, _, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        fields = dict(pair.partition("=")[::2] for pair in head.decode().replace("\r\n", ";").split("; "))
        values = {name: value.split(";")[0].strip('"') for name, value in fields.items()}
        parts[values["name"]] = (values.get("filename", ""), content)
    return parts


@dataclass(kw_only=True, eq=False, repr=False)
class BatchServer(EmbeddingsServer):
    """A server with files and batches besides its normal endpoint.

    Attributes:
        faults_of: Faults by operation; each call takes the first. None: no fault. A number: answer with this status
            and do nothing. "lost": do it, then close the connection. ("cut", n): send n bytes of the body, then close.
        finishes_after: Retrieves after which a batch has ended with success. None: by `finish` only.
        line_fault: Returns the status with which a line with this ID and these texts fails, None for none.
        mangle: Changes the lines of the output file before they are written.
        refuse_batch: Returns code and message if a batch is refused as a whole, after its creation.
        file_ready_after: Times that `create` does not find a new file.
        cancel_keeps: Lines that a cancelled batch has completed, in order.
        now: The clock of the server.
        endings: The provider's status word for each ending.
        batches_path: Path of its batches.
    """

    window: float = 24 * 3600
    max_batch_texts: int = 50_000
    max_batch_lines: int = 50_000
    max_file_bytes: int = 200 * 10**6
    faults_of: dict[Operation, list[OperationFault]] = field(default_factory=dict)
    finishes_after: int | None = 1
    line_fault: Callable[[str, tuple[str, ...]], int | None] = lambda custom_id, texts: None
    mangle: Callable[[list[Json]], list[Json]] = lambda lines: lines
    refuse_batch: Callable[[StoredBatch], tuple[str, str] | None] = lambda batch: None
    file_ready_after: int = 0
    cancel_keeps: int = 0
    now: Callable[[], float] = time.time

    endings: ClassVar[Mapping[str, str]] = {name: name for name in ("completed", "expired", "cancelled", "failed")}
    batches_path: ClassVar[str] = "batches"
    running_word: ClassVar[str] = "in_progress"
    cancelling_word: ClassVar[str] = "cancelling"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.files: dict[str, StoredFile] = {}
        self.batches: dict[str, StoredBatch] = {}  # oldest first
        self.calls: list[tuple[Operation, Request]] = []  # including those with a fault
        self.paid_texts: Counter[str] = Counter()  # of completed lines
        self.created = self.cancelled = 0
        self._numbers: Counter[str] = Counter()
        self._working = asyncio.Lock()

    # Subclasses implement the provider's formats

    def route(self, request: Request) -> tuple[Operation, str] | None:
        """Return the operation and the ID in the path, None for another request."""
        path = request.path.removeprefix(f"{self.path.rpartition('/')[0]}/")
        kind = "files" if path.partition("/")[0] == "files" else self.batches_path
        if path != kind and not path.startswith(f"{kind}/"):
            return None
        name, *action = path[len(kind) + 1 :].split("/")
        found = ROUTES.get((request.method, kind == "files", bool(name), "/".join(action)))
        return (found, name) if found else None

    def read_upload(self, request: Request) -> tuple[str, str, bytes] | None:
        """Return name, purpose and content of a new file, None if the request is not valid."""
        parts = read_multipart(request)
        if "file" not in parts or "purpose" not in parts:
            return None
        (name, content), (_, purpose) = parts["file"], parts["purpose"]
        return name, purpose.decode(), content

    def read_order(self, order: Json) -> tuple[str, Mapping[str, str]] | None:
        """Return the ID of the file and the metadata of a new batch, None if the request is not valid."""
        raise NotImplementedError

    def nonce_of(self, metadata: Mapping[str, str]) -> str:
        return metadata.get("embedkit_nonce", "")

    def read_line(self, line: Json, order: Json) -> tuple[str, Json]:
        """Return custom ID and body of the request that a line stands for."""
        raise NotImplementedError

    def flaw(self, batch: StoredBatch) -> tuple[str, str] | None:
        """Return code and message of the provider's validation of the file, None if it is valid."""
        return None

    def describe_file(self, file: StoredFile) -> Json:
        raise NotImplementedError

    def describe(self, batch: StoredBatch) -> Json:
        raise NotImplementedError

    def describe_list(self, batches: Sequence[StoredBatch], request: Request) -> Json:
        """Return a page of the list of batches, which are sorted by age, newest first."""
        raise NotImplementedError

    def result_line(self, number: int, custom_id: str, status: int, body: Json) -> Json:
        """Return the line of a result file for a request that was answered, its body parsed."""
        raise NotImplementedError

    def unsent_line(self, number: int, custom_id: str, ending: str) -> Json:
        """Return the line of a result file for a request that was not made before the batch ended."""
        raise NotImplementedError

    def is_authorized(self, headers: Mapping[str, str]) -> bool:
        return self.api_key is None or headers.get("authorization") == f"Bearer {self.api_key}"

    # For tests

    def finish(self, batch_id: str, ending: str = "completed", lines: int | None = None) -> None:
        """End a batch: "completed", "expired", "cancelled", "failed", or with another status word.

        With `lines`, only so many are completed, in order. A failed batch has none unless `lines` says so.
        """
        if ending == "failed" and lines is None:
            lines = 0
        work = self._end(self.batches[batch_id], ending, lines)
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=60)

    def called(self, operation: Operation) -> int:
        """Return how often an operation was requested."""
        return sum(name == operation for name, _ in self.calls)

    @property
    def last_batch(self) -> StoredBatch:
        return next(reversed(self.batches.values()))

    # The operations

    async def answer(self, request: Request, connection: Connection) -> Response | None:
        found = self.route(request)
        if found is None:
            return await super().answer(request, connection)
        operation, name = found
        self.calls.append((operation, request))
        faults = self.faults_of.get(operation)
        fault = faults.pop(0) if faults else None
        if isinstance(fault, int):
            return self._refuse(fault, self.error(f"Refused with status {fault}."))
        if not self.is_authorized(request.headers):
            return self._refuse(401, self.error("Incorrect API key provided."))
        try:
            response = await getattr(self, f"on_{operation}")(name, request)
        except Exception as crash:
            self.crashes.append(crash)
            return None
        if isinstance(fault, tuple):
            connection.writer.write(response.head() + response.body[: fault[1]])
            await connection.writer.drain()
        return response if fault is None else None

    def ok(self, body: Json) -> Response:
        return Response(200, json.dumps(body).encode())

    def not_found(self, what: str) -> Response:
        return self._refuse(404, self.error(f"{what} not found."))

    def new_id(self, prefix: str) -> str:
        self._numbers[prefix] += 1
        return f"{prefix}{self._numbers[prefix]:04}"

    def store(self, name: str, content: bytes, purpose: str) -> StoredFile:
        file = StoredFile(self.new_id("file-"), name, content, purpose, self.now(), self.file_ready_after)
        self.files[file.id] = file
        return file

    async def on_upload(self, name: str, request: Request) -> Response:
        upload = self.read_upload(request)
        if upload is None or len(upload[2]) > self.max_file_bytes:
            return self._refuse(400, self.error("The form of the upload is not valid."))
        return self.ok(self.describe_file(self.store(upload[0], upload[2], upload[1])))

    async def on_create(self, name: str, request: Request) -> Response:
        order = json.loads(request.body)
        read = self.read_order(order)
        if read is None:
            return self._refuse(400, self.error("The batch is not valid."))
        file_id, metadata = read
        file = self.files.get(file_id)
        if file is None or file.not_ready:
            if file is not None:
                file.not_ready -= 1
            return self.not_found(f"File {file_id}")
        requests = [self.read_line(line, order) for line in lines_of(file.content)]
        batch = StoredBatch(
            *(self.new_id("batch_"), self.nonce_of(metadata), file_id, order, "validating"),
            [(custom_id, self.texts_of(body)) for custom_id, body in requests],
            [body for _, body in requests],
            *(self.now(), self.now() + self.window, metadata, request.headers),
        )
        self.batches[batch.id] = batch
        self.created += 1
        return self.ok(self.describe(batch))

    async def on_list(self, name: str, request: Request) -> Response:
        return self.ok(self.describe_list(list(reversed(self.batches.values())), request))

    async def on_retrieve(self, name: str, request: Request) -> Response:
        batch = self.batches.get(name)
        if batch is None:
            return self.not_found(f"Batch {name}")
        batch.retrieves += 1
        if not batch.is_finished:
            if batch.retrieves == 1:
                batch.refusal = self.flaw(batch) or self.refuse_batch(batch)
            if batch.refusal is not None:
                await self._end(batch, "failed", 0)
            elif batch.is_cancelling:
                await self._end(batch, "cancelled", self.cancel_keeps)
            elif self.finishes_after is not None and batch.retrieves >= self.finishes_after:
                await self._end(batch, "completed", None)
            else:
                batch.status = self.running_word
        return self.ok(self.describe(batch))

    async def on_download(self, name: str, request: Request) -> Response:
        file = self.files.get(name)
        if file is None:
            return self.not_found(f"File {name}")
        return Response(200, file.content, {"content-type": "application/octet-stream"})

    async def on_cancel(self, name: str, request: Request) -> Response:
        batch = self.batches.get(name)
        if batch is None:
            return self.not_found(f"Batch {name}")
        if batch.is_finished:
            return self._refuse(409, self.error(f"Cannot cancel a batch with status '{batch.status}'."))
        if not batch.is_cancelling:
            self.cancelled += 1
        batch.is_cancelling, batch.status = True, self.cancelling_word
        return self.ok(self.describe(batch))

    async def on_delete(self, name: str, request: Request) -> Response:
        if self.files.pop(name, None) is None:
            return self.not_found(f"File {name}")
        return self.ok({"id": name, "object": "file", "deleted": True})

    async def _end(self, batch: StoredBatch, ending: str, n_lines: int | None) -> None:
        """Work the first `n_lines` lines off, None for all, and write the result files."""
        async with self._working:
            if batch.is_finished:
                return
            done: list[Json] = []
            errors: list[Json] = []
            n_lines = len(batch.lines) if n_lines is None else n_lines
            for number, ((custom_id, texts), body) in enumerate(zip(batch.lines, batch.bodies, strict=True)):
                if number >= n_lines:
                    if ending != "failed":
                        errors.append(self.unsent_line(number, custom_id, ending))
                    continue
                status, reply = await self._request(number, custom_id, texts, body, batch)
                (done if status == 200 else errors).append(self.result_line(number, custom_id, status, reply))
            batch.done, batch.failed, batch.results = len(done), len(errors), self.mangle(done)
            self.write_results(batch, errors)
            batch.ended_at = self.now()
            batch.status, batch.is_finished = self.endings.get(ending, ending), True

    def write_results(self, batch: StoredBatch, errors: list[Json]) -> None:
        """Write the files of results and of errors, each only if it has lines."""
        if batch.results:
            batch.output_file_id = self.store(f"{batch.id}_output.jsonl", as_lines(batch.results), "batch_output").id
        if errors:
            batch.error_file_id = self.store(f"{batch.id}_error.jsonl", as_lines(errors), "batch_output").id

    async def _request(
        self, number: int, custom_id: str, texts: tuple[str, ...], body: Json, batch: StoredBatch
    ) -> tuple[int, Json]:
        """Return status and body of the response to the request of a line."""
        tokens = sum(map(tokens_of, texts))
        exchange = Exchange(number + 1, texts, tokens, body, dict(batch.headers), time.monotonic())
        status = self.line_fault(custom_id, texts)
        if status is not None:
            return status, self.error(f"Refused with status {status}. Input: {texts[:1]}")
        if refusal := self.refusal(exchange):
            return refusal
        reply = json.loads(await self.encoded(await self.reply(exchange), exchange))
        self.paid_texts.update(texts)
        batch.tokens += tokens
        return 200, reply
