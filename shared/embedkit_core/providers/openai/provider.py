"""OpenAI, and servers with its embeddings API, through the `openai` SDK's async client.

Wire format: POST {base_url}/embeddings with model, input (strings only) and encoding_format; source: the OpenAPI
description at github.com/openai/openai-openapi and SDK 3.52, read 2026-11-20. Tested against a local server
that follows the documentation, not against the live service.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from embedkit_core.common.errors import (
    AuthenticationError,
    ConfigurationError,
    EncodingRefusedError,
    ProviderError,
    TimedOutError,
)
from embedkit_core.common.types import Batch, InputType, Limits, Reply
from embedkit_core.common.vectors import NUMPY_DTYPES, DType
from embedkit_core.providers.base import Client, ProviderSettings
from embedkit_core.providers.http.connection import header_flaw
from embedkit_core.providers.http.decoding import ReplyReader, UnreadableEncodingError
from embedkit_core.providers.http.headers import rate_limit_status
from embedkit_core.providers.http.provider import HTTPProvider, cache_platform_names
from embedkit_core.providers.http.redaction import canonical_url
from embedkit_core.providers.http.refusals import CHECK_ADDRESS, Refusal, connection_error, shorten_message
from embedkit_core.providers.openai.refusals import ErrorDetail, error_status, read_detail, to_provider_error
from embedkit_core.providers.openai.servers import BASE64, FLOATS, OPENAI, Role, Server
from embedkit_core.providers.openai.tokenizer import tiktoken_counter
from embedkit_core.providers.secrets import Hidden, Secret, reveal

if TYPE_CHECKING:
    from embedkit_core.providers.openai.encoding import EncodingNegotiation
    from embedkit_core.providers.openai.sdk import IsolatedClient

KEY_VARIABLE = "OPENAI_API_KEY"
CUSTOM_HEADERS_VARIABLE = "OPENAI_CUSTOM_HEADERS"
SERVER_PROMPT_TOKENS = 64  # that a server may add for an input type
OTHER_CAUSE_STATUSES = (401, 402, 403, 408, 409, 429)  # never caused by the encoding


class OpenAI(HTTPProvider):
    """A model of OpenAI, or of a compatible server at `base_url`.

    Attributes:
        server: Defaults of the kind of server.
        documents_base64: True if base64 is float32 by the documentation of the server.
    """

    name: ClassVar[str] = "openai"
    extra: ClassVar[str | None] = "openai"
    needs: ClassVar[tuple[str, ...]] = ("openai", "pydantic_core", "pybase64")
    key_variable: ClassVar[str | None] = KEY_VARIABLE
    catalogue_providers: ClassVar[tuple[str, ...]] = ("openai", "local")
    # `embed_dtype` and `endianness` of vLLM would change the meaning of base64.
    reserved_fields: ClassVar[frozenset[str]] = HTTPProvider.reserved_fields | {
        *("encoding_format", "embed_dtype", "endianness"),
        *("api_key", "extra_body", "extra_headers", "extra_query", "timeout"),
    }
    server: ClassVar[Server] = OPENAI
    default_limits: ClassVar[Limits] = OPENAI.limits
    dtype: DType
    documents_base64: bool

    def __init__(self, settings: ProviderSettings) -> None:
        address = self.locate(settings.base_url)
        canonical, secret = canonical_url(address), settings.find_key(*self.server.key_variables)
        environment_headers = self._environment_headers(settings.base_url)
        settings = replace(settings, connection=settings.connection.with_defaults(environment_headers))
        super().__init__(settings, canonical, secret, needs_key=self.server.needs_key)
        self._base_url = address.strip()
        server = self.server
        self.dtype = settings.dtype
        may_truncate = not server.refuses_long_texts and server.truncation is None
        self.may_truncate_silently = may_truncate and not self.is_openai
        self._fields = dict(server.always)
        if server.dtype_field is not None and settings.dtype in server.dtypes:
            self._fields[server.dtype_field] = server.dtypes[settings.dtype]
        self._role = server.role if server.role and self._has_role(server.role, settings) else None
        self._roles = settings.role_values(server.role.values if server.role else {})
        self.encodings = (BASE64,) if server.encoding_field and server.base64 is not False else ()
        self.documents_base64 = self.is_openai or server.base64 is True
        self.batch_endpoint = server.batch.endpoint if server.batch else None
        self._uses_openai_tokens = settings.info is not None and settings.info.tokenizer == "tiktoken:cl100k_base"

    @classmethod
    def locate(cls, base_url: str | None) -> str:
        """Return the address of the requests: `base_url`, else the environment's, else the server's default."""
        return cls.server.find(base_url)

    @classmethod
    def is_own_host(cls, base_url: str | None) -> bool:
        """Return True if `base_url`, or else the environment's address, is OpenAI's own."""
        return canonical_url(cls.locate(base_url)) == OPENAI.address

    @classmethod
    def catalogue_providers_at(cls, base_url: str | None) -> tuple[str, ...]:
        """Return the providers whose catalogue rows apply: at OpenAI's own address only OpenAI."""
        is_openai = cls.server is OPENAI and cls.is_own_host(base_url)
        return cls.catalogue_providers[:1] if is_openai else cls.catalogue_providers

    def _has_role(self, role: Role, settings: ProviderSettings) -> bool:
        """Return True if the requests for a model have a field for the input type.

        A model with the row of another provider has prompts instead, if that row has any.
        """
        info = settings.info
        if info is None:
            return role.is_for_unknown_models
        is_own = info.provider == self.name
        return (info.asymmetric or settings.task is not None) and (is_own or not info.prompts)

    def _environment_headers(self, base_url: str | None) -> dict[str, str]:
        """Return the headers in OpenAI's environment variables, which no other server receives.

        Those of OPENAI_CUSTOM_HEADERS are for the address of the environment, not for another one that the user passes.
        """
        if not self.server.takes_openai_names:
            return {}
        names = {
            "OpenAI-Organization": os.environ.get("OPENAI_ORG_ID") or os.environ.get("OPENAI_ORGANIZATION"),
            "OpenAI-Project": os.environ.get("OPENAI_PROJECT_ID"),
        }
        headers = {name: value for name, value in names.items() if value}
        if base_url is None or self.is_own_host(base_url):
            headers |= _custom_headers()
        return headers

    @property
    def is_openai(self) -> bool:
        """True at OpenAI's own service."""
        return self.server is OPENAI and not self.endpoint

    @property
    def negotiates(self) -> bool:
        """True if requests may ask for base64 of float32."""
        return bool(self.encodings) and self.dtype == "float32"

    @property
    def url(self) -> str | None:
        """Address of the requests, including OpenAI's own."""
        return self._base_url

    def request_body(self, input_type: InputType) -> dict[str, Any]:
        """Return the request body without texts; the client adds `prompt` before each text and does not send it."""
        fields = dict(self._fields)
        if self._role is not None:
            fields[self._role.field] = self._roles[input_type]
        if self.server.truncation is not None:
            fields[self.server.truncation.field] = self.server.truncation.refuse
        return self.request_fields(input_type, **fields)

    def truncating_body(self, input_type: InputType) -> dict[str, Any] | None:
        """Return the request body with truncation by the server, None if it has no field for it."""
        truncation = self.server.truncation
        return truncation and self.request_body(input_type) | {truncation.field: truncation.truncate}

    def overhead_tokens(self, input_type: InputType) -> int:
        """Return the maximum number of billed tokens per text besides its own, with a prompt of the server."""
        return super().overhead_tokens(input_type) + (SERVER_PROMPT_TOKENS if self._role else 0)

    def count_tokens(self, text: str) -> int | None:
        """Count the tokens of OpenAI's models with tiktoken, if it is installed and its vocabulary is cached."""
        counter = tiktoken_counter("cl100k_base") if self._uses_openai_tokens else None
        return counter(text) if counter is not None else None

    def connect(self) -> Client:
        """Open the SDK's async client."""
        self.check_not_lost()
        return OpenAIClient(self)

    def check_not_lost(self) -> None:
        """Check that credentials passed in another process are not needed in this one.

        Raises:
            AuthenticationError: They were not pickled.
        """
        self.connection.check_not_lost()
        if self.secret.is_lost:
            fix = f"Set the environment variable {self.key_variable}" if self.key_variable else "Pass api_key="
            raise AuthenticationError(f"The api_key was not pickled. {fix} in this process.")

    def open_sdk(self) -> IsolatedClient:
        """Return the SDK's client without its retries and with its defaults for connections."""
        from openai import DefaultAsyncHttpxClient

        from embedkit_core.providers.http.bodies import ACCEPT_ENCODING, limiting_hook
        from embedkit_core.providers.openai.sdk import IsolatedClient

        cache_platform_names()
        # Redirects are not followed, because they would send the user's headers to another host.
        transport = DefaultAsyncHttpxClient(
            proxy=self.connection.proxy,
            verify=self.connection.ssl_context(http_package().create_ssl_context),
            follow_redirects=False,
            headers={"accept-encoding": ACCEPT_ENCODING},
            event_hooks={"response": [limiting_hook(http_package().AsyncByteStream)]},
        )
        arguments = {"base_url": self._base_url, "http_client": transport, "max_retries": 0, **self.sdk_arguments()}
        return IsolatedClient(self.connection.headers, **arguments)

    def sdk_arguments(self) -> dict[str, Any]:
        """Return further arguments of `IsolatedClient`."""
        return {}

    def address_fix(self, path: str) -> str:
        """Return advice about an address that was not found, "" if its path is the usual one."""
        if not self.endpoint:
            return ""
        known = self.server.usual_path
        usual = known or "/v1"  # infinity has none by default, and this one behind a gateway or by an option
        if not path.endswith(usual):
            return f"Should base_url end in {usual}?"
        return "" if known else f"Should base_url end without {usual}?"

    def transport_error(self, error: Exception, url: Any) -> ProviderError:
        """Return the error for a request without a response.

        Args:
            error: The exception of the SDK or of its HTTP client.
            url: The client's base URL.
        """
        import openai

        if isinstance(error, openai.APITimeoutError):
            return TimedOutError("Server did not respond in time. Increase timeout=.")
        if isinstance(error.__cause__, ProviderError):  # SDK 2 wraps every exception
            return error.__cause__
        host = f"{url.host}:{url.port}" if url.port else url.host
        through = " through proxy=" if self.connection.proxy else ""
        fix = CHECK_ADDRESS if self.endpoint else ""
        if self.server is not OPENAI and not self.server.is_service:
            fix = f"Is {self.server.title} running there?"
        return connection_error(host, error, fix, through=through)

    def read_refusal(
        self, status: int, body: object, headers: Mapping[str, str], key: Secret, texts: Sequence[str] = ()
    ) -> tuple[Refusal, ErrorDetail]:
        """Return an error response, or a reply with an error instead of vectors, and its fields."""
        detail = read_detail(body)
        detail = replace(detail, message=shorten_message(detail.message))
        headers = {name.lower(): value for name, value in headers.items()}
        refusal = Refusal(
            *(self.name, self.model, status, detail.message, headers, texts),
            secrets=self.connection.secrets_with(key),
            request_id=headers.get("x-request-id"),
        )
        return refusal, detail


