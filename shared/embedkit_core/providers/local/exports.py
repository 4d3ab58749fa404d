"""Files of a model in another format than PyTorch's, which are loaded and never made here."""

from __future__ import annotations

import glob
import mmap
from pathlib import Path, PurePosixPath

from embedkit_core.common.errors import ConfigurationError

# Names that sentence-transformers gives to its exports, in a folder of the backend's name
# (sentence_transformers/backend, version 6.2.0).
DEFAULT_FILES = {"onnx": "model.onnx", "openvino": "openvino_model.xml"}
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml"}


def find_export(folder: Path, backend: str, file_name: str | None) -> Path:
    """Return the file of a model in the format of a backend.

    Args:
        folder: Folder of the transformer.
        backend: "onnx" or "openvino".
        file_name: The user's file, None for the default.

    Raises:
        ConfigurationError: There is no such file; the message has the existing ones, or how to make one.
    """
    name = PurePosixPath(file_name or DEFAULT_FILES[backend])
    if name.suffix != SUFFIXES[backend] or name.is_absolute() or ".." in name.parts:
        raise ConfigurationError(
            f"provider_options: file_name must be a {SUFFIXES[backend]} file in the folder of the model "
            f"(got {file_name!r:.80})"
        )
    for candidate in (folder / name, folder / backend / name):
        if candidate.is_file():
            return candidate
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob(f"*{SUFFIXES[backend]}"))
    if found:
        fix = f"Set file_name in provider_options to one of {', '.join(map(repr, found))}."
    else:
        fix = (
            f"Export it once: SentenceTransformer(folder, backend={backend!r}).save_pretrained(folder), with "
            f'pip install "sentence-transformers[{backend}]". Nothing is exported or downloaded at run time.'
        )
    raise ConfigurationError(f"{folder.name} has no file {name}, nor {backend}/{name}. {fix}")


def data_files(file: Path) -> tuple[str, ...]:
    """Return patterns of the files of an export: itself, and the external data of an ONNX file."""
    name = f"{glob.escape(file.parent.name)}/{glob.escape(file.name)}"
    return (name, f"{name}_data*", f"{name}.data*")


def depends_on_batch(file: Path) -> bool:
    """Return True if a vector depends on the other texts of its batch: if activations are quantized at run time.

    Their scale is that of the whole batch. With MiniLM in int8, one text alone and among 63 others has a cosine of
    0.993 (measured 2026-11-30); without quantization it is 1. The names of operators are plain text in the file.
    """
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(b"DynamicQuantize") >= 0
