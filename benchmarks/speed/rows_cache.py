"""Rows of the cache: a warm process, single queries, bytes on disk."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from benchmarks.speed.bench import NO_LATENCY, Bench, Group, Measure
from benchmarks.speed.setting import Setting, folder_mb
from benchmarks.speed.table import Results, Row, bounded, compared, median, shown

MAX_MB = 150.0
# Microseconds where a plain read of SQLite takes BY_HAND_US; they are scaled by what it takes here.
BY_HAND_US = 5.0
QUERY_US = {
    "core memory": 9.0,
    "core disk": 25.0,
    "langchain memory": 25.0,
    "core memory async": 15.0,
    "core disk async": 80.0,
}
BASE_CLASS_PLUS_US = 15.0
IN_RUN_PLUS_US = 5.0
QUERIES = 2000


def _folder(bench: Bench, name: str) -> str:
    folder = bench.folder / name
    folder.mkdir(exist_ok=True)
    return str(folder)


def _filler(*settings: Setting) -> Callable[[Bench], None]:
    """Return a function that fills the empty folders, with a server without latency."""

    def fill(bench: Bench) -> None:
        for setting in settings:
            if not any(Path(str(setting.folder)).iterdir()):
                result = bench.run(Measure(setting, NO_LATENCY | {"prepare": ["tokens"]}))
                assert "failed" not in result, result

    return fill


def _fillings(bench: Bench) -> tuple[Setting, ...]:
    return (
        bench.setting("core", folder=_folder(bench, "ours")),
        bench.setting("hand-sqlite", folder=_folder(bench, "by-hand"), task="fill_by_hand"),
        bench.setting("peer-cache-backed", folder=_folder(bench, "cache-backed")),
    )


def warm(bench: Bench) -> Group:
    """A new process in which every text is in the cache; imports and opening are counted."""
    fillings = _fillings(bench)

    def measure(client: str, folder: str, *, once: bool = False) -> Measure:
        return Measure(bench.setting(client, task="warm", folder=_folder(bench, folder)), once=once)

    measures = {
        **{client: measure(client, "by-hand") for client in ("hand-sqlite", "hand-sqlite-lists")},
        **{client: measure(client, "ours") for client in ("core", "core-lists", "langchain", "llamaindex")},
        "peer-cache-backed": measure("peer-cache-backed", "cache-backed", once=True),
    }

    def rows(results: Results) -> list[Row]:
        return [*_warm_rows(results), _size(str(fillings[0].folder), str(fillings[2].folder))]

    return Group(measures, rows, _filler(*fillings))


def _warm_rows(results: Results) -> list[Row]:
    def row(what: str, ours: str, hand: str, at_most: float | None = None) -> Row:
        peers = () if ours == "core" else ("peer-cache-backed",)
        return compared(what, results, "wall", "s", ours=ours, hand=hand, peers=peers, at_most=at_most)

    return [
        row("warm, new process, numpy", "core", "hand-sqlite", 1.15),
        row("warm, new process, lists", "core-lists", "hand-sqlite-lists", 0.7),
        # No goal: most of the difference to the row above is the import of the framework's own class.
        row("warm, new process, lists, LangChain's import and all", "langchain", "hand-sqlite-lists"),
        row("warm, new process, lists, LlamaIndex's import and all", "llamaindex", "hand-sqlite-lists"),
    ]


def _size(ours: str, theirs: str) -> Row:
    mine, peer = folder_mb(ours), folder_mb(theirs)
    return Row(
        what="cache of 20,000 texts on disk, closed",
        ours=shown(mine, "MB"),
        peer=f"{shown(peer, 'MB')} (cache-backed)",
        ratio=f"peer {peer / mine:.1f}x",
        figure=f"<= {MAX_MB:g} MB",
        met=mine <= MAX_MB,
    )


def query(bench: Bench) -> Group:
    """A query that is in the cache: again and again, or many once each among 20,000 vectors."""
    ours, by_hand, cache_backed = _fillings(bench)

    def measure(client: str, folder: str | None, *, asynchronous: bool = False, **options: bool) -> Measure:
        setting = bench.setting(client, task="queries", n_texts=QUERIES, folder=folder, options=options)
        return Measure(replace(setting, asynchronous=asynchronous))

    measures = {
        "hand": measure("hand-sqlite", by_hand.folder, same=False),
        "peer-cache-backed": measure("peer-cache-backed", cache_backed.folder, same=False),
        "peer-llamaindex-base": measure("peer-llamaindex-base", None, same=True),
        **{
            f"{client} {where}": measure(client, ours.folder, same=where == "memory")
            for client in ("core", "langchain", "llamaindex")
            for where in ("memory", "disk")
        },
        **{
            f"core {where} async": measure("core", ours.folder, same=where == "memory", asynchronous=True)
            for where in ("memory", "disk")
        },
        "langchain memory in a run": measure("langchain", ours.folder, same=True, in_run=True),
    }
    return Group(measures, _query_rows, _filler(ours, by_hand, cache_backed))


def _query_rows(results: Results) -> list[Row]:
    base, outside = median(results, "peer-llamaindex-base", "p50_us"), median(results, "langchain memory", "p50_us")
    scale = (median(results, "hand", "p50_us") or BY_HAND_US) / BY_HAND_US
    limits = {name: scale * at_most for name, at_most in QUERY_US.items()}
    if base is not None:
        limits["llamaindex memory"] = base + scale * BASE_CLASS_PLUS_US
    if outside is not None:
        limits["langchain memory in a run"] = outside + scale * IN_RUN_PLUS_US
    rows = []
    for name in (*QUERY_US, "langchain disk", "langchain memory in a run", "llamaindex memory"):
        peers = () if name.startswith("core") else ("peer-cache-backed",)
        row = compared(f"cached query p50, {name}", results, "p50_us", "us", ours=name, hand="hand", peers=peers)
        rows.append(bounded(row, median(results, name, "p50_us"), limits.get(name), "us"))
    alone = Row(what="LlamaIndex's base class alone, p50", ours="", peer=shown(base, "us"))
    return [*rows, alone]


GROUPS = {"warm": warm, "query": query}
