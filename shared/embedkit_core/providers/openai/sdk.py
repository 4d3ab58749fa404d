"""The `openai` SDK's client with the headers of this library only. Importing it imports the SDK."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from openai import AsyncOpenAI

from embedkit_core.providers.secrets import PLACEHOLDER_KEY


class IsolatedClient(AsyncOpenAI):
    """SDK client that sends no value of an environment variable.

    The SDK's constructor reads variables such as OPENAI_CUSTOM_HEADERS and OPENAI_ORG_ID for any server. The headers of
    a request are only those of the SDK itself, `api_key`, and `own_headers`, which replace the others.
    """

    def __init__(self, own_headers: Mapping[str, str], **arguments: Any) -> None:
        super().__init__(api_key=PLACEHOLDER_KEY, **arguments)  # each request sets its own
        self._own_headers = dict(own_headers)
        own_names = {name.lower() for name in own_headers}
        sdk_headers = {
            "Accept": "application/json",
            "Content-Type": "application/json",
            "User-Agent": self.user_agent,
            **self.platform_headers(),
        }
        self._sdk_headers = {name: value for name, value in sdk_headers.items() if name.lower() not in own_names}
        self._sends_key = "authorization" not in own_names

    @property
    def default_headers(self) -> dict[str, Any]:
        """All headers of a request."""
        key_header = {"Authorization": f"Bearer {self.api_key}"} if self._sends_key else {}
        return {**self._sdk_headers, **key_header, **self._own_headers}
