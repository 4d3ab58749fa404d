"""Servers that speak OpenAI's embeddings API, as data: where they are, what a request to them may hold, their keys.

All of it is what a server does that nobody has configured otherwise; `base_url`, `api_key` and `max_batch_texts` say
what is so at the user's. Each fact has its source, read 2026-11-25.
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

TEXTS = 256  # in a request to a server that states no limit


@dataclass(frozen=True, slots=True)
class Server:
    """A kind of server.

    `address` is where it is unless told, None where it must be; `path` is where its API is, which is put behind an
    address that has none if it `completes` one. Variables are those of the environment. `texts` and `tokens` bound a
    request, None where it states no limit. `takes_openai_names` says that OpenAI's organizations and projects mean
    something to it.
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

    def find(self, base_url: str | None) -> str:
        """Give the address of the user's own: given, from the environment, or where such a server is unless told.

        Raises:
            ConfigurationError: there is none.
        """
        if base_url is not None:
            return self._completed(base_url)
        for variable in self.address_variables:
            if found := os.environ.get(variable):
                return self._spelled_out(found.strip()) if self.completes else found
        if self.address is not None:
            return self.address
        raise ConfigurationError(
            f"where is {self.title}? Pass base_url=, or set the environment variable {self.address_variables[0]}"
        )

    @property
    def limits(self) -> Limits:
        """What a request to it is trusted with, for a model that is not OpenAI's own."""
        return Limits(self.texts or TEXTS, self.tokens)

    def _completed(self, address: str) -> str:
        """Give an address with the server's path, where it has none."""
        if not self.completes or not isinstance(address, str) or _path(address):
            return address
        return address.strip().rstrip("/") + self.path

    def _spelled_out(self, address: str) -> str:
        """Give an address as a variable has it, perhaps without scheme, port or path, as one of a request.

        A server listens at 0.0.0.0, and is spoken to at 127.0.0.1.
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
    except ValueError:  # it is no address, as others will say
        return "/"


# SDK 3.52 and LangChain's and LlamaIndex's variables; OPENAI_API_BASE first, as these have it: who moves from them must
# not reach another host.
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
        # The v1 endpoint needs no api-version, takes the key as a bearer token, and a deployment's name as the model.
        # learn.microsoft.com/azure/ai-foundry/openai/api-version-lifecycle; variables: openai-python's AzureOpenAI.
        "azure": Server(
            "the Azure OpenAI resource",
            None,
            path="/openai/v1",
            address_variables=("AZURE_OPENAI_ENDPOINT",),
            key_variables=("AZURE_OPENAI_API_KEY", "AZURE_OPENAI_AD_TOKEN"),
            needs_key=True,
        ),
        # Strings only, never tokens; the server cuts or refuses long texts by num_ctx; any key.
        # github.com/ollama/ollama, openai/openai.go, envconfig/config.go, docs/openai.md.
        "ollama": Server(
            "Ollama",
            "http://localhost:11434/v1",
            address_variables=("OLLAMA_HOST",),
            key_variables=("OLLAMA_API_KEY",),
        ),
        # `dimensions` only for models whose configuration says they are Matryoshka ones; docs.vllm.ai, "vllm serve".
        "vllm": Server("vLLM", "http://localhost:8000/v1", key_variables=("VLLM_API_KEY",)),
        # 32 texts (--max-client-batch-size) and 2 MB (--payload-limit) a request: 2 MB of text are at least so many
        # tokens by our estimate. It pays no heed to `dimensions`, `encoding_format` it knows. Its own variable for the
        # key is API_KEY, which names nobody's. github.com/huggingface/text-embeddings-inference, router/src/main.rs,
        # http/server.rs, README.md (port 8080).
        "tei": Server("text-embeddings-inference", "http://localhost:8080/v1", texts=32, tokens=500_000),
        # No /v1; 2048 texts. github.com/michaelfeil/infinity, infinity_emb/env.py, fastapi_schemas/pymodels.py.
        "infinity": Server(
            "infinity", "http://localhost:7997", path="", key_variables=("INFINITY_API_KEY",), texts=2048
        ),
        # Strings only; answers in floats whatever is asked (lmstudio-bug-tracker#756). lmstudio.ai/docs/api/openai-api,
        # /docs/developer/core/authentication.
        "lmstudio": Server("LM Studio", "http://localhost:1234/v1", key_variables=("LM_API_TOKEN",)),
    }
)
