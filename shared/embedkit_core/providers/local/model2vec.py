"""Local static models without PyTorch, through model2vec: the mean of the vectors of a text's tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from embedkit_core.common.errors import BadTextError, ConfigurationError
from embedkit_core.common.fork_safety import import_module
from embedkit_core.common.types import Batch, Limits
from embedkit_core.providers.base import Client, ProviderSettings
from embedkit_core.providers.local.base import LocalProvider, check_width
from embedkit_core.providers.local.client import LocalClient
from embedkit_core.providers.local.digest import folder_digest
from embedkit_core.providers.local.folder import find_folder, hub_name, read_json
from embedkit_core.providers.local.model import EncodedRows, LocalModel
from embedkit_core.providers.local.options import COMMON_REPLACEMENTS, check_names, read_max_seq_length

if TYPE_CHECKING:
    from model2vec import StaticModel
    from tokenizers import Tokenizer

NAMES = ("max_seq_length",)
DEFAULT_OWNER = "minishlab"  # for names without an owner
DEFAULT_MAX_TOKENS = 512  # model2vec/model.py, version 0.10.0
# Layouts of model2vec and of sentence-transformers, and their names of the matrix of token vectors
# (model2vec/persistence/datamodels.py and persistence.py, version 0.10.0).
FILES = ("model.safetensors", "0_StaticEmbedding/model.safetensors")
MATRICES = ("embeddings", "embedding.weight")
MODULES = ("StaticEmbedding", "Normalize")
# A request with this many tokens takes about 0.15 s on two cores.
LIMITS = Limits(texts=1024, tokens=65_536, in_flight=1)


class Model2Vec(LocalProvider):
    """A static model, by its folder or by its name in the local Hugging Face cache."""

    name: ClassVar[str] = "model2vec"
    extra: ClassVar[str | None] = "model2vec"
    needs: ClassVar[tuple[str, ...]] = ("model2vec",)
    catalogue_providers: ClassVar[tuple[str, ...]] = ("local",)

    def __init__(self, settings: ProviderSettings) -> None:
        super().__init__(settings)
        check_names(settings.options, NAMES, COMMON_REPLACEMENTS)
        kind = "a model2vec model"
        self._folder = find_folder(settings.name, provider=self.name, owner=DEFAULT_OWNER, kind=kind, files=FILES)
        self._digest = folder_digest(self._folder)
        self.limits = LIMITS
        self._max_tokens = read_max_seq_length(settings.options.get("max_seq_length"), None) or _max_tokens(
            self._folder
        )
        self.account = (self.name, str(self._folder), self._digest, self._max_tokens)
        self.dimensions = check_width(settings, _width(self._folder))

    @classmethod
    def catalogue_name(cls, name: str) -> str:
        """Return the model's name on the Hugging Face Hub, also for a folder in the Hugging Face cache."""
        return hub_name(name, DEFAULT_OWNER)

    def model_fields(self) -> dict[str, Any]:
        """Return the digest of the model."""
        return {"model": self._digest}

    def connect(self) -> Client:
        """Start the thread of the model, which is loaded there at the first request."""
        return LocalClient(Model2VecModel(self._folder, self._digest, self._max_tokens))


class Model2VecModel(LocalModel):
    """A static model, which tokenizes each text once."""

    def __init__(self, folder: Path, digest: str, max_tokens: int | None) -> None:
        super().__init__(folder, digest)
        self._max_tokens = max_tokens
        self._model: StaticModel | None = None
        self._tokenizer: Tokenizer | None = None
        self._lengths: dict[str, int] = {}

    @property
    def is_loaded(self) -> bool:
        """Return True if the model is loaded."""
        return self._model is not None

    @property
    def limit(self) -> float:
        """Maximum tokens of a text."""
        return float("inf") if self._max_tokens is None else self._max_tokens

    def load(self) -> None:
        """Load the model, and replace its method that tokenizes texts.

        Its own one first cuts a text to a number of characters, so that a text below the limit may be truncated.
        """
        model = import_module("model2vec", "StaticModel").StaticModel.from_pretrained(str(self.folder))
        self._tokenizer = tokenizer = deepcopy(model.tokenizer)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        unknown = model.unk_token_id

        def tokenize(sentences: Sequence[str], max_length: int | None = None) -> list[list[int]]:  # noqa: ARG001
            ids = self._count(sentences)
            return [[token for token in row[: self._max_tokens] if token != unknown] for row in ids]

        model.tokenize = tokenize
        self._model = model

    def encode_batch(self, batch: Batch, texts: list[str]) -> tuple[EncodedRows, Mapping[str, int]]:  # noqa: ARG002
        """Encode a batch.

        Raises:
            BadTextError: A text has no known token, and so no vector.
        """
        assert self._model is not None
        self._lengths = {}
        rows = np.asarray(self._model.encode(texts, max_length=None, use_multiprocessing=False), dtype=np.float32)
        if not rows.any(axis=1).all():
            raise BadTextError(f"{self.name} has no vector for a text, because it knows none of its tokens")
        return rows, self._lengths

    def measure(self, texts: list[str]) -> dict[str, int]:
        """Return the tokens of each text without truncation."""
        return {text: len(row) for text, row in zip(texts, self._count(texts), strict=True)}

    def close(self) -> None:
        """Release the model."""
        self._model = self._tokenizer = None

    def _count(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of texts, and record their number."""
        assert self._tokenizer is not None
        ids = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]
        self._lengths.update((text, len(row)) for text, row in zip(texts, ids, strict=True))
        return ids


def _max_tokens(folder: Path) -> int | None:
    """Return the length in tokens to which model2vec truncates texts, None for no limit."""
    length: int | None = read_json(folder / "config.json").get("max_length", DEFAULT_MAX_TOKENS)
    return length


def _width(folder: Path) -> int:
    """Return the width of the vectors, from the header of the file.

    Raises:
        ConfigurationError: The folder has another kind of model.
    """
    modules = folder / "modules.json"
    kinds = [module["type"] for module in json.loads(modules.read_bytes())] if modules.is_file() else []
    file = next(folder / name for name in FILES if (folder / name).is_file())
    with file.open("rb") as header:  # its length in 8 bytes, then JSON: github.com/huggingface/safetensors
        tensors = json.loads(header.read(int.from_bytes(header.read(8), "little")))
    shapes = [tensors[name]["shape"] for name in MATRICES if name in tensors]
    if not shapes or not all(kind.endswith(MODULES) for kind in kinds):
        raise ConfigurationError(f"model: {folder.name} is not a static model. Use 'local:{folder}'.")
    return int(shapes[0][1])
