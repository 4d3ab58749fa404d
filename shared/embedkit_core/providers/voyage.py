"""Voyage AI, through the `voyageai` SDK.

Wire format: POST {base_url}/embeddings; source: docs.voyageai.com/reference/embeddings-api, the documentation at
github.com/mongodb/docs (content/voyageai) and SDK 0.5.0, read 2026-11-20. The SDK sends the request; the reply is
decoded here, because the SDK creates a Python number for every number, ignores Retry-After, and fails on HTTP 501 and
529. Tested against a local server that follows the documentation, not against the live service.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit

from embedkit_core.common.errors import (
    AuthenticationError,
    BadReplyError,
    BadRequestError,
    ConfigurationError,
    ProviderError,
    TextTooLongError,
    TimedOutError,
)
from embedkit_core.common.money import USD
from embedkit_core.common.types import Batch, InputType, Limits, Reply
from embedkit_core.common.vectors import NUMPY_DTYPES, DType
from embedkit_core.providers.base import Client, ProviderSettings
from embedkit_core.providers.http.address import canonical_url
from embedkit_core.providers.http.decoding import ReplyReader
from embedkit_core.providers.http.provider import HTTPProvider, cache_platform_names, sdk_timeout
from embedkit_core.providers.http.public_sdk import RawResponse, warn_of_public_sdk
from embedkit_core.providers.http.refusals import (
    CHECK_ADDRESS,
    REDIRECT_FIX,
    Refusal,
    connection_error,
    shorten_message,
)
from embedkit_core.providers.secrets import Hidden, Secret

if TYPE_CHECKING:
    from aiohttp import ClientSession

KEY_VARIABLE = "VOYAGE_API_KEY"
KEY_FILE_VARIABLE = "VOYAGE_API_KEY_PATH"  # takes precedence over the key, as in the SDK
HOST = "https://api.voyageai.com/v1"
MONGODB_HOST = "https://ai.mongodb.com/v1"  # for keys that begin with "al-", as in the SDK
# Hosts of a geography, such as eu.ai.mongodb.com, where tokens cost 10% more. Source:
# https://www.mongodb.com/docs/voyageai/geographies and .../api-reference/overview, read 2026-11-25.
GEOGRAPHY_HOST = re.compile(r"https://[a-z]+\.ai\.mongodb\.com/v1")
GEOGRAPHY_PRICE_FACTOR = Decimal("1.1")
ENCODING = "base64"

# Messages of error responses; tests/fixtures/recorded/voyage has recorded ones.
TOO_MANY_TOKENS = re.compile(r"max allowed tokens per (submitted )?batch|TOO_MANY_TOKENS_IN_BATCH", re.I)
TOO_MANY_TEXTS = re.compile(r"batch size|(more than|at most|maximum (length|size|number)).{0,40}\b1,?000\b", re.I)
TOO_LONG = re.compile(r"example at index (\d+).{0,80}too many tokens(.{0,80}window of (\d+) tokens)?", re.I | re.S)
ABOUT_TEXTS = re.compile(r"argument 'input'|\bbody\.input\b", re.I)
ABOUT_REQUEST = re.compile(r"\bmodel\b|input_type|output_d|truncation|encoding_format|argument|parameter|body\.", re.I)
OTHER_ENDPOINT = re.compile(r"voyage-(context|multimodal)\b")
NO_PAYMENT = re.compile(r"payment method", re.I)


class Voyage(HTTPProvider):
    """A model of Voyage AI, at any of its hosts or behind a gateway at `base_url`."""

    name: ClassVar[str] = "voyage"
    extra: ClassVar[str | None] = "voyage"
    needs: ClassVar[tuple[str, ...]] = ("voyageai", "aiohttp", "pydantic_core", "pybase64")
    key_variable: ClassVar[str | None] = KEY_VARIABLE
    default_limits: ClassVar[Limits] = Limits(texts=1000, tokens=120_000)  # the lowest of all models in the catalogue
    dtypes: ClassVar[tuple[DType, ...]] = ("float32", "int8", "uint8", "binary", "ubinary")
    reserved_fields: ClassVar[frozenset[str]] = HTTPProvider.reserved_fields | {
        *("output_dimension", "output_dtype", "truncation", "encoding_format", "api_key", "base_url", "headers")
    }
    dimensions_field: ClassVar[str] = "output_dimension"
    takes_roles: ClassVar[bool] = True
    encodings = (ENCODING,)  # for every dtype
    batch_endpoint: str | None = "embedkit_core.providers.voyage_batch:VoyageBatches"
    dtype: DType

    def __init__(self, settings: ProviderSettings) -> None:
        if other := OTHER_ENDPOINT.match(settings.name):
            raise ConfigurationError(
                f"model: {settings.name} uses the {other[1]} endpoint, which is not supported. Use the voyageai SDK."
            )
        secret = _find_secret(settings)
        has_value = secret is not None and secret.source is None and not secret.is_lost
        default = _own_host(secret.reveal()) if secret is not None and has_value else None
        self.address = settings.base_url.strip().rstrip("/") if settings.base_url is not None else default
        canonical = "" if self.address is None else canonical_url(self.address)
        super().__init__(settings, canonical, secret, needs_key=False)
        if GEOGRAPHY_HOST.fullmatch(canonical):
            self.usd_per_million = _geography_price(self.usd_per_million)
            self.usd_per_million_batch = _geography_price(self.usd_per_million_batch)
        self.dtype = settings.dtype
        self._roles = settings.role_values({"query": "query", "document": "document"})

    @classmethod
    def is_own_host(cls, base_url: str | None) -> bool:
        """Return True if an address is one of Voyage's own."""
        canonical = HOST if base_url is None else canonical_url(base_url)
        return canonical in (HOST, MONGODB_HOST) or GEOGRAPHY_HOST.fullmatch(canonical) is not None

    def request_body(self, input_type: InputType) -> dict[str, Any]:
        """Return the request body without texts; the client adds `prompt` before each text and does not send it."""
        dtype = {} if self.dtype == "float32" else {"output_dtype": self.dtype}
        return self.request_fields(input_type, input_type=self._roles[input_type], truncation=False, **dtype)

    def truncating_body(self, input_type: InputType) -> dict[str, Any]:
        """Return the request body with truncation by Voyage."""
        return self.request_body(input_type) | {"truncation": True}

    def overhead_tokens(self, input_type: InputType) -> int:
        """Include Voyage's own prompt: "Represent the query for retrieving supporting documents: "."""
        return super().overhead_tokens(input_type) + 64

    def connect(self) -> Client:
        """Open a client with one session; the SDK would open one for each request."""
        self.connection.check_not_lost()
        self.secret.reveal()
        return VoyageClient(self)

    def session_opener(self, *, auto_decompress: bool = False) -> Callable[[], ClientSession]:
        """Return a function that opens the session of a client on the running event loop. Files are read before.

        `trust_env` of aiohttp is off: with it, aiohttp reads the environment for each request on the default executor,
        and rejects the Authorization header if ~/.netrc has an entry for the host.
        """
        import ssl

        import aiohttp

        from embedkit_core.providers.http.bodies import ACCEPT_ENCODING
        from embedkit_core.providers.http.connector import ExactConnector

        connection = self.connection
        tls = connection.ssl_context(ssl.create_default_context)
        proxy = connection.proxy_for(self.address or HOST)

        def open_session() -> ClientSession:
            tracing = aiohttp.TraceConfig()
            tracing.on_request_redirect.append(_refuse_redirect)
            return aiohttp.ClientSession(
                trace_configs=[tracing],
                connector=ExactConnector(limit=0, ssl=tls),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=dict(connection.with_defaults({"accept-encoding": ACCEPT_ENCODING}).headers),
                auto_decompress=auto_decompress,
                proxy=proxy,
            )

        return open_session

    def address_for(self, key: str) -> str:
        """Return the address of a request with this key: `base_url`, else the Voyage host of the key."""
        return self.address or _own_host(key)


