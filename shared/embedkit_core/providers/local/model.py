"""A loaded sentence-transformers model: encoding, truncation and errors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from embedkit_core.common.errors import BadRequestError, ProviderError, RequestTooLargeError, TextTooLongError
from embedkit_core.common.fork_safety import import_module
from embedkit_core.common.formatting import count_noun
from embedkit_core.common.types import Batch, Reply
from embedkit_core.providers.local.batches import batches
from embedkit_core.providers.local.folder import CUSTOM_CODE, folder_digest
from embedkit_core.providers.local.options import LocalOptions
from embedkit_core.providers.local.token_count import TokenCount

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

EncodedRows = npt.NDArray[np.float32]
CHARACTERS_PER_TOKEN = 5  # a model ignores the characters of a text beyond this multiple of its limit
MAX_ERROR_CHARACTERS = 200  # of the message of a model that cannot be loaded


class LocalModel:
    """One model, loaded at the first request. Not thread-safe."""

    def __init__(self, folder: Path, digest: str, options: LocalOptions) -> None:
        self.name = folder.name
        self.options = options
        self.model: SentenceTransformer | None = None
        self._folder = folder
        self._digest = digest
        self._token_count = TokenCount()

    def embed(self, batch: Batch) -> Reply:
        """Return the vectors and tokens of a batch's texts, and the positions of truncated texts.

        Raises:
            TextTooLongError: Texts are too long, and the request does not allow truncation.
            RequestTooLargeError: The texts do not fit into memory together.
            BadRequestError: The model cannot be loaded.
            ProviderError: The model fails.
        """
        if self.model is None:
            self.model = self._load_checked()
        texts, limit = batch.texts_with_prompt(), _limit(self.model)
        truncates = bool(batch.body["truncation"])
        if not truncates:  # checked first to save work: a text rarely has more tokens than bytes
            check_lengths(texts, self.measure([text for text in texts if len(text.encode()) > limit]), limit)
        self._token_count.clear()
        try:
            rows, lengths = self.encode_batch(batch, texts, limit)
        except Exception as error:  # its message may contain a text
            raise self.to_provider_error(error, len(texts)) from None
        if not truncates:
            check_lengths(texts, lengths, limit)
        rows = np.ascontiguousarray(rows, dtype=np.float32)
        truncated = tuple(position for position, text in enumerate(texts) if lengths[text] > limit)
        tokens = int(sum(min(lengths[text], limit) for text in texts))
        return Reply(rows if self.is_exact else _normalized(rows), tokens, truncated)

    def close(self) -> None:
        """Release the model."""
        self.model = None

    # Loading

    def _load_checked(self) -> SentenceTransformer:
        if not self._folder.is_dir():
            raise BadRequestError(f"The folder of the model {self.name} no longer exists: {self._folder}")
        try:
            model = self.load()
        except Exception as error:  # its message contains no text
            raise BadRequestError(f"The model {self.name} cannot be loaded: {loading_error(error)}") from None
        if folder_digest(self._folder) != self._digest:
            raise BadRequestError(
                f"The model {self.name} has changed since the embedder was created. Create a new embedder."
            )
        return model

    def load(self, device: str | None = None) -> SentenceTransformer:
        """Load the model to a device, by default the first one of the options."""
        torch, transformers = import_module("torch"), import_module("transformers")
        sentence_transformers = import_module("sentence_transformers", "SentenceTransformer")
        # The default is the dtype of the weights since transformers 5, and float32 before.
        version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
        dtype_argument = "dtype" if version >= (4, 56) else "torch_dtype"
        model: SentenceTransformer = sentence_transformers.SentenceTransformer(
            str(self._folder),
            device=device or next(iter(self.options.device), None),
            local_files_only=True,
            model_kwargs={dtype_argument: getattr(torch, self.options.precision)},
        )
        if self.options.max_seq_length is not None:
            model.max_seq_length = self.options.max_seq_length
        self.record_token_counts(model)
        return model

    def record_token_counts(self, model: SentenceTransformer) -> None:
        """Record the token counts of the texts that the model tokenizes."""
        self._token_count.attach(model)

    # Encoding

    @property
    def is_exact(self) -> bool:
        """Return True if the model returns float32, which it can normalize without loss of precision."""
        return self.options.precision == "float32"

    def encode_batch(self, batch: Batch, texts: list[str], limit: float) -> tuple[EncodedRows, dict[str, int]]:
        """Encode a batch.

        Args:
            batch: The request.
            texts: Its texts with their prompts.
            limit: Maximum tokens of a text.

        Returns:
            The vectors in the order of the texts, and the length of each text in tokens.
        """
        assert self.model is not None
        batch_size = self.options.batch_size
        without_prompt = list(batch.texts)
        if self.model.device.type != "cpu":  # on a GPU, padding costs less than another batch
            return self.encode(batch.body, without_prompt, batch_size=batch_size), self._lengths(texts, limit)
        parts = list(batches(character_lengths(texts, limit), batch_size))
        rows = [
            self.encode(batch.body, [without_prompt[position] for position in part], batch_size=len(part))
            for part in parts
        ]
        return restore_order(rows, parts), self._lengths(texts, limit)

    def encode(self, body: Mapping[str, Any], texts: list[str], **arguments: Any) -> EncodedRows:
        """Encode texts without prompts with the model."""
        assert self.model is not None
        encode = self.model.encode_query if body.get("role") == "query" else self.model.encode_document
        rows: EncodedRows = np.asarray(
            encode(
                texts,
                prompt=body.get("prompt", ""),
                show_progress_bar=False,
                normalize_embeddings=self.is_exact,
                **arguments,
            )
        )
        return rows

    def _lengths(self, texts: Sequence[str], limit: float) -> dict[str, int]:
        """Return the tokens of each text: recorded by the model or, at the limit, measured without truncation."""
        recorded = self._token_count.lengths
        measured = self.measure([text for text in texts if recorded.get(text, limit) >= limit])
        # A text at the limit that is shorter alone was in a chat template: it was most likely truncated.
        truncated = {text: max(n, int(limit) + 1) for text, n in measured.items() if n < recorded.get(text, 0)}
        return recorded | measured | truncated

    def measure(self, texts: list[str]) -> dict[str, int]:
        """Return the tokens of each text without truncation, including special tokens."""
        assert self.model is not None
        tokenizer = self.model.tokenizer
        if not texts or not callable(tokenizer):  # static embeddings have another tokenizer and do not truncate
            return dict.fromkeys(texts, 0)
        ids = tokenizer(texts, truncation=False, padding=False, verbose=False, return_attention_mask=False)["input_ids"]
        return {text: len(row) for text, row in zip(texts, ids, strict=True)}

    def to_provider_error(self, error: Exception, n_texts: int) -> ProviderError:
        """Return the error for an exception of the model, without its message."""
        if isinstance(error, ProviderError):
            return error
        if not _is_out_of_memory(error):
            return ProviderError(f"The model {self.name} failed with {type(error).__name__}")
        device = ", ".join(self.options.device) or "its device"
        if n_texts > 1:
            return RequestTooLargeError(
                f"The memory of {device} has no room for {count_noun(n_texts, 'text')} with {self.name}"
            )
        return ProviderError(
            f"A single text does not fit into the memory of {device} with {self.name}. Truncate texts with "
            "provider_options={'max_seq_length': ...}, or reduce the model's size with {'precision': 'bfloat16'}."
        )


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


def _limit(model: SentenceTransformer) -> float:
    limit: float | None = model.max_seq_length
    return float("inf") if limit is None else limit


def _normalized(rows: EncodedRows) -> EncodedRows:
    wide = rows.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    normalized: EncodedRows = (wide / np.where(lengths == 0, 1.0, lengths)).astype(np.float32)
    return normalized


def _is_out_of_memory(error: Exception) -> bool:
    """Return True if memory ran out. PyTorch has an exception class for CUDA, and only a message elsewhere."""
    message = str(error) if isinstance(error, RuntimeError) else ""
    is_memory_error = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return is_memory_error or "out of memory" in message or "DefaultCPUAllocator" in message


def loading_error(error: Exception) -> str:
    """Return a description of an error in loading, which contains no text of the user."""
    message = str(error)
    if "trust_remote_code" in message:
        return CUSTOM_CODE
    return f"{type(error).__name__}: {' '.join(message.split())[:MAX_ERROR_CHARACTERS]}"
