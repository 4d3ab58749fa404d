"""in_batch=: what calls do with texts that are in an open batch job."""

import asyncio
import logging
import time

import numpy as np
import pytest
from support.batch_jobs import job_embedder, vectors_of
from support.embedders import numbered, texts_sent

from embedkit_core.calls import in_batch
from embedkit_core.common.errors import JobError
from embedkit_core.coordination.journal.journal import Journal

TEXTS = numbered(6)


@pytest.fixture(autouse=True)
def _short_polls(monkeypatch):
    monkeypatch.setattr(in_batch, "FIRST_POLL_SECONDS", 0.01)


@pytest.fixture
def job(server, tmp_path):
    """A job of the first four texts, which the server does not end by itself."""
    server.finishes_after = None
    with job_embedder(server, tmp_path) as embedder:
        yield embedder.submit(TEXTS[:4])


CALLS = {
    "embed": lambda embedder, texts: embedder.embed(texts).vectors,
    "aembed": lambda embedder, texts: asyncio.run(embedder.aembed(texts)).vectors,
    "embed_iter": lambda embedder, texts: np.array(list(embedder.embed_iter(texts))),
    "langchain": lambda embedder, texts: embedder.embed_documents(texts),
    "llamaindex": lambda embedder, texts: embedder.get_text_embedding_batch(texts),
}


def embedder_for(call, server, folder, **options):
    if call in ("langchain", "llamaindex"):
        from langchain_embedkit import EmbedKitEmbeddings
        from llamaindex_embedkit import EmbedKitEmbedding

        kind = EmbedKitEmbeddings if call == "langchain" else EmbedKitEmbedding
        settings = {"base_url": server.base_url, "api_key": "test-key", "dimensions": 8, "cache": str(folder)}
        return kind(model="text-embedding-3-small", **settings, **options)
    return job_embedder(server, folder, **options)


@pytest.mark.parametrize("call", CALLS)
def test_calls_pay_with_one_warning_wait_or_refuse(server, tmp_path, job, call, caplog):
    run = CALLS[call]
    refusing = embedder_for(call, server, tmp_path, in_batch="error")
    with pytest.raises(JobError, match=f"2 of 3 texts to send are in open batch jobs .{job.id}"):
        run(refusing, TEXTS[2:5])
    np.testing.assert_allclose(run(refusing, TEXTS[4:]), vectors_of(TEXTS[4:]))
    paying = embedder_for(call, server, tmp_path)
    with caplog.at_level(logging.WARNING, "embedkit_core"):
        for text in TEXTS[:2]:
            np.testing.assert_allclose(run(paying, [text]), vectors_of([text]))
    assert caplog.text.count("is in open batch jobs") == 1
    waiting = embedder_for(call, server, tmp_path, in_batch="wait")
    server.finishes_after = server.last_batch.retrieves + 3
    np.testing.assert_allclose(run(waiting, TEXTS), vectors_of(TEXTS))
    assert texts_sent(server) == [*TEXTS[4:], *TEXTS[:2]]
    assert server.paid_texts == dict.fromkeys(TEXTS[:4], 1)
    assert job.status == "collected"


def test_queries_are_never_held_up(server, tmp_path, job, caplog):
    for mode in ("error", "wait", "pay"):
        with job_embedder(server, tmp_path, in_batch=mode) as embedder:
            embedder.embed_query(TEXTS[0])
    assert "batch jobs" not in caplog.text
    assert len(server.requests) == 1


def test_a_wait_ends_with_the_deadline_and_with_the_caller(server, tmp_path, job):
    late = job_embedder(server, tmp_path, in_batch="wait", deadline=0.05)
    with late, pytest.raises(JobError, match=rf"\({job.id}\), which have not finished before deadline="):
        late.embed(TEXTS)

    async def leave():
        with job_embedder(server, tmp_path, in_batch="wait") as embedder, pytest.raises(TimeoutError):
            await asyncio.wait_for(embedder.aembed(TEXTS), 0.1)

    began = time.monotonic()
    asyncio.run(leave())
    assert time.monotonic() - began < 5
    assert server.requests == []


def test_what_a_job_did_not_embed_is_sent_after_the_wait(server, tmp_path, job):
    job.cancel()
    server.cancel_keeps = 1
    with job_embedder(server, tmp_path, in_batch="wait") as embedder:
        np.testing.assert_array_equal(embedder.embed(TEXTS).vectors, vectors_of(TEXTS))
    assert texts_sent(server) == TEXTS[2:]
    assert job.status == "cancelled"


@pytest.mark.parametrize("method", ["embed", "submit"])
def test_texts_that_a_job_releases_while_they_are_looked_up_are_not_paid_again(
    server, tmp_path, job, monkeypatch, method
):
    server.finishes_after = 1
    claimed = Journal.claimed

    def collect_first(journal, keys):
        if not job.is_finished:
            job.collect()
        return claimed(journal, keys)

    monkeypatch.setattr(Journal, "claimed", collect_first)
    with job_embedder(server, tmp_path, in_batch="wait") as embedder:
        getattr(embedder, method)(TEXTS[:4])
    assert server.requests == []
    assert server.created == len(job._batches())
