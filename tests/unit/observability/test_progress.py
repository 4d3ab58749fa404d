"""Progress callbacks and bars, on the thread of the caller."""

import asyncio
import io
import logging
import os
import pickle
import re
import threading
import time
from decimal import Decimal

import pytest
from support.embedders import fake_embedder
from support.rows import check_rows
from support.waiting import wait_until_joined
from tqdm import tqdm

from embedkit_core import ConfigurationError, MissingExtraError, PartialFailureError, Progress
from embedkit_core.engine.runtime.process import engine
from embedkit_core.observability.progress import _Bar
from embedkit_core.testing import FakeServer

PRICE = Decimal(1)


def texts_of(n):
    return [f"text {i}" for i in range(n)]


class RecordingCallback(list):
    """A callback that records its arguments and threads."""

    def __init__(self):
        super().__init__()
        self.threads = set()

    def __call__(self, progress):
        self.append(progress)
        self.threads.add(threading.current_thread())


def run_with_held_requests(server, embedder, run):
    """Call `run` with a callback; hold its requests until the callback has been called three times."""
    reports, release = RecordingCallback(), threading.Event()

    def callback(progress):
        reports(progress)
        if len(reports) >= 3:  # two of them while the requests are held
            server.release()
            release.set()

    server.hold()
    run(callback)
    assert release.is_set()
    return reports


def test_a_callback_is_called_while_a_call_waits_and_at_its_end(tmp_path):
    server = FakeServer(usd_per_million=PRICE)
    embedder = fake_embedder(server, cache=tmp_path)
    embedder.embed(texts_of(100))
    reports = run_with_held_requests(
        server, embedder, lambda callback: embedder.embed([*texts_of(500), "text 0"], progress=callback)
    )
    first, last = reports[0], reports[-1]
    assert (first.texts, first.cache_hits, first.finished) == (501, 100, False)
    assert 100 <= first.done < 501
    assert (last.done, last.texts, last.finished, last.seconds_left) == (501, 501, True, 0.0)
    assert (last.tokens, last.cost_usd, last.cache_hits) == (800, 800 * PRICE / 1_000_000, 100)
    assert [p.done for p in reports] == sorted(p.done for p in reports)
    assert sum(p.finished for p in reports) == 1
    assert reports.threads == {threading.current_thread()}


def test_the_callback_of_an_async_call_runs_on_its_event_loop():
    server = FakeServer()
    embedder = fake_embedder(server)

    async def run(callback):
        await embedder.aembed(texts_of(300), progress=callback)

    reports = run_with_held_requests(server, embedder, lambda callback: asyncio.run(run(callback)))
    assert reports[-1].done == reports[-1].texts == 300
    assert reports.threads == {threading.current_thread()}


@pytest.mark.parametrize("known", [True, False])
def test_a_stream_reports_progress_and_its_total_if_known(known):
    server = FakeServer()
    embedder = fake_embedder(server)
    texts = texts_of(3000)
    reports = run_with_held_requests(
        server, embedder, lambda callback: list(embedder.embed_iter(texts if known else iter(texts), progress=callback))
    )
    assert reports[0].texts == (3000 if known else None)
    assert (reports[-1].done, reports[-1].texts, reports[-1].finished, reports[-1].tokens) == (3000, 3000, True, 6000)
    assert [p.done for p in reports] == sorted(p.done for p in reports)


async def test_an_async_stream_reports_on_its_event_loop():
    reports = RecordingCallback()
    server = FakeServer()
    rows = [row async for row in fake_embedder(server).aembed_iter(texts_of(700), progress=reports)]
    assert len(rows) == reports[-1].done == 700
    assert reports[-1].finished
    assert reports.threads == {threading.current_thread()}


def test_the_end_is_reported_if_texts_fail():
    server = FakeServer()
    server.rejected_texts.add("text 3")
    reports = RecordingCallback()
    with pytest.raises(PartialFailureError):
        fake_embedder(server).embed(texts_of(20), progress=reports)
    assert (reports[-1].done, reports[-1].failed, reports[-1].finished) == (20, 1, True)


