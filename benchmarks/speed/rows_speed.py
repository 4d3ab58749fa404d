"""Cold rows, CPU, memory and what filling the cache costs."""

from functools import partial

from benchmarks.speed.bench import NO_LATENCY, Bench, Group, Measure
from benchmarks.speed.corpus import TEXTS
from benchmarks.speed.table import Results, Row, bounded, compared, median, shown

OURS_LISTS = ("langchain", "llamaindex")
FRAMEWORK_FASTER = 10.0  # times faster than LangChain's own class


def _by_hand(bench: Bench, clients: tuple[str, ...], slots: int) -> dict[str, Measure]:
    return {client: Measure(bench.setting(client, slots=slots, asynchronous=True)) for client in clients}


def _sync_and_async(bench: Bench, clients: tuple[str, ...], slots: int) -> dict[str, Measure]:
    return {
        f"{client} {variant}": Measure(bench.setting(client, slots=slots, asynchronous=variant == "async"))
        for client in clients
        for variant in ("sync", "async")
    }


def cold(bench: Bench) -> Group:
    """Nothing in a cache, 16 requests in flight."""
    measures = {
        **_by_hand(bench, ("hand-pybase64", "hand"), 16),
        **_sync_and_async(bench, ("core",), 16),
        "core-lists sync": Measure(bench.setting("core-lists")),
        **_by_hand(bench, ("hand-pybase64-lists", "hand-lists"), 16),
        **_sync_and_async(bench, OURS_LISTS, 16),
        "peer-catsu async": Measure(bench.setting("peer-catsu", asynchronous=True), {"prepare": ["floats"]}),
        "peer-llamaindex async": Measure(bench.setting("peer-llamaindex", asynchronous=True)),
    }
    for variant in ("sync", "async"):
        asynchronous = variant == "async"
        setting = bench.setting("peer-langchain", asynchronous=asynchronous)
        measures[f"peer-langchain {variant}"] = Measure(setting, {"prepare": ["tokens"]}, once=True)
    measures["peer-llamaindex sync"] = Measure(bench.setting("peer-llamaindex"), once=True)
    return Group(measures, _cold_rows)


def _cold_rows(results: Results) -> list[Row]:
    row = partial(compared, results=results, field="wall", unit="s")
    rows = []
    for variant in ("sync", "async"):
        peers = [f"peer-{peer} {variant}" for peer in ("langchain", "llamaindex", "catsu")]
        what = f"cold, 16 in flight, {variant}"
        rows.append(row(f"{what}, numpy", ours=f"core {variant}", hand="hand", peers=peers, at_most=1.0))
        for client in ("core-lists", *OURS_LISTS):
            if f"{client} {variant}" in results:
                ours = f"{client} {variant}"
                name = client.removesuffix("-lists")
                rows.append(row(f"{what}, lists, {name}", ours=ours, hand="hand-lists", peers=peers, at_most=0.8))
        rows.append(_against_langchain(results, variant))
    for lists, ours in (("numpy", "core sync"), ("lists", "langchain sync")):
        hand = "hand-pybase64" + ("-lists" if lists == "lists" else "")
        rows.append(row(f"cold, 16 in flight, {lists}, by hand with pybase64", ours=ours, hand=hand))
    return [*rows, _memory(results)]


def _against_langchain(results: Results, variant: str) -> Row:
    mine, theirs = median(results, f"langchain {variant}", "wall"), median(results, f"peer-langchain {variant}", "wall")
    times = theirs / mine if mine and theirs else None
    return Row(
        what=f"cold, 16 in flight, {variant}, LangChain against langchain-openai",
        ours=shown(mine, "s"),
        peer=shown(theirs, "s"),
        ratio=f"{times:.1f}x faster" if times else "",
        figure=f">= {FRAMEWORK_FASTER:g}x faster",
        met=times is not None and times >= FRAMEWORK_FASTER,
    )


def _memory(results: Results) -> Row:
    what = "peak memory, 20,000 cold, numpy"
    return compared(what, results, "peak_mb", "MB", ours="core sync", hand="hand", at_most=1.2)


def cold64(bench: Bench) -> Group:
    """The same with 64 requests in flight."""
    measures = {
        **_by_hand(bench, ("hand",), 64),
        **_sync_and_async(bench, ("core",), 64),
        **_by_hand(bench, ("hand-lists",), 64),
        **_sync_and_async(bench, OURS_LISTS, 64),
        "peer-catsu": Measure(bench.setting("peer-catsu", slots=64, asynchronous=True), {"prepare": ["floats"]}),
    }
    return Group(measures, _cold64_rows)


def _cold64_rows(results: Results) -> list[Row]:
    row = partial(compared, results=results, field="wall", unit="s", peers=("peer-catsu",))
    rows = []
    for variant in ("sync", "async"):
        what = f"cold, 64 in flight, {variant}"
        rows.append(row(f"{what}, numpy", ours=f"core {variant}", hand="hand", at_most=1.0))
        rows += [
            row(f"{what}, lists, {client}", ours=f"{client} {variant}", hand="hand-lists", at_most=0.85)
            for client in OURS_LISTS
        ]
    mine, theirs = median(results, "langchain sync", "wall"), median(results, "peer-catsu", "wall")
    rows.append(
        Row(
            what="cold, 64 in flight, LangChain sync against catsu gathered by hand",
            ours=shown(mine, "s"),
            peer=shown(theirs, "s"),
            ratio=f"{mine / theirs:.2f}x catsu" if mine and theirs else "",
            figure="below catsu",
            met=bool(mine and theirs and mine < theirs),
        )
    )
    return rows


