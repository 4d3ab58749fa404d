"""Voyage AI, through the `voyageai` SDK.

Wire format: POST {base_url}/embeddings; source: docs.voyageai.com/reference/embeddings-api, the documentation at
github.com/mongodb/docs (content/voyageai) and SDK 0.5.0, read 2026-11-20. The SDK makes the request and we read the
reply: it would make a Python number of every number, knows no Retry-After, and fails on 501 and 529. Tried against a
local server that answers as documented, not against the live service.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit

from embedkit_core.errors import (
    AuthenticationError,
    BadReplyError,
    BadTextError,
    ConfigurationError,
    ProviderError,
    TextTooLongError,
    TimedOutError,
    UnavailableError,
)
from embedkit_core.form import ELEMENTS, DType
from embedkit_core.providers import Client, Provider, ProviderSettings
from embedkit_core.providers.decoding import decoded, decoder, in_order, read_tokens
from embedkit_core.providers.messages import canonical_url
from embedkit_core.providers.refusals import Refusal
from embedkit_core.secrets import Secret, clean
from embedkit_core.types import Batch, InputType, Limits, Reply

if TYPE_CHECKING:
    from aiohttp import ClientSession

KEY_VARIABLE = "VOYAGE_API_KEY"
KEY_FILE_VARIABLE = "VOYAGE_API_KEY_PATH"  # the SDK has it win over the key itself
HOST = "https://api.voyageai.com/v1"
MONGODB = "https://ai.mongodb.com/v1"  # for keys that begin with "al-", as the SDK has it
# Hosts in one region cost a tenth more. Source: content/voyageai/source/includes/billing in github.com/mongodb/docs.
REGIONS = ("https://eu.ai.mongodb.com/v1", "https://us.ai.mongodb.com/v1")
SURCHARGE = Decimal("1.1")
FOREVER = 86_400.0  # the SDK reads None as 600 seconds

TOO_MANY_TOKENS = re.compile(r"max allowed tokens per (submitted )?batch|TOO_MANY_TOKENS_IN_BATCH", re.I)
TOO_MANY_TEXTS = re.compile(r"batch size|(more than|at most|maximum (length|size|number)).{0,40}\b1,?000\b", re.I)
TOO_LONG = re.compile(r"example at index (\d+).{0,80}too many tokens", re.I | re.S)
ABOUT_REQUEST = re.compile(r"\bmodel\b|input_type|output_d|truncation|encoding_format|argument|parameter", re.I)
NO_PAYMENT = re.compile(r"payment method", re.I)


class Voyage(Provider):
    """A model of Voyage AI's, at any of its hosts or behind a gateway at `base_url`."""

    name: ClassVar[str] = "voyage"
    extra: ClassVar[str | None] = "voyage"
    needs: ClassVar[tuple[str, ...]] = ("voyageai", "orjson", "pybase64")
    key_variable: ClassVar[str | None] = KEY_VARIABLE
    unknown_limits: ClassVar[Limits] = Limits(texts=1000, tokens=120_000)  # the least of those that are known
    dtypes: ClassVar[tuple[DType, ...]] = ("float32", "int8", "uint8", "binary", "ubinary")
    own_fields: ClassVar[frozenset[str]] = Provider.own_fields | {
        *("output_dimension", "output_dtype", "truncation", "encoding_format", "api_key", "base_url", "headers")
    }

    def __init__(self, settings: ProviderSettings) -> None:
        self.model = settings.name
        self.secret = _key(settings)
        self.address: str = (settings.base_url or _host_of(self.secret)).strip().rstrip("/")
        canonical = canonical_url(self.address)
        self.endpoint = "" if canonical in (HOST, MONGODB, *REGIONS) else canonical
        if self.secret is None and not self.endpoint:
            raise ConfigurationError(
                f"no API key for voyage:{self.model}: pass api_key=, or set the environment variable {KEY_VARIABLE}"
            )
        info = settings.info
        default = info.dimensions if info else None
        self.dimensions = settings.dimensions or default
        self._sent_dimensions = self.dimensions if self.dimensions != default else None
        self._dtype = settings.dtype
        self.limits = info.limits if info else self.unknown_limits
        self.usd_per_million = info.usd_per_million if info else None
        if canonical in REGIONS and self.usd_per_million is not None:
            self.usd_per_million *= SURCHARGE
        self._prompts = settings.prompts
        self._options = dict(settings.options)
        self.connection = settings.connection
        mark = self.secret.mark if self.secret else ""
        self.account = (self.name, canonical, mark, settings.connection.mark)

    @classmethod
    def is_own_host(cls, base_url: str | None) -> bool:
        """Tell whether an address is one of Voyage's own."""
        return base_url is None or canonical_url(base_url) in (HOST, MONGODB, *REGIONS)

    def wire(self, input_type: InputType) -> dict[str, Any]:
        """Give the request without its texts; `prompt` is put before each text and is not a field of its own."""
        wire: dict[str, Any] = {"model": self.model, "input_type": input_type, "truncation": False}
        if self._sent_dimensions is not None:
            wire["output_dimension"] = self._sent_dimensions
        if self._dtype != "float32":
            wire["output_dtype"] = self._dtype
        wire |= self._options
        if self._prompts[input_type]:
            wire["prompt"] = self._prompts[input_type]
        return wire

    def cutting_wire(self, input_type: InputType) -> dict[str, Any]:
        """Give the same with Voyage's own truncation."""
        return self.wire(input_type) | {"truncation": True}

    def connect(self) -> Client:
        """Open a session, which the SDK would otherwise do for each request."""
        self.connection.check_not_lost()
        if self.secret is not None and self.secret.source is None:
            self.secret.reveal()
        return VoyageClient(self)

    def open_session(self) -> ClientSession:
        """Give the session of a client; it is opened on the engine's loop."""
        import aiohttp

        given = self.connection
        connector = aiohttp.TCPConnector(limit=0, ssl=given.ssl_context() or True)
        return aiohttp.ClientSession(
            connector=connector, headers=dict(given.headers), proxy=given.proxy, trust_env=given.proxy is None
        )


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


