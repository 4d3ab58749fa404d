"""Argument tables: how the arguments of the replaced framework classes map to embedkit's. No I/O."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from os import PathLike
from typing import Any, Final, Literal, Protocol, TypeAlias, TypedDict

from embedkit_core.cache.embedder_cache import CacheArgument
from embedkit_core.cache.urls import mask_secrets
from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.types import EmptyText, LongText, RateLimiter, Task
from embedkit_core.common.validation import unknown_argument
from embedkit_core.common.vectors import DType
from embedkit_core.config.coordination import CoordinationArgument
from embedkit_core.config.roles import InBatch
from embedkit_core.observability.progress import ProgressOption
from embedkit_core.providers.catalogue.known_models import KnownModel
from embedkit_core.providers.http.connection import ClientCert
from embedkit_core.providers.secrets import SECRET_ARGUMENTS, SIGN_IN, Hidden, hide, mask_key, mask_login, reveal

__all__ = [
    "AWS_KEYS",
    "AZURE",
    "BACKOFF",
    "COMMON_RULES",
    "NOT_GIVEN",
    "ONE_CLIENT",
    "ROLE_FIX",
    "Alias",
    "ApiKey",
    "CommonOptions",
    "EmbedderOptions",
    "Ignored",
    "KnownModel",
    "Rule",
    "Unsupported",
    "default_model",
    "errors_name",
    "hide_arguments",
    "mask_key",
    "none_if_empty",
    "request_options",
    "seconds",
    "sign_in",
    "single_dtype",
    "take_arguments",
]


class SecretString(Protocol):
    """A string whose value is hidden in logs, such as pydantic's SecretStr."""

    def get_secret_value(self) -> str:
        """Return the value."""
        ...


ApiKey: TypeAlias = str | SecretString | Callable[[], str] | None


class EmbedderOptions(TypedDict, total=False):
    """Keyword arguments that the adapters share with `embedkit_core.Embedder`: all except `on_error`.

    Used by editors and type checkers. A test compares it with the signature.
    """

    api_key: ApiKey
    base_url: str | None
    headers: Mapping[str, str] | None
    proxy: str | None
    ca_bundle: str | PathLike[str] | None
    client_cert: ClientCert | None
    dimensions: int | None
    dtype: DType
    model_info: Mapping[str, Any] | None
    cache: CacheArgument
    coordination: CoordinationArgument
    account: str | None
    query_prompt: str | None
    document_prompt: str | None
    task: Task | None
    on_long_text: LongText
    on_empty_text: EmptyText
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
    budget_name: str | None
    prices: Mapping[str, float | str | Decimal] | None
    progress: ProgressOption
    in_batch: InBatch
    pickle_api_key: bool


class CommonOptions(EmbedderOptions, total=False):
    """Arguments of `Embedder` and the accepted arguments of `COMMON_RULES`."""

    openai_api_key: ApiKey
    voyage_api_key: ApiKey
    cohere_api_key: ApiKey
    google_api_key: ApiKey
    mistral_api_key: ApiKey
    nvidia_api_key: ApiKey
    nomic_api_key: ApiKey
    jina_api_key: ApiKey
    fireworks_api_key: ApiKey
    together_api_key: ApiKey
    dashscope_api_key: ApiKey
    huggingfacehub_api_token: ApiKey
    openai_api_base: str | None
    output_dimension: int | None
    output_dimensionality: int | None
    chunk_size: int | None
    truncation: bool | None
    truncate: Literal["END", "NONE"] | None
    show_progress_bar: bool | None
    show_progress: bool | None
    query_instruction: str | None
    default_headers: Mapping[str, str] | None
    azure_endpoint: str | None
    azure_ad_token_provider: Callable[[], str] | None
    embedding_types: Sequence[str] | None
    output_dtype: str | None


