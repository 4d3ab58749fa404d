"""Batches of Voyage AI, with the real HTTP client and a local server."""

import asyncio
import io
import json
from pathlib import Path
from traceback import TracebackException

import numpy as np
import pytest
from support.batch_server import read_multipart
from support.embedders import error_texts, numbered
from support.voyage_batch_server import VoyageBatchServer

from embedkit_core import Embedder
from embedkit_core.common.errors import (
    AuthenticationError,
    BadReplyError,
    BadRequestError,
    BatchNotFoundError,
    FileNotReadyError,
    ProviderError,
    RateLimitError,
    UnavailableError,
)
from embedkit_core.providers import voyage_batch
from embedkit_core.providers.batch_endpoint import BatchOrder
from embedkit_core.providers.voyage_batch import VoyageBatches

NONCE = "0123456789abcdef"
KEY = "pa-Zx81Qp77LmNeverShow"
TEXTS = numbered(5)
LINES = [TEXTS[:3], TEXTS[3:]]


@pytest.fixture
def server():
    with VoyageBatchServer(api_key=KEY) as started:
        yield started


def voyage(server, **settings):
    return Embedder("voyage:voyage-4", **{"base_url": server.base_url, "api_key": KEY, "cache": False, **settings})


class Calls:
    """The steps of a batch, each in an event loop of its own, as after a restart."""

    def __init__(self, server, folder, **settings):
        self.provider = voyage(server, **settings).provider
        self.folder = folder
        self.body = self.provider.request_body("document")
        self.pure = VoyageBatches(self.provider)

    def __getattr__(self, method):
        def call(*arguments):
            async def once():
                async with VoyageBatches(self.provider) as endpoint:
                    return await getattr(endpoint, method)(*arguments)

            return asyncio.run(once())

        return call

    def write(self, lines=LINES):
        file = self.folder / "lines.jsonl"
        written = [self.pure.line(f"{NONCE}-{n}", self.body, texts) for n, texts in enumerate(lines)]
        file.write_bytes(b"\n".join(written))
        return file

    def order(self, file_id, nonce=NONCE):
        return BatchOrder(file_id, nonce, self.body, len(LINES))

    def start(self, nonce=NONCE):
        return self.create(self.order(self.upload(self.write(), f"{nonce}.jsonl"), nonce))

    def results(self, batch_id):
        """Return the results of all files of a batch, by ID."""
        found = []
        for output in self.retrieve(batch_id).outputs:
            target = self.folder / "results.jsonl"
            target.write_bytes(b"old" * 1000)
            self.download(output, target)
            found += map(self.pure.parse, target.read_bytes().splitlines())
        return {result.custom_id: result for result in found}

    def vectors(self, batch_id):
        results = self.results(batch_id)
        replies = [self.pure.decode(results[f"{NONCE}-{n}"], len(texts)) for n, texts in enumerate(LINES)]
        return np.concatenate([reply.vectors for reply in replies]), sum(reply.tokens for reply in replies)


@pytest.fixture
def calls(server, tmp_path):
    return Calls(server, tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "int8", "uint8", "binary", "ubinary"])
@pytest.mark.parametrize("encoding", ["sent", "ignored", "refused"])
def test_a_batch_has_the_vectors_of_normal_requests_bit_for_bit(server, tmp_path, dtype, encoding):
    server.encoding, server.shuffle_index = encoding, True
    calls = Calls(server, tmp_path, dtype=dtype, dimensions=256)
    normal = voyage(server, dtype=dtype, dimensions=256).embed_documents(TEXTS)
    vectors, tokens = calls.vectors(calls.start().id)
    assert vectors.dtype == normal.dtype
    assert vectors.tobytes() == normal.tobytes()
    assert tokens == 10
    assert server.created == 1
    assert server.called("create") == (2 if encoding == "refused" else 1)


def test_the_requests_have_the_documented_form(server, calls, tmp_path):
    calls = Calls(server, tmp_path, headers={"X-Team": "search"}, document_prompt="Title: ")
    batch = calls.start()
    calls.retrieve(batch.id)
    calls.cancel(batch.id)
    calls.delete_upload("file-0001")
    requests = dict(server.calls)
    form = read_multipart(requests["upload"])
    assert form["purpose"] == ("", b"batch")
    assert form["file"] == (f"{NONCE}.jsonl", (tmp_path / "lines.jsonl").read_bytes())
    assert json.loads(form["file"][1].splitlines()[0]) == {"custom_id": f"{NONCE}-0", "body": {"input": TEXTS[:3]}}
    assert json.loads(requests["create"].body) == {
        "input_file_id": "file-0001",
        "endpoint": "/v1/embeddings",
        "completion_window": "12h",
        "request_params": {
            "model": "voyage-4",
            "input_type": "document",
            "truncation": False,
            "encoding_format": "base64",
        },
        "metadata": {"embedkit_nonce": NONCE},
    }
    assert {request.headers["x-team"] for request in requests.values()} == {"search"}
    assert calls.pure.texts_of(calls.pure.line("a", {}, ["\u2028 é"])) == ["\u2028 é"]


