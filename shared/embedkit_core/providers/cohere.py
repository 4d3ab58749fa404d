"""Cohere, through the `cohere` SDK's async client.

Wire format: POST {base_url}/v2/embed; source: the OpenAPI description at
github.com/cohere-ai/cohere-developer-experience, docs.cohere.com/reference/embed, and SDK 5.21 and 7.3, read
2026-11-20. The SDK sends the request and we read the reply: its models would walk every number. Tried against a local
server that answers as documented, not against the live service.
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
    BadTextError,
    ProviderError,
    TextTooLongError,
    TimedOutError,
)
from embedkit_core.common.types import Batch, InputType, Limits, Reply
from embedkit_core.common.vectors import NUMPY_DTYPES, DType
from embedkit_core.providers.base import Client, ProviderSettings
from embedkit_core.providers.http.decoding import ReplyReader, read_tokens
from embedkit_core.providers.http.provider import HTTPProvider
from embedkit_core.providers.http.redaction import canonical_url
from embedkit_core.providers.http.refusals import Refusal, connection_error

if TYPE_CHECKING:
    from cohere import AsyncClientV2

HOST = "https://api.cohere.com"
OTHER_HOST = "https://api.cohere.ai"  # its former name
KEY_VARIABLE = "CO_API_KEY"
OTHER_KEY_VARIABLE = "COHERE_API_KEY"  # LangChain's
ADDRESS_VARIABLE = "CO_API_URL"
INPUT_TYPES: Mapping[InputType, str] = {"document": "search_document", "query": "search_query"}
KINDS: Mapping[DType, str] = {  # what `embedding_types` calls each; its base64 is of little-endian float32
    "float32": "base64",
    "int8": "int8",
    "uint8": "uint8",
    "binary": "binary",
    "ubinary": "ubinary",
}
SDK_TIMEOUT_SECONDS = 86_400  # seconds; the SDK reads None as 300

TOO_MANY_TEXTS = re.compile(r"total number of (texts|inputs) must be|at most \d+ (texts|inputs)", re.I)
TOO_LONG = re.compile(r"too many tokens|too long|exceeds? the (maximum|max) (context|input|token)", re.I)
COUNTS = re.compile(r"(cannot exceed|at most|maximum of) (?P<limit>\d+).{0,30}(received|got|has) (?P<tokens>\d+)", re.I)
ALL_TOGETHER = re.compile(r"(total|sum).{0,60}(request|batch)|per request", re.I)
EMPTY = re.compile(r"empty string", re.I)
ABOUT_TEXT = re.compile(r"\btexts?\b|element|at index|\bstring\b|\binputs?\b(?!_type)", re.I)
ABOUT_REQUEST = re.compile(r"input_type|embedding_types|output_dimension|truncate\b|\bmodel\b|parameter|field", re.I)
A_MONTH = re.compile(r"month", re.I)


class Cohere(HTTPProvider):
    """A model of Cohere's, or of a server at `base_url` that speaks its API."""

    name: ClassVar[str] = "cohere"
    extra: ClassVar[str | None] = "cohere"
    needs: ClassVar[tuple[str, ...]] = ("cohere", "httpx", "orjson", "pybase64")
    key_variable: ClassVar[str | None] = KEY_VARIABLE
    default_limits: ClassVar[Limits] = Limits(texts=96, tokens=128_000)  # those of all that are known
    dtypes: ClassVar[tuple[DType, ...]] = ("float32", "int8", "uint8", "binary", "ubinary")
    returns_normalized: ClassVar[bool] = False
    reserved_fields: ClassVar[frozenset[str]] = HTTPProvider.reserved_fields | {
        *("texts", "images", "inputs", "embedding_types", "output_dimension", "truncate", "stream")
    }
    dimensions_field: ClassVar[str] = "output_dimension"

    def __init__(self, settings: ProviderSettings) -> None:
        self.address: str = _address(settings.base_url)
        canonical, secret = canonical_url(self.address), settings.find_key(KEY_VARIABLE, OTHER_KEY_VARIABLE)
        super().__init__(settings, canonical, secret, needs_key=False)
        self.encodings = (KINDS[settings.dtype],)

    @classmethod
    def is_own_host(cls, base_url: str | None) -> bool:
        """Tell whether an address, given or from the environment, is Cohere's own."""
        return canonical_url(_address(base_url)) in (HOST, OTHER_HOST)

    def request_body(self, input_type: InputType) -> dict[str, Any]:
        """Return the request without its texts; `prompt` is put before each text and is not a field of its own."""
        return self.request_fields(
            input_type, input_type=INPUT_TYPES[input_type], embedding_types=[*self.encodings], truncate="NONE"
        )

    def truncating_body(self, input_type: InputType) -> dict[str, Any]:
        """Give the same with Cohere's own truncation at the end."""
        return self.request_body(input_type) | {"truncate": "END"}

    def connect(self) -> Client:
        """Open the SDK's async client."""
        self.connection.check_not_lost()
        self.secret.reveal()
        return CohereClient(self)

    def open_sdk(self) -> AsyncClientV2:
        """Give the SDK's client; each request has the key that is valid then."""
        import cohere
        import httpx

        given = self.connection
        transport = httpx.AsyncClient(
            headers=dict(given.headers),
            proxy=given.proxy,
            follow_redirects=False,  # headers of the user's would go to whoever a server names
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=100),
            verify=given.ssl_context() or True,
        )
        return cohere.AsyncClientV2(api_key=self.secret.reveal(), base_url=self.address, httpx_client=transport)