@dataclass(frozen=True, slots=True)
class Alias:
    """An argument of a replaced class that has an embedkit counterpart.

    Attributes:
        to: Name of the embedkit argument.
        convert: Function of the name and the value that returns the embedkit value, or None to leave it unset.
        required: If False, None means "not set", which is its meaning in the replaced classes.
        only: Beginning of the names of the models that have the argument.
        fix: What to do for other models.
    """

    to: str
    convert: Callable[[str, Any], Any] | None = None
    required: bool = False
    only: str = ""
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Ignored:
    """An argument that is accepted and has no effect, with the reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class Unsupported:
    """An argument that is rejected unless its value is one of `allowed`, which change nothing."""

    fix: str
    allowed: tuple[Any, ...] = ()


Rule = Alias | Ignored | Unsupported


class _NotGiven:
    def __repr__(self) -> str:
        return "<not given>"


NOT_GIVEN: Any = _NotGiven()  # not None, which may be an unset variable of the user


def hide_arguments(arguments: Mapping[str, Any], fields: Container[str], rules: Mapping[str, Rule]) -> dict[str, Any]:
    """Return the arguments of an adapter with those hidden that may hold a secret, which includes unknown ones.

    Called before anything that may raise an error: see `Hidden`.
    """
    return {name: _hidden(_target(name, fields, rules), value) for name, value in arguments.items()}


def _target(name: str, fields: Container[str], rules: Mapping[str, Rule]) -> str | None:
    """Return the field that an argument sets, None if it sets none."""
    rule = rules.get(name)
    return name if name in fields else rule.to if isinstance(rule, Alias) else None


def _hidden(target: str | None, value: Any) -> Any:
    if target is None or target in SECRET_ARGUMENTS:
        return hide(value)
    if target in ("model", "model_name"):
        return mask_key(value)
    if target in ("cache", "coordination"):
        return mask_secrets(value)
    return mask_login(value) if target == "base_url" else value


def take_arguments(
    class_name: str, arguments: Mapping[str, Any], fields: Iterable[str], rules: Mapping[str, Rule]
) -> dict[str, Any]:
    """Return the values of the adapter's fields, translated from the arguments of the classes it replaces.

    Args:
        class_name: The adapter class, for error messages.
        arguments: The arguments of the constructor, from `hide_arguments`.
        fields: Names of the adapter's own fields.
        rules: Rules for all other arguments.

    Raises:
        ConfigurationError: An argument is unknown or unsupported, or two spellings of one argument have different
            values.
    """
    names = set(fields)
    values: dict[str, Any] = {}
    spelling: dict[str, str] = {}
    for name, value in arguments.items():
        target = name
        if name not in names:
            rule = rules.get(name)
            if rule is None:
                useful = names | {alias for alias, one in rules.items() if isinstance(one, Alias)}
                raise unknown_argument(class_name, name, sorted(useful), listed=sorted(names))
            if not isinstance(rule, Alias):
                _apply_rule(class_name, name, value, rule)
                continue
            target = rule.to
            if value is not None and rule.convert:
                converted = rule.convert(name, reveal(value))
                value = hide(converted) if isinstance(value, Hidden) else converted
                del converted
            if value is None and not rule.required:
                continue
        if values.get(target) is not None:
            if value is not None and not same_value(values[target], value):
                raise ConfigurationError(
                    f"{class_name}: {spelling[target]}= and {name}= are the same argument and differ. Pass one of them."
                )
            continue
        values[target] = copy.deepcopy(value) if type(value) is dict else value
        spelling[target] = name
    model = values.get("model", values.get("model_name"))
    for name in spelling.values():
        rule = rules.get(name)
        if isinstance(rule, Alias) and not str(model).startswith(rule.only):
            raise ConfigurationError(f"{class_name}: {name}= is not supported. {rule.fix}")
    return values


@contextmanager
def errors_name(given: Iterable[str], rules: Mapping[str, Rule]) -> Iterator[None]:
    """Begin the message of a ConfigurationError with the name that the user wrote, if it is another one.

    Args:
        given: The names that the user wrote.
        rules: The rules that translate them.
    """
    try:
        yield
    except ConfigurationError as error:
        target, colon, rest = str(error).partition(":")
        for name in given:
            if isinstance(rule := rules.get(name), Alias) and rule.to == target and colon:
                error.args = (f"{name} ({target}):{rest}",)
                break
        raise


def same_value(one: Any, other: Any) -> bool:
    """Return True if two values are equal; secrets are compared by their content."""
    try:
        return bool(plain(one) == plain(other))
    except Exception:  # for example, an array has no truth value
        return False


def plain(value: Any) -> Any:
    """Return the content of a hidden value or a secret string, any other value unchanged."""
    value = reveal(value)
    return value.get_secret_value() if hasattr(value, "get_secret_value") else value


def _apply_rule(class_name: str, name: str, value: Any, rule: Rule) -> None:
    if value is None:
        return
    if isinstance(rule, Unsupported) and not any(same_value(value, allowed) for allowed in rule.allowed):
        raise ConfigurationError(f"{class_name}: {name}= is not supported. {rule.fix}")


def seconds(name: str, value: Any) -> float:
    """Return a timeout in seconds. Timeout objects of SDKs are rejected: they limit parts of a request."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigurationError(
            f"{name}: must be a number of seconds for the whole request (got {type(value).__name__}). "
            f"Use for example {name}=60.0."
        )
    return float(value)


def long_text_policy(name: str, value: Any) -> str:
    """Return `on_long_text` for Voyage's `truncation` (True, False) or Cohere's `truncate` (END, NONE)."""
    policies = {True: "truncate", False: "error", "END": "truncate", "NONE": "error"}
    try:
        return policies[value]
    except (KeyError, TypeError):
        raise ConfigurationError(
            f"{name}: unknown value (got {value!r}). Use on_long_text='truncate' (truncate at the end), 'error' or "
            "'mean'."
        ) from None


