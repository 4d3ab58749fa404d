"""What an embedder is made of: its settings, checked, its facts and its life."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import logging
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, Never, Self, get_args

from embedkit_core.cache.tiered import TieredCache, open_tiered
from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.formatting import format_positions
from embedkit_core.common.types import Cache, InputType, LongText, RateLimiter
from embedkit_core.common.usage import Usage
from embedkit_core.common.validation import check_choice, check_limiter, check_numbers, check_unknown
from embedkit_core.common.vectors import DType
from embedkit_core.config.cached_variants import ResolvedModel, resolve_model
from embedkit_core.config.pickling import PickledSecrets, from_pickle, identity_arguments, snapshot_arguments, to_pickle
from embedkit_core.config.resolve import resolve_provider
from embedkit_core.config.roles import CallSettings, InputTypeSpec, OnError, make_input_type_spec
from embedkit_core.costs.meter import Meter
from embedkit_core.costs.prices import price_of
from embedkit_core.costs.tracker import make_budget
from embedkit_core.engine.rate_limits.limiter import LimiterAdapter
from embedkit_core.engine.rate_limits.user_limits import RateSettings
from embedkit_core.engine.runtime.process import engine, off_loop
from embedkit_core.observability.progress import ProgressOption, check_progress
from embedkit_core.providers.http.connection import Connection
from embedkit_core.providers.secrets import Secret

if TYPE_CHECKING:
    from embedkit_core.engine.runtime.account import Account

logger = logging.getLogger("embedkit_core")


class BaseEmbedder:
    """One model with one cache and the settings of its calls; `Embedder` adds the doors."""

    def __init__(
        self,
        model: str = "",
        *,
        api_key: str | Callable[[], str] | Secret | None = None,
        base_url: str | None = None,
        headers: Mapping[str, str] | Connection | None = None,
        proxy: str | None = None,
        ca_bundle: str | PathLike[str] | None = None,
        dimensions: int | None = None,
        dtype: DType = "float32",
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
        budget_usd: float | str | Decimal | None = None,
        budget_tokens: int | None = None,
        prices: Mapping[str, float | str | Decimal] | None = None,
        progress: ProgressOption = None,
        pickle_api_key: bool = False,
        **unknown: Never,
    ) -> None:
        check_unknown("Embedder", unknown, parameter_names())
        arguments = {name: value for name, value in locals().items() if name in parameter_names()}
        check_numbers(arguments)
        self._arguments = snapshot_arguments(arguments)
        self._secrets = PickledSecrets(arguments)
        self.rate_limiter = rate_limiter
        check_choice("on_error", on_error, get_args(OnError))
        check_limiter(rate_limiter)
        rates = RateSettings(requests_per_minute, tokens_per_minute)
        self.settings = CallSettings(max_concurrency, rates, max_retries, deadline, on_error, progress)
        check_progress(progress)
        choice = resolve_provider(arguments)
        wanted = resolve_model(choice, dimensions=dimensions, dtype=dtype, long_text=on_long_text)
        self.provider = wanted.provider
        self._info = choice.info
        self.model = f"{self.provider.name}:{self.provider.model}"
        self.price = price_of(self.provider, prices)
        self.budget = make_budget(budget_usd, budget_tokens)
        self.meter = Meter(self.price.usd_per_million)
        self.tiered_cache: TieredCache = open_tiered(cache)
        self._format = wanted.format
        self._accounts: dict[Account, weakref.finalize[Any, Any]] = {}
        self.has_warned_of_truncation = False
        gate = LimiterAdapter(rate_limiter) if rate_limiter is not None else None
        self._specs: dict[str, InputTypeSpec] = {
            kind: make_input_type_spec(
                *(wanted.provider, wanted.output, kind),
                form=wanted.format,
                sources=wanted.cached_variants(kind, on_long_text),
                long_text=on_long_text,
                max_texts=max_batch_texts,
                timeout=timeout,
                gate=gate,
            )
            for kind in get_args(InputType)
        }
        self._space_suffix = self._suffix_of_space(wanted, provider_options)

    # Facts

    @property
    def usage(self) -> Usage:
        """What this object has asked and paid for so far."""
        return self.meter.read()

    @property
    def dimensions(self) -> int | None:
        """How many the vectors have; None until the first reply of a model that is not in the catalogue."""
        return self._format.dimensions

    @property
    def is_normalized(self) -> bool:
        """Whether vectors are known to have length 1: the model promises it, or they are brought to it here."""
        return self._info is not None and self._info.unit_length is not None

    @property
    def space(self) -> str:
        """The name of the vector space: vectors of different spaces must not be compared or share an index."""
        wire = self._specs["document"].request_spec.body
        shared = self._info.space if self._info else None
        identity = shared or str(wire.get("model", self.provider.model))[:64]
        where = f"@{self.provider.endpoint}" if self.provider.endpoint else ""
        name = (
            f"{self.provider.cache_key_provider}:{identity}{where}/{self.dimensions or 'unknown'}/{self._format.dtype}"
        )
        return name + self._space_suffix

    def _suffix_of_space(self, wanted: ResolvedModel, options: Mapping[str, Any] | None) -> str:
        """Give what tells spaces of one model apart that its name, width and type do not."""
        wire = self._specs["document"].request_spec.body
        told = {name: wire[name] for name in options or {} if name in wire}
        made = {name: value for name, value in wanted.output.key_parts().items() if name == "centred"}
        if not (told or made):
            return ""
        return "/" + hashlib.sha256(json.dumps([told, made], sort_keys=True).encode()).hexdigest()[:8]

    def identity(self) -> dict[str, Any]:
        """Give the arguments that change vectors, each in one spelling, and the fingerprint of all that does."""
        return {
            **identity_arguments(self._arguments, self.provider, self._specs["document"].format),
            "fingerprint": self.fingerprint,
        }

    @property
    def fingerprint(self) -> str:
        """A digest of all that changes a vector but the text: model, dimensions, prompts, options, host, long texts."""
        return hashlib.sha256(b"".join(role.key_prefix for role in self._specs.values())).hexdigest()[:32]

    def learn_dimensions(self, dimensions: int) -> None:
        """Learn how many the vectors of a model have that is not in the catalogue."""
        self._format = replace(self._format, dimensions=dimensions)

    def warn_of_truncation(self, truncated: Sequence[int], n_texts: int) -> None:
        """Say once that texts were cut. On the caller's side."""
        if not self.has_warned_of_truncation:
            self.has_warned_of_truncation = True
            log_truncation(self.model, truncated, n_texts)

    # Life

    def use_account(self, account: Account) -> None:
        """Note that this object uses an account, so that its client is kept open."""
        if account not in self._accounts:
            self._accounts[account] = leaving = weakref.finalize(self, engine().leave, account)
            leaving.atexit = False
            engine().join(account)

    def close(self) -> None:
        """Let go of the client and the cache; another call opens them again."""
        while self._accounts:
            account, leaving = self._accounts.popitem()
            if leaving.detach() is not None:
                engine().close_account(account)
        self.tiered_cache.close()

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

    def __setattr__(self, name: str, value: object) -> None:
        """Set an attribute. Constructor arguments are read-only once the object is made.

        Raises:
            AttributeError: `name` is a constructor argument.
        """
        if name in parameter_names() and "_space_suffix" in self.__dict__:  # the last attribute that __init__ sets
            raise AttributeError(f"Embedder.{name} is read-only. Create a new Embedder with {name}=.")
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        return f"Embedder({self.model!r}, dimensions={self.dimensions})"

    def __copy__(self) -> Self:
        """Copy within the process: the same settings, key, cache and budget, and a count of its own."""
        other = object.__new__(type(self))
        other.__dict__ |= self.__dict__ | {"meter": Meter(self.price.usd_per_million), "_accounts": {}}
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.__copy__()

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the settings; a key only if it was given with `pickle_api_key`, and never one of the environment.

        Raises:
            ConfigurationError: it has a budget, which bounds one process, or a cache object of the user's.
        """
        if self.budget is not None:
            raise ConfigurationError(
                "an embedder with a budget cannot be pickled: each process would spend it anew; give each its own"
            )
        return from_pickle, (type(self), to_pickle(self._arguments, self.provider), self._secrets.to_pickle())


@functools.cache
def parameter_names() -> tuple[str, ...]:
    """Give the names of the arguments an embedder takes."""
    kinds = inspect.signature(BaseEmbedder.__init__).parameters
    return tuple(name for name, p in kinds.items() if name != "self" and p.kind is not p.VAR_KEYWORD)


def log_truncation(model: str, truncated: Collection[int], n_texts: int) -> None:
    """Say that texts were cut to fit the model."""
    logger.warning(
        "%d of %d texts are longer than %s takes and were cut (positions %s): embed(...).truncated names them "
        "each time, on_long_text='mean' or 'error' are the alternatives; said once",
        len(truncated),
        n_texts,
        model,
        format_positions(truncated),
    )
