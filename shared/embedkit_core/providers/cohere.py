"""Cohere, through the `cohere` SDK's async client.

Wire format: POST {base_url}/v2/embed; source: the OpenAPI description at
github.com/cohere-ai/cohere-developer-experience, docs.cohere.com/reference/embed, and SDK 5.21 and 7.3, read
2026-11-20. The SDK sends the request; the reply is decoded here, because the SDK's models process every number in
Python. Tested against a local server that follows the documentation, not against the live service.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit

from embedkit_core.common.errors import (
    BadReplyError,
    ProviderError,
    TextTooLongError,
    TimedOutError,
)
from embedkit_core.common.types import Batch, InputType, Limits, Reply
from embedkit_core.common.vectors import NUMPY_DTYPES, DType
from embedkit_core.providers.base import Client, ProviderSettings
from embedkit_core.providers.http.address import canonical_url
from embedkit_core.providers.http.decoding import ReplyReader, read_tokens
from embedkit_core.providers.http.provider import SDK_TIMEOUT_SECONDS, HTTPProvider, sdk_timeout
from embedkit_core.providers.http.public_sdk import RawResponse, warn_of_public_sdk
from embedkit_core.providers.http.refusals import CHECK_ADDRESS, Refusal, connection_error, shorten_message
from embedkit_core.providers.http.transport import open_transport
from embedkit_core.providers.secrets import PLACEHOLDER_KEY, Secret

if TYPE_CHECKING:
    import httpx
    from cohere import AsyncClientV2

HOST = "https://api.cohere.com"
FORMER_HOST = "https://api.cohere.ai"
KEY_VARIABLE = "CO_API_KEY"
LANGCHAIN_KEY_VARIABLE = "COHERE_API_KEY"
ADDRESS_VARIABLE = "CO_API_URL"
INPUT_TYPES: Mapping[InputType, str] = {"document": "search_document", "query": "search_query"}
EMBEDDING_TYPES: Mapping[DType, str] = {  # base64 is little-endian float32
    "float32": "base64",
    "int8": "int8",
    "uint8": "uint8",
    "binary": "binary",
    "ubinary": "ubinary",
}

TOO_MANY_TEXTS = re.compile(r"total number of (texts|inputs) must be|at most \d+ (texts|inputs)", re.I)
TOO_LONG = re.compile(r"too many tokens|too long|exceeds? the (maximum|max) (context|input|token)", re.I)
COUNTS = re.compile(r"(cannot exceed|at most|maximum of) (?P<limit>\d+).{0,30}(received|got|has) (?P<tokens>\d+)", re.I)
TOTAL_OF_REQUEST = re.compile(r"(total|sum).{0,60}(request|batch)|per request", re.I)
EMPTY_TEXT = re.compile(r"empty string", re.I)
ABOUT_TEXT = re.compile(r"\btexts?\b|element|at index|\bstring\b|\binputs?\b(?!_type)", re.I)
ABOUT_REQUEST = re.compile(r"input_type|embedding_types|output_dimension|truncate\b|\bmodel\b|parameter|field", re.I)
PER_MONTH = re.compile(r"month", re.I)


class Cohere(HTTPProvider):
    """A model of Cohere, or of a server at `base_url` with the same API.

    Attributes:
        on_long_text: How texts over the model's limit are handled.
    """

    name: ClassVar[str] = "cohere"
    extra: ClassVar[str | None] = "cohere"
    needs: ClassVar[tuple[str, ...]] = ("cohere", "httpx", "pydantic_core", "pybase64")
    key_variable: ClassVar[str | None] = KEY_VARIABLE
    default_limits: ClassVar[Limits] = Limits(texts=96, tokens=128_000)  # those of every model in the catalogue
    dtypes: ClassVar[tuple[DType, ...]] = ("float32", "int8", "uint8", "binary", "ubinary")
    takes_roles: ClassVar[bool] = True
    returns_normalized: ClassVar[bool] = False
    reserved_fields: ClassVar[frozenset[str]] = HTTPProvider.reserved_fields | {
        *("texts", "images", "inputs", "embedding_types", "output_dimension", "truncate", "stream")
    }
    dimensions_field: ClassVar[str] = "output_dimension"
    batch_endpoint: str | None = "embedkit_core.providers.cohere_batch:CohereEmbedJobs"

    def __init__(self, settings: ProviderSettings) -> None:
        self.address: str = _address(settings.base_url)  # pyright: ignore[reportIncompatibleVariableOverride]  # set once, by the constructor
        canonical, secret = canonical_url(self.address), settings.find_key(KEY_VARIABLE, LANGCHAIN_KEY_VARIABLE)
        super().__init__(settings, canonical, secret, needs_key=False)
        self.encodings = (EMBEDDING_TYPES[settings.dtype],)
        self.on_long_text = settings.on_long_text
        self._roles = settings.role_values(INPUT_TYPES)

    @classmethod
    def is_own_host(cls, base_url: str | None) -> bool:
        """Return True if `base_url`, or else the environment's address, is Cohere's own."""
        return canonical_url(_address(base_url)) in (HOST, FORMER_HOST)

    def request_body(self, input_type: InputType) -> dict[str, Any]:
        """Return the request body without texts; the client adds `prompt` before each text and does not send it."""
        return self.request_fields(
            input_type, input_type=self._roles[input_type], embedding_types=[*self.encodings], truncate="NONE"
        )

    def truncating_body(self, input_type: InputType) -> dict[str, Any]:
        """Return the request body with truncation by Cohere at the end of each text."""
        return self.request_body(input_type) | {"truncate": "END"}

    def connect(self) -> Client:
        """Open the SDK's async client."""
        self.connection.check_not_lost()
        self.secret.reveal()
        return CohereClient(self)

    def open_sdk(self, transport: httpx.AsyncClient) -> AsyncClientV2:
        """Return the SDK's client. `CohereClient` sets the current key on each request."""
        import cohere

        return cohere.AsyncClientV2(api_key=PLACEHOLDER_KEY, base_url=self.address, httpx_client=transport)


