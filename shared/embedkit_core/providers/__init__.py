"""What a provider is: a name, facts, and one async method; and where the installed ones are found.

A provider translates and decides nothing: it turns settings into a request, a reply into vectors, and a refusal into
one of our errors. Retrying, batching, caching and counting are done around it.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar, Protocol

from embedkit_core.errors import ConfigurationError, MissingExtraError
from embedkit_core.secrets import Secret
from embedkit_core.types import Batch, InputType, Limits, LongText, ModelInfo, Reply

GROUP = "embedkit_core.providers"


@dataclass(frozen=True, slots=True)
class ProviderSettings:
    """What a provider is made from: the user's settings for it, and the catalogue's row where there is one."""

    name: str
    api_key: Secret | None = None
    base_url: str | None = None
    dimensions: int | None = None
    query_prompt: str | None = None
    document_prompt: str | None = None
    on_long_text: LongText = "truncate"
    options: Mapping[str, Any] = field(default_factory=dict)
    info: ModelInfo | None = None


class Client(Protocol):
    """An open connection to a provider; lives on the engine's loop."""

    async def embed(self, batch: Batch) -> Reply:
        """Embed the texts of one request, vectors in the order asked; raise one of our errors on a refusal."""

    async def aclose(self) -> None:
        """Close the connection."""


class Provider(ABC):
    """One model at one provider, as the user's settings name it; made before any I/O.

    `endpoint` is "" at the provider's own host, else its canonical address. `account` names what shares a bound and a
    client: provider, endpoint and credential. `dimensions` is the width of the vectors, None where only a reply can
    tell. A model `on_this_machine` has as long as it takes: no timeout applies. `cuts_long_texts` says that the
    provider itself cuts a text over its limit, `key_variable` which environment variable its key comes from.
    `own_fields` are those of the wire that the user's options may not name, because arguments of ours or the provider
    set them.
    """

    name: ClassVar[str]
    extra: ClassVar[str | None] = None
    needs: ClassVar[tuple[str, ...]] = ()
    on_this_machine: ClassVar[bool] = False
    cuts_long_texts: ClassVar[bool] = False
    key_variable: ClassVar[str | None] = None
    own_fields: ClassVar[frozenset[str]] = frozenset({"model", "input", "dimensions", "prompt", "role"})

    model: str
    endpoint: str = ""
    account: Hashable
    limits: Limits
    dimensions: int | None = None
    usd_per_million: Decimal | None = None

    @abstractmethod
    def __init__(self, settings: ProviderSettings) -> None: ...

    @abstractmethod
    def wire(self, input_type: InputType) -> dict[str, Any]:
        """Give the request without its texts: all that changes a vector, and nothing else. JSON values only."""

    @abstractmethod
    def connect(self) -> Client:
        """Open a client; called on the loop thread at the first request. SDKs are imported here."""

    @classmethod
    def is_own_host(cls, base_url: str | None) -> bool:
        """Tell whether an address is the provider's own, whose models the catalogue knows."""
        return base_url is None

    @classmethod
    def check_installed(cls) -> None:
        """Raise MissingExtraError unless the packages this provider needs are there, without importing them."""
        if any(importlib.util.find_spec(package) is None for package in cls.needs):
            raise MissingExtraError(f"the {cls.name} provider", cls.extra or cls.name)


@cache
def _registered() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def is_provider(name: str) -> bool:
    """Tell whether a provider is registered under a name."""
    return name in _registered()


def provider_names() -> list[str]:
    """Give the names of the registered providers, but for those that are there for tests."""
    return sorted(name for name, point in _registered().items() if not point.value.startswith("embedkit_core.testing"))


def provider_class(name: str) -> type[Provider]:
    """Give the class registered under a name."""
    loaded: type[Provider] = _registered()[name].load()
    return loaded


def check_dimensions(model: str, asked: int | None, info: ModelInfo | None) -> None:
    """Raise ConfigurationError where the catalogue knows that a model does not offer the dimensions asked for."""
    if asked is None:
        return
    if isinstance(asked, bool) or not isinstance(asked, int) or asked < 1:
        raise ConfigurationError(f"dimensions={asked!r} is not a positive whole number")
    allowed = info.allowed_dimensions if info else None
    if allowed is not None and asked not in allowed:
        if isinstance(allowed, range):
            offered = f"{allowed.start} to {allowed.stop - 1}"
        else:
            offered = ", ".join(map(str, allowed))
        raise ConfigurationError(f"{model} does not offer {asked} dimensions; it offers {offered}")
