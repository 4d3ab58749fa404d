"""One measurement in its own process: reads a `Setting` as JSON, prints its result as one line of JSON."""

import asyncio
import importlib
import json
import math
import random
import resource
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from benchmarks.speed import by_hand, ours, peers
from benchmarks.speed.control import stats
from benchmarks.speed.corpus import DIMENSIONS, make_queries, make_texts, vector_of
from benchmarks.speed.setting import KEY, Methods, Rows, Setting, folder_mb

CLIENTS = {**ours.CLIENTS, **by_hand.CLIENTS, **peers.CLIENTS}
SAMPLE = 200  # rows that are compared with the expected vectors
CHECK_INTERVAL = 20  # queries; one answer of each interval is compared
Result = dict[str, Any]


def check(rows: Rows, texts: Sequence[str]) -> None:
    """Fail if a row is not finite or not the vector of its text."""
    import numpy as np

    assert len(rows) == len(texts), f"{len(rows)} rows for {len(texts)} texts"
    sums = rows.sum(axis=1) if isinstance(rows, np.ndarray) else map(sum, rows)
    assert all(map(math.isfinite, sums)), "a row is not finite"
    for position in random.Random(0).sample(range(len(texts)), min(SAMPLE, len(texts))):
        row = np.asarray(rows[position], np.float64)
        assert row.shape == (DIMENSIONS,), f"row {position} has the wrong width"
        assert np.abs(row - vector_of(texts[position])).max() < 1e-6, f"row {position} is another text's"


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Clock:
    """Wall and CPU seconds of a block, and the process's peak memory at its end."""

    def __enter__(self) -> "Clock":
        self._wall, self._cpu = time.perf_counter(), _cpu_seconds()
        return self

    def __exit__(self, *exc: object) -> None:
        self.result = {
            "wall": time.perf_counter() - self._wall,
            "cpu": _cpu_seconds() - self._cpu,
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
        }


def _before_the_clock(setting: Setting) -> None:
    client = CLIENTS[setting.client]
    for name in client.imports:
        importlib.import_module(name)
    if client.prepare:
        client.prepare(setting)


def _make(setting: Setting) -> Methods:
    return CLIENTS[setting.client].make(setting)


