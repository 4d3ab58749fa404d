"""What an embedder's settings come to: what each call goes by, and for each input type its lane and its keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from embedkit_core.engine import longtext
from embedkit_core.engine.gate import Gate
from embedkit_core.engine.items import Lane
from embedkit_core.engine.own import Rates
from embedkit_core.plan import key_parts, key_prefix
from embedkit_core.providers import Provider
from embedkit_core.types import InputType, LongText

OnError = Literal["raise", "return"]


@dataclass(frozen=True, slots=True)
class CallSettings:
    """What of an embedder's settings belongs to each call and changes no vector; `deadline` is in seconds."""

    max_concurrency: int
    rates: Rates
    max_retries: int
    deadline: float | None
    on_error: OnError


@dataclass(frozen=True, slots=True)
class Role:
    """What an embedder does for one input type: the lane of its requests, its keys' beginning and what that covers."""

    input_type: InputType
    lane: Lane
    prefix: bytes
    parts: Mapping[str, Any]

    def at_most(self, texts: int | None) -> Role:
        """Give the same role with no more than this many texts a request."""
        if texts is None:
            return self
        return replace(self, lane=replace(self.lane, limits=self.lane.limits.at_most(texts)))


def make_role(
    provider: Provider,
    input_type: InputType,
    *,
    long_text: LongText,
    max_texts: int | None,
    timeout: float | None,
    gate: Gate | None,
) -> Role:
    """Make the role of an input type from an embedder's settings."""
    wire = provider.wire(input_type)
    parts = key_parts(
        provider=provider.name,
        endpoint=provider.endpoint,
        wire=wire,
        long_text=longtext.rule_name(long_text, provider_cuts=provider.cuts_long_texts),
    )
    prefix = key_prefix(parts)
    lane = Lane(
        wire_id=prefix,
        timeout=None if provider.on_this_machine else timeout,
        limits=provider.limits.at_most(max_texts, gate.most_tokens if gate else None),
        long_text=long_text,
        model=f"{provider.name}:{provider.model}",
        dimensions=provider.dimensions,
        usd_per_million=provider.usd_per_million,
        wire=wire,
        gate=gate,
    )
    return Role(input_type, lane, prefix, parts)