def test_a_batch_reports_its_state(server, calls):
    server.finishes_after, server.now = 2, lambda: 1_700_000_000.5
    created = calls.start()
    assert (created.id, created.status, created.has_ended, created.lines) == ("batch-0001", "validating", False, None)
    assert created.expires_at == 1_700_000_000.5 + 12 * 3600
    running, ended = calls.retrieve(created.id), calls.retrieve(created.id)
    assert (running.status, running.has_ended, running.outputs) == ("in_progress", False, ())
    assert (ended.status, ended.has_ended, ended.lines, ended.done, ended.failed) == ("completed", True, 2, 2, 0)


@pytest.mark.parametrize("word", ["cancelled", "canceled", "expired"])
def test_a_batch_that_ends_early_has_the_results_of_its_completed_lines(server, calls, word):
    batch = calls.start()
    server.finish(batch.id, word, lines=1)
    results = calls.results(batch.id)
    assert calls.retrieve(batch.id).has_ended
    assert [results[f"{NONCE}-{n}"].status for n in range(2)] == [200, 0]
    left = results[f"{NONCE}-1"]
    assert (left.code, left.is_transient, left.reply) == (f"batch_{word}", True, None)


def test_an_unknown_status_means_the_end_only_with_the_time_of_the_end(server, calls):
    batch = calls.start()
    stored = server.batches[batch.id]
    stored.is_finished, stored.status = True, "archived"
    assert not calls.retrieve(batch.id).has_ended
    server.describe = lambda batch: {"id": batch.id, "status": "archived", "completed_at": "2026-11-30T00:00:00Z"}
    assert calls.retrieve(batch.id).has_ended


@pytest.mark.parametrize(("status", "is_transient"), [(500, True), (429, True), (400, False)])
def test_a_failed_line_has_its_status_and_no_text(server, calls, status, is_transient):
    server.line_fault = lambda custom_id, texts: status if TEXTS[0] in texts else None
    batch = calls.start()
    results = calls.results(batch.id)
    failed = results[f"{NONCE}-0"]
    assert (failed.status, failed.is_transient, failed.code) == (status, is_transient, "")
    assert TEXTS[0] not in repr(failed)
    assert results[f"{NONCE}-1"].status == 200


def test_a_refused_batch_names_codes_and_no_message(server, calls):
    server.refuse_batch = lambda batch: ("invalid_json", f"Not valid: {TEXTS[0]}")
    batch = calls.retrieve(calls.start().id)
    assert (batch.has_ended, batch.error, batch.queue_is_full) == (True, "invalid_json", False)
    server.refuse_batch = lambda batch: ("too_many", "The organization has 10 in-flight batches.")
    assert calls.retrieve(calls.start().id).queue_is_full


def test_a_file_that_is_not_visible_yet_creates_no_batch(server, calls):
    server.file_ready_after = 1
    file_id = calls.upload(calls.write(), "a.jsonl")
    with pytest.raises(FileNotReadyError) as caught:
        calls.create(calls.order(file_id))
    assert caught.value.unsent
    assert server.created == 0
    assert calls.create(calls.order(file_id)).id == "batch-0001"


@pytest.mark.parametrize(
    ("fault", "error", "is_certain", "created"),
    [
        (400, BadRequestError, True, 0),
        (401, AuthenticationError, True, 0),
        (429, RateLimitError, True, 0),
        (308, BadRequestError, True, 0),
        (500, UnavailableError, False, 0),
        ("lost", UnavailableError, False, 1),
        (("cut", 10), UnavailableError, False, 1),
    ],
    ids=str,
)
def test_an_error_of_create_tells_whether_a_batch_may_exist(server, calls, fault, error, is_certain, created):
    server.faults_of["create"] = [fault]
    with pytest.raises(error) as caught:
        calls.start()
    found = caught.value
    assert (found.unsent or (found.status or 500) < 500) == is_certain
    assert len(calls.find(NONCE)) == server.created == created


