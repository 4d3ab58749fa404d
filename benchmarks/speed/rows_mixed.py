"""Rows of queries during an ingest."""

import math
import statistics
from collections.abc import Iterable
from typing import Any, NamedTuple

from benchmarks.speed.bench import Bench, Group, Measure
from benchmarks.speed.table import Results, Row, failure, median, shown


class Load(NamedTuple):
    """An ingest and the queries meanwhile, and the most that they may take.

    Attributes:
        name: What it is called in the table.
        per_second: The queries.
        p50, p99: Goals of a query's time, in times of a lone query.
        ingest: Goal of the ingest's time, in times of the same ingest without queries.
        slots: The requests in flight.
        clients: The clients to measure.
        arguments: Arguments of their constructors.
        server: The settings of the server.
    """

    name: str
    per_second: int
    p50: float
    p99: float
    ingest: float
    slots: int = 16
    clients: Iterable[str] = ("core",)
    arguments: dict[str, Any] = {}  # noqa: RUF012 - never changed
    server: dict[str, Any] = {}  # noqa: RUF012 - never changed


# With a constant latency, requests that start together end together, so a query may wait for all of them. Each lone
# query takes a slot for 150 ms: here 8 % of all slots.
CONSTANT = {"arguments": {"max_batch_texts": 64}, "server": {"latency": 0.15, "latency_per_token": 0.0}}
LOADS = (
    Load("an ingest", 20, p50=2.0, p99=4.0, ingest=1.1, clients=("core", "langchain")),
    Load("an ingest at 4 in flight, constant latency", 2, p50=1.3, p99=2.0, ingest=1.15, slots=4, **CONSTANT),
    Load("an ingest at 16 in flight, constant latency", 8, p50=1.3, p99=2.0, ingest=1.15, **CONSTANT),
)


def mixed(bench: Bench) -> Group:
    """20,000 texts, with queries and without any."""
    measures = {
        _name(load, client, kind): Measure(
            bench.setting(
                client,
                task="mixed",
                slots=load.slots,
                options={"per_second": per_second, "arguments": load.arguments},
            ),
            load.server,
        )
        for load in LOADS
        for client in load.clients
        for kind, per_second in (("with", load.per_second), ("without", 0))
    }
    return Group(measures, _rows)


def _name(load: Load, client: str, kind: str) -> str:
    return f"{load.name}, {client} {kind}"


def _pooled(results: Results, name: str, field: str) -> list[float]:
    """Return the sorted times of all rounds: one ingest is too short for a 99th percentile."""
    return sorted(time for result in results[name] for time in result.get(field, ()))


def _percentile(times: list[float], percent: float) -> float:
    return times[math.ceil(len(times) * percent / 100) - 1]


def _rows(results: Results) -> list[Row]:
    return [row for load in LOADS for client in load.clients for row in _rows_of(results, load, client)]


def _rows_of(results: Results, load: Load, client: str) -> list[Row]:
    name = _name(load, client, "with")
    lone, meanwhile = (_pooled(results, name, field) for field in ("lone", "queries"))
    if not lone or not meanwhile:
        return [Row(what=f"a query during {load.name}, {client}", ours=failure(results, name))]
    rows, alone = [], statistics.median(lone)
    for percent, most in ((50, load.p50), (99, load.p99)):
        taken = _percentile(meanwhile, percent)
        rows.append(
            Row(
                what=f"a query during {load.name}, p{percent} of {len(meanwhile)}, {client}",
                ours=shown(taken * 1000, "ms"),
                ratio=f"{taken / alone:.2f}x a lone one ({alone * 1000:.0f} ms)",
                figure=f"{most:g}x a lone one",
                met=round(taken / alone, 2) <= most,
            )
        )
    return [*rows, _ingest(results, load, client)]


def _ingest(results: Results, load: Load, client: str) -> Row:
    queried, quiet = (median(results, _name(load, client, kind), "wall") for kind in ("with", "without"))
    times = queried / quiet if queried and quiet else None
    return Row(
        what=f"{load.name} with {load.per_second} queries a second, {client}",
        ours=shown(queried, "s"),
        ratio=f"{times:.2f}x without queries" if times else "",
        figure=f"{load.ingest:g}x without queries",
        met=times is not None and round(times, 2) <= load.ingest,
    )


GROUPS = {"mixed": mixed}
