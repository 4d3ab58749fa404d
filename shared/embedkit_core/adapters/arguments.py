"""Argument tables: how arguments of the replaced framework classes map to embedkit's, with conversions and refusals."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from os import PathLike
from typing import Any, Final, Literal, Protocol, TypeAlias, TypedDict

from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.types import Cache, LongText, RateLimiter
from embedkit_core.common.validation import unknown_argument
from embedkit_core.common.vectors import DType
from embedkit_core.observability.progress import ProgressOption

__all__ = [
    "AZURE",
    "COMMON_RULES",
    "NOT_GIVEN",
    "ONE_CLIENT",
    "Alias",
    "ApiKey",
    "CommonOptions",
    "EmbedderOptions",
    "Ignored",
    "Rule",
    "Unsupported",
    "default_model",
    "none_if_empty",
    "request_options",
    "seconds",
    "take_arguments",
]


class SecretString(Protocol):
    """A string that is hidden in logs, such as pydantic's SecretStr."""

    def get_secret_value(self) -> str:
        """Return the string."""


ApiKey: TypeAlias = str | SecretString | Callable[[], str] | None


class EmbedderOptions(TypedDict, total=False):
    """The keyword arguments of `embedkit_core.Embedder` that the adapters take too: all but `on_error`.

    For editors and type checkers. A test compares it with the signature.
    """

    api_key: ApiKey
    base_url: str | None
    headers: Mapping[str, str] | None
    proxy: str | None
    ca_bundle: str | PathLike[str] | None
    dimensions: int | None
    dtype: DType
    model_info: Mapping[str, Any] | None
    cache: Literal[False] | str | PathLike[str] | Cache | None
    query_prompt: str | None
    document_prompt: str | None
    on_long_text: LongText
    max_concurrency: int
    requests_per_minute: int | None
    tokens_per_minute: int | None
    max_batch_texts: int | None
    max_retries: int
    timeout: float | None
    deadline: float | None
    provider_options: Mapping[str, Any] | None
    rate_limiter: RateLimiter | None
    budget_usd: float | str | Decimal | None
    budget_tokens: int | None
    prices: Mapping[str, float | str | Decimal] | None
    progress: ProgressOption
    pickle_api_key: bool


class CommonOptions(EmbedderOptions, total=False):
    """The arguments of `Embedder`, and those of `COMMON_RULES` that are accepted."""

    openai_api_key: ApiKey
    voyage_api_key: ApiKey
    cohere_api_key: ApiKey
    openai_api_base: str | None
    output_dimension: int | None
    chunk_size: int | None
    truncation: bool | None
    truncate: Literal["END", "NONE"] | None
    show_progress_bar: bool | None
    show_progress: bool | None
    query_instruction: str | None
    default_headers: Mapping[str, str] | None
    azure_ad_token_provider: Callable[[], str] | None
    embedding_types: Sequence[str] | None
    output_dtype: str | None


@dataclass(frozen=True, slots=True)
class Alias:
    """An argument of another class that is one of ours; `convert` gives our value, None for none.

    None counts as not given, as it is the default in those classes, but for a `needed` one.
    """

    to: str
    convert: Callable[[str, Any], Any] | None = None
    needed: bool = False


@dataclass(frozen=True, slots=True)
class Ignored:
    """An argument that is accepted and does nothing, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Unsupported:
    """An argument that would change what is sent, and the way out; its `harmless` values ask for nothing."""

    fix: str
    allowed: tuple[Any, ...] = ()


Rule = Alias | Ignored | Unsupported


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
                useful = names | {alias for alias, one in rules.items() if isinstance(one, Alias)}
                raise unknown_argument(owner, name, sorted(useful), listed=sorted(names))
            if not isinstance(rule, Alias):
                _apply_rule(owner, name, value, rule)
                continue
            target = rule.to
            if value is not None and rule.convert:
                value = rule.convert(name, value)
            if value is None and not rule.needed:
                continue
        if taken.get(target) is not None:
            if value is not None and not same_value(taken[target], value):
                raise ConfigurationError(
                    f"{owner}: {spelled[target]}= and {name}= are the same argument; give one of them"
                )
            continue
        taken[target] = copy.deepcopy(value) if type(value) is dict else value
        spelled[target] = name
    return taken


def same_value(one: Any, other: Any) -> bool:
    """Compare two spellings' values, of whatever kind; a secret by what it holds."""
    one, other = (value.get_secret_value() if hasattr(value, "get_secret_value") else value for value in (one, other))
    try:
        return bool(one == other)
    except Exception:  # an array, say
        return False


