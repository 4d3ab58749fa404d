"""Measure one row on one source tree, in a process of its own.

`python -P worker.py <Job as JSON>` prints `{"value": <number>}`; PYTHONPATH must point to the tree. One version of this
file measures every commit, so it uses nothing but the public API and the interfaces of the two frameworks. It imports
little at the top, since imports are part of the warm rows.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

MODEL = "text-embedding-3-small"
CORPUS_TEXTS = 20_000
CALLS = 200  # queries timed together: few milliseconds, so that some blocks are not interrupted by other processes
BLOCKS = 60
SAMPLE_EVERY = 500  # texts; the expected vector of each of these is in the corpus folder
PACKAGES = ("embedkit_core", "langchain_embedkit", "llamaindex_embedkit")
NO_LATENCY = {"latency": 0.0, "latency_per_token": 0.0}

Embed = Callable[[Sequence[str]], Any]


class Job(NamedTuple):
    """What to measure, and where everything is."""

    row: str
    tree: str
    base_url: str
    corpus: str  # folder with texts.json and vectors.npy
    cache: str  # folder of a cache that holds the whole corpus as documents and as queries
    scratch: str  # an empty folder

    def texts(self, start: int = 0, count: int = CORPUS_TEXTS) -> list[str]:
        """Return `count` texts of the corpus; all differ."""
        texts: list[str] = json.loads(Path(self.corpus, "texts.json").read_text())
        return texts[start : start + count]

    def arguments(self, cache: str | bool = False, **changes: Any) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {"model": MODEL, "base_url": self.base_url, "api_key": "no-key-needed", "cache": cache, **changes}

    def embedder(self, cache: str | bool = False, **changes: Any) -> Any:
        """Return an embedder of the core."""
        from embedkit_core import Embedder

        return Embedder(**self.arguments(cache, **changes))

    def langchain(self, cache: str | bool = False, **changes: Any) -> Any:
        """Return LangChain's class."""
        from langchain_embedkit import EmbedKitEmbeddings

        return EmbedKitEmbeddings(**self.arguments(cache, **changes))

    def llamaindex(self, cache: str | bool = False, **changes: Any) -> Any:
        """Return LlamaIndex's class."""
        from llamaindex_embedkit import EmbedKitEmbedding

        return EmbedKitEmbedding(**self.arguments(cache, **changes))

    def check(self, vectors: Any, start: int = 0) -> None:
        """Stop if a sampled vector is not the vector of its text; `start` is the first text, one that is sampled."""
        import numpy as np

        assert start % SAMPLE_EVERY == 0

        expected = np.load(Path(self.corpus, "vectors.npy"))
        for number in range(start, start + len(vectors), SAMPLE_EVERY):
            difference = np.asarray(vectors[number - start], np.float64) - expected[number // SAMPLE_EVERY]
            assert np.abs(difference).max() < 1e-6, f"wrong vector for text {number}"


def _core(job: Job, **arguments: Any) -> Embed:
    embed: Embed = job.embedder(**arguments).embed_documents
    return embed


def _stream(job: Job, **arguments: Any) -> Embed:
    embedder = job.embedder(**arguments)
    return lambda texts: list(embedder.embed_iter(texts))


def _langchain(job: Job, **arguments: Any) -> Embed:
    embed: Embed = job.langchain(**arguments).embed_documents
    return embed


def _llamaindex(job: Job, **arguments: Any) -> Embed:
    embed: Embed = job.llamaindex(**arguments).get_text_embedding_batch
    return embed


def _seconds(work: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    began = clock()
    work()
    return clock() - began


def cold(job: Job, make: Callable[..., Embed] = _core, count: int = 8000, slots: int = 16) -> float:
    """Return the seconds of embedding texts without a cache. Imports are not counted, the constructor is."""
    make(job, api_key="warm-up")(["warm up"])  # an account of its own: the measured one starts without experience
    texts = job.texts(count=count)
    began = time.perf_counter()
    vectors = make(job, max_concurrency=slots)(texts)
    taken = time.perf_counter() - began
    assert len(vectors) == count
    job.check(vectors)
    return taken


def cold_async(job: Job) -> float:
    """Return the seconds of embedding texts without a cache by `aembed`."""
    import asyncio

    _core(job, api_key="warm-up")(["warm up"])
    texts = job.texts(count=8000)

    async def run() -> float:
        began = time.perf_counter()
        result = await job.embedder(max_concurrency=16).aembed(texts)
        taken = time.perf_counter() - began
        job.check(result.vectors)
        return taken

    return asyncio.run(run())


def cpu(job: Job, make: Callable[..., Embed] = _core, *, filling: bool = False) -> float:
    """Return the CPU microseconds per text of this process: the smallest of several runs over different texts."""
    embed = make(job, cache=job.scratch if filling else False, max_concurrency=16)
    embed(["warm up"])
    texts, count, runs = job.texts(), 2500, []
    for start in range(0, 5 * count, count):
        began = time.process_time()
        vectors = embed(texts[start : start + count])
        runs.append((time.process_time() - began) / count * 1e6)
        job.check(vectors, start)
    return min(runs)


def warm(job: Job, make: Callable[..., Embed] = _core, count: int = CORPUS_TEXTS) -> float:
    """Return the seconds of reading cached texts in a new process, with the import and the opening of the cache."""
    texts = job.texts(count=count)
    began = time.perf_counter()
    vectors = make(job, cache=job.cache)(texts)
    taken = time.perf_counter() - began
    job.check(vectors)
    return taken


def first(job: Job) -> float:
    """Return the milliseconds until the first request of a process is at the server, imports included."""
    from urllib.request import urlopen

    texts = job.texts(count=1)
    began = time.monotonic()
    vectors = job.embedder().embed(texts).vectors
    with urlopen(f"{job.base_url.removesuffix('/v1')}/stats") as reply:  # the server's clock is that of this machine
        arrived: float = json.load(reply)["first_request"]
    job.check(vectors)
    return (arrived - began) * 1e3


def _query_core(job: Job) -> Any:
    return job.embedder(cache=job.cache).embed_query


def _query_langchain(job: Job) -> Any:
    return job.langchain(cache=job.cache).embed_query


def _query_llamaindex(job: Job) -> Any:
    return job.llamaindex(cache=job.cache).get_query_embedding


def query(job: Job, make: Callable[[Job], Any], *, same: bool = True, calls: int = CALLS) -> float:
    """Return the microseconds of a cached query: the smallest mean of several blocks of calls."""
    ask, texts = make(job), job.texts()
    job.check([ask(texts[0])])
    blocks = [[texts[0]] * calls] * BLOCKS if same else [texts[at : at + calls] for at in range(1, 8000, calls)]
    return min(_seconds(partial(_each, ask, block)) for block in blocks) / calls * 1e6


def _each(ask: Callable[[str], Any], texts: list[str]) -> None:
    for text in texts:
        ask(text)


def query_in_run(job: Job, calls: int = CALLS) -> float:
    """Return the microseconds of a cached LangChain query within a run, without the cost of the run itself."""
    from langchain_core.runnables import RunnableLambda

    ask, text = job.langchain(cache=job.cache).embed_query, job.texts(count=1)[0]
    job.check([ask(text)])

    def ask_often(given: str) -> float:
        return _seconds(partial(_each, ask, [given] * calls)) / calls * 1e6

    chain = RunnableLambda(ask_often) | RunnableLambda(float)
    return min(chain.invoke(text) for _ in range(BLOCKS))


def query_async(job: Job, calls: int = CALLS) -> float:
    """Return the microseconds of one awaited cached query: the smallest mean of several blocks."""
    import asyncio

    async def run() -> float:
        ask, text = job.embedder(cache=job.cache).aembed_query, job.texts(count=1)[0]
        job.check([await ask(text)])
        blocks = []
        for _ in range(BLOCKS):
            began = time.perf_counter()
            for _ in range(calls):
                await ask(text)
            blocks.append(time.perf_counter() - began)
        return min(blocks) / calls * 1e6

    return asyncio.run(run())


def gather(job: Job, at_once: int = 200, *, cached: bool = True) -> float:
    """Return the milliseconds of different queries at once: the smallest of several turns."""
    import asyncio

    async def run() -> float:
        ask, texts = job.embedder(cache=job.cache if cached else False).aembed_query, job.texts()
        await asyncio.gather(*map(ask, texts[-at_once:]))
        turns = []
        for turn in range(100 if cached else 10):
            start = 0 if cached else turn * SAMPLE_EVERY  # without a cache, new texts each time
            began = time.perf_counter()
            vectors = await asyncio.gather(*map(ask, texts[start : start + at_once]))
            turns.append(time.perf_counter() - began)
        job.check(vectors, start)
        return min(turns) * 1000

    return asyncio.run(run())


def ingest(job: Job, *, of_queries: bool, count: int = 8000, per_second: int = 40) -> float:
    """Return the seconds of an ingest during which queries arrive, or the median milliseconds of those queries."""
    import asyncio
    import statistics

    texts = job.texts()
    asked = iter(texts[count:])

    async def timed(ask: Callable[[str], Any], text: str) -> float:
        began = time.perf_counter()
        await ask(text)
        return time.perf_counter() - began

    async def run() -> float:
        embedder = job.embedder(max_concurrency=16)
        await embedder.aembed_query(next(asked))
        queries: list[asyncio.Task[float]] = []
        began = time.perf_counter()
        work = asyncio.create_task(embedder.aembed(texts[:count]))
        while not work.done():
            queries.append(asyncio.create_task(timed(embedder.aembed_query, next(asked))))
            due = began + len(queries) / per_second
            await asyncio.wait([work], timeout=max(0.0, due - time.perf_counter()))
        taken = time.perf_counter() - began
        job.check((await work).vectors)
        latencies = await asyncio.gather(*queries)
        return statistics.median(latencies) * 1000 if of_queries else taken

    return asyncio.run(run())


def import_time(job: Job, what: str) -> float:
    """Return the CPU milliseconds of an import in a new interpreter: the smallest of several."""
    import subprocess

    module, _, name = what.partition(":")
    code = f"import time; began = time.process_time(); from {module} import {name}; print(time.process_time() - began)"
    code += "; import embedkit_core; print(embedkit_core.__file__)"
    runs = []
    for _ in range(5):
        done = subprocess.run([sys.executable, "-P", "-c", code], check=True, capture_output=True, text=True)
        seconds, file = done.stdout.splitlines()
        assert Path(file).is_relative_to(job.tree), f"measured another tree: {file}"
        runs.append(float(seconds))
    return min(runs) * 1000


def prepare_cache(job: Job) -> float:
    """Fill the cache with the corpus; return the number of texts."""
    embedder = job.embedder(cache=job.cache)
    texts = job.texts()
    for input_type in ("document", "query"):
        job.check(embedder.embed(texts, input_type=input_type).vectors)
    embedder.close()
    return len(texts)


class Row(NamedTuple):
    """What is measured, and how the server behaves meanwhile."""

    what: str
    unit: str
    measure: Callable[[Job], float]
    server: dict[str, Any] = {}  # noqa: RUF012 - never changed
    processes: int = 1  # of which the smallest value counts


STORM = {"rate": 60_000.0, "burst": 60_000.0}
FLOATS = NO_LATENCY | {"float_lists": True, "prepare": ["floats"]}

ROWS = {
    "cold": Row("8,000 texts, no cache, 16 in flight", "s", cold),
    "cold-async": Row("the same by aembed", "s", cold_async),
    "cold64": Row("the same, 64 in flight", "s", partial(cold, slots=64)),
    "cold-langchain": Row("the same in LangChain, lists", "s", partial(cold, make=_langchain)),
    "cpu": Row("CPU of a text, no cache", "us", cpu, NO_LATENCY),
    "cpu-stream": Row("CPU of a text by embed_iter", "us", partial(cpu, make=_stream), NO_LATENCY),
    "cpu-langchain": Row("CPU of a text in LangChain", "us", partial(cpu, make=_langchain), NO_LATENCY),
    "cpu-llamaindex": Row("CPU of a text in LlamaIndex", "us", partial(cpu, make=_llamaindex), NO_LATENCY),
    "cpu-floats": Row("CPU of a text, replies as JSON floats", "us", cpu, FLOATS),
    "cpu-fill": Row("CPU of a text, filling a cache", "us", partial(cpu, filling=True), NO_LATENCY),
    "warm": Row("20,000 cached texts, new process", "s", warm, processes=2),
    "warm-langchain": Row("10,000 of them in LangChain", "s", partial(warm, make=_langchain, count=10_000)),
    "first": Row("first request of a process, until it is sent", "ms", first, NO_LATENCY, processes=3),
    "query": Row("cached query, memory", "us", partial(query, make=_query_core)),
    "query-disk": Row("cached query, disk", "us", partial(query, make=_query_core, same=False)),
    "query-langchain": Row("cached query in LangChain", "us", partial(query, make=_query_langchain)),
    "query-langchain-run": Row("cached query in a LangChain run", "us", query_in_run),
    "query-llamaindex": Row("cached query in LlamaIndex", "us", partial(query, make=_query_llamaindex)),
    "query-async": Row("cached async query", "us", query_async),
    "gather-cached": Row("200 cached async queries at once", "ms", gather),
    "gather": Row("200 async queries at once, no cache", "ms", partial(gather, cached=False)),
    "storm": Row("2,500 texts against a rate limit, with 429s", "s", partial(cold, count=2500), STORM),
    "ingest": Row("8,000 texts while queries arrive", "s", partial(ingest, of_queries=False)),
    "ingest-query": Row("a query during the ingest", "ms", partial(ingest, of_queries=True)),
    "import-core": Row("CPU of importing Embedder", "ms", partial(import_time, what="embedkit_core:Embedder")),
    "import-langchain": Row(
        "CPU of importing LangChain's class",
        "ms",
        partial(import_time, what="langchain_embedkit:EmbedKitEmbeddings"),
    ),
}
PREPARE = "prepare"


def assert_tree(tree: str) -> None:
    """Stop if any of the packages was imported from elsewhere, for instance from an editable installation."""
    import embedkit_core  # noqa: F401 - a row may not have needed it

    for name in PACKAGES:
        file = sys.modules[name].__file__ if name in sys.modules else None
        assert file is None or Path(file).is_relative_to(tree), f"measured another tree: {file}"


def main() -> None:
    """Measure what the argument describes."""
    job = Job(**json.loads(sys.argv[1]))
    value = prepare_cache(job) if job.row == PREPARE else ROWS[job.row].measure(job)
    assert_tree(job.tree)
    print(json.dumps({"value": value}))


if __name__ == "__main__":
    main()
