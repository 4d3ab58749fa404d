"""Who does what: which dimensions and type a provider is asked for, and what is done to its replies here. Pure."""

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
    """What a provider is asked for, and what its rows become.

    `dimensions` go into the request, None for the model's own; `dtype` is that of its replies. `finish` makes these
    the rows of the user's, which have `form`; `truncates_locally`: the provider is not asked to cut. `wider` is
    how many dimensions a reply may have instead, from a server that pays no heed to what it is asked. `is_known` says
    that the catalogue, or the user, knows the model.
    """

    dimensions: int | None
    dtype: DType
    post_processing: PostProcessing
    format: VectorFormat
    truncates_locally: bool
    fallback_width: int | None = None
    is_known: bool = True

    def key_parts(self) -> dict[str, Any]:
        """Give what of it a key covers beside the request."""
        if self.truncates_locally:
            return self.post_processing.key_parts()
        # Cut by its provider, or here where that pays no heed: the same, but for what only we do.
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
    offered: tuple[DType, ...],
    cuts: bool,
    unit: bool = True,
) -> OutputSpec:
    """Share out the work on a model's vectors.

    `offered` are the types its provider has, `cuts` tells whether it can be asked for dimensions, `unit` whether the
    rows of a model that is not known have length 1, as far as can be told.

    Raises:
        ConfigurationError: the model has not these dimensions or this type, with those it has.
    """
    _check_dimensions(model, info, dimensions)
    if dtype not in (*offered, *LOCAL_DTYPES):
        listed = ", ".join(dict.fromkeys((*offered, *LOCAL_DTYPES)))
        raise ConfigurationError(f"{model} does not offer dtype={dtype!r}; it offers {listed}")
    own = info.dimensions if info else None
    whole = dimensions or own
    if dtype in BIT_PACKED and whole is not None and whole % 8:
        raise ConfigurationError(f"dtype={dtype!r} packs eight dimensions into a number: {whole} is no multiple of 8")
    source: DType = dtype if dtype in offered else "float32"
    here = dimensions is not None and info is not None and not cuts and dimensions != own
    if here and dtype in PROVIDER_QUANTIZED:
        raise ConfigurationError(f"vectors of {model} are not cut to {dimensions}: those of dtype={dtype!r} cannot be")
    known = info is not None and info.cut is not None and dtype not in PROVIDER_QUANTIZED
    if here and not known:
        raise ConfigurationError(
            f"vectors of {model} are not cut to {dimensions}: nobody says how; model_info= may, by cut"
        )
    finish = PostProcessing(
        truncate_to=dimensions if here or (known and dimensions != own) else None,
        center=known and info is not None and info.cut == "centered",
        normalize=(info.unit_length is False if info else not unit) and source in ("float32", "float16"),
        source=source,
        dtype=dtype,
    )
    return OutputSpec(
        dimensions=None if here else dimensions,
        dtype=source,
        post_processing=finish,
        format=VectorFormat(dtype, whole),
        truncates_locally=here,
        fallback_width=own
        if finish.truncate_to is not None and not here and own is not None and own > finish.truncate_to
        else None,
        is_known=info is not None,
    )


def _check_dimensions(model: str, info: ModelInfo | None, asked: int | None) -> None:
    allowed = info.allowed_dimensions if info else None
    if asked is None or allowed is None or asked in allowed:
        return
    several = f"{allowed.start} to {allowed.stop - 1}" if isinstance(allowed, range) else None
    offered = several or ", ".join(map(str, allowed))
    raise ConfigurationError(f"{model} does not offer {asked} dimensions; it offers {offered}")
