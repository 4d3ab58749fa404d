"""Mistral's batch jobs, with the real transport of the SDK and a local server."""

import json
from contextlib import asynccontextmanager

import numpy as np
import pytest
from support.batch_server import read_multipart
from support.embedders import numbered
from support.mistral_batch_server import MistralBatchServer

from embedkit_core import Embedder
from embedkit_core.common.errors import (
    AuthenticationError,
    BadRequestError,
    BatchNotFoundError,
    FileNotReadyError,
    ProviderError,
    RateLimitError,
    UnavailableError,
)
from embedkit_core.providers.batch_endpoint import BatchOrder
from embedkit_core.providers.openai import mistral_batch
from embedkit_core.providers.openai.mistral_batch import MistralBatches

NONCE = "0123456789abcdef"
KEY = "Zx81Qp77LmNeverShow"
TEXTS = numbered(5)
LINES = {"a-0": TEXTS[:3], "a-1": TEXTS[3:]}


@pytest.fixture
def server():
    with MistralBatchServer(api_key=KEY) as started:
        yield started


def mistral(server, **settings):
    arguments = {"base_url": server.base_url, "api_key": KEY, "cache": False, **settings}
    return Embedder("mistral:codestral-embed", **arguments)


@asynccontextmanager
async def opened(server, **settings):
    provider = mistral(server, **settings).provider
    assert provider.batch_endpoint == f"{MistralBatches.__module__}:MistralBatches"
    async with MistralBatches(provider) as batches:
        batches.body = provider.request_body("document")
        yield batches


async def uploaded(batches, folder, nonce=NONCE):
    file = folder / "lines.jsonl"
    file.write_bytes(b"\n".join(batches.line(name, batches.body, texts) for name, texts in LINES.items()))
    return BatchOrder(await batches.upload(file, f"{nonce}.jsonl"), nonce, batches.body, len(LINES))


async def results(batches, job, folder):
    found = {}
    for output in (await batches.retrieve(job.id)).outputs:
        await batches.download(output, folder / "results.jsonl")
        for line in (folder / "results.jsonl").read_bytes().splitlines():
            result = batches.parse(line)
            found[result.custom_id] = result
    return found


@pytest.mark.parametrize("dtype", ["float32", "int8", "uint8", "binary", "ubinary"])
async def test_a_job_has_the_vectors_of_normal_requests_bit_for_bit(server, tmp_path, dtype):
    server.shuffle_index, server.mangle = True, lambda lines: lines[::-1]
    normal = await mistral(server, dtype=dtype, dimensions=256).aembed_documents(TEXTS)
    async with opened(server, dtype=dtype, dimensions=256) as batches:
        job = await batches.create(await uploaded(batches, tmp_path))
        found = await results(batches, job, tmp_path)
        replies = [batches.decode(found[name], len(texts)) for name, texts in LINES.items()]
    vectors = np.concatenate([reply.vectors for reply in replies])
    assert vectors.dtype == normal.dtype
    assert vectors.tobytes() == normal.tobytes()
    assert sum(reply.tokens for reply in replies) == 10
    assert {result.model for result in found.values()} == {"codestral-embed"}


async def test_the_requests_have_the_documented_form(server, tmp_path):
    async with opened(server, dtype="int8", headers={"X-Team": "search"}) as batches:
        order = await uploaded(batches, tmp_path)
        job = await batches.create(order)
        await batches.find(NONCE)
        await batches.cancel(job.id)
        await batches.delete_upload(order.file_id)
        await batches.delete_upload(order.file_id)
        limits = batches.limits
    requests = dict(server.calls)
    form = read_multipart(requests["upload"])
    assert form == {"purpose": ("", b"batch"), "file": (f"{NONCE}.jsonl", (tmp_path / "lines.jsonl").read_bytes())}
    assert json.loads(form["file"][1].splitlines()[0]) == {
        "custom_id": "a-0",
        "body": {"encoding_format": "float", "output_dtype": "int8", "input": TEXTS[:3]},
    }
    assert json.loads(requests["create"].body) == {
        "input_files": [order.file_id],
        "endpoint": "/v1/embeddings",
        "model": "codestral-embed",
        "metadata": {"embedkit_nonce": NONCE},
        "timeout_hours": 24,
    }
    assert requests["cancel"].path == f"/v1/batch/jobs/{job.id}/cancel"
    assert {request.headers["x-team"] for request in requests.values()} == {"search"}
    assert (limits.texts, limits.lines, limits.line_texts, limits.window) == (100_000, 100_000, 256, 86_400)


async def test_a_job_reports_its_state(server, tmp_path):
    server.finishes_after, server.now = 2, lambda: 1_700_000_000.5
    async with opened(server) as batches:
        created = await batches.create(await uploaded(batches, tmp_path))
        running, ended = [await batches.retrieve(created.id) for _ in range(2)]
    assert (created.status, created.has_ended, created.lines) == ("QUEUED", False, 2)
    assert created.expires_at == 1_700_000_000 + 24 * 3600
    assert (running.status, running.has_ended, running.outputs) == ("RUNNING", False, ())
    assert (ended.status, ended.has_ended, ended.done, ended.failed) == ("SUCCESS", True, 2, 0)


