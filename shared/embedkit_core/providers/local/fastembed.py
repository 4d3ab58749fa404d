"""Local ONNX models without PyTorch, through fastembed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.fork_safety import ForkLock, import_module
from embedkit_core.common.formatting import suggest
from embedkit_core.common.types import Batch
from embedkit_core.providers.base import Client, ProviderSettings
from embedkit_core.providers.local.base import LocalProvider, check_width, choose_prompts
from embedkit_core.providers.local.batches import batches
from embedkit_core.providers.local.client import LocalClient
from embedkit_core.providers.local.digest import folder_digest
from embedkit_core.providers.local.exports import data_files, depends_on_batch, find_export
from embedkit_core.providers.local.folder import FolderInfo, find_folder, hub_name, read_json
from embedkit_core.providers.local.model import EncodedRows, LocalModel, character_lengths, encode_parts
from embedkit_core.providers.local.options import (
    COMMON_REPLACEMENTS,
    DEFAULT_BATCH_SIZE,
    check_names,
    read_count,
    read_max_seq_length,
    read_text,
)

if TYPE_CHECKING:
    from fastembed import TextEmbedding
    from tokenizers import Tokenizer

REPLACEMENTS = COMMON_REPLACEMENTS | {
    "cuda": "use providers=['CUDAExecutionProvider']",
    "model_file": "use file_name, in a folder with several exports",
    "specific_model_path": "pass the folder as the model: fastembed:/path/to/folder",
    "parallel": "use threads",
}
# Pooling modes of sentence-transformers, and their names in fastembed.
POOLING = {"mean": "MEAN", "cls": "CLS", "lasttoken": "LAST_TOKEN"}
_registration = ForkLock()


@dataclass(frozen=True, slots=True)
class FastEmbedOptions:
    """How a model runs. `max_seq_length` and `file_name` change vectors and are part of cache keys.

    Attributes:
        threads: Threads of ONNX Runtime, None for its default.
        providers: Execution providers of ONNX Runtime, empty for the default of fastembed.
        batch_size: Maximum texts that the model encodes at once.
        max_seq_length: Length in tokens to which texts are truncated, None for the model's default.
        file_name: ONNX file of a folder, None for the default.
    """

    threads: int | None = None
    providers: tuple[str, ...] = ()
    batch_size: int = DEFAULT_BATCH_SIZE
    max_seq_length: int | None = None
    file_name: str | None = None


NAMES = tuple(field.name for field in fields(FastEmbedOptions))


@dataclass(frozen=True, slots=True)
class Source:
    """Location and properties of a model that is not loaded.

    Attributes:
        folder: The folder of the model.
        root: The folder of its tokenizer, to which `file` is relative.
        file: Its ONNX file.
        files: Patterns of its files for the digest, besides those that every digest has.
        pooling: How the vectors of tokens become that of a text.
        positions: Maximum tokens that the model supports.
        max_tokens: Length in tokens to which texts are truncated by default.
        dimensions: Width of the vectors.
        prompts: Prompts in the files of the model, None if there are none.
        known_as: Name of the model in fastembed, None for a folder.
        asymmetric: True if queries and documents are encoded differently.
    """

    folder: Path
    root: Path
    file: str
    files: tuple[str, ...]
    pooling: str
    positions: int | None
    max_tokens: int | None
    dimensions: int | None
    prompts: Mapping[Any, str] | None = None
    known_as: str | None = None
    asymmetric: bool = False


class FastEmbed(LocalProvider):
    """An ONNX model: a name that fastembed knows, or the folder of a sentence-transformers model with an ONNX file."""

    name: ClassVar[str] = "fastembed"
    extra: ClassVar[str | None] = "fastembed"
    needs: ClassVar[tuple[str, ...]] = ("fastembed",)
    catalogue_providers: ClassVar[tuple[str, ...]] = ("local",)

    def __init__(self, settings: ProviderSettings) -> None:
        super().__init__(settings)
        options = settings.options
        check_names(options, NAMES, REPLACEMENTS)
        file_name = read_text("file_name", options.get("file_name"))
        self._source = _find_source(settings, file_name)
        self._options = FastEmbedOptions(
            read_count("threads", options.get("threads")),
            _providers(options.get("providers")),
            read_count("batch_size", options.get("batch_size")) or DEFAULT_BATCH_SIZE,
            read_max_seq_length(options.get("max_seq_length"), self._source.positions),
            file_name,
        )
        self._digest = folder_digest(self._source.folder, *self._source.files)
        self.account = (self.name, str(self._source.folder), self._digest, self._options)
        self._max_tokens = self._options.max_seq_length or self._source.max_tokens
        self._asymmetric = self._source.asymmetric
        self._prompts = choose_prompts(settings, self._source.prompts)
        self.dimensions = check_width(settings, self._source.dimensions)

    @classmethod
    def catalogue_name(cls, name: str) -> str:
        """Return the model's name on the Hugging Face Hub: -Q is a quantized copy, and snowflake is capitalized."""
        hub = hub_name(name).removesuffix("-Q")
        return f"Snowflake/{hub.removeprefix('snowflake/')}" if hub.startswith("snowflake/") else hub

    def model_fields(self) -> dict[str, Any]:
        """Return the digest of the model and its pooling, which is not in the files of a model that fastembed knows."""
        return {"model": self._digest, "pooling": self._source.pooling}

    def connect(self) -> Client:
        """Start the thread of the model, which is loaded there at the first request."""
        return LocalClient(FastEmbedModel(self._source, self._digest, self._options, self._max_tokens))


