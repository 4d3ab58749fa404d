"""Hugging Face models on this machine, through sentence-transformers."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from embedkit_core.errors import ConfigurationError, EmbedKitError, ProviderError, TextTooLongError
from embedkit_core.forks import importing
from embedkit_core.providers import Client, Provider, ProviderSettings
from embedkit_core.providers.local_folder import Facts, find_folder, folder_digest, hub_name
from embedkit_core.types import Batch, InputType, Limits, Reply

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

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
        facts = Facts(self._folder)
        self._max_tokens = facts.max_tokens
        self._asymmetric = facts.asymmetric
        self._prompts = settings.prompts | (facts.prompts or {}) | _given(settings)
        self.dimensions = _width(settings, facts)

    @classmethod
    def catalogue_name(cls, name: str) -> str:
        """Give the name on the hub, by which the catalogue lists a model, of a folder in the Hugging Face cache too."""
        return hub_name(name)

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


def _given(settings: ProviderSettings) -> dict[InputType, str]:
    """Give the prompts that are the user's own, which beat those of the model's folder and of the catalogue."""
    given: dict[InputType, str | None] = {"query": settings.query_prompt, "document": settings.document_prompt}
    return {role: prompt for role, prompt in given.items() if prompt is not None}


def _width(settings: ProviderSettings, facts: Facts) -> int | None:
    """Give the width of the model's vectors; others than these are cut from them, not here."""
    known = settings.info.dimensions if settings.info else None
    if facts.dimensions and known and facts.dimensions != known:
        raise ConfigurationError(
            f"the folder of {settings.name} holds a model of {facts.dimensions} dimensions, and the catalogue, or "
            f"model_info, says that it has {known}: it is another model, or model_info= names the wrong one"
        )
    width = facts.dimensions or known
    if settings.dimensions not in (None, width):
        offered = f"; it offers {width}" if width else ""
        raise ConfigurationError(
            f"{settings.name} does not offer {settings.dimensions} dimensions{offered}. If it is trained for fewer, "
            "say so: model_info={'allowed_dimensions': [...], 'cut': 'prefix'}"
        )
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