def _custom_headers() -> dict[str, str]:
    """Return the headers of OPENAI_CUSTOM_HEADERS, one per line, without Authorization, which is that of the key."""
    lines = (line.partition(":") for line in os.environ.get(CUSTOM_HEADERS_VARIABLE, "").splitlines())
    headers = Hidden({name.strip(): value.strip() for name, colon, value in lines if colon})
    if header_flaw(reveal(headers)):
        raise ConfigurationError(
            f"The environment variable {CUSTOM_HEADERS_VARIABLE} has a header that HTTP does not allow. Correct it."
        )
    return {name: value for name, value in reveal(headers).items() if name.lower() != "authorization"}


def http_package() -> Any:
    """Return the package of the SDK's transport: httpx2 for SDK 3, httpx for SDK 2."""
    import openai

    return importlib.import_module("httpx2" if int(openai.__version__.split(".")[0]) >= 3 else "httpx")


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

    def __init__(self, provider: OpenAI) -> None:
        import openai

        from embedkit_core.providers.http.bodies import limit_bodies
        from embedkit_core.providers.openai.encoding import EncodingNegotiation

        with contextlib.suppress(ImportError):  # imported here, because an import in the first request is not fork-safe
            importlib.import_module("anyio._backends._asyncio")
        self._response: Any = http_package().Response
        self._openai = openai
        self._reader = ReplyReader()
        self._provider = provider
        self._sdk = provider.open_sdk()
        self._negotiations: dict[bytes, EncodingNegotiation] = {}  # by the fields of a request
        self._new_negotiation = EncodingNegotiation
        self._limit_bodies = limit_bodies

    async def embed(self, batch: Batch) -> Reply:
        """Send one request and decode its reply."""
        fields = dict(batch.body)
        fields.pop("prompt", None)
        key, texts = self._provider.secret.constant(), batch.texts_with_prompt()
        self._limit_bodies(batch)
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
            self._negotiations[key] = self._new_negotiation(
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
        except self._openai.APIStatusError as error:
            raise self._to_provider_error(error.status_code, error.body, error.response.headers, sent) from None
        except self._openai.APIConnectionError as error:
            raise self._provider.transport_error(error, self._sdk.base_url) from None

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
        refusal, detail = provider.read_refusal(status, body, headers, sent.key, sent.texts)
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
