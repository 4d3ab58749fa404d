"""Voyage AI, through the `voyageai` SDK.

Wire format: POST {base_url}/embeddings; source: docs.voyageai.com/reference/embeddings-api, the documentation at
github.com/mongodb/docs (content/voyageai) and SDK 0.5.0, read 2026-11-20. The SDK makes the request and we read the
reply: it would make a Python number of every number, knows no Retry-After, and fails on 501 and 529. Tried against a
local server that answers as documented, not against the live service.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit

from embedkit_core.common.errors import (
    AuthenticationError,
    BadRequestError,
    BadTextError,
    ConfigurationError,
    ProviderError,
    TextTooLongError,
    TimedOutError,
)
from embedkit_core.common.types import Batch, InputType, Limits, Reply
from embedkit_core.common.vectors import NUMPY_DTYPES, DType
from embedkit_core.providers.base import Client, ProviderSettings
from embedkit_core.providers.http.decoding import ReplyReader
from embedkit_core.providers.http.provider import HTTPProvider
from embedkit_core.providers.http.redaction import canonical_url
from embedkit_core.providers.http.refusals import REDIRECT_HINT, Refusal, connection_error
from embedkit_core.providers.secrets import Secret, clean

if TYPE_CHECKING:
    from aiohttp import ClientSession

KEY_VARIABLE = "VOYAGE_API_KEY"
KEY_FILE_VARIABLE = "VOYAGE_API_KEY_PATH"  # the SDK has it win over the key itself
HOST = "https://api.voyageai.com/v1"
MONGODB = "https://ai.mongodb.com/v1"  # for keys that begin with "al-", as the SDK has it
# One for each geography, as in eu.ai.mongodb.com, where tokens cost a tenth more. Source:
# https://www.mongodb.com/docs/voyageai/geographies and .../api-reference/overview, read 2026-11-25.
SCOPED = re.compile(r"https://[a-z]+\.ai\.mongodb\.com/v1")
SURCHARGE = Decimal("1.1")
ENCODING = "base64"
SDK_TIMEOUT_SECONDS = 86_400.0  # the SDK reads None as 600 seconds

# What refusals say; tests/golden/voyage has them as they were seen.
TOO_MANY_TOKENS = re.compile(r"max allowed tokens per (submitted )?batch|TOO_MANY_TOKENS_IN_BATCH", re.I)
TOO_MANY_TEXTS = re.compile(r"batch size|(more than|at most|maximum (length|size|number)).{0,40}\b1,?000\b", re.I)
TOO_LONG = re.compile(r"example at index (\d+).{0,80}too many tokens(.{0,80}window of (\d+) tokens)?", re.I | re.S)
ABOUT_TEXTS = re.compile(r"argument 'input'|\bbody\.input\b", re.I)
ABOUT_REQUEST = re.compile(r"\bmodel\b|input_type|output_d|truncation|encoding_format|argument|parameter|body\.", re.I)
OTHER_ENDPOINT = re.compile(r"voyage-(context|multimodal)\b")
NO_PAYMENT = re.compile(r"payment method", re.I)


class Voyage(HTTPProvider):
    """A model of Voyage AI's, at any of its hosts or behind a gateway at `base_url`."""

    name: ClassVar[str] = "voyage"
    extra: ClassVar[str | None] = "voyage"
    needs: ClassVar[tuple[str, ...]] = ("voyageai", "aiohttp", "orjson", "pybase64")
    key_variable: ClassVar[str | None] = KEY_VARIABLE
    default_limits: ClassVar[Limits] = Limits(texts=1000, tokens=120_000)  # the least of those that are known
    dtypes: ClassVar[tuple[DType, ...]] = ("float32", "int8", "uint8", "binary", "ubinary")
    reserved_fields: ClassVar[frozenset[str]] = HTTPProvider.reserved_fields | {
        *("output_dimension", "output_dtype", "truncation", "encoding_format", "api_key", "base_url", "headers")
    }
    dimensions_field: ClassVar[str] = "output_dimension"
    encodings = (ENCODING,)  # for every dtype

    def __init__(self, settings: ProviderSettings) -> None:
        if other := OTHER_ENDPOINT.match(settings.name):
            raise ConfigurationError(
                f"{settings.name} takes its texts in another way ({other[1]}), which is not spoken here; its SDK does"
            )
        secret = _key(settings)
        is_known = secret is not None and secret.source is None and not secret.is_lost
        by_key = _own_host(secret.reveal()) if secret is not None and is_known else None
        self.address = settings.base_url.strip().rstrip("/") if settings.base_url is not None else by_key
        canonical = "" if self.address is None else canonical_url(self.address)
        super().__init__(settings, canonical, secret, needs_key=False)
        if self.usd_per_million is not None and SCOPED.fullmatch(canonical):
            self.usd_per_million *= SURCHARGE
        self._dtype = settings.dtype

    @classmethod
    def is_own_host(cls, base_url: str | None) -> bool:
        """Tell whether an address is one of Voyage's own."""
        canonical = HOST if base_url is None else canonical_url(base_url)
        return canonical in (HOST, MONGODB) or SCOPED.fullmatch(canonical) is not None

    def request_body(self, input_type: InputType) -> dict[str, Any]:
        """Return the request without its texts; `prompt` is put before each text and is not a field of its own."""
        dtype = {} if self._dtype == "float32" else {"output_dtype": self._dtype}
        return self.request_fields(input_type, input_type=input_type, truncation=False, **dtype)

    def truncating_body(self, input_type: InputType) -> dict[str, Any]:
        """Give the same with Voyage's own truncation."""
        return self.request_body(input_type) | {"truncation": True}

    def overhead_tokens(self, input_type: InputType) -> int:
        """Count Voyage's own prompt too: "Represent the query for retrieving supporting documents: "."""
        return super().overhead_tokens(input_type) + 64

    def connect(self) -> Client:
        """Open a session, which the SDK would otherwise do for each request."""
        self.connection.check_not_lost()
        self.secret.reveal()
        return VoyageClient(self)

    def open_session(self) -> ClientSession:
        """Give the session of a client; it is opened on the engine's loop.

        aiohttp does not look at the environment itself (`trust_env`): it would for each request, on the default
        executor, and refuse the key's header where ~/.netrc has something for the host.
        """
        import aiohttp

        given = self.connection
        tracing = aiohttp.TraceConfig()
        tracing.on_request_redirect.append(_refuse_redirect)
        return aiohttp.ClientSession(
            trace_configs=[tracing],
            connector=aiohttp.TCPConnector(limit=0, ssl=given.ssl_context() or True),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=dict(given.headers),
            proxy=given.proxy_for(self.address or HOST),
        )

    def address_for(self, key: str) -> str:
        """Give the address requests go to with a key; one that changes says each time which of Voyage's it is for."""
        return self.address or _own_host(key)


