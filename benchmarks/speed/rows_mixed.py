"""Rows of queries during an ingest."""

import math
import statistics

from benchmarks.speed.bench import Bench, Group, Measure
from benchmarks.speed.table import Results, Row, failure, median, shown

PER_SECOND = 20
P50_TIMES = 2.0  # of a lone query's
P99_TIMES = 4.0
INGEST_TIMES = 1.1
CLIENTS = ("core", "langchain")


def mixed(bench: Bench) -> Group:
    """20,000 texts at 16 in flight, with 20 queries a second and without any."""
    measures = {
        f"{client} {kind}": Measure(bench.setting(client, task="mixed", options={"per_second": per_second}))
        for client in CLIENTS
        for kind, per_second in (("with", PER_SECOND), ("without", 0))
    }
    return Group(measures, _rows)


def _pooled(results: Results, name: str, field: str) -> list[float]:
    """Return the sorted times of all rounds: one ingest is too short for a 99th percentile."""
    return sorted(time for result in results[name] for time in result.get(field, ()))


def _percentile(times: list[float], percent: float) -> float:
    return times[math.ceil(len(times) * percent / 100) - 1]


def _rows(results: Results) -> list[Row]:
    rows = []
    for client in CLIENTS:
        lone, meanwhile = (_pooled(results, f"{client} with", field) for field in ("lone", "queries"))
        if not lone or not meanwhile:
            rows.append(Row(what=f"a query during an ingest, {client}", ours=failure(results, f"{client} with")))
            continue
        alone = statistics.median(lone)
        for percent, most in ((50, P50_TIMES), (99, P99_TIMES)):
            taken = _percentile(meanwhile, percent)
            rows.append(
                Row(
                    what=f"a query during an ingest of 20,000, p{percent} of {len(meanwhile)}, {client}",
                    ours=shown(taken * 1000, "ms"),
                    ratio=f"{taken / alone:.2f}x a lone one ({alone * 1000:.0f} ms)",
                    figure=f"{most:g}x a lone one",
                    met=round(taken / alone, 2) <= most,
                )
            )
        rows.append(_ingest(results, client))
    return rows


def _ingest(results: Results, client: str) -> Row:
    queried, quiet = (median(results, f"{client} {kind}", "wall") for kind in ("with", "without"))
    times = queried / quiet if queried and quiet else None
    return Row(
        what=f"an ingest of 20,000 with {PER_SECOND} queries a second, {client}",
        ours=shown(queried, "s"),
        ratio=f"{times:.2f}x without queries" if times else "",
        figure=f"{INGEST_TIMES:g}x without queries",
        met=times is not None and round(times, 2) <= INGEST_TIMES,
    )


GROUPS = {"mixed": mixed}
