"""Embed jobs of Cohere, with a local server."""

import asyncio

import numpy as np
import pytest
from support.batch_files import NONCE, line_id, read_results, upload
from support.cohere_jobs_server import SIGNATURE, CohereJobsServer
from support.embedders import numbered
from support.traceback_locals import SECRET, leaks

from embedkit_core import (
    AuthenticationError,
    BadReplyError,
    BadRequestError,
    ConfigurationError,
    RateLimitError,
    UnavailableError,
)
from embedkit_core.common.errors import BatchNotFoundError, FileNotReadyError
from embedkit_core.common.types import Batch
from embedkit_core.providers.base import ProviderSettings
from embedkit_core.providers.catalogue import models
from embedkit_core.providers.cohere import Cohere
from embedkit_core.providers.cohere_batch import CohereEmbedJobs
from embedkit_core.providers.http.connection import Connection
from embedkit_core.providers.secrets import Secret

KEY = f"co-{SECRET}"
MODEL = "embed-multilingual-v3.0"
TEXTS = [*numbered(3), "one\u2028line\n\u00fc"]


@pytest.fixture
def server():
    with CohereJobsServer(api_key=KEY) as started:
        yield started


def cohere(server, model=MODEL, **settings):
    [info] = models("cohere", name=model)
    connection = Connection({"X-Gateway": f"gateway-{SECRET}"})
    return Cohere(
        ProviderSettings(
            model,
            api_key=Secret(KEY),
            base_url=server.base_url,
            info=info,
            connection=connection,
            **settings,
        )
    )


def with_job(server, tmp_path, work, **settings):
    """Run `work(endpoint, order)` with an uploaded dataset."""
    provider = cohere(server, **settings)

    async def run():
        async with CohereEmbedJobs(provider) as endpoint:
            return await work(endpoint, await upload(endpoint, tmp_path, provider.request_body("document"), TEXTS))

    return asyncio.run(run())


@pytest.mark.parametrize("dtype", ["float32", "int8", "ubinary"])
def test_a_job_has_the_vectors_of_the_normal_endpoint(server, tmp_path, dtype):
    server.mangle = lambda records: records[::-1]
    provider = cohere(server, dtype=dtype)

    async def work(endpoint, order):
        created = await endpoint.create(order)
        ended = await endpoint.retrieve(created.id)
        results = await read_results(endpoint, tmp_path, ended)
        found = await endpoint.find(NONCE), await endpoint.find("unknown")
        await endpoint.delete_upload(order.file_id)
        await endpoint.delete_upload(order.file_id)
        client = provider.connect()
        try:
            normal = await client.embed(Batch(TEXTS, order.body))
        finally:
            await client.aclose()
        replies = [endpoint.decode(results[line_id(number)], 1) for number in range(len(TEXTS))]
        return created, ended, found, replies, normal

    created, ended, found, replies, normal = with_job(server, tmp_path, work, dtype=dtype)
    np.testing.assert_array_equal(np.concatenate([reply.vectors for reply in replies]), normal.vectors)
    assert normal.vectors.dtype == replies[0].vectors.dtype
    assert [reply.tokens for reply in replies] == [None] * 4
    assert (created.status, created.has_ended) == ("processing", False)
    assert (ended.status, ended.has_ended) == ("complete", True)
    assert ([job.id for job in found[0]], found[1]) == ([created.id], [])
    assert TEXTS[0].encode() not in (tmp_path / "results.jsonl").read_bytes()
    assert not any(file.purpose == "custom_id" for file in server.files.values())


def test_a_dataset_must_be_validated(server, tmp_path):
    server.file_ready_after = 1

    async def work(endpoint, order):
        errors = []
        for refuses in (False, True):
            server.refuse_dataset = lambda file, refuses=refuses: refuses
            with pytest.raises(BadRequestError if refuses else FileNotReadyError) as caught:
                await endpoint.create(order)
            errors.append(caught.value)
        return errors

    for error in with_job(server, tmp_path, work):
        assert error.unsent
        assert TEXTS[0] not in str(error)
    assert server.created == 0


