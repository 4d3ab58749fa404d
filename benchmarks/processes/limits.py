"""Scenarios about what all processes share: limits per minute, a pause, a named budget."""

from __future__ import annotations

import contextlib
from typing import Any

from benchmarks.processes.bench import Bench, Row, Scenario, rights
from benchmarks.processes.worker import Result
from benchmarks.speed.control import arrivals, stats
from benchmarks.speed.corpus import make_texts

WINDOW = 60.0
MIN_USE = 0.94  # 5 % are kept for queries
RATE_TEXTS = 9600  # of all processes; for more than two minutes
RATES: dict[str, dict[str, int]] = {
    "tokens": {"tokens_per_minute": 240_000, "requests_per_minute": 1200},
    "requests": {"tokens_per_minute": 10_000_000, "requests_per_minute": 240, "max_batch_texts": 16},
}


def _rate(bench: Bench, _: int) -> Result:
    """Each process embeds texts of its own under limits per minute that all share: of tokens, then of requests."""
    results = {}
    n = RATE_TEXTS // bench.n
    for limit, arguments in RATES.items():
        with bench.cache_folder() as folder:
            jobs = [bench.job(folder, n, first=index * n, arguments=arguments) for index in range(bench.n)]
            totals = bench.run(jobs)
            amounts = [(at, 1 if limit == "requests" else tokens) for at, _, tokens, _ in arrivals(bench.port)]
            results[limit] = {**totals, "worst": _worst_window(amounts), "use": _mean_use(amounts)}
    return results


def _worst_window(amounts: list[tuple[float, int]]) -> int:
    """Return the largest amount within a minute, whenever the minute begins."""
    amounts = sorted(amounts)
    total = most = first = 0
    for at, amount in amounts:
        total += amount
        while amounts[first][0] <= at - WINDOW:
            total -= amounts[first][1]
            first += 1
        most = max(most, total)
    return most


