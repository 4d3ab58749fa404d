"""Streams: rows in order, errors at their positions, and a bounded lookahead in the source."""

import asyncio
import itertools
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.streams import (
    CHUNK_TEXTS,
    LOOKAHEAD,
    CountingSource,
    are_vectors_of,
    async_source,
    collect_rows,
    each_method,
    stream_embedder,
)
from support.waiting import wait_until_idle

from embedkit_core import BadTextError, ConfigurationError, Embedder, EmbedKitError, InputError, PartialFailureError
from embedkit_core.calls.call import Call
from embedkit_core.engine.runtime.process import engine
from embedkit_core.testing import FakeServer

TEXTS = [f"text {i}" for i in range(3 * LOOKAHEAD)]


@each_method
def test_a_stream_yields_the_vector_of_each_text_in_order(method):
    rows, error = collect_rows(stream_embedder(FakeServer()), iter(TEXTS), method)
    assert error is None
    assert are_vectors_of(rows, TEXTS)
    assert {(row.dtype, row.shape) for row in rows} == {(np.dtype(np.float32), (8,))}


@each_method
def test_each_row_is_a_separate_array(method, tmp_path):
    embedder = stream_embedder(FakeServer(), cache=tmp_path)
    for _ in ("sent", "from the cache"):
        rows, _ = collect_rows(embedder, TEXTS[:300], method)
        assert are_vectors_of(rows, TEXTS[:300])
        assert all(row.base is None and row.flags.owndata and row.flags.writeable for row in rows)
        for row in rows:
            row[:] = 0


@each_method
def test_an_empty_source_yields_nothing(method):
    server = FakeServer()
    assert collect_rows(stream_embedder(server), iter([]), method) == ([], None)
    assert not server.received


@each_method
def test_a_stream_of_queries_yields_query_vectors(method):
    rows, _ = collect_rows(stream_embedder(FakeServer()), TEXTS[:300], method, input_type="query")
    assert are_vectors_of(rows, TEXTS[:300], role="query")


@each_method
def test_a_repeated_text_is_sent_once(method, tmp_path):
    server = FakeServer()
    embedder = stream_embedder(server, cache=tmp_path)
    texts = list(itertools.islice(itertools.cycle(TEXTS[:300]), 2000))
    rows, _ = collect_rows(embedder, texts, method)
    assert are_vectors_of(rows, texts)
    assert server.billed == dict.fromkeys(TEXTS[:300], 1)
    usage = embedder.usage
    assert usage.texts == 2000
    assert usage.sent == 300
    assert usage.texts == usage.sent + usage.coalesced + usage.duplicates + usage.cache_hits


def test_no_more_texts_are_pulled_than_the_lookahead():
    source = CountingSource(TEXTS)
    for before, _ in enumerate(stream_embedder(FakeServer()).embed_iter(source)):
        assert source.pulled - before <= LOOKAHEAD


async def test_an_async_source_is_pulled_no_further_than_the_lookahead(tmp_path):
    embedder = stream_embedder(FakeServer(), cache=tmp_path)
    embedder.embed(TEXTS)
    source = CountingSource(TEXTS)
    rows = embedder.aembed_iter(source)
    for before in range(2 * CHUNK_TEXTS):
        await anext(rows)
        assert source.pulled - before <= LOOKAHEAD
    while source.pulled < CHUNK_TEXTS + LOOKAHEAD:  # noqa: ASYNC110 - a source has no event to wait for
        await asyncio.sleep(0)
    for _ in range(1000):
        await asyncio.sleep(0)
    assert source.pulled == CHUNK_TEXTS + LOOKAHEAD
    await rows.aclose()


@pytest.mark.parametrize("slots", [1, 4])
def test_all_slots_are_busy_before_the_first_row_is_yielded(slots):
    server = FakeServer()
    embedder = stream_embedder(server, max_concurrency=slots)
    embedder.embed(["warm up"])
    server.hold()
    source, far = CountingSource(TEXTS[:-1]), threading.Event()

    def texts():
        for text in source:
            if source.pulled >= 2 * slots * 256:
                far.set()
            yield text

    thread = threading.Thread(target=lambda: next(embedder.embed_iter(texts())))
    thread.start()
    assert far.wait(20)
    server.wait_for_requests(1 + slots)
    assert server.in_flight == slots
    server.release()
    thread.join()


def test_a_long_stream_sends_full_requests():
    server = FakeServer()
    texts = [f"text {i}" for i in range(20_000)]
    collect_rows(stream_embedder(server, max_concurrency=8), texts, "sync")
    assert len(server.received) < 1.5 * 20_000 / 256


# Errors


