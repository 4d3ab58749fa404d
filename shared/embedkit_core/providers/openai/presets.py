"""Servers that speak OpenAI's API, each under a name of its own: `Embedder("ollama:nomic-embed-text")`.

They are OpenAI's provider with another server's facts (`openai.servers`). In keys they are "openai" at
an address, so that the same server under a plain `base_url` shares their vectors.
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
    """What the presets have in common; one is a subclass that has a name."""

    def __init_subclass__(cls, preset: str, **arguments: Any) -> None:
        cls.name = preset
        cls.server = PRESETS[preset]
        cls.default_limits = cls.server.limits
        cls.key_variable = next(iter(cls.server.key_variables), None)
        cls.cache_key_provider = OpenAI.cache_key_provider
        super().__init_subclass__(**arguments)


class Azure(Preset, preset="azure"):
    """A deployment at an Azure OpenAI resource, by its v1 endpoint; the model is the deployment's name."""

    telemetry_name: ClassVar[str] = "azure.ai.openai"

    @classmethod
    def locate(cls, base_url: str | None) -> str:
        """Give the v1 endpoint of the resource.

        Raises:
            ConfigurationError: no resource is named, or one of its deployments, as other endpoints have it.
        """
        found = super().locate(base_url)
        if DEPLOYMENT.search(canonical_url(found)):
            raise ConfigurationError(
                "azure: name the resource alone, as in base_url='https://NAME.openai.azure.com', and the deployment as "
                "the model, as in 'azure:my-deployment'"
            )
        return found


class Ollama(Preset, preset="ollama"):
    """A model that Ollama has pulled."""


class VLLM(Preset, preset="vllm"):
    """A model that vLLM serves."""


class TEI(Preset, preset="tei"):
    """The model that a text-embeddings-inference server serves; it has one, and pays no heed to the name."""


class Infinity(Preset, preset="infinity"):
    """A model that infinity serves."""


class LMStudio(Preset, preset="lmstudio"):
    """A model that LM Studio has loaded."""