@pytest.mark.parametrize("operation", ["upload", "create", "retrieve", "download"])
def test_no_error_shows_the_key_or_a_text(server, calls, operation):
    server.finishes_after = None
    server.error = lambda message: {"detail": f"line 1 is {TEXTS[0]} with Bearer {KEY}"}
    server.faults_of[operation] = [400]
    with pytest.raises(BadRequestError) as caught:
        calls.retrieve(calls.start().id) if operation != "download" else calls.download("file-9", calls.write())
    error = caught.value
    frames = error.__traceback__.tb_next  # without that of this function
    shown = "".join([error_texts(error), *TracebackException(type(error), error, frames, capture_locals=True).format()])
    assert "Secret('**" in shown
    assert KEY not in shown
    assert TEXTS[0] not in shown


def test_a_batch_is_found_on_any_page_by_its_nonce(server, calls, monkeypatch):
    monkeypatch.setattr(voyage_batch, "PAGE", 2)
    nonces = [NONCE, *(f"{n:016x}" for n in range(4)), NONCE]
    created = [calls.start(nonce).id for nonce in nonces]
    assert [batch.id for batch in calls.find(NONCE)] == [created[5], created[0]]
    assert calls.find("f" * 16) == []


def test_what_has_ended_or_is_gone_can_be_cancelled_and_deleted(server, calls):
    batch = calls.start()
    calls.retrieve(batch.id)
    calls.cancel(batch.id)
    calls.delete_upload("file-0001")
    calls.delete_upload("file-0001")
    for call in (lambda: calls.retrieve("batch-9"), lambda: calls.cancel("batch-9")):
        with pytest.raises(BatchNotFoundError):
            call()
    with pytest.raises(BatchNotFoundError, match="result file"):
        calls.download("file-9", calls.folder / "results.jsonl")
    other = calls.start()
    server.faults_of["cancel"] = [409]
    server.finishes_after = None
    with pytest.raises(UnavailableError):
        calls.cancel(other.id)


def test_a_server_without_batches_is_an_error_with_advice(server, calls):
    server.faults_of["upload"] = [404]
    with pytest.raises(BadRequestError, match="have the routes /files and /batches"):
        calls.start()


def test_a_cut_download_is_an_error(server, calls):
    batch = calls.start()
    output = calls.retrieve(batch.id).outputs[0]
    server.faults_of["download"] = [("cut", 100), 500]
    for _ in range(2):
        with pytest.raises(UnavailableError):
            calls.download(output, calls.folder / "results.jsonl")
    calls.download(output, calls.folder / "results.jsonl")


def test_a_line_that_does_not_fit_its_texts_is_refused(calls):
    for line in (
        b'{"custom_id": "a", "resp',
        b"[]",
        b'{"id": 1}',
        b'{"custom_id": "a", "response": {"status_code": "x"}}',
    ):
        with pytest.raises(ValueError, match=r"line|number|EOF"):
            calls.pure.parse(line)
    for body in ("null", '{"data": []}', '{"data": [{"index": 1, "embedding": [1]}]}'):
        result = calls.pure.parse(f'{{"custom_id": "a", "response": {{"status_code": 200, "body": {body}}}}}'.encode())
        with pytest.raises(BadReplyError):
            calls.pure.decode(result, 1)


class RecordedFile(io.BufferedReader):
    reads: list[int]

    def read(self, size=-1):
        content = super().read(size)
        self.reads.append(len(content))
        return content


class RecordedPath:
    """A path whose file records the size of each read."""

    def __init__(self, path: Path):
        self.path, self.reads = path, []

    def open(self, mode):
        file = RecordedFile(io.FileIO(self.path, mode))
        file.reads = self.reads
        return file


def test_an_upload_reads_its_file_in_pieces(server, calls, tmp_path):
    server.max_file_bytes = 10**7
    (tmp_path / "large.jsonl").write_bytes(b"x" * 5 * 10**6)
    recorded = RecordedPath(tmp_path / "large.jsonl")
    assert calls.upload(recorded, "large.jsonl") == "file-0001"
    assert sum(recorded.reads) == len(server.files["file-0001"].content) == 5 * 10**6
    assert max(recorded.reads) <= 2**20


def test_an_address_without_a_server_is_certain_to_have_got_nothing(tmp_path):
    with VoyageBatchServer() as gone:
        calls = Calls(gone, tmp_path)
    with pytest.raises(ProviderError) as caught:
        calls.create(calls.order("file-0001"))
    assert caught.value.unsent
