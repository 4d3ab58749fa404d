"""OpenAI, and servers with its embeddings API, through the `openai` SDK's async client.

Wire format: POST {base_url}/embeddings with model, input (strings only) and encoding_format; source: the OpenAPI
description at github.com/openai/openai-openapi and SDK 3.52, read 2026-11-20. Tested against a local server
that follows the documentation, not against the live service.
"""

from __future__ import annotations

from embedkit_core.providers.base import Client
from embedkit_core.providers.openai.base import OpenAIProvider


class OpenAI(OpenAIProvider):
    """A model of OpenAI, or of a compatible server at `base_url`."""

    def connect(self) -> Client:
        """Open the SDK's async client."""
        from embedkit_core.providers.openai.client import OpenAIClient  # with what only requests need

        self.check_not_lost()
        return OpenAIClient(self)
