"""Estimate the cost of a call before anything is sent, from the cache, the catalogue and earlier bills."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from decimal import ROUND_CEILING, Decimal
from math import ceil
from typing import TYPE_CHECKING, Any

from embedkit_core.calls.lookup import CacheLookup, NullRows
from embedkit_core.calls.plan import Plan, plan_chunks
from embedkit_core.common.fork_safety import import_module
from embedkit_core.common.formatting import count_noun
from embedkit_core.common.money import THIS_MACHINE, decimal_context, exact_decimal, format_usd
from embedkit_core.config.base import BaseEmbedder
from embedkit_core.config.roles import InputTypeSpec
from embedkit_core.coordination.sliding_window import bulk_limit, paced_seconds
from embedkit_core.costs.tokens import cost_or_none, cost_or_zero, estimate_tokens
from embedkit_core.engine.batching import (
    DEFAULT_SECONDS_PER_TOKEN,
    MAX_TEXTS,
    MAX_TOKENS,
    MIN_TEXTS,
    RequestCapacity,
    texts_per_request,
)
from embedkit_core.engine.runtime.process import engine, is_running
from embedkit_core.engine.scheduler.items import max_tokens_to_send

if TYPE_CHECKING:
    from embedkit_core.engine.rate_limits.controller import RateController

TEXTS_PER_CHUNK = 5000  # texts in memory at once
ROUND_TRIP_SECONDS = 0.3  # overhead of a request before any was measured
SIX_DIGITS = decimal_context(6)
TOKENIZER_SOURCE = "counted with the model's tokenizer"
BYTES_SOURCE = "estimated from UTF-8 bytes"
CALIBRATED_SOURCE = "estimated from UTF-8 bytes, calibrated with billed tokens"


@dataclass(frozen=True, slots=True)
class Estimate:
    """What embedding some texts would take. Nothing was sent.

    Attributes:
        model: "provider:model".
        texts: The number of texts, duplicates included.
        unique_texts: The number of distinct texts, without empty ones.
        cache_hits: The distinct texts that the cache holds.
        texts_to_send: The distinct texts that must be sent.
        tokens: The tokens that will probably be billed.
        max_tokens: An upper bound of the billed tokens. Exception: with `on_long_text="mean"` and an unknown model
            limit, the prompts of the pieces of a long text are not included.
        cost_usd: The cost of `tokens` in USD, None if the price is unknown.
        max_cost_usd: The cost of `max_tokens` in USD, None if the price is unknown.
        saved_usd: What the cache hits would have cost in USD, None if the price is unknown.
        cost_per_text_usd: `cost_usd` divided by `texts`, None if the price is unknown or there are no texts.
        requests: The expected number of requests, without retries.
        seconds: The expected duration at the known rate limits, None for a local model that has not run in this
            process.
        batch_cost_usd: The cost of `tokens` at the price of the provider's batch endpoint (`submit`) in USD, None if
            there is none or its price is unknown.
        batch_seconds: The time within which the batch endpoint embeds them, None without a batch endpoint.
        token_source: How the tokens were determined.
        price_source: "prices=", "catalogue", "catalogue, unconfirmed", "genai-prices", "this machine" or "unknown".
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
    batch_cost_usd: Decimal | None
    batch_seconds: float | None
    token_source: str
    price_source: str

    def __str__(self) -> str:
        """Return one line: "1,000 texts, 200 from cache, 800 to send in 4 requests, about 96,000 tokens, ..."."""
        parts = [count_noun(self.texts, "text")]
        if self.texts != self.unique_texts:
            parts.append(f"{self.unique_texts:,} unique")
        parts.append(f"{self.cache_hits:,} from cache")
        parts.append(f"{self.texts_to_send:,} to send in {count_noun(self.requests, 'request')}")
        if self.texts_to_send:
            parts.append(f"about {count_noun(self.tokens, 'token')}")
            if self.price_source == THIS_MACHINE:
                parts.append("free, on this machine")
            elif self.cost_usd is None or self.max_cost_usd is None:
                parts.append("price unknown")
            else:
                most = format_usd(self.max_cost_usd, ROUND_CEILING)
                parts.append(f"about {format_usd(self.cost_usd)}, {most} at most")
            if self.seconds is not None:
                parts.append(f"about {self.seconds:,.1f} s")
            if self.batch_seconds is not None:
                cost = "price unknown" if self.batch_cost_usd is None else f"about {format_usd(self.batch_cost_usd)}"
                parts.append(f"as a batch {cost} within {self.batch_seconds / 3600:g} h")
        if self.saved_usd:
            parts.append(f"the cache saves {format_usd(self.saved_usd)}")
        return ", ".join(parts)

    def _repr_html_(self) -> str:
        """Return a table for a notebook."""
        from embedkit_core.common.html_tables import html_fields  # only notebooks need it

        return html_fields([{f.name: getattr(self, f.name) for f in fields(self)}])

    def to_dict(self) -> dict[str, Any]:
        """Return the values as JSON types: USD amounts as strings (exact), None if unknown."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: exact_decimal(value) if isinstance(value, Decimal) else value for name, value in values.items()}


def estimate(embedder: BaseEmbedder, spec: InputTypeSpec, texts: Iterable[str], *, calibrated: bool = True) -> Estimate:
    """Return the estimate for these texts, which are read chunk by chunk."""
    controller = _rate_controller(embedder, spec)
    calibration = controller if calibrated else None
    totals = _Totals()
    for plan in plan_chunks(texts, spec.key_prefix, TEXTS_PER_CHUNK, allows_empty=spec.allows_empty):
        totals.add(embedder, spec, plan, calibration)
    price = embedder.price.usd_per_million
    cost = cost_or_none(totals.tokens, price)
    requests = _requests(embedder, spec, controller, totals.to_send, totals.tokens)
    return Estimate(
        model=embedder.model,
        texts=totals.texts,
        unique_texts=len(totals.seen),
        cache_hits=totals.hits,
        texts_to_send=totals.to_send,
        tokens=totals.tokens,
        max_tokens=totals.max_tokens,
        cost_usd=cost,
        max_cost_usd=None if cost is None else cost_or_zero(totals.max_tokens, price),
        saved_usd=cost_or_none(totals.saved, price),
        cost_per_text_usd=None if cost is None or not totals.texts else SIX_DIGITS.divide(cost, totals.texts),
        requests=requests,
        seconds=_seconds(embedder, controller, requests, totals.tokens),
        batch_cost_usd=cost_or_none(totals.tokens, embedder.batch_price.usd_per_million),
        batch_seconds=import_module("embedkit_core.providers.batch_endpoint").batch_window(embedder.provider),
        token_source=totals.source or _estimated_source(calibration),
        price_source=embedder.price.source,
    )


def count_tokens(embedder: BaseEmbedder, spec: InputTypeSpec, texts: str | Iterable[str]) -> int:
    """Return the tokens of these texts with their prompts, duplicates included; 0 for empty texts."""
    controller, total = _rate_controller(embedder, spec), 0
    listed = [texts] if isinstance(texts, str) else texts
    for plan in plan_chunks(listed, spec.key_prefix, TEXTS_PER_CHUNK, allows_empty=True):
        sizes, _ = _counts(embedder, spec, plan.texts, plan.sizes, controller)
        total += sum(sizes[index] for index in plan.source.tolist() if index >= 0)
    return total


class _Totals:
    """Sums over the chunks. A text that occurs again, also in another chunk, is counted once."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()
        self.texts = self.hits = self.to_send = self.tokens = self.max_tokens = self.saved = 0
        self.source: str | None = None

    def add(self, embedder: BaseEmbedder, spec: InputTypeSpec, plan: Plan, controller: RateController | None) -> None:
        """Add a chunk."""
        lookup = CacheLookup(embedder, spec, plan, NullRows())
        lookup.peek()
        hits = [index for index in lookup.hits if plan.keys[index] not in self.seen]
        misses = [index for index in lookup.misses if plan.keys[index] not in self.seen]
        self.seen.update(plan.keys)
        sizes, source = _sizes(embedder, spec, plan, misses, controller)
        self.source = source if misses else self.source
        self.texts += plan.n
        self.hits += len(hits)
        self.to_send += len(misses)
        self.tokens += sum(sizes)
        self.max_tokens += sum(max_tokens_to_send(plan.texts[index], spec.request_spec) for index in misses)
        self.saved += sum(plan.sizes[index] for index in hits)


