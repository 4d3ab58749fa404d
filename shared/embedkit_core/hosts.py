"""What the adapters share: how another class's arguments become ours, how an embedder is made, lists of floats."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

from embedkit_core import config
from embedkit_core.configured import parameter_names
from embedkit_core.embedder import Embedder
from embedkit_core.errors import ConfigurationError
from embedkit_core.forecast import Estimate
from embedkit_core.importing import Imported
from embedkit_core.lists import ato_lists, to_lists
from embedkit_core.plan import check_list
from embedkit_core.progress import ProgressTo
from embedkit_core.tracking import UsageHeard, by_model
from embedkit_core.types import InputType, Usage
from embedkit_core.verifying import Verified

__all__ = [
    "NOT_GIVEN",
    "CacheTools",
    "Lists",
    "Mapped",
    "NoEffect",
    "Refused",
    "Rule",
    "UsageHeard",
    "aembed_lists",
    "ato_lists",
    "by_model",
    "changed_copy",
    "complaint",
    "cut_or_refuse",
    "default_model",
    "embed_lists",
    "key_or_function",
    "make_embedder",
    "one_type",
    "or_none",
    "seconds",
    "take_arguments",
    "to_lists",
    "wire_options",
]


@dataclass(frozen=True, slots=True)
class Mapped:
    """An argument of another class that is one of ours; `convert` gives our value, None for none.

    None counts as not given, as it is the default in those classes, but for a `needed` one.
    """

    to: str
    convert: Callable[[str, Any], Any] | None = None
    needed: bool = False


@dataclass(frozen=True, slots=True)
class NoEffect:
    """An argument that is accepted and does nothing, and why."""

    why: str


@dataclass(frozen=True, slots=True)
class Refused:
    """An argument that would change what is sent, and the way out; its `harmless` values ask for nothing."""

    way_out: str
    harmless: tuple[Any, ...] = ()


Rule = Mapped | NoEffect | Refused


class _NotGiven:
    def __repr__(self) -> str:
        return "<not given>"


NOT_GIVEN: Any = _NotGiven()  # None may be a variable that was meant to hold something


def take_arguments(
    owner: str, given: Mapping[str, Any], own: Iterable[str], rules: Mapping[str, Rule]
) -> dict[str, Any]:
    """Give the adapter's own arguments for those given, in its spelling or in that of the classes it replaces.

    Raises:
        ConfigurationError: for one that is not known, naming the nearest; one that is refused, with the way out; or
            two spellings of one argument with different values.
    """
    names = set(own)
    taken: dict[str, Any] = {}
    spelled: dict[str, str] = {}
    for name, value in given.items():
        target = name
        if name not in names:
            rule = rules.get(name)
            if rule is None:
                useful = names | {alias for alias, one in rules.items() if isinstance(one, Mapped)}
                raise config.unknown_argument(owner, name, sorted(useful), listed=sorted(names))
            if not isinstance(rule, Mapped):
                _weigh_up(owner, name, value, rule)
                continue
            target = rule.to
            if value is not None and rule.convert:
                value = rule.convert(name, value)
            if value is None and not rule.needed:
                continue
        if taken.get(target) is not None:
            if value is not None and not _same(taken[target], value):
                raise ConfigurationError(
                    f"{owner}: {spelled[target]}= and {name}= are the same argument; give one of them"
                )
            continue
        taken[target] = copy.deepcopy(value) if type(value) is dict else value
        spelled[target] = name
    return taken


def _same(one: Any, other: Any) -> bool:
    """Compare two spellings' values, of whatever kind; a secret by what it holds."""
    one, other = (value.get_secret_value() if hasattr(value, "get_secret_value") else value for value in (one, other))
    try:
        return bool(one == other)
    except Exception:  # an array, say
        return False


def _weigh_up(owner: str, name: str, value: Any, rule: Rule) -> None:
    if value is None:
        return
    if isinstance(rule, Refused) and not any(_same(value, harmless) for harmless in rule.harmless):
        raise ConfigurationError(f"{owner} takes no {name}: {rule.way_out}")


def seconds(name: str, value: Any) -> float:
    """Give a timeout that is a number; the SDKs' own timeout objects bound parts of a request, ours the whole."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigurationError(f"{name} must be a number of seconds for the whole request, as in {name}=60.0")
    return float(value)


def cut_or_refuse(name: str, value: Any) -> str:
    """Give our rule for long texts in place of Voyage's truncation (True, False) and Cohere's truncate (END, NONE)."""
    known = {True: "truncate", False: "error", "END": "truncate", "NONE": "error"}
    try:
        return known[value]
    except (KeyError, TypeError):
        raise ConfigurationError(
            f"{name}={value!r}: use on_long_text='truncate' (cut at the end), 'error' or 'mean'"
        ) from None


def key_or_function(value: Any) -> Any:
    """Refuse what can be no key, in place of the host's own words about its types."""
    if value is None or isinstance(value, str) or callable(value) or hasattr(value, "get_secret_value"):
        return value
    raise ValueError(f"must be a string, a SecretStr or a function, not {type(value).__name__}")


def one_type(name: str, value: Any) -> str:
    """Give our dtype for Cohere's embedding_types (a list) and Voyage's output_dtype; both call float32 "float"."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or len(names) != 1 or not isinstance(names[0], str):
        raise ConfigurationError(f"{name}={value!r:.80}: an embedder has one type; give dtype='float32', 'int8', ...")
    return "float32" if names[0] == "float" else names[0]


def or_none(name: str, value: Any) -> Any:  # noqa: ARG001 - the signature of a conversion
    """Give what is there, None for what is empty."""
    return value or None


def wire_options(name: str, value: Any) -> dict[str, Any] | None:
    """Give further fields of the request; the encoding is left out, since a reply in any is read.

    The SDKs' `extra_body` holds such fields too.
    """
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"{name} must be a mapping from names of fields to their values")
    fields = {**value, **value["extra_body"]} if isinstance(value.get("extra_body"), Mapping) else dict(value)
    return {field: fields[field] for field in fields if field not in ("encoding_format", "extra_body")} or None


def default_model(owner: str, replaced: str) -> str:
    """Give the model that the replaced class has where none is named, and say so: vectors must match an index."""
    model = "text-embedding-ada-002"
    warnings.warn(
        f"{owner}() without a model is {model!r}, as in {replaced}(), so that an existing index still fits; name it, "
        "or for a new index a newer one: model='openai:text-embedding-3-small' costs a fifth",
        stacklevel=3,
    )
    return model


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


class _SecretStr(Protocol):
    def get_secret_value(self) -> str: ...


def make_embedder(arguments: Mapping[str, Any], *, api_key: _SecretStr | Callable[[], str] | None) -> Embedder:
    """Make an embedder from those of an adapter's fields that are arguments of it; the rest are the host's own."""
    known = {name: value for name, value in arguments.items() if name in parameter_names() and name != "api_key"}
    held: Any = api_key
    plain = held.get_secret_value() if hasattr(held, "get_secret_value") else held
    return Embedder(**known, api_key=plain)


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


def complaint(owner: str, errors: Iterable[Mapping[str, Any]], arguments: Mapping[str, Any]) -> ConfigurationError:
    """Give what is wrong with arguments that a host refuses: in the core's words, which name the way out, if it does.

    Else the host's findings about its fields (their `loc` and `msg`) in one error of ours, without any value.
    """
    with suppress(Exception):  # the core may find nothing, or trip over what it does not check
        try:
            make_embedder(arguments, api_key=arguments.get("api_key"))
        except ConfigurationError as error:
            return error.with_traceback(None)
    return ConfigurationError(f"{owner}: " + "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in errors))
