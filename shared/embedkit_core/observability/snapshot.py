"""Snapshots of the engine: waiting texts, requests in flight, known limits."""

from __future__ import annotations

import threading
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from embedkit_core.common.errors import EmbedKitError
from embedkit_core.common.threads import WakeFlag
from embedkit_core.engine.runtime.process import engine, is_running

if TYPE_CHECKING:
    from embedkit_core.engine.runtime.account import Account

MAX_WAIT_SECONDS = 5.0  # an answer takes microseconds


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One model of one account in this process.

    Attributes:
        model: "provider:model".
        endpoint: The base URL, or "" for the provider's own.
        waiting: Texts that wait for a request slot, a rate limit or budget.
        retrying: Texts that wait for their next retry.
        in_other_processes: Texts that wait for another process, which is sending them.
        in_flight: Requests in flight.
        requests_per_minute: The provider's limit, from its headers or inferred from HTTP 429; None if unknown.
        tokens_per_minute: The provider's limit, from its headers or inferred from HTTP 429; None if unknown.
        max_in_flight: The limit of concurrent requests that was inferred from overload; None if there is none.
        user_requests_per_minute: The lowest `requests_per_minute=` of the callers with pending texts, or that of the
            last caller if none has any; None without a limit.
        user_tokens_per_minute: The same of `tokens_per_minute=`.
        max_concurrency: The lowest `max_concurrency=` of the account's callers with pending texts; None without any.
        texts_per_request: The most texts that one request may hold.
        tokens_per_request: The most tokens that one request may hold.
        paused_seconds: The remaining seconds of a pause that the provider asked for (Retry-After).
        last_failure: The class and HTTP status of the last failed request, None if there was none.
        failed_seconds_ago: The seconds since then.
        processes: The last known number of processes that are coordinated; 1 without a coordinator.
        uncoordinated_requests: Requests that were sent without their coordinator, because it could not be reached.
    """

    model: str
    endpoint: str
    waiting: int
    retrying: int
    in_other_processes: int
    in_flight: int
    requests_per_minute: float | None
    tokens_per_minute: float | None
    max_in_flight: int | None
    user_requests_per_minute: int | None
    user_tokens_per_minute: int | None
    max_concurrency: int | None
    texts_per_request: int
    tokens_per_request: int
    paused_seconds: float
    last_failure: str | None
    failed_seconds_ago: float | None
    processes: int
    uncoordinated_requests: int

    def _repr_html_(self) -> str:
        """Return a table for a notebook."""
        return SnapshotList([self])._repr_html_()


class SnapshotList(list[Snapshot]):
    """A list that notebooks show as a table, with a column for each model."""

    def _repr_html_(self) -> str:
        """Return a table for a notebook."""
        from embedkit_core.common.html_tables import html_fields  # only notebooks need it

        names = [f.name for f in fields(Snapshot)]
        return html_fields([{name: getattr(one, name) for name in names} for one in self]) if self else repr(self)


def snapshot() -> list[Snapshot]:
    """Return a snapshot of each model used recently in this process. Safe to call from any thread but the engine's.

    Returns:
        The snapshots, sorted by model and endpoint; empty if nothing was sent yet.

    Raises:
        EmbedKitError: The engine did not answer, or the current thread is the engine thread.

    Example:
        ```python
        for one in snapshot():
            print(one.model, one.waiting, one.in_flight, one.tokens_per_minute)
        ```
    """
    if not is_running():
        return SnapshotList()
    if threading.current_thread() is engine().thread:  # the threads of limiters and the cache may wait
        raise EmbedKitError("snapshot() would wait for the thread it runs on. Call it from another thread.")
    found = SnapshotList()
    done = WakeFlag()

    def collect(accounts: list[Account]) -> None:
        for account in accounts:
            found.extend(_account_snapshots(account))
        done.set()

    engine().inspect_accounts(collect)
    if not done.wait(MAX_WAIT_SECONDS):
        raise EmbedKitError(f"The engine did not answer within {MAX_WAIT_SECONDS:.0f} s.")
    found.sort(key=lambda one: (one.model, one.endpoint))
    return found


def _account_snapshots(account: Account) -> list[Snapshot]:
    now, scheduler = account.loop.time(), account.scheduler
    snapshots: list[Snapshot] = []
    retrying, awaiting_budget = scheduler.retry_queue.items(), scheduler.ledger.awaiting_budget
    in_other_processes = scheduler.shared.waiting
    for controller, queues in scheduler.dispatcher.by_rate_controller().items():
        limits = {limit.unit: limit.value for limit in controller.known_limits()}
        failure, max_in_flight = controller.last_failure, limits.get("requests in flight")
        user_limits = controller.user_limits.last
        capacities = [queue.capacity for queue in queues]
        snapshots.append(
            Snapshot(
                model=queues[0].spec.model,
                endpoint=account.endpoint,
                waiting=sum(queue.waiting_texts for queue in queues)
                + sum(item.queue in queues for item in awaiting_budget),
                retrying=sum(item.queue in queues for item in retrying),
                in_other_processes=sum(item.queue in queues for item in in_other_processes),
                in_flight=controller.in_flight,
                requests_per_minute=limits.get("requests/min"),
                tokens_per_minute=limits.get("tokens/min"),
                max_in_flight=None if max_in_flight is None else int(max_in_flight),
                user_requests_per_minute=user_limits.requests_per_minute,
                user_tokens_per_minute=user_limits.tokens_per_minute,
                max_concurrency=scheduler.dispatcher.max_concurrency(),
                texts_per_request=min(capacity.texts for capacity in capacities),
                tokens_per_request=min(capacity.tokens for capacity in capacities),
                paused_seconds=controller.pause_remaining(now),
                last_failure=None if failure is None else str(failure),
                failed_seconds_ago=None if failure is None else now - failure.at,
                processes=scheduler.shared.processes,
                uncoordinated_requests=scheduler.shared.uncoordinated,
            )
        )
    return snapshots
