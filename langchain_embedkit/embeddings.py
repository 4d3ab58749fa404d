"""LangChain's interface over the core: names, types and Python floats, nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from os import PathLike
from typing import Any, Literal, Self, Unpack

from langchain_core.embeddings import Embeddings
from langchain_core.utils import secret_from_env
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr
from pydantic.json_schema import SkipJsonSchema

from embedkit_core import DType, Embedder, InputType, Progress, RateLimiter
from embedkit_core.adapters.arguments import NOT_GIVEN, default_model, take_arguments
from embedkit_core.adapters.base import (
    EmbedderMixin,
    aembed_lists,
    changed_copy,
    embed_lists,
    fields_not_pickled,
    validate_with_core,
)
from langchain_embedkit.arguments import RULES, LangChainOptions
from langchain_embedkit.usage import areported, current_run, reported


class EmbedKitEmbeddings(BaseModel, Embeddings, EmbedderMixin):
    """LangChain embeddings with a shared cache, batching, bounded concurrency and known cost.

    ```python
    embeddings = EmbedKitEmbeddings(model="openai:text-embedding-3-small")
    vectors = embeddings.embed_documents(["first text", "second text"])
    ```

    The arguments are those of `embedkit_core.Embedder`, in its spelling or in that of langchain-openai's,
    langchain-voyageai's and langchain-cohere's classes; `langchain_embedkit.arguments` says what becomes of each. A
    LangChain `rate_limiter` is asked once for each request, and never for a hit. An object does not change: make
    another one, or `model_copy`.

    Raises:
        ConfigurationError: before any I/O, naming the value and the way out.
    """

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, arbitrary_types_allowed=True, hide_input_in_errors=True
    )

    model: str
    api_key: SecretStr | SkipJsonSchema[Callable[[], str]] | None = Field(default=None, exclude=True)
    base_url: str | None = None
    headers: Mapping[str, str] | None = Field(default=None, exclude=True, repr=False)
    proxy: str | None = Field(default=None, exclude=True, repr=False)
    ca_bundle: str | PathLike[str] | None = None
    dimensions: int | None = None
    dtype: DType = "float32"
    model_info: Mapping[str, Any] | None = None
    cache: Any = None
    query_prompt: str | None = None
    document_prompt: str | None = None
    on_long_text: Literal["truncate", "error", "mean"] = "truncate"
    max_concurrency: int = 16
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_batch_texts: int | None = None
    max_retries: int = 6
    timeout: float | None = 60.0
    deadline: float | None = None
    provider_options: Mapping[str, Any] | None = None
    rate_limiter: SkipJsonSchema[RateLimiter | None] = Field(default=None, exclude=True)
    budget_usd: float | str | Decimal | None = None
    budget_tokens: int | None = None
    prices: Mapping[str, Any] | None = None
    progress: SkipJsonSchema[bool | Callable[[Progress], object] | None] = Field(default=None, exclude=True)
    pickle_api_key: bool = False

    _embedder: Embedder = PrivateAttr()

    def __init__(self, model: str = NOT_GIVEN, **options: Unpack[LangChainOptions]) -> None:
        """Take the arguments in either spelling; see the class."""
        taken = self._take(options if model is NOT_GIVEN else {"model": model, **options})
        if "model" not in taken and type(self).model_fields["model"].is_required():
            taken["model"] = default_model(type(self).__name__, "OpenAIEmbeddings")
        self._embedder = validate_with_core(self, taken, super().__init__)
        self._show_key_of_environment()

    @classmethod
    def _take(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        return take_arguments(cls.__name__, given, cls.model_fields, RULES)

    def _show_key_of_environment(self) -> None:
        # The embedder finds it by itself; that it is not among the fields set tells it from a key that was passed.
        variable = self._embedder.provider.key_variable
        if self.api_key is None and variable is not None:
            self.__pydantic_fields_set__.discard("api_key")
            self.__dict__["api_key"] = secret_from_env(variable, default=None)()

    def _arguments(self) -> dict[str, Any]:
        """Return the fields under the names that the core has for them."""
        return dict(self)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Copy; with another setting, a new object is made and checked."""
        if not update:
            return super().model_copy(deep=deep)
        return changed_copy(self, self._take(update))

    def copy(self, *, include: Any = None, exclude: Any = None, update: Any = None, deep: bool = False) -> Self:  # noqa: ARG002
        """Copy, by pydantic's former name for it; what is left out of a copy is not supported."""
        return self.model_copy(update=update, deep=deep)

    def embed_documents(self, texts: list[str], chunk_size: int | None = None) -> list[list[float]]:
        """Embed documents; `chunk_size` bounds the texts in one request of this call."""
        return self._embed(texts, "document", chunk_size or None)

    def embed_query(self, text: str) -> list[float]:
        """Embed a query."""
        return self._embed([text], "query")[0]

    async def aembed_documents(self, texts: list[str], chunk_size: int | None = None) -> list[list[float]]:
        """Embed documents without holding the caller's loop."""
        return await self._aembed(texts, "document", chunk_size or None)

    async def aembed_query(self, text: str) -> list[float]:
        """Embed a query without holding the caller's loop."""
        return (await self._aembed([text], "query"))[0]

    def _embed(self, texts: list[str], input_type: InputType, max_batch_texts: int | None = None) -> list[list[float]]:
        run = current_run()
        if run is None:
            return embed_lists(self._embedder, texts, input_type, max_batch_texts).rows
        with reported(self._embedder.model, input_type, run) as report:
            rows, report.usage = embed_lists(self._embedder, texts, input_type, max_batch_texts)
        return rows

    async def _aembed(
        self, texts: list[str], input_type: InputType, max_batch_texts: int | None = None
    ) -> list[list[float]]:
        run = current_run()
        if run is None:
            return (await aembed_lists(self._embedder, texts, input_type, max_batch_texts)).rows
        async with areported(self._embedder.model, input_type, run) as report:
            rows, report.usage = await aembed_lists(self._embedder, texts, input_type, max_batch_texts)
        return rows

    def __getstate__(self) -> dict[Any, Any]:
        """Pickle the settings; a key only if it was given with `pickle_api_key`, a limiter only where it can be."""
        state = super().__getstate__()
        return {**state, "__dict__": {**state["__dict__"], **fields_not_pickled(self)}}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        super().__setstate__(state)
        self.__dict__ |= {"rate_limiter": self._embedder.rate_limiter, "progress": self._embedder.settings.progress}
        self._show_key_of_environment()

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """Copy the settings; limiter, cache and budget are shared, as what they bound and hold is."""
        shared = {id(thing): thing for thing in (self.rate_limiter, self.cache, self.progress)}
        return super().__deepcopy__({**(memo or {}), **shared})
