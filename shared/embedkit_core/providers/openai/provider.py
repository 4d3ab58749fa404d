"""OpenAI, and every server that speaks its embeddings API, through the `openai` SDK's async client.

Wire format: POST {base_url}/embeddings with model, input (strings only) and encoding_format; source: the OpenAPI
description at github.com/openai/openai-openapi and SDK 3.52, read 2026-11-20. Tried against a local server that
answers as documented, not against the live service.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from embedkit_core.common.errors import (
    AuthenticationError,
    EncodingRefusedError,
    ProviderError,
    TimedOutError,
    UnavailableError,
)
from embedkit_core.common.types import Batch, InputType, Limits, Reply
from embedkit_core.providers.base import Client, ProviderSettings
from embedkit_core.providers.http.decoding import OtherEncodingError, ReplyReader
from embedkit_core.providers.http.headers import headroom
from embedkit_core.providers.http.provider import HTTPProvider
from embedkit_core.providers.http.redaction import canonical_url
from embedkit_core.providers.http.refusals import Refusal, connection_error
from embedkit_core.providers.openai.refusals import read_detail, to_provider_error
from embedkit_core.providers.openai.servers import OPENAI, Server
from embedkit_core.providers.openai.tokenizer import tiktoken_counter

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

FLOAT32 = np.dtype(np.float32)
ENCODING = "base64"
KEY_VARIABLE = "OPENAI_API_KEY"
# As the SDK spells them; in other letters it would take them for headers that it is to leave out.
SPELLED = {name.lower(): name for name in ("OpenAI-Organization", "OpenAI-Project")}
SAYS_IT_ALL = (401, 402, 403, 408, 409, 429)  # statuses of refusals that are not about the encoding


class OpenAI(HTTPProvider):
    """A model of OpenAI's, or of a compatible server at `base_url`; `server` holds what is known of that."""

    name: ClassVar[str] = "openai"
    extra: ClassVar[str | None] = "openai"
    needs: ClassVar[tuple[str, ...]] = ("openai", "orjson", "pybase64")
    key_variable: ClassVar[str | None] = KEY_VARIABLE
    catalogue_providers: ClassVar[tuple[str, ...]] = ("openai", "local")
    # Of vLLM's, `embed_dtype` and `endianness` would change what base64 means.
    reserved_fields: ClassVar[frozenset[str]] = HTTPProvider.reserved_fields | {
        *("encoding_format", "embed_dtype", "endianness"),
        *("api_key", "extra_body", "extra_headers", "extra_query", "timeout"),
    }
    encodings = (ENCODING,)  # the first attempt; a server that refuses it is asked for floats from then on
    server: ClassVar[Server] = OPENAI
    default_limits: ClassVar[Limits] = OPENAI.limits

    def __init__(self, settings: ProviderSettings) -> None:
        address = self.locate(settings.base_url)
        self._organization, self._project = self._names(settings.connection.headers)
        canonical, secret = canonical_url(address), settings.find_key(*self.server.key_variables)
        super().__init__(settings, canonical, secret, needs_key=self.server.needs_key)
        self._base_url = address.strip()
        self.account = (self.account, self._organization, self._project)
        self._has_openais_tokens = settings.info is not None and settings.info.provider == self.cache_key_provider

    @classmethod
    def locate(cls, base_url: str | None) -> str:
        """Give the address requests go to: the user's, the environment's, or where such a server is unless told."""
        return cls.server.find(base_url)

    @classmethod
    def is_own_host(cls, base_url: str | None) -> bool:
        """Tell whether an address, given or from the environment, is OpenAI's own."""
        return canonical_url(cls.locate(base_url)) == OPENAI.address

    def _names(self, headers: Iterable[str]) -> tuple[str | None, str | None]:
        """Give the organization and the project of the environment, where they mean something and no header has them.

        What is OpenAI's is no other server's to know.
        """
        if not self.server.takes_openai_names:
            return None, None
        given = {name.lower() for name in headers}
        organization = os.environ.get("OPENAI_ORG_ID") or os.environ.get("OPENAI_ORGANIZATION")
        project = os.environ.get("OPENAI_PROJECT_ID")
        return (
            None if "openai-organization" in given else organization,
            None if "openai-project" in given else project,
        )

    @property
    def url(self) -> str | None:
        """The address requests go to, OpenAI's own too."""
        return self._base_url

    def request_body(self, input_type: InputType) -> dict[str, Any]:
        """Return the request without its texts; `prompt` is put before each text and is not a field of its own."""
        return self.request_fields(input_type)

    def count_tokens(self, text: str) -> int | None:
        """Count with tiktoken, where it is installed and has its vocabulary, for models that are known to use it."""
        counter = tiktoken_counter("cl100k_base") if self._has_openais_tokens else None
        return counter(text) if counter is not None else None

    def connect(self) -> Client:
        """Open the SDK's async client."""
        self.connection.check_not_lost()
        if self.secret.is_lost:
            where = f"set the environment variable {self.key_variable} here" if self.key_variable else "give one here"
            raise AuthenticationError(f"the api_key given in another process is not pickled; {where}")
        return OpenAIClient(self)

    def open_sdk(self) -> AsyncOpenAI:
        """Give the SDK's client with its own retries off, and its own defaults for connections."""
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient

        # The SDK asks with its first request, on another thread: a child forked meanwhile would wait for it for ever.
        platform.platform()
        given = self.connection
        # Redirects are not followed: headers of the user's would go to whoever a server names.
        transport = DefaultAsyncHttpxClient(
            proxy=given.proxy, verify=given.ssl_context() or True, follow_redirects=False
        )
        sdk = AsyncOpenAI(
            api_key=self.secret.reveal(),
            base_url=self._base_url,
            default_headers={SPELLED.get(name.lower(), name): value for name, value in given.headers.items()},
            http_client=transport,
            max_retries=0,
        )
        # It looks for them in the environment, whoever's server this is.
        sdk.organization, sdk.project = self._organization, self._project
        return sdk


