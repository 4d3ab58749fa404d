"""Base class and settings of a provider, and the protocol of its client.

A provider only translates: settings to a request body, a reply to vectors, and an error response to a `ProviderError`.
The engine does retries, batching, caching and token counting.
"""

from __future__ import annotations

import importlib.util
import os
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, ClassVar, Protocol

from embedkit_core.common.errors import ConfigurationError, MissingExtraError
from embedkit_core.common.types import Batch, InputType, Limits, LongText, ModelInfo, Reply, Task
from embedkit_core.common.vectors import DType
from embedkit_core.providers.http.connection import Connection
from embedkit_core.providers.secrets import Hidden, Secret

SPECIAL_TOKENS = 4  # start, end and separator tokens of one text


@dataclass(frozen=True, slots=True)
class ProviderSettings:
    """Settings from which a provider is created.

    The settings contain only what the provider supports; the engine applies everything else to the replies.

    Attributes:
        name: Model name without the provider prefix.
        api_key: The user's API key; see `find_key` for the fallback to environment variables.
        base_url: The user's address, None for the provider's default.
        dimensions: Dimensions to request, None for the model's default.
        dtype: Dtype to request.
        query_prompt: The user's prompt before each query, None for the default.
        document_prompt: The user's prompt before each document, None for the default.
        task: The user's task, None for retrieval. The model's row has values for it.
        on_long_text: How texts over the model's limit are handled.
        options: The user's `provider_options`: additional fields of the request.
        info: The model's row of the catalogue, None if it has none.
        connection: Headers, proxy and CA bundle of the user.
    """

    name: str
    api_key: Secret | None = None
    base_url: str | None = None
    dimensions: int | None = None
    dtype: DType = "float32"
    query_prompt: str | None = None
    document_prompt: str | None = None
    task: Task | None = None
    on_long_text: LongText = "truncate"
    options: Mapping[str, Any] = field(default_factory=dict)
    info: ModelInfo | None = None
    connection: Connection = field(default_factory=Connection)

    def check_only_used(self, *used: str) -> None:
        """Reject settings that the user passed and the provider does not use.

        The names are those of the `Embedder` arguments: api_key, base_url, dimensions, query_prompt, document_prompt,
        provider_options, headers, proxy, ca_bundle and client_cert. The engine handles on_long_text if the provider
        does not.

        Args:
            *used: Names of the settings that the provider uses.

        Raises:
            ConfigurationError: A setting is not used. The message has the name of the first one.
        """
        is_passed = {
            "api_key": self.api_key is not None,
            "base_url": self.base_url is not None,
            "dimensions": self.dimensions is not None,
            "query_prompt": bool(self.query_prompt),  # an empty prompt has no effect
            "document_prompt": bool(self.document_prompt),
            "provider_options": bool(self.options),
            "headers": bool(self.connection.headers),
            "proxy": self.connection.proxy is not None,
            "ca_bundle": self.connection.ca_bundle is not None,
            "client_cert": self.connection.client_cert is not None,
        }
        if unknown := set(used) - is_passed.keys():
            raise TypeError(f"used: unknown settings (got {sorted(unknown)}). Use {', '.join(is_passed)}.")
        for name in is_passed:
            if is_passed[name] and name not in used:
                supported = f"Supported settings: {', '.join(used)}." if used else "It supports no settings."
                raise ConfigurationError(f"{name}: not supported by the model {self.name!r}. {supported}")

    def find_key(self, *variables: str) -> Secret | None:
        """Return the user's key, or the key of the first environment variable that is set, or None.

        A key passed in another process is not pickled. If no environment variable has a key either, the returned Secret
        is lost, and the first request raises AuthenticationError.
        """
        if self.api_key is not None and not self.api_key.is_lost:
            return self.api_key
        for variable in variables:
            if os.environ.get(variable):
                return Secret.checked(Hidden(os.environ[variable]), f"environment variable {variable}")
        return self.api_key

    @property
    def prompts(self) -> dict[InputType, str]:
        """Prompt of each input type: the user's, else that of the task, else the catalogue's, else an empty string."""
        defaults = self.info.prompts if self.info else {}
        if self.info and defaults and self.task:
            defaults = self.info.tasks[self.task]
        passed: dict[InputType, str | None] = {"query": self.query_prompt, "document": self.document_prompt}
        return {name: defaults.get(name, "") if prompt is None else prompt for name, prompt in passed.items()}

    def role_values(self, defaults: Mapping[InputType, str]) -> Mapping[InputType, str]:
        """Return the values of the provider's field for the input type: those of the task, else `defaults`.

        The tasks of a model with prompts are prompts, so it keeps `defaults`.
        """
        if self.task is None or self.info is None or self.info.prompts:
            return defaults
        return self.info.tasks[self.task]


