"""Client of OpenAI and compatible servers: requests and replies as bytes, through the `openai` SDK."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import openai

from embedkit_core.common.errors import EncodingRefusedError, ProviderError, TimedOutError
from embedkit_core.common.types import Batch, Reply
from embedkit_core.common.vectors import NUMPY_DTYPES
from embedkit_core.providers.http.bodies import limit_bodies
from embedkit_core.providers.http.decoding import ReplyReader, UnreadableEncodingError
from embedkit_core.providers.http.headers import rate_limit_status
from embedkit_core.providers.http.refusals import CHECK_ADDRESS, Refusal, connection_error, shorten_message
from embedkit_core.providers.openai.base import OpenAIProvider, http_package
from embedkit_core.providers.openai.encoding import EncodingNegotiation
from embedkit_core.providers.openai.refusals import ErrorDetail, error_status, read_detail, to_provider_error
from embedkit_core.providers.openai.servers import BASE64, FLOATS, OPENAI
from embedkit_core.providers.secrets import Secret

OTHER_CAUSE_STATUSES = (401, 402, 403, 408, 409, 429)  # never caused by the encoding


def transport_error(provider: OpenAIProvider, error: Exception, url: Any) -> ProviderError:
    """Return the error for a request without a response.

    Args:
        provider: The provider.
        error: The exception of the SDK or of its HTTP client.
        url: The client's base URL.
    """
    if isinstance(error, openai.APITimeoutError):
        return TimedOutError("Server did not respond in time. Increase timeout=.")
    if isinstance(error.__cause__, ProviderError):  # SDK 2 wraps every exception
        return error.__cause__
    host = f"{url.host}:{url.port}" if url.port else url.host
    through = " through proxy=" if provider.connection.proxy else ""
    fix = CHECK_ADDRESS if provider.endpoint else ""
    if provider.server is not OPENAI and not provider.server.is_service:
        fix = f"Is {provider.server.title} running there?"
    return connection_error(host, error, fix, through=through)


def read_refusal(
    provider: OpenAIProvider,
    status: int,
    body: object,
    headers: Mapping[str, str],
    key: Secret,
    texts: Sequence[str] = (),
) -> tuple[Refusal, ErrorDetail]:
    """Return an error response, or a reply with an error instead of vectors, and its fields."""
    detail = read_detail(body)
    detail = replace(detail, message=shorten_message(detail.message))
    headers = {name.lower(): value for name, value in headers.items()}
    refusal = Refusal(
        *(provider.name, provider.model, status, detail.message, headers, texts),
        secrets=provider.connection.secrets_with(key),
        request_id=headers.get("x-request-id"),
    )
    return refusal, detail


class SentBatch(NamedTuple):
    """A request: its fields, its texts with their prompt, the encoding, the API key, and its timeout in seconds."""

    fields: Mapping[str, Any]
    texts: list[str]
    encoding: str
    negotiation: EncodingNegotiation
    key: Secret
    timeout: float | None


class OpenAIClient:
    """Client with requests and replies as bytes: the SDK's models process every number of a reply in Python."""

    def __init__(self, provider: OpenAIProvider) -> None:
        with contextlib.suppress(ImportError):  # imported here, because an import in the first request is not fork-safe
            importlib.import_module("anyio._backends._asyncio")
        self._response: Any = http_package().Response
        self._reader = ReplyReader()
        self._provider = provider
        self._sdk = provider.open_sdk()
        self._negotiations: dict[bytes, EncodingNegotiation] = {}  # by the fields of a request

    async def embed(self, batch: Batch) -> Reply:
        """Send one request and decode its reply."""
        fields = dict(batch.body)
        fields.pop("prompt", None)
        key, texts = self._provider.secret.constant(), batch.texts_with_prompt()
        limit_bodies(batch)
        negotiation = self._negotiation(fields, batch)
        encoding = negotiation.choose() if self._provider.negotiates else FLOATS
        try:
            sent = SentBatch(fields, texts, encoding, negotiation, key, batch.timeout)
            response = await self._post(sent)
            reply = self._reader.parse(response.content)
            status = error_status(reply)
            if status is not None:
                raise self._to_provider_error(status, reply, response.headers, sent)
            return replace(self._decode(reply, sent), rate_limits=rate_limit_status(response.headers))
        finally:
            negotiation.ended(encoding)

    def _negotiation(self, fields: Mapping[str, Any], batch: Batch) -> EncodingNegotiation:
        """Return the negotiation of the encoding for requests with these fields."""
        key = self._reader.dump(fields)
        if key not in self._negotiations:
            provider = self._provider
            self._negotiations[key] = EncodingNegotiation(
                is_documented=provider.documents_base64,
                widths=batch.widths,
                requests_dimensions=provider.dimensions_field in fields,
            )
        return self._negotiations[key]

    async def _post(self, sent: SentBatch) -> Any:
        """Return the response to a request, read as a whole."""
        self._sdk.api_key = sent.key.reveal()  # it may have changed
        encoding_field = self._provider.server.encoding_field
        encoding = {} if encoding_field is None else {encoding_field: sent.encoding}
        body = self._reader.dump({**encoding, **sent.fields, "input": sent.texts})
        try:
            return await self._sdk.post(
                "/embeddings",
                content=body,
                cast_to=self._response,
                options={"timeout": sent.timeout, "headers": self._sdk.request_headers},
            )
        except openai.APIStatusError as error:
            raise self._to_provider_error(error.status_code, error.body, error.response.headers, sent) from None
        except openai.APIConnectionError as error:
            raise transport_error(self._provider, error, self._sdk.base_url) from None

    async def aclose(self) -> None:
        """Close the connections."""
        await self._sdk.close()

    def _decode(self, reply: Mapping[str, Any], sent: SentBatch) -> Reply:
        negotiation, is_float32 = sent.negotiation, self._provider.dtype == "float32"
        try:
            decoded = self._reader.read_data(
                reply,
                len(sent.texts),
                NUMPY_DTYPES[self._provider.dtype],
                "total_tokens",
                "prompt_tokens",
                accepts=negotiation.is_float32 if is_float32 else negotiation.is_one_byte_per_number,
            )
        except UnreadableEncodingError as error:
            if sent.encoding != BASE64:
                raise
            sent.negotiation.refused()
            refused = EncodingRefusedError(str(error))
            refused.is_reply, refused.tokens = True, error.tokens
        else:
            sent.negotiation.accepted(sent.encoding, decoded.vectors.shape[1])
            return decoded
        raise refused

    def _to_provider_error(
        self, status: int, body: object, headers: Mapping[str, str], sent: SentBatch
    ) -> ProviderError:
        """Return the error for an error response, or for a reply with an error instead of vectors."""
        provider, path = self._provider, self._sdk.base_url.path.rstrip("/")
        refusal, detail = read_refusal(provider, status, body, headers, sent.key, sent.texts)
        about_encoding = str(provider.server.encoding_field) in str(body) or "base64" in detail.message
        if sent.encoding == BASE64 and about_encoding and status < 500 and status not in OTHER_CAUSE_STATUSES:
            sent.negotiation.refused()
            return EncodingRefusedError(f"Server refused base64 (HTTP {status})", **refusal.error_fields)
        return to_provider_error(
            refusal,
            detail,
            provider.key_variable,
            dimensions=None if provider.is_openai else sent.fields.get(provider.dimensions_field),
            fix=provider.address_fix(path) if status == 404 and "model" not in detail.message.lower() else "",
            rate_limit_codes=provider.server.rate_limit_codes,
        )
