"""What an embedder's settings come to: what each call goes by, and for each input type its lane and its keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from embedkit_core.cache.key import key_parts, key_prefix
from embedkit_core.common.types import InputType, LongText
from embedkit_core.common.vectors import PostProcessing, VectorFormat
from embedkit_core.config.output_spec import OutputSpec
from embedkit_core.engine.rate_limits.limiter import LimiterAdapter
from embedkit_core.engine.rate_limits.user_limits import RateSettings
from embedkit_core.engine.scheduler import long_text as longtext
from embedkit_core.engine.scheduler.items import RequestSpec
from embedkit_core.observability.progress import ProgressOption
from embedkit_core.providers.base import Provider

OnError = Literal["raise", "return"]


@dataclass(frozen=True, slots=True)
class CallSettings:
    """What of an embedder's settings belongs to each call and changes no vector; `deadline` is in seconds."""

    max_concurrency: int
    rates: RateSettings
    max_retries: int
    deadline: float | None
    on_error: OnError
    progress: ProgressOption = None


@dataclass(frozen=True, slots=True)
class CachedVariant:
    """Another place where a cache may have a text's vector: how its keys begin, and what makes it the one asked for."""

    prefix: bytes
    format: VectorFormat
    post_processing: PostProcessing


@dataclass(frozen=True, slots=True)
class InputTypeSpec:
    """What an embedder does for one input type.

    That is the lane of its requests, its keys' beginning and what that covers, the `form` of rows in the cache and in
    results, and the `sources` to look into where the cache has none of these.
    """

    input_type: InputType
    request_spec: RequestSpec
    key_prefix: bytes
    key_parts: Mapping[str, Any]
    format: VectorFormat
    cached_variants: tuple[CachedVariant, ...] = ()

    def with_max_texts(self, texts: int | None) -> InputTypeSpec:
        """Give the same role with no more than this many texts a request."""
        if texts is None:
            return self
        return replace(self, request_spec=replace(self.request_spec, limits=self.request_spec.limits.capped(texts)))


def key_prefix_for(
    provider: Provider, asked: OutputSpec, input_type: InputType, long_text: LongText
) -> tuple[bytes, dict[str, Any]]:
    """Give how the keys begin of what is asked so, and what that covers."""
    cuts = provider.truncates_long_texts or provider.truncating_body(input_type) is not None
    parts = key_parts(
        provider=provider.cache_key_provider,
        endpoint=provider.endpoint,
        wire=provider.request_body(input_type),
        long_text=longtext.rule_name(long_text, provider_cuts=cuts),
        after=asked.key_parts(),
    )
    return key_prefix(parts), parts


def make_input_type_spec(
    provider: Provider,
    asked: OutputSpec,
    input_type: InputType,
    *,
    form: VectorFormat,
    sources: tuple[CachedVariant, ...],
    long_text: LongText,
    max_texts: int | None,
    timeout: float | None,
    gate: LimiterAdapter | None,
) -> InputTypeSpec:
    """Make the role of an input type from an embedder's settings."""
    prefix, parts = key_prefix_for(provider, asked, input_type, long_text)
    reply = VectorFormat(asked.dtype, provider.dimensions)
    lane = RequestSpec(
        id=prefix,
        timeout=None if provider.is_local else timeout,
        limits=provider.limits.capped(max_texts, gate.max_tokens if gate else None),
        long_text=long_text,
        model=f"{provider.name}:{provider.model}",
        width=reply.width,
        body=provider.request_body(input_type),
        limiter=gate,
        dtype=asked.dtype,
        fallback_width=asked.fallback_width and reply.width_of(asked.fallback_width),
        post_processing=asked.post_processing or None,
        truncating_body=provider.truncating_body(input_type) if long_text == "truncate" else None,
        requests_width=asked.dimensions is not None and not asked.is_known,
        overhead_tokens=provider.overhead_tokens(input_type),
        sorts_by_length=provider.is_local,
    )
    return InputTypeSpec(input_type, lane, prefix, parts, format=form, cached_variants=sources)
