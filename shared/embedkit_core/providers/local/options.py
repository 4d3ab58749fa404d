"""Options of local models in `provider_options`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias, get_args

from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.formatting import suggest

Backend: TypeAlias = Literal["torch", "onnx", "openvino"]
Precision: TypeAlias = Literal["float32", "float16", "bfloat16"]
DEVICE = re.compile(r"(cpu|cuda|mps|xpu|npu|hpu)(:\d+)?")
# Devices on which a backend runs; PyTorch runs on all.
BACKEND_DEVICES = {"onnx": ("cpu", "cuda"), "openvino": ("cpu",)}
MAX_DEVICES = 256
DEFAULT_BATCH_SIZE = 32  # as in sentence-transformers

# Options of the libraries and their replacements.
COMMON_REPLACEMENTS = {
    "prompts": "use query_prompt= and document_prompt=",
    "normalize_embeddings": "vectors are always normalized",
    "normalize": "vectors are always normalized",
    "cache_dir": "set FASTEMBED_CACHE_PATH, or pass the folder of the model",
    "cache_folder": "set HF_HUB_CACHE, or pass the folder of the model",
    "revision": "pass the folder of the revision (…/snapshots/<revision>)",
    "max_length": "use max_seq_length",
}
REPLACEMENTS = COMMON_REPLACEMENTS | {
    "trust_remote_code": "code of a model is never run here; serve the model with text-embeddings-inference or vLLM "
    "and pass base_url=",
    "processes": "repeat the device for each process: device=['cpu', 'cpu'] starts two",
    "devices": "pass a list as device: device=['cuda:0', 'cuda:1']",
    "truncate_dim": "use dimensions=",
    "dtype": "use precision for the weights, and the argument dtype= for the vectors",
    "torch_dtype": "use precision for the weights",
    "export": "nothing is exported at run time; export the model once and pass its folder",
}


@dataclass(frozen=True, slots=True)
class LocalOptions:
    """How a local model runs. All but `device` and `batch_size` change vectors and are part of cache keys.

    The device is not part of cache keys, because vectors of a GPU and a CPU differ by only about 1e-6.

    Attributes:
        device: Devices, one process each if there are several; empty for the default of sentence-transformers.
        precision: Dtype of the weights in PyTorch.
        batch_size: Maximum texts that the model encodes at once.
        max_seq_length: Length in tokens to which texts are truncated, None for the model's default.
        backend: Library that runs the model.
        file_name: File of the model in the backend's format, None for the default.
    """

    device: tuple[str, ...] = ()
    precision: Precision = "float32"
    batch_size: int = DEFAULT_BATCH_SIZE
    max_seq_length: int | None = None
    backend: Backend = "torch"
    file_name: str | None = None

    @property
    def is_cpu(self) -> bool:
        """Return True if no device other than the CPU is set."""
        return all(device.startswith("cpu") for device in self.device)

    @property
    def is_pool(self) -> bool:
        """Return True if several processes encode the texts."""
        return len(self.device) > 1


NAMES = tuple(field.name for field in fields(LocalOptions))


def read_local_options(options: Mapping[str, Any], *, max_tokens: int | None) -> LocalOptions:
    """Check `provider_options` of sentence-transformers and return them.

    Args:
        options: The user's options.
        max_tokens: Maximum tokens of a text that the model supports, None if unknown.

    Raises:
        ConfigurationError: An option is unknown, or its value is invalid.
    """
    check_names(options, NAMES, REPLACEMENTS)
    backend = _choice("backend", options.get("backend"), "torch", get_args(Backend))
    precision = _choice("precision", options.get("precision"), "float32", get_args(Precision))
    devices = _devices(options.get("device"))
    if backend == "torch":
        if options.get("file_name") is not None:
            raise ConfigurationError("provider_options: file_name needs backend='onnx' or 'openvino'")
    else:
        _check_backend(backend, options, devices)
    return LocalOptions(
        devices,
        precision,
        read_count("batch_size", options.get("batch_size")) or DEFAULT_BATCH_SIZE,
        read_max_seq_length(options.get("max_seq_length"), max_tokens),
        backend,
        read_text("file_name", options.get("file_name")),
    )


def _check_backend(backend: str, options: Mapping[str, Any], devices: Sequence[str]) -> None:
    """Reject options that only PyTorch has."""
    if options.get("precision") is not None:
        raise ConfigurationError(
            f"provider_options: precision applies to PyTorch only (got backend={backend!r}). Set file_name to a file "
            "of that precision."
        )
    if len(devices) > 1 or any(device not in BACKEND_DEVICES[backend] for device in devices):
        raise ConfigurationError(
            f"provider_options: device must be one of {', '.join(map(repr, BACKEND_DEVICES[backend]))} with "
            f"backend={backend!r} (got {', '.join(devices)!r:.80})"
        )


def check_names(options: Mapping[str, Any], names: Sequence[str], replacements: Mapping[str, str]) -> None:
    """Raise ConfigurationError for an unknown option; the message has its replacement."""
    for name in options:
        if name not in names:
            fix = replacements.get(name) or suggest(name, names, cutoff=0.6) or f"use {', '.join(names)}"
            raise ConfigurationError(f"provider_options: local models have no option {name!r}; {fix}")


def _choice(name: str, value: object, default: str, choices: Sequence[str]) -> Any:
    if value is None:
        return default
    if value not in choices:
        listed = ", ".join(map(repr, choices))
        raise ConfigurationError(f"provider_options: {name} must be one of {listed} (got {value!r:.40})")
    return value


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


def read_max_seq_length(value: object, max_tokens: int | None) -> int | None:
    """Return the user's limit of a text in tokens, which is at most that of the model."""
    length = read_count("max_seq_length", value)
    if length is not None and max_tokens is not None and length > max_tokens:
        raise ConfigurationError(
            f"provider_options: max_seq_length must be at most {max_tokens}, the maximum of the model (got {length})"
        )
    return length


def read_text(name: str, value: object) -> str | None:
    """Return an option that is a string, None if it is not set."""
    if value is None or (isinstance(value, str) and value):
        return value
    raise ConfigurationError(f"provider_options: {name} must be a string (got {value!r:.40})")


def read_count(name: str, value: object) -> int | None:
    """Return an option that is a positive integer, None if it is not set."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"provider_options: {name} must be a whole number of at least 1 (got {value!r:.40})")
    return value
