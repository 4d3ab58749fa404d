"""Batches of the Gemini API, with a local server."""

import asyncio
import socket
import warnings

import numpy as np
import pytest
from support.batch_files import NONCE, line_id, read_results, upload
from support.embedders import numbered
from support.google_batch_server import GeminiBatchServer
from support.traceback_locals import SECRET, leaks

from embedkit_core import AuthenticationError, BadReplyError, BadRequestError, RateLimitError, UnavailableError
from embedkit_core.common.errors import BatchNotFoundError, FileNotReadyError, TimedOutError
from embedkit_core.common.types import Batch
from embedkit_core.providers.base import ProviderSettings
from embedkit_core.providers.batch_endpoint import BatchOrder
from embedkit_core.providers.catalogue import models
from embedkit_core.providers.google.batch import GeminiBatches
from embedkit_core.providers.google.provider import Google, Vertex
from embedkit_core.providers.http import batch_transport
from embedkit_core.providers.secrets import Secret

KEY = f"AIza-{SECRET}"
TEXTS = [*numbered(3), "one\u2028line\n\u00fc"]


@pytest.fixture
def server():
    with GeminiBatchServer(api_key=KEY) as started:
        yield started


def google(server, model="gemini-embedding-001", **settings):
    [info] = models("google", name=model)
    return Google(ProviderSettings(model, api_key=Secret(KEY), base_url=server.base_url, info=info, **settings))


def run(work):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return asyncio.run(work)


async def normal_reply(provider, body, texts):
    client = provider.connect()
    try:
        return await client.embed(Batch(texts, body))
    finally:
        await client.aclose()


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("gemini-embedding-001", {"dimensions": 256, "options": {"title": "A title"}}),
        ("gemini-embedding-2", {"document_prompt": "title: x | text: "}),
    ],
    ids=["task-type", "prompt"],
)
def test_a_batch_has_the_vectors_of_the_normal_endpoint(server, tmp_path, model, settings):
    provider = google(server, model, **settings)
    body = provider.request_body("document")
    server.mangle = lambda lines: lines[::-1]

    async def work():
        async with GeminiBatches(provider) as endpoint:
            texts = [body.get("prompt", "") + text for text in TEXTS]
            order = await upload(endpoint, tmp_path, body, texts)
            created = await endpoint.create(order)
            assert (created.status, created.has_ended) == ("BATCH_STATE_PENDING", False)
            ended = await endpoint.retrieve(created.id)
            assert (ended.status, ended.has_ended, ended.lines, ended.done, ended.failed) == (
                *("BATCH_STATE_SUCCEEDED", True, 4, 4, 0),
            )
            results = await read_results(endpoint, tmp_path, ended)
            replies = [endpoint.decode(results[line_id(number)], 1) for number in range(len(TEXTS))]
            await endpoint.delete_upload(order.file_id)
            await endpoint.delete_upload(order.file_id)
            return replies, await normal_reply(provider, body, TEXTS)

    replies, normal = run(work())
    np.testing.assert_array_equal(np.concatenate([reply.vectors for reply in replies]), normal.vectors)
    assert normal.vectors.dtype == replies[0].vectors.dtype == np.float32
    tokens = [reply.tokens for reply in replies]
    assert tokens == [None] * 4 if normal.tokens is None else sum(tokens) == normal.tokens
    assert not any(file.purpose == "batch" for file in server.files.values())


def test_a_batch_is_found_by_its_nonce_on_any_page(server, tmp_path, monkeypatch):
    monkeypatch.setattr("embedkit_core.providers.google.batch.PAGE", 2)
    provider = google(server)
    body = provider.request_body("document")

    async def work():
        async with GeminiBatches(provider) as endpoint:
            order = await upload(endpoint, tmp_path, body, TEXTS)
            first = await endpoint.create(order)
            for _ in range(4):
                await endpoint.create(BatchOrder(order.file_id, "another-nonce000", body, 4))
            again = await endpoint.create(order)
            return [first.id, again.id], await endpoint.find(NONCE), await endpoint.find("unknown")

    ids, found, none = run(work())
    assert sorted(batch.id for batch in found) == sorted(ids)
    assert none == []