CPU_US = {"core": 30.0, "langchain": 70.0, "llamaindex": 95.0}


def cpu(bench: Bench) -> Group:
    """CPU of a text, with a server without latency; the client has sent one request before."""
    by_hand = ("hand", "hand-lists", "hand-pybase64", "hand-pybase64-lists")
    measures = {
        **{client: Measure(bench.setting(client, asynchronous=True, warm_up=True), NO_LATENCY) for client in by_hand},
        **{client: Measure(bench.setting(client, warm_up=True), NO_LATENCY) for client in CPU_US},
        "peer-langchain": Measure(
            bench.setting("peer-langchain", warm_up=True), NO_LATENCY | {"prepare": ["tokens"]}, once=True
        ),
        "peer-llamaindex": Measure(bench.setting("peer-llamaindex", warm_up=True), NO_LATENCY, once=True),
        "peer-catsu": Measure(
            bench.setting("peer-catsu", warm_up=True), NO_LATENCY | {"prepare": ["floats"]}, once=True
        ),
    }
    return Group(measures, _cpu_rows)


def _cpu_rows(results: Results) -> list[Row]:
    peers = {"core": (), "langchain": ("peer-langchain", "peer-catsu"), "llamaindex": ("peer-llamaindex", "peer-catsu")}
    rows = []
    for client, limit in CPU_US.items():
        hand = "hand" if client == "core" else "hand-lists"
        row = compared(
            f"CPU of a text, {client}",
            results,
            "cpu",
            "us",
            ours=client,
            hand=hand,
            peers=peers[client],
            scale=1e6 / TEXTS,
        )
        seconds = median(results, client, "cpu")
        rows.append(bounded(row, None if seconds is None else seconds * 1e6 / TEXTS, limit, "us"))
    for client, hand in (("core", "hand-pybase64"), ("langchain", "hand-pybase64-lists")):
        what = f"CPU of a text, {client}, by hand with pybase64"
        rows.append(compared(what, results, "cpu", "us", ours=client, hand=hand, scale=1e6 / TEXTS))
    return rows


FILL_CPU_US = 40.0
FILL_WALL = 1.10
OPEN_MB = 140.0


def fill(bench: Bench) -> Group:
    """Filling an empty cache, compared with no cache."""
    return Group(
        {
            "without": Measure(bench.setting("core")),
            "with": Measure(bench.setting("core"), fresh=True),
            "langchain without": Measure(bench.setting("langchain")),
            "langchain with": Measure(bench.setting("langchain"), fresh=True),
        },
        _fill_rows,
    )


def _fill_rows(results: Results) -> list[Row]:
    rows = []
    for client, prefix in (("core", ""), ("langchain", "langchain ")):
        cpu_with, cpu_without = (median(results, f"{prefix}{name}", "cpu") for name in ("with", "without"))
        wall_with, wall_without = (median(results, f"{prefix}{name}", "wall") for name in ("with", "without"))
        if not (cpu_with and cpu_without and wall_with and wall_without):
            continue
        more_us = (cpu_with - cpu_without) / TEXTS * 1e6
        rows += [
            Row(
                what=f"filling the cache, CPU of a text on top, {client}",
                ours=shown(more_us, "us"),
                ratio=f"{cpu_with / cpu_without:.2f}x no cache",
                figure=f"<= {FILL_CPU_US:g} us",
                met=more_us <= FILL_CPU_US,
            ),
            Row(
                what=f"filling the cache, 16 in flight, {client}",
                ours=shown(wall_with, "s"),
                ratio=f"{wall_with / wall_without:.2f}x no cache",
                figure=f"{FILL_WALL:.2f}x no cache",
                met=wall_with / wall_without <= FILL_WALL,
            ),
            bounded(
                Row(
                    what=f"cache of 20,000 texts on disk, process still open, {client}",
                    ours=shown(median(results, f"{prefix}with", "open_mb"), "MB"),
                ),
                median(results, f"{prefix}with", "open_mb"),
                OPEN_MB,
                "MB",
            ),
        ]
    return rows


def first(bench: Bench) -> Group:
    """The first request of a process: the time until it is at the server, beyond the import of the SDK."""
    measures = {client: Measure(bench.setting(client, task="first"), NO_LATENCY) for client in ("hand", "core")}
    measures["sdk"] = Measure(bench.setting("hand", task="sdk_import"))
    return Group(measures, _first_rows)


def _first_rows(results: Results) -> list[Row]:
    for name in ("hand", "core"):
        for result in results[name]:
            if "began" in result:
                result["sent_ms"] = (result["first_request"] - result["began"]) * 1e3
    sdk = (median(results, "sdk", "wall") or 0.0) * 1e3
    hand, ours = (median(results, name, "sent_ms") for name in ("hand", "core"))
    return [
        Row(
            what=f"first request of a process on the wire, beyond the SDK's import ({shown(sdk, 'ms')})",
            hand=shown(None if hand is None else hand - sdk, "ms"),
            ours=shown(None if ours is None else ours - sdk, "ms"),
            ratio=f"{(ours - sdk) / (hand - sdk):.2f}x by hand" if ours and hand else "",
        )
    ]


GROUPS = {"cold": cold, "cold64": cold64, "cpu": cpu, "fill": fill, "first": first}
