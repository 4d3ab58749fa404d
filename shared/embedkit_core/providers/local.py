"""Hugging Face models on this machine, through sentence-transformers.

A model is a folder: nothing is fetched. Its identity in a key is the digest of its configuration and weights, so that
a moved copy shares its vectors and a changed one does not.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import queue
import threading
from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from embedkit_core.errors import ConfigurationError, EmbedKitError, ProviderError, TextTooLongError
from embedkit_core.forks import importing
from embedkit_core.providers import Client, Provider, ProviderSettings
from embedkit_core.types import Batch, InputType, Limits, Reply

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

FILES = ("*.json", "*.txt", "*.model", "*.safetensors", "*.bin", "*.py")
REQUEST_TEXTS = 64  # a query waits for one request at most
ENCODE_TEXTS = 32


class Local(Provider):
    """A sentence-transformers model in a folder, or in the local Hugging Face cache by its name."""

    name: ClassVar[str] = "local"
    extra: ClassVar[str | None] = "local"
    needs: ClassVar[tuple[str, ...]] = ("sentence_transformers", "torch")
    on_this_machine: ClassVar[bool] = True
    cuts_long_texts: ClassVar[bool] = True
    takes_dimensions: ClassVar[bool] = False

    def __init__(self, settings: ProviderSettings) -> None:
        settings.only(
            "api_key", "dimensions", "query_prompt", "document_prompt"
        )  # no use for a key, and no harm in one
        self._folder = find_folder(settings.name)
        self.model = settings.name
        self._digest = folder_digest(self._folder)
        self.account = (self.name, str(self._folder), self._digest)
        self.limits = Limits(texts=REQUEST_TEXTS, in_flight=1)
        self.usd_per_million = Decimal(0)
        self._truncation = settings.on_long_text == "truncate"
        facts = _Facts(self._folder)
        self._max_tokens = facts.max_tokens
        self._asymmetric = facts.asymmetric
        self._prompts = {
            "query": facts.query_prompt if settings.query_prompt is None else settings.query_prompt,
            "document": facts.document_prompt if settings.document_prompt is None else settings.document_prompt,
        }
        if settings.dimensions not in (None, facts.dimensions):
            offered = f"; it offers {facts.dimensions}" if facts.dimensions else ""
            raise ConfigurationError(f"{self.model} does not offer {settings.dimensions} dimensions{offered}")
        self.dimensions = facts.dimensions

    @property
    def longest_text(self) -> int | None:
        """The tokens that the model's configuration states."""
        return self._max_tokens

    def wire(self, input_type: InputType) -> dict[str, Any]:
        """Give what the model is called with, its identity included."""
        wire: dict[str, Any] = {
            "model": self._digest,
            "backend": "torch",
            "precision": "float32",
            "max_seq_length": self._max_tokens,
            "normalize": True,
            "truncation": self._truncation,
        }
        if self._prompts[input_type]:
            wire["prompt"] = self._prompts[input_type]
        if self._asymmetric:
            wire["role"] = input_type
        return wire

    def connect(self) -> Client:
        """Give the thread that will hold the model; it is loaded there, at the first request."""
        return LocalClient(self._folder, self._digest)


class _Facts:
    """What the files of a model say of it, read without loading it."""

    def __init__(self, folder: Path) -> None:
        prompts = _read(folder / "config_sentence_transformers.json").get("prompts") or {}
        self.query_prompt: str = prompts.get("query", "")
        self.document_prompt: str = next((prompts[n] for n in ("document", "passage", "corpus") if n in prompts), "")
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        self.asymmetric = any("Router" in m["type"] or "Asym" in m["type"] for m in modules)
        transformer = folder / next((m["path"] for m in modules if m["type"].endswith("Transformer")), "")
        self.max_tokens: int | None = _read(transformer / "sentence_bert_config.json").get("max_seq_length")
        self.dimensions = self._width(folder, modules)

    @staticmethod
    def _width(folder: Path, modules: list[dict[str, Any]]) -> int | None:
        """Give the width of the last module that states one; None where only a vector can tell."""
        width: int | None = None
        for module in modules:
            config = _read(folder / module["path"] / "config.json")
            if module["type"].endswith("Pooling"):
                modes = sum(1 for name, on in config.items() if name.startswith("pooling_mode_") and on is True)
                size = config.get("word_embedding_dimension", config.get("embedding_dimension"))
                width = size * modes if size and modes else None
            elif module["type"].endswith("Dense"):
                width = config.get("out_features")
            elif not module["type"].endswith(("Transformer", "Normalize")):
                return None
        return width


