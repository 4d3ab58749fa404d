"""Options of local models in `provider_options`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias, get_args

from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.formatting import suggest

Precision: TypeAlias = Literal["float32", "float16", "bfloat16"]
DEVICE = re.compile(r"(cpu|cuda|mps|xpu|npu|hpu)(:\d+)?")
MAX_DEVICES = 256
DEFAULT_BATCH_SIZE = 32  # as in sentence-transformers

# Options of sentence-transformers and their replacements.
REPLACEMENTS = {
    "trust_remote_code": "code of a model is never run here; serve the model with text-embeddings-inference or vLLM "
    "and pass base_url=",
    "processes": "repeat the device for each process: device=['cpu', 'cpu'] starts two",
    "devices": "pass a list as device: device=['cuda:0', 'cuda:1']",
    "truncate_dim": "use dimensions=",
    "prompts": "use query_prompt= and document_prompt=",
    "normalize_embeddings": "vectors are always normalized",
    "dtype": "use precision for the weights, and the argument dtype= for the vectors",
    "torch_dtype": "use precision for the weights",
    "backend": "models always run in PyTorch",
    "cache_folder": "set HF_HUB_CACHE, or pass the folder of the model",
    "revision": "pass the folder of the revision (…/snapshots/<revision>)",
}


@dataclass(frozen=True, slots=True)
class LocalOptions:
    """How a local model runs. `precision` and `max_seq_length` change vectors and are part of cache keys.

    The device is not part of cache keys, because vectors of a GPU and a CPU differ by only about 1e-6.

    Attributes:
        device: Devices, one process each if there are several; empty for the default of sentence-transformers.
        precision: Dtype of the weights.
        batch_size: Maximum texts that the model encodes at once.
        max_seq_length: Length in tokens to which texts are truncated, None for the model's default.
    """

    device: tuple[str, ...] = ()
    precision: Precision = "float32"
    batch_size: int = DEFAULT_BATCH_SIZE
    max_seq_length: int | None = None

    @property
    def is_cpu(self) -> bool:
        """Return True if no device other than the CPU is set."""
        return all(device.startswith("cpu") for device in self.device)

    @property
    def is_pool(self) -> bool:
        """Return True if several processes encode the texts."""
        return len(self.device) > 1


NAMES = tuple(field.name for field in fields(LocalOptions))


def read_options(options: Mapping[str, Any], *, max_tokens: int | None) -> LocalOptions:
    """Check `provider_options` and return them.

    Args:
        options: The user's options.
        max_tokens: Maximum tokens of a text that the model supports, None if unknown.

    Raises:
        ConfigurationError: An option is unknown, or its value is invalid.
    """
    for name in options:
        if name not in NAMES:
            raise _unknown(name)
    precision = options.get("precision", "float32")
    if precision not in get_args(Precision):
        listed = ", ".join(map(repr, get_args(Precision)))
        raise ConfigurationError(f"provider_options: precision must be one of {listed} (got {precision!r:.40})")
    return LocalOptions(
        _devices(options.get("device")),
        precision,
        _count("batch_size", options.get("batch_size")) or DEFAULT_BATCH_SIZE,
        _max_seq_length(options.get("max_seq_length"), max_tokens),
    )


def _unknown(name: str) -> ConfigurationError:
    fix = REPLACEMENTS.get(name) or suggest(name, NAMES, cutoff=0.6) or f"use {', '.join(NAMES)}"
    return ConfigurationError(f"provider_options: local models have no option {name!r}; {fix}")


def _devices(value: object) -> tuple[str, ...]:
    devices = [value] if isinstance(value, str) else value
    if devices is None:
        return ()
    if not isinstance(devices, list) or not 0 < len(devices) <= MAX_DEVICES:
        raise ConfigurationError(f"provider_options: device must be a device or a list of devices (got {value!r:.40})")
    for device in devices:
        if not isinstance(device, str) or not DEVICE.fullmatch(device):
            raise ConfigurationError(
                f"provider_options: device must be one such as 'cpu', 'cuda', 'cuda:1' or 'mps' (got {device!r:.40})"
            )
    return tuple(devices)


def _max_seq_length(value: object, max_tokens: int | None) -> int | None:
    length = _count("max_seq_length", value)
    if length is not None and max_tokens is not None and length > max_tokens:
        raise ConfigurationError(
            f"provider_options: max_seq_length must be at most {max_tokens}, the maximum of the model (got {length})"
        )
    return length


def _count(name: str, value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"provider_options: {name} must be a whole number of at least 1 (got {value!r:.40})")
    return value
