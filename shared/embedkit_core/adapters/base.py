"""What the adapters share: how another class's arguments become ours, how an embedder is made, lists of floats."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from embedkit_core.adapters.arguments import same_value
from embedkit_core.calls.estimate import Estimate
from embedkit_core.calls.import_vectors import Imported
from embedkit_core.calls.plan import check_list
from embedkit_core.calls.verify_cache import Verified
from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.types import InputType
from embedkit_core.common.usage import Usage
from embedkit_core.config.base import parameter_names
from embedkit_core.costs.tracker import UsageHeard, by_model
from embedkit_core.embedder import Embedder
from embedkit_core.observability.progress import ProgressTo

__all__ = [
    "CacheTools",
    "Lists",
    "UsageHeard",
    "aembed_lists",
    "by_model",
    "changed_copy",
    "embed_lists",
    "invalid_fields",
    "make_embedder",
    "validated_embedder",
]


class Lists(NamedTuple):
    """Vectors as Python floats, in the order of the texts, and what they took."""

    rows: list[list[float]]
    usage: Usage


def embed_lists(
    embedder: Embedder,
    texts: Iterable[str],
    input_type: InputType = "document",
    max_batch_texts: int | None = None,
    progress: ProgressTo = None,
) -> Lists:
    """Embed texts as `embed` does; the lists are made while the server is waited for, and there is no matrix."""
    call = embedder._call(texts, input_type, max_batch_texts, lists=True, progress=progress)
    return Lists(call.serve("embed", call.finish_lists), call.usage)


async def aembed_lists(
    embedder: Embedder,
    texts: Iterable[str],
    input_type: InputType = "document",
    max_batch_texts: int | None = None,
    progress: ProgressTo = None,
) -> Lists:
    """Embed texts as `aembed` does, letting the caller's loop run while lists are made."""
    call = embedder._call(check_list(texts), input_type, max_batch_texts, lists=True, progress=progress)
    return Lists(await call.aserve(call.finish_lists), call.usage)


def make_embedder(arguments: Mapping[str, Any]) -> Embedder:
    """Make an embedder from those fields of an adapter that are arguments of it; the rest are the framework's own."""
    known = {name: value for name, value in arguments.items() if name in parameter_names()}
    if (key := known.get("api_key")) is not None and hasattr(key, "get_secret_value"):
        known["api_key"] = key.get_secret_value()
    return Embedder(**known)


def validated_embedder(embedder: Embedder, given: Mapping[str, Any], validated: Mapping[str, Any]) -> Embedder:
    """Return `embedder`, made from `given`, or a new one if a validator of a subclass changed one of its arguments."""
    same = all(same_value(given.get(name), validated.get(name)) for name in parameter_names())
    return embedder if same else make_embedder(validated)


def invalid_fields(owner: str, errors: Iterable[Mapping[str, Any]]) -> ConfigurationError:
    """Return one error for what a framework finds wrong with its fields, without the values given."""
    return ConfigurationError(f"{owner}: " + "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in errors))


class CacheTools:
    """What an adapter's object tells beforehand and does with the cache, by the core's object behind it."""

    @property
    def embedder(self) -> Embedder:
        """The core's object behind this one."""
        raise NotImplementedError

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
    ) -> Imported:
        """Take vectors that this model gave elsewhere into the cache: see `embedkit_core.Embedder.import_vectors`."""
        return self.embedder.import_vectors(texts, vectors, input_type=input_type, verify=verify)

    def verify_cache(self, texts: Iterable[str], *, input_type: InputType = "document", sample: int = 20) -> Verified:
        """Compare cached vectors with what the model gives today: see `embedkit_core.Embedder.verify_cache`."""
        return self.embedder.verify_cache(texts, input_type=input_type, sample=sample)


class _Model(Protocol):
    @property
    def model_fields_set(self) -> set[str]: ...

    @property
    def embedder(self) -> Embedder: ...


M = TypeVar("M", bound=_Model)


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