async def _refuse_redirect(session: object, context: object, redirect: Any) -> None:  # noqa: ARG001 - aiohttp's hook
    """Reject a redirect, because it would send the user's headers to another host."""
    raise BadRequestError(f"Server answered with a redirect (HTTP {redirect.response.status}), {REDIRECT_FIX}")


def _geography_price(price: Decimal | None) -> Decimal | None:
    return None if price is None else USD.multiply(price, GEOGRAPHY_PRICE_FACTOR)


def _own_host(key: str) -> str:
    return MONGODB_HOST if key.startswith("al-") else HOST


def _find_secret(settings: ProviderSettings) -> Secret | None:
    path = os.environ.get(KEY_FILE_VARIABLE)
    if not path or (settings.api_key is not None and not settings.api_key.is_lost):
        return settings.find_key(KEY_VARIABLE)
    try:
        key = Hidden(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        flaw = type(error).__name__
    else:
        return Secret.checked(key, f"file named by {KEY_FILE_VARIABLE}")
    raise ConfigurationError(
        f"The file named by the environment variable {KEY_FILE_VARIABLE} cannot be read ({flaw}). Correct or unset it."
    )


class VoyageClient:
    """Client with one session for all requests, which the SDK builds and sends, if it must with its public method."""

    def __init__(self, provider: Voyage) -> None:
        import aiohttp
        from voyageai import error as sdk_errors

        from embedkit_core.providers.http.bodies import limit_bodies, read_decompressed

        self._limit_bodies, self._read_decompressed = limit_bodies, read_decompressed
        self._requestor_class = _find_requestor()
        self._send = self._send_bytes
        if self._requestor_class is None:
            warn_of_public_sdk("voyageai", "APIRequestor.arequest_raw with a session")
            self._send = self._send_public
        self._errors = sdk_errors
        self._connection_errors = (aiohttp.ClientError, OSError)
        self._reader = ReplyReader()
        self._provider = provider
        cache_platform_names()
        self._open_session = provider.session_opener(auto_decompress=self._requestor_class is None)
        self._session: ClientSession | None = None

    async def embed(self, batch: Batch) -> Reply:
        """Send one request and decode its reply."""
        fields = dict(batch.body)
        fields.pop("prompt", None)
        texts = batch.texts_with_prompt()
        key = self._provider.secret.constant()
        address = self._provider.address_for(key.reveal())
        params = {**fields, "input": texts, "encoding_format": ENCODING}
        if self._session is None:  # it belongs to the running event loop
            self._session = self._open_session()
        try:
            response = await self._send(batch, params, key, address)
        except (self._errors.Timeout, TimeoutError):
            raise TimedOutError("Server did not respond in time. Increase timeout=.") from None
        except (self._errors.APIConnectionError, *self._connection_errors) as error:
            fix = CHECK_ADDRESS if self._provider.endpoint else ""
            raise connection_error(urlsplit(address).netloc, error, fix) from None
        if response.status >= 300:
            headers = {name.lower(): value for name, value in response.headers.items()}
            message = read_message(self._reader, response.body)
            refusal = Refusal(
                *("voyage", str(fields.get("model")), response.status, message, headers, texts),
                secrets=self._provider.connection.secrets_with(key),
                request_id=headers.get("x-request-id") or headers.get("request-id"),
            )
            raise _to_provider_error(refusal, address)
        dtype: DType = fields.get("output_dtype", "float32")
        return self._reader.read_data(
            self._reader.parse(response.body), len(texts), NUMPY_DTYPES[dtype], "total_tokens"
        )

    async def aclose(self) -> None:
        """Close the session."""
        if self._session is not None:
            await self._session.close()

    async def _send_bytes(self, batch: Batch, params: Mapping[str, Any], key: Secret, address: str) -> RawResponse:
        """Send a request as the SDK's requestor builds it."""
        response = await self._requestor_class(key.reveal(), address).arequest_raw(
            *("post", "/embeddings", self._session),
            params=params,
            supplied_headers=self._provider.connection.authorization_header,
            request_timeout=sdk_timeout(batch),
        )
        try:
            chunks = self._read_decompressed(
                response.content.iter_any(),
                status=response.status,
                encoding=response.headers.get("Content-Encoding", ""),
                limits=self._limit_bodies(batch),
            )
            return RawResponse(response.status, response.headers, b"".join([chunk async for chunk in chunks]))
        finally:
            response.release()

    async def _send_public(self, batch: Batch, params: Mapping[str, Any], key: Secret, address: str) -> RawResponse:
        """Send a request through the SDK's `Embedding.acreate`, and return the JSON from which it made its reply.

        The SDK limits no body and takes HTTP 501 and 529 for a reply. `AsyncClient.embed` would lose the order of rows.
        """
        voyageai: Any = importlib.import_module("voyageai")
        voyageai.aiosession.set(self._session)
        try:
            reply = await voyageai.Embedding.acreate(
                api_key=key.reveal(),
                base_url=address,
                request_timeout=sdk_timeout(batch),
                headers=self._provider.connection.authorization_header,
                **params,
            )
        except self._errors.VoyageError as error:
            if not isinstance(error.http_status, int):
                raise
            return RawResponse(error.http_status, error.headers or {}, str(error.http_body or "").encode())
        except (ValueError, TypeError, KeyError, AttributeError):
            raise BadReplyError("Server response could not be read by the voyageai package") from None
        return RawResponse(200, {}, self._reader.dump(reply))


def _find_requestor() -> Any:
    """Return the SDK's class that sends a request with a session, None if it has moved."""
    try:
        from voyageai.api_resources.api_requestor import APIRequestor

        parameters = inspect.signature(APIRequestor.arequest_raw).parameters
    except (ImportError, AttributeError):
        return None
    needed = {"session", "params", "supplied_headers", "request_timeout"}
    return APIRequestor if needed <= parameters.keys() else None


def read_message(reader: ReplyReader, body: bytes) -> str:
    """Return the message of {"detail": ..., "error_code": ...} or of a gateway's {"error": {"message": ...}}.

    The detail may be a list of findings, each with its location in `loc`.
    """
    try:
        fields = reader.load(body)
        detail = next(fields[name] for name in ("detail", "error", "message") if name in fields)
    except (ValueError, TypeError, StopIteration):
        return ""
    findings = detail if isinstance(detail, list) else [detail]
    code = fields.get("error_code")
    return shorten_message("; ".join(map(_finding, findings)) + (f" ({code})" if isinstance(code, str) else ""))


def _finding(finding: object) -> str:
    if not isinstance(finding, Mapping):
        return str(finding)
    location, message = finding.get("loc"), str(finding.get("msg") or finding.get("message") or "")
    return f"{'.'.join(map(str, location))}: {message}" if isinstance(location, list) else message


def account_error(refusal: Refusal, address: str) -> ProviderError | None:
    """Return the error for an error response that no text has caused, None if a text may have caused it."""
    status = refusal.status
    if status == 429 and NO_PAYMENT.search(refusal.message):
        return refusal.rate_limit("Account has no payment method, which limits it to a few requests per minute")
    if status == 403 and Voyage.is_own_host(address):
        return AuthenticationError(
            f"{refusal.model} is not available with this key at this host (HTTP 403). Use a key that begins with "
            f"al- at {MONGODB_HOST} or at the host of its geography, and any other key at {HOST}.",
            **refusal.error_fields,
        )
    return refusal.common_error(KEY_VARIABLE)


def _to_provider_error(refusal: Refusal, address: str) -> ProviderError:
    """Return the error for an error response, by status and message."""
    status, message = refusal.status, refusal.message
    if (error := account_error(refusal, address)) is not None:
        return error
    if match := TOO_LONG.search(message):
        limit = int(match[3]) if match[3] else None
        return TextTooLongError(limit=limit, positions={int(match[1]): None}, **refusal.error_fields)
    if status == 413 or TOO_MANY_TOKENS.search(message):
        return refusal.too_large()
    if TOO_MANY_TEXTS.search(message):
        return refusal.too_large(counts_texts=True)
    about_texts = ABOUT_TEXTS.search(message) or (status == 400 and not ABOUT_REQUEST.search(message))
    if status in (400, 422) and about_texts:
        return refusal.bad_text()
    return refusal.bad_request(address_fix(status, address))


def address_fix(status: int, address: str) -> str:
    """Return advice about a model or an address that was not found, "" if there is none."""
    if status == 410:
        return "The model has been retired. Use another one."
    return "Should base_url end in /v1?" if status == 404 and not address.endswith("/v1") else ""
