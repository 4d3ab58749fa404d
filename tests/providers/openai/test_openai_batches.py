"""The batch endpoint of OpenAI with the real SDK against the local server: each operation and each fault of it."""

import importlib
import json
import time
from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np
import pytest
from support.batch_server import read_multipart
from support.openai_batch_server import OpenAIBatchServer
from support.openai_replies import vector_of

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
from embedkit_core.common.types import Batch
from embedkit_core.providers.base import ProviderSettings
from embedkit_core.providers.batch_endpoint import BatchOrder
from embedkit_core.providers.openai import presets
from embedkit_core.providers.openai.azure import Azure
from embedkit_core.providers.openai.batch import OpenAIBatches
from embedkit_core.providers.openai.provider import OpenAI
from embedkit_core.providers.secrets import Secret

MODEL, NONCE = "text-embedding-3-small", "0123456789abcdef"
LINES = {"l-0": ["one", "two\nlines", "ünï ✓"], "l-1": ["three"], "l-2": ["four", "five"]}
TEXTS = [text for texts in LINES.values() for text in texts]


@pytest.fixture
def server():
    with OpenAIBatchServer(dimensions=8) as running:
        yield running


def provider(server, name="openai", key="test-key", **settings):
    kind = OpenAI if name == "openai" else getattr(presets, name)
    return kind(ProviderSettings(MODEL, Secret(key), server.base_url, **settings))


@asynccontextmanager
async def opened(server, *, documents_base64=False, **settings):
    given = provider(server, **settings)
    given.documents_base64 = documents_base64 or given.documents_base64
    async with OpenAIBatches(given) as batches:
        batches.body = given.request_body("document")
        yield batches


async def uploaded(batches, folder, lines=None):
    file = folder / "lines.jsonl"
    lines = LINES if lines is None else lines
    file.write_bytes(b"".join(batches.line(name, batches.body, texts) + b"\n" for name, texts in lines.items()))
    name = await batches.upload(file, f"embedkit-{NONCE}.jsonl")
    return BatchOrder(name, NONCE, batches.body, len(lines))


async def results(batches, batch, folder):
    """Return the results of a batch by custom ID, of all its files."""
    found = {}
    for number, output in enumerate(batch.outputs):
        file = folder / f"output-{number}"
        file.touch()
        await batches.download(output, file)
        for line in file.read_bytes().splitlines():
            result = batches.parse(line)
            found[result.custom_id] = result
    return found


@pytest.mark.parametrize("documents_base64", [True, False], ids=["base64", "floats"])
async def test_vectors_of_a_batch_are_those_of_normal_requests_bit_for_bit(server, tmp_path, documents_base64):
    server.mangle = lambda lines: lines[::-1]
    server.shuffle_index = True
    async with opened(server, documents_base64=documents_base64) as batches:
        order = await uploaded(batches, tmp_path)
        sent = server.files[order.file_id].content.splitlines()
        created = await batches.create(order)
        ended = await batches.retrieve(created.id)
        decoded = {
            name: batches.decode(result, len(LINES[name]))
            for name, result in (await results(batches, ended, tmp_path)).items()
        }
        client = batches._provider.connect()
        normal = await client.embed(Batch(TEXTS, batches.body, widths=(8,), timeout=9))
        await client.aclose()
    encoding = "base64" if documents_base64 else "float"
    assert all(json.loads(line)["body"]["encoding_format"] == encoding for line in sent)
    assert [batches.texts_of(line) for line in sent] == list(LINES.values())
    assert (created.has_ended, created.status, created.outputs) == (False, "validating", ())
    assert (ended.has_ended, ended.status, ended.lines, ended.done, ended.failed) == (True, "completed", 3, 3, 0)
    assert ended.expires_at - time.time() == pytest.approx(24 * 3600, abs=60)
    rows = np.concatenate([decoded[name].vectors for name in LINES])
    np.testing.assert_array_equal(rows, normal.vectors)
    np.testing.assert_array_equal(rows, [vector_of(text, 8, 8, MODEL) for text in TEXTS])
    assert sum(reply.tokens for reply in decoded.values()) == normal.tokens
    assert server.paid_texts == dict.fromkeys(TEXTS, 1)


