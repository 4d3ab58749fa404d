"""Providers of the Gemini API (`google:`) and of Vertex AI (`vertex:`), through the `google-genai` SDK.

The two never share cached vectors: Google does not document that a model has the same vectors in both. On Vertex AI,
the project and the location are not part of cache keys, because they name the account and the place of the computation,
not the model. The resource name of a tuned model's endpoint is part of them, as the model's name.

Tested against a local server that follows the documentation, not against the live services.
"""

from __future__ import annotations

import os
from typing import Any, ClassVar

from embedkit_core.common.types import InputType, Limits
from embedkit_core.providers.base import Client, ProviderSettings
from embedkit_core.providers.google.addresses import LOCATION_VARIABLE, gemini_place, vertex_place
from embedkit_core.providers.google.base import KEY_VARIABLE, GoogleProvider
from embedkit_core.providers.google.wire import BatchEmbedContents, EmbedContent, Wire, vertex_wire
from embedkit_core.providers.secrets import PLACEHOLDER_KEY, Secret

GEMINI_KEY_VARIABLE = "GEMINI_API_KEY"  # after GOOGLE_API_KEY, as in the SDK
CREDENTIALS_VARIABLE = "GOOGLE_APPLICATION_CREDENTIALS"


class Google(GoogleProvider):
    """A model of the Gemini API, or of a server at `base_url` with the same API."""

    name: ClassVar[str] = "google"
    telemetry_name: ClassVar[str] = "gcp.gemini"
    # 100 texts: the refusal "at most 100 requests can be in one batch" (github.com/geldata/gel/issues/9032). 20,000
    # tokens: the bound of langchain-google-genai 4.4.3; Google documents none.
    default_limits: ClassVar[Limits] = Limits(texts=100, tokens=20_000)
    is_vertex: ClassVar[bool] = False
    credentials_fix: ClassVar[str] = f"Check api_key= or {KEY_VARIABLE}, and the restrictions of the key."
    batch_endpoint: str | None = "embedkit_core.providers.google.batch:GeminiBatches"
    may_truncate_silently: bool = True  # the API has no documented field or refusal for a text that is too long

    def __init__(self, settings: ProviderSettings) -> None:
        secret = settings.find_key(KEY_VARIABLE, GEMINI_KEY_VARIABLE)
        super().__init__(settings, gemini_place(settings.base_url), secret)

    @classmethod
    def catalogue_name(cls, name: str) -> str:
        """Return a model name without the prefix that the API and LangChain use."""
        return name.removeprefix("models/")

    @classmethod
    def is_own_host(cls, base_url: str | None) -> bool:
        """Return True if `base_url`, or else the environment's address, is the Gemini API's own."""
        return gemini_place(base_url).is_gemini_api

    @staticmethod
    def wire(model: str) -> type[Wire]:  # noqa: ARG004 - the same for all
        """Return the embedding method of a model."""
        return BatchEmbedContents

    @staticmethod
    def model_path(model: str) -> str:
        """Return the path of a model in the address of a request."""
        return f"models/{model}"

    def connect(self) -> Client:
        """Open the SDK's client."""
        return _open_client(self)


class Vertex(GoogleProvider):
    """A model of Vertex AI, with Application Default Credentials or an API key ("express mode")."""

    name: ClassVar[str] = "vertex"
    telemetry_name: ClassVar[str] = "gcp.vertex_ai"
    # Source: cloud.google.com/vertex-ai/generative-ai/docs/embeddings/get-text-embeddings, "API limits", read
    # 2026-11-30.
    default_limits: ClassVar[Limits] = Limits(texts=250, tokens=20_000)
    is_vertex: ClassVar[bool] = True
    credentials_fix: ClassVar[str] = (
        f"Check api_key=, {KEY_VARIABLE} or the Google Cloud credentials, that the Vertex AI API is enabled, and "
        "that the account has the role roles/aiplatform.user."
    )

    def __init__(self, settings: ProviderSettings) -> None:
        given = settings.api_key is not None
        place = vertex_place(settings.base_url, with_environment=not given)
        # As in the SDK: a key that is passed, then the environment's project or location, then its key.
        uses_environment = place.project is None and not os.environ.get(LOCATION_VARIABLE)
        secret = settings.find_key(KEY_VARIABLE) if given or uses_environment else None
        self.uses_credentials = secret is None and (place.is_vertex_ai or place.project is not None)
        super().__init__(settings, place, Secret(PLACEHOLDER_KEY) if self.uses_credentials else secret)
        if self.uses_credentials:
            self.account = (self.account, os.environ.get(CREDENTIALS_VARIABLE))
        if self.wire(self.model) is EmbedContent:
            self.limits = self.limits.capped(1)

    @classmethod
    def catalogue_name(cls, name: str) -> str:
        """Return the name of a model of Google without the prefix of its resource name."""
        return name.removeprefix("publishers/google/").removeprefix("models/")

    @classmethod
    def is_own_host(cls, base_url: str | None) -> bool:
        """Return True if the address of requests is a host of Vertex AI."""
        return vertex_place(base_url).is_vertex_ai

    @staticmethod
    def wire(model: str) -> type[Wire]:
        """Return the embedding method of a model."""
        return vertex_wire(model)

    @staticmethod
    def model_path(model: str) -> str:
        """Return the path of a model in the address of a request, without the project."""
        return model if model.startswith(("projects/", "publishers/")) else f"publishers/google/models/{model}"

    def request_body(self, input_type: InputType) -> dict[str, Any]:
        """Return the request body without texts; the client adds `prompt` before each text and does not send it."""
        return super().request_body(input_type) | {"autoTruncate": False}

    def truncating_body(self, input_type: InputType) -> dict[str, Any]:
        """Return the request body with truncation by Vertex AI."""
        return self.request_body(input_type) | {"autoTruncate": True}

    def connect(self) -> Client:
        """Open the SDK's client."""
        return _open_client(self)


def _open_client(provider: GoogleProvider) -> Client:
    from embedkit_core.providers.google.client import GoogleClient

    provider.connection.check_not_lost()
    provider.secret.reveal()
    return GoogleClient(provider)
