"""Other vectors that answer: a longer one, where its provider documents that its beginning is the shorter one."""

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

# Of a model that has any number of dimensions, these are looked for: what people ask for.
COMMON_DIMENSIONS = (4096, 3072, 2560, 2048, 1536, 1024, 768, 512, 384, 256, 128)


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """What is asked of the provider, the form of the caller's rows, and what else may be in a cache for them."""

    provider: Provider
    output: OutputSpec
    format: VectorFormat
    others: tuple[tuple[Provider, OutputSpec, PostProcessing], ...]

    def cached_variants(self, input_type: InputType, long_text: LongText) -> tuple[CachedVariant, ...]:
        """Give where else to look.

        Not for "mean": the mean of shorter vectors is not the beginning of the mean of longer ones.
        """
        if long_text == "mean":
            return ()
        mine = key_prefix_for(self.provider, self.output, input_type, long_text)[0]
        found = {
            key_prefix_for(provider, asked, input_type, long_text)[0]: (asked.format, finish)
            for provider, asked, finish in self.others
        }
        return tuple(CachedVariant(prefix, form, finish) for prefix, (form, finish) in found.items() if prefix != mine)


def resolve_model(
    choice: ResolvedProvider, *, dimensions: int | None, dtype: DType, long_text: LongText
) -> ResolvedModel:
    """Decide what is asked for and where else to look, for vectors of these dimensions and this type.

    Raises:
        ConfigurationError: the model does not offer them.
    """
    asked = choice.output_spec(dimensions, dtype)
    provider = choice.make(asked)
    if long_text == "mean" and asked.format.dtype not in ("float32", "float16"):
        raise ConfigurationError(
            f"on_long_text='mean' needs floats, and dtype={dtype!r} are none; use 'truncate', or dtype='float32'"
        )
    form = asked.format if asked.format.dimensions else VectorFormat(dtype, provider.dimensions)
    others: list[tuple[Provider, OutputSpec, PostProcessing]] = []
    for width, kind in _candidates(choice, asked, dimensions):
        other = choice.output_spec(width, kind)
        same = (other.dimensions, other.dtype) == (asked.dimensions, asked.dtype)
        finish = PostProcessing(
            form.dimensions,
            asked.post_processing.must_center(other.post_processing),
            source=other.format.dtype,
            dtype=dtype,
        )
        others.append((provider if same else choice.make(other), other, finish))
    return ResolvedModel(provider, asked, form, tuple(others))


def _candidates(
    choice: ResolvedProvider, asked: OutputSpec, dimensions: int | None
) -> Iterator[tuple[int | None, DType]]:
    """Name the dimensions and types that vectors can be made from: as long as asked for first, then the model's own."""
    info, width = choice.info, asked.format.dimensions
    if asked.format.dtype != asked.dtype:
        yield dimensions, asked.dtype
    if info is None or info.cut is None or width is None or asked.format.dtype in PROVIDER_QUANTIZED:
        return
    allowed = info.allowed_dimensions or ()
    longer = [
        n for n in (COMMON_DIMENSIONS if isinstance(allowed, range) else sorted(allowed, reverse=True)) if n in allowed
    ]
    for n in dict.fromkeys([info.dimensions or 0, *longer]):
        if n > width:
            yield n, asked.dtype
