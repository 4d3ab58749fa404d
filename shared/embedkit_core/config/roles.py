"""What an embedder's settings come to: what each call goes by, and for each input type its lane and its keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from embedkit_core.cache.key import key_parts, key_prefix
from embedkit_core.common.types import InputType, LongText
from embedkit_core.common.vectors import Finish, Form
from embedkit_core.config.output_spec import Order
from embedkit_core.engine.rate_limits.limiter import Gate
from embedkit_core.engine.rate_limits.user_limits import Rates
from embedkit_core.engine.scheduler import long_text as longtext
from embedkit_core.engine.scheduler.items import Lane
from embedkit_core.observability.progress import ProgressTo
from embedkit_core.providers.base import Provider

OnError = Literal["raise", "return"]


@dataclass(frozen=True, slots=True)
class CallSettings:
    """What of an embedder's settings belongs to each call and changes no vector; `deadline` is in seconds."""

    max_concurrency: int
    rates: Rates
    max_retries: int
    deadline: float | None
    on_error: OnError
    progress: ProgressTo = None


@dataclass(frozen=True, slots=True)
class Source:
    """Another place where a cache may have a text's vector: how its keys begin, and what makes it the one asked for."""

    prefix: bytes
    form: Form
    finish: Finish


@dataclass(frozen=True, slots=True)
class Role:
    """What an embedder does for one input type.

    That is the lane of its requests, its keys' beginning and what that covers, the `form` of rows in the cache and in
    results, and the `sources` to look into where the cache has none of these.
    """

    input_type: InputType
    lane: Lane
    prefix: bytes
    parts: Mapping[str, Any]
    form: Form
    sources: tuple[Source, ...] = ()

    def at_most(self, texts: int | None) -> Role:
        """Give the same role with no more than this many texts a request."""
        if texts is None:
            return self
        return replace(self, lane=replace(self.lane, limits=self.lane.limits.at_most(texts)))


def beginning(
    provider: Provider, asked: Order, input_type: InputType, long_text: LongText
) -> tuple[bytes, dict[str, Any]]:
    """Give how the keys begin of what is asked so, and what that covers."""
    cuts = provider.cuts_long_texts or provider.cutting_wire(input_type) is not None
    parts = key_parts(
        provider=provider.key_name,
        endpoint=provider.endpoint,
        wire=provider.wire(input_type),
        long_text=longtext.rule_name(long_text, provider_cuts=cuts),
        after=asked.parts(),
    )
    return key_prefix(parts), parts


def make_role(
    provider: Provider,
    asked: Order,
    input_type: InputType,
    *,
    form: Form,
    sources: tuple[Source, ...],
    long_text: LongText,
    max_texts: int | None,
    timeout: float | None,
    gate: Gate | None,
) -> Role:
    """Make the role of an input type from an embedder's settings."""
    prefix, parts = beginning(provider, asked, input_type, long_text)
    reply = Form(asked.dtype, provider.dimensions)
    lane = Lane(
        wire_id=prefix,
        timeout=None if provider.on_this_machine else timeout,
        limits=provider.limits.at_most(max_texts, gate.most_tokens if gate else None),
        long_text=long_text,
        model=f"{provider.name}:{provider.model}",
        width=reply.width,
        wire=provider.wire(input_type),
        gate=gate,
        dtype=asked.dtype,
        wider=asked.wider and reply.width_of(asked.wider),
        finish=asked.finish or None,
        cutting=provider.cutting_wire(input_type) if long_text == "truncate" else None,
        asks_width=asked.dimensions is not None and not asked.is_known,
        added_tokens=provider.added_tokens(input_type),
        sorts=provider.on_this_machine,
    )
    return Role(input_type, lane, prefix, parts, form=form, sources=sources)
