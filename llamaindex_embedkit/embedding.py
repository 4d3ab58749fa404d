"""LlamaIndex's interface over the core: names, events and Python floats, nothing else."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, Self

from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding, mean_agg
from llama_index.core.callbacks.schema import CBEventType, EventPayload
from llama_index.core.instrumentation.events.embedding import EmbeddingEndEvent, EmbeddingStartEvent
from llama_index_instrumentation import get_dispatcher
from pydantic import ConfigDict, Field, PrivateAttr, SecretStr, ValidationError

from embedkit_core import ConfigurationError, Embedder, Usage
from embedkit_core.hosts import ato_lists, complaint, make_embedder, refuse_unknown, to_lists

dispatcher = get_dispatcher(__name__)


class EmbedKitEmbedding(BaseEmbedding):
    """A LlamaIndex embedding model with a shared cache, batching, bounded concurrency and known cost.

    ```python
    Settings.embed_model = EmbedKitEmbedding(model="openai:text-embedding-3-small")
    ```

    The arguments are those of `embedkit_core.Embedder`; `model_name` may stand for `model`. The core batches by itself:
    `embed_batch_size` does not cut its requests. An `embeddings_cache` is never consulted, since its keys are bare
    texts and would serve one model's vectors for another's.

    Raises:
        ConfigurationError: before any I/O, naming the value and the way out.
    """

    model_config = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True, hide_input_in_errors=True)

    # What changes no vector stays out of the host's transformation hash.
    embed_batch_size: int = Field(default=10, gt=0, le=2048, exclude=True)
    num_workers: int | None = Field(default=None, exclude=True)
    embeddings_cache: Any = Field(default=None, exclude=True)
    # What the embedder is made from does not change after it: make another one, or `model_copy`.
    model_name: str = Field(frozen=True)
    api_key: SecretStr | None = Field(default=None, exclude=True, frozen=True)
    base_url: str | None = Field(default=None, frozen=True)
    dimensions: int | None = Field(default=None, frozen=True)
    cache: Any = Field(default=None, exclude=True, frozen=True)
    query_prompt: str | None = Field(default=None, frozen=True)
    document_prompt: str | None = Field(default=None, frozen=True)
    on_long_text: Literal["truncate", "error", "mean"] = Field(default="truncate", frozen=True)
    max_concurrency: int = Field(default=16, exclude=True, frozen=True)
    max_batch_texts: int | None = Field(default=None, exclude=True, frozen=True)
    max_retries: int = Field(default=6, exclude=True, frozen=True)
    timeout: float | None = Field(default=60.0, exclude=True, frozen=True)
    provider_options: Mapping[str, Any] | None = Field(default=None, frozen=True)

    _embedder: Embedder = PrivateAttr()

    def __init__(self, model: str | None = None, **arguments: Any) -> None:
        # class_name comes from the host's own from_dict().
        refuse_unknown(type(self).__name__, arguments, [*type(self).model_fields, "model", "class_name"])
        arguments.pop("class_name", None)
        name = arguments.setdefault("model_name", model)
        if name is None or model not in (None, name):
            raise ConfigurationError(f"{type(self).__name__} takes one model, such as 'openai:text-embedding-3-small'")
        if arguments.pop("embeddings_cache", None) is not None:
            warnings.warn("embeddings_cache is not used: EmbedKitEmbedding has a cache of its own", stacklevel=2)
        if arguments.pop("rate_limiter", None) is not None:
            warnings.warn("rate_limiter is not used: max_concurrency bounds what is in flight", stacklevel=2)
        try:
            super().__init__(**arguments)
        except ValidationError as error:
            raise complaint(type(self).__name__, error.errors(include_input=False)) from None
        self._embedder = make_embedder({**dict(self), "model": self.model_name}, api_key=self.api_key)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Copy; with another setting, a new object is made and checked."""
        if not update:
            return super().model_copy(deep=deep)
        return type(self)(**{name: getattr(self, name) for name in self.model_fields_set} | dict(update))

    @classmethod
    def class_name(cls) -> str:
        """Give the name the host serializes under."""
        return "EmbedKitEmbedding"

    @property
    def embedder(self) -> Embedder:
        """The core's object behind this one."""
        return self._embedder

    @property
    def usage(self) -> Usage:
        """What this object has asked and paid for so far."""
        return self._embedder.usage

    def _get_query_embedding(self, query: str) -> Embedding:
        return to_lists(self._embedder.embed([query], input_type="query").vectors)[0]

    async def _aget_query_embedding(self, query: str) -> Embedding:
        return to_lists((await self._embedder.aembed([query], input_type="query")).vectors)[0]

    def _get_text_embedding(self, text: str) -> Embedding:
        return self._get_text_embeddings([text])[0]

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return (await self._aget_text_embeddings([text]))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return to_lists(self._embedder.embed_documents(texts))

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return await ato_lists(await self._embedder.aembed_documents(texts))

    # The host's own versions of the next four consult an embeddings_cache and report no end to a call that fails.

    @dispatcher.span
    def get_query_embedding(self, query: str) -> Embedding:
        """Embed a query."""
        with self._events([query]) as end:
            return end([self._get_query_embedding(query)])[0]

    @dispatcher.span
    async def aget_query_embedding(self, query: str) -> Embedding:
        """Embed a query without holding the caller's loop."""
        with self._events([query]) as end:
            return end([await self._aget_query_embedding(query)])[0]

    @dispatcher.span
    def get_text_embedding(self, text: str) -> Embedding:
        """Embed a document."""
        with self._events([text]) as end:
            return end(self._get_text_embeddings([text]))[0]

    @dispatcher.span
    async def aget_text_embedding(self, text: str) -> Embedding:
        """Embed a document without holding the caller's loop."""
        with self._events([text]) as end:
            return end(await self._aget_text_embeddings([text]))[0]

    @dispatcher.span
    def get_text_embedding_batch(
        self,
        texts: list[str],
        show_progress: bool = False,  # noqa: ARG002 - the host's signature; progress comes with the core's own bar
        **kwargs: Any,  # noqa: ARG002 - the host's signature
    ) -> list[Embedding]:
        """Embed texts in one call of the core, which batches them."""
        with self._events(texts) as end:
            return end(self._get_text_embeddings(texts))

    @dispatcher.span
    async def aget_text_embedding_batch(
        self,
        texts: list[str],
        show_progress: bool = False,  # noqa: ARG002 - the host's signature
        **kwargs: Any,  # noqa: ARG002 - the host's signature
    ) -> list[Embedding]:
        """Embed texts in one call of the core, without holding the caller's loop."""
        with self._events(texts) as end:
            return end(await self._aget_text_embeddings(texts))

    def get_agg_embedding_from_queries(
        self, queries: list[str], agg_fn: Callable[..., Embedding] | None = None
    ) -> Embedding:
        """Embed queries in one call and aggregate their vectors, by their mean unless told otherwise."""
        with self._events(queries) as end:
            vectors = end(to_lists(self._embedder.embed(queries, input_type="query").vectors))
        return (agg_fn or mean_agg)(vectors)

    async def aget_agg_embedding_from_queries(
        self, queries: list[str], agg_fn: Callable[..., Embedding] | None = None
    ) -> Embedding:
        """Embed queries in one call and aggregate their vectors, by their mean unless told otherwise."""
        with self._events(queries) as end:
            vectors = end(await ato_lists((await self._embedder.aembed(queries, input_type="query")).vectors))
        return (agg_fn or mean_agg)(vectors)

    @contextmanager
    def _events(self, texts: list[str]) -> Iterator[Callable[[list[Embedding]], list[Embedding]]]:
        """Report a call to the host: its start now, its end with the vectors, on failure with none."""
        payload = self.to_payload()
        found: list[Embedding] = []

        def end(vectors: list[Embedding]) -> list[Embedding]:
            found.extend(vectors)
            return vectors

        dispatcher.event(EmbeddingStartEvent(model_dict=payload))
        with self.callback_manager.event(CBEventType.EMBEDDING, payload={EventPayload.SERIALIZED: payload}) as event:
            try:
                yield end
            finally:
                event.on_end(payload={EventPayload.CHUNKS: texts, EventPayload.EMBEDDINGS: found})
                # Validated, the event would walk and copy every number while the caller's loop waits.
                dispatcher.event(EmbeddingEndEvent.model_construct(chunks=texts, embeddings=found))

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the settings; never the key, which the other process finds in its own environment."""
        state: dict[str, Any] = super().__getstate__()
        return {**state, "__dict__": {**state["__dict__"], "api_key": None}}