def _rate_controller(embedder: BaseEmbedder, spec: InputTypeSpec) -> RateController | None:
    """Return the model's rate controller, None if this process has not used the model."""
    account = engine().known_account(embedder.provider) if is_running() else None
    return None if account is None else account.known_rate_controller(spec.request_spec.model)


def _sizes(
    embedder: BaseEmbedder, spec: InputTypeSpec, plan: Plan, indexes: Sequence[int], controller: RateController | None
) -> tuple[list[int], str]:
    """Return the tokens of each text to send and how they were determined."""
    texts, estimates = [plan.texts[index] for index in indexes], [plan.sizes[index] for index in indexes]
    sizes, source = _counts(embedder, spec, texts, estimates, controller)
    limit = embedder.provider.max_text_tokens if spec.request_spec.long_text == "truncate" else None
    return [size if limit is None else min(size, limit) for size in sizes], source


def _counts(
    embedder: BaseEmbedder,
    spec: InputTypeSpec,
    texts: Sequence[str],
    estimates: Sequence[int],
    controller: RateController | None,
) -> tuple[list[int], str]:
    """Return the tokens of each text with its prompt, truncated by nothing, and how they were determined.

    Args:
        embedder: The embedder.
        spec: The input type's specification.
        texts: The texts.
        estimates: Their estimated tokens, which are corrected and used if they cannot be counted.
        controller: What earlier bills were. None for estimates that they do not correct.
    """
    counted = [embedder.provider.count_tokens(text) for text in texts]
    prompt = str(spec.request_spec.body.get("prompt", ""))
    prompt_tokens = estimate_tokens(prompt, prompt.encode()) if prompt else 0
    if counted and None not in counted:
        sizes, source = [n or 0 for n in counted], TOKENIZER_SOURCE
    else:
        sizes, source = list(estimates), _estimated_source(controller)
        if controller is not None and controller.has_bills:
            # The bills include the prompts.
            return [max(1, round(size * controller.tokens_per_estimated)) for size in estimates], source
    return [size + prompt_tokens for size in sizes], source


