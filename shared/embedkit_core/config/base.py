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

from embedkit_core.cache.tiered import Store, open_store
from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.formatting import first_positions
from embedkit_core.common.types import Cache, InputType, LongText, RateLimiter
from embedkit_core.common.usage import Usage
from embedkit_core.common.validation import check_limiter, check_numbers, one_of, refuse_unknown
from embedkit_core.common.vectors import DType
from embedkit_core.config.cached_variants import Plan, plan
from embedkit_core.config.pickling import Luggage, described, kept, packed, unpacked
from embedkit_core.config.resolve import choose
from embedkit_core.config.roles import CallSettings, OnError, Role, make_role
from embedkit_core.costs.meter import Meter
from embedkit_core.costs.prices import price_of
from embedkit_core.costs.tracker import make_budget
from embedkit_core.engine.rate_limits.limiter import Gate
from embedkit_core.engine.rate_limits.user_limits import Rates
from embedkit_core.engine.runtime.process import engine, off_loop
from embedkit_core.observability.progress import ProgressTo, check_progress
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
        progress: ProgressTo = None,
        pickle_api_key: bool = False,
        **unknown: Never,
    ) -> None:
        refuse_unknown("Embedder", unknown, parameter_names())
        arguments = {name: value for name, value in locals().items() if name in parameter_names()}
        check_numbers(arguments)
        self._arguments = kept(arguments)
        self._luggage = Luggage(arguments)
        self.rate_limiter = rate_limiter
        one_of("on_error", on_error, get_args(OnError))
        check_limiter(rate_limiter)
        rates = Rates(requests_per_minute, tokens_per_minute)
        self.settings = CallSettings(max_concurrency, rates, max_retries, deadline, on_error, progress)
        check_progress(progress)
        choice = choose(arguments)
        wanted = plan(choice, dimensions=dimensions, dtype=dtype, long_text=on_long_text)
        self.provider = wanted.provider
        self._info = choice.info
        self.model = f"{self.provider.name}:{self.provider.model}"
        self.price = price_of(self.provider, prices)
        self.budget = make_budget(budget_usd, budget_tokens)
        self.meter = Meter(self.price.usd_per_million)
        self.store: Store = open_store(cache)
        self._form = wanted.form
        self._joined: dict[Account, weakref.finalize[Any, Any]] = {}
        self.has_warned = False
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
        self._space_mark = self._mark(wanted, provider_options)

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
    def has_unit_length(self) -> bool:
        """Whether vectors are known to have length 1: the model promises it, or they are brought to it here."""
        return self._info is not None and self._info.unit_length is not None

    @property
    def space(self) -> str:
        """The name of the vector space: vectors of different spaces must not be compared or share an index."""
        wire = self._roles["document"].lane.wire
        shared = self._info.space if self._info else None
        identity = shared or str(wire.get("model", self.provider.model))[:64]
        where = f"@{self.provider.endpoint}" if self.provider.endpoint else ""
        name = f"{self.provider.key_name}:{identity}{where}/{self.dimensions or 'unknown'}/{self._form.dtype}"
        return name + self._space_mark

    def _mark(self, wanted: Plan, options: Mapping[str, Any] | None) -> str:
        """Give what tells spaces of one model apart that its name, width and type do not."""
        wire = self._roles["document"].lane.wire
        told = {name: wire[name] for name in options or {} if name in wire}
        made = {name: value for name, value in wanted.asked.parts().items() if name == "centred"}
        if not (told or made):
            return ""
        return "/" + hashlib.sha256(json.dumps([told, made], sort_keys=True).encode()).hexdigest()[:8]

    def identity(self) -> dict[str, Any]:
        """Give the arguments that change vectors, each in one spelling, and the fingerprint of all that does."""
        return {
            **described(self._arguments, self.provider, self._roles["document"].form),
            "fingerprint": self.fingerprint,
        }

    @property
    def fingerprint(self) -> str:
        """A digest of all that changes a vector but the text: model, dimensions, prompts, options, host, long texts."""
        return hashlib.sha256(b"".join(role.prefix for role in self._roles.values())).hexdigest()[:32]

    def learn_dimensions(self, dimensions: int) -> None:
        """Learn how many the vectors of a model have that is not in the catalogue."""
        self._form = replace(self._form, dimensions=dimensions)

    def warn_of_cuts(self, truncated: Sequence[int], n_texts: int) -> None:
        """Say once that texts were cut. On the caller's side."""
        if not self.has_warned:
            self.has_warned = True
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

    def __setattr__(self, name: str, value: object) -> None:
        """Refuse a new value for an argument of a finished object: caches and cost were settled by the first one."""
        if name in parameter_names() and "_space_mark" in self.__dict__:
            raise AttributeError(f"an embedder does not change; make another one, with {name}=")
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        return f"Embedder({self.model!r}, dimensions={self.dimensions})"

    def __copy__(self) -> Self:
        """Copy within the process: the same settings, key, cache and budget, and a count of its own."""
        other = object.__new__(type(self))
        other.__dict__ |= self.__dict__ | {"meter": Meter(self.price.usd_per_million), "_joined": {}}
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
        return unpacked, (type(self), packed(self._arguments, self.provider), self._luggage.packed())


@functools.cache
def parameter_names() -> tuple[str, ...]:
    """Give the names of the arguments an embedder takes."""
    kinds = inspect.signature(BaseEmbedder.__init__).parameters
    return tuple(name for name, p in kinds.items() if name != "self" and p.kind is not p.VAR_KEYWORD)


def warn_of_cuts(model: str, truncated: Collection[int], n_texts: int) -> None:
    """Say that texts were cut to fit the model."""
    logger.warning(
        "%d of %d texts are longer than %s takes and were cut (positions %s): embed(...).truncated names them "
        "each time, on_long_text='mean' or 'error' are the alternatives; said once",
        len(truncated),
        n_texts,
        model,
        first_positions(truncated),
    )
