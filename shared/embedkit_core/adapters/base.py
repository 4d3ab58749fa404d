"""What the adapters share: how another class's arguments become ours, how an embedder is made, lists of floats."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, Self, TypeVar

from embedkit_core.adapters.arguments import same_value
from embedkit_core.calls.estimate import Estimate
from embedkit_core.calls.import_vectors import ImportReport
from embedkit_core.calls.plan import as_list
from embedkit_core.calls.verify_cache import CacheVerification
from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.types import InputType
from embedkit_core.common.usage import Usage
from embedkit_core.config.base import parameter_names
from embedkit_core.costs.tracker import UsageAccumulator, usage_by_model
from embedkit_core.embedder import Embedder
from embedkit_core.observability.progress import ProgressOption

__all__ = [
    "EmbedderMixin",
    "ListResult",
    "UsageAccumulator",
    "aembed_lists",
    "changed_copy",
    "embed_lists",
    "fields_not_pickled",
    "usage_by_model",
    "validate_with_core",
]


class ListResult(NamedTuple):
    """Vectors as Python floats, in the order of the texts, and what they took."""

    rows: list[list[float]]
    usage: Usage


def embed_lists(
    embedder: Embedder,
    texts: Iterable[str],
    input_type: InputType = "document",
    max_batch_texts: int | None = None,
    progress: ProgressOption = None,
) -> ListResult:
    """Embed texts as `embed` does; the lists are made while the server is waited for, and there is no matrix."""
    call = embedder._call(texts, input_type, max_batch_texts, lists=True, progress=progress)
    return ListResult(call.run("embed", call.finish_lists), call.usage)


async def aembed_lists(
    embedder: Embedder,
    texts: Iterable[str],
    input_type: InputType = "document",
    max_batch_texts: int | None = None,
    progress: ProgressOption = None,
) -> ListResult:
    """Embed texts as `aembed` does, letting the caller's loop run while lists are made."""
    call = embedder._call(as_list(texts), input_type, max_batch_texts, lists=True, progress=progress)
    return ListResult(await call.arun(call.finish_lists), call.usage)


def make_embedder(arguments: Mapping[str, Any]) -> Embedder:
    """Make an embedder from those fields of an adapter that are arguments of it; the rest are the framework's own."""
    known = {name: value for name, value in arguments.items() if name in parameter_names()}
    if (key := known.get("api_key")) is not None and hasattr(key, "get_secret_value"):
        known["api_key"] = key.get_secret_value()
    return Embedder(**known)


class EmbedderMixin:
    """What an adapter's object tells beforehand and does with the cache, by the core's object behind it."""

    _embedder: Embedder

    @property
    def embedder(self) -> Embedder:
        """The core's object behind this one."""
        return self._embedder

    @property
    def usage(self) -> Usage:
        """What this object has asked and paid for so far."""
        return self._embedder.usage

    def estimate(self, texts: Iterable[str], *, input_type: InputType = "document") -> Estimate:
        """Say what embedding these texts would take; send nothing: see `embedkit_core.Embedder.estimate`."""
        return self.embedder.estimate(texts, input_type=input_type)

    async def aestimate(self, texts: Iterable[str], *, input_type: InputType = "document") -> Estimate:
        """Say what embedding these texts would take, without holding the caller's loop."""
        return await self.embedder.aestimate(texts, input_type=input_type)

    def import_vectors(
        self,
        texts: Iterable[str],
        vectors: Iterable[Sequence[float] | None],
        *,
        input_type: InputType = "document",
        verify: int = 3,
    ) -> ImportReport:
        """Take vectors that this model gave elsewhere into the cache: see `embedkit_core.Embedder.import_vectors`."""
        return self.embedder.import_vectors(texts, vectors, input_type=input_type, verify=verify)

    def verify_cache(
        self, texts: Iterable[str], *, input_type: InputType = "document", sample: int = 20
    ) -> CacheVerification:
        """Compare cached vectors with what the model gives today: see `embedkit_core.Embedder.verify_cache`."""
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
    def model_construct(cls, _fields_set: set[str] | None = None, **values: Any) -> Self: ...

    def _arguments(self) -> dict[str, Any]: ...


M = TypeVar("M", bound=_Model)


def validate_with_core(model: _Model, fields: Mapping[str, Any], validate: Callable[..., None]) -> Embedder:
    """Return the embedder of a new object; the core checks the fields first, since its errors say what to do.

    Args:
        model: the object, without fields as yet.
        fields: the values given.
        validate: pydantic's constructor of the object.

    Raises:
        ConfigurationError: the core or pydantic refuses a value. It holds no value that pydantic refused.
    """
    given = model.model_construct(**fields)._arguments()  # with the defaults of a subclass
    embedder = make_embedder(given)
    found = None
    try:
        validate(**fields)
    except ValueError as error:
        if not hasattr(error, "errors"):
            raise
        found = error.errors(include_input=False)
    if found is not None:  # raised here, since pydantic's error, which would be its context, holds the values
        reasons = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in found)
        raise ConfigurationError(f"{type(model).__name__}: {reasons}")
    validated = model._arguments()
    changed = any(not same_value(given.get(name), validated.get(name)) for name in parameter_names())
    return make_embedder(validated) if changed else embedder  # a validator of a subclass may change an argument


def fields_not_pickled(model: _Model) -> dict[str, None]:
    """Return the fields that a pickle leaves out, each as None."""
    names = ["rate_limiter", "progress"]
    if not (model.pickle_api_key and "api_key" in model.model_fields_set and not callable(model.api_key)):
        names.append("api_key")
    if not model.pickle_api_key:
        names += ["headers", "proxy"]
    return dict.fromkeys(names)


def changed_copy(model: M, changed: Mapping[str, Any]) -> M:
    """Make an adapter's object anew, with other settings; its budget is shared, unless that is what was changed.

    Raises:
        AuthenticationError: it came out of a pickle, and its headers or proxy stayed in the other process.
    """
    model.embedder.provider.connection.check_not_lost()
    given = {name: getattr(model, name) for name in model.model_fields_set}
    other = type(model)(**{**given, **changed})
    if not {"budget_usd", "budget_tokens"} & changed.keys():
        other.embedder.budget = model.embedder.budget
    return other