async def _refuse_redirect(session: object, context: object, redirect: Any) -> None:  # noqa: ARG001 - aiohttp's hook
    """Follow no redirect: headers of the user's would go to whoever a server names."""
    raise BadRequestError(f"the server answered with a redirect (HTTP {redirect.response.status}){REDIRECT_HINT}")


def _own_host(key: str) -> str:
    return MONGODB if key.startswith("al-") else HOST


def _key(settings: ProviderSettings) -> Secret | None:
    path = os.environ.get(KEY_FILE_VARIABLE)
    if not path or (settings.api_key is not None and not settings.api_key.is_lost):
        return settings.find_key(KEY_VARIABLE)
    flaw = None
    try:
        return Secret(clean(Path(path).expanduser().read_text(encoding="utf-8"), f"the file in {KEY_FILE_VARIABLE}"))
    except (OSError, UnicodeDecodeError) as error:
        flaw = type(error).__name__
    raise ConfigurationError(f"the environment variable {KEY_FILE_VARIABLE} names a file that cannot be read ({flaw})")


class VoyageClient:
    """One session for all requests; the SDK puts the request together."""

    def __init__(self, provider: Voyage) -> None:
        import aiohttp
        from voyageai import error as sdk_errors
        from voyageai.api_resources.api_requestor import APIRequestor

        self._requestor: Any = APIRequestor
        self._errors = sdk_errors
        self._lost = (aiohttp.ClientError, OSError)
        self._reader = ReplyReader()
        self._provider = provider
        self._session = provider.open_session()

    async def embed(self, batch: Batch) -> Reply:
        """Send one request and decode its reply."""
        fields = dict(batch.body)
        fields.pop("prompt", None)
        texts = batch.texts_with_prompt()
        key = self._provider.secret.reveal()
        address = self._provider.address_for(key)
        requestor = self._requestor(key, address)
        params = {**fields, "input": texts, "encoding_format": ENCODING}
        timeout = SDK_TIMEOUT_SECONDS if batch.timeout is None else batch.timeout
        own = self._provider.connection.authorization
        try:
            response = await requestor.arequest_raw(
                *("post", "/embeddings", self._session),
                params=params,
                supplied_headers={"Authorization": own} if own else None,
                request_timeout=timeout,
            )
            try:
                body: bytes = await response.read()
            finally:
                response.release()
        except (self._errors.Timeout, TimeoutError):
            raise TimedOutError("the server did not answer in time; timeout= gives it longer") from None
        except (self._errors.APIConnectionError, *self._lost) as lost:
            where = urlsplit(address).netloc
            raise connection_error(f"the server at {where} could not be reached ({_cause(lost)})", lost) from None
        if response.status >= 300:
            headers = {name.lower(): value for name, value in response.headers.items()}
            refusal = Refusal(
                *("voyage", str(fields.get("model")), response.status, self._said(body), headers, texts),
                secrets=self._provider.connection.secrets_with(key),
                request_id=headers.get("x-request-id") or headers.get("request-id"),
            )
            raise _to_provider_error(refusal, address)
        dtype: DType = fields.get("output_dtype", "float32")
        return self._reader.read_data(body, len(texts), NUMPY_DTYPES[dtype], "total_tokens")

    async def aclose(self) -> None:
        """Close the session."""
        await self._session.close()

    def _said(self, body: bytes) -> str:
        """Read what a refusal says: {"detail": ..., "error_code": ...}, or a gateway's {"error": {"message": ...}}.

        A detail may be a list of findings, each with the place (`loc`) it is about.
        """
        try:
            fields = self._reader.json.loads(body)
            detail = next(fields[name] for name in ("detail", "error", "message") if name in fields)
        except (ValueError, TypeError, StopIteration):
            return ""
        findings = detail if isinstance(detail, list) else [detail]
        code = fields.get("error_code")
        return "; ".join(map(_finding, findings)) + (f" ({code})" if isinstance(code, str) else "")


