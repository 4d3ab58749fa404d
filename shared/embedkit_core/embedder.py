"""The front door: one object for one model, sync and async."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Generator, Iterable, Sequence
from typing import TYPE_CHECKING, Self

from embedkit_core.cache.tiered import TieredCache
from embedkit_core.calls.call import Call
from embedkit_core.calls.estimate import Estimate, estimate
from embedkit_core.calls.explain import Explanation, explain
from embedkit_core.calls.import_vectors import ImportReport, import_vectors
from embedkit_core.calls.plan import as_list
from embedkit_core.calls.stream import Stream
from embedkit_core.calls.verify_cache import CacheVerification, verify_cache
from embedkit_core.common.fork_safety import import_module
from embedkit_core.common.results import EmbeddingResult
from embedkit_core.common.types import InputType, Vectors
from embedkit_core.common.validation import check_input_type, check_integer
from embedkit_core.config.base import BaseEmbedder
from embedkit_core.engine.runtime.process import off_loop, refuse_engine_thread
from embedkit_core.observability.progress import ProgressOption, check_progress

if TYPE_CHECKING:
    from embedkit_core.calls.async_stream import AsyncStream


class Embedder(BaseEmbedder):
    """Embeds texts with one model, through one cache and one engine that everything in the process shares.

    Args:
        model: "provider:model", such as "openai:text-embedding-3-small" or "local:/path/to/model"; the provider may be
            left out for a model in the catalogue, and with `base_url`.
        api_key: the provider's key, or a function that gives it before each request; by default from the provider's own
            environment variable.
        base_url: the address of a server that speaks the provider's API; by default the provider's own.
        headers: sent with each request beside the provider's own; not part of the key of the cache.
        proxy: the address of a proxy; by default that of the environment.
        ca_bundle: a file of certificates to trust, in place of the usual ones.
        dimensions: how many the vectors have; by default the model's number.
        dtype: of the vectors: "float32", "float16", "int8", "uint8", "binary" or "ubinary" (eight dimensions in a
            number, as np.packbits has them).
        model_info: what the catalogue does not know of the model, or knows otherwise; see `embedkit_core.models`.
        cache: a folder; None for the user's cache folder, False for none, the address of a cache that a package has
            registered (scheme://...), or an object with the cache's methods.
        query_prompt, document_prompt: put before each text; None leaves it to the model's own.
        on_long_text: what becomes of a text over the model's limit: "truncate", "error" or "mean".
        max_concurrency: requests in flight at once, over all callers on the same account.
        requests_per_minute, tokens_per_minute: what goes out in a minute at most, over all callers who use the same
            model on the same account; by default what the provider says, or lets through.
        max_batch_texts: texts in one request at most; by default what the model allows.
        max_retries: how often a text is sent again after a transient failure.
        timeout: seconds for one request; a local model has as long as it takes.
        deadline: seconds for one call, after which what is not there has failed; by default as long as it takes.
        on_error: "raise", or "return" a result whose `failed` names the texts whose rows are NaN.
        provider_options: further fields of the request, as the provider names them; part of the key.
        rate_limiter: an object with `acquire`, such as LangChain's and LlamaIndex's; asked once for each request.
        budget_usd, budget_tokens: what this object may spend: a text that may cost more than is left is not sent.
        prices: USD per million tokens of models, as in {"openai:my-model": 0.02}; what they name goes before the
            catalogue.
        progress: True for a bar, or a function that is given a `Progress` now and then, on the caller's side.
        pickle_api_key: whether an `api_key` given here goes into a pickle; one from the environment never does.

    Raises:
        ConfigurationError: before any I/O, naming the value and the way out.
    """

    def embed(
        self,
        texts: Iterable[str],
        *,
        input_type: InputType = "document",
        max_batch_texts: int | None = None,
        progress: ProgressOption = None,
    ) -> EmbeddingResult:
        """Embed texts, each distinct one once, and say what it took.

        `max_batch_texts` bounds the texts in one request of this call; `progress` is where this one reports.

        Raises:
            InputError: some texts cannot be embedded; nothing was sent.
            PartialFailureError: some failed for good; the others are in its `result` and in the cache.
            ProviderError: all failed.
        """
        call = self._call(texts, input_type, max_batch_texts, progress=progress)
        return call.run("embed", call.finish)

    async def aembed(
        self,
        texts: Iterable[str],
        *,
        input_type: InputType = "document",
        max_batch_texts: int | None = None,
        progress: ProgressOption = None,
    ) -> EmbeddingResult:
        """Embed texts, as `embed` does, without holding the caller's loop."""
        call = self._call(as_list(texts), input_type, max_batch_texts, progress=progress)
        return await call.arun(call.finish)

    def embed_iter(
        self, texts: Iterable[str], *, input_type: InputType = "document", progress: ProgressOption = None
    ) -> Generator[Vectors, None, None]:
        """Embed a stream, however long: one float32 (dimensions,) for each text, in order.

        It reads ahead by 2 x `max_concurrency` full requests, and nothing is sent any more once it is closed. What
        goes wrong is raised in its place, after all rows before it, with positions counted from the start.

        Raises:
            InputError: a text cannot be embedded; or, at once, `texts` is no stream of texts.
            PartialFailureError: a text failed for good; a ProviderError if it is the first.
        """
        refuse_engine_thread("embed_iter")
        check_input_type(input_type)
        return Stream(self, self._specs[input_type], texts, self._reporting(progress)).rows()

    def aembed_iter(
        self,
        texts: Iterable[str] | AsyncIterable[str],
        *,
        input_type: InputType = "document",
        progress: ProgressOption = None,
    ) -> AsyncGenerator[Vectors, None]:
        """Embed a stream, as `embed_iter` does, of a plain or an async iterable, without holding the caller's loop."""
        module = import_module("embedkit_core.calls.async_stream")
        check_input_type(input_type)
        stream: AsyncStream = module.AsyncStream(self, self._specs[input_type], texts, self._reporting(progress))
        return stream.rows()

    def embed_query(self, text: str) -> Vectors:
        """Embed a query: float32 (dimensions,)."""
        call = self._call([text], "query")
        row: Vectors = call.run("embed_query", call.finish_vectors)[0]
        return row

    def embed_documents(self, texts: Iterable[str]) -> Vectors:
        """Embed documents: float32 (n_texts, dimensions)."""
        return self.embed(texts).vectors

    async def aembed_query(self, text: str) -> Vectors:
        """Embed a query: float32 (dimensions,)."""
        call = self._call([text], "query")
        row: Vectors = (await call.arun(call.finish_vectors))[0]
        return row

    async def aembed_documents(self, texts: Iterable[str]) -> Vectors:
        """Embed documents: float32 (n_texts, dimensions)."""
        return (await self.aembed(texts)).vectors

    def import_vectors(
        self,
        texts: Iterable[str],
        vectors: Iterable[Sequence[float] | Vectors | None],
        *,
        input_type: InputType = "document",
        verify: int = 3,
    ) -> ImportReport:
        """Take vectors that this model gave elsewhere into the cache, so that they are not paid for again.

        `vectors` has one for each text, None where there is none. `verify` of them are compared with the model's own,
        which it is asked for, before any is taken, since a cache would keep a wrong one; 0 trusts them all.

        Raises:
            ConfigurationError: there is no cache, or the vectors are not this model's; nothing was imported.
            InputError: texts and vectors do not fit together.
        """
        refuse_engine_thread("import_vectors")
        check_input_type(input_type)
        check_integer("verify", verify, 0)
        return import_vectors(self, self._specs[input_type], texts, vectors, verify=verify, embed=self.embed)

    def verify_cache(
        self, texts: Iterable[str], *, input_type: InputType = "document", sample: int = 20
    ) -> CacheVerification:
        """Embed some of these texts that are cached once more, and compare: a model may change under its name.

        The cache holds no texts, so that they have to be given again. At most `sample` of them are paid for once more.

        Raises:
            ConfigurationError: there is no cache.
            ProviderError: they could not be embedded.
        """
        refuse_engine_thread("verify_cache")
        check_input_type(input_type)
        check_integer("sample", sample, 1)
        uncached = self.without_cache()
        uncached.meter = self.meter  # the cost is this object's
        return verify_cache(self, self._specs[input_type], texts, sample=sample, embed_again=uncached.embed)

    def without_cache(self) -> Self:
        """Give a copy that neither asks the cache nor keeps anything."""
        other = self.__copy__()
        other.tiered_cache = TieredCache(None)
        return other

    def estimate(
        self, texts: Iterable[str], *, input_type: InputType = "document", calibrated: bool = True
    ) -> Estimate:
        """Say what embedding these texts would take: hits, tokens, dollars, requests, seconds; send nothing.

        Tokens are corrected by what this process was billed for others; with `calibrated=False` they are not, and thus
        the same in every process.

        Raises:
            InputError: some texts cannot be embedded.
        """
        check_input_type(input_type)
        return estimate(self, self._specs[input_type], texts, calibrated=calibrated)

    async def aestimate(
        self, texts: Iterable[str], *, input_type: InputType = "document", calibrated: bool = True
    ) -> Estimate:
        """Say what embedding these texts would take, as `estimate` does, without holding the caller's loop."""
        check_input_type(input_type)
        given = as_list(texts)
        return await off_loop(lambda: estimate(self, self._specs[input_type], given, calibrated=calibrated))

    def explain(self, text: str, *, input_type: InputType = "document") -> Explanation:
        """Say what would be sent for a text, what its key covers and where its vector would come from; send nothing."""
        check_input_type(input_type)
        return explain(self.provider, self.price, self.tiered_cache, self._specs[input_type], text)

    def _reporting(self, progress: ProgressOption) -> ProgressOption:
        """Say where a call reports: to what it was given, else where the object says."""
        if progress is None:
            return self.settings.progress
        check_progress(progress)
        return progress

    def _call(
        self,
        texts: Iterable[str],
        input_type: InputType,
        max_batch_texts: int | None = None,
        *,
        lists: bool = False,
        progress: ProgressOption = None,
    ) -> Call:
        check_input_type(input_type)
        if max_batch_texts is not None:
            check_integer("max_batch_texts", max_batch_texts, 1)
        role = self._specs[input_type].with_max_texts(max_batch_texts)
        return Call(self, role, texts, lists=lists, progress=self._reporting(progress))
