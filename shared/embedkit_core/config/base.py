"""Settings, state and lifecycle of an embedder, without the methods that embed."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Never, Self, get_args

from embedkit_core.cache.embedder_cache import CacheArgument, EmbedderCache, check_cache, open_embedder_cache
from embedkit_core.cache.urls import mask_secrets
from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.fork_safety import import_module
from embedkit_core.common.formatting import count_noun, format_positions, without_folders
from embedkit_core.common.threads import BULK, JOBS, WakeFlag, WorkerPool, off_loop
from embedkit_core.common.types import NO_LIMITS, EmptyText, InputType, LongText, RateLimiter, RateSettings, Task
from embedkit_core.common.usage import Usage
from embedkit_core.common.validation import (
    check_choice,
    check_limiter,
    check_no_positional,
    check_numbers,
    check_unknown,
)
from embedkit_core.common.vectors import DType, VectorSpace
from embedkit_core.config.cached_variants import ResolvedModel, resolve_model
from embedkit_core.config.coordination import (
    CoordinationArgument,
    check_budget_is_shared,
    make_account,
    make_coordination,
)
from embedkit_core.config.pickling import (
    PickledSecrets,
    check_limiter_can_be_sent,
    from_pickle,
    identity_arguments,
    job_arguments,
    snapshot_arguments,
    to_pickle,
)
from embedkit_core.config.resolve import resolve_provider
from embedkit_core.config.roles import CallSettings, InBatch, InputTypeSpec, OnError, make_input_type_spec
from embedkit_core.coordination.opening import Coordination
from embedkit_core.costs.meter import Meter
from embedkit_core.costs.prices import batch_price_of, parse_prices, price_of
from embedkit_core.costs.tracker import make_budget
from embedkit_core.engine.rate_limits.limiter import LimiterAdapter
from embedkit_core.engine.runtime.process import engine
from embedkit_core.observability.progress import ProgressOption, check_progress
from embedkit_core.providers.catalogue.known_models import KnownModel
from embedkit_core.providers.http.connection import ClientCert, Connection
from embedkit_core.providers.secrets import Hidden, Secret, hide, mask_key, mask_login, reveal

if TYPE_CHECKING:
    from embedkit_core.engine.runtime.account import Account

logger = logging.getLogger("embedkit_core.config")


class BaseEmbedder:
    """One model with its settings, cache, budget and usage. `Embedder` adds the methods that embed."""

    def __init__(
        self,
        model: KnownModel | str = "",
        *positional: Never,
        api_key: str | Callable[[], str] | Secret | Hidden | None = None,
        base_url: str | None = None,
        headers: Mapping[str, str] | Connection | Hidden | None = None,
        proxy: str | Hidden | None = None,
        ca_bundle: str | PathLike[str] | None = None,
        client_cert: ClientCert | Hidden | None = None,
        dimensions: int | None = None,
        dtype: DType = "float32",
        model_info: Mapping[str, Any] | None = None,
        cache: CacheArgument = None,
        coordination: CoordinationArgument = None,
        account: str | None = None,
        query_prompt: str | None = None,
        document_prompt: str | None = None,
        task: Task | None = None,
        on_long_text: LongText = "truncate",
        on_empty_text: EmptyText = "error",
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
        budget_usd: float | str | Decimal | None = None,
        budget_tokens: int | None = None,
        budget_name: str | None = None,
        prices: Mapping[str, float | str | Decimal] | None = None,
        progress: ProgressOption = None,
        in_batch: InBatch = "pay",
        pickle_api_key: bool = False,
        **unknown: Never,
    ) -> None:
        api_key, headers, proxy, client_cert = hide(api_key), hide(headers), hide(proxy), hide(client_cert)
        model, base_url, unknown_names = mask_key(model), mask_login(base_url), list(unknown)
        cache, coordination = mask_secrets(cache), mask_secrets(coordination)
        n_positional, positional = len(positional), ()
        unknown.clear()
        check_no_positional(type(self).__name__, n_positional)
        check_unknown(type(self).__name__, unknown_names, parameter_names())
        arguments = {name: value for name, value in locals().items() if name in parameter_names()}
        check_numbers(arguments)
        self._arguments = snapshot_arguments(arguments)
        self._secrets = PickledSecrets(arguments)
        self.rate_limiter = rate_limiter
        check_choice("on_error", on_error, get_args(OnError))
        check_choice("in_batch", in_batch, get_args(InBatch))
        check_limiter(rate_limiter)
        rates = RateSettings(requests_per_minute, tokens_per_minute)
        self.settings = CallSettings(max_concurrency, rates, max_retries, deadline, on_error, progress, in_batch)
        check_progress(progress)
        check_cache(cache)
        parse_prices(prices)
        self.budget = make_budget(budget_usd, budget_tokens, budget_name)
        resolved = resolve_provider(arguments)
        resolved_model = resolve_model(resolved, dimensions=dimensions, dtype=dtype, long_text=on_long_text)
        self.provider = resolved_model.provider
        self._info = resolved.info
        self.model = f"{self.provider.name}:{self.provider.model}"
        self.price = price_of(self.provider, prices)
        self.batch_price = batch_price_of(self.provider)
        self.meter = Meter(self.price.usd_per_million)
        self.vector_cache: EmbedderCache = open_embedder_cache(cache)
        self._coordination = make_coordination(coordination, account, self.provider, self.vector_cache.tiers)
        self.provider_account = make_account(self.provider, account)
        self.batch_logged = WakeFlag()
        if budget_name is not None and self.budget is not None:
            check_budget_is_shared(self.budget, self._coordination)
        self._format = resolved_model.format
        has_unit_length = self._info is not None and self._info.unit_length is not None
        is_float = self._format.dtype in ("float32", "float16")
        self._is_normalized = is_float and (has_unit_length or resolved_model.output.post_processing.normalize)
        self._accounts: dict[Account, weakref.finalize[Any, Any]] = {}
        self.truncation_logged = WakeFlag()
        limiter = LimiterAdapter(rate_limiter) if rate_limiter is not None else None
        self.vector_space = self._make_space(resolved_model, provider_options)
        self._specs: dict[str, InputTypeSpec] = {
            input_type: make_input_type_spec(
                *(resolved_model.provider, resolved_model.output, input_type),
                vector_format=resolved_model.format,
                cached_variants=resolved_model.cached_variants(input_type, on_long_text),
                long_text=on_long_text,
                empty_text=on_empty_text,
                max_texts=max_batch_texts,
                timeout=timeout,
                limiter=limiter,
                space=self.vector_space,
                coordination=self._coordination,
            )
            for input_type in get_args(InputType)
        }

    # Properties

    @property
    def usage(self) -> Usage:
        """The usage of this object so far, as an immutable `Usage`."""
        return self.meter.read()

    @property
    def dimensions(self) -> int | None:
        """The number of dimensions. None until the first reply of a model that is not in the catalogue."""
        return self._format.dimensions

    @property
    def max_input_tokens(self) -> int | None:
        """The most tokens of a text, prompt included. None if the limit is unknown."""
        return self.provider.max_text_tokens

    @property
    def is_normalized(self) -> bool:
        """True if all vectors have length 1, as the model documents or because they are normalized locally.

        The zero vectors of empty texts are an exception.
        """
        return self._is_normalized

    @property
    def space(self) -> str:
        """The name of the vector space. Do not compare vectors of different spaces or mix them in one index."""
        return self.vector_space.name(self.dimensions)

    def _make_space(self, resolved_model: ResolvedModel, options: Mapping[str, Any] | None) -> VectorSpace:
        body = self.provider.request_body("document")
        shared = self._info.space if self._info else None
        identity = shared or body.get("model", self.provider.model)
        endpoint = f"@{self.provider.endpoint}" if self.provider.endpoint else ""
        options_parts = {name: body[name] for name in options or {} if name in body}
        local_parts = {name: value for name, value in resolved_model.output.key_parts().items() if name == "centred"}
        task = self._arguments["task"]
        digest, parts = "", [options_parts, local_parts, *([task] if task else [])]
        if any(parts):
            digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]
        return VectorSpace(f"{self.provider.cache_key_provider}:{identity}{endpoint}", self._format.dtype, digest)

    def identity(self) -> dict[str, Any]:
        """Return the arguments that change vectors, in canonical spelling, with the fingerprint."""
        return {
            **identity_arguments(self._arguments, self.provider, self._specs["document"].format),
            "fingerprint": self.fingerprint,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | str | PathLike[str], **arguments: Any) -> Self:
        """Create an embedder from arguments in a mapping or a file.

        Args:
            config: A mapping of the constructor's arguments, or the path of a TOML or JSON file with them. If the file
                has a table "rag-embedkit", only this table is used.
            arguments: Further arguments, such as `api_key`. They replace those of `config`.

        Raises:
            ConfigurationError: The file cannot be read; a key is unknown; a value is invalid; or it may be a secret:
                `api_key`, `headers`, `proxy` or `client_cert`.

        Example:
            ```python
            embedder = Embedder.from_config({"model": "openai:text-embedding-3-small", "dimensions": 256})
            ```
        """
        config, given = hide(config), hide(arguments)
        arguments.clear()
        found = import_module("embedkit_core.config.files").read_config(config, parameter_defaults())
        return cls(**{**reveal(found), **reveal(given)})

    def to_config(self) -> dict[str, Any]:
        """Return the arguments that are not the defaults as JSON types, for `from_config`.

        `progress` and secrets are left out: `api_key`, `headers`, `proxy` and `client_cert`.

        Raises:
            ConfigurationError: A cache, the coordinator or the rate limiter is an object.
        """
        files = import_module("embedkit_core.config.files")
        made: dict[str, Any] = files.make_config(self._arguments, parameter_defaults(), signs_in=self._secrets.signs_in)
        return made

    def job_arguments(self) -> dict[str, Any]:
        """Return the arguments for an embedder that can work on the jobs of this one, as JSON types without secrets."""
        return job_arguments(self._arguments, parameter_defaults(), self.provider)

    @property
    def fingerprint(self) -> str:
        """Digest of everything that changes a vector besides the text, 32 hexadecimal digits.

        It covers the model, endpoint, dimensions, dtype, prompts, task, `provider_options` and `on_long_text`.
        """
        return hashlib.sha256(b"".join(spec.key_prefix for spec in self._specs.values())).hexdigest()[:32]

    def learn_dimensions(self, dimensions: int) -> None:
        """Set the dimensions of a model that is not in the catalogue, from its first reply."""
        self._format = replace(self._format, dimensions=dimensions)

    @property
    def jobs_folder(self) -> Path | None:
        """The cache folder that has the journal of batch jobs. None without a cache folder."""
        return next((folder for tier in self.vector_cache.tiers if (folder := tier.folder) is not None), None)

    @property
    def coordination(self) -> Coordination | None:
        """The coordination with other processes. None for none."""
        return self._coordination

    def bulk_pool(self, input_type: str) -> WorkerPool:
        """Return the threads on which an async call does bulk work, which may wait for batch jobs."""
        return JOBS if input_type == "document" and self.settings.in_batch == "wait" else BULK

    def collect_job(self, job_id: str) -> bool:
        """Collect a batch job, for a call that waits for its texts. Return True if nothing of it is open."""
        raise NotImplementedError

    def warn_of_truncation(self, positions: Sequence[int], n_texts: int, *, count: int | None = None) -> None:
        """Log a warning for the first call or stream with truncated texts.

        Args:
            positions: The positions of the truncated texts, or of the first eleven.
            n_texts: The number of texts.
            count: The number of truncated texts if `positions` has not all of them.
        """
        if not self.truncation_logged.is_set():
            self.truncation_logged.set()
            count = len(positions) if count is None else count
            logger.warning(
                "%s: %s of %s %s truncated to the model's limit (%s). EmbeddingResult.truncated "
                "lists them; on_long_text='mean' and 'error' are the alternatives. Logged once per embedder.",
                without_folders(self.model),
                f"{count:,}",
                count_noun(n_texts, "text"),
                "was" if count == 1 else "were",
                format_positions(positions),
            )

    # Lifecycle

    def use_account(self, account: Account) -> None:
        """Register as a user of an account, which keeps its HTTP client open."""
        if account not in self._accounts:
            self._accounts[account] = finalizer = weakref.finalize(self, engine().leave, account)
            finalizer.atexit = False
            engine().join(account)

    def close(self) -> None:
        """Close the HTTP client, the cache and the coordination of processes. A later call opens them again.

        The client is shared: it stays open while another embedder uses the same provider, endpoint and API key.
        """
        while self._accounts:
            account, finalizer = self._accounts.popitem()
            if finalizer.detach() is not None:
                engine().close_account(account)
        self.vector_cache.close()
        if self._coordination is not None:
            self._coordination.handle.close()

    async def aclose(self) -> None:
        """Close as `close` does, without blocking the event loop."""
        await off_loop(self.close, BULK)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    def __setattr__(self, name: str, value: object) -> None:
        """Set an attribute. Constructor arguments are read-only once the object is made.

        Raises:
            AttributeError: `name` is a constructor argument.
        """
        if name in parameter_names() and "_specs" in self.__dict__:  # the last attribute that __init__ sets
            del value  # it may be a secret
            raise AttributeError(f"Embedder.{name} is read-only. Create a new Embedder with {name}=.")
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        return f"Embedder({self.model!r}, dimensions={self.dimensions})"

    def __copy__(self) -> Self:
        """Return a copy with the same settings, API key, cache and budget, but with a usage of its own."""
        other = object.__new__(type(self))
        other.__dict__ |= self.__dict__ | {"meter": Meter(self.price.usd_per_million), "_accounts": {}}
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.__copy__()

    def __reduce__(self) -> tuple[object, ...]:
        """Return the pickle. It holds the settings, but no API key unless `pickle_api_key=True`.

        Raises:
            ConfigurationError: The object has a budget without a name, or a custom cache object or coordinator.
        """
        if self.budget is not None and self.budget.name is None:
            raise ConfigurationError(
                "budget_usd, budget_tokens: an embedder with a budget cannot be pickled, because each process would "
                "spend the whole budget. Set budget_name= for one budget of all processes, or create an embedder with "
                "a budget of its own in each process."
            )
        cache = self.vector_cache.environment or self._arguments["cache"]
        arguments = to_pickle({**self._arguments, "cache": cache}, parameter_defaults(), self.provider)
        return from_pickle, (type(self), arguments, self._secrets.to_pickle())

    def check_can_be_sent(self) -> None:
        """Check that the workers of an engine can use a pickle of the object, and that it has no API key.

        Raises:
            ConfigurationError: They cannot, or it has.
        """
        self._secrets.check_can_be_sent(self.provider.key_variable)
        check_limiter_can_be_sent(self.rate_limiter)
        if self._coordination is None and self.settings.rates != NO_LIMITS:
            logger.warning(
                "requests_per_minute and tokens_per_minute of %s apply to each worker, since the workers have no "
                "coordinator. Use a cache folder without coordination=False, or coordination='redis://host:6379/0'.",
                self.model,
            )


@functools.cache
def parameter_defaults() -> Mapping[str, Any]:
    """Return the constructor's arguments with their defaults."""
    parameters = inspect.signature(BaseEmbedder.__init__).parameters
    unnamed = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {n: p.default for n, p in parameters.items() if n != "self" and p.kind not in unnamed}


@functools.cache
def parameter_names() -> tuple[str, ...]:
    """Return the names of the constructor's arguments."""
    return tuple(parameter_defaults())
