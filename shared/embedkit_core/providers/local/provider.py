"""Local Hugging Face models, through sentence-transformers."""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections.abc import Callable
from decimal import Decimal
from typing import Any, ClassVar, TypeVar, cast

from embedkit_core.common.errors import ConfigurationError, EmbedKitError, ProviderError
from embedkit_core.common.threads import start_thread
from embedkit_core.common.types import Batch, InputType, Limits, Reply
from embedkit_core.providers.base import Client, Provider, ProviderSettings
from embedkit_core.providers.local.folder import FolderInfo, find_folder, folder_digest, hub_name
from embedkit_core.providers.local.model import LocalModel
from embedkit_core.providers.local.options import LocalOptions, read_options
from embedkit_core.providers.local.pool import PooledModel

# A query waits for at most one request. The token limit bounds the duration of a request: about 0.5 s with MiniLM on
# two cores.
MAX_REQUEST_TEXTS = 256
MAX_REQUEST_TOKENS = 8_192
T = TypeVar("T")


class Local(Provider):
    """A sentence-transformers model, by its folder or by its name in the local Hugging Face cache."""

    name: ClassVar[str] = "local"
    extra: ClassVar[str | None] = "local"
    needs: ClassVar[tuple[str, ...]] = ("sentence_transformers", "torch")
    is_local: ClassVar[bool] = True
    truncates_long_texts: ClassVar[bool] = True
    takes_dimensions: ClassVar[bool] = False

    def __init__(self, settings: ProviderSettings) -> None:
        # An API key has no effect and does no harm.
        settings.check_only_used("api_key", "dimensions", "query_prompt", "document_prompt", "provider_options")
        self._folder = find_folder(settings.name)
        self.model = settings.name
        folder_info = FolderInfo(self._folder)
        self._options = read_options(settings.options, max_tokens=folder_info.positions)
        self._digest = folder_digest(self._folder)
        self.account = (self.name, str(self._folder), self._digest, self._options)
        self.limits = _limits(self._options)
        self.usd_per_million = Decimal(0)
        self._truncates = settings.on_long_text == "truncate"
        self._max_tokens = self._options.max_seq_length or folder_info.max_tokens
        self._asymmetric = folder_info.asymmetric
        self._prompts = settings.prompts | _folder_prompts(settings, folder_info) | _user_prompts(settings)
        self.dimensions = _width(settings, folder_info)

    @classmethod
    def catalogue_name(cls, name: str) -> str:
        """Return the model's name on the Hugging Face Hub, also for a folder in the Hugging Face cache."""
        return hub_name(name)

    @property
    def max_text_tokens(self) -> int | None:
        """Maximum tokens of a text: the user's max_seq_length, else that of the model's configuration."""
        return self._max_tokens

    def request_body(self, input_type: InputType) -> dict[str, Any]:
        """Return the model's arguments and its digest."""
        body: dict[str, Any] = {
            "model": self._digest,
            "backend": "torch",
            "precision": self._options.precision,
            "max_seq_length": self._max_tokens,
            "normalize": True,
            "truncation": self._truncates,
        }
        if self._prompts[input_type]:
            body["prompt"] = self._prompts[input_type]
        if self._asymmetric:
            body["role"] = input_type
        return body

    def connect(self) -> Client:
        """Start the thread of the model, which is loaded there at the first request."""
        model_class = PooledModel if self._options.is_pool else LocalModel
        return LocalClient(model_class(self._folder, self._digest, self._options))


def _limits(options: LocalOptions) -> Limits:
    """Return the limits of a request; only a single CPU needs a token limit, because it is slow."""
    max_tokens = MAX_REQUEST_TOKENS if options.is_cpu and not options.is_pool else None
    return Limits(texts=MAX_REQUEST_TEXTS, tokens=max_tokens, in_flight=1)


def _folder_prompts(settings: ProviderSettings, folder_info: FolderInfo) -> dict[InputType, str]:
    """Return the prompts of the model's folder, which are for retrieval and override those of the catalogue."""
    return {} if settings.task is not None else folder_info.prompts or {}


def _user_prompts(settings: ProviderSettings) -> dict[InputType, str]:
    """Return the user's prompts, which override those of the model's folder and the catalogue."""
    prompts: dict[InputType, str | None] = {"query": settings.query_prompt, "document": settings.document_prompt}
    return {input_type: prompt for input_type, prompt in prompts.items() if prompt is not None}


def _width(settings: ProviderSettings, folder_info: FolderInfo) -> int | None:
    """Return the width of the model's vectors; the engine truncates them if needed."""
    known = settings.info.dimensions if settings.info else None
    if folder_info.dimensions and known and folder_info.dimensions != known:
        raise ConfigurationError(
            f"{settings.name} has {folder_info.dimensions} dimensions, but the catalogue or model_info= states "
            f"{known}. Use the folder of the right model, or correct model_info=."
        )
    width = folder_info.dimensions or known
    if settings.dimensions not in (None, width):
        offered = f"; it offers {width}" if width else ""
        raise ConfigurationError(
            f"dimensions: {settings.name} does not offer {settings.dimensions} dimensions{offered}. If it supports "
            "shorter vectors, pass model_info={'allowed_dimensions': [...], 'cut': 'prefix'}."
        )
    return width


class LocalClient:
    """Client that runs a model on one thread."""

    def __init__(self, model: LocalModel) -> None:
        self._model = model
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = start_thread(self._run, "embedkit-model")

    async def embed(self, batch: Batch) -> Reply:
        """Encode the texts on the model's thread."""
        return await self._on_thread(lambda: self._model.embed(batch))

    async def aclose(self) -> None:
        """Stop the model's thread and processes after their pending work."""
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
            except Exception as error:  # its message may contain a text
                failure = ProviderError(f"The model {self._model.name} failed with {type(error).__name__}")
            with contextlib.suppress(RuntimeError):  # the loop is closed: the process is ending
                loop.call_soon_threadsafe(answer, outcome, failure)

        self._jobs.put(job)
        return await future

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
