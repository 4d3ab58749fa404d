"""Hugging Face models on this machine, through sentence-transformers."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from decimal import Decimal
from typing import Any, ClassVar, TypeVar, cast

from embedkit_core.common.errors import ConfigurationError, EmbedKitError, ProviderError
from embedkit_core.common.types import Batch, InputType, Limits, Reply
from embedkit_core.providers.base import Client, Provider, ProviderSettings
from embedkit_core.providers.local.folder import FolderInfo, find_folder, folder_digest, hub_name
from embedkit_core.providers.local.model import LocalModel
from embedkit_core.providers.local.options import LocalOptions, read_options
from embedkit_core.providers.local.pool import PooledModel

# A query waits for one request at most, so a request is bounded by its tokens, which tell how long it takes: half a
# second of MiniLM's on two cores, where its texts are of one length each batch (local_batches.py).
REQUEST_TEXTS = 256
REQUEST_TOKENS = 8_192
T = TypeVar("T")


class Local(Provider):
    """A sentence-transformers model in a folder, or in the local Hugging Face cache by its name."""

    name: ClassVar[str] = "local"
    extra: ClassVar[str | None] = "local"
    needs: ClassVar[tuple[str, ...]] = ("sentence_transformers", "torch")
    is_local: ClassVar[bool] = True
    truncates_long_texts: ClassVar[bool] = True
    takes_dimensions: ClassVar[bool] = False

    def __init__(self, settings: ProviderSettings) -> None:
        settings.check_only_used(
            "api_key", "dimensions", "query_prompt", "document_prompt", "provider_options"
        )  # no use for a key, and no harm in one
        self._folder = find_folder(settings.name)
        self.model = settings.name
        facts = FolderInfo(self._folder)
        self._options = read_options(settings.options, longest=facts.positions)
        self._digest = folder_digest(self._folder)
        self.account = (self.name, str(self._folder), self._digest, self._options)
        self.limits = _limits(self._options)
        self.usd_per_million = Decimal(0)
        self._truncation = settings.on_long_text == "truncate"
        self._max_tokens = self._options.max_seq_length or facts.max_tokens
        self._asymmetric = facts.asymmetric
        self._prompts = settings.prompts | (facts.prompts or {}) | _given(settings)
        self.dimensions = _width(settings, facts)

    @classmethod
    def catalogue_name(cls, name: str) -> str:
        """Give the name on the hub, by which the catalogue lists a model, of a folder in the Hugging Face cache too."""
        return hub_name(name)

    @property
    def max_text_tokens(self) -> int | None:
        """The tokens that the model's configuration states."""
        return self._max_tokens

    def request_body(self, input_type: InputType) -> dict[str, Any]:
        """Give what the model is called with, its identity included."""
        wire: dict[str, Any] = {
            "model": self._digest,
            "backend": "torch",
            "precision": self._options.precision,
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
        kind = PooledModel if self._options.is_pool else LocalModel
        return LocalClient(kind(self._folder, self._digest, self._options))


def _limits(options: LocalOptions) -> Limits:
    """Give what a request holds: half as much on a CPU, which has to do with it for longer."""
    return Limits(
        texts=REQUEST_TEXTS, tokens=REQUEST_TOKENS if options.is_cpu and not options.is_pool else None, in_flight=1
    )


def _given(settings: ProviderSettings) -> dict[InputType, str]:
    """Give the prompts that are the user's own, which beat those of the model's folder and of the catalogue."""
    given: dict[InputType, str | None] = {"query": settings.query_prompt, "document": settings.document_prompt}
    return {role: prompt for role, prompt in given.items() if prompt is not None}


def _width(settings: ProviderSettings, facts: FolderInfo) -> int | None:
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
    """A model and the one thread that uses it."""

    def __init__(self, model: LocalModel) -> None:
        self._model = model
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="embedkit-model", daemon=True)
        self._thread.start()

    async def embed(self, batch: Batch) -> Reply:
        """Encode the texts on the model's thread."""
        return await self._on_thread(lambda: self._model.embed(batch))

    async def aclose(self) -> None:
        """End the model's thread, and its processes where it has some, after what they have to do."""
        try:
            await self._on_thread(self._model.close)
        finally:
            self._jobs.put(None)

    async def _on_thread(self, work: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def answer(outcome: T | None, error: EmbedKitError | None) -> None:
            if not future.done():
                if error is not None:
                    future.set_exception(error)
                else:
                    future.set_result(cast(T, outcome))

        def job() -> None:
            outcome: T | None = None
            failure: EmbedKitError | None = None
            try:
                outcome = work()
            except EmbedKitError as error:
                failure = error
            except Exception as error:  # its message may hold a text
                failure = ProviderError(f"the model in {self._model.name} failed with {type(error).__name__}")
            with contextlib.suppress(RuntimeError):  # the loop is closed: the process is ending
                loop.call_soon_threadsafe(answer, outcome, failure)

        self._jobs.put(job)
        return await future

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