def _address(base_url: str | None) -> str:
    address = base_url if base_url is not None else os.environ.get(ADDRESS_VARIABLE) or HOST
    return re.sub(r"/v[12](/embed)?$", "", address.strip().rstrip("/")) if isinstance(address, str) else address


class CohereClient:
    """Client that uses the SDK's transport and reads replies as bytes, or else its public `embed`."""

    def __init__(self, provider: Cohere) -> None:
        import httpx

        from embedkit_core.providers.http.bodies import limit_bodies

        self._limit_bodies = limit_bodies
        self._reader = ReplyReader()
        self._provider = provider
        self._headers = {_sdk_spelling(name): value for name, value in provider.connection.headers.items()}
        self._timeout_error = httpx.TimeoutException
        self._connection_errors = (httpx.RequestError, OSError)  # httpcore passes errors of TLS while reading on
        self._transport = open_transport(provider.connection)
        self._sdk: Any = provider.open_sdk(self._transport)
        self._http: Any = getattr(getattr(self._sdk, "_client_wrapper", None), "httpx_client", None)
        self._send = self._send_bytes
        if not hasattr(self._http, "request"):
            warn_of_public_sdk("cohere", "transport that replies with bytes")
            self._send = self._send_public

    async def embed(self, batch: Batch) -> Reply:
        """Send one request and decode its reply."""
        fields = dict(batch.body)
        fields.pop("prompt", None)
        texts = batch.texts_with_prompt()
        key = self._provider.secret.constant()
        self._limit_bodies(batch)
        try:
            response = await self._send(batch, {**fields, "texts": texts}, key)
        except self._timeout_error:
            raise TimedOutError("Server did not respond in time. Increase timeout=.") from None
        except self._connection_errors as error:
            host, fix = urlsplit(self._provider.address).netloc, CHECK_ADDRESS if self._provider.endpoint else ""
            raise connection_error(host, error, fix) from None
        if response.status != 200:
            headers = {name.lower(): value for name, value in response.headers.items()}
            reply = self._read_refusal(response.body)
            refusal = Refusal(
                *(
                    "cohere",
                    str(fields.get("model")),
                    response.status,
                    shorten_message(reply["message"]),
                    headers,
                    texts,
                ),
                secrets=self._provider.connection.secrets_with(key),
                request_id=reply["id"] or headers.get("x-request-id"),
            )
            raise to_provider_error(refusal)
        [embedding_type] = fields["embedding_types"]
        return self._decode(response.body, len(texts), embedding_type)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._transport.aclose()

    async def _send_bytes(self, batch: Batch, body: dict[str, Any], key: Secret) -> RawResponse:
        """Send a request through the SDK's transport."""
        response = await self._http.request(
            "v2/embed",
            method="POST",
            base_url=self._provider.address,  # the SDK changes addresses that contain Cohere's name
            json=body,
            headers={"content-type": "application/json", "Authorization": f"Bearer {key.reveal()}"} | self._headers,
            request_options={"max_retries": 0, "timeout_in_seconds": sdk_timeout(batch)},
        )
        return RawResponse(response.status_code, response.headers, response.content)

    async def _send_public(self, batch: Batch, body: dict[str, Any], key: Secret) -> RawResponse:
        """Send a request through the SDK's `embed`, and return the JSON from which the SDK made its reply."""
        dump, [embedding_type] = self._reader.dump, body["embedding_types"]
        named = {name: body[name] for name in ("model", "input_type", "texts", "embedding_types", "truncate")}
        try:
            reply = await self._sdk.embed(
                **named,
                request_options={
                    "max_retries": 0,
                    "timeout_in_seconds": sdk_timeout(batch),
                    "additional_headers": {"Authorization": f"Bearer {key.reveal()}"} | self._headers,
                    "additional_body_parameters": {name: body[name] for name in body.keys() - named.keys()},
                },
            )
        except Exception as error:
            if not isinstance(status := getattr(error, "status_code", None), int):
                raise
            headers, content = getattr(error, "headers", None) or {}, getattr(error, "body", None)
            return RawResponse(status, headers, dump(content if isinstance(content, dict) else None))
        rows = getattr(reply.embeddings, embedding_type, None)
        billed = getattr(getattr(reply, "meta", None), "billed_units", None)
        tokens = getattr(billed, "input_tokens", None)  # a float in the SDK
        meta = {"billed_units": {"input_tokens": int(tokens) if isinstance(tokens, float) else tokens}}
        return RawResponse(200, {}, dump({"embeddings": {embedding_type: rows}, "meta": meta}))

    def _decode(self, body: bytes, n_texts: int, embedding_type: str) -> Reply:
        try:
            reply = self._reader.load(body)
            encoded = reply["embeddings"][embedding_type]
            billed = (reply.get("meta") or {}).get("billed_units")
            if not isinstance(encoded, list):
                raise TypeError("no list of rows")
        except (ValueError, KeyError, TypeError, AttributeError):
            raise BadReplyError(f"Server response has no embeddings of type {embedding_type}") from None
        tokens = read_tokens(billed, "input_tokens")
        dtype: DType = next(name for name, value in EMBEDDING_TYPES.items() if value == embedding_type)
        return self._reader.read_rows(encoded, n_texts, NUMPY_DTYPES[dtype], tokens)

    def _read_refusal(self, body: bytes) -> dict[str, str]:
        """Return `message` and `id` of an error response: {"message": ..., "id": ...}."""
        try:
            reply = self._reader.load(body)
        except ValueError:
            reply = None
        fields = reply if isinstance(reply, dict) else {}
        return {name: str(fields.get(name) or "") for name in ("message", "id")}