def _apply_rule(owner: str, name: str, value: Any, rule: Rule) -> None:
    if value is None:
        return
    if isinstance(rule, Unsupported) and not any(same_value(value, harmless) for harmless in rule.allowed):
        raise ConfigurationError(f"{owner} takes no {name}: {rule.fix}")


def seconds(name: str, value: Any) -> float:
    """Give a timeout that is a number; the SDKs' own timeout objects bound parts of a request, ours the whole."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigurationError(f"{name} must be a number of seconds for the whole request, as in {name}=60.0")
    return float(value)


def long_text_policy(name: str, value: Any) -> str:
    """Give our rule for long texts in place of Voyage's truncation (True, False) and Cohere's truncate (END, NONE)."""
    known = {True: "truncate", False: "error", "END": "truncate", "NONE": "error"}
    try:
        return known[value]
    except (KeyError, TypeError):
        raise ConfigurationError(
            f"{name}={value!r}: use on_long_text='truncate' (cut at the end), 'error' or 'mean'"
        ) from None


def single_dtype(name: str, value: Any) -> str:
    """Give our dtype for Cohere's embedding_types (a list) and Voyage's output_dtype; both call float32 "float"."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or len(names) != 1 or not isinstance(names[0], str):
        raise ConfigurationError(f"{name}={value!r:.80}: an embedder has one type; give dtype='float32', 'int8', ...")
    return "float32" if names[0] == "float" else names[0]


def none_if_empty(name: str, value: Any) -> Any:  # noqa: ARG001 - the signature of a conversion
    """Give what is there, None for what is empty."""
    return value or None


def request_options(name: str, value: Any) -> dict[str, Any] | None:
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


ONE_CLIENT = "one client is kept for all callers; headers=, proxy= and ca_bundle= say how it connects"
AZURE = (
    "use Azure's v1 endpoint, which needs no version: model='azure:DEPLOYMENT', base_url="
    "'https://NAME.openai.azure.com', model_info={'like': 'openai:text-embedding-3-small'} for what it serves, "
    "api_key= Azure's key"
)

# Arguments that classes of both frameworks have.
COMMON_RULES: Final[Mapping[str, Rule]] = {
    "openai_api_key": Alias("api_key"),
    "voyage_api_key": Alias("api_key"),
    "cohere_api_key": Alias("api_key"),
    "openai_api_base": Alias("base_url"),
    "output_dimension": Alias("dimensions"),
    "chunk_size": Alias("max_batch_texts"),
    "truncation": Alias("on_long_text", long_text_policy),
    "truncate": Alias("on_long_text", long_text_policy),
    "show_progress_bar": Alias("progress"),
    "show_progress": Alias("progress"),
    "on_error": Unsupported("the host has no place for texts that failed; use .embedder, made with on_error='return'"),
    "normalize": Unsupported(
        "vectors have length 1 where their model promises it, and where they are made or cut here", (True,)
    ),
    "query_instruction": Alias("query_prompt"),
    "default_headers": Alias("headers", none_if_empty),
    "http_client": Unsupported(ONE_CLIENT),
    "api_version": Unsupported(AZURE, ("",)),
    "azure_endpoint": Unsupported(AZURE),
    "azure_deployment": Unsupported(AZURE),
    "azure_ad_token_provider": Alias("api_key"),
    "embedding_types": Alias("dtype", single_dtype),
    "output_dtype": Alias("dtype", single_dtype),
}
