"""The public class: one model, with sync and async methods."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Generator, Iterable, Sequence
from typing import TYPE_CHECKING, Self, Unpack

from embedkit_core.cache.embedder_cache import EmbedderCache
from embedkit_core.calls.call import Call
from embedkit_core.calls.estimate import Estimate, count_tokens, estimate
from embedkit_core.calls.explain import Explanation, explain
from embedkit_core.calls.import_vectors import ImportReport, import_vectors
from embedkit_core.calls.plan import as_list
from embedkit_core.calls.query_hit import find_query
from embedkit_core.calls.verify_cache import CacheVerification, verify_cache
from embedkit_core.common.errors import JobError
from embedkit_core.common.fork_safety import import_module
from embedkit_core.common.results import EmbeddingResult
from embedkit_core.common.threads import BULK, JOBS, off_loop
from embedkit_core.common.types import InputType, Vectors
from embedkit_core.common.validation import check_input_type, check_integer
from embedkit_core.config.base import BaseEmbedder
from embedkit_core.config.roles import Leftovers, SubmitOptions
from embedkit_core.costs.tracker import active_trackers
from embedkit_core.engine.runtime.process import refuse_engine_thread
from embedkit_core.observability.progress import ProgressOption, check_progress

if TYPE_CHECKING:
    from embedkit_core.batches.job import BatchJob, JobStore
    from embedkit_core.calls.async_stream import AsyncStream
    from embedkit_core.calls.stream import Stream


class Embedder(BaseEmbedder):
    """An embedder for one model, with a cache and an engine that all callers in the process share.

    Every method is thread-safe. Methods with an `a` prefix work in any event loop and do not block it. HTTP
    connections are opened on first use; `close()`, or a `with` block, closes them.

    Args:
        model: "provider:model", such as "openai:text-embedding-3-small" or "local:/path/to/model". The provider may be
            omitted for a model in the catalogue, and with `base_url`.
        api_key: The provider's API key, or a function that returns it and is called before each request. By default the
            provider's environment variable.
        base_url: The address of a server with the provider's API. By default the provider's own.
        headers: Additional HTTP headers. Not part of the cache key.
        proxy: The URL of a proxy. By default the one in the environment.
        ca_bundle: A file of CA certificates, instead of the default ones.
        client_cert: The client's certificate for a server that asks for one (mutual TLS): a PEM file with certificate
            and key, or (certificate, key), or (certificate, key, password).
        dimensions: The dimensions of the vectors. By default the model's.
        dtype: The data type of the vectors: "float32", "float16", "int8", "uint8", "binary" or "ubinary". The binary
            ones hold eight dimensions per byte, like np.packbits.
        model_info: Facts about the model that override the catalogue or are missing there; see `embedkit_core.models`.
        cache: A folder; None for the cache that RAG_EMBEDKIT_CACHE names, else the user's cache folder; False for no
            cache; the address of a registered cache ("scheme://..."); or an object with the methods of `Cache`.
        coordination: None for coordination with all processes that use the same cache folder, if there is one: a text
            that another process is sending is not sent again, and limits per minute apply to all processes together.
            False for none; or an object with the methods of `Coordinator`.
        account: A name for the provider's account: limits per minute apply to all API keys with this name together. By
            default they apply to each key, or, if `api_key` is a function, to the provider and endpoint.
        query_prompt: A prefix for each query, "" for none. By default the model's own.
        document_prompt: A prefix for each document, "" for none. By default the model's own.
        on_long_text: What happens to a text over the model's limit: "truncate"; "error"; or "mean", the mean of the
            vectors of its pieces.
        on_empty_text: What happens to a text that is empty or whitespace only: "error"; or "zero", a vector of zeros
            that is neither sent nor cached and is listed in `result.empty`. Not part of the cache key.
        max_concurrency: The most requests in flight, over all callers on the same account.
        requests_per_minute: The most requests per minute, over all callers of the model on the same account. By default
            the provider's limit, from its headers or inferred from HTTP 429.
        tokens_per_minute: The most tokens per minute, like `requests_per_minute`.
        max_batch_texts: The most texts in one request. By default the model's limit.
        max_retries: How often a text is sent again after transient failures.
        timeout: Seconds for one request, None for no limit. Not applied to local models.
        deadline: Seconds for one call, or for one chunk of a stream, None for no limit. Texts without a vector have
            failed then; replies that arrive later still go to the cache.
        on_error: "raise", or "return" a result whose `failed` lists the failed texts; their rows are NaN.
        provider_options: Additional fields of the request body. Part of the cache key.
        rate_limiter: An object with a blocking `acquire()`, such as LangChain's and LlamaIndex's rate limiters. It is
            called once per request.
        budget_usd: The most USD that this object and its copies may spend in this process. A text that could exceed it
            is not sent.
        budget_tokens: The most tokens that may be billed, like `budget_usd`.
        budget_name: The name of a budget that all processes with the same coordinator share. They must pass the same
            `budget_usd` and `budget_tokens`.
        prices: USD per million tokens, such as {"openai:my-model": 0.02}. They override the catalogue.
        progress: True for a bar, or a function that receives a `Progress`, on the caller's thread or event loop.
        in_batch: What a call does with documents that are in an open batch job (see `submit`): "pay" for a normal
            request, "wait" for the job and collect it, or "error". Queries are always sent.
        pickle_api_key: Whether an `api_key` that was passed is pickled. A key from the environment never is.

    Raises:
        ConfigurationError: An argument is invalid. It is raised before any I/O, and the message names the fix.

    Example:
        ```python
        embedder = Embedder("openai:text-embedding-3-small", dimensions=256)
        result = embedder.embed(["Cats purr.", "Dogs bark."])
        result.vectors.shape  # (2, 256)
        embedder.embed_query("Which animal purrs?").shape  # (256,)
        ```
    """

    def embed(
        self,
        texts: Iterable[str],
        *,
        input_type: InputType = "document",
        max_batch_texts: int | None = None,
        progress: ProgressOption = None,
    ) -> EmbeddingResult:
        """Embed texts. Each distinct text is sent at most once, and only if the cache does not hold its vector.

        Args:
            texts: The texts, in any order and with duplicates. An empty iterable is allowed; for an empty text see
                `on_empty_text`.
            input_type: "document", or "query" for search queries. Asymmetric models embed them differently.
            max_batch_texts: The most texts in one request of this call.
            progress: Where this call reports its progress. Defaults to the embedder's `progress`.

        Returns:
            The result. `result.vectors` has shape (n_texts, dimensions) in the order of `texts`, and dtype float32 or
            the one of `dtype=`. The binary dtypes have shape (n_texts, dimensions / 8).

        Raises:
            InputError: Some texts cannot be embedded: not a string, not valid Unicode, or empty. Or all texts are
                empty, and the width of their zero vectors is unknown. Nothing was sent.
            PartialFailureError: Some texts failed. The vectors of the others are in its `result` and in the cache.
            ProviderError: All texts failed.
            BudgetError: Some texts could exceed a budget and were not sent. The others are in its `result`.

        Example:
            ```python
            result = embedder.embed(["Cats purr.", "Dogs bark.", "Cats purr.", "Cats purr."])
            result.vectors.shape  # (4, 1536)
            print(result.usage)  # 4 texts, 2 duplicates, 2 sent, 1 request, ...
            ```
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
        """Embed texts without blocking the event loop. The arguments, result and errors are those of `embed`.

        Example:
            ```python
            result = await embedder.aembed(["Cats purr.", "Dogs bark."])
            ```
        """
        call = self._call(as_list(texts), input_type, max_batch_texts, progress=progress)
        return await call.arun(call.finish)

    def embed_iter(
        self, texts: Iterable[str], *, input_type: InputType = "document", progress: ProgressOption = None
    ) -> Generator[Vectors, None, None]:
        """Embed a stream of any length in bounded memory.

        It reads ahead by `2 * max_concurrency` full requests. When the generator is closed, texts that were not sent
        yet are withdrawn. An error of a text is raised after the rows of all texts before it, with positions counted
        from the start of the stream.

        Args:
            texts: An iterable of texts, also an endless one.
            input_type: "document" or "query".
            progress: Where the stream reports its progress. Defaults to the embedder's `progress`.

        Returns:
            A generator of one vector per text, in order, with shape (dimensions,) and the dtype of `embed`.

        Raises:
            InputError: A text cannot be embedded. If `texts` is not an iterable of texts, it is raised at once.
            PartialFailureError: A text failed. If it is the first text, the ProviderError itself is raised.
            BudgetError: A text could exceed a budget and was not sent.

        Example:
            ```python
            with open("lines.txt") as file:
                for row in embedder.embed_iter(line.strip() for line in file):
                    index.add(row)
            ```
        """
        refuse_engine_thread("embed_iter")
        check_input_type(input_type)
        module = import_module("embedkit_core.calls.stream")
        stream: Stream = module.Stream(self, self._specs[input_type], texts, self._progress_option(progress))
        return stream.rows()

    def aembed_iter(
        self,
        texts: Iterable[str] | AsyncIterable[str],
        *,
        input_type: InputType = "document",
        progress: ProgressOption = None,
    ) -> AsyncGenerator[Vectors, None]:
        """Embed a stream without blocking the event loop.

        Args:
            texts: An iterable or async iterable of texts, also an endless one.
            input_type: "document" or "query".
            progress: Where the stream reports its progress. Defaults to the embedder's `progress`.

        Returns:
            An async generator of one vector per text, like that of `embed_iter`.

        Raises:
            InputError, PartialFailureError, ProviderError, BudgetError: As in `embed_iter`.

        Example:
            ```python
            async for row in embedder.aembed_iter(texts):
                await store.add(row)
            ```
        """
        module = import_module("embedkit_core.calls.async_stream")
        check_input_type(input_type)
        stream: AsyncStream = module.AsyncStream(self, self._specs[input_type], texts, self._progress_option(progress))
        return stream.rows()

    def embed_query(self, text: str) -> Vectors:
        """Embed one search query.

        Returns:
            The vector, with shape (dimensions,) and dtype float32 or the one of `dtype=`.

        Raises:
            InputError: The text cannot be embedded.
            ProviderError: The text failed.
            BudgetError: The text could exceed a budget and was not sent.

        Example:
            ```python
            scores = document_vectors @ embedder.embed_query("Which animal purrs?")
            ```
        """
        hit = find_query(self, self._specs["query"], text, may_block=True)
        if hit is not None:
            return hit.vector.copy()
        call = self._call([text], "query")
        row: Vectors = call.run("embed_query", call.finish_vectors)[0]
        return row

    def embed_documents(self, texts: Iterable[str]) -> Vectors:
        """Embed documents.

        Returns:
            The vectors, with shape (n_texts, dimensions) and dtype float32 or the one of `dtype=`. `embed` also returns
            the usage.

        Raises:
            InputError, PartialFailureError, ProviderError, BudgetError: As in `embed`.
        """
        return self.embed(texts).vectors

    async def aembed_query(self, text: str) -> Vectors:
        """Embed one search query without blocking the event loop. The result and errors are those of `embed_query`."""
        hit = find_query(self, self._specs["query"], text, may_block=False)
        if hit is not None:
            return hit.vector.copy()
        call = self._call([text], "query")
        row: Vectors = (await call.arun(call.finish_vectors))[0]
        return row

    async def aembed_documents(self, texts: Iterable[str]) -> Vectors:
        """Embed documents without blocking the event loop. The result and errors are those of `embed_documents`."""
        return (await self.aembed(texts)).vectors

    def submit(
        self,
        texts: Iterable[str],
        *,
        input_type: InputType = "document",
        keep_texts: bool = True,
        leftovers: Leftovers = "batch",
        endpoint: str | None = None,
    ) -> BatchJob:
        """Submit texts to the provider's batch endpoint, which embeds them within hours at a lower price.

        Only texts that the cache lacks and that are in no other open job are sent. `job.wait()` or `job.collect()`
        writes the vectors to the cache, in this process or in another one; then normal calls find them there.

        Args:
            texts: The texts, also more than fit in memory.
            input_type: "document" or "query".
            keep_texts: Whether the texts stay in the cache folder, readable by this user only, until they are
                collected. If False, they are deleted once the provider has them, and what fails is not sent again.
            leftovers: What happens to texts that the provider did not embed, for example because the job expired:
                "batch" for another batch, "request" for normal requests, or "leave".
            endpoint: The name of a batch endpoint without a published lower price, such as "embed-jobs" of Cohere.

        Returns:
            The job. Its `id` finds it again in any process: `embedder.job(id)`.

        Raises:
            ConfigurationError: The provider has no batch endpoint, or there is no cache folder.
            InputError: Some texts cannot be embedded. Nothing was sent.
            BudgetError: The job could exceed a budget, or a budget in USD cannot know its price. Nothing was sent.
            ProviderError: The provider refused the first batch. The job was removed.
            JobError: The journal of jobs cannot be used.

        Example:
            ```python
            print(embedder.estimate(texts))  # with both prices
            job = embedder.submit(texts)
            job.wait()
            vectors = embedder.embed_documents(texts)  # all from the cache
            ```
        """
        refuse_engine_thread("submit")
        return self._job_store().submit(
            texts,
            active_trackers(),
            input_type=input_type,
            keep_texts=keep_texts,
            leftovers=leftovers,
            endpoint=endpoint,
        )

    async def asubmit(self, texts: Iterable[str], **options: Unpack[SubmitOptions]) -> BatchJob:
        """Submit texts without blocking the event loop. The arguments, result and errors are those of `submit`."""
        store, trackers = self._job_store(), active_trackers()
        return await off_loop(lambda: store.submit(texts, trackers, **options), JOBS)

    def jobs(self) -> list[BatchJob]:
        """Return the batch jobs in the cache folder that this embedder can collect, the oldest first.

        Raises:
            JobError: The journal of jobs cannot be used.
        """
        return self._job_store().jobs()

    async def ajobs(self) -> list[BatchJob]:
        """Return the batch jobs without blocking the event loop. The result and errors are those of `jobs`."""
        return await off_loop(self._job_store().jobs, JOBS)

    def job(self, job_id: str) -> BatchJob:
        """Return the batch job with an ID.

        Raises:
            JobError: There is none, or it was submitted with other settings.
        """
        return self._job_store().job(job_id)

    async def ajob(self, job_id: str) -> BatchJob:
        """Return the batch job with an ID without blocking the event loop. The errors are those of `job`."""
        store = self._job_store()
        return await off_loop(lambda: store.job(job_id), JOBS)

    def import_vectors(
        self,
        texts: Iterable[str],
        vectors: Iterable[Sequence[float] | Vectors | None],
        *,
        input_type: InputType = "document",
        verify: int = 3,
    ) -> ImportReport:
        """Write existing vectors of this model to the cache, so that their texts are not paid for again.

        Args:
            texts: The texts of the vectors.
            vectors: One float vector per text, None for a text without one.
            input_type: The input type with which the vectors were made.
            verify: How many texts to embed again for comparison before anything is imported. They are billed. 0 for
                none.

        Returns:
            The numbers of imported and missing vectors, and the positions of those that were left out because their
            text may be truncated.

        Raises:
            ConfigurationError: There is no cache, `dtype` is not "float32", or the vectors are not this model's.
                Nothing was imported.
            InputError: There is not exactly one vector or None per text, or one of them is invalid. Nothing was
                imported.
            CacheError: The cache could not be written.

        Example:
            ```python
            report = embedder.import_vectors(old_texts, old_vectors)
            print(report.imported, report.missing, report.doubtful)
            ```
        """
        refuse_engine_thread("import_vectors")
        check_input_type(input_type)
        check_integer("verify", verify, 0)
        return import_vectors(self, self._specs[input_type], texts, vectors, verify=verify, embed=self.embed)

    def verify_cache(
        self, texts: Iterable[str], *, input_type: InputType = "document", sample: int = 20
    ) -> CacheVerification:
        """Embed a sample of cached texts again and compare the vectors: a model may change under its name.

        Args:
            texts: The texts to look up; the cache holds keys, no texts.
            input_type: "document" or "query".
            sample: The most texts to embed again. They are billed.

        Returns:
            The cosine of the old and the new vector of each text in the sample, and which of them have changed.

        Raises:
            ConfigurationError: There is no cache.
            ProviderError: A text could not be embedded.

        Example:
            ```python
            if embedder.verify_cache(texts).changed:
                embedder = Embedder(model, cache="new_folder")
            ```
        """
        refuse_engine_thread("verify_cache")
        check_input_type(input_type)
        check_integer("sample", sample, 1)
        uncached = self.without_cache()
        uncached.meter = self.meter  # count the cost here
        return verify_cache(self, self._specs[input_type], texts, sample=sample, embed_again=uncached.embed)

    def without_cache(self) -> Self:
        """Return a copy that neither reads nor writes the cache. It shares everything else but the usage."""
        copied = self.__copy__()
        copied.vector_cache = EmbedderCache(None)
        return copied

    def estimate(
        self, texts: Iterable[str], *, input_type: InputType = "document", calibrated: bool = True
    ) -> Estimate:
        """Estimate what embedding these texts would cost, without sending anything.

        Args:
            texts: The texts, also more than fit in memory.
            input_type: "document" or "query".
            calibrated: Whether token estimates are corrected by this process's earlier bills. If False, the estimate is
                the same in every process.

        Returns:
            The numbers of cache hits, tokens and requests, the cost in USD and the duration in seconds.

        Raises:
            InputError: Some texts cannot be embedded.

        Example:
            ```python
            print(embedder.estimate(texts))
            # 1,000 texts, 200 from cache, 800 to send in 4 requests, about 96,000 tokens, about $0.00192, ...
            ```
        """
        check_input_type(input_type)
        return estimate(self, self._specs[input_type], texts, calibrated=calibrated)

    async def aestimate(
        self, texts: Iterable[str], *, input_type: InputType = "document", calibrated: bool = True
    ) -> Estimate:
        """Estimate the cost without blocking the event loop. Arguments, result and errors are those of `estimate`."""
        check_input_type(input_type)
        listed = as_list(texts)
        return await off_loop(lambda: estimate(self, self._specs[input_type], listed, calibrated=calibrated), BULK)

    def count_tokens(self, texts: str | Iterable[str], *, input_type: InputType = "document") -> int:
        """Count the tokens of one text, or of all texts together, with the prompt of the input type.

        The count is exact for OpenAI's models, if tiktoken is installed and has its vocabulary on this machine. Else it
        is the estimate of `estimate`: from the UTF-8 bytes, corrected by earlier bills of this process. Nothing is sent
        or downloaded. An empty text has no tokens.

        Raises:
            InputError: Some texts are not strings, or not valid Unicode.

        Example:
            ```python
            if embedder.max_input_tokens and embedder.count_tokens(text) > embedder.max_input_tokens:
                text = summarize(text)
            ```
        """
        check_input_type(input_type)
        return count_tokens(self, self._specs[input_type], texts)

    async def acount_tokens(self, texts: str | Iterable[str], *, input_type: InputType = "document") -> int:
        """Count tokens as `count_tokens` does, without blocking the event loop: it may load a tokenizer."""
        check_input_type(input_type)
        listed = texts if isinstance(texts, str) else as_list(texts)
        return await off_loop(lambda: count_tokens(self, self._specs[input_type], listed), BULK)

    def explain(self, text: str, *, input_type: InputType = "document") -> Explanation:
        """Explain one text without sending it: its request body, its cache key and where its vector would come from.

        Raises:
            InputError: The text cannot be embedded.

        Example:
            ```python
            embedder.explain("Cats purr.").served_from  # "memory", "cache" or "provider"
            ```
        """
        check_input_type(input_type)
        return explain(self.provider, self.price, self.vector_cache, self._specs[input_type], text)

    def collect_job(self, job_id: str) -> bool:
        """Collect a batch job, for a call that waits for its texts. Return True if nothing of it is open."""
        job = self.job(job_id)
        try:
            job.collect()
        except JobError as error:
            if not error.is_busy:
                raise
        return job.is_finished

    def _job_store(self) -> JobStore:
        """Return the batch jobs of the cache folder."""
        service = import_module("embedkit_core.batches.service").JobService(self, self._specs, self.embed)
        store: JobStore = import_module("embedkit_core.batches.job").JobStore(service)
        return store

    def _progress_option(self, progress: ProgressOption) -> ProgressOption:
        """Return where a call reports: its own option, else the object's."""
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
        spec = self._specs[input_type].with_max_texts(max_batch_texts)
        return Call(self, spec, texts, lists=lists, progress=self._progress_option(progress))
