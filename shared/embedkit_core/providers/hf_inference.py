"""Models of the Hugging Face hub at its own Inference Provider, hf-inference.

Wire format: POST {base_url}/models/{model}/pipeline/feature-extraction; sources, read 2026-11-30:
huggingface.co/docs/inference-providers/tasks/feature-extraction and .../pricing, huggingface_hub 2.4
(inference/_providers/hf_inference.py), and text-embeddings-inference, from whose API the task is generated
(router/src/http/server.rs). huggingface_hub is not used: it asks the hub about the model on the event loop, and makes
one array of any reply. Tested against a local server that follows these sources, not against the live service.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar
from urllib.parse import quote

from embedkit_core.common.errors import (
    AuthenticationError,
    BadReplyError,
    BadTextError,
    ConfigurationError,
    ProviderError,
    UnavailableError,
)
from embedkit_core.common.types import InputType, Limits, Reply
from embedkit_core.common.vectors import truncation_hint
from embedkit_core.providers.base import ProviderSettings
from embedkit_core.providers.http.address import canonical_url
from embedkit_core.providers.http.decoding import NUMPY_FLOAT32, ReplyReader, not_a_list
from embedkit_core.providers.http.json_provider import JSONProvider
from embedkit_core.providers.http.refusals import Refusal
from embedkit_core.providers.openai.refusals import read_detail, to_provider_error

HOST = "https://router.huggingface.co/hf-inference"
KEY_VARIABLE = "HF_TOKEN"
OTHER_KEY_VARIABLES = ("HUGGING_FACE_HUB_TOKEN", "HUGGINGFACEHUB_API_TOKEN")  # of huggingface_hub and of LangChain
ABOUT_MODEL = re.compile(r"\bmodel\b|\btask\b|\bpipeline\b", re.I)
NO_POOLING = "Models without pooling do so there. Use a model of sentence-transformers, or run this one as 'local:...'."
NOT_SERVED = "Does hf-inference serve this model? See huggingface.co/models?inference_provider=hf-inference."


class HFInference(JSONProvider):
    """A model of the hub, served by hf-inference or by a server at `base_url` with the same paths."""

    name: ClassVar[str] = "hf-inference"
    extra: ClassVar[str | None] = "hf-inference"
    key_variable: ClassVar[str | None] = KEY_VARIABLE
    catalogue_providers: ClassVar[tuple[str, ...]] = ("hf-inference", "local")
    default_limits: ClassVar[Limits] = Limits(texts=32)  # the default of text-embeddings-inference
    returns_normalized: ClassVar[bool] = False  # `normalize` is for models that text-embeddings-inference serves
    takes_dimensions: ClassVar[bool] = False
    oversized_hint: ClassVar[str] = f"It may be a vector of each token. {NO_POOLING}"
    reserved_fields: ClassVar[frozenset[str]] = JSONProvider.reserved_fields | {
        *("inputs", "normalize", "truncate", "prompt_name")
    }

    def __init__(self, settings: ProviderSettings) -> None:
        if settings.dimensions is not None and settings.info is None:
            raise ConfigurationError(
                f"dimensions: hf-inference does not truncate vectors (got {settings.dimensions}); "
                f"{truncation_hint(settings.dimensions)}."
            )
        self.address: str = _address(settings.base_url)
        canonical, secret = canonical_url(self.address), settings.find_key(KEY_VARIABLE, *OTHER_KEY_VARIABLES)
        super().__init__(settings, canonical, secret, needs_key=False)

    @classmethod
    def is_own_host(cls, base_url: str | None) -> bool:
        """Return True if `base_url` is hf-inference itself."""
        return canonical_url(_address(base_url)) == HOST

    def request_body(self, input_type: InputType) -> dict[str, Any]:
        """Return the request without texts; the client sends the model in the path, and `prompt` before each text."""
        return self.request_fields(input_type, normalize=True, truncate=False)

    def truncating_body(self, input_type: InputType) -> dict[str, Any]:
        """Return the request body with truncation by the server."""
        return self.request_body(input_type) | {"truncate": True}

    def request(self, fields: Mapping[str, Any], texts: list[str]) -> tuple[str, dict[str, Any]]:
        """Return the address and the body of a request."""
        body = {"inputs": texts, **fields}
        model = quote(str(body.pop("model")), safe="/")
        return f"{self.address}/models/{model}/pipeline/feature-extraction", body

    def read_reply(self, reader: ReplyReader, reply: Any, n_texts: int) -> Reply:
        """Read `[[...], ...]`, which has no usage."""
        if not isinstance(reply, list) or not all(isinstance(row, list) for row in reply):
            raise not_a_list()
        if any(isinstance(number, list) for row in reply for number in row[:1]):
            error = BadReplyError(f"Server returned a vector of each token. {NO_POOLING}")
            error.lasts = True
            raise error
        return reader.read_rows(reply, n_texts, NUMPY_FLOAT32, None)

    def read_message(self, body: Any) -> str:
        """Return the message of {"error": ...}."""
        return read_detail(body).message

    def to_error(self, refusal: Refusal, body: Any) -> ProviderError:
        """Return the error for an error response. A model that is being loaded states the seconds that it needs."""
        if refusal.status == 403:
            return AuthenticationError(
                f"Token was refused for {refusal.model} (HTTP 403). Does it have the permission for Inference "
                "Providers? See huggingface.co/settings/tokens.",
                **refusal.error_fields,
            )
        fix = NOT_SERVED if ABOUT_MODEL.search(refusal.message) or refusal.status in (404, 410) else ""
        error = to_provider_error(refusal, read_detail(body), KEY_VARIABLE, dimensions=None, fix=fix)
        if fix and isinstance(error, BadTextError):
            return refusal.bad_request(fix)
        seconds = body.get("estimated_time") if isinstance(body, dict) else None
        if isinstance(error, UnavailableError) and error.retry_after is None and isinstance(seconds, int | float):
            error.retry_after = float(seconds)
        return error


def _address(base_url: str | None) -> str:
    address = HOST if base_url is None else base_url
    return address.strip().rstrip("/").removesuffix("/models") if isinstance(address, str) else address
