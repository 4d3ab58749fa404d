"""LangChain's interface over the core: names, types and Python floats, nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from langchain_core.embeddings import Embeddings
from pydantic import BaseModel, ConfigDict, PrivateAttr, SecretStr, ValidationError

from embedkit_core import Embedder, Usage
from embedkit_core.hosts import ato_lists, complaint, make_embedder, refuse_unknown, to_lists


class EmbedKitEmbeddings(BaseModel, Embeddings):
    """LangChain embeddings with a shared cache, batching, bounded concurrency and known cost.

    ```python
    embeddings = EmbedKitEmbeddings(model="openai:text-embedding-3-small")
    vectors = embeddings.embed_documents(["first text", "second text"])
    ```

    The arguments are those of `embedkit_core.Embedder`. An object does not change: make another one, or `model_copy`.

    Raises:
        ConfigurationError: before any I/O, naming the value and the way out.
    """

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, arbitrary_types_allowed=True, hide_input_in_errors=True
    )

    model: str
    api_key: SecretStr | None = None
    base_url: str | None = None
    dimensions: int | None = None
    cache: Any = None
    query_prompt: str | None = None
    document_prompt: str | None = None
    on_long_text: Literal["truncate", "error", "mean"] = "truncate"
    max_concurrency: int = 16
    max_batch_texts: int | None = None
    max_retries: int = 6
    timeout: float | None = 60.0
    provider_options: Mapping[str, Any] | None = None

    _embedder: Embedder = PrivateAttr()

    def __init__(self, model: str = "", **arguments: Any) -> None:
        arguments = {"model": model, **arguments}
        refuse_unknown(type(self).__name__, arguments, type(self).model_fields)
        try:
            super().__init__(**arguments)
        except ValidationError as error:
            raise complaint(type(self).__name__, error.errors(include_input=False)) from None
        self._embedder = make_embedder(dict(self), api_key=self.api_key)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Copy; with another setting, a new object is made and checked."""
        if not update:
            return super().model_copy(deep=deep)
        return type(self)(**{name: getattr(self, name) for name in self.model_fields_set} | dict(update))

    @property
    def embedder(self) -> Embedder:
        """The core's object behind this one."""
        return self._embedder

    @property
    def usage(self) -> Usage:
        """What this object has asked and paid for so far."""
        return self._embedder.usage

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed documents."""
        return to_lists(self._embedder.embed_documents(texts))

    def embed_query(self, text: str) -> list[float]:
        """Embed a query."""
        return to_lists(self._embedder.embed([text], input_type="query").vectors)[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed documents without holding the caller's loop."""
        return await ato_lists(await self._embedder.aembed_documents(texts))

    async def aembed_query(self, text: str) -> list[float]:
        """Embed a query without holding the caller's loop."""
        return to_lists((await self._embedder.aembed([text], input_type="query")).vectors)[0]

    def __getstate__(self) -> dict[Any, Any]:
        """Pickle the settings; never the key, which the other process finds in its own environment."""
        state = super().__getstate__()
        return {**state, "__dict__": {**state["__dict__"], "api_key": None}}
