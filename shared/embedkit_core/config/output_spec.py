"""Output specification: which dimensions and dtype are requested, which are computed locally. No I/O."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.types import ModelInfo
from embedkit_core.common.vectors import (
    BIT_PACKED,
    LOCAL_DTYPES,
    PROVIDER_QUANTIZED,
    DType,
    PostProcessing,
    VectorFormat,
)


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """What is requested from the provider, and how its replies are post-processed.

    Attributes:
        dimensions: The dimensions in the request, None for the model's default.
        dtype: The dtype in the request and in the reply.
        post_processing: What turns the reply's rows into the result's.
        format: The dtype and dimensions of the result.
        truncates_locally: Whether `dimensions=` is applied here because the provider does not accept it.
        fallback_width: The dimensions of a reply from a server that ignores the requested dimensions.
        is_known: Whether the catalogue or `model_info=` describes the model.
    """

    dimensions: int | None
    dtype: DType
    post_processing: PostProcessing
    format: VectorFormat
    truncates_locally: bool
    fallback_width: int | None = None
    is_known: bool = True

    def key_parts(self) -> dict[str, Any]:
        """Return what the cache key covers besides the request."""
        if self.truncates_locally:
            return self.post_processing.key_parts()
        # Truncation by the provider and the fallback here give the same vectors; centering exists only here.
        return replace(
            self.post_processing,
            truncate_to=None,
            center=self.post_processing.center and self.post_processing.truncate_to is not None,
        ).key_parts()


def resolve_output_spec(
    model: str,
    info: ModelInfo | None,
    *,
    dimensions: int | None,
    dtype: DType,
    provider_dtypes: tuple[DType, ...],
    accepts_dimensions: bool,
    returns_normalized: bool = True,
) -> OutputSpec:
    """Return what to request from the provider and what to compute locally.

    Args:
        model: The name of the model, for error messages.
        info: The catalogue entry, None if the model is unknown.
        dimensions: The wanted dimensions, None for the model's default.
        dtype: The wanted dtype.
        provider_dtypes: The dtypes that the provider offers for the model.
        accepts_dimensions: Whether the provider's API has a parameter for dimensions.
        returns_normalized: Whether rows of an unknown model are assumed to have length 1.

    Raises:
        ConfigurationError: The model does not offer these dimensions or this dtype.
    """
    _check_dimensions(model, info, dimensions)
    offered = tuple(dict.fromkeys(("float32", *provider_dtypes, *LOCAL_DTYPES)))
    if dtype not in offered:
        listed = ", ".join(offered)
        raise ConfigurationError(f"dtype: {model} does not offer {dtype!r}; it offers {listed}.")
    default = info.dimensions if info else None
    wanted = dimensions or default
    if dtype in BIT_PACKED and wanted is not None and wanted % 8:
        raise ConfigurationError(
            f"dtype: {dtype!r} packs eight dimensions into a number; {wanted} is not a multiple of 8."
        )
    source: DType = dtype if dtype in provider_dtypes else _floats(provider_dtypes)
    truncates_locally = dimensions is not None and info is not None and not accepts_dimensions and dimensions != default
    if truncates_locally and dtype in PROVIDER_QUANTIZED:
        raise ConfigurationError(
            f"dimensions: vectors of {model} with dtype={dtype!r} cannot be truncated (got {dimensions})."
        )
    truncation_is_documented = info is not None and info.cut is not None and dtype not in PROVIDER_QUANTIZED
    if truncates_locally and not truncation_is_documented:
        raise ConfigurationError(
            f"dimensions: truncation of vectors of {model} is not documented (got {dimensions}). If the model supports "
            "it, set 'cut' in model_info=."
        )
    truncate_to = dimensions if truncates_locally or (truncation_is_documented and dimensions != default) else None
    post_processing = PostProcessing(
        truncate_to=truncate_to,
        center=truncation_is_documented and info is not None and info.cut == "centered",
        normalize=(info.unit_length is False if info else not returns_normalized)
        and (source in ("float32", "float16") or source != dtype),
        restore_length=truncate_to is not None
        and info is not None
        and info.unit_length is True
        and source == "float32",
        source=source,
        dtype=dtype,
    )
    may_be_ignored = truncate_to is not None and not truncates_locally and default is not None and default > truncate_to
    return OutputSpec(
        dimensions=None if truncates_locally else dimensions,
        dtype=source,
        post_processing=post_processing,
        format=VectorFormat(dtype, wanted),
        truncates_locally=truncates_locally,
        fallback_width=default if may_be_ignored else None,
        is_known=info is not None,
    )


def _floats(provider_dtypes: tuple[DType, ...]) -> DType:
    """Return the type from which others are computed: int8 for a provider that returns only this type of numbers."""
    return "int8" if "int8" in provider_dtypes and "float32" not in provider_dtypes else "float32"


def _check_dimensions(model: str, info: ModelInfo | None, dimensions: int | None) -> None:
    allowed = info.allowed_dimensions if info else None
    if dimensions is None or allowed is None or dimensions in allowed:
        return
    span = f"{allowed.start} to {allowed.stop - 1}" if isinstance(allowed, range) else None
    listed = span or ", ".join(map(str, allowed))
    raise ConfigurationError(f"dimensions: {model} does not offer {dimensions} dimensions; it offers {listed}.")
