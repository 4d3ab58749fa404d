"""Cached variants: vectors of other dimensions or dtypes from which the requested ones can be derived."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.types import InputType, LongText
from embedkit_core.common.vectors import PROVIDER_QUANTIZED, DType, PostProcessing, VectorFormat
from embedkit_core.config.output_spec import OutputSpec
from embedkit_core.config.resolve import ResolvedProvider
from embedkit_core.config.roles import CachedVariant, key_prefix_for
from embedkit_core.providers.base import Provider

# The dimensions to look for if a model offers a whole range.
COMMON_DIMENSIONS = (4096, 3072, 2560, 2048, 1536, 1024, 768, 512, 384, 256, 128)


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """The provider and output of an embedder, and the alternatives that the cache may hold.

    Attributes:
        provider: The provider, configured for the request.
        output: What is requested and how it is post-processed.
        format: The dtype and dimensions of the result.
        alternatives: Providers and outputs whose vectors can replace a missing one, with the post-processing for that.
    """

    provider: Provider
    output: OutputSpec
    format: VectorFormat
    alternatives: tuple[tuple[Provider, OutputSpec, PostProcessing], ...]

    def cached_variants(self, input_type: InputType, long_text: LongText) -> tuple[CachedVariant, ...]:
        """Return the variants to look up after a cache miss.

        There are none for "mean": the mean of truncated vectors is not the truncated mean.
        """
        if long_text == "mean":
            return ()
        own_prefix = key_prefix_for(self.provider, self.output, input_type, long_text)[0]
        variants = {
            key_prefix_for(provider, output, input_type, long_text)[0]: (output.format, post_processing)
            for provider, output, post_processing in self.alternatives
        }
        return tuple(CachedVariant(prefix, *variant) for prefix, variant in variants.items() if prefix != own_prefix)


def resolve_model(
    resolved: ResolvedProvider, *, dimensions: int | None, dtype: DType, long_text: LongText
) -> ResolvedModel:
    """Return what is requested from the provider, and the variants that the cache may hold.

    Raises:
        ConfigurationError: The model does not offer these dimensions or this dtype.
    """
    output = resolved.output_spec(dimensions, dtype)
    provider = resolved.make(output)
    if long_text == "mean" and output.format.dtype not in ("float32", "float16"):
        raise ConfigurationError(
            f"on_long_text: 'mean' needs a float dtype (got dtype={dtype!r}). Use on_long_text='truncate' or "
            "dtype='float32'."
        )
    vector_format = output.format if output.format.dimensions else VectorFormat(dtype, provider.dimensions)
    alternatives: list[tuple[Provider, OutputSpec, PostProcessing]] = []
    for width, candidate_dtype in _candidates(resolved, output, dimensions):
        alternative = resolved.output_spec(width, candidate_dtype)
        is_same = (alternative.dimensions, alternative.dtype) == (output.dimensions, output.dtype)
        post_processing = PostProcessing(
            vector_format.dimensions,
            output.post_processing.must_center(alternative.post_processing),
            normalize=output.post_processing.normalize and not alternative.post_processing.normalize,
            source=alternative.format.dtype,
            dtype=dtype,
        )
        alternatives.append((provider if is_same else resolved.make(alternative), alternative, post_processing))
    return ResolvedModel(provider, output, vector_format, tuple(alternatives))


def _candidates(
    resolved: ResolvedProvider, output: OutputSpec, dimensions: int | None
) -> Iterator[tuple[int | None, DType]]:
    """Yield the dimensions and dtypes from which vectors can be derived: those of the same length first."""
    info, width = resolved.info, output.format.dimensions
    if output.format.dtype != output.dtype:
        yield dimensions, output.dtype
    if info is None or info.cut is None or width is None or output.dtype in PROVIDER_QUANTIZED:
        return
    allowed = info.allowed_dimensions or ()
    longer = [
        n for n in (COMMON_DIMENSIONS if isinstance(allowed, range) else sorted(allowed, reverse=True)) if n in allowed
    ]
    for n in dict.fromkeys([info.dimensions or 0, *longer]):
        if n > width:
            yield n, output.dtype