async def test_an_upload_is_a_form_with_the_file_and_its_purpose(server, tmp_path):
    async with opened(server) as batches:
        order = await uploaded(batches, tmp_path)
        await batches.delete_upload(order.file_id)
        await batches.delete_upload(order.file_id)  # is no error
    operation, request = server.calls[0]
    form = read_multipart(request)
    assert operation == "upload"
    assert form.keys() == {"file", "purpose"}
    assert form["purpose"] == ("", b"batch")
    assert form["file"] == (f"embedkit-{NONCE}.jsonl", (tmp_path / "lines.jsonl").read_bytes())
    assert request.headers["content-length"] == str(len(request.body))
    assert "transfer-encoding" not in request.headers
    assert not server.files


async def test_a_batch_whose_creation_was_not_answered_is_found_by_its_nonce(server, tmp_path):
    server.faults_of = {"create": ["lost"]}
    async with opened(server) as batches:
        order = await uploaded(batches, tmp_path)
        with pytest.raises(UnavailableError) as raised:
            await batches.create(order)
        for number in range(2, 122):  # newer ones, more than a page
            newer = replace(server.last_batch, id=f"batch_{number:04}", metadata={"embedkit_nonce": f"{number:016x}"})
            server.batches[newer.id] = newer
        server.faults_of = {"list": [404]}  # of a server that has no batches
        with pytest.raises(BadRequestError, match="have the routes /files and /batches"):
            await batches.find(NONCE)
        [found] = await batches.find(NONCE)
        assert await batches.find("f" * 16) == []
        server.batches["batch_0001"].created_at -= 3 * 24 * 3600
        server.batches["batch_0022"].created_at -= 3 * 24 * 3600  # the last of the first page
        calls = server.called("list")
        assert await batches.find(NONCE) == []
    assert not raised.value.unsent
    assert raised.value.status is None
    assert found.id == "batch_0001"
    assert server.called("list") == calls + 1


async def test_a_file_that_is_not_ready_is_an_error_of_its_own(server, tmp_path):
    server.file_ready_after = 1
    async with opened(server) as batches:
        order = await uploaded(batches, tmp_path)
        with pytest.raises(FileNotReadyError) as raised:
            await batches.create(order)
        await batches.create(order)
    assert raised.value.unsent
    assert server.created == 1


FAULTS = [
    ("upload", 500, UnavailableError, 500),
    ("upload", "lost", UnavailableError, None),
    ("create", 429, RateLimitError, 429),
    ("create", 404, BadRequestError, 404),
    ("list", 503, UnavailableError, 503),
    ("retrieve", 404, BatchNotFoundError, 404),
    ("retrieve", "lost", UnavailableError, None),
    ("download", 404, BatchNotFoundError, 404),
    ("download", 502, UnavailableError, 502),
    ("download", ("cut", 300), UnavailableError, None),
    ("download", ("cut", 0), UnavailableError, None),
    ("cancel", 500, UnavailableError, 500),
    ("delete", 401, AuthenticationError, 401),
]


async def test_a_fault_of_an_operation_is_its_error_and_is_not_retried(server, tmp_path):
    async with opened(server) as batches:
        order = await uploaded(batches, tmp_path)
        batch = await batches.create(order)
        [output, *_] = (await batches.retrieve(batch.id)).outputs
        calls = {
            "upload": lambda: batches.upload(tmp_path / "lines.jsonl", "again"),
            "create": lambda: batches.create(order),
            "list": lambda: batches.find(NONCE),
            "retrieve": lambda: batches.retrieve(batch.id),
            "download": lambda: batches.download(output, tmp_path / "output"),
            "cancel": lambda: batches.cancel(batch.id),
            "delete": lambda: batches.delete_upload(order.file_id),
        }
        for operation, fault, error, status in FAULTS:
            server.calls.clear()
            server.faults_of = {operation: [fault]}
            with pytest.raises(error) as raised:
                await calls[operation]()
            assert (type(raised.value), raised.value.status) == (error, status), (operation, fault)
            assert server.called(operation) == 1