class FastEmbedModel(LocalModel):
    """A model of fastembed."""

    def __init__(self, source: Source, digest: str, options: FastEmbedOptions, max_tokens: int | None) -> None:
        super().__init__(source.folder, digest, source.files)
        self._source = source
        self._name = source.known_as or f"embedkit/{digest}-{source.file}"
        self._options = options
        self._batch_size = options.batch_size
        self._limit = max_tokens
        self._model: TextEmbedding | None = None
        self._counter: Tokenizer | None = None  # counts tokens without truncation

    @property
    def is_loaded(self) -> bool:
        """Return True if the model is loaded."""
        return self._model is not None

    @property
    def limit(self) -> float:
        """Maximum tokens of a text."""
        return float("inf") if self._limit is None else self._limit

    def load(self) -> None:
        """Load the model and set its limit."""
        fastembed = import_module("fastembed", "TextEmbedding")
        if self._source.known_as is None:
            self._register(fastembed.TextEmbedding)
        model = fastembed.TextEmbedding(
            self._name,
            threads=self._options.threads,
            providers=list(self._options.providers) or None,
            specific_model_path=str(self._source.root),
            local_files_only=True,
        )
        tokenizer = model.model.tokenizer
        self._counter = counter = deepcopy(tokenizer)
        counter.no_truncation()
        counter.no_padding()
        if self._limit is not None:
            tokenizer.enable_truncation(**(tokenizer.truncation or {}) | {"max_length": self._limit})
        if depends_on_batch(self._source.root / self._source.file):
            self._batch_size = 1
        self._model = model

    def _register(self, text_embedding: type[TextEmbedding]) -> None:
        """Add the folder to the models that fastembed knows in this process."""
        from fastembed.common.model_description import ModelSource, PoolingType

        with _registration.lock:
            if any(known["model"] == self._name for known in text_embedding.list_supported_models()):
                return
            text_embedding.add_custom_model(
                self._name,
                pooling=PoolingType[POOLING[self._source.pooling]],
                normalization=False,  # of all models, in float64
                sources=ModelSource(hf=self._name),  # required and not used
                dim=self._source.dimensions or 1,  # not used
                model_file=self._source.file,
            )

    def encode_batch(self, batch: Batch, texts: list[str]) -> tuple[EncodedRows, Mapping[str, int]]:
        """Encode a batch in parts of texts of similar length."""
        assert self._model is not None
        role = batch.body.get("role")  # only of an asymmetric model: of others, all methods are the same
        encode: Callable[..., Iterable[Any]] = self._model.query_embed if role == "query" else self._model.passage_embed
        rows = encode_parts(
            lambda part: np.stack(list(encode(part, batch_size=len(part)))),
            texts,
            list(batches(character_lengths(texts, self.limit), self._batch_size)),
        )
        return rows, self.measure(texts)

    def measure(self, texts: list[str]) -> dict[str, int]:
        """Return the tokens of each text without truncation, including special tokens."""
        assert self._counter is not None
        encodings = self._counter.encode_batch_fast(texts)
        return {text: len(encoding.ids) for text, encoding in zip(texts, encodings, strict=True)}

    def close(self) -> None:
        """Release the model."""
        self._model = self._counter = None


def _find_source(settings: ProviderSettings, file_name: str | None) -> Source:
    """Return the source of a model: a folder, a name that fastembed knows, or one in the Hugging Face cache.

    Raises:
        ConfigurationError: There is no such model on this machine, or it cannot be used.
    """
    name = settings.name
    if not Path(name).expanduser().is_dir():
        known = {row["model"]: row for row in _known_models()}
        if name in known:
            return _known_source(settings, known[name], file_name)
        if hint := suggest(name.lower(), {other.lower(): other for other in known}, cutoff=0.87):
            raise ConfigurationError(f"model: fastembed does not know {name!r}; {hint}")
    return _folder_source(find_folder(name, provider="fastembed"), name, file_name)


def _known_models() -> list[dict[str, Any]]:
    models: list[dict[str, Any]] = import_module("fastembed", "TextEmbedding").TextEmbedding.list_supported_models()
    return models


