"""What embedding some texts would take, before anything is sent: by the cache, the catalogue, and earlier bills."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Context
from math import ceil
from typing import TYPE_CHECKING

from embedkit_core.engine.budget import usd_of
from embedkit_core.engine.current import engine, is_running
from embedkit_core.engine.money import most_in_all
from embedkit_core.engine.packing import CAP_TEXTS, USUAL_SECONDS, Room, estimate_tokens, spread
from embedkit_core.forecast import Estimate
from embedkit_core.lookup import LookUp, Nowhere
from embedkit_core.meter import known_usd
from embedkit_core.plan import Plan, make_plan
from embedkit_core.roles import Role

if TYPE_CHECKING:
    from embedkit_core.embedder import Embedder
    from embedkit_core.engine.pace import Pace

ROUND_TRIP = 0.3  # seconds that a request takes at a provider besides its tokens, until it shows
SHORT = Context(prec=6)  # digits of a cost per text
COUNTED = "counted by the model's own tokenizer"
GUESSED = "estimated from the texts' bytes"
CORRECTED = "estimated from the texts' bytes, corrected by bills"


def estimate(owner: Embedder, role: Role, texts: Iterable[str], *, by_bills: bool = True) -> Estimate:
    """Say what a call for these texts would take; reads the cache and sends nothing."""
    plan = make_plan(texts, role.prefix)
    look_up = LookUp(owner, role, plan, Nowhere())
    look_up.peek()
    pace = _pace(owner, role)
    sizes, source = _sizes(owner, role, plan, look_up.misses, pace if by_bills else None)
    tokens, n = sum(sizes), len(sizes)
    most = sum(most_in_all(plan.texts[place], role.lane) for place in look_up.misses)
    price = owner.price.usd_per_million
    cost = known_usd(tokens, price)
    saved = sum(plan.sizes[place] for place in look_up.hits)
    requests = _requests(owner, role, n, tokens)
    return Estimate(
        model=owner.model,
        texts=plan.n,
        unique_texts=len(plan.keys),
        cache_hits=len(look_up.hits),
        texts_to_send=n,
        tokens=tokens,
        max_tokens=most,
        cost_usd=cost,
        max_cost_usd=None if cost is None else usd_of(most, price),
        saved_usd=known_usd(saved, price),
        cost_per_text_usd=None if cost is None or not plan.n else SHORT.divide(cost, plan.n),
        requests=requests,
        seconds=_seconds(owner, pace, requests, tokens),
        token_source=source,
        price_source=owner.price.source,
    )


def _pace(owner: Embedder, role: Role) -> Pace | None:
    """Give what is known of how fast the model answers and counts, where this process has used it."""
    account = engine().known_account(owner.provider) if is_running() else None
    return None if account is None else account.scheduler.turns.known_pace(role.lane.model)


def _sizes(owner: Embedder, role: Role, plan: Plan, places: Sequence[int], pace: Pace | None) -> tuple[list[int], str]:
    """Give the tokens of each text to send, and how they are known."""
    texts = [plan.texts[place] for place in places]
    counted = [owner.provider.count_tokens(text) for text in texts]
    prompt = str(role.lane.wire.get("prompt", ""))
    added = estimate_tokens(prompt, prompt.encode()) if prompt else 0
    limit = owner.provider.longest_text
    if counted and None not in counted:
        sizes, source = [n or 0 for n in counted], COUNTED
    else:
        corrected = pace is not None and pace.has_bills
        each = pace.tokens_each if pace is not None and corrected else 1.0
        sizes = [max(1, round(plan.sizes[place] * each)) for place in places]
        source = CORRECTED if corrected else GUESSED
    longest = limit if limit is not None and role.lane.long_text == "truncate" else None
    return [size + added if longest is None else min(size + added, longest) for size in sizes], source


def _requests(owner: Embedder, role: Role, n: int, tokens: int) -> int:
    if not n:
        return 0
    room = Room.of(role.lane.limits)
    slots = _slots(owner)
    texts = spread(n, slots, min(CAP_TEXTS, room.texts), tokens=tokens, cap_tokens=room.tokens)
    return max(ceil(n / texts), ceil(tokens / room.tokens))


def _slots(owner: Embedder) -> int:
    return owner.provider.limits.at_once(owner.settings.max_concurrency)


def _seconds(owner: Embedder, pace: Pace | None, requests: int, tokens: int) -> float | None:
    """Give the seconds at the limits that are known; None for a model on this machine that has not run yet."""
    if not requests:
        return 0.0
    local = owner.provider.on_this_machine
    each = pace.seconds_each if pace is not None and pace.has_bills else None
    if local and each is None:
        return None
    slots = min(_slots(owner), requests)
    working = (ROUND_TRIP * requests + USUAL_SECONDS * tokens if each is None else each * tokens) / slots
    rates = owner.settings.rates
    waits = [working if local else max(working, ROUND_TRIP)]
    if rates.requests_per_minute is not None:
        waits.append(60.0 * (requests - 1) / rates.requests_per_minute)
    if rates.tokens_per_minute is not None:
        waits.append(60.0 * tokens / rates.tokens_per_minute)
    if pace is not None:
        waits.append(pace.seconds_for(requests, tokens))
    return max(waits)
