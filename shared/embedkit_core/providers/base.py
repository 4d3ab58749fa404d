"""What a provider is: a name, facts, and one async method; and where the installed ones are found.

A provider translates and decides nothing: it turns settings into a request, a reply into vectors, and a refusal into
one of our errors. Retrying, batching, caching and counting are done around it.
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
from embedkit_core.common.types import Batch, InputType, Limits, LongText, ModelInfo, Reply
from embedkit_core.common.vectors import DType
from embedkit_core.providers.http.connection import Connection
from embedkit_core.providers.secrets import Secret, clean

SPECIAL_TOKENS = 4  # tokens that begin, end or separate a text


@dataclass(frozen=True, slots=True)
class ProviderSettings:
    """What a provider is made from: the user's settings for it, and the catalogue's row where there is one.

    `dimensions` are those to ask for, None for the model's own; `dtype` the one to ask for. What the provider does not
    offer is done to its replies by others: it is not told.
    """

    name: str
    api_key: Secret | None = None
    base_url: str | None = None
    dimensions: int | None = None
    dtype: DType = "float32"
    query_prompt: str | None = None
    document_prompt: str | None = None
    on_long_text: LongText = "truncate"
    options: Mapping[str, Any] = field(default_factory=dict)
    info: ModelInfo | None = None
    connection: Connection = field(default_factory=Connection)

    def check_only_used(self, *used: str) -> None:
        """Refuse the settings that were given and that the provider does not use, named as the user names them.

        They are api_key, base_url, dimensions, query_prompt, document_prompt, provider_options, headers, proxy and
        ca_bundle; on_long_text is not among them, since the engine sees to it where the provider does not cut texts.

        Raises:
            ConfigurationError: naming the first of them.
        """
        given = {
            "api_key": self.api_key,
            "base_url": self.base_url,
            "dimensions": self.dimensions,
            "query_prompt": self.query_prompt or None,  # an empty prompt is none
            "document_prompt": self.document_prompt or None,
            "provider_options": self.options or None,
            "headers": self.connection.headers or None,
            "proxy": self.connection.proxy,
            "ca_bundle": self.connection.ca_bundle,
        }
        if strangers := set(used) - given.keys():
            raise TypeError(f"there are no settings {sorted(strangers)}; there are {', '.join(given)}")
        for name, value in given.items():
            if value is not None and name not in used:
                takes = f"it takes {', '.join(used)}" if used else "it takes no settings"
                raise ConfigurationError(f"the model {self.name!r} takes no {name}; {takes}")

    def find_key(self, *variables: str) -> Secret | None:
        """Return the user's key, else the first that these environment variables have, else None.

        A key that was given in another process stays there: where the environment has none either, the Secret is lost,
        and revealing it is the AuthenticationError of the first request.
        """
        if self.api_key is not None and not self.api_key.is_lost:
            return self.api_key
        for variable in variables:
            if found := os.environ.get(variable):
                return Secret(clean(found, f"the environment variable {variable}"))
        return self.api_key

    @property
    def prompts(self) -> dict[InputType, str]:
        """The prompt for each input type: the user's, else the catalogue's; empty where there is none."""
        known = self.info.prompts if self.info else {}
        given: dict[InputType, str | None] = {"query": self.query_prompt, "document": self.document_prompt}
        return {role: known.get(role, "") if prompt is None else prompt for role, prompt in given.items()}


class Client(Protocol):
    """An open connection to a provider; lives on the engine's loop."""

    async def embed(self, batch: Batch) -> Reply:
        """Embed the texts of one request, vectors in the order asked; raise one of our errors on a refusal."""

    async def aclose(self) -> None:
        """Close the connection."""


class Provider(ABC):
    """One model at one provider, as the user's settings name it; made before any I/O.

    `endpoint` is "" at the provider's own host, else its canonical address; `address` is where requests go, where the
    provider has several hosts. `account` names what shares a bound and a client: provider, endpoint and credential.
    `dimensions` is the width of the vectors, None where only a reply can tell. A model `is_local` has as long as
    it takes: no timeout applies. `truncates_long_texts` says that the provider itself cuts a text over its limit,
    `key_variable` which environment variable its key comes from. `reserved_fields` are those that the user's
    options may not name, because arguments of ours or the provider set them. `dtypes` are those that a model which is
    not in the catalogue can be asked for, `takes_dimensions` says whether a model that is in it can be. `catalogue_providers`
    are those whose models it may serve, its own first; `cache_key_provider` stands for it in keys, where two names lead to one. Where it `returns_normalized` or says nothing of it, rows of a model that is
    not in the catalogue stay as they come; else they are brought to length 1. A request to such a model has the
    `default_limits`. A `secret` that changes is asked for anew before each request. Telemetry has its `telemetry_name`,
    and the `encodings` that requests ask for vectors in, as the provider names them; empty if it offers no choice.
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
    catalogue_providers: ClassVar[tuple[str, ...]] = ()
    returns_normalized: ClassVar[bool] = True
    default_limits: ClassVar[Limits] = Limits()
    cache_key_provider: ClassVar[str]
    telemetry_name: ClassVar[str]

    model: str
    endpoint: str = ""
    address: str | None = None
    account: Hashable
    limits: Limits
    secret: Secret | None = None
    connection: Connection = Connection()
    dimensions: int | None = None
    usd_per_million: Decimal | None = None
    encodings: tuple[str, ...] = ()

    @abstractmethod
    def __init__(self, settings: ProviderSettings) -> None: ...

    @classmethod
    def default_info(cls, name: str) -> ModelInfo:
        """Give what is thought of a model that is not in the catalogue, where the user says the rest."""
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
        """The tokens a text may have before it is refused or cut; None where that is not known."""
        return self.limits.text_tokens

    @abstractmethod
    def request_body(self, input_type: InputType) -> dict[str, Any]:
        """Give the request without its texts: all that changes a vector, and nothing else. JSON values only."""

    def truncating_body(self, input_type: InputType) -> dict[str, Any] | None:  # noqa: ARG002 - for those who can
        """Give the request by which the provider itself cuts texts to its limit; None where it cannot be asked to.

        A text goes out by `wire` first, which has it refused if it is too long, and by this one after that: so it is
        known which texts were cut.
        """
        return None

    @property
    def url(self) -> str | None:
        """The address requests go to; None where there is none, or only a key that changes tells."""
        return self.address or self.endpoint or None

    def overhead_tokens(self, input_type: InputType) -> int:
        """Give how many tokens a text may be billed at beside its own, at most: a prompt's bytes, and marks around it.

        A budget holds that much back for each text.
        """
        return len(str(self.request_body(input_type).get("prompt", "")).encode()) + SPECIAL_TOKENS

    @abstractmethod
    def connect(self) -> Client:
        """Open a client; called on the loop thread at the first request. SDKs are imported here."""

    def count_tokens(self, text: str) -> int | None:  # noqa: ARG002 - for those who can
        """Give the length of a text in tokens, where that can be told here without fetching anything; else None."""
        return None

    @classmethod
    def catalogue_name(cls, name: str) -> str:
        """Give the name by which the catalogue lists the model that a user names so."""
        return name

    @classmethod
    def is_own_host(cls, base_url: str | None) -> bool:
        """Tell whether an address is the provider's own, whose models the catalogue knows."""
        return base_url is None

    @classmethod
    def check_installed(cls) -> None:
        """Raise MissingExtraError unless the packages this provider needs are there, without importing them."""
        if any(importlib.util.find_spec(package) is None for package in cls.needs):
            raise MissingExtraError(f"the {cls.name} provider", cls.extra or cls.name)
