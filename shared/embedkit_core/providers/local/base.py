"""Base class of the providers whose models run on this machine."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, ClassVar

from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.types import InputType, Limits
from embedkit_core.providers.base import Provider, ProviderSettings

# A query waits for at most one request. The token limit bounds the duration of a request: about 0.5 s with MiniLM on
# two cores.
MAX_REQUEST_TEXTS = 256
MAX_REQUEST_TOKENS = 8_192
CPU_LIMITS = Limits(texts=MAX_REQUEST_TEXTS, tokens=MAX_REQUEST_TOKENS, in_flight=1)


class LocalProvider(Provider):
    """A model on this machine. Texts over its limit are truncated by its tokenizer; vectors are normalized."""

    is_local: ClassVar[bool] = True
    truncates_long_texts: ClassVar[bool] = True
    takes_dimensions: ClassVar[bool] = False

    def __init__(self, settings: ProviderSettings) -> None:
        # An API key has no effect and does no harm.
        settings.check_only_used("api_key", "dimensions", "query_prompt", "document_prompt", "provider_options")
        self.model = settings.name
        self.limits = CPU_LIMITS
        self.usd_per_million = Decimal(0)
        self._truncates = settings.on_long_text == "truncate"
        self._max_tokens: int | None = None
        self._asymmetric = False
        self._prompts: Mapping[InputType, str] = settings.prompts

    @property
    def max_text_tokens(self) -> int | None:
        """Maximum tokens of a text: the user's max_seq_length, else that of the model's configuration."""
        return self._max_tokens

    @abstractmethod
    def model_fields(self) -> dict[str, Any]:
        """Return the fields of the request that identify the model."""

    def request_body(self, input_type: InputType) -> dict[str, Any]:
        """Return the model's arguments and its digest."""
        body = self.model_fields() | {
            "max_seq_length": self._max_tokens,
            "normalize": True,
            "truncation": self._truncates,
        }
        if self._prompts[input_type]:
            body["prompt"] = self._prompts[input_type]
        if self._asymmetric:
            body["role"] = input_type
        return body


def choose_prompts(settings: ProviderSettings, of_model: Mapping[InputType, str] | None) -> Mapping[InputType, str]:
    """Return the user's prompts, else those of the task, else the model's own, else the catalogue's."""
    if settings.task is not None or of_model is None:  # the model's own are for retrieval
        return settings.prompts
    passed: dict[InputType, str | None] = {"query": settings.query_prompt, "document": settings.document_prompt}
    users: dict[InputType, str] = {name: prompt for name, prompt in passed.items() if prompt is not None}
    return {**settings.prompts, **of_model, **users}


def check_width(settings: ProviderSettings, of_model: int | None) -> int | None:
    """Return the width of the model's vectors, None if it is unknown; the engine truncates them if needed.

    Raises:
        ConfigurationError: The width is not that of the catalogue, or the user requests another one.
    """
    known = settings.info.dimensions if settings.info else None
    if of_model and known and of_model != known:
        raise ConfigurationError(
            f"{settings.name} has {of_model} dimensions, but the catalogue or model_info= states {known}. Use the "
            "folder of the right model, or correct model_info=."
        )
    width = of_model or known
    if settings.dimensions not in (None, width):
        offered = f"; it offers {width}" if width else ""
        raise ConfigurationError(
            f"dimensions: {settings.name} does not offer {settings.dimensions} dimensions{offered}. If it supports "
            "shorter vectors, pass model_info={'allowed_dimensions': [...], 'cut': 'prefix'}."
        )
    return width
