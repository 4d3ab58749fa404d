"""How the engine stands, told to whoever asks: what waits, what is in flight, which limits are known."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from embedkit_core.common.errors import EmbedKitError
from embedkit_core.engine.runtime.process import engine, is_running

if TYPE_CHECKING:
    from embedkit_core.engine.runtime.account import Account

MAX_WAIT_SECONDS = 5.0  # seconds for the engine's answer, which takes microseconds


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One model at one account of this process.

    `waiting` texts are not sent yet, for want of a slot or of money; `retrying` ones wait for their next try.
    `requests_per_minute`, `tokens_per_minute` and `max_in_flight` are what the provider says or its refusals taught,
    None where nothing is known; `texts_per_request` and `tokens_per_request` what one request may hold.
    `paused_seconds` are those for which the provider asked to be left alone. `last_failure` names the error and status,
    `failed_seconds_ago` when it was.
    """

    model: str
    endpoint: str
    waiting: int
    retrying: int
    in_flight: int
    requests_per_minute: float | None
    tokens_per_minute: float | None
    max_in_flight: int | None
    texts_per_request: int
    tokens_per_request: int
    paused_seconds: float
    last_failure: str | None
    failed_seconds_ago: float | None


def snapshot() -> list[Snapshot]:
    """Say how things stand, for each model that was used lately in this process; from any thread.

    Raises:
        EmbedKitError: the engine does not answer, or it is its own thread that asks, where a provider's code runs.
    """
    if not is_running():
        return []
    if threading.current_thread() is engine().thread:  # a rate limiter's and a cache's are not waited for
        raise EmbedKitError("snapshot() would wait for the thread it runs on; ask from another")
    found: list[Snapshot] = []
    taken = threading.Event()

    def take(accounts: list[Account]) -> None:
        for account in accounts:
            found.extend(_account_snapshots(account))
        taken.set()

    engine().inspect_accounts(take)
    if not taken.wait(MAX_WAIT_SECONDS):
        raise EmbedKitError(f"the engine did not answer in {MAX_WAIT_SECONDS:.0f} s")
    return sorted(found, key=lambda one: (one.model, one.endpoint))


def _account_snapshots(account: Account) -> list[Snapshot]:
    now, scheduler = account.loop.time(), account.scheduler
    told: list[Snapshot] = []
    parked, unpaid = scheduler.retry_queue.items(), scheduler.ledger.awaiting_budget
    for pace, queues in scheduler.dispatcher.by_rate_controller().items():
        limits = {limit.unit: limit.value for limit in pace.known_limits()}
        failure, window = pace.last_failure, limits.get("requests in flight")
        rooms = [queue.capacity for queue in queues]
        told.append(
            Snapshot(
                model=queues[0].spec.model,
                endpoint=account.endpoint,
                waiting=sum(queue.waiting_texts for queue in queues) + sum(item.queue in queues for item in unpaid),
                retrying=sum(item.queue in queues for item in parked),
                in_flight=pace.in_flight,
                requests_per_minute=limits.get("requests/min"),
                tokens_per_minute=limits.get("tokens/min"),
                max_in_flight=None if window is None else int(window),
                texts_per_request=min(room.texts for room in rooms),
                tokens_per_request=min(room.tokens for room in rooms),
                paused_seconds=pace.pause_remaining(now),
                last_failure=None if failure is None else str(failure),
                failed_seconds_ago=None if failure is None else now - failure.at,
            )
        )
    return told