class Client(Protocol):
    """Open connection to a provider, used on the engine's event loop."""

    async def embed(self, batch: Batch) -> Reply:
        """Embed the texts of one request.

        Returns:
            The vectors in the order of the texts.

        Raises:
            ProviderError: The provider refused or failed the request.
        """
        ...

    async def aclose(self) -> None:
        """Close the connection."""


class Provider(ABC):
    """One model of one provider, configured with the user's settings, created before any request.

    Attributes:
        name: Name of the provider in model strings.
        extra: Extra of rag-embedkit that installs the packages, None if none is needed.
        needs: Packages that must be installed.
        is_local: True if the model runs on this machine; requests to it have no timeout.
        truncates_long_texts: True if the provider itself truncates texts over the model's limit.
        may_truncate_silently: True if a text over the model's limit may be truncated without notice.
        key_variable: Environment variable of the API key.
        reserved_fields: Fields that `provider_options` may not set.
        dtypes: Dtypes that can be requested from a model without a catalogue row.
        takes_dimensions: True if dimensions can be requested from a model with a catalogue row.
        takes_roles: True if requests have a field for the input type, whose values are in `settings.role_values`.
        catalogue_providers: Providers whose catalogue rows apply to this one, its own first.
        served_providers: Other providers whose models it serves, with its own field for dimensions.
        returns_normalized: False if vectors of models without a catalogue row must be normalized locally.
        default_limits: Limits of models without a catalogue row.
        cache_key_provider: Provider name in cache keys. Two names of one service share it.
        telemetry_name: Provider name in telemetry.
        model: Model name sent to the provider.
        endpoint: Canonical address, "" for the provider's default host.
        address: Address of the requests if the provider has several hosts.
        account: Requests with the same account share a client and rate limits; from provider, endpoint and key.
        limits: Limits of a request.
        secret: API key. If it has a source, it is refreshed before each request.
        connection: Headers, proxy and CA bundle of the user.
        dimensions: Width of the vectors, None if only a reply shows it.
        batch_endpoint: Its batch endpoint as "module:class", a `BatchEndpoint`. None if it has none.
        usd_per_million: Price in USD per million input tokens, None if unknown.
        usd_per_million_batch: Price of the batch endpoint, None if unknown.
        has_confirmed_price: False if the price is from another source than the provider.
        encodings: Encodings that requests ask for, for telemetry; empty if the provider has no choice.
    """

    name: ClassVar[str]
    extra: ClassVar[str | None] = None
    needs: ClassVar[tuple[str, ...]] = ()
    is_local: ClassVar[bool] = False
    truncates_long_texts: ClassVar[bool] = False
    key_variable: ClassVar[str | None] = None
    reserved_fields: ClassVar[frozenset[str]] = frozenset({"model", "input", "dimensions", "prompt", "role"})
    dtypes: ClassVar[tuple[DType, ...]] = ("float32",)
    takes_dimensions: ClassVar[bool] = True
    takes_roles: ClassVar[bool] = False
    catalogue_providers: ClassVar[tuple[str, ...]] = ()
    served_providers: ClassVar[tuple[str, ...]] = ()
    returns_normalized: ClassVar[bool] = True
    default_limits: ClassVar[Limits] = Limits()
    cache_key_provider: ClassVar[str]
    telemetry_name: ClassVar[str]

    model: str
    endpoint: str = ""
    address: str | None = None
    may_truncate_silently: bool = False
    account: Hashable
    limits: Limits
    secret: Secret | None = None
    connection: Connection = Connection()
    dimensions: int | None = None
    batch_endpoint: str | None = None
    usd_per_million: Decimal | None = None
    usd_per_million_batch: Decimal | None = None
    has_confirmed_price: bool = True
    encodings: tuple[str, ...] = ()

    @abstractmethod
    def __init__(self, settings: ProviderSettings) -> None: ...

    @classmethod
    def default_info(cls, name: str) -> ModelInfo:
        """Return the assumptions about a model without a catalogue row; `model_info` overrides them."""
        unit = None if cls.returns_normalized else False
        return ModelInfo(
            *(cls.cache_key_provider, name, None, None, cls.default_limits, None, "unknown", ""),
            dtypes=cls.dtypes,
            unit_length=unit,
        )

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if "cache_key_provider" not in vars(cls) and "name" in vars(cls):
            cls.cache_key_provider = cls.name
        if "telemetry_name" not in vars(cls) and "name" in vars(cls):
            cls.telemetry_name = cls.name

    @property
    def max_text_tokens(self) -> int | None:
        """Maximum tokens of a text before the provider refuses or truncates it, None if unknown."""
        return self.limits.text_tokens

    @abstractmethod
    def request_body(self, input_type: InputType) -> dict[str, Any]:
        """Return the request without its texts: everything that changes a vector and nothing else. JSON values only."""

    def truncating_body(self, input_type: InputType) -> dict[str, Any] | None:  # noqa: ARG002 - used by overrides
        """Return the request with which the provider truncates texts to its limit, None if it cannot.

        A text is first sent with `request_body`, which makes the provider refuse a text that is too long. A text is
        sent with this body after such a refusal, or at once if its estimate is far over the limit. So the engine knows
        which texts were truncated.
        """
        return None

    @property
    def url(self) -> str | None:
        """Address of the requests, None if there is none or it depends on the key of each request."""
        return self.address or self.endpoint or None

    @property
    def identity_url(self) -> str | None:
        """Canonical spelling of the user's `base_url`, None for the provider's default host."""
        return self.endpoint or None

    def overhead_tokens(self, input_type: InputType) -> int:
        """Return the maximum number of billed tokens per text besides its own: the prompt and special tokens.

        A budget reserves this many additional tokens for each text.
        """
        return len(str(self.request_body(input_type).get("prompt", "")).encode()) + SPECIAL_TOKENS

    @abstractmethod
    def connect(self) -> Client:
        """Create a client. Called before the first request on a thread without an event loop; import SDKs here.

        What needs the running event loop is opened in the client's `embed`, which runs on the engine's loop.
        """

    def count_tokens(self, text: str) -> int | None:  # noqa: ARG002 - used by overrides
        """Return the length of a text in tokens, None if it cannot be counted without a download."""
        return None

    @classmethod
    def catalogue_name(cls, name: str) -> str:
        """Return the catalogue's name of the model that the user calls `name`."""
        return name

    @classmethod
    def catalogue_providers_at(cls, base_url: str | None) -> tuple[str, ...]:  # noqa: ARG003 - used by overrides
        """Return the providers whose catalogue rows apply at an address, its own first."""
        return cls.catalogue_providers or (cls.name,)

    @classmethod
    def is_own_host(cls, base_url: str | None) -> bool:
        """Return True if an address is the provider's own, whose models are in the catalogue."""
        return base_url is None

    @classmethod
    def check_installed(cls) -> None:
        """Check that the required packages are installed, without importing them.

        Raises:
            MissingExtraError: A package is missing.
        """
        if not all(map(is_installed, cls.needs)):
            raise MissingExtraError(f"the {cls.name} provider", cls.extra or cls.name)


def is_installed(package: str) -> bool:
    """Return True if a package can be found; the parents of one with a dot are imported."""
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False