def _address(base_url: str | None) -> str:
    given = base_url if base_url is not None else os.environ.get(ADDRESS_VARIABLE) or HOST
    return re.sub(r"/v[12](/embed)?$", "", given.strip().rstrip("/")) if isinstance(given, str) else given


class CohereClient:
    """The SDK's transport, with its reply as bytes."""

    def __init__(self, provider: Cohere) -> None:
        import httpx

        self._reader = ReplyReader()
        self._provider = provider
        self._headers = {_titled(name): value for name, value in provider.connection.headers.items()}
        self._timed_out, self._lost = httpx.TimeoutException, httpx.RequestError
        self._sdk = provider.open_sdk()
        self._http: Any = self._sdk._client_wrapper.httpx_client

    async def embed(self, batch: Batch) -> Reply:
        """Send one request and decode its reply."""
        fields = dict(batch.body)
        fields.pop("prompt", None)
        texts = batch.texts_with_prompt()
        key = self._provider.secret.reveal()
        timeout = SDK_TIMEOUT_SECONDS if batch.timeout is None else batch.timeout
        try:
            response = await self._http.request(
                "v2/embed",
                method="POST",
                base_url=self._provider.address,  # the SDK edits one that names Cohere anywhere
                json={**fields, "texts": texts},
                headers={"content-type": "application/json", "Authorization": f"Bearer {key}"} | self._headers,
                request_options={"max_retries": 0, "timeout_in_seconds": timeout},
            )
        except self._timed_out:
            raise TimedOutError("the server did not answer in time; timeout= gives it longer") from None
        except self._lost as lost:
            where = urlsplit(self._provider.address).netloc
            raise connection_error(
                f"the server at {where} could not be reached ({type(lost).__name__})", lost
            ) from None
        if response.status_code != 200:
            headers = {name.lower(): value for name, value in response.headers.items()}
            said = self._said(response.content)
            refusal = Refusal(
                *("cohere", str(fields.get("model")), response.status_code, said["message"], headers, texts),
                secrets=self._provider.connection.secrets_with(key),
                request_id=said["id"] or headers.get("x-request-id"),
            )
            raise _to_provider_error(refusal)
        [kind] = fields["embedding_types"]
        return self._decode(response.content, len(texts), kind)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.httpx_client.aclose()

    def _decode(self, body: bytes, n_texts: int, kind: str) -> Reply:
        try:
            reply = self._reader.json.loads(body)
            encoded = reply["embeddings"][kind]
            billed = (reply.get("meta") or {}).get("billed_units")
            if not isinstance(encoded, list):
                raise TypeError("no list of rows")
        except (ValueError, KeyError, TypeError, AttributeError):
            raise BadReplyError(f"the server answered something that is not embeddings of type {kind}") from None
        tokens = read_tokens(billed, "input_tokens")
        dtype: DType = next(name for name, called in KINDS.items() if called == kind)
        return self._reader.read_rows(encoded, n_texts, NUMPY_DTYPES[dtype], tokens)

    def _said(self, body: bytes) -> dict[str, str]:
        """Read a refusal: {"message": ..., "id": ...}."""
        try:
            found = self._reader.json.loads(body)
        except ValueError:
            found = None
        found = found if isinstance(found, dict) else {}
        return {name: str(found.get(name) or "") for name in ("message", "id")}


def _titled(name: str) -> str:
    """Give a header's name as the SDK and we spell it: what differs in case only would go out twice."""
    known = {"authorization": "Authorization", "user-agent": "User-Agent"}
    return known.get(name.lower(), name)


def _to_provider_error(refusal: Refusal) -> ProviderError:
    """Turn a refusal into one of our errors, by status and message."""
    message = refusal.message
    if refusal.status == 429 and A_MONTH.search(message):
        return refusal.quota()  # a trial key's calls for this month are used up
    if refusal.status == 429:
        return refusal.rate_limit(wait=_reset(refusal.headers))
    if refusal.status == 498:  # blocked
        return refusal.bad_request()
    if refusal.status == 499:  # it saw the connection closed
        return refusal.unavailable()
    if (error := refusal.common_error(KEY_VARIABLE)) is not None:
        return error
    if TOO_MANY_TEXTS.search(message):
        return refusal.too_large(counts_texts=True)
    if refusal.status == 413 or (TOO_LONG.search(message) and ALL_TOGETHER.search(message)):
        return refusal.too_large()
    if TOO_LONG.search(message):
        counts = COUNTS.search(message)
        known = {name: int(n) for name, n in counts.groupdict().items()} if counts else {}
        return TextTooLongError(tokens=known.get("tokens"), limit=known.get("limit"), **refusal.where)
    about_text = ABOUT_TEXT.search(message) and not ABOUT_REQUEST.search(message)
    if refusal.status in (400, 422) and (about_text or EMPTY.search(message) or not message):
        return BadTextError(
            f"the server refuses a text (HTTP {refusal.status}){refusal.server_message}", **refusal.where
        )
    return refusal.bad_request()


def _reset(headers: Mapping[str, str]) -> float | None:
    """Read `x-ratelimit-reset`, a Unix time, as seconds from now. Source: the SDK's own retries."""
    try:
        seconds = float(headers.get("x-ratelimit-reset", "")) - time.time()
    except ValueError:
        return None
    return seconds if 0 <= seconds <= SDK_TIMEOUT_SECONDS else None
