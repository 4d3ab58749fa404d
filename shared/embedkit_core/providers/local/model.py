"""A model that is loaded on this machine: truncation, order of batches and errors, for all libraries."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from embedkit_core.common.errors import BadRequestError, ProviderError, RequestTooLargeError, TextTooLongError
from embedkit_core.common.formatting import count_noun
from embedkit_core.common.types import Batch, Reply
from embedkit_core.providers.local.digest import folder_digest
from embedkit_core.providers.local.folder import CUSTOM_CODE

EncodedRows = npt.NDArray[np.float32]
CHARACTERS_PER_TOKEN = 5  # a model ignores the characters of a text beyond this multiple of its limit
MAX_ERROR_CHARACTERS = 200  # of the message of a model that cannot be loaded
# Messages of PyTorch, which has an exception class only for CUDA, and of ONNX Runtime, which has none
# (microsoft/onnxruntime, core/framework/bfc_arena.cc, read 2026-11-30).
OUT_OF_MEMORY = ("out of memory", "DefaultCPUAllocator", "Failed to allocate memory")


class LocalModel(ABC):
    """One model, loaded at the first request. Not thread-safe.

    Args:
        folder: The folder of the model.
        digest: Its digest when the embedder was created.
        files: Patterns of the files in the digest, besides those that every digest has.
    """

    device = "this machine"
    memory_advice = "Truncate texts with provider_options={'max_seq_length': ...}."

    def __init__(self, folder: Path, digest: str, files: tuple[str, ...] = ()) -> None:
        self.name = folder.name
        self.folder = folder
        self._digest = digest
        self._files = files

    def embed(self, batch: Batch) -> Reply:
        """Return the vectors and tokens of a batch's texts, and the positions of truncated texts.

        Raises:
            TextTooLongError: Texts are too long, and the request does not allow truncation.
            RequestTooLargeError: The texts do not fit into memory together.
            BadRequestError: The model cannot be loaded.
            ProviderError: The model fails.
        """
        if not self.is_loaded:
            self._load_checked()
        texts, limit = batch.texts_with_prompt(), self.limit
        truncates = bool(batch.body["truncation"])
        if not truncates:  # checked first to save work: a text rarely has more tokens than bytes
            check_lengths(texts, self.measure([text for text in texts if len(text.encode()) > limit]), limit)
        try:
            rows, lengths = self.encode_batch(batch, texts)
        except Exception as error:  # its message may contain a text
            raise self.to_provider_error(error, len(texts)) from None
        if not truncates:
            check_lengths(texts, lengths, limit)
        rows = np.ascontiguousarray(rows, dtype=np.float32)
        truncated = tuple(position for position, text in enumerate(texts) if lengths[text] > limit)
        tokens = int(sum(min(lengths[text], limit) for text in texts))
        return Reply(rows if self.is_normalized else _normalized(rows), tokens, truncated)

    @property
    def is_normalized(self) -> bool:
        """Return True if `encode_batch` returns normalized float32 vectors."""
        return False

    @property
    @abstractmethod
    def is_loaded(self) -> bool:
        """Return True if the model is loaded."""

    @property
    @abstractmethod
    def limit(self) -> float:
        """Maximum tokens of a text, with its prompt and special tokens."""

    @abstractmethod
    def load(self) -> None:
        """Load the model."""

    @abstractmethod
    def encode_batch(self, batch: Batch, texts: list[str]) -> tuple[EncodedRows, Mapping[str, int]]:
        """Encode a batch.

        Args:
            batch: The request.
            texts: Its texts with their prompts.

        Returns:
            The vectors in the order of the texts, and the length of each text in tokens.
        """

    @abstractmethod
    def measure(self, texts: list[str]) -> dict[str, int]:
        """Return the tokens of each text without truncation, including special tokens."""

    @abstractmethod
    def close(self) -> None:
        """Release the model."""

    def to_provider_error(self, error: Exception, n_texts: int) -> ProviderError:
        """Return the error for an exception of the model, without its message."""
        if isinstance(error, ProviderError):
            return error
        if not _is_out_of_memory(error):
            return ProviderError(f"The model {self.name} failed with {type(error).__name__}")
        if n_texts > 1:
            return RequestTooLargeError(
                f"The memory of {self.device} has no room for {count_noun(n_texts, 'text')} with {self.name}"
            )
        return ProviderError(
            f"A single text does not fit into the memory of {self.device} with {self.name}. {self.memory_advice}"
        )

    def _load_checked(self) -> None:
        if not self.folder.is_dir():
            raise BadRequestError(f"The folder of the model {self.name} no longer exists: {self.folder}")
        try:
            self.load()
        except Exception as error:  # its message contains no text
            raise BadRequestError(f"The model {self.name} cannot be loaded: {loading_error(error)}") from None
        if folder_digest(self.folder, *self._files) != self._digest:
            self.close()
            raise BadRequestError(
                f"The model {self.name} has changed since the embedder was created. Create a new embedder."
            )


def encode_parts(
    encode: Callable[[list[str]], EncodedRows], texts: Sequence[str], parts: Sequence[Sequence[int]]
) -> EncodedRows:
    """Encode texts in batches, and return their vectors in the order of the texts.

    Args:
        encode: Function that encodes a batch.
        texts: The texts.
        parts: The positions of each batch's texts.
    """
    return restore_order([encode([texts[position] for position in part]) for part in parts], parts)


def restore_order(parts: Sequence[EncodedRows], positions: Iterable[Sequence[int]]) -> EncodedRows:
    """Join the rows of batches in the order of the texts; `positions` are those of each batch's texts."""
    rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
    ordered = np.empty_like(rows)
    ordered[[position for part in positions for position in part]] = rows
    return ordered


def character_lengths(texts: Sequence[str], limit: float) -> list[int]:
    """Return the number of characters of each text that the model can process."""
    return [int(min(len(text), CHARACTERS_PER_TOKEN * limit)) for text in texts]


def check_lengths(texts: Sequence[str], lengths: Mapping[str, int], limit: float) -> None:
    """Raise TextTooLongError if texts are over the limit."""
    long = {position: lengths[text] for position, text in enumerate(texts) if lengths.get(text, 0) > limit}
    if long:
        raise TextTooLongError(limit=int(limit), positions=long)


def loading_error(error: Exception) -> str:
    """Return a description of an error in loading, which contains no text of the user."""
    message = str(error)
    if "trust_remote_code" in message:
        return CUSTOM_CODE
    return f"{type(error).__name__}: {' '.join(message.split())[:MAX_ERROR_CHARACTERS]}"


def _normalized(rows: EncodedRows) -> EncodedRows:
    wide = rows.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    normalized: EncodedRows = (wide / np.where(lengths == 0, 1.0, lengths)).astype(np.float32)
    return normalized


def _is_out_of_memory(error: Exception) -> bool:
    """Return True if memory ran out. Messages of other exceptions may contain a text of the user."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    is_library = isinstance(error, RuntimeError) or type(error).__module__.startswith("onnxruntime")
    return is_library and any(message in str(error) for message in OUT_OF_MEMORY)