def _texts(setting: Setting) -> list[str]:
    distinct = make_texts(setting.options.get("distinct", setting.n_texts))
    return random.Random(1).sample(distinct * (setting.n_texts // len(distinct)), setting.n_texts)


def bulk(setting: Setting) -> Result:
    """Embed many texts. Imports are not counted, the client's constructor is."""
    texts = _texts(setting)
    _before_the_clock(setting)
    rows, result = asyncio.run(_abulk(setting, texts)) if setting.asynchronous else _bulk(setting, texts)
    check(rows, texts)
    return result


def _bulk(setting: Setting, texts: list[str]) -> tuple[Rows, Result]:
    methods = None
    if setting.warm_up:
        methods = _make(setting)
        assert methods.embed is not None
        methods.embed(["warm up"])
    with Clock() as clock:
        methods = methods or _make(setting)
        assert methods.embed is not None
        rows = methods.embed(texts)
    if setting.folder is not None:
        clock.result["open_mb"] = folder_mb(setting.folder)
    methods.close()
    return rows, clock.result


async def _abulk(setting: Setting, texts: list[str]) -> tuple[Rows, Result]:
    methods = None
    if setting.warm_up:
        methods = _make(setting)
        assert methods.aembed is not None
        await methods.aembed(["warm up"])
    with Clock() as clock:
        methods = methods or _make(setting)
        assert methods.aembed is not None
        rows = await methods.aembed(texts)
    methods.close()
    return rows, clock.result


def warm(setting: Setting) -> Result:
    """Embed texts that are all cached; imports and the opening of the cache are counted."""
    texts = _texts(setting)
    with Clock() as clock:
        methods = _make(setting)
        assert methods.embed is not None
        rows = methods.embed(texts)
    check(rows, texts)
    return clock.result


def fill_by_hand(setting: Setting) -> Result:
    """Fill the plain SQLite database with the corpus."""
    import numpy as np

    texts = make_texts(setting.n_texts)
    by_hand.fill_sqlite(setting, texts, np.array([vector_of(text) for text in texts]))
    return {}


def queries(setting: Setting) -> Result:
    """Embed cached queries in sequence: one query repeatedly, or many once each; with `in_run`, in a LangChain run."""
    _before_the_clock(setting)
    methods = _make(setting)
    texts = random.Random(2).sample(make_texts(), setting.n_texts)
    asked = [texts[0]] * len(texts) if setting.options["same"] else texts
    if setting.asynchronous:
        taken, kept = asyncio.run(_aqueries(methods, asked))
    elif setting.options.get("in_run"):
        from langchain_core.runnables import RunnableLambda

        taken, kept = RunnableLambda(lambda given: _queries(methods, given)).invoke(asked)
    else:
        taken, kept = _queries(methods, asked)
    if setting.client != "peer-llamaindex-base":
        check(list(kept.values()), [asked[number] for number in kept])
    return {"p50_us": statistics.median(taken) * 1e6}


def _queries(methods: Methods, asked: list[str]) -> tuple[list[float], dict[int, Any]]:
    """Return the seconds of each query, and some of the answers by their number."""
    query, taken, kept = methods.query, list[float](), dict[int, Any]()
    assert query is not None
    for number, text in enumerate(asked):
        began = time.perf_counter()
        answer = query(text)
        taken.append(time.perf_counter() - began)
        if number % CHECK_INTERVAL == 0:  # keeping all would change the measured memory
            kept[number] = answer
    return taken, kept


async def _aqueries(methods: Methods, asked: list[str]) -> tuple[list[float], dict[int, Any]]:
    """Return what `_queries` returns, for awaited queries."""
    query, taken, kept = methods.aquery, list[float](), dict[int, Any]()
    assert query is not None
    for number, text in enumerate(asked):
        began = time.perf_counter()
        answer = await query(text)
        taken.append(time.perf_counter() - began)
        if number % CHECK_INTERVAL == 0:
            kept[number] = answer
    return taken, kept


def first(setting: Setting) -> Result:
    """Embed one text in a new process. The server notes when its request arrives, by the same clock."""
    began = time.monotonic()
    methods = _make(setting)
    assert methods.embed is not None
    rows = methods.embed(["first"])
    assert len(rows) == 1
    return {"began": began}


def sdk_import(setting: Setting) -> Result:  # noqa: ARG001 - as all tasks
    """Import the SDK in a new process and create its client, as the reference of `first`."""
    began = time.monotonic()
    import openai

    openai.AsyncOpenAI(api_key=KEY)
    return {"wall": time.monotonic() - began}


async def _timed(query: Callable[[str], Awaitable[Any]], text: str, due: float | None = None) -> float:
    """Embed a query; return the seconds since it was due, which includes delays of the event loop."""
    began = time.perf_counter() if due is None else due
    await query(text)
    return time.perf_counter() - began


async def _lone(query: Callable[[str], Awaitable[Any]], texts: Sequence[str]) -> list[float]:
    return [await _timed(query, text) for text in texts]


def crowd(setting: Setting) -> Result:
    """Embed many queries at once, equal or different; count requests and request times."""
    _before_the_clock(setting)
    return asyncio.run(_crowd(setting))


async def _crowd(setting: Setting) -> Result:
    methods = _make(setting)
    assert methods.aquery is not None
    texts = make_queries(setting.n_texts + 11)
    await methods.aquery(texts.pop())  # opens the client
    lone = statistics.median(await _lone(methods.aquery, [texts.pop() for _ in range(10)]))
    asked = [texts[0]] * len(texts) if setting.options["same"] else texts
    before = stats(setting.port)["requests"]
    began = time.perf_counter()
    answers = await asyncio.gather(*map(methods.aquery, asked))
    wall = time.perf_counter() - began
    check(answers, asked)
    return {"wall": wall, "request_times": wall / lone, "crowd_requests": stats(setting.port)["requests"] - before}


def mixed(setting: Setting) -> Result:
    """Embed many texts, with or without queries at fixed times."""
    _before_the_clock(setting)
    return asyncio.run(_mixed(setting))


async def _mixed(setting: Setting) -> Result:
    methods = _make(setting)
    query, aembed = methods.aquery, methods.aembed
    assert query is not None
    assert aembed is not None
    texts, asked = make_texts(setting.n_texts), make_queries(1000)
    await query(asked.pop())
    lone = await _lone(query, [asked.pop() for _ in range(20)])
    began = time.perf_counter()
    ingest = asyncio.create_task(_ended(aembed(texts)))
    running = []
    while setting.options["per_second"] and not ingest.done():
        running.append(asyncio.create_task(_timed(query, asked.pop(), time.perf_counter())))
        due = began + len(running) / setting.options["per_second"]
        await asyncio.wait([ingest], timeout=max(0.0, due - time.perf_counter()))
    rows, ended = await ingest
    taken = await asyncio.gather(*running)
    check(rows, texts)
    return {"wall": ended - began, "lone": lone, "queries": taken}


async def _ended(work: Awaitable[Rows]) -> tuple[Rows, float]:
    return await work, time.perf_counter()


TASKS = {task.__name__: task for task in (bulk, warm, fill_by_hand, queries, crowd, mixed, first, sdk_import)}


def main() -> None:
    """Run the task that the argument describes."""
    setting = Setting(**json.loads(sys.argv[1]))
    print(json.dumps(TASKS[setting.task](setting)))


if __name__ == "__main__":
    main()
