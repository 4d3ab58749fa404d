"""Interface for provider authors; see docs/testing.md."""

from embedkit_core.common.types import Batch, InputType, Limits, ModelInfo, Reply
from embedkit_core.providers.base import Client, Provider, ProviderSettings
from embedkit_core.providers.secrets import Secret

__all__ = [
    "Batch",
    "Client",
    "InputType",
    "Limits",
    "ModelInfo",
    "Provider",
    "ProviderSettings",
    "Reply",
    "Secret",
]