def test_a_line_that_failed_has_a_code_and_no_message(server, tmp_path):
    server.line_fault = lambda custom_id, texts: {line_id(0): 400, line_id(1): 503}.get(custom_id)
    provider = google(server)

    async def work():
        async with GeminiBatches(provider) as endpoint:
            created = await endpoint.create(await upload(endpoint, tmp_path, provider.request_body("document"), TEXTS))
            return await read_results(endpoint, tmp_path, await endpoint.retrieve(created.id))

    results = run(work())
    bad, busy = results[line_id(0)], results[line_id(1)]
    assert (bad.status, bad.code, bad.is_transient) == (400, "INVALID_ARGUMENT", False)
    assert (busy.status, busy.code, busy.is_transient) == (503, "UNAVAILABLE", True)
    assert TEXTS[0] not in repr(bad)
    assert results[line_id(2)].status == 200


def test_a_cancelled_batch_keeps_its_results_and_a_second_cancel_does_nothing(server, tmp_path):
    server.finishes_after, server.cancel_keeps = None, 1
    provider = google(server)

    async def work():
        async with GeminiBatches(provider) as endpoint:
            created = await endpoint.create(await upload(endpoint, tmp_path, provider.request_body("document"), TEXTS))
            await endpoint.cancel(created.id)
            ended = await endpoint.retrieve(created.id)
            await endpoint.cancel(created.id)
            return ended, await read_results(endpoint, tmp_path, ended)

    ended, results = run(work())
    assert (ended.status, ended.has_ended, ended.error) == ("BATCH_STATE_CANCELLED", True, "")
    assert [results[line_id(number)].status for number in range(4)] == [200, 499, 499, 499]
    assert results[line_id(3)].is_transient


def test_an_unknown_state_has_ended_if_the_operation_is_done(server, tmp_path):
    server.finishes_after, server.unknown_word = 2, "BATCH_STATE_NEW"
    provider = google(server)

    async def work():
        async with GeminiBatches(provider) as endpoint:
            created = await endpoint.create(await upload(endpoint, tmp_path, provider.request_body("document"), TEXTS))
            return [await endpoint.retrieve(created.id) for _ in range(2)]

    running, ended = run(work())
    assert not running.has_ended
    assert ended.has_ended
    assert ended.outputs


def test_a_failed_batch_says_why_and_whether_the_queue_is_full(server, tmp_path):
    message = "Enqueued tokens exceed the limit: 2,000,000 for the model."
    server.refuse_batch = lambda batch: ("RESOURCE_EXHAUSTED", message)
    provider = google(server)

    async def work():
        async with GeminiBatches(provider) as endpoint:
            order = await upload(endpoint, tmp_path, provider.request_body("document"), TEXTS)
            full = await endpoint.retrieve((await endpoint.create(order)).id)
            server.refuse_batch = lambda batch: ("INVALID_ARGUMENT", f"Line 1 is not valid: {TEXTS[0]}")
            return full, await endpoint.retrieve((await endpoint.create(order)).id)

    full, invalid = run(work())
    assert (full.has_ended, full.queue_is_full, full.queue_tokens) == (True, True, 2_000_000)
    assert full.error == f"RESOURCE_EXHAUSTED: {message}"
    assert (invalid.queue_is_full, invalid.error) == (False, "INVALID_ARGUMENT")


@pytest.mark.parametrize(
    ("fault", "kind"),
    [(429, RateLimitError), (503, UnavailableError), (404, BadRequestError), ("lost", UnavailableError)],
    ids=["429", "503", "404", "lost"],
)
def test_an_error_of_create_says_whether_a_batch_may_exist(server, tmp_path, fault, kind):
    server.faults_of["create"] = [fault]
    provider = google(server)

    async def work():
        async with GeminiBatches(provider) as endpoint:
            order = await upload(endpoint, tmp_path, provider.request_body("document"), TEXTS)
            with pytest.raises(kind) as caught:
                await endpoint.create(order)
            return caught.value, len(await endpoint.find(NONCE))

    error, n_found = run(work())
    nothing_created = error.unsent or (error.status or 500) < 500
    assert (nothing_created, n_found) == (fault in (429, 404), int(fault == "lost"))
    assert error.retry_after is None
    assert KEY not in str(error)
    assert TEXTS[0] not in str(error)
    assert not leaks(error)