@pytest.mark.parametrize("ending", ["expired", "cancelled", "failed", "ARCHIVED"])
async def test_a_job_that_ends_early_has_the_results_of_its_completed_lines(server, tmp_path, ending):
    server.line_fault = lambda custom_id, texts: 429 if custom_id == "a-0" else None
    async with opened(server) as batches:
        job = await batches.create(await uploaded(batches, tmp_path))
        server.finish(job.id, ending, lines=1)
        ended = await batches.retrieve(job.id)
        found = await results(batches, job, tmp_path)
    assert (ended.has_ended, ended.status, ended.error) == (True, server.endings.get(ending, ending), "")
    assert (found["a-0"].status, found["a-0"].code, found["a-0"].is_transient) == (429, "", True)
    if ending != "failed":
        assert (found["a-1"].status, found["a-1"].is_transient) == (0, True)
    assert TEXTS[0] not in repr(found)


async def test_a_refused_job_does_not_repeat_the_message_of_the_server(server, tmp_path):
    server.refuse_batch = lambda batch: ("", f"Not valid: {TEXTS[0]}")
    async with opened(server) as batches:
        job = await batches.retrieve((await batches.create(await uploaded(batches, tmp_path))).id)
    assert (job.has_ended, job.error, job.outputs) == (True, "an error without a code", ())


async def test_a_job_whose_creation_was_not_answered_is_found_on_any_page(server, tmp_path, monkeypatch):
    monkeypatch.setattr(mistral_batch, "PAGE", 2)
    server.faults_of["create"] = ["lost"]
    async with opened(server) as batches:
        order = await uploaded(batches, tmp_path)
        with pytest.raises(UnavailableError) as caught:
            await batches.create(order)
        for nonce in range(3):
            await batches.create(BatchOrder(order.file_id, f"{nonce:016x}", order.body, order.lines))
        [found] = await batches.find(NONCE)
        assert await batches.find("f" * 16) == []
        server.batches[found.id].created_at = server.last_batch.created_at = 0
        assert len(await batches.find(NONCE)) == 1
    assert (caught.value.unsent, caught.value.status) == (False, None)
    assert found.id == next(iter(server.batches))


@pytest.mark.parametrize(
    ("operation", "fault", "error"),
    [
        ("upload", 500, UnavailableError),
        ("create", 400, BadRequestError),
        ("create", 401, AuthenticationError),
        ("create", 422, BadRequestError),
        ("create", 429, RateLimitError),
        ("create", 500, UnavailableError),
        ("retrieve", 404, BatchNotFoundError),
        ("download", 404, BatchNotFoundError),
        ("download", ("cut", 50), UnavailableError),
        ("cancel", 422, BadRequestError),
        ("delete", 500, UnavailableError),
    ],
    ids=str,
)
async def test_a_fault_of_an_operation_is_its_error(server, tmp_path, operation, fault, error):
    server.finishes_after = None
    plain = server.error
    server.error = lambda message: plain(f"{message} line 1: {TEXTS[0]} {KEY}") if operation == "create" else plain("")
    async with opened(server) as batches:
        order = await uploaded(batches, tmp_path)
        job = await batches.create(order)
        calls = {
            "upload": lambda: batches.upload(tmp_path / "lines.jsonl", "again"),
            "create": lambda: batches.create(order),
            "retrieve": lambda: batches.retrieve(job.id),
            "download": lambda: batches.download(order.file_id, tmp_path / "results.jsonl"),
            "cancel": lambda: batches.cancel(job.id),
            "delete": lambda: batches.delete_upload(order.file_id),
        }
        server.faults_of[operation], before = [fault], server.called(operation)
        with pytest.raises(error) as caught:
            await calls[operation]()
    assert server.called(operation) == before + 1
    shown = f"{caught.value!r} {vars(caught.value)}"
    assert KEY not in shown
    assert TEXTS[0] not in shown


async def test_a_file_that_is_not_ready_creates_no_job_and_an_ended_job_can_be_cancelled(server, tmp_path):
    server.file_ready_after = 1
    async with opened(server) as batches:
        order = await uploaded(batches, tmp_path)
        with pytest.raises(FileNotReadyError):
            await batches.create(order)
        assert server.created == 0
        job = await batches.create(order)
        await batches.retrieve(job.id)
        await batches.cancel(job.id)
        with pytest.raises(ProviderError):
            await batches.cancel("11111111-0000-4000-8000-000000000000")


async def test_a_prompt_is_in_the_texts_of_a_line_only(server):
    async with opened(server, document_prompt="passage: ") as batches:
        line = batches.line("an-id", batches.body, ["passage: a text"])
    assert json.loads(line)["body"].keys() == {"encoding_format", "input"}