def test_a_cancelled_job_has_no_results_and_a_second_cancel_does_nothing(server, tmp_path):
    server.finishes_after, server.cancel_keeps = None, 2

    async def work(endpoint, order):
        created = await endpoint.create(order)
        await endpoint.cancel(created.id)
        ended = await endpoint.retrieve(created.id)
        await endpoint.cancel(created.id)
        return ended

    ended = with_job(server, tmp_path, work)
    assert (ended.status, ended.has_ended, ended.outputs) == ("cancelled", True, ())
    assert sum(server.paid_texts.values()) == 2


@pytest.mark.parametrize(
    ("fault", "kind"),
    [(429, RateLimitError), (503, UnavailableError), (401, AuthenticationError), ("lost", UnavailableError)],
    ids=["429", "503", "401", "lost"],
)
def test_an_error_of_create_says_whether_a_job_may_exist(server, tmp_path, fault, kind):
    server.faults_of["create"] = [fault]

    async def work(endpoint, order):
        with pytest.raises(kind) as caught:
            await endpoint.create(order)
        return caught.value, len(await endpoint.find(NONCE))

    error, n_found = with_job(server, tmp_path, work)
    nothing_created = error.unsent or (error.status or 500) < 500
    assert (nothing_created, n_found) == (fault in (429, 401), int(fault == "lost"))
    assert SECRET not in str(error)
    assert not leaks(error)


def test_what_cohere_has_deleted_is_not_found(server, tmp_path):
    async def work(endpoint, order):
        with pytest.raises(BatchNotFoundError):
            await endpoint.retrieve("unknown")
        with pytest.raises(BatchNotFoundError):
            await endpoint.cancel("unknown")
        with pytest.raises(BatchNotFoundError):
            await endpoint.download("unknown", tmp_path / "results")
        ended = await endpoint.retrieve((await endpoint.create(order)).id)
        [dataset] = ended.outputs
        server.files.pop(server.parts[dataset][1])
        with pytest.raises(BatchNotFoundError) as caught:
            await endpoint.download(dataset, tmp_path / "results")
        return caught.value

    assert SIGNATURE not in str(with_job(server, tmp_path, work))


def test_damaged_results_are_an_error_without_texts_and_addresses(server, tmp_path):
    server.faults_of["download"] = [("cut", 400), None, None]

    async def work(endpoint, order):
        ended = await endpoint.retrieve((await endpoint.create(order)).id)
        with pytest.raises(UnavailableError) as cut:
            await endpoint.download(ended.outputs[0], tmp_path / "results")
        part = server.files[server.parts[ended.outputs[0]][1]]
        part.content = part.content[:-30]
        with pytest.raises(BadReplyError) as damaged:
            await endpoint.download(ended.outputs[0], tmp_path / "results")
        return cut.value, damaged.value

    for error in with_job(server, tmp_path, work):
        shown = f"{error}{error!r}"
        assert SIGNATURE not in shown
        assert TEXTS[2] not in shown
        assert not leaks(error)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"model": "embed-v4.0"}, "model"),
        ({"options": {"priority": 1}}, "priority"),
        ({"on_long_text": "error"}, "on_long_text"),
        ({"on_long_text": "mean"}, "on_long_text"),
    ],
    ids=["model", "option", "error", "mean"],
)
def test_settings_that_jobs_do_not_have_are_refused(server, settings, named):
    with pytest.raises(ConfigurationError, match=named):
        CohereEmbedJobs(cohere(server, **settings))


def test_jobs_are_used_only_on_request():
    assert Cohere.batch_endpoint == f"{CohereEmbedJobs.__module__}:{CohereEmbedJobs.__name__}"
    assert (CohereEmbedJobs.name, CohereEmbedJobs.is_opt_in) == ("embed-jobs", True)
