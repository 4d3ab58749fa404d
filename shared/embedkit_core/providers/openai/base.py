"""Settings, request bodies and the SDK of OpenAI and of servers with its embeddings API."""

from __future__ import annotations

import importlib
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from embedkit_core.common.errors import AuthenticationError, ConfigurationError
from embedkit_core.common.types import InputType, Limits
from embedkit_core.common.vectors import DType
from embedkit_core.providers.base import ProviderSettings
from embedkit_core.providers.http.address import canonical_url
from embedkit_core.providers.http.connection import header_flaw
from embedkit_core.providers.http.provider import HTTPProvider, cache_platform_names
from embedkit_core.providers.openai.servers import BASE64, OPENAI, Role, Server
from embedkit_core.providers.openai.tokenizer import tiktoken_counter
from embedkit_core.providers.secrets import Hidden, reveal

if TYPE_CHECKING:
    from embedkit_core.providers.openai.sdk import IsolatedClient

KEY_VARIABLE = "OPENAI_API_KEY"
CUSTOM_HEADERS_VARIABLE = "OPENAI_CUSTOM_HEADERS"
SERVER_PROMPT_TOKENS = 64  # that a server may add for an input type


class OpenAIProvider(HTTPProvider):
    """A model of OpenAI, or of a compatible server at `base_url`, without the client that sends its requests.

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
