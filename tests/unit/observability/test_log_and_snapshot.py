"""Log lines of calls, and snapshots of the accounts."""

import asyncio
import logging
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.embedders import fake_embedder, openai_embedder
from support.openai_server import Fault, OpenAIServer
from support.waiting import wait_until_idle, wait_until_joined

import embedkit_core
from embedkit_core import RateLimitError, RequestTooLargeError, Snapshot, UnavailableError, snapshot
from embedkit_core.common.types import Limits
from embedkit_core.testing import FakeServer, MemoryCoordinator

KEY = "sk-not-to-be-seen"


def texts_of(n):
    return [f"secret text {i}" for i in range(n)]


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.DEBUG, logger="embedkit_core")
    return caplog


def test_a_retry_is_logged_on_the_thread_of_the_caller(log):
    threads = set()

    class Handler(logging.Handler):
        def emit(self, record):
            threads.add(threading.current_thread())

    handler = Handler()
    logging.getLogger("embedkit_core").addHandler(handler)
    server = FakeServer()
    server.faults.append(UnavailableError("failed", status=500, retry_after=0.001))
    fake_embedder(server).embed(texts_of(3))
    logging.getLogger("embedkit_core").removeHandler(handler)
    assert [(record.levelname, record.name) for record in log.records] == [("INFO", "embedkit_core.engine")]
    assert log.messages == ["fake:model: Retrying 3 texts in 0.0 s after UnavailableError (HTTP 500)"]
    assert threads == {threading.current_thread()}


async def test_log_lines_of_an_async_call_are_written_on_its_event_loop(log):
    server = FakeServer()
    server.faults.append(UnavailableError("failed", status=500, retry_after=0.001))
    await fake_embedder(server).aembed(texts_of(3))
    assert [record.thread for record in log.records] == [threading.get_ident()]


def test_a_line_is_logged_while_the_caller_still_waits(log):
    server = FakeServer()
    server.faults.append(UnavailableError("failed", status=500, retry_after=0.001))
    seen = threading.Event()

    class Handler(logging.Handler):
        def emit(self, record):
            server.release()
            seen.set()

    handler = Handler()
    logging.getLogger("embedkit_core").addHandler(handler)
    server.fault_for = lambda texts: server.hold() if not seen.is_set() else None
    try:
        assert fake_embedder(server).embed(texts_of(3)).usage.sent == 3
    finally:
        logging.getLogger("embedkit_core").removeHandler(handler)
    assert seen.is_set()


def test_many_refusals_are_logged_once_per_second(log):
    server = FakeServer()
    server.faults.extend([UnavailableError("failed", status=500, retry_after=0.001)] * 6)
    fake_embedder(server, max_retries=20).embed(texts_of(40))
    retries = [line for line in log.messages if "Retrying" in line]
    assert 1 <= len(retries) <= 3
    assert len(server.received) > 6


def test_texts_that_are_not_retried_are_not_logged_as_retried(log):
    server = FakeServer()
    server.fault_for = lambda texts: UnavailableError("failed", status=500, retry_after=0.001)
    with pytest.raises(UnavailableError):
        fake_embedder(server, max_retries=0).embed(texts_of(3))
    assert log.messages == []


def test_inferred_limits_are_logged(log):
    server = FakeServer(limits=Limits(texts=2048))
    server.fault_for = lambda texts: too_many() if len(texts) > 8 else None
    fake_embedder(server).embed(texts_of(64))
    assert any("Request size limited to" in line for line in log.messages)


def too_many():
    error = RequestTooLargeError("too many", status=400)
    error.counts_texts = True
    return error


def test_normal_calls_log_nothing_and_no_line_contains_a_text_or_key(log):
    with OpenAIServer() as server:
        openai_embedder(server).embed(texts_of(300))
        assert log.messages == []
        server.faults.extend([Fault(status=500), Fault.rate_limited(retry_after_ms=1)])
        openai_embedder(server).embed([f"another {i}" for i in range(300)])
    assert log.messages
    assert "secret" not in log.text
    assert "another" not in log.text
    assert KEY not in log.text


def test_without_a_log_handler_nothing_is_printed(capsys):
    server = FakeServer()
    server.faults.append(UnavailableError("failed", status=500, retry_after=0.001))
    fake_embedder(server).embed(texts_of(3))
    assert capsys.readouterr() == ("", "")


