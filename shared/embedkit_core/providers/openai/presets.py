"""Providers for servers with OpenAI's API, such as `Embedder("ollama:nomic-embed-text")`.

Each is the OpenAI provider with the defaults of another server (`openai.servers`). In cache keys the provider is
"openai" with the server's address, so that `base_url` with the same address shares the cached vectors.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

from embedkit_core.common.errors import ConfigurationError
from embedkit_core.providers.http.redaction import canonical_url
from embedkit_core.providers.openai.provider import OpenAI
from embedkit_core.providers.openai.servers import PRESETS

DEPLOYMENT = re.compile(r"/deployments(/|$)")


class Preset(OpenAI):
    """Base class of the presets. A subclass names its server in `PRESETS`."""

    def __init_subclass__(cls, preset: str, **arguments: Any) -> None:
        cls.name = preset
        cls.server = PRESETS[preset]
        cls.default_limits = cls.server.limits
        cls.key_variable = next(iter(cls.server.key_variables), None)
        cls.cache_key_provider = OpenAI.cache_key_provider
        super().__init_subclass__(**arguments)


class Azure(Preset, preset="azure"):
    """A deployment of an Azure OpenAI resource, through the v1 endpoint. The model is the deployment's name."""

    telemetry_name: ClassVar[str] = "azure.ai.openai"

    @classmethod
    def locate(cls, base_url: str | None) -> str:
        """Return the v1 endpoint of the resource.

        Raises:
            ConfigurationError: The address is missing, or is that of a deployment.
        """
        address = super().locate(base_url)
        if DEPLOYMENT.search(canonical_url(address)):
            raise ConfigurationError(
                "base_url: must be the Azure resource, not a deployment. Pass base_url='https://NAME.openai.azure.com' "
                "and the deployment as the model, as in 'azure:my-deployment'."
            )
        return address


class Ollama(Preset, preset="ollama"):
    """A model served by Ollama."""


class VLLM(Preset, preset="vllm"):
    """A model served by vLLM."""


class TEI(Preset, preset="tei"):
    """The model of a text-embeddings-inference server, which has one model and ignores the name."""


class Infinity(Preset, preset="infinity"):
    """A model served by infinity."""


class LMStudio(Preset, preset="lmstudio"):
    """A model served by LM Studio."""