@each_method
@pytest.mark.parametrize("place", [0, 5, CHUNK_TEXTS, CHUNK_TEXTS + 100])
def test_an_invalid_text_is_named_after_the_rows_before_it(method, place):
    server = FakeServer()
    source = CountingSource([*TEXTS[:place], "  ", *TEXTS[place:]])
    rows, error = collect_rows(stream_embedder(server), source, method)
    assert are_vectors_of(rows, TEXTS[:place])
    assert isinstance(error, InputError)
    assert error.indices == (place,)
    assert f"position {place} cannot be embedded: empty or whitespace only" in str(error)
    assert source.pulled <= place + LOOKAHEAD
    if method == "sync":
        assert source.pulled <= place + CHUNK_TEXTS


@each_method
def test_a_refused_text_is_named_and_the_rows_before_it_are_not_paid_again(method, tmp_path):
    server = FakeServer()
    server.rejected_texts = {TEXTS[700]}
    embedder = stream_embedder(server, cache=tmp_path)
    rows, error = collect_rows(embedder, iter(TEXTS), method)
    assert are_vectors_of(rows, TEXTS[:700])
    assert isinstance(error, PartialFailureError)
    assert list(error.failed) == [700]
    assert isinstance(error.failed[700], BadTextError)
    assert error.succeeded == range(700)
    assert len(error.result.vectors) == 0
    assert error.usage.texts >= 700
    assert "The text at position 700 failed" in str(error)

    server.rejected_texts.clear()
    again = stream_embedder(server, cache=tmp_path)
    rows, error = collect_rows(again, iter(TEXTS), method)
    assert are_vectors_of(rows, TEXTS)
    assert error is None
    assert set(server.billed.values()) == {1}
    assert again.usage.cache_hits >= 700


@each_method
def test_a_refusal_of_the_first_text_is_the_error_of_the_provider(method):
    server = FakeServer()
    server.rejected_texts = {TEXTS[0]}
    rows, error = collect_rows(stream_embedder(server), TEXTS[:10], method)
    assert rows == []
    assert type(error) is BadTextError


@each_method
def test_with_on_error_return_a_failed_row_is_nan_and_the_stream_continues(method):
    server = FakeServer()
    server.rejected_texts = {TEXTS[3], TEXTS[700]}
    rows, error = collect_rows(stream_embedder(server, on_error="return"), TEXTS[:1000], method)
    assert error is None
    assert [place for place, row in enumerate(rows) if np.isnan(row).all()] == [3, 700]
    good = [place for place in range(1000) if place not in (3, 700)]
    assert are_vectors_of([rows[place] for place in good], [TEXTS[place] for place in good])


@each_method
@pytest.mark.parametrize("place", [0, 3, CHUNK_TEXTS, 700])
def test_an_error_of_the_source_is_raised_after_the_rows_of_its_texts(method, place):
    own = LookupError("the source's own")

    def source():
        yield from TEXTS[:place]
        raise own

    rows, error = collect_rows(stream_embedder(FakeServer()), source(), method)
    assert are_vectors_of(rows, TEXTS[:place])
    assert error is own


async def test_a_source_that_raises_cancelled_error_ends_the_stream():
    async def source():
        yield "one"
        raise asyncio.CancelledError

    rows = stream_embedder(FakeServer()).aembed_iter(source())
    assert are_vectors_of([await anext(rows)], ["one"])
    with pytest.raises(asyncio.CancelledError):
        await anext(rows)


def test_a_failure_withdraws_pending_texts_at_once():
    server = FakeServer()
    server.rejected_texts = {"text 0"}
    embedder = stream_embedder(server, max_concurrency=1)
    with pytest.raises(BadTextError):
        list(embedder.embed_iter(itertools.chain(["text 0"], (f"text {i}" for i in range(1, 100_000)))))
    embedder.embed(["the next one"])
    assert not engine().account(embedder.provider).scheduler.registry.items
    assert len(server.billed) <= LOOKAHEAD + 1


@pytest.mark.parametrize("method", ["embed_iter", "aembed_iter"])
def test_an_invalid_source_is_refused_at_the_call(method):
    stream = getattr(stream_embedder(FakeServer()), method)
    wrong = [("one", "a single str"), (b"one", "a single bytes"), ({"a": 1}, "got dict"), ({"a"}, "got set")]
    for texts, message in wrong:
        with pytest.raises(InputError, match=message):
            stream(texts)
    with pytest.raises(InputError, match="got int"):
        stream(7)
    with pytest.raises(ConfigurationError, match="input_type"):
        stream(["one"], input_type="querry")


def test_an_async_source_is_refused_by_the_sync_method():
    with pytest.raises(InputError, match=r"Use aembed_iter\(\)"):
        stream_embedder(FakeServer()).embed_iter(async_source(["one"]))


