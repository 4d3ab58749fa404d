"""Base class of HTTP providers: settings, API key, endpoint and account."""

from __future__ import annotations

from typing import Any, ClassVar

from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.types import Batch, InputType
from embedkit_core.providers.base import Provider, ProviderSettings
from embedkit_core.providers.secrets import PLACEHOLDER_KEY, Secret

# A day. SDKs treat None as a default of their own: 300 seconds (Cohere), 600 seconds (Voyage).
SDK_TIMEOUT_SECONDS = 86_400.0


def sdk_timeout(batch: Batch) -> float:
    """Return the seconds to wait for the reply to a batch, for an SDK without a value for no limit."""
    return SDK_TIMEOUT_SECONDS if batch.timeout is None else batch.timeout


def cache_platform_names() -> None:
    """Read the names of the platform, which SDKs send in headers and the standard library caches.

    The first read starts a subprocess, which would block the event loop; a child that is forked meanwhile could hang.
    """
    import platform  # not needed by a process that only reads its cache

    platform.platform()
    _ = platform.uname().processor


class HTTPProvider(Provider):
    """A model behind an HTTP API. A subclass adds the address, the fields of a request and the client.

    Attributes:
        dimensions_field: Name of the request field for the dimensions.
    """

    dimensions_field: ClassVar[str] = "dimensions"

    secret: Secret

    def __init__(self, settings: ProviderSettings, canonical: str, secret: Secret | None, *, needs_key: bool) -> None:
        """Set the attributes that all HTTP providers share.

        Args:
            settings: The user's settings for this model.
            canonical: The canonical address of the requests, "" if it depends on the key of each request.
            secret: The API key, None if there is none.
            needs_key: True if a server at a custom address needs a key too.

        Raises:
            ConfigurationError: The API key is missing and the server needs one.
        """
        info = settings.info
        default = info.dimensions if info else None
        self.model = settings.name
        self.endpoint = "" if self.is_own_host(settings.base_url) else canonical
        if secret is None and (needs_key or not self.endpoint):
            raise ConfigurationError(
                f"No API key for {self.name}:{self.model}. Pass api_key= or set the environment variable "
                f"{self.key_variable}."
            )
        # Set once, here, so that no code makes it None.
        self.secret = secret or Secret(PLACEHOLDER_KEY)  # pyright: ignore[reportIncompatibleVariableOverride]
        self.connection = settings.connection
        self.account = (self.name, canonical, self.secret.fingerprint, self.connection.fingerprint)
        self.dimensions = settings.dimensions or default
        self.limits = info.limits if info else self.default_limits
        self.usd_per_million = info.usd_per_million if info else None
        self.usd_per_million_batch = info.usd_per_million_batch if info else None
        self.has_confirmed_price = info.confirmed if info else True
        self._sent_dimensions = self.dimensions if self.dimensions != default else None
        self._options = dict(settings.options)
        self._prompts = settings.prompts

    def request_fields(self, input_type: InputType, /, **fields: Any) -> dict[str, Any]:
        """Return the request body without texts: model, `fields`, dimensions, options and prompt.

        The client adds `prompt` before each text and does not send it as a field.
        """
        body = {"model": self.model, **fields}
        if self._sent_dimensions is not None:
            body[self.dimensions_field] = self._sent_dimensions
        body |= self._options
        if self._prompts[input_type]:
            body["prompt"] = self._prompts[input_type]
        return body