def _sdk_spelling(name: str) -> str:
    """Return a header's name in the SDK's spelling: names that differ in case would be sent twice."""
    spellings = {"authorization": "Authorization", "user-agent": "User-Agent"}
    return spellings.get(name.lower(), name)


def to_provider_error(refusal: Refusal) -> ProviderError:
    """Return the error for an error response, by status and message."""
    message = refusal.message
    if refusal.status == 429 and PER_MONTH.search(message):
        return refusal.quota()  # the monthly calls of a trial key are used up
    if refusal.status == 429:
        return refusal.rate_limit(wait=_seconds_to_reset(refusal.headers))
    if refusal.status == 498:  # blocked
        return refusal.bad_request()
    if refusal.status == 499:  # the connection was closed
        return refusal.unavailable()
    if (error := refusal.common_error(KEY_VARIABLE)) is not None:
        return error
    if TOO_MANY_TEXTS.search(message):
        return refusal.too_large(counts_texts=True)
    if refusal.status == 413 or (TOO_LONG.search(message) and TOTAL_OF_REQUEST.search(message)):
        return refusal.too_large()
    if TOO_LONG.search(message):
        counts = COUNTS.search(message)
        values = {name: int(n) for name, n in counts.groupdict().items()} if counts else {}
        return TextTooLongError(tokens=values.get("tokens"), limit=values.get("limit"), **refusal.error_fields)
    about_text = ABOUT_TEXT.search(message) and not ABOUT_REQUEST.search(message)
    if refusal.status in (400, 422) and (about_text or EMPTY_TEXT.search(message) or not message):
        return refusal.bad_text()
    return refusal.bad_request()


def _seconds_to_reset(headers: Mapping[str, str]) -> float | None:
    """Return the seconds until `x-ratelimit-reset`, a Unix time. Source: the retries of the SDK."""
    try:
        seconds = float(headers.get("x-ratelimit-reset", "")) - time.time()
    except ValueError:
        return None
    return seconds if 0 <= seconds <= SDK_TIMEOUT_SECONDS else None
