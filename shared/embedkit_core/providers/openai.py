"""OpenAI, and every server that speaks its embeddings API, through the `openai` SDK's async client.

Wire format: POST {base_url}/embeddings with model, input (strings only) and encoding_format; source: the OpenAPI
description at github.com/openai/openai-openapi and SDK 3.52, read 2026-11-20. Tried against a local server that
answers as documented, not against the live service.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from embedkit_core.errors import (
    AuthenticationError,
    BadReplyError,
    BadRequestError,
    BadTextError,
    ConfigurationError,
    EncodingRefusedError,
    ProviderError,
    QuotaError,
    RateLimitError,
    RequestTooLargeError,
    TextTooLongError,
    TimedOutError,
    UnavailableError,
)
from embedkit_core.providers import Client, Provider, ProviderSettings
from embedkit_core.providers.connection import Connection
from embedkit_core.providers.decoding import decoded, decoder, in_order, read_tokens
from embedkit_core.providers.headers import headroom, retry_after
from embedkit_core.providers.messages import canonical_url, quotable
from embedkit_core.providers.tokenizers import tiktoken_counter
from embedkit_core.secrets import Secret
from embedkit_core.types import Batch, InputType, Limits, Reply

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

FLOAT32 = np.dtype(np.float32)
OWN_HOST = "https://api.openai.com/v1"
PLACEHOLDER_KEY = "no-key-needed"
KEY_VARIABLE = "OPENAI_API_KEY"
QUOTA_CODES = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}
TOO_LONG = re.compile(
    r"maximum context length|too long|exceeds? .{0,40}(context|max\w* (input|sequence)) ?length"
    r"|must have less than \d+ tokens|larger than the max context|too large to process",
    re.I,
)
TOO_LARGE = re.compile(r"max\w* .{0,20}tokens per request|batch size|array (is )?too long|too many inputs", re.I)
COUNTS = re.compile(
    r"context length is (?P<limit1>\d+) tokens[.,] however,? you requested (?P<tokens1>\d+)"
    r"|less than (?P<limit2>\d+) tokens. Given: (?P<tokens2>\d+)"
    r"|\((?P<tokens3>\d+) tokens\) is too large .*batch size: (?P<limit3>\d+)",
    re.I,
)
ABOUT_REQUEST = re.compile(r"unrecognized request argument|not support specifying|unknown (field|parameter)", re.I)
ABOUT_REQUESTS = re.compile(r"(requests|calls) ?(per|/|a) ?(second|sec|s\b|minute|min|m\b|hour|day)|\bRP[SMD]\b", re.I)
ABOUT_TOKENS = re.compile(r"tokens ?(per|/|a) ?(minute|min|m\b|day)|\bTP[MD]\b", re.I)
TOO_MANY = re.compile(r"batch size|array (is )?too long|too many inputs", re.I)


class OpenAI(Provider):
    """A model of OpenAI's, or of a compatible server at `base_url`."""

    name: ClassVar[str] = "openai"
    extra: ClassVar[str | None] = "openai"
    needs: ClassVar[tuple[str, ...]] = ("openai", "orjson", "pybase64")
    unknown_limits: ClassVar[Limits] = Limits(texts=256)  # what an unknown model's server is trusted with
    key_variable: ClassVar[str | None] = KEY_VARIABLE
    own_fields: ClassVar[frozenset[str]] = Provider.own_fields | {
        *("encoding_format", "api_key", "extra_body", "extra_headers", "extra_query", "timeout")
    }

    def __init__(self, settings: ProviderSettings) -> None:
        self.model = settings.name
        base_url = _address(settings.base_url)
        canonical = canonical_url(base_url)
        self.endpoint = "" if canonical == OWN_HOST else canonical
        self._base_url = base_url.strip()
        info = settings.info
        default = info.dimensions if info else None
        self.dimensions = settings.dimensions or default
        self._sent_dimensions = self.dimensions if self.dimensions != default else None
        self.limits = info.limits if info else self.unknown_limits
        self.usd_per_million = info.usd_per_million if info else None
        self._has_openais_tokens = info is not None and info.provider == self.name
        self._prompts = settings.prompts
        self._options = dict(settings.options)
        self._organization = os.environ.get("OPENAI_ORG_ID") or os.environ.get("OPENAI_ORGANIZATION")
        self._project = os.environ.get("OPENAI_PROJECT_ID")
        self._connection = settings.connection
        self.secret: Secret = self._key_from(settings)
        self.account = (
            self.name,
            canonical,
            self.secret.mark,
            self._organization,
            self._project,
            self._connection.mark,
        )

    @classmethod
    def is_own_host(cls, base_url: str | None) -> bool:
        """Tell whether an address, given or from the environment, is OpenAI's own."""
        return canonical_url(_address(base_url)) == OWN_HOST

    def _key_from(self, settings: ProviderSettings) -> Secret:
        found = settings.find_key(KEY_VARIABLE)
        if found is not None:
            return found
        if not self.endpoint:
            raise ConfigurationError(
                f"no API key for openai:{self.model}: pass api_key=, or set the environment variable {KEY_VARIABLE}"
            )
        return Secret(PLACEHOLDER_KEY)

    def wire(self, input_type: InputType) -> dict[str, Any]:
        """Give the request without its texts; `prompt` is put before each text and is not a field of its own."""
        wire: dict[str, Any] = {"model": self.model}
        if self._sent_dimensions is not None:
            wire["dimensions"] = self._sent_dimensions
        wire |= self._options
        if self._prompts[input_type]:
            wire["prompt"] = self._prompts[input_type]
        return wire

    def count_tokens(self, text: str) -> int | None:
        """Count with tiktoken, where it is installed and has its vocabulary, for models that are known to use it."""
        counter = tiktoken_counter("cl100k_base") if self._has_openais_tokens else None
        return counter(text) if counter is not None else None

    def connect(self) -> Client:
        """Open the SDK's async client, with its own retries off."""
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient

        self._connection.check_not_lost()
        if self.secret.is_lost:
            raise AuthenticationError(
                "the api_key given in another process is not pickled; set the environment variable OPENAI_API_KEY here"
            )
        given = self._connection
        transport: Any = None
        if given.proxy is not None or given.ca_bundle is not None:
            transport = DefaultAsyncHttpxClient(proxy=given.proxy, verify=given.ssl_context() or True)
        client = AsyncOpenAI(
            api_key=self.secret.reveal(),
            base_url=self._base_url,
            organization=self._organization,
            project=self._project,
            default_headers=dict(given.headers),
            http_client=transport,
            max_retries=0,
        )
        return OpenAIClient(client, self.secret, given)


