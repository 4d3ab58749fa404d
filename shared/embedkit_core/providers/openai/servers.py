"""Default addresses, request limits and keys of servers with OpenAI's embeddings API. No network I/O.

These are the defaults of each server; the user overrides them with `base_url`, `api_key` and `max_batch_texts`. Each
fact has its source, read 2026-11-25.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final
from urllib.parse import urlsplit

from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.types import Limits

DEFAULT_REQUEST_TEXTS = 256  # for servers that state no limit


@dataclass(frozen=True, slots=True)
class Server:
    """Defaults of one kind of server.

    Attributes:
        title: Name of the server in messages.
        address: Default address, None if the user must pass one.
        path: Path of the API.
        address_variables: Environment variables with the address, the first one set is used.
        key_variables: Environment variables with the API key, the first one set is used.
        needs_key: True if the server needs an API key.
        texts: Maximum texts of a request, None if the server states no limit.
        tokens: Maximum tokens of a request, None if the server states no limit.
        takes_openai_names: True if the server uses OpenAI's organizations and projects.
        completes: True if `path` is added to an address without a path.
        refuses_long_texts: True if the server refuses texts over the model's limit. False if it may truncate them
            without notice.
        documents_base64: True if base64 is documented to be float32, at every address.
    """

    title: str
    address: str | None
    path: str = "/v1"
    address_variables: tuple[str, ...] = ()
    key_variables: tuple[str, ...] = ()
    needs_key: bool = False
    texts: int | None = None
    tokens: int | None = None
    takes_openai_names: bool = False
    completes: bool = True
    refuses_long_texts: bool = False
    documents_base64: bool = False

    def find(self, base_url: str | None) -> str:
        """Return the address: `base_url`, else the environment's, else the default.

        Raises:
            ConfigurationError: There is no address.
        """
        if base_url is not None:
            return self._with_path(base_url)
        for variable in self.address_variables:
            if address := os.environ.get(variable):
                return self._with_defaults(address.strip()) if self.completes else address
        if self.address is not None:
            return self.address
        raise ConfigurationError(
            f"base_url: the address of {self.title} is missing. Pass base_url= or set the environment variable "
            f"{self.address_variables[0]}."
        )

    @property
    def limits(self) -> Limits:
        """Limits of a request for models that are not OpenAI's own."""
        return Limits(self.texts or DEFAULT_REQUEST_TEXTS, self.tokens)

    def _with_path(self, address: str) -> str:
        """Return an address with the server's path if it has no path."""
        if not self.completes or not isinstance(address, str) or _path(address):
            return address
        return address.strip().rstrip("/") + self.path

    def _with_defaults(self, address: str) -> str:
        """Return the address of an environment variable with the default scheme, port and path if they are missing.

        0.0.0.0, at which a server listens, becomes 127.0.0.1, at which a client reaches it.
        """
        default = urlsplit(self.address or "https://")
        if "://" not in address:
            host, colon, port = address.rpartition(":") if not address.endswith("]") else (address, "", "")
            host, port = (host, port) if colon else (address, str(default.port or ""))
            address = f"{default.scheme}://{host or '127.0.0.1'}{f':{port}' if port else ''}"
        address = address.replace("://0.0.0.0", "://127.0.0.1", 1).rstrip("/")
        return address if address.endswith(self.path) else address + self.path


def _path(address: str) -> str:
    try:
        return urlsplit(address.strip()).path.strip("/")
    except ValueError:  # not an address; canonical_url raises the error
        return "/"


# Variables of SDK 3.52, LangChain and LlamaIndex. OPENAI_API_BASE is first, as in the frameworks, so that users who
# migrate keep their host.
OPENAI: Final = Server(
    "OpenAI",
    "https://api.openai.com/v1",
    address_variables=("OPENAI_API_BASE", "OPENAI_BASE_URL"),
    key_variables=("OPENAI_API_KEY",),
    takes_openai_names=True,
    completes=False,
)

PRESETS: Final[Mapping[str, Server]] = MappingProxyType(
    {
        # The v1 endpoint needs no api-version. The key is a bearer token, the model is the deployment's name.
        # learn.microsoft.com/azure/ai-foundry/openai/api-version-lifecycle; variables: openai-python's AzureOpenAI.
        "azure": Server(
            "the Azure OpenAI resource",
            None,
            path="/openai/v1",
            address_variables=("AZURE_OPENAI_ENDPOINT",),
            key_variables=("AZURE_OPENAI_API_KEY", "AZURE_OPENAI_AD_TOKEN"),
            needs_key=True,
            refuses_long_texts=True,
            documents_base64=True,
        ),
        # Strings only, never token ids. The server truncates or refuses long texts by num_ctx. Any key is accepted.
        # github.com/ollama/ollama, openai/openai.go, envconfig/config.go, docs/openai.md.
        "ollama": Server(
            "Ollama",
            "http://localhost:11434/v1",
            address_variables=("OLLAMA_HOST",),
            key_variables=("OLLAMA_API_KEY",),
        ),
        # `dimensions` only for models configured as Matryoshka models; long texts are refused; docs.vllm.ai, "vllm
        # serve".
        "vllm": Server("vLLM", "http://localhost:8000/v1", key_variables=("VLLM_API_KEY",), refuses_long_texts=True),
        # 32 texts (--max-client-batch-size) and 2 MB (--payload-limit) per request; 2 MB of text are at least 500,000
        # estimated tokens. `dimensions` is ignored, `encoding_format` is supported. The server's own key variable,
        # API_KEY, is not read because its name is too general.
        # github.com/huggingface/text-embeddings-inference, router/src/main.rs, http/server.rs, README.md (port 8080).
        "tei": Server("text-embeddings-inference", "http://localhost:8080/v1", texts=32, tokens=500_000),
        # No /v1; 2048 texts; long texts are truncated without notice. github.com/michaelfeil/infinity,
        # infinity_emb/env.py, fastapi_schemas/pymodels.py.
        "infinity": Server(
            "infinity", "http://localhost:7997", path="", key_variables=("INFINITY_API_KEY",), texts=2048
        ),
        # Strings only; always answers with floats (lmstudio-bug-tracker#756). lmstudio.ai/docs/api/openai-api,
        # /docs/developer/core/authentication.
        "lmstudio": Server("LM Studio", "http://localhost:1234/v1", key_variables=("LM_API_TOKEN",)),
    }
)
