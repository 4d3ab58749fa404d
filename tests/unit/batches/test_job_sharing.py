"""Jobs of several threads and processes, and of other keys and settings."""

import asyncio
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support.batch_jobs import check_cache, job_embedder, left_files
from support.batch_server import lines_of
from support.embedders import numbered
from support.processes import Worker

from embedkit_core import Embedder, track_usage
from embedkit_core.batches import service
from embedkit_core.common.errors import ConfigurationError, InputError, JobError

TEXTS = numbered(8)


def lines(server):
    """Return the texts of all lines that were uploaded."""
    files = [file for file in server.files.values() if file.purpose == "batch"]
    return [text for file in files for line in lines_of(file.content) for text in line["body"]["input"]]


def submit(embedder: Embedder, texts: list[str]) -> tuple[str, int, int]:
    job = embedder.submit(texts)
    return job.id, job.counts.sent, job.counts.elsewhere


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX processes")
def test_a_process_that_is_killed_while_a_batch_is_created_has_created_it_once(server, tmp_path):
    held, release = threading.Event(), asyncio.Event()
    on_create = server.on_create

    async def create_and_hold(name, request):
        response = await on_create(name, request)
        held.set()
        await release.wait()
        return response

    server.on_create = create_and_hold
    worker = Worker(server, tmp_path, dimensions=8)
    worker.start(submit, TEXTS[:4])
    assert held.wait(30)
    worker.kill()
    server._loop.call_soon_threadsafe(release.set)
    server.on_create = on_create
    with job_embedder(server, tmp_path) as embedder:
        [job] = embedder.jobs()
        assert [batch.step for batch in job._batches()] == ["CREATING"]
        assert job.wait(poll=0.001).done == 4
    assert server.created == 1
    assert server.paid_texts == dict.fromkeys(TEXTS[:4], 1)
    check_cache(server, tmp_path, TEXTS[:4])
    assert left_files(tmp_path) == []


def test_texts_that_are_submitted_at_once_are_sent_once(server, tmp_path):
    server.finishes_after = None
    with job_embedder(server, tmp_path) as embedder, job_embedder(server, tmp_path) as other:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(submit, [embedder, other] * 2, [TEXTS[:6], TEXTS[2:], TEXTS, TEXTS[:1]]))
        assert sorted(lines(server)) == sorted(TEXTS)
        assert sum(sent for _, sent, _ in found) == 8
        assert sum(elsewhere for _, _, elsewhere in found) == 6 + 6 + 8 + 1 - 8
        server.finishes_after = 1
        with ThreadPoolExecutor(4) as pool:  # two collect each job
            jobs = [one.job(name) for name, _, _ in found for one in (embedder, other)]
            list(pool.map(lambda job: job.wait(poll=0.001), jobs))
        assert {job.status for job in jobs} == {"collected"}
        assert {job.id for job in embedder.jobs()} == {name for name, _, _ in found}
    assert server.paid_texts == dict.fromkeys(TEXTS, 1)
    check_cache(server, tmp_path, TEXTS)
    assert left_files(tmp_path) == []


def test_a_job_that_another_thread_works_on_is_busy(server, tmp_path):
    with job_embedder(server, tmp_path) as embedder:
        job = embedder.submit(TEXTS[:2])
        with job._service._locked(job.id):
            with pytest.raises(JobError, match="Another process or thread is working on job") as raised:
                job.collect()
            with pytest.raises(TimeoutError, match="has not finished"):
                job.wait(timeout=0.02, poll=0.005)
        assert raised.value.job_id == job.id
        assert job.wait(poll=0.001).done == 2


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX processes")
def test_an_interrupted_step_keeps_its_lock_until_it_is_done(server, tmp_path):
    main, on_upload, release = threading.get_ident(), server.on_upload, asyncio.Event()

    async def interrupt_and_hold(name, request):
        response = await on_upload(name, request)
        signal.pthread_kill(main, signal.SIGINT)
        await release.wait()
        return response

    server.on_upload = interrupt_and_hold
    with job_embedder(server, tmp_path) as embedder:
        with pytest.raises(KeyboardInterrupt):
            embedder.submit(TEXTS[:2])
        server.on_upload = on_upload
        [job] = embedder.jobs()
        with pytest.raises(JobError, match="Another process or thread is working"):
            job.refresh()
        server._loop.call_soon_threadsafe(release.set)
        assert job.wait(poll=0.001).done == 2
    assert (server.called("upload"), server.created) == (1, 1)
    assert server.paid_texts == dict.fromkeys(TEXTS[:2], 1)