async def test_results_of_a_batch_that_did_not_complete_are_read_with_its_errors(server, tmp_path):
    server.finishes_after = None
    server.line_fault = lambda custom_id, texts: 400 if custom_id == "l-1" else None
    async with opened(server) as batches:
        order = await uploaded(batches, tmp_path)
        for ending in ("expired", "cancelled", "some-new-word"):
            batch = await batches.create(order)
            assert not (await batches.retrieve(batch.id)).has_ended
            server.finish(batch.id, ending, 2)
            ended = await batches.retrieve(batch.id)
            assert (ended.has_ended, ended.status, ended.done, ended.failed) == (True, ending, 1, 2)
            found = await results(batches, ended, tmp_path)
            seen = {name: (one.status, one.code, one.is_transient) for name, one in found.items()}
            code = f"batch_{ending}" if "-" not in ending else ""
            assert seen == {
                "l-0": (200, "", False),
                "l-1": (400, "", False),
                "l-2": (0, code, True),
            }
            assert found["l-0"].model == MODEL


async def test_a_batch_whose_lines_all_failed_has_only_an_error_file(server, tmp_path):
    server.line_fault = lambda custom_id, texts: 503
    server.empty_error_id = True
    async with opened(server) as batches:
        order = await uploaded(batches, tmp_path)
        ended = await batches.retrieve((await batches.create(order)).id)
        found = await results(batches, ended, tmp_path)
        server.line_fault = lambda custom_id, texts: None
        whole = await batches.retrieve((await batches.create(order)).id)
    assert ended.status == "completed"
    assert len(ended.outputs) == 1
    assert [(one.status, one.is_transient) for one in found.values()] == [(503, True)] * 3
    assert len(whole.outputs) == 1


async def test_a_refusal_of_a_whole_batch_names_its_codes_and_the_limit_of_the_queue(server, tmp_path):
    async with opened(server) as batches:
        order = await uploaded(batches, tmp_path)
        server.refuse_batch = lambda batch: (
            "token_limit_exceeded",
            f"Enqueued token limit reached for {MODEL} in organization org-x. Limit: 2,000,000 enqueued tokens.",
        )
        full = await batches.retrieve((await batches.create(order)).id)
        server.refuse_batch = lambda batch: ("invalid_json_line", "This line is not valid: one")
        invalid = await batches.retrieve((await batches.create(order)).id)
    assert (full.has_ended, full.queue_is_full, full.queue_tokens) == (True, True, 2_000_000)
    assert full.error == "token_limit_exceeded"
    assert not full.outputs
    assert (invalid.has_ended, invalid.queue_is_full, invalid.error) == (True, False, "invalid_json_line")


async def test_a_cancelled_batch_stays_cancelled(server, tmp_path):
    server.finishes_after = 9
    async with opened(server) as batches:
        batch = await batches.create(await uploaded(batches, tmp_path))
        await batches.cancel(batch.id)
        ended = await batches.retrieve(batch.id)
        await batches.cancel(batch.id)
        with pytest.raises(ProviderError):
            await batches.cancel("batch_9999")
    assert (ended.status, server.cancelled) == ("cancelled", 1)


def changed(body, **fields):
    return {**body, "data": [{**row, **fields.get(f"row{n}", {})} for n, row in enumerate(body["data"])]}


MANGLED = [
    lambda body: changed(body, row0={"index": 1}),
    lambda body: changed(body, row0={"index": 5}),
    lambda body: {**body, "data": body["data"][:2]},
    lambda body: changed(body, row1={"embedding": [1.0]}),
    lambda body: changed(body, row1={"embedding": "AAAA"}),
    lambda body: changed(body, row0={"embedding": "AACAPwAAAEA="}),
    lambda body: {**body, "data": []},
    lambda _body: None,
    lambda _body: "vectors",
]


