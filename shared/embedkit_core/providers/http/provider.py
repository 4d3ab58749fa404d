"""Base class of the providers that are reached through HTTP: settings, key, endpoint and account."""

from __future__ import annotations

from typing import Any, ClassVar

from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.types import InputType
from embedkit_core.providers.base import Provider, ProviderSettings
from embedkit_core.providers.secrets import Secret

PLACEHOLDER_KEY = "no-key-needed"


class HTTPProvider(Provider):
    """A model behind an HTTP API; a subclass adds the address, the fields of a request and the client.

    `dimensions_field` names the field of a request that has the dimensions.
    """

    dimensions_field: ClassVar[str] = "dimensions"

    secret: Secret

    def __init__(self, settings: ProviderSettings, canonical: str, secret: Secret | None, *, needs_key: bool) -> None:
        """Read the settings that every HTTP provider has.

        Args:
            settings: The user's settings for this model.
            canonical: The canonical address of the requests, "" if each request's key decides it.
            secret: The key, None if there is none.
            needs_key: Whether a server at another address than the provider's own needs a key too.

        Raises:
            ConfigurationError: There is no key, and the server needs one.
        """
        info = settings.info
        default = info.dimensions if info else None
        self.model = settings.name
        self.endpoint = "" if self.is_own_host(settings.base_url) else canonical
        if secret is None and (needs_key or not self.endpoint):
            raise ConfigurationError(
                f"no API key for {self.name}:{self.model}: pass api_key=, or set the environment variable "
                f"{self.key_variable}"
            )
        self.secret = secret or Secret(PLACEHOLDER_KEY)
        self.connection = settings.connection
        self.account = (self.name, canonical, self.secret.fingerprint, self.connection.fingerprint)
        self.dimensions = settings.dimensions or default
        self.limits = info.limits if info else self.default_limits
        self.usd_per_million = info.usd_per_million if info else None
        self._sent_dimensions = self.dimensions if self.dimensions != default else None
        self._options = dict(settings.options)
        self._prompts = settings.prompts

    def request_fields(self, input_type: InputType, /, **fields: Any) -> dict[str, Any]:
        """Return the request without its texts: model, `fields`, dimensions, options and prompt.

        `prompt` is put before each text and is not sent as a field.
        """
        wire = {"model": self.model, **fields}
        if self._sent_dimensions is not None:
            wire[self.dimensions_field] = self._sent_dimensions
        wire |= self._options
        if self._prompts[input_type]:
            wire["prompt"] = self._prompts[input_type]
        return wire