def _mean_use(amounts: list[tuple[float, int]]) -> float:
    """Return the mean amount of the full minutes from the first request to the last one."""
    start, end = min(amounts)[0], max(amounts)[0]
    minutes = int((end - start) // WINDOW)
    return sum(amount for at, amount in amounts if at < start + minutes * WINDOW) / max(1, minutes)


def _rate_rows(results: list[Result], bench: Bench) -> list[Row]:
    rows = []
    for kind, result in results[0].items():
        limit = RATES[kind][f"{kind}_per_minute"]
        use = result["use"] / limit
        what = f"{bench.n} processes, {limit:,} {kind} per minute for {result['wall']:.0f} s"
        rows += [
            Row(
                f"{what}: the worst window of 60 s",
                f"{result['worst']:,}{rights([result])}",
                f"<= {limit:,}",
                result["worst"] <= limit and not rights([result]),
            ),
            Row(f"{what}: use of the limit", f"{use:.1%}", f">= {MIN_USE:.0%}", use >= MIN_USE),
        ]
    return rows


PAUSE_TEXTS, PAUSE_BATCH, PAUSE_SLOTS, RETRY_AFTER = 500, 20, 2, 3


def _pause(bench: Bench, _: int) -> Result:
    """One request gets a 429 with Retry-After while all processes send."""
    refused = 6 * bench.n
    with bench.cache_folder(refused=[refused], retry_after=RETRY_AFTER) as folder:
        arguments = {"max_batch_texts": PAUSE_BATCH}
        jobs = [
            bench.job(folder, PAUSE_TEXTS, first=index * PAUSE_TEXTS, slots=PAUSE_SLOTS, arguments=arguments)
            for index in range(bench.n)
        ]
        totals = bench.run(jobs)
        requests = arrivals(bench.port)
    at, _, _, in_flight = requests[refused - 1]
    late = [arrived - at for arrived, *_ in requests[refused:] if arrived - at < RETRY_AFTER]
    return {**totals, "in_flight": in_flight, "late": late}


def _pause_rows(results: list[Result], bench: Bench) -> list[Row]:
    worst = max(results, key=lambda result: len(result["late"]) - result["in_flight"])
    late, in_flight = worst["late"], worst["in_flight"]
    return [
        Row(
            f"a 429 with Retry-After: {RETRY_AFTER}, {bench.n} processes: requests in the pause",
            f"{len(late)}, the last {max(late, default=0.0) * 1e3:.0f} ms after the 429{rights(results)}",
            f"<= {in_flight} in flight at the 429",
            len(late) <= in_flight and not rights(results),
        )
    ]


BUDGET, BUDGET_TEXTS, BUDGET_BATCH, BUDGET_SLOTS = 0.01, 2500, 64, 4
PRICE = 0.02  # USD per million tokens
FAULTS = {"no faults": {}, "lost replies": {"cuts": 0.1, "seed": 3}, "kill -9": {}}
MIN_USABLE = 0.99


def _budget(bench: Bench, _: int) -> Result:
    """All processes embed texts of their own, until the budget that they share is used up."""
    return {name: _spend(bench, server, kills=name == "kill -9") for name, server in FAULTS.items()}


def _spend(bench: Bench, server: dict[str, Any], *, kills: bool) -> Result:
    n = min(BUDGET_TEXTS, 20_000 // bench.n)
    arguments = {
        "budget_usd": BUDGET,
        "budget_name": "bench",
        "max_batch_texts": BUDGET_BATCH,
        "prices": {"openai:text-embedding-3-small": PRICE},
    }
    with bench.cache_folder(**server) as folder:
        jobs = [
            bench.job(folder, n, first=index * n, slots=BUDGET_SLOTS, arguments=arguments) for index in range(bench.n)
        ]
        processes = bench.start(jobs)
        if kills:
            bench.wait_for_billed(2000)
            processes.kill(0)
        totals = bench.totals(processes.results())
        with contextlib.closing(bench.coordinator(folder)) as coordinator:
            (status,) = coordinator.budgets()
    nano_usd = {name: getattr(status, name).nano_usd for name in ("spent", "lost", "held")}
    return {**totals, **nano_usd, "billed_usd": stats(bench.port)["tokens"] * PRICE / 1e6}


def _budget_rows(results: list[Result], bench: Bench) -> list[Row]:
    rows = []
    what = f"a named budget of ${BUDGET:g}, {bench.n} processes"
    for name, result in results[0].items():
        used = (result["spent"] + result["lost"] + result["held"]) / 1e9
        only_budget = set(result["failed"]) <= ({"BudgetError"} if name != "lost replies" else {"BudgetError", *_LOST})
        rows.append(
            Row(
                f"{what}, {name}: never exceeded",
                f"${result['billed_usd']:.6f} billed, ${used:.6f} counted{rights([{**result, 'failed': {}}])}",
                f"<= ${BUDGET:g}",
                max(result["billed_usd"], used) <= BUDGET and not result["wrong"] and only_budget,
            )
        )
    usable = results[0]["no faults"]["billed_usd"] / BUDGET
    rows.append(Row(f"{what}: usable without faults", f"{usable:.2%}", f">= {MIN_USABLE:.0%}", usable >= MIN_USABLE))
    lost = results[0]["kill -9"]["lost"] / 1e9
    most = BUDGET_SLOTS * BUDGET_BATCH * max(map(len, make_texts())) * PRICE / 1e6  # a token has at least one byte
    rows.append(Row(f"{what}: lost after a kill", f"${lost:.6f}", f"<= ${most:.6f} in flight", lost <= most))
    return rows


_LOST = ("ProviderConnectionError",)

SCENARIOS = {
    "rate": Scenario(_rate, _rate_rows, once=True),
    "pause": Scenario(_pause, _pause_rows),
    "budget": Scenario(_budget, _budget_rows, once=True),
}