def test_an_unknown_file_is_not_ready_yet(server, tmp_path):
    server.file_ready_after = 1
    provider = google(server)

    async def work():
        async with GeminiBatches(provider) as endpoint:
            order = await upload(endpoint, tmp_path, provider.request_body("document"), TEXTS)
            with pytest.raises(FileNotReadyError) as caught:
                await endpoint.create(order)
            await endpoint.create(order)
            return caught.value

    assert run(work()).unsent
    assert server.created == 1


def test_what_google_has_deleted_is_not_found(server, tmp_path):
    provider = google(server)

    async def work():
        async with GeminiBatches(provider) as endpoint:
            with pytest.raises(BatchNotFoundError):
                await endpoint.retrieve("batches/unknown")
            with pytest.raises(BatchNotFoundError):
                await endpoint.cancel("batches/unknown")
            with pytest.raises(BatchNotFoundError):
                await endpoint.download("files/unknown", tmp_path / "results")

    run(work())


def test_a_download_that_is_cut_off_is_an_error(server, tmp_path, monkeypatch):
    server.faults_of["download"] = [("cut", 300)]
    provider = google(server)

    async def work():
        async with GeminiBatches(provider) as endpoint:
            created = await endpoint.create(await upload(endpoint, tmp_path, provider.request_body("document"), TEXTS))
            ended = await endpoint.retrieve(created.id)
            with pytest.raises(UnavailableError):
                await read_results(endpoint, tmp_path, ended)
            return await read_results(endpoint, tmp_path, ended)

    assert len(run(work())) == 4


def test_a_refused_key_and_a_silent_server_are_errors_without_the_key(server, tmp_path, monkeypatch):
    monkeypatch.setattr(batch_transport, "READ_TIMEOUT", 0.05)
    refused, errors = google(server), []
    server.api_key = "another-key"

    async def work():
        async with GeminiBatches(refused) as endpoint:
            with pytest.raises(AuthenticationError) as caught:
                await upload(endpoint, tmp_path, refused.request_body("document"), TEXTS)
            errors.append(caught.value)

    async def silent(port):
        settings = ProviderSettings("gemini-embedding-001", api_key=Secret(KEY), base_url=f"http://127.0.0.1:{port}")
        async with GeminiBatches(Google(settings)) as endpoint:
            with pytest.raises(TimedOutError) as caught:
                await endpoint.find(NONCE)
            errors.append(caught.value)

    run(work())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        run(silent(listener.getsockname()[1]))
    for error in errors:
        assert KEY not in str(error)
        assert not leaks(error)
        assert not error.unsent


def test_lines_that_are_no_results_are_refused(server):
    endpoint = GeminiBatches(google(server))
    for line in (b"not JSON", b"[]", b'{"key": "a"}'):
        with pytest.raises(ValueError, match=r"JSON|result file|expected|invalid"):
            endpoint.parse(line)
    assert endpoint.parse(b'{"key": 5, "response": {}}').custom_id is None
    for line in (b'{"key": "a", "response": {}}', b'{"key": "a", "response": {"embedding": {"values": []}}}'):
        with pytest.raises(BadReplyError):
            endpoint.decode(endpoint.parse(line), 2)
    counted = endpoint.parse(b'{"key": "a", "response": {"embedding": {"values": [1, 2.5]}, "tokenCount": "7"}}')
    assert endpoint.decode(counted, 1).tokens == 7


def test_only_the_gemini_api_has_batches():
    assert Google.batch_endpoint == f"{GeminiBatches.__module__}:{GeminiBatches.__name__}"
    assert Vertex.batch_endpoint is None