class OpenAIClient:
    """The SDK's transport, with request and reply as bytes: its models would walk every number of a reply."""

    def __init__(self, provider: OpenAI) -> None:
        import openai

        # SDK 3 speaks through httpx2, SDK 2 through httpx.
        transport = importlib.import_module("httpx2" if int(openai.__version__.split(".")[0]) >= 3 else "httpx")
        with contextlib.suppress(ImportError):  # its first request would, where a fork does not wait for it
            importlib.import_module("anyio._backends._asyncio")
        self._response: Any = transport.Response
        self._openai = openai
        self._reader = ReplyReader()
        self._provider = provider
        self._sdk = provider.open_sdk()
        self._encoding = ENCODING

    async def embed(self, batch: Batch) -> Reply:
        """Send one request and decode its reply."""
        fields = dict(batch.body)
        fields.pop("prompt", None)
        texts = batch.texts_with_prompt()
        encoding, key = self._encoding, self._provider.secret.reveal()
        self._sdk.api_key = key  # another one, where it changes
        body = self._reader.json.dumps({**fields, "input": texts, "encoding_format": encoding})
        try:
            response = await self._sdk.post(
                "/embeddings", content=body, cast_to=self._response, options={"timeout": batch.timeout}
            )
        except self._openai.APIStatusError as refusal:
            raise self._translate(refusal, fields, texts, encoding, key) from None
        except self._openai.APITimeoutError:
            raise TimedOutError("the server did not answer in time; timeout= gives it longer") from None
        except self._openai.APIConnectionError as lost:
            raise self._unreachable(lost) from None
        reply = self._decode(response.content, len(texts), batch.widths, encoding)
        return replace(reply, rate_limits=headroom(response.headers))

    async def aclose(self) -> None:
        """Close the connections."""
        await self._sdk.close()

    def _unreachable(self, lost: BaseException) -> UnavailableError:
        url, server = self._sdk.base_url, self._provider.server
        where = f"{url.host}:{url.port}" if url.port else url.host
        through = " through proxy=" if self._provider.connection.proxy else ""
        running = "" if server is OPENAI else f"; is {server.title} running there?"
        message = f"the server at {where} could not be reached{through} ({_deepest(lost)}){running}"
        return connection_error(message, lost)

    def _decode(self, content: bytes, n_texts: int, widths: tuple[int, ...], encoding: str) -> Reply:
        try:
            return self._reader.read_data(content, n_texts, FLOAT32, "total_tokens", "prompt_tokens", widths=widths)
        except OtherEncodingError as error:
            if encoding == "float":
                raise
            again = EncodingRefusedError(str(error))
            again.tokens = error.tokens
        self._encoding = "float"
        raise again

    def _translate(
        self, refused: APIStatusError, fields: Mapping[str, Any], texts: list[str], encoding: str, key: str
    ) -> ProviderError:
        """Turn the SDK's exception into one of our errors."""
        provider, detail = self._provider, read_detail(refused.body)
        refusal = Refusal(
            *(provider.name, str(fields.get("model")), refused.status_code, detail.message),
            {name.lower(): value for name, value in refused.response.headers.items()},
            texts,
            provider.connection.secrets_with(key),
            refused.request_id,
        )
        about_encoding = "encoding_format" in str(refused.body) or "base64" in detail.message
        is_bad_request = 400 <= refusal.status < 500 and refusal.status not in SAYS_IT_ALL
        if encoding == "base64" and about_encoding and is_bad_request:
            self._encoding = "float"
            return EncodingRefusedError(f"the server refuses base64 (HTTP {refusal.status})", **refusal.where)
        path = provider.server.path
        lacks_path = refusal.status == 404 and not self._sdk.base_url.path.rstrip("/").endswith(path)
        return to_provider_error(
            refusal,
            detail,
            provider.key_variable,
            asked=fields.get("dimensions") if provider.endpoint else None,
            hint=f"; should base_url end in {path}?" if lacks_path else "",
        )


def _deepest(error: BaseException) -> str:
    """Name the first cause of a lost connection, in the words of the operating system where it has some."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    if isinstance(error, ssl.SSLCertVerificationError):
        return "its certificate is not trusted here; ca_bundle= names a file of those that are"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason}"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno) if error.errno > 0 else str(error.strerror)
    return type(error).__name__
