"""What becomes of a request that failed: tried again, halved, searched for the bad text, cut, or given up.

Who decides: the provider says what happened (the error's type), this module what follows, each waiter's own policy
when enough is enough.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from embedkit_core.common.errors import (
    AuthenticationError,
    BadReplyError,
    BadRequestError,
    BadTextError,
    EncodingRefusedError,
    ProviderError,
    QuotaError,
    RateLimitError,
    RequestTooLargeError,
    TextTooLongError,
)
from embedkit_core.costs.tokens import estimate_tokens
from embedkit_core.engine.batching import Room
from embedkit_core.engine.scheduler import long_text as longtext
from embedkit_core.engine.scheduler.items import Flight, Group, Item

if TYPE_CHECKING:
    from embedkit_core.engine.scheduler.scheduler import Scheduler

ASKS = 3  # how often a request may be put differently before its refusal stands
CUTS = 16  # how often a text may be cut before its refusal stands
SHORT = 512  # tokens, estimated, under which a text alone cannot be what makes a request too large
DOUBTS = 8  # requests refused one after the other; halving 32 texts comes to a single one with the sixth


def settle(scheduler: Scheduler, flight: Flight, error: ProviderError, now: float) -> None:
    """Free the slot of a failed request and decide for each of its texts."""
    flight.lane.pace.note(error, now)
    delay = _slow_down(scheduler, flight, error, now) if error.retryable else 0.0
    scheduler.turns.release(flight)
    items = scheduler.drop_unwanted(flight)
    if not items:
        return
    if error.retryable:
        if texts := _try_again(scheduler, items, error, until=now + delay):
            scheduler.notes.failed(flight, error, texts, delay, now)
    elif isinstance(error, EncodingRefusedError) and all(item.asks < ASKS for item in items):
        for item in items:
            item.asks += 1
        flight.lane.enter(items, front=True)
    elif isinstance(error, TextTooLongError) and any(place in error.positions for place in range(len(flight.items))):
        _treat_known_long(scheduler, flight, error)  # a position beyond the request is a slip of the server's
    elif isinstance(error, (TextTooLongError, RequestTooLargeError)):
        _halve(scheduler, flight, items, error, now)
    elif isinstance(error, BadTextError):
        _search(scheduler, flight, items, error)
    elif isinstance(error, BadReplyError) and not error.lasts:
        give_up(scheduler, items, error)
    elif isinstance(error, (BadReplyError, AuthenticationError, BadRequestError, QuotaError)):
        # It is the request itself: what waits in this lane would come to the same, and may be billed.
        flight.lane.proven = False
        give_up_lane(scheduler, flight, error)
    else:
        give_up(scheduler, items, error)


def give_up(scheduler: Scheduler, items: list[Item], error: ProviderError) -> None:
    """Fail items for good, for everybody who waits; each gets a copy of the error."""
    for item in items:
        root = item.root
        for waiter in list(item.waiters):
            scheduler.give_up(waiter.ticket, waiter.index, copy.copy(error))
        item.waiters.clear()
        scheduler.drop(item)
        scheduler.drop(root)


def give_up_lane(scheduler: Scheduler, flight: Flight, error: ProviderError) -> None:
    """Fail the texts of a request, and all that wait where it came from."""
    lane = flight.lane
    waiting = [item for item in scheduler.table.values() if item.lane is lane and item.home is not None]
    waiting += [item for item in scheduler.parked.items() if item.lane is lane]
    asking = lane.asking.items if lane.asking is not None else []
    give_up(scheduler, [item for item in [*flight.items, *waiting, *asking] if item.waiters], error)


def _slow_down(scheduler: Scheduler, flight: Flight, error: ProviderError, now: float) -> float:
    """Let the pace of the model learn from a failure that may pass, and give the seconds until the next try."""
    pace = flight.lane.pace
    known = {limit.kind for limit in pace.limits_known()}
    delay = pace.failed(flight.sent, error, now)
    for limit in pace.limits_known():
        if limit.kind not in known:
            scheduler.notes.learned(flight, str(limit), now)
    asked = error.retry_after is not None and error.retry_after > 0
    if delay is None or asked:
        delay = scheduler.retry.delay(flight.items[0].failures, error, scheduler.rng)
    if asked or isinstance(error, RateLimitError):  # one refusal slows everybody down who uses this model
        pace.pause(now + delay)
    return delay


def _try_again(scheduler: Scheduler, items: list[Item], error: ProviderError, *, until: float) -> int:
    """Park items until the next try, and say how many; waiters whose retries are used up are told now."""
    again: list[Item] = []
    for item in items:
        item.failures += 1
        for waiter in list(item.waiters):
            joined_at = waiter.joined_at if item.parent is None else 0
            if item.failures - joined_at > waiter.ticket.max_retries:
                item.waiters.remove(waiter)
                scheduler.give_up(waiter.ticket, waiter.index, copy.copy(error))
        if item.waiters:
            again.append(item)
        else:
            scheduler.drop(item)
            scheduler.drop(item.root)
    if again:
        scheduler.parked.add(again, until=until)
    return len(again)


def _halves(flight: Flight, items: list[Item]) -> None:
    # A query that joined while the batch was in the air goes on with queries only.
    bulk = [item for item in items if not item.urgent]
    if 0 < len(bulk) < len(items):
        flight.lane.enter([item for item in items if item.urgent], front=True)
        items = bulk
    middle = (len(items) + 1) // 2
    for half in (items[:middle], items[middle:]):
        flight.lane.enter_group(Group(half, items[0].urgent))


def _halve(
    scheduler: Scheduler, flight: Flight, items: list[Item], error: TextTooLongError | RequestTooLargeError, now: float
) -> None:
    """Send a request that was too large again in two; a single text that is too large is too long."""
    lane = flight.lane
    if isinstance(error, TextTooLongError) or (len(flight.items) == 1 and items[0].size >= SHORT):
        if len(flight.items) == 1:
            _treat_long(scheduler, items[0], error)
        else:
            _halves(flight, items)
        return
    lane.refused += 1
    if len(flight.items) > 1:
        lane.room.halve([item.size for item in flight.items], counts_texts=error.counts_texts)
        scheduler.notes.learned(flight, f"requests hold {lane.room.texts:,} texts and {lane.room.tokens:,} tokens", now)
        _halves(flight, items)
        return
    # A short text alone is too large: no size is right. What was learned on the way down to it is no limit, and if
    # nothing has passed on that way either, the request is to blame.
    lane.room = Room.of(lane.lane.limits)
    if lane.refused > DOUBTS:
        give_up_lane(scheduler, flight, error)
    else:
        give_up(scheduler, items, error)


def _treat_known_long(scheduler: Scheduler, flight: Flight, error: TextTooLongError) -> None:
    fine: list[Item] = []
    for place, item in enumerate(flight.items):
        if not item.waiters:
            continue
        if place in error.positions:
            _treat_long(scheduler, item, error.of(error.positions[place]))
        else:
            fine.append(item)
    flight.lane.enter(fine, front=True)


def _treat_long(scheduler: Scheduler, item: Item, error: ProviderError) -> None:
    """Cut, split or give up one text that the model refuses as too long, by the lane's policy."""
    tokens, limit = (error.tokens, error.limit) if isinstance(error, TextTooLongError) else (None, None)
    policy = item.lane.lane.long_text
    item.cuts += 1
    if policy == "truncate" and item.lane.lane.cutting is not None:
        scheduler.have_cut(item)
        item.lane.enter([item], front=True)
    elif (
        policy == "truncate"
        and not item.lane.lane.cuts
        and item.cuts <= CUTS
        and (shorter := longtext.shorten(item.text, tokens, limit))
    ):
        item.text, item.cut = shorter, True
        item.size = estimate_tokens(shorter, shorter.encode())
        item.lane.enter_group(Group([item], item.urgent))
    elif policy == "mean" and item.cuts <= CUTS and len(item.text) > 1:
        _split(item, tokens, limit)
    else:
        give_up(scheduler, [item], error)