def test_a_stream_on_the_engine_thread_names_its_async_counterpart():
    embedder = stream_embedder(FakeServer())
    embedder.embed(["start the engine"])
    found: list[str] = []
    done = threading.Event()
    begun = embedder.embed_iter(["one"])

    def call() -> None:
        for start in (lambda: embedder.embed_iter(["one"]), lambda: next(begun)):
            try:
                start()
            except EmbedKitError as error:
                found.append(str(error))
        done.set()

    engine()._loop.call_soon_threadsafe(call)
    assert done.wait(10)
    assert ["aembed_iter()" in message for message in found] == [True, True]


# Slow sources


def _advance_clock_by_a_second_per_call(monkeypatch):
    now = itertools.count()
    monkeypatch.setattr("embedkit_core.calls.stream.time", SimpleNamespace(monotonic=lambda: float(next(now))))


def test_finished_rows_are_yielded_before_a_slow_source_is_pulled_again(tmp_path, monkeypatch):
    embedder = stream_embedder(FakeServer(), cache=tmp_path)
    embedder.embed(TEXTS[:300])
    _advance_clock_by_a_second_per_call(monkeypatch)
    source = CountingSource(TEXTS[:300])
    for rows, _ in enumerate(embedder.embed_iter(source), 1):
        assert source.pulled == rows


def test_all_finished_rows_are_yielded_before_a_slow_source_is_pulled_again(monkeypatch):
    embedder = stream_embedder(server := FakeServer())
    embedder.embed(["warm up"])
    server.hold()
    _advance_clock_by_a_second_per_call(monkeypatch)

    def texts():
        yield from TEXTS[:50]
        server.release()
        wait_until_idle(embedder)
        yield from TEXTS[50:60]

    source = CountingSource(texts())
    for _ in itertools.islice(embedder.embed_iter(source), 50):
        assert source.pulled == 51


async def test_a_slow_async_source_delays_no_row():
    """Each text becomes available when the row before it has arrived; otherwise the test would not end."""
    arrived = asyncio.Semaphore(3)

    async def source():
        for text in TEXTS[:50]:
            await arrived.acquire()
            yield text

    rows = []
    async for row in stream_embedder(FakeServer()).aembed_iter(source()):
        rows.append(row)
        arrived.release()
    assert are_vectors_of(rows, TEXTS[:50])


async def test_many_texts_are_prepared_and_assembled_outside_the_event_loop(monkeypatch):
    threads = set()

    def noting(step):
        def noted(call):
            threads.add(threading.current_thread().name)
            return step(call)

        return noted

    for step in (Call.prepare, Call.finish):
        monkeypatch.setattr(Call, step.__name__, noting(step))
    turns = 0

    async def count():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    rows = [row async for row in stream_embedder(FakeServer()).aembed_iter(TEXTS[: 2 * CHUNK_TEXTS])]
    counting.cancel()
    assert are_vectors_of(rows, TEXTS[: 2 * CHUNK_TEXTS])
    assert all(name.startswith("embedkit-work") for name in threads)
    assert turns > 2 * CHUNK_TEXTS / 64


def test_positions_of_truncated_texts_are_counted_from_the_start(caplog):
    server = FakeServer(max_words=5)
    texts = [*TEXTS[:400], "far too long a text for this model", "x"]
    rows, error = collect_rows(stream_embedder(server), texts, "sync")
    assert error is None
    assert len(rows) == 402
    assert "(position 400)" in caplog.text


# All together

WORDS = st.sampled_from([*(f"word {i}" for i in range(20)), "bad", "poison", "worse"])


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.one_of(WORDS, st.integers(0, 10**6).map(str), st.just(" ")), max_size=150),
    slots=st.integers(1, 3),
    per_request=st.integers(1, 9),
    on_error=st.sampled_from(["raise", "return"]),
    method=st.sampled_from(["sync", "async", "async source"]),
)
def test_a_stream_equals_embed_up_to_the_first_error(texts, slots, per_request, on_error, method):
    server = FakeServer()
    server.rejected_texts = {"bad", "poison", "worse"}
    embedder = Embedder(
        "fake:model",
        base_url=server.url,
        cache=False,
        max_concurrency=slots,
        max_batch_texts=per_request,
        on_error=on_error,
    )
    stops = {" "} | (server.rejected_texts if on_error == "raise" else set())
    end = next((place for place, text in enumerate(texts) if text in stops), None)
    rows, error = collect_rows(embedder, texts, method)
    before = texts[:end]
    good = [place for place, text in enumerate(before) if text not in server.rejected_texts]
    assert len(rows) == len(before)
    assert are_vectors_of([rows[place] for place in good], [before[place] for place in good])
    assert all(np.isnan(rows[place]).all() for place in set(range(len(before))) - set(good))
    if end is None:
        assert error is None
    elif texts[end] == " ":
        assert isinstance(error, InputError)
        assert error.indices == (end,)
    elif end:
        assert isinstance(error, PartialFailureError)
        assert list(error.failed) == [end]
    else:
        assert type(error) is BadTextError
