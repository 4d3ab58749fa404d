"""A sentence-transformers model as loaded: what it is asked, what it answers, and what goes wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from embedkit_core.common.errors import BadRequestError, ProviderError, RequestTooLargeError, TextTooLongError
from embedkit_core.common.fork_safety import import_module
from embedkit_core.common.types import Batch, Reply
from embedkit_core.providers.local.batches import batches
from embedkit_core.providers.local.folder import OWN_CODE, folder_digest
from embedkit_core.providers.local.options import LocalOptions
from embedkit_core.providers.local.token_count import TokenCount

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

EncodedRows = npt.NDArray[np.float32]
CHARACTERS = 5  # of a token: what of a text is beyond so many times the limit is not there for the model
SHOWN = 200  # characters of what is said of a model that cannot be loaded


class LocalModel:
    """One model object, loaded at the first request. For one thread."""

    def __init__(self, folder: Path, digest: str, options: LocalOptions) -> None:
        self.name = folder.name
        self.options = options
        self.model: SentenceTransformer | None = None
        self._folder = folder
        self._digest = digest
        self._tally = TokenCount()

    def embed(self, batch: Batch) -> Reply:
        """Give the vectors of a batch's texts, their tokens, and which of them were cut.

        Raises:
            TextTooLongError: some are too long, and the wire says that none may be cut.
            RequestTooLargeError: they do not fit into memory together.
            BadRequestError: the model cannot be loaded.
            ProviderError: it fails.
        """
        if self.model is None:
            self.model = self._loaded()
        texts, limit = batch.texts_with_prompt(), _limit(self.model)
        may_cut = bool(batch.body["truncation"])
        if not may_cut:  # before anything is computed in vain: a text has no more tokens than bytes, as a rule
            refuse_long(texts, self.measure([text for text in texts if len(text.encode()) > limit]), limit)
        self._tally.clear()
        try:
            rows, lengths = self.answer(batch, texts, limit)
        except Exception as error:  # its message may hold a text
            raise self.failure(error, len(texts)) from None
        if not may_cut:
            refuse_long(texts, lengths, limit)
        rows = np.ascontiguousarray(rows, dtype=np.float32)
        long = tuple(place for place, text in enumerate(texts) if lengths[text] > limit)
        return Reply(
            rows if self.is_exact else _unit(rows), int(sum(min(lengths[text], limit) for text in texts)), long
        )

    def close(self) -> None:
        """Let go of the model."""
        self.model = None

    # Loading

    def _loaded(self) -> SentenceTransformer:
        if not self._folder.is_dir():
            raise BadRequestError(f"the folder of the model {self.name} is gone: {self._folder}")
        try:
            model = self.load()
        except Exception as error:  # no text has been near it
            raise BadRequestError(f"the model in {self.name} cannot be loaded: {said(error)}") from None
        if folder_digest(self._folder) != self._digest:
            raise BadRequestError(f"the model in {self.name} has changed since; make the embedder anew")
        return model

    def load(self, device: str | None = None) -> SentenceTransformer:
        """Load the model to a device, by default that of the options."""
        torch, transformers = import_module("torch"), import_module("transformers")
        sentence_transformers = import_module("sentence_transformers")
        # Where it is not named, transformers takes the type of the weights' file since version 5, and float32 before.
        version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
        dtype = "dtype" if version >= (4, 56) else "torch_dtype"
        model: SentenceTransformer = sentence_transformers.SentenceTransformer(
            str(self._folder),
            device=device or next(iter(self.options.device), None),
            local_files_only=True,
            model_kwargs={dtype: getattr(torch, self.options.precision)},
        )
        if self.options.max_seq_length is not None:
            model.max_seq_length = self.options.max_seq_length
        self.listen(model)
        return model

    def listen(self, model: SentenceTransformer) -> None:
        """Hear from now on how long the texts are that the model is given."""
        self._tally.listen(model)

    # Encoding

    @property
    def is_exact(self) -> bool:
        """Tell whether rows come in float32, in which they are brought to unit length best."""
        return self.options.precision == "float32"

    def answer(self, batch: Batch, texts: list[str], limit: float) -> tuple[EncodedRows, dict[str, int]]:
        """Give the rows of a batch's texts, in their order, and the length of each of the `texts` with its prompt."""
        assert self.model is not None
        rows_each = self.options.batch_size
        given = list(batch.texts)
        if self.model.device.type != "cpu":  # where a few long rows more cost nothing beside another batch
            rows = self.encode(batch.body, given, batch_size=rows_each)
        else:
            parts = list(batches(characters(texts, limit), rows_each))
            rows = in_order(
                [self.encode(batch.body, [given[n] for n in part], batch_size=len(part)) for part in parts], parts
            )
        return rows, self._lengths(texts, limit)

    def encode(self, wire: Mapping[str, Any], texts: list[str], **how: Any) -> EncodedRows:
        """Have the model encode texts."""
        assert self.model is not None
        encode = self.model.encode_query if wire.get("role") == "query" else self.model.encode_document
        rows: EncodedRows = np.asarray(
            encode(
                texts,
                prompt=wire.get("prompt", ""),
                show_progress_bar=False,
                normalize_embeddings=self.is_exact,
                **how,
            )
        )
        return rows

    def _lengths(self, texts: Sequence[str], limit: float) -> dict[str, int]:
        """Give the length of each text: as the model had it, and where that was the limit, as it is by itself."""
        heard = self._tally.lengths
        by_itself = self.measure([text for text in texts if heard.get(text, limit) >= limit])
        # What filled the limit and has less by itself was within a chat template: most likely it was cut.
        cut = {text: max(n, int(limit) + 1) for text, n in by_itself.items() if n < heard.get(text, 0)}
        return heard | by_itself | cut

    def measure(self, texts: list[str]) -> dict[str, int]:
        """Count the tokens of texts before they are cut, the special ones included."""
        assert self.model is not None
        tokenizer = self.model.tokenizer
        if not texts or not callable(tokenizer):  # that of static embeddings is not, and cuts nothing
            return dict.fromkeys(texts, 0)
        ids = tokenizer(texts, truncation=False, padding=False, verbose=False, return_attention_mask=False)["input_ids"]
        return {text: len(one) for text, one in zip(texts, ids, strict=True)}

    def failure(self, error: Exception, n_texts: int) -> ProviderError:
        """Give our error for one of the model's, without its message."""
        if isinstance(error, ProviderError):
            return error
        if not _is_out_of_memory(error):
            return ProviderError(f"the model in {self.name} failed with {type(error).__name__}")
        device = ", ".join(self.options.device) or "its device"
        if n_texts > 1:
            return RequestTooLargeError(f"{n_texts} texts do not fit into the memory of {device} beside {self.name}")
        return ProviderError(
            f"one text does not fit into the memory of {device} beside {self.name}: provider_options="
            "{'max_seq_length': ...} cuts texts shorter, {'precision': 'bfloat16'} makes the model smaller"
        )


