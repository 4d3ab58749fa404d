"""What embedding some texts would take, before anything is sent: by the cache, the catalogue, and earlier bills."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from decimal import Context, Decimal
from math import ceil
from typing import TYPE_CHECKING, Any

from embedkit_core.calls.lookup import CacheLookup, NullRows
from embedkit_core.calls.plan import Plan, input_error, iterate_texts, plan_call, reason_for
from embedkit_core.common.errors import InputError
from embedkit_core.common.formatting import count_noun, format_usd
from embedkit_core.config.base import BaseEmbedder
from embedkit_core.config.roles import InputTypeSpec
from embedkit_core.costs.meter import cost_of
from embedkit_core.costs.tokens import cost_usd, estimate_tokens
from embedkit_core.engine.batching import DEFAULT_SECONDS_PER_TOKEN, MAX_TEXTS, RequestCapacity, texts_per_request
from embedkit_core.engine.runtime.process import engine, is_running
from embedkit_core.engine.scheduler.items import max_tokens_to_send

if TYPE_CHECKING:
    from embedkit_core.engine.rate_limits.controller import RateController

TEXTS_PER_CHUNK = 5000  # texts that are in memory at once
ROUND_TRIP_SECONDS = 0.3  # seconds that a request takes at a provider besides its tokens, until it shows
SIX_DIGITS = Context(prec=6)  # digits of a cost per text
COUNTED = "counted by the model's own tokenizer"
GUESSED = "estimated from the texts' bytes"
CORRECTED = "estimated from the texts' bytes, corrected by bills"


@dataclass(frozen=True, slots=True)
class Estimate:
    """What embedding some texts would take; nothing was sent.

    `tokens` are what is likely to be billed, `max_tokens` a bound that no bill exceeds, but for the prompts of a text's
    pieces with "mean" where the model's limit is not known; `cost_usd` and `max_cost_usd` what they cost, None where
    the price is unknown. `saved_usd` is what the hits would have cost, and `cost_per_text_usd` the cost over all
    `texts`, hits and duplicates too. `seconds` is the time it takes at the limits that are known, None for a model on
    this machine that has not run yet. `token_source` and `price_source` say how tokens and price are known.
    """

    model: str
    texts: int
    unique_texts: int
    cache_hits: int
    texts_to_send: int
    tokens: int
    max_tokens: int
    cost_usd: Decimal | None
    max_cost_usd: Decimal | None
    saved_usd: Decimal | None
    cost_per_text_usd: Decimal | None
    requests: int
    seconds: float | None
    token_source: str
    price_source: str

    def __str__(self) -> str:
        """Give it in one line: "1,000 texts, 200 from cache, 800 to send in 4 requests, about 96,000 tokens, ..."."""
        said = [count_noun(self.texts, "text")]
        if self.texts != self.unique_texts:
            said.append(f"{self.unique_texts:,} different ones")
        said.append(f"{self.cache_hits:,} from cache")
        said.append(f"{self.texts_to_send:,} to send in {count_noun(self.requests, 'request')}")
        if self.texts_to_send:
            said.append(f"about {count_noun(self.tokens, 'token')}")
            if self.cost_usd is None or self.max_cost_usd is None:
                said.append("price unknown")
            else:
                said.append(f"about ${format_usd(self.cost_usd)}, ${format_usd(self.max_cost_usd)} at most")
            said.append("time unknown" if self.seconds is None else f"about {self.seconds:,.1f} s")
        if self.saved_usd:
            said.append(f"the cache saves ${format_usd(self.saved_usd)}")
        return ", ".join(said)

    def to_dict(self) -> dict[str, Any]:
        """Give the numbers as JSON has them: dollars as strings, which lose nothing, None where unknown."""
        told = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: format_usd(value) if isinstance(value, Decimal) else value for name, value in told.items()}


def estimate(owner: BaseEmbedder, role: InputTypeSpec, texts: Iterable[str], *, calibrated: bool = True) -> Estimate:
    """Say what a call for these texts would take; reads the cache, holds some thousand texts, sends nothing."""
    pace = _rate_controller(owner, role)
    billed = pace if calibrated else None
    needs = _Totals()
    for plan in _plans(texts, role):
        needs.add(owner, role, plan, billed)
    price = owner.price.usd_per_million
    cost = cost_of(needs.tokens, price)
    requests = _requests(owner, role, needs.to_send, needs.tokens)
    return Estimate(
        model=owner.model,
        texts=needs.texts,
        unique_texts=len(needs.seen),
        cache_hits=needs.hits,
        texts_to_send=needs.to_send,
        tokens=needs.tokens,
        max_tokens=needs.max_tokens,
        cost_usd=cost,
        max_cost_usd=None if cost is None else cost_usd(needs.max_tokens, price),
        saved_usd=cost_of(needs.saved, price),
        cost_per_text_usd=None if cost is None or not needs.texts else SIX_DIGITS.divide(cost, needs.texts),
        requests=requests,
        seconds=_seconds(owner, pace, requests, needs.tokens),
        token_source=needs.source or _guess(billed),
        price_source=owner.price.source,
    )


class _Totals:
    """What texts need, added up piece by piece; a text that comes again, be it in another piece, needs nothing more."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()
        self.texts = self.hits = self.to_send = self.tokens = self.max_tokens = self.saved = 0
        self.source: str | None = None

    def add(self, owner: BaseEmbedder, role: InputTypeSpec, plan: Plan, pace: RateController | None) -> None:
        """Take in a piece."""
        look_up = CacheLookup(owner, role, plan, NullRows())
        look_up.peek()
        hits = [place for place in look_up.hits if plan.keys[place] not in self.seen]
        misses = [place for place in look_up.misses if plan.keys[place] not in self.seen]
        self.seen.update(plan.keys)
        sizes, source = _sizes(owner, role, plan, misses, pace)
        self.source = source if misses else self.source
        self.texts += plan.n
        self.hits += len(hits)
        self.to_send += len(misses)
        self.tokens += sum(sizes)
        self.max_tokens += sum(max_tokens_to_send(plan.texts[place], role.request_spec) for place in misses)
        self.saved += sum(plan.sizes[place] for place in hits)