def _estimated_source(controller: RateController | None) -> str:
    return CALIBRATED_SOURCE if controller is not None and controller.has_bills else BYTES_SOURCE


def _requests(
    embedder: BaseEmbedder, spec: InputTypeSpec, controller: RateController | None, n: int, tokens: int
) -> int:
    """Return the number of requests for n texts, as the engine will fill them.

    The first request of a process is small. If `tokens_per_minute` is too low for the job, requests are smaller.
    Otherwise, if `requests_per_minute` is too low, they are larger.
    """
    if not n:
        return 0
    capacity = RequestCapacity.from_limits(spec.request_spec.limits)
    slots = _slots(embedder)

    def needed(texts: int, max_tokens: int) -> int:
        share = tokens * texts // n
        per_request = texts_per_request(
            texts, slots, min(MAX_TEXTS, capacity.texts), tokens=share, cap_tokens=max_tokens
        )
        return ceil(texts / max(1, min(per_request, max_tokens * n // max(1, tokens))))

    usual_tokens = min(capacity.tokens, MAX_TOKENS)
    requests_per_minute, tokens_per_minute = embedder.settings.rates
    if tokens_per_minute is not None and tokens > bulk_limit(tokens_per_minute):
        from embedkit_core.engine.rate_limits.user_limits import paced_request_tokens  # not for a warm start

        usual_tokens = min(usual_tokens, ceil(paced_request_tokens(requests_per_minute, tokens_per_minute)))
        requests_per_minute = None  # it is met by the size of requests
    first = (
        0 if controller is not None else min(n, MIN_TEXTS, capacity.texts, max(1, usual_tokens * n // max(1, tokens)))
    )
    requests = (first > 0) + (needed(n - first, usual_tokens) if n > first else 0)
    if requests_per_minute is None or requests <= bulk_limit(requests_per_minute):
        return requests
    fewest = max(ceil(n / capacity.texts), ceil(tokens / capacity.tokens))
    return max(fewest, min(requests, bulk_limit(requests_per_minute)))


def _slots(embedder: BaseEmbedder) -> int:
    return embedder.provider.limits.max_in_flight(embedder.settings.max_concurrency)


def _seconds(embedder: BaseEmbedder, controller: RateController | None, requests: int, tokens: int) -> float | None:
    """Return the duration at the known limits, None for a local model that has not run in this process."""
    if not requests:
        return 0.0
    is_local = embedder.provider.is_local
    measured = controller.seconds_per_token if controller is not None and controller.has_bills else None
    if is_local and measured is None:
        return None
    guessed = ROUND_TRIP_SECONDS * requests + DEFAULT_SECONDS_PER_TOKEN * tokens
    busy = (guessed if measured is None else measured * tokens) / min(_slots(embedder), requests)
    bounds = [busy if is_local else max(busy, ROUND_TRIP_SECONDS)]
    rates = embedder.settings.rates
    if rates.requests_per_minute is not None:
        bounds.append(paced_seconds(requests, rates.requests_per_minute))
    if rates.tokens_per_minute is not None:
        bounds.append(paced_seconds(tokens, rates.tokens_per_minute))
    if controller is not None:
        bounds.append(controller.seconds_for(requests, tokens))
    return max(bounds)
