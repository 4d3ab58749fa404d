"""LangChain adapter: maps names, types and Python floats to the core."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from os import PathLike
from typing import Any, ClassVar, Literal, Self, Unpack

from langchain_core.embeddings import Embeddings
from langchain_core.utils import secret_from_env
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr
from pydantic.json_schema import SkipJsonSchema

from embedkit_core import DType, Embedder, InputType, Progress, RateLimiter
from embedkit_core.adapters.arguments import (
    NOT_GIVEN,
    KnownModel,
    Rule,
    default_model,
    errors_name,
    hide_arguments,
    mask_key,
    take_arguments,
)
from embedkit_core.adapters.base import (
    EmbedderMixin,
    aembed_lists,
    embed_lists,
    fields_not_pickled,
    for_call,
    run_in_thread,
    validate_with_core,
)
from langchain_embedkit.arguments import CALL_RULES, RULES, LangChainOptions
from langchain_embedkit.usage import Report, areported, is_reported, reported


class EmbedKitEmbeddings(EmbedderMixin, BaseModel, Embeddings):
    """LangChain embeddings with a shared cache, batching, bounded concurrency and cost tracking.

    ```python
    embeddings = EmbedKitEmbeddings(model="openai:text-embedding-3-small")
    vectors = embeddings.embed_documents(["first text", "second text"])
    ```

    Accepts the arguments of `embedkit_core.Embedder` and those of the classes in langchain-openai, langchain-voyageai
    and langchain-cohere; `langchain_embedkit.arguments` lists how each is handled. A LangChain `rate_limiter` is
    called once for each request, never for a cache hit. Objects are immutable: use `model_copy` to change a setting.

    Raises:
        ConfigurationError: An argument is invalid. Raised before any I/O.
    """

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, arbitrary_types_allowed=True, hide_input_in_errors=True
    )

    argument_rules: ClassVar[Mapping[str, Rule]] = RULES

    model: str
    api_key: SecretStr | SkipJsonSchema[Callable[[], str]] | None = Field(default=None, exclude=True)
    base_url: str | None = None
    headers: Mapping[str, str] | None = Field(default=None, exclude=True, repr=False)
    proxy: str | None = Field(default=None, exclude=True, repr=False)
    ca_bundle: str | PathLike[str] | None = None
    client_cert: str | PathLike[str] | tuple[str | PathLike[str], ...] | None = Field(
        default=None, exclude=True, repr=False
    )
    dimensions: int | None = None
    dtype: DType = "float32"
    model_info: Mapping[str, Any] | None = None
    cache: Any = Field(default=None, repr=False)  # the repr of a client of redis 5.1 to 7 has its password
    coordination: Any = Field(default=None, repr=False)
    account: str | None = None
    query_prompt: str | None = None
    document_prompt: str | None = None
    task: Literal["classification", "clustering", "similarity", "code"] | None = None
    on_long_text: Literal["truncate", "error", "mean"] = "truncate"
    on_empty_text: Literal["error", "zero"] = "error"
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
    budget_name: str | None = None
    prices: Mapping[str, Any] | None = None
    progress: SkipJsonSchema[bool | Callable[[Progress], object] | None] = Field(default=None, exclude=True)
    in_batch: Literal["pay", "wait", "error"] = "pay"
    pickle_api_key: bool = False

    _embedder: Embedder = PrivateAttr()

    def __init__(self, model: KnownModel | str = NOT_GIVEN, **options: Unpack[LangChainOptions]) -> None:
        """Initialize from arguments in either spelling; see the class."""
        model, arguments = mask_key(model), self._hide(options)
        del options
        fields = self._translate(arguments if model is NOT_GIVEN else {"model": model, **arguments})
        if "model" not in fields and type(self).model_fields["model"].is_required():
            fields["model"] = default_model(type(self).__name__, "OpenAIEmbeddings")
        with errors_name(arguments, RULES):
            self._embedder = validate_with_core(self, fields, super().__init__)
        self._set_key_from_environment()

    def _set_key_from_environment(self) -> None:
        # Not in the set of explicit fields, so that a pickle leaves the key out.
        variable = self._embedder.provider.key_variable
        if self.api_key is None and variable is not None:
            self.__pydantic_fields_set__.discard("api_key")
            vars(self)["api_key"] = secret_from_env(variable, default=None)()

    @classmethod
    def _arguments(cls, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields under their names in the core."""
        return dict(fields)

    def embed_documents(self, texts: list[str], chunk_size: int | None = None, **options: Any) -> list[list[float]]:
        """Embed documents.

        Args:
            texts: The documents.
            chunk_size: The most texts in one request of this call.
            options: Settings for this call, such as `dimensions`, in the spelling of the constructor.

        Raises:
            ConfigurationError: An option cannot be set for one call; the message names the way to set it.
        """
        with errors_name(("chunk_size",), RULES):
            return self._for_call(options)._embed(texts, "document", chunk_size or None)

    def embed_query(self, text: str, **options: Any) -> list[float]:
        """Embed a query; `options` are those of `embed_documents`."""
        return self._for_call(options)._embed([text], "query")[0]

    async def aembed_documents(
        self, texts: list[str], chunk_size: int | None = None, **options: Any
    ) -> list[list[float]]:
        """Embed documents without blocking the caller's event loop; the arguments are those of `embed_documents`."""
        with errors_name(("chunk_size",), RULES):
            return await (await self._afor_call(options))._aembed(texts, "document", chunk_size or None)

    async def aembed_query(self, text: str, **options: Any) -> list[float]:
        """Embed a query without blocking the caller's event loop; `options` are those of `embed_documents`."""
        return (await (await self._afor_call(options))._aembed([text], "query"))[0]

    def _for_call(self, options: dict[str, Any]) -> Self:
        """Return this object, or a copy with the options of one call. It empties `options`, which may hold a secret."""
        if not options:
            return self
        hidden = hide_arguments(options, type(self).model_fields, CALL_RULES)
        options.clear()  # a local variable of the caller, too
        fields = take_arguments("embed_documents", hidden, type(self).model_fields, CALL_RULES)
        with errors_name(hidden, CALL_RULES):
            return for_call(self, fields) if fields else self

    async def _afor_call(self, options: dict[str, Any]) -> Self:
        """Return what `_for_call` returns. A copy is made on a thread, because its constructor may read files."""
        return await run_in_thread(lambda: self._for_call(options)) if options else self

    def _embed(self, texts: list[str], input_type: InputType, max_batch_texts: int | None = None) -> list[list[float]]:
        if not is_reported():
            return embed_lists(self._embedder, texts, input_type, max_batch_texts).rows
        with reported(self._report(input_type)) as report:
            result = embed_lists(self._embedder, texts, input_type, max_batch_texts)
            report.usage = result.usage
        return result.rows

    async def _aembed(
        self, texts: list[str], input_type: InputType, max_batch_texts: int | None = None
    ) -> list[list[float]]:
        if not is_reported():
            return (await aembed_lists(self._embedder, texts, input_type, max_batch_texts)).rows
        async with areported(self._report(input_type)) as report:
            result = await aembed_lists(self._embedder, texts, input_type, max_batch_texts)
            report.usage = result.usage
        return result.rows

    def _report(self, input_type: InputType) -> Report:
        return Report(type(self).__name__, self._embedder.model, input_type)

    def __getstate__(self) -> dict[Any, Any]:
        """Return the settings for pickle, with an explicit API key only if `pickle_api_key` is set."""
        self._embedder.__reduce__()  # raises before a client that cannot be pickled does
        state = super().__getstate__()
        return {**state, "__dict__": {**state["__dict__"], **fields_not_pickled(self)}}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        super().__setstate__(state)
        vars(self).update(rate_limiter=self._embedder.rate_limiter, progress=self._embedder.settings.progress)
        self._set_key_from_environment()
