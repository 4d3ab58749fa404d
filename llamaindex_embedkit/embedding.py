"""LlamaIndex adapter: maps names, events and Python floats to the core."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from os import PathLike
from typing import Any, ClassVar, Literal, Unpack

from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding, mean_agg
from llama_index.core.bridge.pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr, pydantic
from llama_index.core.callbacks.base import CallbackManager
from llama_index.core.callbacks.schema import CBEventType, EventPayload
from llama_index.core.instrumentation.events.embedding import EmbeddingEndEvent, EmbeddingStartEvent
from llama_index_instrumentation import get_dispatcher

from embedkit_core import DType, Embedder, EmbedKitError, InputType, Progress, RateLimiter
from embedkit_core.adapters.arguments import NOT_GIVEN, KnownModel, Rule, default_model, errors_name, mask_key
from embedkit_core.adapters.base import (
    EmbedderMixin,
    aembed_lists,
    embed_lists,
    fields_not_pickled,
    validate_with_core,
)
from llamaindex_embedkit.arguments import RULES, LlamaIndexOptions
from llamaindex_embedkit.events import EmbeddingUsageEvent, Report
from llamaindex_embedkit.hooks import ASYNC_HOOKS, HOOKS, aembed_with_hooks, embed_with_hooks, overridden_hooks

dispatcher = get_dispatcher(__name__)
json_schema = pydantic.json_schema


class EmbedKitEmbedding(EmbedderMixin, BaseEmbedding):
    """LlamaIndex embedding model with a shared cache, batching, bounded concurrency and cost tracking.

    ```python
    Settings.embed_model = EmbedKitEmbedding(model="openai:text-embedding-3-small")
    ```

    Accepts the arguments of `embedkit_core.Embedder` and those of LlamaIndex's own classes;
    `llamaindex_embedkit.arguments` lists how each is handled. The core batches requests: limit them with
    `max_batch_texts`; `embed_batch_size` has no effect on them, and `num_workers` is not needed. A `rate_limiter` is
    called once for each request, with its tokens, never for a cache hit. An `embeddings_cache` is ignored: its keys
    are bare texts, so it would return vectors of another model.

    A subclass may override LlamaIndex's hooks `_get_query_embedding`, `_get_text_embedding`, `_get_text_embeddings` and
    their async counterparts. Override `_get_text_embeddings`, not `_get_text_embedding`, to keep batches.

    Raises:
        ConfigurationError: An argument is invalid. Raised before any I/O.
    """

    model_config = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True, hide_input_in_errors=True)

    argument_rules: ClassVar[Mapping[str, Rule]] = RULES

    # Fields that do not affect vectors are excluded from LlamaIndex's transformation hash.
    embed_batch_size: int = Field(default=10, gt=0, le=2048, exclude=True)
    num_workers: int | None = Field(default=None, exclude=True)
    embeddings_cache: Any = Field(default=None, exclude=True)
    # The arguments of the embedder are frozen: use `model_copy` to change one.
    model_name: str = Field(frozen=True)
    api_key: SecretStr | json_schema.SkipJsonSchema[Callable[[], str]] | None = Field(
        default=None, exclude=True, frozen=True
    )
    base_url: str | None = Field(default=None, frozen=True)
    headers: Mapping[str, str] | None = Field(default=None, exclude=True, repr=False, frozen=True)
    proxy: str | None = Field(default=None, exclude=True, repr=False, frozen=True)
    ca_bundle: str | PathLike[str] | None = Field(default=None, exclude=True, frozen=True)
    client_cert: str | PathLike[str] | tuple[str | PathLike[str], ...] | None = Field(
        default=None, exclude=True, repr=False, frozen=True
    )
    dimensions: int | None = Field(default=None, frozen=True)
    dtype: DType = Field(default="float32", frozen=True)
    model_info: Mapping[str, Any] | None = Field(default=None, exclude=True, frozen=True)
    # The repr of a client of redis 5.1 to 7 has its password.
    cache: Any = Field(default=None, exclude=True, repr=False, frozen=True)
    coordination: Any = Field(default=None, exclude=True, repr=False, frozen=True)
    account: str | None = Field(default=None, exclude=True, frozen=True)
    query_prompt: str | None = Field(default=None, frozen=True)
    document_prompt: str | None = Field(default=None, frozen=True)
    task: Literal["classification", "clustering", "similarity", "code"] | None = Field(default=None, frozen=True)
    on_long_text: Literal["truncate", "error", "mean"] = Field(default="truncate", frozen=True)
    on_empty_text: Literal["error", "zero"] = Field(default="error", exclude=True, frozen=True)
    max_concurrency: int = Field(default=16, exclude=True, frozen=True)
    requests_per_minute: int | None = Field(default=None, exclude=True, frozen=True)
    tokens_per_minute: int | None = Field(default=None, exclude=True, frozen=True)
    max_batch_texts: int | None = Field(default=None, exclude=True, frozen=True)
    max_retries: int = Field(default=6, exclude=True, frozen=True)
    timeout: float | None = Field(default=60.0, exclude=True, frozen=True)
    deadline: float | None = Field(default=None, exclude=True, frozen=True)
    provider_options: Mapping[str, Any] | None = Field(default=None, frozen=True)
    rate_limiter: json_schema.SkipJsonSchema[RateLimiter | None] = Field(default=None, exclude=True, frozen=True)
    budget_usd: float | str | Decimal | None = Field(default=None, exclude=True, frozen=True)
    budget_tokens: int | None = Field(default=None, exclude=True, frozen=True)
    budget_name: str | None = Field(default=None, exclude=True, frozen=True)
    prices: Mapping[str, Any] | None = Field(default=None, exclude=True, frozen=True)
    progress: json_schema.SkipJsonSchema[bool | Callable[[Progress], object] | None] = Field(
        default=None, exclude=True, frozen=True
    )
    in_batch: Literal["pay", "wait", "error"] = Field(default="pay", exclude=True, frozen=True)
    pickle_api_key: bool = Field(default=False, exclude=True, frozen=True)

    _overridden: ClassVar[frozenset[str]] = frozenset()  # of LlamaIndex's hooks, see `hooks`
    _embedder: Embedder = PrivateAttr()

    def __init__(self, model: KnownModel | str = NOT_GIVEN, **options: Unpack[LlamaIndexOptions]) -> None:
        """Initialize from arguments in either spelling; see the class."""
        # LlamaIndex's from_dict() passes on the entries of to_dict() that are not arguments.
        ignored = ("class_name", "fingerprint")
        model, arguments = mask_key(model), self._hide({n: v for n, v in options.items() if n not in ignored})
        del options
        fields = self._translate(arguments if model is NOT_GIVEN else {"model": model, **arguments})
        if "model_name" not in fields and type(self).model_fields["model_name"].is_required():
            fields["model_name"] = default_model(type(self).__name__, "OpenAIEmbedding")
        if fields.pop("embeddings_cache", None) is not None:
            warnings.warn("embeddings_cache is not used: EmbedKitEmbedding has its own cache.", stacklevel=2)
        with errors_name(arguments, RULES):
            self._embedder = validate_with_core(self, fields, super().__init__)

    @classmethod
    def _translate(cls, arguments: Mapping[str, Any]) -> dict[str, Any]:
        fields = super()._translate(arguments)
        if isinstance(name := fields.get("model_name"), str):
            fields["model_name"] = str.__str__(name)  # LlamaIndex's model names are enumeration members
        return fields

    @classmethod
    def _arguments(cls, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields under their names in the core."""
        return {**fields, "model": fields["model_name"]}

    @classmethod
    def class_name(cls) -> str:
        """Return the class name that LlamaIndex serializes."""
        return "EmbedKitEmbedding"

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """Return the settings that affect vectors, as the key of LlamaIndex's caches.

        `fingerprint` covers settings that are not arguments, such as a base URL from the environment or the content
        of a model folder.
        """
        settings = {**super().to_dict(**kwargs), **self._embedder.identity()}
        if self.task is None:  # of older versions, whose hashes must stay
            settings.pop("task", None)
        return settings

    def to_payload(self) -> dict[str, Any]:
        """Return the description of this model for events."""
        return {
            "class_name": self.class_name(),
            "model_name": self.model_name,
            "embed_batch_size": self.embed_batch_size,
        }

    # None of these calls another one: an override of one, which calls it with `super()`, would meet that of the other.

    def _get_query_embedding(self, query: str) -> Embedding:
        return embed_lists(self._embedder, [query], "query").rows[0]

    async def _aget_query_embedding(self, query: str) -> Embedding:
        return (await aembed_lists(self._embedder, [query], "query")).rows[0]

    def _get_text_embedding(self, text: str) -> Embedding:
        return embed_lists(self._embedder, [text]).rows[0]

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return (await aembed_lists(self._embedder, [text])).rows[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return embed_lists(self._embedder, texts).rows

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return (await aembed_lists(self._embedder, texts)).rows

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Note which of the methods above a subclass overrides; the methods below use those."""
        super().__pydantic_init_subclass__(**kwargs)
        cls._overridden = overridden_hooks(cls, EmbedKitEmbedding)

    # The base class's versions of these methods use embeddings_cache, call the rate limiter for cache hits too, split
    # calls by embed_batch_size and send no end event for a failed call.

    @dispatcher.span
    def get_query_embedding(self, query: str) -> Embedding:
        """Embed a query."""
        return self._embed([query], "query")[0]

    @dispatcher.span
    async def aget_query_embedding(self, query: str) -> Embedding:
        """Embed a query without blocking the caller's event loop."""
        return (await self._aembed([query], "query"))[0]

    @dispatcher.span
    def get_text_embedding(self, text: str) -> Embedding:
        """Embed a document."""
        return self._embed([text], "document", is_single=True)[0]

    @dispatcher.span
    async def aget_text_embedding(self, text: str) -> Embedding:
        """Embed a document without blocking the caller's event loop."""
        return (await self._aembed([text], "document", is_single=True))[0]

    @dispatcher.span
    def get_text_embedding_batch(
        self,
        texts: list[str],
        show_progress: bool = False,
        **kwargs: Any,  # noqa: ARG002 - LlamaIndex's signature
    ) -> list[Embedding]:
        """Embed documents in one call of the core, which batches them."""
        return self._embed(texts, "document", show_progress or None)

    @dispatcher.span
    async def aget_text_embedding_batch(
        self,
        texts: list[str],
        show_progress: bool = False,
        **kwargs: Any,  # noqa: ARG002 - LlamaIndex's signature
    ) -> list[Embedding]:
        """Embed documents in one call of the core, without blocking the caller's event loop."""
        return await self._aembed(texts, "document", show_progress or None)

    def get_agg_embedding_from_queries(
        self, queries: list[str], agg_fn: Callable[..., Embedding] | None = None
    ) -> Embedding:
        """Embed queries in one call and aggregate their vectors, by default by their mean."""
        return (agg_fn or mean_agg)(self._embed(queries, "query"))

    async def aget_agg_embedding_from_queries(
        self, queries: list[str], agg_fn: Callable[..., Embedding] | None = None
    ) -> Embedding:
        """Embed queries in one call and aggregate their vectors, by default by their mean."""
        return (agg_fn or mean_agg)(await self._aembed(queries, "query"))

    def _embed(
        self, texts: list[str], input_type: InputType, progress: bool | None = None, *, is_single: bool = False
    ) -> list[Embedding]:
        overridden = self._overridden
        with self._reported(texts, input_type) as report:
            if overridden & HOOKS[input_type]:
                with report.tracked():
                    report.vectors = embed_with_hooks(self, overridden, texts, input_type, is_single=is_single)
                return report.vectors
            result = embed_lists(self._embedder, texts, input_type, progress=progress)
            report.vectors, report.usage = result.rows, result.usage
        return report.vectors

    async def _aembed(
        self, texts: list[str], input_type: InputType, progress: bool | None = None, *, is_single: bool = False
    ) -> list[Embedding]:
        overridden = self._overridden
        with self._reported(texts, input_type) as report:
            if overridden & (HOOKS[input_type] | ASYNC_HOOKS[input_type]):
                with report.tracked():
                    report.vectors = await aembed_with_hooks(self, overridden, texts, input_type, is_single=is_single)
                return report.vectors
            result = await aembed_lists(self._embedder, texts, input_type, progress=progress)
            report.vectors, report.usage = result.rows, result.usage
        return report.vectors

    @contextmanager
    def _reported(self, texts: list[str], input_type: InputType) -> Iterator[Report]:
        """Send the start, end and usage events of a call; a failed call ends without vectors."""
        payload = self.to_payload()
        report = Report()
        dispatcher.event(EmbeddingStartEvent(model_dict=payload))
        with self.callback_manager.event(CBEventType.EMBEDDING, payload={EventPayload.SERIALIZED: payload}) as event:
            try:
                yield report
            except EmbedKitError as error:
                report.usage = report.usage or error.usage
                raise
            finally:
                event.on_end(payload={EventPayload.CHUNKS: texts, EventPayload.EMBEDDINGS: report.vectors})
                # Set after the constructor: its validation would copy every number and block the event loop.
                end = EmbeddingEndEvent(chunks=[], embeddings=[])
                end.chunks, end.embeddings = texts, report.vectors
                dispatcher.event(end)
                model = self._embedder.model
                dispatcher.event(EmbeddingUsageEvent(model=model, input_type=input_type, usage=report.usage))

    def __getstate__(self) -> dict[str, Any]:
        """Return the settings for pickle, with an explicit API key only if `pickle_api_key` is set."""
        self._embedder.__reduce__()  # raises; LlamaIndex would silently drop what cannot be pickled
        twin = super().__copy__()  # LlamaIndex removes fields that cannot be pickled from the object
        vars(twin).update(fields_not_pickled(self))
        state: dict[str, Any] = super(EmbedKitEmbedding, twin).__getstate__()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        BaseModel.__setstate__(self, state)  # LlamaIndex would call the constructor without arguments
        vars(self).setdefault("callback_manager", CallbackManager([]))
        vars(self).update(rate_limiter=self._embedder.rate_limiter, progress=self._embedder.settings.progress)