class LocalClient:
    """One model object, used by the one thread that loaded it."""

    def __init__(self, folder: Path, digest: str) -> None:
        self._folder = folder
        self._digest = digest
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._model: SentenceTransformer | None = None
        self._thread = threading.Thread(target=self._run, name="embedkit-model", daemon=True)
        self._thread.start()

    async def embed(self, batch: Batch) -> Reply:
        """Encode the texts on the model's thread."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Reply] = loop.create_future()

        def answer(outcome: Reply | EmbedKitError) -> None:
            if not future.done():
                if isinstance(outcome, EmbedKitError):
                    future.set_exception(outcome)
                else:
                    future.set_result(outcome)

        def job() -> None:
            try:
                outcome: Reply | EmbedKitError = self._encode(batch)
            except EmbedKitError as error:
                outcome = error
            except Exception as error:  # its message may hold a text
                outcome = ProviderError(f"the model in {self._folder.name} failed with {type(error).__name__}")
            loop.call_soon_threadsafe(answer, outcome)

        self._jobs.put(job)
        return await future

    async def aclose(self) -> None:
        """End the model's thread after what it has to do."""
        self._jobs.put(None)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def _load(self) -> SentenceTransformer:
        if self._model is None:
            with importing.lock:
                from sentence_transformers import SentenceTransformer

            model = SentenceTransformer(str(self._folder), local_files_only=True)
            if folder_digest(self._folder) != self._digest:
                raise ProviderError(f"the model in {self._folder.name} has changed since; make the embedder anew")
            self._model = model
        return self._model

    def _encode(self, batch: Batch) -> Reply:
        model = self._load()
        prompt = batch.wire.get("prompt", "")
        texts = list(batch.texts)
        lengths = _lengths(model, [prompt + text for text in texts])
        limit = model.max_seq_length
        long = {place: n for place, n in enumerate(lengths) if limit is not None and n > limit}
        if long and not batch.wire["truncation"]:
            raise TextTooLongError(limit=limit, positions=long)
        encode = model.encode_query if batch.wire.get("role") == "query" else model.encode_document
        vectors = encode(
            texts, prompt=prompt, batch_size=ENCODE_TEXTS, show_progress_bar=False, normalize_embeddings=True
        )
        tokens = sum(min(n, limit) if limit is not None else n for n in lengths)
        return Reply(np.ascontiguousarray(vectors, dtype=np.float32), tokens, tuple(long))


def _lengths(model: SentenceTransformer, texts: list[str]) -> list[int]:
    """Count the tokens of each text as the model sees it, its special ones included."""
    encoded = model.tokenizer(texts, truncation=False, padding=False, verbose=False, return_attention_mask=False)
    return [len(ids) for ids in encoded["input_ids"]]


def find_folder(name: str) -> Path:
    """Give the folder of a model: a path, or a name in the local Hugging Face cache. Nothing is fetched."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "modules.json").is_file():
            raise ConfigurationError(f"{name} holds no modules.json, so it is no sentence-transformers model")
        return folder.resolve()
    if name.count("/") <= 1 and not name.startswith((".", "~", "/")):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

        candidate = name if "/" in name else f"sentence-transformers/{name}"
        try:
            return Path(snapshot_download(candidate, local_files_only=True)).resolve()
        except (LocalEntryNotFoundError, HFValidationError, OSError):
            pass
    raise ConfigurationError(
        f"no model {name!r} on this machine: give an existing folder (local:/path/to/model), or download it once "
        "(hf download OWNER/NAME); nothing is fetched at run time"
    )


def folder_digest(folder: Path) -> str:
    """Give the SHA-256 of a model's configuration and weights, remembered by path, size and time of change."""
    paths = sorted({path for pattern in FILES for path in folder.rglob(pattern)})
    stats = [(path.relative_to(folder).as_posix(), path.stat()) for path in paths]
    return _digest(str(folder), tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats))


@cache
def _digest(folder: str, files: tuple[tuple[str, int, int], ...]) -> str:
    whole = hashlib.sha256()
    for name, _, _ in files:
        with (Path(folder) / name).open("rb") as file:
            part = hashlib.file_digest(file, "sha256").hexdigest()
        whole.update(f"{name}\0{part}\n".encode())
    return whole.hexdigest()


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    found: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