async def test_a_cancelled_call_does_not_report_its_end():
    server, reports = FakeServer(), RecordingCallback()
    embedder = fake_embedder(server)
    server.hold()
    task = asyncio.create_task(embedder.aembed(texts_of(20), progress=reports))
    await asyncio.to_thread(wait_until_joined, embedder, 20)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    server.release()
    assert reports
    assert not any(progress.finished for progress in reports)


def test_a_failing_callback_is_not_called_again_and_the_call_continues(caplog):
    calls = []

    def broken(progress):
        calls.append(progress)
        raise RuntimeError("secret text")

    with caplog.at_level(logging.WARNING, logger="embedkit_core"):
        assert fake_embedder(FakeServer()).embed(texts_of(50), progress=broken).usage.sent == 50
    assert len(calls) == 1
    assert "Progress callback failed with RuntimeError" in caplog.text
    assert "secret text" not in caplog.text


def test_the_callback_of_an_embedder_covers_all_calls_unless_overridden():
    reports = RecordingCallback()
    embedder = fake_embedder(FakeServer(), progress=reports)
    embedder.embed(["one"])
    embedder.embed_query("two")
    assert [p.texts for p in reports if p.finished] == [1, 1]
    embedder.embed(["three"], progress=False)
    assert len([p for p in reports if p.finished]) == 2