def test_log_lines_of_a_stream_are_written_on_the_thread_that_iterates_it(log):
    server = FakeServer()
    server.faults.append(UnavailableError("failed", status=500, retry_after=0.001))
    assert len(list(fake_embedder(server).embed_iter(texts_of(300)))) == 300
    assert [record.thread for record in log.records] == [threading.get_ident()]


def test_a_log_handler_can_embed_with_the_cache_of_its_log_line(tmp_path):
    server = FakeServer()
    first = fake_embedder(server, cache=tmp_path)
    first.embed(["one"])
    first.close()
    next(tmp_path.rglob("cache.db")).write_bytes(b"no database" * 1000)
    heard: list[int] = []

    class Handler(logging.Handler):
        def emit(self, record):
            heard.append(len(fake_embedder(server, cache=tmp_path).embed(["one"]).vectors))

    handler = Handler()
    logging.getLogger("embedkit_core").addHandler(handler)
    try:
        with ThreadPoolExecutor(1) as pool:
            assert len(pool.submit(fake_embedder(server, cache=tmp_path).embed, ["one"]).result(30).vectors) == 1
    finally:
        logging.getLogger("embedkit_core").removeHandler(handler)
    assert heard


# Snapshots


def snapshot_at(server, model="fake:model"):
    """Return the snapshot of a model at a server; other tests may have left other snapshots."""
    [found] = [shot for shot in snapshot() if (shot.model, shot.endpoint) == (model, server.url)]
    return found


async def test_a_snapshot_counts_waiting_texts_and_requests_in_flight():
    server = FakeServer(limits=Limits(texts=10))
    embedder = fake_embedder(server, max_concurrency=2)
    embedder.embed(["warm up"])
    server.hold()
    task = asyncio.create_task(embedder.aembed(texts_of(100)))
    await asyncio.to_thread(wait_until_joined, embedder, 100)
    await asyncio.to_thread(server.wait_for_requests, 3)
    shot = await asyncio.to_thread(snapshot_at, server)
    assert (shot.waiting, shot.retrying, shot.in_flight) == (80, 0, 2)
    assert (shot.texts_per_request, shot.last_failure, shot.paused_seconds) == (10, None, 0.0)
    server.release()
    await task
    await asyncio.to_thread(wait_until_idle, embedder)
    shot = await asyncio.to_thread(snapshot_at, server)
    assert (shot.waiting, shot.retrying, shot.in_flight) == (0, 0, 0)


async def test_a_snapshot_has_the_last_failure_and_the_pause():
    server = FakeServer()
    embedder = fake_embedder(server)
    server.faults.append(RateLimitError("slow down", status=429, retry_after=60))
    task = asyncio.create_task(embedder.aembed(texts_of(3)))
    while not (shot := await asyncio.to_thread(snapshot_of, server)) or not shot.last_failure:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    assert shot.last_failure == "RateLimitError (HTTP 429)"
    assert (shot.retrying, shot.in_flight) == (3, 0)
    assert 50 < shot.paused_seconds <= 60
    assert shot.failed_seconds_ago >= 0
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_a_snapshot_can_be_taken_on_the_thread_of_a_rate_limiter_or_cache():
    found = []

    class Observer:
        def acquire(self):
            found.append(snapshot())

        def get_many(self, keys):
            return [None] * len(keys)

        def set_many(self, items):
            found.append(snapshot())

        def close(self): ...

    observer = Observer()
    assert fake_embedder(FakeServer(), rate_limiter=observer, cache=observer).embed(texts_of(2)).usage.sent == 2
    assert len(found) == 2


def snapshot_of(server):
    return next((shot for shot in snapshot() if shot.endpoint == server.url), None)


def test_limits_from_headers_are_in_a_snapshot():
    with OpenAIServer() as server:
        server.headers = {
            "x-ratelimit-limit-requests": "600",
            "x-ratelimit-remaining-requests": "599",
            "x-ratelimit-reset-requests": "0.1s",
            "x-ratelimit-limit-tokens": "60000",
            "x-ratelimit-remaining-tokens": "59000",
            "x-ratelimit-reset-tokens": "1s",
        }
        openai_embedder(server).embed(texts_of(3))
        shot = next(s for s in snapshot() if s.endpoint and s.endpoint in server.base_url)
        assert shot.requests_per_minute == pytest.approx(600)
        assert shot.tokens_per_minute == pytest.approx(60_000)
        assert KEY not in repr(shot)