def test_texts_that_submit_other_texts_are_an_error(server, tmp_path):
    with job_embedder(server, tmp_path) as embedder:

        def texts():
            yield TEXTS[0]
            embedder.submit(TEXTS[1:3])

        with pytest.raises(JobError, match="calls submit"):
            embedder.submit(texts())
        assert embedder.submit(TEXTS[:3]).wait(poll=0.001).done == 3


def test_a_lock_that_is_not_released_is_logged(server, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(service, "WARNING_SECONDS", 0.0)
    with job_embedder(server, tmp_path) as embedder, ThreadPoolExecutor(1) as pool:
        job = embedder.submit(TEXTS[:2])
        with job._service._locked(job.id):
            cancelled = pool.submit(job.cancel)
            while not caplog.records:
                time.sleep(0.005)
        assert cancelled.result() == "cancelling"
    assert [record.message for record in caplog.records] == [
        f"{job._service._lock_path(job.id)} is still locked by another process or thread"
    ]


def test_jobs_of_other_keys_and_settings_are_clear_errors(server, tmp_path):
    server.api_key = None
    with job_embedder(server, tmp_path, api_key="one") as embedder:
        job = embedder.submit(TEXTS[:2])
        with pytest.raises(JobError, match="There is no job 'job-nothing'"):
            embedder.job("job-nothing")
    with job_embedder(server, tmp_path, api_key="two") as other_key:
        for step in ("collect", "refresh", "cancel", "wait"):
            with pytest.raises(JobError, match="another API key"):
                getattr(other_key.job(job.id), step)()
    with job_embedder(server, tmp_path, api_key="one", dimensions=4) as other_settings:
        assert other_settings.jobs() == []
        with pytest.raises(JobError, match="submitted with other settings"):
            other_settings.job(job.id)
        assert other_settings.submit(TEXTS[:2]).counts.sent == 2  # its vectors are others
    with job_embedder(server, tmp_path, cache=False) as uncached, pytest.raises(ConfigurationError, match="cache"):
        uncached.submit(TEXTS[:2])
    with job_embedder(server, tmp_path, api_key="one") as embedder:
        assert embedder.job(job.id).wait(poll=0.001).done == 2


def test_texts_that_cannot_be_embedded_leave_no_job(server, tmp_path):
    def texts():
        yield from TEXTS
        yield ""

    with job_embedder(server, tmp_path) as embedder:
        with pytest.raises(InputError):
            embedder.submit(texts())
        with pytest.raises(ZeroDivisionError):
            embedder.submit(text if n < 5 else 1 / 0 for n, text in enumerate(TEXTS))
        assert embedder.jobs() == []
        assert left_files(tmp_path) == []
        assert embedder.submit(TEXTS).counts.elsewhere == 0
    assert len(server.files) == 2


@pytest.mark.parametrize(
    ("model", "options", "input_type"),
    [
        ("text-embedding-3-small", {"dtype": "float16"}, "document"),
        ("text-embedding-3-small", {"dtype": "binary"}, "document"),
        ("openai:Qwen/Qwen3-Embedding-0.6B", {}, "query"),
        ("openai:unlisted", {"dimensions": None, "query_prompt": "Q: ", "document_prompt": "D: "}, "document"),
        ("openai:unlisted", {"dimensions": None, "query_prompt": "Q: ", "document_prompt": "D: "}, "query"),
    ],
    ids=["float16", "binary", "Qwen", "document prompt", "query prompt"],
)
def test_vectors_are_those_of_normal_requests(server, tmp_path, model, options, input_type):
    server.dimensions = 1536 if "3-small" in model else 1024
    options = {"dimensions": 8 if "3-small" in model else None} | options
    texts = [*TEXTS[:3], "Q: D: twice"]
    with job_embedder(server, tmp_path / "batch", model=model, **options) as embedder, track_usage() as usage:
        job = embedder.submit(texts, input_type=input_type)
        assert job.wait(poll=0.001).done == 4
        result = embedder.embed(texts, input_type=input_type)
        assert (result.usage.cache_hits, server.requests) == (4, [])
        assert usage.tokens == job.tokens == sum(batch.tokens for batch in server.batches.values())
    with job_embedder(server, tmp_path / "normal", model=model, **options) as embedder:
        normal = embedder.embed(texts, input_type=input_type)
    np.testing.assert_array_equal(result.vectors, normal.vectors)
    assert result.vectors.dtype == normal.vectors.dtype
    sent = [text for request in server.requests for text in request.texts]
    assert sorted(server.paid_texts) == sorted(sent)