def test_a_bar_counts_texts_and_ends_at_100_percent(tmp_path, monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr("sys.stderr", shown)
    server = FakeServer(usd_per_million=PRICE)
    embedder = fake_embedder(server, cache=tmp_path, progress=True)
    embedder.embed(texts_of(40))
    embedder.embed(texts_of(100))
    last = shown.getvalue().rstrip().splitlines()[-1]
    assert "fake:model: 100%" in last
    assert "100/100" in last
    assert "40 from cache" in last
    assert "tokens/s" in last
    assert "$0.00012" in last


@pytest.mark.parametrize(("columns", "left_out"), [(200, 0), (120, 1), (100, 2), (80, 3)])
def test_a_narrow_terminal_shows_texts_time_and_dollars_only(tmp_path, monkeypatch, columns, left_out):
    class Terminal(io.StringIO):
        def fileno(self):
            return 2

    monkeypatch.setattr("sys.stderr", shown := Terminal())
    monkeypatch.setattr("os.get_terminal_size", lambda number: os.terminal_size((columns, 24)))
    bar = _Bar("openai:text-embedding-3-small")
    bar.show(Progress(100_000, 0, 0, 0, 0, Decimal(0), 0.0))
    bar._bar.start_t -= 30
    for done in (50_000, 100_000):
        bar.show(Progress(100_000, done, 40_000, 0, 600_000, Decimal("0.12345"), 30.0))
    bar.close()
    lines = [line for line in shown.getvalue().replace("\n", "\r").split("\r") if line.strip()]
    assert lines[0].startswith("openai:text-embedding-3-small: ")
    for line in (line.rstrip() for line in lines if "000/100000" in line):
        assert len(line) < columns
        assert len(line.split("|")[1]) >= 5
        assert line.endswith("]")
        assert re.search(r"100000 \[\d\d:\d\d<\d\d:\d\d, .* texts/s, \$0\.12", line)
        rest = ["20,000 tokens/s", "40,000 from cache", "openai:text-embedding-3-small: "]
        assert [part in line for part in rest] == [place >= left_out for place in range(3)], line


def test_a_single_query_has_no_bar_and_a_bar_leaves_no_thread(monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr("sys.stderr", shown)
    before = set(threading.enumerate())
    server = FakeServer()
    embedder = fake_embedder(server, progress=True)
    embedder.embed_query("text")
    assert shown.getvalue() == ""
    embedder.embed(texts_of(2))
    assert "100%" in shown.getvalue()
    new = set(threading.enumerate()) - before
    assert not [thread for thread in new if "monitor" in type(thread).__name__.lower()]


def test_bars_of_concurrent_calls_all_reach_their_end(monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr("sys.stderr", shown)
    embedder = fake_embedder(FakeServer(), progress=True)

    async def run():
        await asyncio.gather(*(embedder.aembed([f"{i} {n}" for n in range(50)]) for i in range(4)))

    asyncio.run(run())
    assert shown.getvalue().count("100%") >= 4


def test_an_invalid_progress_value_is_refused():
    def check(value):
        with pytest.raises(ConfigurationError, match="progress: must be"):
            fake_embedder(FakeServer(), progress=value)
        with pytest.raises(ConfigurationError, match="progress: must be"):
            fake_embedder(FakeServer()).embed(["text"], progress=value)

    check_rows(["yes", 1, 0.5, [print]], check)


def test_an_async_callback_and_a_bar_without_tqdm_are_refused(monkeypatch):
    async def callback(progress): ...

    with pytest.raises(ConfigurationError, match="progress: must be a sync callable"):
        fake_embedder(FakeServer(), progress=callback)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"rag-embedkit\[progress\]"):
        fake_embedder(FakeServer(), progress=True)


def test_a_pickled_embedder_keeps_the_bar_and_drops_the_callback():
    server = FakeServer()
    assert pickle.loads(pickle.dumps(fake_embedder(server, progress=True))).settings.progress is True
    assert pickle.loads(pickle.dumps(fake_embedder(server, progress=lambda p: None))).settings.progress is None


def test_rates_are_defined_before_anything_is_done():
    nothing = Progress(10, 0, 0, 0, 0, Decimal(0), 0.0)
    assert (nothing.tokens_per_second, nothing.seconds_left) == (0.0, None)
    half = Progress(10, 6, 2, 0, 400, None, 2.0)
    assert (half.tokens_per_second, half.seconds_left) == (200.0, 2.0)


def test_progress_is_zero_before_the_engine_accepts_the_call():
    reports, gate = RecordingCallback(), threading.Event()
    server = FakeServer()
    fake_embedder(server).embed(["warm up"])
    engine().inspect_accounts(lambda accounts: gate.wait(20))  # keep the engine busy

    def callback(progress):
        reports(progress)
        if len(reports) == 3:
            gate.set()

    fake_embedder(server).embed(texts_of(20), progress=callback)
    assert [progress.done for progress in reports[:3]] == [0, 0, 0]


def test_a_terminal_that_fails_when_a_bar_closes_affects_no_call(monkeypatch):
    class Terminal(io.StringIO):
        def write(self, text):
            if "100%" in text:
                raise OSError("gone")
            return super().write(text)

    monkeypatch.setattr("sys.stderr", shown := Terminal())
    assert fake_embedder(FakeServer()).embed(texts_of(50), progress=True).usage.sent == 50
    assert "fake:model" in shown.getvalue()
    # The lock that all bars of the process share is free again.
    free = threading.Event()

    def draw():
        with tqdm.get_lock():
            free.set()

    threading.Thread(target=draw, daemon=True).start()
    assert free.wait(5)


def test_the_speed_of_a_bar_counts_sent_texts_only(tmp_path, monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr("sys.stderr", shown)
    server = FakeServer()
    embedder = fake_embedder(server, cache=tmp_path, progress=True)
    embedder.embed(texts_of(2000), progress=False)
    server.fault_for = lambda texts: time.sleep(0.5)
    embedder.embed(texts_of(2002))
    last = shown.getvalue().rstrip().splitlines()[-1]
    assert "2002/2002" in last
    assert float(re.search(r"([\d.]+) texts/s|([\d.]+)s/ texts", last)[0].split()[0].rstrip("s/")) < 10, last
