"""Base of the adapters: creating the embedder, validation, copies, and vectors as lists of floats."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, TypeVar, Unpack

from embedkit_core.adapters.arguments import Rule, errors_name, hide_arguments, plain, same_value, take_arguments
from embedkit_core.calls.call import Call
from embedkit_core.calls.estimate import Estimate
from embedkit_core.calls.import_vectors import ImportReport
from embedkit_core.calls.plan import as_list
from embedkit_core.calls.query_hit import QueryHit, find_query
from embedkit_core.calls.verify_cache import CacheVerification
from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.float_lists import as_floats
from embedkit_core.common.threads import running_loop
from embedkit_core.common.types import InputType
from embedkit_core.common.usage import Usage
from embedkit_core.config.base import parameter_names
from embedkit_core.config.roles import SubmitOptions
from embedkit_core.costs.tracker import UsageAccumulator, usage_by_model
from embedkit_core.embedder import Embedder
from embedkit_core.observability.progress import ProgressOption
from embedkit_core.providers.secrets import hide, hide_secrets, reveal

if TYPE_CHECKING:
    from embedkit_core.batches.job import BatchJob

__all__ = [
    "EmbedderMixin",
    "ListResult",
    "UsageAccumulator",
    "aembed_lists",
    "embed_lists",
    "fields_not_pickled",
    "for_call",
    "run_in_thread",
    "run_together",
    "usage_by_model",
    "validate_with_core",
]


T = TypeVar("T")


class ListResult:
    """The result of a call: vectors as Python floats.

    Attributes:
        rows: The vectors in the order of the texts.
    """

    __slots__ = ("_counted", "rows")

    def __init__(self, rows: list[list[float]], counted: Call | QueryHit) -> None:
        self.rows = rows
        self._counted = counted

    @property
    def usage(self) -> Usage:
        """The usage of the call."""
        return self._counted.usage


def embed_lists(
    embedder: Embedder,
    texts: Iterable[str],
    input_type: InputType = "document",
    max_batch_texts: int | None = None,
    progress: ProgressOption = None,
) -> ListResult:
    """Embed texts like `embed`, building the lists of floats while requests are in flight instead of a matrix."""
    if found := _find_query(embedder, texts, input_type, may_block=True):
        return found
    call = embedder._call(texts, input_type, max_batch_texts, lists=True, progress=progress)
    return ListResult(call.run("embed", call.finish_lists), call)


async def aembed_lists(
    embedder: Embedder,
    texts: Iterable[str],
    input_type: InputType = "document",
    max_batch_texts: int | None = None,
    progress: ProgressOption = None,
) -> ListResult:
    """Embed texts like `aembed`, without blocking the caller's event loop while lists are built."""
    if found := _find_query(embedder, texts, input_type, may_block=False):
        return found
    call = embedder._call(as_list(texts), input_type, max_batch_texts, lists=True, progress=progress)
    return ListResult(await call.arun(call.finish_lists), call)


def _find_query(
    embedder: Embedder, texts: Iterable[str], input_type: InputType, *, may_block: bool
) -> ListResult | None:
    """Return the result for a single query that needs no `Call`."""
    if input_type != "query" or type(texts) is not list or len(texts) != 1:
        return None
    hit = find_query(embedder, embedder._specs["query"], texts[0], may_block=may_block)
    return None if hit is None else ListResult([as_floats(hit.vector).tolist()], hit)


async def run_in_thread(work: Callable[[], T]) -> T:
    """Run code of the user on a thread of the event loop's executor, in a copy of the current context.

    Raises:
        EmbedKitError: There is no running event loop of asyncio.
    """
    import asyncio

    running_loop()
    return await asyncio.to_thread(work)


async def run_together(awaitables: Iterable[Awaitable[T]]) -> list[T]:
    """Await all concurrently, so that their texts share requests, and return the results in order."""
    import asyncio

    return await asyncio.gather(*awaitables)


def make_embedder(arguments: Mapping[str, Any]) -> Embedder:
    """Create an embedder from the fields of an adapter, ignoring those that are not arguments of `Embedder`."""
    parameters = {name: value for name, value in arguments.items() if name in parameter_names()}
    parameters["api_key"] = hide(plain(parameters.get("api_key")))
    return Embedder(**parameters)