def _split(item: Item, tokens: int | None, limit: int | None) -> None:
    """Put the pieces of a text in its place; the last one to come back completes it."""
    root = item.root
    pieces = longtext.split(item.text, tokens, limit)
    root.missing += len(pieces) - (1 if item.parent else 0)
    children = []
    for piece in pieces:
        child = Item(b"", piece, estimate_tokens(piece, piece.encode()), item.lane, urgent=item.urgent, parent=root)
        child.cuts = item.cuts
        children.append(child)
    item.lane.enter(children, front=True)


def _search(scheduler: Scheduler, flight: Flight, items: list[Item], error: BadTextError) -> None:
    """Look for the text a refusal is about, by halving; a text that is refused alone fails alone.

    Refusals in a row put the lane in doubt: it goes back to one request at a time. If these are refused too, down to
    single texts taken at random, the cause is the request and not a text, and what waits fails with it.
    """
    lane = flight.lane
    lane.refused += 1
    if lane.proven and lane.refused > scheduler.turns.bound():
        lane.proven = False
    if not lane.proven and lane.in_flight == 0:
        lane.doubts += 1
    if lane.doubts >= DOUBTS:
        lane.doubts = 0
        give_up_lane(scheduler, flight, error)
    elif len(items) == 1:
        give_up(scheduler, items, error)
    else:
        scheduler.rng.shuffle(items)
        _halves(flight, items)
