"""The front door: one object for one model, sync and async."""

from __future__ import annotations

import functools
import hashlib
import inspect
import weakref
from collections.abc import AsyncGenerator, AsyncIterable, Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, Never, Self, get_args

from embedkit_core import config
from embedkit_core.call import Call, off_loop
from embedkit_core.engine.current import engine, refuse_engine_thread
from embedkit_core.engine.gate import Gate
from embedkit_core.engine.own import Rates
from embedkit_core.forks import importing
from embedkit_core.form import DType
from embedkit_core.importing import Imported, import_vectors
from embedkit_core.meter import Meter
from embedkit_core.outcome import explained, warn_of_cuts
from embedkit_core.plan import check_list
from embedkit_core.roles import CallSettings, OnError, Role, make_role
from embedkit_core.secrets import Secret
from embedkit_core.sources import plan
from embedkit_core.store import Store, open_store
from embedkit_core.stream import Stream
from embedkit_core.travel import described, kept, packed, packed_key, traveller, unpacked
from embedkit_core.types import Cache, EmbeddingResult, Explanation, InputType, LongText, RateLimiter, Usage, Vectors
from embedkit_core.verifying import Verified, verify_cache

if TYPE_CHECKING:
    from embedkit_core.engine.account import Account


class Embedder:
    """Embeds texts with one model, through one cache and one engine that everything in the process shares.

    Args:
        model: "provider:model", such as "openai:text-embedding-3-small" or "local:/path/to/model"; the provider may be
            left out for a model in the catalogue, and with `base_url`.
        api_key: the provider's key; by default from the provider's own environment variable.
        base_url: the address of an OpenAI-compatible server; by default the provider's own.
        dimensions: how many the vectors have; by default the model's number.
        dtype: of the vectors: "float32", "float16", "int8", "uint8", "binary" or "ubinary" (eight dimensions in a
            number, as np.packbits has them).
        fetch_dimensions: how many are asked for and kept in the cache, where more are wanted later than are used now.
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
        pickle_api_key: whether an `api_key` given here goes into a pickle; one from the environment never does.

    Raises:
        ConfigurationError: before any I/O, naming the value and the way out.
    """

    def __init__(
        self,
        model: str = "",
        *,
        api_key: str | Secret | None = None,
        base_url: str | None = None,
        dimensions: int | None = None,
        dtype: DType = "float32",
        fetch_dimensions: int | None = None,
        model_info: Mapping[str, Any] | None = None,
        cache: Literal[False] | str | PathLike[str] | Cache | None = None,
        query_prompt: str | None = None,
        document_prompt: str | None = None,
        on_long_text: LongText = "truncate",
        max_concurrency: int = 16,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        max_batch_texts: int | None = None,
        max_retries: int = 6,
        timeout: float | None = 60.0,
        deadline: float | None = None,
        on_error: OnError = "raise",
        provider_options: Mapping[str, Any] | None = None,
        rate_limiter: RateLimiter | None = None,
        pickle_api_key: bool = False,
        **unknown: Never,
    ) -> None:
        config.refuse_unknown("Embedder", unknown, parameter_names())
        arguments = {name: value for name, value in locals().items() if name in parameter_names()}
        config.check_numbers(arguments)
        self._arguments = kept(arguments)
        self._key = traveller(api_key, pickle_api_key)
        self.rate_limiter = rate_limiter
        config.one_of("on_error", on_error, get_args(OnError))
        config.check_limiter(rate_limiter)
        rates = Rates(requests_per_minute, tokens_per_minute)
        self.settings = CallSettings(max_concurrency, rates, max_retries, deadline, on_error)
        choice = config.choose(arguments)
        wanted = plan(choice, dimensions=dimensions, fetch=fetch_dimensions, dtype=dtype, long_text=on_long_text)
        self.provider = wanted.provider
        self._info = choice.info
        self.model = f"{self.provider.name}:{self.provider.model}"
        self.meter = Meter()
        self.store: Store = open_store(cache)
        self._form = wanted.form
        self._joined: dict[Account, weakref.finalize[Any, Any]] = {}
        self._warned = False
        gate = Gate(rate_limiter) if rate_limiter is not None else None
        self._roles: dict[str, Role] = {
            kind: make_role(
                *(wanted.provider, wanted.asked, kind),
                form=wanted.form,
                sources=wanted.sources(kind, on_long_text),
                long_text=on_long_text,
                max_texts=max_batch_texts,
                timeout=timeout,
                gate=gate,
            )
            for kind in get_args(InputType)
        }

    # Doors

    def embed(
        self, texts: Iterable[str], *, input_type: InputType = "document", max_batch_texts: int | None = None
    ) -> EmbeddingResult:
        """Embed texts, each distinct one once, and say what it took.

        `max_batch_texts` bounds the texts in one request of this call.

        Raises:
            InputError: some texts cannot be embedded; nothing was sent.
            PartialFailureError: some failed for good; the others are in its `result` and in the cache.
            ProviderError: all failed.
        """
        call = self._call(texts, input_type, max_batch_texts)
        call.serve("embed")
        return call.finish()

    async def aembed(
        self, texts: Iterable[str], *, input_type: InputType = "document", max_batch_texts: int | None = None
    ) -> EmbeddingResult:
        """Embed texts, as `embed` does, without holding the caller's loop."""
        call = self._call(check_list(texts), input_type, max_batch_texts)
        await call.aserve()
        return await call.off_loop(call.finish)

    def embed_iter(self, texts: Iterable[str], *, input_type: InputType = "document") -> Generator[Vectors, None, None]:
        """Embed a stream, however long: one float32 (dimensions,) for each text, in order.

        It reads ahead by 2 x `max_concurrency` full requests, and nothing is sent any more once it is closed. What
        goes wrong is raised in its place, after all rows before it, with positions counted from the start.

        Raises:
            InputError: a text cannot be embedded; or, at once, `texts` is no stream of texts.
            PartialFailureError: a text failed for good; a ProviderError if it is the first.
        """
        refuse_engine_thread("embed_iter")
        config.check_input_type(input_type)
        return Stream(self, self._roles[input_type], texts).rows()

    def aembed_iter(
        self, texts: Iterable[str] | AsyncIterable[str], *, input_type: InputType = "document"
    ) -> AsyncGenerator[Vectors, None]:
        """Embed a stream, as `embed_iter` does, of a plain or an async iterable, without holding the caller's loop."""
        with importing.lock:
            from embedkit_core.astream import AsyncStream
        config.check_input_type(input_type)
        return AsyncStream(self, self._roles[input_type], texts).rows()

    def embed_query(self, text: str) -> Vectors:
        """Embed a query: float32 (dimensions,)."""
        call = self._call([text], "query")
        call.serve("embed_query")
        row: Vectors = call.finish_vectors()[0]
        return row

    def embed_documents(self, texts: Iterable[str]) -> Vectors:
        """Embed documents: float32 (n_texts, dimensions)."""
        return self.embed(texts).vectors

    async def aembed_query(self, text: str) -> Vectors:
        """Embed a query: float32 (dimensions,)."""
        call = self._call([text], "query")
        await call.aserve()
        row: Vectors = (await call.off_loop(call.finish_vectors))[0]
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
    ) -> Imported:
        """Take vectors that this model gave elsewhere into the cache, so that they are not paid for again.

        `vectors` has one for each text, None where there is none. `verify` of them are compared with the model's own,
        which it is asked for, before any is taken, since a cache would keep a wrong one; 0 trusts them all.

        Raises:
            ConfigurationError: there is no cache, or the vectors are not this model's; nothing was imported.
            InputError: texts and vectors do not fit together.
        """
        refuse_engine_thread("import_vectors")
        config.check_input_type(input_type)
        config.whole_number("verify", verify, 0)
        return import_vectors(self, self._roles[input_type], texts, vectors, verify=verify)

    def verify_cache(self, texts: Iterable[str], *, input_type: InputType = "document", sample: int = 20) -> Verified:
        """Embed some of these texts that are cached once more, and compare: a model may change under its name.

        The cache holds no texts, so that they have to be given again. At most `sample` of them are paid for once more.

        Raises:
            ConfigurationError: there is no cache.
            ProviderError: they could not be embedded.
        """
        refuse_engine_thread("verify_cache")
        config.check_input_type(input_type)
        config.whole_number("sample", sample, 1)
        return verify_cache(self, self._roles[input_type], texts, sample=sample)

    def without_cache(self) -> Self:
        """Give a copy that neither asks the cache nor keeps anything."""
        other = self.__copy__()
        other.store = Store(None)
        return other

    def explain(self, text: str, *, input_type: InputType = "document") -> Explanation:
        """Say what would be sent for a text, what its key covers and where its vector would come from; send nothing."""
        config.check_input_type(input_type)
        return explained(self.provider, self.store, self._roles[input_type], text)

    # Facts

    @property
    def usage(self) -> Usage:
        """What this object has asked and paid for so far."""
        return self.meter.read()

    @property
    def dimensions(self) -> int | None:
        """How many the vectors have; None until the first reply of a model that is not in the catalogue."""
        return self._form.dimensions

    @property
    def space(self) -> str:
        """The name of the vector space: vectors of different spaces must not be compared or share an index."""
        wire = self._roles["document"].lane.wire
        shared = self._info.space if self._info else None
        identity = shared or str(wire.get("model", self.provider.model))[:64]
        where = f"@{self.provider.endpoint}" if self.provider.endpoint else ""
        return f"{self.provider.key_name}:{identity}{where}/{self.dimensions or 'unknown'}/{self._form.dtype}"

    def identity(self) -> dict[str, Any]:
        """Give the arguments that change vectors, each in one spelling, and the fingerprint of all that does."""
        return {**described(self._arguments, self.provider), "fingerprint": self.fingerprint}

    @property
    def fingerprint(self) -> str:
        """A digest of all that changes a vector but the text: model, dimensions, prompts, options, host, long texts."""
        return hashlib.sha256(b"".join(role.prefix for role in self._roles.values())).hexdigest()[:32]

    def learn_dimensions(self, dimensions: int) -> None:
        """Learn how many the vectors of a model have that is not in the catalogue."""
        self._form = replace(self._form, dimensions=dimensions)

    def warn_of_cuts(self, truncated: Sequence[int], n_texts: int) -> None:
        """Say once that texts were cut. On the caller's side."""
        if not self._warned:
            self._warned = True
            warn_of_cuts(self.model, truncated, n_texts)

    # Life

    def join(self, account: Account) -> None:
        """Note that this object uses an account, so that its client is kept open."""
        if account not in self._joined:
            self._joined[account] = leaving = weakref.finalize(self, engine().leave, account)
            leaving.atexit = False
            engine().join(account)

    def close(self) -> None:
        """Let go of the client and the cache; another call opens them again."""
        while self._joined:
            account, leaving = self._joined.popitem()
            if leaving.detach() is not None:
                engine().close_account(account)
        self.store.close()

    async def aclose(self) -> None:
        """Close without holding the caller's loop."""
        await off_loop(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"Embedder({self.model!r}, dimensions={self.dimensions})"

    def __copy__(self) -> Self:
        """Copy within the process: the same settings, key and cache, and a count of its own."""
        other = object.__new__(type(self))
        other.__dict__ |= self.__dict__ | {"meter": Meter(), "_joined": {}}
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.__copy__()

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the settings; a key only if it was given with `pickle_api_key`, and never one of the environment."""
        return unpacked, (type(self), packed(self._arguments, self.provider), packed_key(self._key))

    # Inside

    def _call(
        self, texts: Iterable[str], input_type: InputType, max_batch_texts: int | None = None, *, lists: bool = False
    ) -> Call:
        config.check_input_type(input_type)
        if max_batch_texts is not None:
            config.whole_number("max_batch_texts", max_batch_texts, 1)
        return Call(self, self._roles[input_type].at_most(max_batch_texts), texts, lists=lists)


@functools.cache
def parameter_names() -> tuple[str, ...]:
    """Give the names of the arguments an embedder takes."""
    kinds = inspect.signature(Embedder.__init__).parameters
    return tuple(name for name, p in kinds.items() if name != "self" and p.kind is not p.VAR_KEYWORD)