async def test_a_snapshot_has_the_lowest_limits_that_waiting_callers_set_and_then_those_of_the_last_one():
    server = FakeServer()
    loose = fake_embedder(server, requests_per_minute=600, tokens_per_minute=60_000, max_concurrency=8)
    strict = fake_embedder(server, requests_per_minute=60, max_concurrency=2)
    server.hold()
    tasks = [asyncio.create_task(embedder.aembed([name])) for name, embedder in (("a", loose), ("b", strict))]
    await asyncio.to_thread(wait_until_joined, loose, 1)
    await asyncio.to_thread(wait_until_joined, strict, 2)
    shot = await asyncio.to_thread(snapshot_at, server)
    assert (shot.user_requests_per_minute, shot.user_tokens_per_minute, shot.max_concurrency) == (60, 60_000, 2)
    assert (shot.requests_per_minute, shot.tokens_per_minute, shot.max_in_flight) == (None, None, None)
    server.release()
    await asyncio.gather(*tasks)
    await asyncio.to_thread(wait_until_idle, strict)
    shot = await asyncio.to_thread(snapshot_at, server)
    assert shot.max_concurrency is None
    await loose.aembed(["c"])
    shot = await asyncio.to_thread(snapshot_at, server)
    assert (shot.user_requests_per_minute, shot.user_tokens_per_minute) == (600, 60_000)
    await fake_embedder(server).aembed(["d"])
    shot = await asyncio.to_thread(snapshot_at, server)
    assert (shot.user_requests_per_minute, shot.user_tokens_per_minute) == (None, None)


LOGGERS = re.compile(r'getLogger\("(embedkit_core\.\w+|langchain_embedkit)"\)')


def test_the_page_lists_every_logger():
    root = Path(__file__).parents[3]
    code = [path for name in ("shared", "langchain_embedkit") for path in (root / name).rglob("*.py")]
    found = {name for path in code for name in LOGGERS.findall(path.read_text(encoding="utf-8"))}
    page = (root / "docs" / "observability.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `((?:embedkit_core\.|langchain_)\w+)` \|", page, re.M)) == found


def test_a_snapshot_is_a_public_dataclass():
    server = FakeServer()
    embedder = fake_embedder(server)
    embedder.embed(["text"])
    assert isinstance(snapshot_at(server), Snapshot)
    assert embedkit_core.snapshot is snapshot


async def test_texts_that_wait_for_budget_are_in_a_snapshot():
    server = FakeServer()
    embedder = fake_embedder(server, budget_tokens=40)
    embedder.embed(["warm up"])
    server.hold()
    task = asyncio.create_task(embedder.aembed([f"text number {i}" for i in range(8)]))
    await asyncio.to_thread(server.wait_for_requests, 2)
    assert (await asyncio.to_thread(snapshot_at, server)).waiting == 8 - len(server.received[-1].texts)
    server.release()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_snapshot_counts_the_texts_that_another_process_sends(tmp_path):
    server, coordinator = FakeServer(), MemoryCoordinator()
    embedder = fake_embedder(server, cache=tmp_path, coordination=coordinator)
    # Another account has a scheduler of its own, like another process.
    other = fake_embedder(server, cache=tmp_path, coordination=coordinator.process(), api_key="another-account")
    server.hold()
    tasks = [asyncio.create_task(other.aembed(["a text"]))]
    await asyncio.to_thread(server.wait_for_requests, 1)
    tasks.append(asyncio.create_task(embedder.aembed(["a text"])))
    shots = await asyncio.to_thread(shots_of, server)
    while not any(shot.in_other_processes for shot in shots):
        shots = await asyncio.to_thread(shots_of, server)
        await asyncio.sleep(0.001)
    assert sorted((shot.in_flight, shot.in_other_processes, shot.processes) for shot in shots) == [(0, 1, 2), (1, 0, 1)]
    server.release()
    assert [result.usage.coalesced for result in await asyncio.gather(*tasks)] == [0, 1]
    assert len(server.received) == 1


async def test_a_snapshot_counts_the_requests_without_their_coordinator(tmp_path):
    server, coordinator = FakeServer(), MemoryCoordinator()
    coordinator.is_reachable = False
    embedder = fake_embedder(server, cache=tmp_path, coordination=coordinator)
    await embedder.aembed(["a text"])
    [shot] = await asyncio.to_thread(shots_of, server)
    assert shot.uncoordinated_requests == 1


def shots_of(server):
    """Return the snapshots of all accounts at a server."""
    return [shot for shot in snapshot() if shot.endpoint == server.url]