def _host_of(secret: Secret | None) -> str:
    known = secret is not None and not secret.is_lost and secret.source is None
    return MONGODB if known and secret is not None and secret.reveal().startswith("al-") else HOST


class VoyageClient:
    """One session for all requests; the SDK puts the request together."""

    def __init__(self, provider: Voyage) -> None:
        import aiohttp
        import orjson
        from voyageai import error as sdk_errors
        from voyageai.api_resources.api_requestor import APIRequestor

        self._requestor: Any = APIRequestor
        self._errors = sdk_errors
        self._lost = (aiohttp.ClientError, OSError)
        self._json = orjson
        self._decode64 = decoder()
        self._provider = provider
        self._secret = provider.secret or Secret("no-key-needed")
        self._session = provider.open_session()

    async def embed(self, batch: Batch) -> Reply:
        """Send one request and decode its reply."""
        fields = dict(batch.wire)
        fields.pop("prompt", None)
        texts = batch.prompted()
        key = self._secret.reveal()
        requestor = self._requestor(key, self._provider.address)
        params = {**fields, "input": texts, "encoding_format": "base64"}
        timeout = FOREVER if batch.timeout is None else batch.timeout
        try:
            response = await requestor.arequest_raw(
                "post", "/embeddings", self._session, params=params, request_timeout=timeout
            )
            try:
                body: bytes = await response.read()
            finally:
                response.release()
        except (self._errors.Timeout, TimeoutError):
            raise TimedOutError("the server did not answer in time; timeout= gives it longer") from None
        except (self._errors.APIConnectionError, *self._lost) as lost:
            where = urlsplit(self._provider.address).netloc
            raise UnavailableError(f"the server at {where} could not be reached ({_cause(lost)})") from None
        headers = {name.lower(): value for name, value in response.headers.items()}
        if response.status != 200:
            refusal = Refusal(
                *("voyage", str(fields.get("model")), response.status, self._detail(body), headers, texts),
                secrets=self._provider.connection.secrets_with(key),
                request_id=headers.get("request-id") or headers.get("x-request-id"),
            )
            raise _translated(refusal)
        return self._decode(body, len(texts), fields.get("output_dtype", "float32"))

    async def aclose(self) -> None:
        """Close the session."""
        await self._session.close()

    def _decode(self, body: bytes, n_texts: int, dtype: DType) -> Reply:
        try:
            reply = self._json.loads(body)
            encoded = [row["embedding"] for row in reply["data"]]
            indices = [row.get("index") for row in reply["data"]]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise BadReplyError("the server answered something that is not a list of embeddings") from None
        tokens = read_tokens(reply.get("usage"), "total_tokens")
        try:
            if len(encoded) != n_texts:
                raise BadReplyError(f"the server answered {len(encoded)} vectors for {n_texts} texts")
            return Reply(in_order(decoded(encoded, ELEMENTS[dtype], self._decode64), indices), tokens)
        except BadReplyError as error:
            error.tokens = tokens
            raise

    def _detail(self, body: bytes) -> str:
        """Read what a refusal says: {"detail": ...}, whose value may be a list of findings."""
        try:
            detail = self._json.loads(body)["detail"]
        except (ValueError, KeyError, TypeError):
            return ""
        if isinstance(detail, Sequence) and not isinstance(detail, str):
            return "; ".join(str(one.get("msg", "")) for one in detail if isinstance(one, Mapping))
        return str(detail)


def _cause(error: BaseException) -> str:
    cause = error.__cause__ or error
    number = getattr(cause, "errno", None)
    return os.strerror(number) if isinstance(number, int) and number > 0 else type(cause).__name__


def _translated(refusal: Refusal) -> ProviderError:
    """Turn a refusal into one of our errors, by status and message."""
    if refusal.status == 429 and NO_PAYMENT.search(refusal.message):
        return refusal.rate_limit("the account has no payment method, and with it only a few requests a minute")
    if refusal.status == 403:
        return AuthenticationError(
            f"{refusal.model} is not to be had with this key at this host (HTTP 403); a key that begins with al- is "
            f"for {MONGODB}, another for {HOST}",
            **refusal.where,
        )
    if (error := refusal.general(KEY_VARIABLE)) is not None:
        return error
    if found := TOO_LONG.search(refusal.message):
        return TextTooLongError(positions={int(found[1]): None}, **refusal.where)
    if refusal.status == 413 or TOO_MANY_TOKENS.search(refusal.message):
        return refusal.too_large()
    if TOO_MANY_TEXTS.search(refusal.message):
        return refusal.too_large(counts_texts=True)
    if refusal.status == 400 and not ABOUT_REQUEST.search(refusal.message):
        return BadTextError(f"the server refuses a text (HTTP 400){refusal.said}", **refusal.where)
    return refusal.bad_request("; the model has been retired" if refusal.status == 410 else "")
