"""Specifications of an embedder's calls and of its two input types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict

from embedkit_core.cache.key import key_parts, key_prefix
from embedkit_core.common.types import EmptyText, InputType, LongText, RateSettings
from embedkit_core.common.vectors import PostProcessing, VectorFormat, VectorSpace
from embedkit_core.config.output_spec import OutputSpec
from embedkit_core.coordination.opening import Coordination
from embedkit_core.engine.rate_limits.limiter import LimiterAdapter
from embedkit_core.engine.scheduler import long_text as long_text_rules
from embedkit_core.engine.scheduler.items import RequestSpec
from embedkit_core.observability.progress import ProgressOption
from embedkit_core.providers.base import Provider

OnError = Literal["raise", "return"]
InBatch = Literal["pay", "wait", "error"]  # what a call does with documents in open batch jobs
Leftovers = Literal["batch", "request", "leave"]  # what becomes of texts that a batch did not embed


class SubmitOptions(TypedDict, total=False):
    """The keyword arguments of `Embedder.submit`."""

    input_type: InputType
    keep_texts: bool
    leftovers: Leftovers
    endpoint: str | None


@dataclass(frozen=True, slots=True)
class CallSettings:
    """The settings of a call that change no vector; `deadline` is in seconds."""

    max_concurrency: int
    rates: RateSettings
    max_retries: int
    deadline: float | None
    on_error: OnError
    progress: ProgressOption = None
    in_batch: InBatch = "pay"


@dataclass(frozen=True, slots=True)
class CachedVariant:
    """A format in which the cache may hold a vector from which the requested one can be derived.

    Attributes:
        prefix: The prefix of its cache keys.
        format: The dtype and dimensions of the cached vector.
        post_processing: What turns it into the requested vector.
    """

    prefix: bytes
    format: VectorFormat
    post_processing: PostProcessing


@dataclass(frozen=True, slots=True)
class InputTypeSpec:
    """What an embedder does for one input type.

    Attributes:
        input_type: "document" or "query".
        request_spec: The specification of its requests.
        key_prefix: The prefix of its cache keys.
        key_parts: What the prefix covers.
        format: The dtype and dimensions of vectors in the cache and in results.
        cached_variants: Where to look after a cache miss.
        allows_empty: Whether empty texts get zero vectors; otherwise they are errors.
    """

    input_type: InputType
    request_spec: RequestSpec
    key_prefix: bytes
    key_parts: Mapping[str, Any]
    format: VectorFormat
    cached_variants: tuple[CachedVariant, ...] = ()
    allows_empty: bool = False

    def with_max_texts(self, texts: int | None) -> InputTypeSpec:
        """Return a copy with at most this many texts per request."""
        if texts is None:
            return self
        return replace(self, request_spec=replace(self.request_spec, limits=self.request_spec.limits.capped(texts)))


def key_prefix_for(
    provider: Provider, output: OutputSpec, input_type: InputType, long_text: LongText
) -> tuple[bytes, dict[str, Any]]:
    """Return the prefix of the cache keys and what it covers."""
    truncates = provider.truncates_long_texts or provider.truncating_body(input_type) is not None
    parts = key_parts(
        provider=provider.cache_key_provider,
        endpoint=provider.endpoint,
        wire=provider.request_body(input_type),
        long_text=long_text_rules.rule_name(long_text, provider_cuts=truncates),
        after=output.key_parts(),
    )
    return key_prefix(parts), parts


def make_input_type_spec(
    provider: Provider,
    output: OutputSpec,
    input_type: InputType,
    *,
    vector_format: VectorFormat,
    cached_variants: tuple[CachedVariant, ...],
    long_text: LongText,
    empty_text: EmptyText,
    max_texts: int | None,
    timeout: float | None,
    limiter: LimiterAdapter | None,
    space: VectorSpace,
    coordination: Coordination | None = None,
) -> InputTypeSpec:
    """Return the specification of an input type."""
    prefix, parts = key_prefix_for(provider, output, input_type, long_text)
    reply = VectorFormat(output.dtype, provider.dimensions)
    request_spec = RequestSpec(
        id=prefix,
        timeout=None if provider.is_local else timeout,
        limits=provider.limits.capped(max_texts, limiter.max_tokens if limiter else None),
        long_text=long_text,
        model=f"{provider.name}:{provider.model}",
        width=reply.width,
        body=provider.request_body(input_type),
        limiter=limiter,
        dtype=output.dtype,
        fallback_width=output.fallback_width and reply.width_of(output.fallback_width),
        post_processing=output.post_processing or None,
        truncating_body=provider.truncating_body(input_type) if long_text == "truncate" else None,
        requests_width=output.dimensions is not None and not output.is_known,
        overhead_tokens=provider.overhead_tokens(input_type),
        sorts_by_length=provider.is_local,
        may_truncate_silently=provider.may_truncate_silently,
        space=space,
        coordination=coordination,
    )
    return InputTypeSpec(
        *(input_type, request_spec, prefix, parts),
        format=vector_format,
        cached_variants=cached_variants,
        allows_empty=empty_text == "zero",
    )