def single_dtype(name: str, value: Any) -> str:
    """Return `dtype` for Cohere's `embedding_types` (a list) or Voyage's `output_dtype`; both call float32 "float"."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or len(names) != 1 or not isinstance(names[0], str):
        raise ConfigurationError(
            f"{name}: an embedder has one dtype (got {value!r:.80}). Use dtype='float32', 'int8', ..."
        )
    return "float32" if names[0] == "float" else names[0]


def sign_in(name: str, value: Any) -> str | None:
    """Return `api_key` for LlamaIndex's `use_azure_ad`."""
    if not isinstance(value, bool):
        raise ConfigurationError(f"{name}: must be True or False (got {type(value).__name__}).")
    return SIGN_IN if value else None


def none_if_empty(name: str, value: Any) -> Any:  # noqa: ARG001 - the signature of a conversion
    """Return `value`, or None if it is empty."""
    return value or None


def request_options(name: str, value: Any) -> dict[str, Any] | None:
    """Return additional fields of the request body, including those in the SDKs' `extra_body`.

    `encoding_format` is left out: replies in every encoding are decoded.
    """
    if not isinstance(value, Mapping):
        raise ConfigurationError(
            f"{name}: must be a mapping from request fields to values (got {type(value).__name__})."
        )
    fields = {**value, **value["extra_body"]} if isinstance(value.get("extra_body"), Mapping) else dict(value)
    return {field: fields[field] for field in fields if field not in ("encoding_format", "extra_body")} or None


def default_model(class_name: str, replaced: str) -> str:
    """Return the default model of the replaced class and warn, since vectors must match an existing index."""
    model = "text-embedding-ada-002"
    warnings.warn(
        f"{class_name}() without model= uses {model!r}, as {replaced}() does, so that an existing index still matches. "
        "Pass model= explicitly. For a new index, model='openai:text-embedding-3-small' costs a fifth.",
        stacklevel=3,
    )
    return model


ONE_CLIENT = "All callers share one client. Configure it with headers=, proxy=, ca_bundle= and client_cert=."
AZURE = (
    "Use Azure's v1 endpoint, which needs no API version: model='azure:DEPLOYMENT', base_url="
    "'https://NAME.openai.azure.com', model_info={'like': 'openai:text-embedding-3-small'} for the deployed model, "
    "and api_key= for the Azure key, or api_key='azure-identity' for Entra ID. A gateway without the v1 endpoint takes "
    "the version in its address: base_url='https://GATEWAY?api-version=2024-10-21'."
)
BACKOFF = "Retries wait for the server's Retry-After, else back off exponentially with full jitter, across all callers."
ROLE_FIX = (
    "Queries and documents have different vectors without it, by the method that is called. For another task, use task="
    "'classification', 'clustering', 'similarity' or 'code'."
)
AWS_KEYS = (
    "Set AWS_PROFILE, or AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, in the environment. Or pass "
    "an API key of Bedrock as api_key=."
)

# Arguments of classes in both frameworks.
COMMON_RULES: Final[Mapping[str, Rule]] = {
    "openai_api_key": Alias("api_key"),
    "voyage_api_key": Alias("api_key"),
    "cohere_api_key": Alias("api_key"),
    "google_api_key": Alias("api_key"),
    "mistral_api_key": Alias("api_key"),
    "nvidia_api_key": Alias("api_key"),
    "nomic_api_key": Alias("api_key"),
    "jina_api_key": Alias("api_key"),
    "fireworks_api_key": Alias("api_key"),
    "together_api_key": Alias("api_key"),
    "dashscope_api_key": Alias("api_key"),
    "huggingfacehub_api_token": Alias("api_key"),
    "openai_api_base": Alias("base_url"),
    "output_dimension": Alias("dimensions"),
    "output_dimensionality": Alias("dimensions"),
    "chunk_size": Alias("max_batch_texts"),
    "truncation": Alias("on_long_text", long_text_policy),
    "truncate": Alias("on_long_text", long_text_policy),
    "show_progress_bar": Alias("progress"),
    "show_progress": Alias("progress"),
    "on_error": Unsupported(
        "The framework cannot return failed texts. Use embedkit_core.Embedder with on_error='return'."
    ),
    "normalize": Unsupported(
        "Vectors are normalized if the model documents it, or if they are computed or truncated here.", (True,)
    ),
    "query_instruction": Alias("query_prompt"),
    "default_headers": Alias("headers", none_if_empty),
    "http_client": Unsupported(ONE_CLIENT),
    "api_version": Unsupported(AZURE, ("",)),
    "azure_endpoint": Alias("base_url", only="azure:", fix=AZURE),
    "azure_deployment": Unsupported(AZURE),
    "azure_ad_token_provider": Alias("api_key"),
    "embedding_types": Alias("dtype", single_dtype),
    "output_dtype": Alias("dtype", single_dtype),
    "task_type": Unsupported(ROLE_FIX),
    "input_type": Unsupported(ROLE_FIX),
    "title": Unsupported("Write the title at the beginning of the text.", ("",)),
    "region_name": Unsupported(
        "Set the environment variable AWS_REGION, or base_url='https://bedrock-runtime.REGION.amazonaws.com'."
    ),
    "aws_access_key_id": Unsupported(AWS_KEYS),
    "aws_secret_access_key": Unsupported(AWS_KEYS),
    "aws_session_token": Unsupported(AWS_KEYS),
}
