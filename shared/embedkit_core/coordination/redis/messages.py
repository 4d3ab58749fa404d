"""What the scripts are asked, as JSON, and what they reply. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from embedkit_core.coordination.port import PREFIX_BYTES, Begin, Bill, End, Grant
from embedkit_core.coordination.redis.scripts import MAX_INTEGER, microseconds
from embedkit_core.costs.amounts import Amount, BudgetLimit, BudgetStatus

Request: TypeAlias = dict[str, Any]


def begin_request(begin: Begin, lease: str, model: str, microseconds_ago: Callable[[float], int]) -> Request:
    """Return a request that is about to be sent.

    Args:
        begin: The request.
        lease: The ID of its lease.
        model: The identifier of the account's model.
        microseconds_ago: Returns how long ago a time of this process was.
    """
    limits = begin.limits
    request: Request = {
        "lease": lease,
        "model": model,
        "tokens": numbers(begin.tokens),
        "age": microseconds_ago(begin.since),
        "is_query": begin.is_query,
        "backlog_requests": number(begin.backlog_requests),
        "backlog_tokens": number(begin.backlog_tokens),
    }
    if not all(begin.keys):
        request["keyed"] = [index for index, key in enumerate(begin.keys) if key]
    if limits.requests_per_minute is not None:
        request["requests_per_minute"] = number(limits.requests_per_minute)
    if limits.tokens_per_minute is not None:
        request["tokens_per_minute"] = number(limits.tokens_per_minute)
    if begin.reservations:
        request["reservations"] = [
            {
                "name": name,
                **limit_request(limit),
                "texts": list(amounts),
                "amounts_usd": numbers(amount.nano_usd for amount in amounts.values()),
                "amounts_tokens": numbers(amount.tokens for amount in amounts.values()),
            }
            for name, limit, amounts in begin.reservations
        ]
    return request


def end_request(end: End, microseconds_ago: Callable[[float], int]) -> Request:
    """Return the end of a request."""
    request: Request = {"lease": end.lease}
    if end.sent_at is not None:
        request["age"] = microseconds_ago(end.sent_at)
    if end.tokens is not None:
        request["tokens"] = number(end.tokens)
    if end.pause:
        request["pause"] = microseconds(end.pause)
    if end.bills:
        request["bills"] = _bills(end.bills)
    return request


def _bills(bills: Mapping[str, Bill]) -> Request:
    return {name: numbers((*billed, *lost)) for name, (billed, lost) in bills.items()}


def limit_request(limit: BudgetLimit) -> Request:
    """Return the limits of a budget."""
    request: Request = {}
    if limit.nano_usd is not None:
        request["usd"] = number(limit.nano_usd)
    if limit.tokens is not None:
        request["tokens"] = number(limit.tokens)
    return request


def storable(limit: BudgetLimit) -> BudgetLimit:
    """Return limits as they are stored: at most the largest integer of Lua."""
    return BudgetLimit(*(None if value is None else number(value) for value in limit))


def number(value: int) -> int:
    """Return an integer as Lua has it."""
    return min(value, MAX_INTEGER)


def numbers(values: Iterable[int]) -> list[int]:
    """Return integers as Lua has them."""
    return [min(value, MAX_INTEGER) for value in values]


def pack_keys(keys: Sequence[bytes]) -> bytes:
    """Return the prefixes of keys, one after the other. Empty ones are left out."""
    return b"".join([key[:PREFIX_BYTES].ljust(PREFIX_BYTES, b"\0") for key in keys if key])


def grant_of(reply: Sequence[Any], lease: str, processes: int) -> Grant:
    """Return a grant.

    Args:
        reply: The reply to a begin.
        lease: The ID of the lease that was asked for.
        processes: The number of processes.
    """
    is_granted, wait, paused, others, recheck, unfunded = reply
    return Grant(
        lease if is_granted else None,
        wait / 1_000_000,
        {index: holder.decode() for holder, indexes in others for index in indexes},
        recheck,
        {index: status_of(status) for index, *status in unfunded},
        paused / 1_000_000,
        processes,
    )


def status_of(reply: Sequence[Any]) -> BudgetStatus:
    """Return a budget."""
    name, usd, tokens, *amounts = reply
    limit = BudgetLimit(*(None if value < 0 else value for value in (usd, tokens)))
    spent, lost, held, holds = (Amount(*amounts[at : at + 2]) for at in (0, 2, 4, 6))
    return BudgetStatus(name.decode(), limit, spent, lost, held, holds)
