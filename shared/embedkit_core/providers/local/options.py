"""What a user may say of how a local model runs, in `provider_options`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias, get_args

from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.formatting import suggest

Precision: TypeAlias = Literal["float32", "float16", "bfloat16"]
DEVICE = re.compile(r"(cpu|cuda|mps|xpu|npu|hpu)(:\d+)?")
MOST_DEVICES = 256
BATCH_SIZE = 32  # as sentence-transformers has it

# Names from sentence-transformers and what there is instead.
INSTEAD = {
    "trust_remote_code": "code that comes with a model is never run here. Serve such a model with a server of its own "
    "(text-embeddings-inference, vLLM) and name its base_url=",
    "processes": "name the device once for each process: device=['cpu', 'cpu'] is two",
    "devices": "device takes a list: device=['cuda:0', 'cuda:1']",
    "truncate_dim": "use dimensions=",
    "prompts": "use query_prompt= and document_prompt=",
    "normalize_embeddings": "vectors are always brought to unit length",
    "dtype": "precision is that of the weights, dtype= (no option but an argument) that of the vectors",
    "torch_dtype": "precision is that of the weights",
    "backend": "models run in PyTorch",
    "cache_folder": "set HF_HUB_CACHE, or name the folder of the model",
    "revision": "name the folder of the revision (…/snapshots/<revision>)",
}


@dataclass(frozen=True, slots=True)
class LocalOptions:
    """How a model runs.

    `device` is none for sentence-transformers' own choice (CUDA, MPS, NPU, else the CPU); several are a process each.
    `precision` is that of the weights, and `max_seq_length` where texts are cut, None for the model's own: these two
    change vectors. `batch_size` texts at most go through the model at once.

    A device is not in a key: vectors of a GPU differ from those of a CPU by some 1e-6, and share their entries.
    """

    device: tuple[str, ...] = ()
    precision: Precision = "float32"
    batch_size: int = BATCH_SIZE
    max_seq_length: int | None = None

    @property
    def is_cpu(self) -> bool:
        """Tell whether no other device than the CPU is named: then it is probably the one."""
        return all(device.startswith("cpu") for device in self.device)

    @property
    def is_pool(self) -> bool:
        """Tell whether texts are shared out to processes."""
        return len(self.device) > 1


NAMES = tuple(field.name for field in fields(LocalOptions))


def read_options(given: Mapping[str, Any], *, longest: int | None) -> LocalOptions:
    """Check the options of a model whose positions suffice for `longest` tokens, None where that is not known.

    Raises:
        ConfigurationError: for an option that does not exist, with the nearest, or a value that cannot be.
    """
    for name in given:
        if name not in NAMES:
            raise _unknown(name)
    precision = given.get("precision", "float32")
    if precision not in get_args(Precision):
        listed = ", ".join(map(repr, get_args(Precision)))
        raise ConfigurationError(f"provider_options: precision={precision!r:.40} is not one of {listed}")
    return LocalOptions(
        _devices(given.get("device")),
        precision,
        _count("batch_size", given.get("batch_size")) or BATCH_SIZE,
        _length(given.get("max_seq_length"), longest),
    )


def _unknown(name: str) -> ConfigurationError:
    known = INSTEAD.get(name) or suggest(name, NAMES, cutoff=0.6) or f"there are {', '.join(NAMES)}"
    return ConfigurationError(f"provider_options of a local model has no {name!r}: {known}")


def _devices(given: object) -> tuple[str, ...]:
    devices = [given] if isinstance(given, str) else given
    if devices is None:
        return ()
    if not isinstance(devices, list) or not 0 < len(devices) <= MOST_DEVICES:
        raise ConfigurationError(f"provider_options: device={given!r:.40} must be a device, or a list of some")
    for device in devices:
        if not isinstance(device, str) or not DEVICE.fullmatch(device):
            raise ConfigurationError(
                f"provider_options: device={device!r:.40} is no device such as 'cpu', 'cuda', 'cuda:1' or 'mps'"
            )
    return tuple(devices)


def _length(given: object, longest: int | None) -> int | None:
    length = _count("max_seq_length", given)
    if length is not None and longest is not None and length > longest:
        raise ConfigurationError(
            f"provider_options: max_seq_length={length} is more than the {longest} tokens that the model has room for"
        )
    return length


def _count(name: str, given: object) -> int | None:
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int) or given < 1:
        raise ConfigurationError(f"provider_options: {name}={given!r:.40} must be a whole number of at least 1")
    return given