def in_order(found: Sequence[EncodedRows], parts: Iterable[Sequence[int]]) -> EncodedRows:
    """Put the rows of parts where the places in the parts say."""
    rows = found[0] if len(found) == 1 else np.concatenate(found)
    ordered = np.empty_like(rows)
    ordered[[place for part in parts for place in part]] = rows
    return ordered


def characters(texts: Sequence[str], limit: float) -> list[int]:
    """Give the lengths of texts in characters, as far as they reach the model."""
    return [int(min(len(text), CHARACTERS * limit)) for text in texts]


def refuse_long(texts: Sequence[str], lengths: Mapping[str, int], limit: float) -> None:
    """Raise TextTooLongError for those of the texts that are over the limit."""
    long = {place: lengths[text] for place, text in enumerate(texts) if lengths.get(text, 0) > limit}
    if long:
        raise TextTooLongError(limit=int(limit), positions=long)


def _limit(model: SentenceTransformer) -> float:
    limit: float | None = model.max_seq_length
    return float("inf") if limit is None else limit


def _unit(rows: EncodedRows) -> EncodedRows:
    wide = rows.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    unit: EncodedRows = (wide / np.where(lengths == 0, 1.0, lengths)).astype(np.float32)
    return unit


def _is_out_of_memory(error: Exception) -> bool:
    """Tell whether a device's memory was too small: PyTorch has a type for that on CUDA, and a message elsewhere."""
    message = str(error) if isinstance(error, RuntimeError) else ""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or "out of memory" in message or "DefaultCPUAllocator" in message


def said(error: Exception) -> str:
    """Give what an error says that no text has been near."""
    message = str(error)
    if "trust_remote_code" in message:
        return OWN_CODE
    return f"{type(error).__name__}: {' '.join(message.split())[:SHOWN]}"
