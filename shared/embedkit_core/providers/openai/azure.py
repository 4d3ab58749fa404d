"""Deployments of Azure OpenAI resources."""

from __future__ import annotations

import re
from typing import ClassVar

from embedkit_core.common.errors import ConfigurationError
from embedkit_core.providers.http.redaction import canonical_url
from embedkit_core.providers.openai.presets import Preset

DEPLOYMENT = re.compile(r"/deployments(/|$)")


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