def _finding(one: object) -> str:
    if not isinstance(one, Mapping):
        return str(one)
    place, message = one.get("loc"), str(one.get("msg") or one.get("message") or "")
    return f"{'.'.join(map(str, place))}: {message}" if isinstance(place, list) else message


def _cause(error: BaseException) -> str:
    cause = error.__cause__ or error
    number = getattr(cause, "errno", None)
    return os.strerror(number) if isinstance(number, int) and number > 0 else type(cause).__name__


def _to_provider_error(refusal: Refusal, address: str) -> ProviderError:
    """Turn a refusal into one of our errors, by status and message."""
    status, message = refusal.status, refusal.message
    if status == 429 and NO_PAYMENT.search(message):
        return refusal.rate_limit("the account has no payment method, and with it only a few requests a minute")
    if status == 403 and Voyage.is_own_host(address):
        return AuthenticationError(
            f"{refusal.model} is not to be had with this key at this host (HTTP 403); a key that begins with al- is "
            f"for {MONGODB} or the geography it was made for, another for {HOST}",
            **refusal.where,
        )
    if (error := refusal.common_error(KEY_VARIABLE)) is not None:
        return error
    if found := TOO_LONG.search(message):
        limit = int(found[3]) if found[3] else None
        return TextTooLongError(limit=limit, positions={int(found[1]): None}, **refusal.where)
    if status == 413 or TOO_MANY_TOKENS.search(message):
        return refusal.too_large()
    if TOO_MANY_TEXTS.search(message):
        return refusal.too_large(counts_texts=True)
    about_texts = ABOUT_TEXTS.search(message) or (status == 400 and not ABOUT_REQUEST.search(message))
    if status in (400, 422) and about_texts:
        return BadTextError(f"the server refuses a text (HTTP {status}){refusal.server_message}", **refusal.where)
    return refusal.bad_request(_way_out(status, address))


def _way_out(status: int, address: str) -> str:
    if status == 410:
        return "; the model has been retired"
    return "; should base_url end in /v1?" if status == 404 and not address.endswith("/v1") else ""