def test_a_line_that_has_not_the_vectors_of_its_texts_is_a_bad_reply(server):
    batches = OpenAIBatches(provider(server))
    body = {"data": [{"index": n, "embedding": [float(n), 1.0]} for n in range(3)], "model": MODEL}
    line = {"custom_id": "l-0", "response": {"status_code": 200, "body": body}, "error": None}
    assert batches.decode(batches.parse(json.dumps(line).encode()), 3).vectors.shape == (3, 2)
    for mangled in MANGLED:
        line["response"]["body"] = mangled(body)
        with pytest.raises(BadReplyError):
            batches.decode(batches.parse(json.dumps(line).encode()), 3)
    # Base64 that was not requested may be of another dtype.
    line["response"]["body"] = {"data": [{"index": 0, "embedding": "AACAPwAAAEA="}]}
    with pytest.raises(BadReplyError):
        batches.decode(batches.parse(json.dumps(line).encode()), 1)


def test_lines_of_other_shapes_are_no_results_or_failed_ones(server):
    batches = OpenAIBatches(provider(server))
    for line in (b"[]", b"{", b'"x"', b"1", b'{"custom_id": NaN}', b'{"custom_id": "l-0"}'):
        with pytest.raises(ValueError, match=r"."):
            batches.parse(line)
    line = {"custom_id": None, "response": {"status_code": 200, "body": {"error": {"code": 429, "message": "one"}}}}
    seen = batches.parse(json.dumps(line).encode())
    assert (seen.custom_id, seen.status, seen.code, seen.is_transient) == (None, 429, "429", True)
    line = {"custom_id": "l-0", "response": None, "error": {"code": "one or two", "message": "one"}}
    assert batches.parse(json.dumps(line).encode()).code == ""


async def test_no_error_has_the_key_or_a_text(server, tmp_path):
    key = "sk-proj-NeverShown123"

    server.error, plain = (lambda message: plain(f"{message} {key} one")), server.error
    async with opened(server, key=key) as batches:
        (tmp_path / "lines").write_bytes(b"{}\n")
        raised = []
        for status in (400, 401, 404, 413, 429, 500):
            order = BatchOrder("file-0001", NONCE, batches.body, 1)
            server.faults_of = {name: [status] for name in ("upload", "create", "retrieve", "cancel")}
            for call in (
                batches.upload(tmp_path / "lines", "x"),
                batches.create(order),
                batches.retrieve("batch_1"),
            ):
                with pytest.raises(ProviderError) as info:
                    await call
                raised.append(str(info.value))
    assert not [message for message in raised if key in message or "NeverShown" in message]
    # The answers about the file and the order are not quoted at all, because they may repeat lines of the file.
    assert not [message for n, message in enumerate(raised) if n % 3 < 2 and "one" in message.split()]


async def test_a_changed_key_is_used_from_the_next_request_on(server, tmp_path):
    async with opened(server, key="wrong") as batches:
        with pytest.raises(AuthenticationError):
            await batches.find(NONCE)
        server.api_key = "wrong"
        assert await batches.find(NONCE) == []


@pytest.mark.parametrize("name", ["nebius", "deepinfra"])
async def test_compatible_servers_with_batches_send_the_fields_of_their_requests(server, tmp_path, name):
    given = provider(server, name)
    module, _, kind = given.batch_endpoint.partition(":")
    async with getattr(importlib.import_module(module), kind)(given) as batches:
        batches.body = given.request_body("document")
        order = await uploaded(batches, tmp_path)
        ended = await batches.retrieve((await batches.create(order)).id)
        found = await results(batches, ended, tmp_path)
        rows = batches.decode(found["l-0"], 3).vectors
    np.testing.assert_array_equal(rows, [vector_of(text, 8, 8, MODEL) for text in LINES["l-0"]])
    assert json.loads(server.files[order.file_id].content.splitlines()[0])["body"]["encoding_format"] == "float"
    assert batches.limits.line_texts == min(256, given.limits.texts)


def test_only_servers_whose_documentation_has_batches_of_embeddings_offer_them(server):
    with_batches = {name for name, row in presets.PRESETS.items() if row.batch is not None}
    assert {"nebius", "deepinfra"} <= with_batches <= {"nebius", "deepinfra", "mistral"}
    assert provider(server).batch_endpoint == "embedkit_core.providers.openai.batch:OpenAIBatches"
    azure = Azure(ProviderSettings(MODEL, Secret("k"), "https://x.openai.azure.com"))
    assert azure.batch_endpoint is None