def _plans(texts: Iterable[str], role: InputTypeSpec) -> Iterator[Plan]:
    """Give the texts in pieces.

    Raises:
        InputError: some cannot be embedded, with the positions of all of them.
    """
    stream, start, flaws = iterate_texts(texts), 0, dict[int, str]()
    while piece := list(itertools.islice(stream, TEXTS_PER_CHUNK)):
        try:
            plan = plan_call(piece, role.key_prefix)
        except InputError as refusal:
            flaws.update({start + place: reason_for(piece[place]) for place in refusal.indices})
        start += len(piece)
        if not flaws:
            yield plan
    if flaws:
        raise input_error(flaws, start)


def _rate_controller(owner: BaseEmbedder, role: InputTypeSpec) -> RateController | None:
    """Give what is known of how fast the model answers and counts, where this process has used it."""
    account = engine().known_account(owner.provider) if is_running() else None
    return None if account is None else account.known_rate_controller(role.request_spec.model)


def _sizes(
    owner: BaseEmbedder, role: InputTypeSpec, plan: Plan, places: Sequence[int], pace: RateController | None
) -> tuple[list[int], str]:
    """Give the tokens of each text to send, and how they are known."""
    texts = [plan.texts[place] for place in places]
    counted = [owner.provider.count_tokens(text) for text in texts]
    prompt = str(role.request_spec.body.get("prompt", ""))
    added = estimate_tokens(prompt, prompt.encode()) if prompt else 0
    limit = owner.provider.max_text_tokens
    if counted and None not in counted:
        sizes, source = [n or 0 for n in counted], COUNTED
    else:
        each = pace.tokens_per_estimated if pace is not None and pace.has_bills else 1.0
        sizes = [max(1, round(plan.sizes[place] * each)) for place in places]
        source = _guess(pace)
    longest = limit if limit is not None and role.request_spec.long_text == "truncate" else None
    return [size + added if longest is None else min(size + added, longest) for size in sizes], source


def _guess(pace: RateController | None) -> str:
    return CORRECTED if pace is not None and pace.has_bills else GUESSED


def _requests(owner: BaseEmbedder, role: InputTypeSpec, n: int, tokens: int) -> int:
    if not n:
        return 0
    room = RequestCapacity.from_limits(role.request_spec.limits)
    slots = _slots(owner)
    texts = texts_per_request(n, slots, min(MAX_TEXTS, room.texts), tokens=tokens, cap_tokens=room.tokens)
    return max(ceil(n / texts), ceil(tokens / room.tokens))


def _slots(owner: BaseEmbedder) -> int:
    return owner.provider.limits.max_in_flight(owner.settings.max_concurrency)


def _seconds(owner: BaseEmbedder, pace: RateController | None, requests: int, tokens: int) -> float | None:
    """Give the seconds at the limits that are known; None for a model on this machine that has not run yet."""
    if not requests:
        return 0.0
    local = owner.provider.is_local
    each = pace.seconds_per_token if pace is not None and pace.has_bills else None
    if local and each is None:
        return None
    slots = min(_slots(owner), requests)
    working = (
        ROUND_TRIP_SECONDS * requests + DEFAULT_SECONDS_PER_TOKEN * tokens if each is None else each * tokens
    ) / slots
    rates = owner.settings.rates
    waits = [working if local else max(working, ROUND_TRIP_SECONDS)]
    if rates.requests_per_minute is not None:
        waits.append(60.0 * (requests - 1) / rates.requests_per_minute)
    if rates.tokens_per_minute is not None:
        waits.append(60.0 * tokens / rates.tokens_per_minute)
    if pace is not None:
        waits.append(pace.seconds_for(requests, tokens))
    return max(waits)