def _address(base_url: str | None) -> str:
    if base_url is not None:
        return base_url
    # LangChain's and LlamaIndex's variable first, as they have it: who moves from them must not reach another host.
    return os.environ.get("OPENAI_API_BASE") or os.environ.get("OPENAI_BASE_URL") or OWN_HOST


class OpenAIClient:
    """The SDK's transport, with request and reply as bytes: its models would walk every number of a reply."""

    def __init__(self, sdk: AsyncOpenAI, secret: Secret, connection: Connection) -> None:
        import openai
        import orjson

        # SDK 3 speaks through httpx2, SDK 2 through httpx.
        transport = importlib.import_module("httpx2" if int(openai.__version__.split(".")[0]) >= 3 else "httpx")
        with contextlib.suppress(ImportError):  # its first request would, where a fork does not wait for it
            importlib.import_module("anyio._backends._asyncio")
        self._response: Any = transport.Response
        self._sdk = sdk
        self._openai = openai
        self._json = orjson
        self._decode64 = decoder()
        self._secret = secret
        self._connection = connection
        self._encoding = "base64"

    async def embed(self, batch: Batch) -> Reply:
        """Send one request and decode its reply."""
        fields = dict(batch.wire)
        fields.pop("prompt", None)
        texts = batch.prompted()
        encoding = self._encoding
        self._sdk.api_key = self._secret.reveal()  # another one, where it changes
        body = self._json.dumps({**fields, "input": texts, "encoding_format": encoding})
        try:
            response = await self._sdk.post(
                "/embeddings", content=body, cast_to=self._response, options={"timeout": batch.timeout}
            )
        except self._openai.APIStatusError as refusal:
            raise self._translate(refusal, texts, str(fields.get("model")), encoding) from None
        except self._openai.APITimeoutError:
            raise TimedOutError("the server did not answer in time; timeout= gives it longer") from None
        except self._openai.APIConnectionError as lost:
            url = self._sdk.base_url
            where = f"{url.host}:{url.port}" if url.port else url.host
            raise UnavailableError(f"the server at {where} could not be reached ({_deepest(lost)})") from None
        return replace(self._decode(response.content, len(texts)), headroom=headroom(response.headers))

    async def aclose(self) -> None:
        """Close the connections."""
        await self._sdk.close()

    def _decode(self, content: bytes, n_texts: int) -> Reply:
        try:
            reply = self._json.loads(content)
            data = reply["data"]
            usage = reply.get("usage") or {}
            encoded = [row["embedding"] for row in data]
            indices = [row.get("index") for row in data]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise BadReplyError("the server answered something that is not a list of embeddings") from None
        tokens = read_tokens(usage, "total_tokens", "prompt_tokens")
        try:
            if len(encoded) != n_texts:
                raise BadReplyError(f"the server answered {len(encoded)} vectors for {n_texts} texts")
            return Reply(in_order(decoded(encoded, FLOAT32, self._decode64), indices), tokens)
        except BadReplyError as error:
            error.tokens = tokens
            raise

    def _translate(self, refusal: APIStatusError, texts: list[str], model: str, encoding: str) -> ProviderError:
        """Turn the SDK's exception into ours, by status, code and message."""
        status = refusal.status_code
        detail = _detail(refusal.body)
        retried = status in (408, 409, 429) or status >= 500
        secrets = self._connection.secrets_with(self._secret.reveal())
        said = "" if retried else quotable(detail["message"], texts, secrets)
        where: dict[str, Any] = {
            "provider": "openai",
            "model": f"openai:{model}",
            "status": status,
            "request_id": refusal.request_id,
        }
        headers = {k.lower(): v for k, v in refusal.response.headers.items()}
        waits = retry_after(headers, time.time())
        if status == 402 or detail["code"] in QUOTA_CODES or detail["type"] in QUOTA_CODES:
            return QuotaError(f"the account has no credit left (HTTP {status}); waiting does not help{said}", **where)
        if status in (401, 403):
            return AuthenticationError(
                f"the key was refused for {model} (HTTP {status}); check api_key= or OPENAI_API_KEY", **where
            )
        if status == 429:
            limited = RateLimitError("too many requests or tokens a minute (HTTP 429)", retry_after=waits, **where)
            limited.headroom = headroom(headers)
            limited.counts_requests = bool(
                ABOUT_REQUESTS.search(detail["message"]) and not ABOUT_TOKENS.search(detail["message"])
            )
            return limited
        if retried and "too large to process" not in detail["message"]:  # llama.cpp says 500 to a long text
            return UnavailableError(f"the server failed (HTTP {status})", retry_after=waits, **where)
        if encoding == "base64" and ("encoding_format" in str(refusal.body) or "base64" in detail["message"]):
            self._encoding = "float"
            return EncodingRefusedError(f"the server refuses base64 (HTTP {status})", **where)
        about = quotable(detail["param"], texts, secrets).replace(": ", " for its ", 1)
        if status == 404 and not self._sdk.base_url.path.rstrip("/").endswith("/v1"):
            said += "; should base_url end in /v1?"
        return _about_input(status, detail, said, about, where)


