"""A loaded sentence-transformers model, in PyTorch or another of its backends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embedkit_core.common.fork_safety import import_module
from embedkit_core.common.types import Batch
from embedkit_core.providers.local.batches import batches
from embedkit_core.providers.local.exports import depends_on_batch
from embedkit_core.providers.local.folder import FolderInfo
from embedkit_core.providers.local.model import EncodedRows, LocalModel, character_lengths, encode_parts
from embedkit_core.providers.local.options import LocalOptions
from embedkit_core.providers.local.token_count import TokenCount

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

ONNX_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class SentenceTransformerModel(LocalModel):
    """A model of sentence-transformers."""

    def __init__(self, folder: Path, digest: str, options: LocalOptions, files: tuple[str, ...] = ()) -> None:
        super().__init__(folder, digest, files)
        self.options = options
        self._batch_size = options.batch_size
        self.model: SentenceTransformer | None = None
        self.device = ", ".join(options.device) or "its device"
        if options.backend == "torch":
            self.memory_advice = (
                f"{self.memory_advice.rstrip('.')}, or reduce the model's size with {{'precision': 'bfloat16'}}."
            )
        self._token_count = TokenCount()

    @property
    def is_loaded(self) -> bool:
        """Return True if the model is loaded."""
        return self.model is not None

    @property
    def limit(self) -> float:
        """Maximum tokens of a text."""
        assert self.model is not None
        limit: float | None = self.model.max_seq_length
        return float("inf") if limit is None else limit

    @property
    def is_normalized(self) -> bool:
        """Return True if the model returns float32, which it can normalize without loss of precision."""
        return self.options.precision == "float32"

    def close(self) -> None:
        """Release the model."""
        self.model = None

    # Loading

    def load(self) -> None:
        """Load the model to the first device of the options."""
        self.model = self.load_to(next(iter(self.options.device), None))
        self._token_count.attach(self.model)
        file = FolderInfo(self.folder).transformer / (self.options.file_name or "")
        if self.options.backend == "onnx" and depends_on_batch(file):
            self._batch_size = 1

    def load_to(self, device: str | None) -> SentenceTransformer:
        """Load the model to a device."""
        if self.options.backend == "torch":
            arguments: dict[str, Any] = {"model_kwargs": self._torch_arguments()}
        else:
            arguments = {"backend": self.options.backend, "model_kwargs": self._export_arguments(device)}
        sentence_transformers = import_module("sentence_transformers", "SentenceTransformer")
        model: SentenceTransformer = sentence_transformers.SentenceTransformer(
            str(self.folder), device=device, local_files_only=True, **arguments
        )
        if self.options.max_seq_length is not None:
            model.max_seq_length = self.options.max_seq_length
        return model

    def _torch_arguments(self) -> dict[str, Any]:
        torch, transformers = import_module("torch"), import_module("transformers")
        # The default is the dtype of the weights since transformers 5, and float32 before.
        version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
        return {"dtype" if version >= (4, 56) else "torch_dtype": getattr(torch, self.options.precision)}

    def _export_arguments(self, device: str | None) -> dict[str, Any]:
        """Return the arguments of a model in another format, whose file exists: nothing is exported."""
        arguments: dict[str, Any] = {"file_name": self.options.file_name, "export": False}
        if self.options.backend == "onnx" and device is not None:
            arguments["provider"] = ONNX_PROVIDERS[device]
        if self.options.backend == "openvino":  # else bfloat16 on some CPUs, whose vectors differ by about 1e-3
            arguments["ov_config"] = {"INFERENCE_PRECISION_HINT": "f32"}
        return arguments

    # Encoding

    def encode_batch(self, batch: Batch, texts: list[str]) -> tuple[EncodedRows, Mapping[str, int]]:
        """Encode a batch in parts of texts of similar length."""
        assert self.model is not None
        self._token_count.clear()
        batch_size = self._batch_size
        without_prompt = list(batch.texts)
        if self.model.device.type != "cpu":  # on a GPU, padding costs less than another batch
            return self.encode(batch.body, without_prompt, batch_size=batch_size), self._lengths(texts)
        rows = encode_parts(
            lambda part: self.encode(batch.body, part, batch_size=len(part)),
            without_prompt,
            list(batches(character_lengths(texts, self.limit), batch_size)),
        )
        return rows, self._lengths(texts)

    def encode(self, body: Mapping[str, Any], texts: list[str], **arguments: Any) -> EncodedRows:
        """Encode texts without prompts with the model."""
        assert self.model is not None
        encode = self.model.encode_query if body.get("role") == "query" else self.model.encode_document
        rows: EncodedRows = np.asarray(
            encode(
                texts,
                prompt=body.get("prompt", ""),
                show_progress_bar=False,
                normalize_embeddings=self.is_normalized,
                **arguments,
            )
        )
        return rows

    def _lengths(self, texts: Sequence[str]) -> dict[str, int]:
        """Return the tokens of each text: recorded by the model or, at the limit, measured without truncation."""
        recorded, limit = self._token_count.lengths, self.limit
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
        encoded: Any = tokenizer(texts, truncation=False, padding=False, verbose=False, return_attention_mask=False)
        return {text: len(row) for text, row in zip(texts, encoded["input_ids"], strict=True)}
