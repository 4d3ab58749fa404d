"""The `openai` SDK's client with the headers of this library only. Importing it imports the SDK."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from openai import AsyncOpenAI, Omit

from embedkit_core.providers.secrets import PLACEHOLDER_KEY

KeyHeader: TypeAlias = Callable[[str], dict[str, str]]


class IsolatedClient(AsyncOpenAI):
    """SDK client that sends no value of an environment variable.

    The SDK's constructor reads variables such as OPENAI_CUSTOM_HEADERS and OPENAI_ORG_ID for any server. The headers of
    a request are only those of the SDK itself, `api_key`, and `own_headers`, which replace the others.
    """

    def __init__(self, own_headers: Mapping[str, str], key_header: KeyHeader | None = None, **arguments: Any) -> None:
        """Open the client; `key_header` returns the header with the key, by default a bearer token."""
        super().__init__(api_key=PLACEHOLDER_KEY, **arguments)  # each request sets its own
        self._own_headers = dict(own_headers)
        self._key_header = key_header or _bearer
        self._own_names = {name.lower() for name in own_headers}
        sdk_headers = {
            "Accept": "application/json",
            "Content-Type": "application/json",
            "User-Agent": self.user_agent,
            **self.platform_headers(),
        }
        self._sdk_headers = self._without_own(sdk_headers)
        self._sends_key = "authorization" not in self._own_names

    def _without_own(self, headers: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in headers.items() if name.lower() not in self._own_names}

    @property
    def default_headers(self) -> dict[str, Any]:
        """All headers of a request."""
        key_header = self._without_own(self._key_header(self.api_key)) if self._sends_key else {}
        return {**self._sdk_headers, **key_header, **self._own_headers}

    @property
    def request_headers(self) -> dict[str, Any]:
        """Headers of a request that only its options can say: no bearer token, if the key is sent otherwise."""
        sends_bearer = not self._sends_key or "Authorization" in self._key_header(self.api_key)
        return {} if sends_bearer else {"Authorization": Omit()}


def _bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}