def _deepest(error: BaseException) -> str:
    """Name the first cause of a lost connection, in the words of the operating system where it has some."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno) if error.errno > 0 else str(error.strerror)
    return type(error).__name__


def _about_input(
    status: int, detail: Mapping[str, str], said: str, about: str, where: Mapping[str, Any]
) -> ProviderError:
    message = detail["message"]
    about_texts = detail["param"] in ("", "input", "$.input")
    too_long = about_texts and TOO_LONG.search(message) and not re.search("array (is )?too long", message, re.I)
    if not too_long and (status == 413 or detail["code"] == "max_tokens_per_request" or TOO_LARGE.search(message)):
        large = RequestTooLargeError(f"the request holds too many texts or tokens (HTTP {status}){said}", **where)
        large.counts_texts = TOO_MANY.search(message) is not None
        return large
    if too_long:
        counts = COUNTS.search(message)
        found = {name.rstrip("123"): int(n) for name, n in counts.groupdict().items() if n} if counts else {}
        return TextTooLongError(tokens=found.get("tokens"), limit=found.get("limit"), **where)
    about_request = ABOUT_REQUEST.search(message) or detail["code"] in ("model_not_found", "invalid_model")
    if about_texts and status in (400, 422) and not about_request:
        return BadTextError(f"the server refuses a text (HTTP {status}){said}", **where)
    return BadRequestError(f"the server refuses the request{about} (HTTP {status}){said}", **where)


def _detail(body: object) -> dict[str, str]:
    """Read message, type, param and code from an error body, as OpenAI and compatible servers shape it."""
    inner = body.get("error", body) if isinstance(body, dict) else body
    if not isinstance(inner, dict):
        inner = {"message": inner if isinstance(inner, str) else ""}
    return {name: str(inner.get(name) or "") for name in ("message", "type", "param", "code")}