class EmbedderMixin:
    """What the adapters share: immutable settings and their copies, and the methods of `Embedder` that they delegate.

    It comes before the framework's class among the bases, which is a pydantic model.

    Attributes:
        argument_rules: The rules for arguments of replaced classes.
    """

    argument_rules: ClassVar[Mapping[str, Rule]]
    _embedder: Embedder
    if TYPE_CHECKING:  # pydantic would make fields of them
        rate_limiter: Any
        cache: Any
        coordination: Any
        progress: Any

    @classmethod
    def _hide(cls, arguments: Mapping[str, Any]) -> dict[str, Any]:
        model: Any = cls
        return hide_arguments(arguments, model.model_fields, cls.argument_rules)

    @classmethod
    def _translate(cls, arguments: Mapping[str, Any]) -> dict[str, Any]:
        model: Any = cls
        return take_arguments(cls.__name__, arguments, model.model_fields, cls.argument_rules)

    def __setattr__(self, name: str, value: object) -> None:
        """Set an attribute. The settings are read-only.

        Raises:
            AttributeError: `name` is a setting.
        """
        value = hide(value)
        problem: Exception | None = None
        try:
            super().__setattr__(name, reveal(value))
        except ValueError as error:
            kinds = {one["type"] for one in _problems(error) or ()}
            problem = error.with_traceback(None)  # without pydantic's frames, which show the value
            if kinds and kinds <= {"frozen_field", "frozen_instance"}:
                problem = AttributeError(
                    f"{type(self).__name__}.{name} is read-only. Use model_copy(update={{{name!r}: ...}})."
                )
        if problem is not None:  # raised outside of `except`: pydantic's error would be its context
            raise problem

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy; with `update`, a new object is created and validated."""
        if not update:
            copied: Self = super().model_copy(deep=deep)  # type: ignore[misc]
            return copied
        update = self._hide(update)
        with errors_name(update, self.argument_rules):
            return changed_copy(self, self._translate(update))  # type: ignore[type-var]

    def copy(self, *, include: Any = None, exclude: Any = None, update: Any = None, deep: bool = False) -> Self:  # noqa: ARG002
        """Return a copy (pydantic's former name of `model_copy`); `include` and `exclude` are ignored."""
        update = self._hide(update or {})
        return self.model_copy(update=update, deep=deep)

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """Copy the settings; the copy shares rate limiter, cache, coordinator and budget."""
        shared = {id(value): value for value in (self.rate_limiter, self.cache, self.coordination, self.progress)}
        copied: Self = super().__deepcopy__({**(memo or {}), **shared})  # type: ignore[misc]
        return copied

    @property
    def embedder(self) -> Embedder:
        """The `embedkit_core.Embedder` that this object uses."""
        return self._embedder

    @property
    def usage(self) -> Usage:
        """Usage of this object so far."""
        return self._embedder.usage

    def estimate(self, texts: Iterable[str], *, input_type: InputType = "document") -> Estimate:
        """Estimate tokens, cost and time without sending anything: see `embedkit_core.Embedder.estimate`."""
        return self.embedder.estimate(texts, input_type=input_type)

    async def aestimate(self, texts: Iterable[str], *, input_type: InputType = "document") -> Estimate:
        """Estimate as `estimate` does, without blocking the caller's event loop."""
        return await self.embedder.aestimate(texts, input_type=input_type)

    def count_tokens(self, texts: str | Iterable[str], *, input_type: InputType = "document") -> int:
        """Count tokens without sending anything: see `embedkit_core.Embedder.count_tokens`."""
        return self.embedder.count_tokens(texts, input_type=input_type)

    async def acount_tokens(self, texts: str | Iterable[str], *, input_type: InputType = "document") -> int:
        """Count tokens as `count_tokens` does, without blocking the caller's event loop."""
        return await self.embedder.acount_tokens(texts, input_type=input_type)

    @property
    def max_input_tokens(self) -> int | None:
        """The most tokens of a text: see `embedkit_core.Embedder.max_input_tokens`."""
        return self.embedder.max_input_tokens

    def submit(self, texts: Iterable[str], **options: Unpack[SubmitOptions]) -> BatchJob:
        """Submit texts to the provider's batch endpoint: see `embedkit_core.Embedder.submit`."""
        return self.embedder.submit(texts, **options)

    async def asubmit(self, texts: Iterable[str], **options: Unpack[SubmitOptions]) -> BatchJob:
        """Submit texts as `submit` does, without blocking the caller's event loop."""
        return await self.embedder.asubmit(texts, **options)

    def jobs(self) -> list[BatchJob]:
        """Return the batch jobs of these settings: see `embedkit_core.Embedder.jobs`."""
        return self.embedder.jobs()

    async def ajobs(self) -> list[BatchJob]:
        """Return the batch jobs as `jobs` does, without blocking the caller's event loop."""
        return await self.embedder.ajobs()

    def job(self, job_id: str) -> BatchJob:
        """Return the batch job with an ID: see `embedkit_core.Embedder.job`."""
        return self.embedder.job(job_id)

    async def ajob(self, job_id: str) -> BatchJob:
        """Return the batch job with an ID as `job` does, without blocking the caller's event loop."""
        return await self.embedder.ajob(job_id)

    def import_vectors(
        self,
        texts: Iterable[str],
        vectors: Iterable[Sequence[float] | None],
        *,
        input_type: InputType = "document",
        verify: int = 3,
    ) -> ImportReport:
        """Store existing vectors of this model in the cache: see `embedkit_core.Embedder.import_vectors`."""
        return self.embedder.import_vectors(texts, vectors, input_type=input_type, verify=verify)

    def verify_cache(
        self, texts: Iterable[str], *, input_type: InputType = "document", sample: int = 20
    ) -> CacheVerification:
        """Compare cached vectors with current ones of the model: see `embedkit_core.Embedder.verify_cache`."""
        return self.embedder.verify_cache(texts, input_type=input_type, sample=sample)


class _Model(Protocol):
    """An object of an adapter, as its base class in pydantic and `EmbedderMixin` make it."""

    api_key: Any
    pickle_api_key: bool

    @property
    def model_fields_set(self) -> set[str]: ...

    @property
    def embedder(self) -> Embedder: ...

    @classmethod
    def _arguments(cls, fields: Mapping[str, Any]) -> dict[str, Any]: ...

    def __iter__(self) -> Iterator[tuple[str, Any]]: ...


M = TypeVar("M", bound=_Model)


def validate_with_core(model: _Model, fields: Mapping[str, Any], validate: Callable[..., None]) -> Embedder:
    """Validate a new object and return its embedder; the core validates first, since its errors name the fix.

    Args:
        model: The object, whose fields are not set yet.
        fields: The field values, with secrets hidden.
        validate: Pydantic's constructor of the object.

    Raises:
        ConfigurationError: The core or pydantic rejects a value. The message contains no value pydantic rejected.
    """
    # A subclass may have defaults of its own. Those made by a factory are left to pydantic: a factory may have effects.
    cls: Any = type(model)
    declared: Mapping[str, Any] = cls.model_fields
    defaults = {n: f.default for n, f in declared.items() if not f.is_required() and f.default_factory is None}
    defaults = hide_secrets(defaults)
    arguments = model._arguments({**defaults, **fields})
    embedder = make_embedder(arguments)
    problems = None
    try:
        validate(**{name: reveal(value) for name, value in fields.items()})
    except ValueError as error:
        problems = _problems(error)
        if problems is None:
            raise
    if problems is not None:  # raised outside of `except`: as its context, pydantic's error would expose the values
        reasons = [".".join(map(str, one["loc"])) + ": " * bool(one["loc"]) + one["msg"] for one in problems]
        raise ConfigurationError(f"{type(model).__name__}: {'; '.join(reasons)}")
    validated = hide_secrets(model._arguments(dict(model)))
    changed = any(not same_value(arguments.get(name), validated.get(name)) for name in parameter_names())
    return make_embedder(validated) if changed else embedder  # a validator of a subclass may change an argument


def _problems(error: ValueError) -> list[Any] | None:
    """Return what a ValidationError of pydantic lists, without the rejected values. None for another error."""
    errors = getattr(error, "errors", None)
    return None if errors is None else errors(include_input=False)


def fields_not_pickled(model: _Model) -> dict[str, None]:
    """Return the fields that are not pickled, each mapped to None."""
    names = ["rate_limiter", "progress"]
    if not (model.pickle_api_key and "api_key" in model.model_fields_set and not callable(model.api_key)):
        names.append("api_key")
    if not model.pickle_api_key:
        names += ["headers", "proxy", "client_cert"]
    return dict.fromkeys(names)


def for_call(model: M, fields: Mapping[str, Any]) -> M:
    """Return a copy with other settings for one call.

    Its usage counts as that of `model`, with which it shares the vectors in memory and what is logged once.
    """
    other = changed_copy(model, fields)
    shared = ["meter", "truncation_logged", "batch_logged"]
    if "cache" not in fields:
        shared.append("vector_cache")
    for name in shared:
        setattr(other.embedder, name, getattr(model.embedder, name))
    return other


def changed_copy(model: M, changed: Mapping[str, Any]) -> M:
    """Return a new adapter object with changed settings. It shares the budget, unless the budget is changed.

    Raises:
        AuthenticationError: The object was unpickled without its headers, proxy or client certificate.
    """
    model.embedder.provider.connection.check_not_lost()
    current = hide_secrets({name: getattr(model, name) for name in model.model_fields_set})
    other = type(model)(**{name: reveal(value) for name, value in {**current, **changed}.items()})
    budget = model.embedder.budget
    others = {"budget_usd", "budget_tokens", "budget_name"}
    if budget is not None and budget.name is not None:  # it belongs to one coordinator
        others |= {"cache", "coordination"}
    if not others & changed.keys():
        other.embedder.budget = budget
    return other
