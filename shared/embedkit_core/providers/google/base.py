"""Base class of the providers of the Gemini API and of Vertex AI."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from embedkit_core.common.types import InputType
from embedkit_core.providers.base import ProviderSettings
from embedkit_core.providers.google.addresses import Place
from embedkit_core.providers.google.wire import Wire, takes_task_type
from embedkit_core.providers.http.provider import HTTPProvider
from embedkit_core.providers.secrets import Secret

KEY_VARIABLE = "GOOGLE_API_KEY"
TASK_TYPES: Mapping[InputType, str] = {"document": "RETRIEVAL_DOCUMENT", "query": "RETRIEVAL_QUERY"}


class GoogleProvider(HTTPProvider):
    """What both APIs have in common.

    Attributes:
        is_vertex: True for Vertex AI.
        credentials_fix: What to check if a request is refused for its credentials, as a sentence.
        place: Where requests are sent.
        uses_credentials: True if requests carry Application Default Credentials instead of an API key.
    """

    extra: ClassVar[str | None] = "google"
    needs: ClassVar[tuple[str, ...]] = ("google.genai", "pydantic_core", "pybase64")
    key_variable: ClassVar[str | None] = KEY_VARIABLE
    takes_roles: ClassVar[bool] = True
    returns_normalized: ClassVar[bool] = False
    reserved_fields: ClassVar[frozenset[str]] = HTTPProvider.reserved_fields | {
        *("content", "contents", "requests", "instances", "parameters", "embedContentConfig"),
        *("outputDimensionality", "output_dimensionality", "autoTruncate", "auto_truncate"),
    }
    dimensions_field: ClassVar[str] = "outputDimensionality"
    is_vertex: ClassVar[bool]
    credentials_fix: ClassVar[str]

    place: Place
    uses_credentials: bool = False

    def __init__(self, settings: ProviderSettings, place: Place, secret: Secret | None) -> None:
        self.place, self.address = place, place.host
        super().__init__(settings, place.canonical, secret, needs_key=False)
        self.model = self.catalogue_name(settings.name)
        self.account = (self.account, place.version)
        self._roles = settings.role_values(TASK_TYPES) if takes_task_type(self.model) else {}

    @staticmethod
    @abstractmethod
    def wire(model: str) -> type[Wire]:
        """Return the embedding method of a model. Models of an account share a client."""

    @staticmethod
    @abstractmethod
    def model_path(model: str) -> str:
        """Return the path of a model in the address of a request, without the project."""

    def request_body(self, input_type: InputType) -> dict[str, Any]:
        """Return the request body without texts; the client adds `prompt` before each text and does not send it."""
        task = {"taskType": self._roles[input_type]} if self._roles else {}
        return self.request_fields(input_type, **task)