def _known_source(settings: ProviderSettings, row: Mapping[str, Any], file_name: str | None) -> Source:
    """Return the source of a model that fastembed knows, in the cache folder of fastembed."""
    name, file = settings.name, row["model_file"]
    if file_name is not None:
        raise ConfigurationError(f"provider_options: file_name applies to folders only; {name} has {file}")
    if not file.endswith(".onnx"):
        raise ConfigurationError(f"model: {name} is a static model, not an ONNX model. Use 'model2vec:{name}'.")
    _check_prompts(settings, row["description"])
    folder = _cached_folder(name, row["sources"]["hf"], file)
    max_tokens = _tokenizer_limit(folder)
    return Source(
        folder=folder,
        root=folder,
        file=file,
        files=data_files(folder / file),
        pooling=_pooling_class(name),
        positions=max_tokens,
        max_tokens=max_tokens,
        dimensions=row["dim"],
        known_as=name,
        asymmetric=bool(row.get("tasks")),  # jina-embeddings-v3 has a LoRA adapter for each
    )


def _folder_source(folder: Path, name: str, file_name: str | None) -> Source:
    """Return the source of a sentence-transformers model with an ONNX file."""
    info = FolderInfo(folder)
    if info.pooling not in POOLING:
        raise ConfigurationError(
            f"{name} has layers or a pooling that fastembed does not support. Use 'local:{name}' with "
            "provider_options={'backend': 'onnx'}."
        )
    file = find_export(info.transformer, "onnx", file_name)
    return Source(
        folder=folder,
        root=info.transformer,
        file=file.relative_to(info.transformer).as_posix(),
        files=data_files(file),
        pooling=info.pooling,
        positions=info.positions,
        max_tokens=info.max_tokens or _tokenizer_limit(info.transformer),
        dimensions=info.dimensions,
        prompts=info.prompts,
    )


def _check_prompts(settings: ProviderSettings, description: str) -> None:
    """Reject a model without known prompts that needs them, according to fastembed's description of it."""
    is_known = settings.info is not None and bool(settings.info.prompts)
    is_passed = settings.query_prompt is not None or settings.document_prompt is not None
    needs_prompts = "documents: necessary" in description or "{" in description  # or it has a template
    if needs_prompts and not is_known and not is_passed:
        raise ConfigurationError(
            f"model: {settings.name} needs prompts, which the catalogue does not have. Pass those of its model card "
            "as query_prompt= and document_prompt=."
        )


def _cached_folder(name: str, repository: str, file: str) -> Path:
    """Return the folder of a model in fastembed's cache. Nothing is downloaded."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    # As fastembed does: fastembed/common/utils.py, version 0.9.1.
    cache = Path(os.environ.get("FASTEMBED_CACHE_PATH") or Path(tempfile.gettempdir()) / "fastembed_cache")
    # Earlier versions spelled repositories in lower case.
    wanted = f"models--{repository.replace('/', '--')}"
    found = sorted(path.name for path in cache.glob("models--*") if path.name.lower() == wanted.lower())
    spelled = (wanted if wanted in found or not found else found[0]).removeprefix("models--").replace("--", "/")
    try:
        folder = Path(snapshot_download(spelled, cache_dir=cache, local_files_only=True)).absolute()
    except (LocalEntryNotFoundError, OSError):
        folder = None
    if folder is None or not (folder / file).is_file():
        raise ConfigurationError(
            f"No files of {name!r} in fastembed's cache {cache}. Set FASTEMBED_CACHE_PATH to a lasting folder, and "
            f"download the model once: python -c \"from fastembed import TextEmbedding; TextEmbedding('{name}')\". "
            "Nothing is downloaded at run time."
        )
    return folder


def _pooling_class(name: str) -> str:
    """Return the name of fastembed's class for a model, because releases have changed the pooling of models."""
    registry = import_module("fastembed", "TextEmbedding").TextEmbedding.EMBEDDINGS_REGISTRY
    classes = [each for each in registry if any(row.model == name for row in each._list_supported_models())]
    return str(classes[0].__name__)


def _tokenizer_limit(folder: Path) -> int | None:
    """Return the length to which fastembed truncates texts: fastembed/common/preprocessor_utils.py, version 0.9.1."""
    config = read_json(folder / "tokenizer_config.json")
    lengths = [config.get(name) for name in ("model_max_length", "max_length")]
    return min((n for n in lengths if isinstance(n, int) and 0 < n < 2**31), default=None)


def _providers(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, list) and value and all(isinstance(name, str) and name for name in value):
        return tuple(value)
    raise ConfigurationError(
        f"provider_options: providers must be a list such as ['CUDAExecutionProvider'] (got {value!r:.80})"
    )
