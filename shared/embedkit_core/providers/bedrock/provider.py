"""Provider `bedrock`: embedding models on Amazon Bedrock, through InvokeModel of botocore, the core of boto3.

Tested against a local server that follows the documentation, not against the live service.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.types import InputType, Limits, ModelInfo
from embedkit_core.common.vectors import DType
from embedkit_core.providers.base import Client, ProviderSettings
from embedkit_core.providers.bedrock.addresses import find_address, find_region, own_region
from embedkit_core.providers.bedrock.credentials import Chain
from embedkit_core.providers.bedrock.wires import WIRES, Wire, bare_name, find_wire
from embedkit_core.providers.http.address import canonical_url
from embedkit_core.providers.http.provider import HTTPProvider
from embedkit_core.providers.secrets import Secret

KEY_VARIABLE = "AWS_BEARER_TOKEN_BEDROCK"


class Bedrock(HTTPProvider):
    """A model on Amazon Bedrock, by its ID, that of an inference profile, or an ARN.

    In cache keys, a model has its bare name: a geographic prefix, an ARN that names the model, and the region only
    choose where the same model runs. Any other ARN stays in the key, because only the user states which model it is.
    """

    name: ClassVar[str] = "bedrock"
    extra: ClassVar[str | None] = "bedrock"
    needs: ClassVar[tuple[str, ...]] = ("botocore", "pydantic_core", "pybase64")
    key_variable: ClassVar[str | None] = KEY_VARIABLE
    telemetry_name: ClassVar[str] = "aws.bedrock"
    dtypes: ClassVar[tuple[DType, ...]] = ("float32", "int8", "uint8", "binary", "ubinary")
    takes_roles: ClassVar[bool] = True
    returns_normalized: ClassVar[bool] = False
    default_limits: ClassVar[Limits] = Limits(texts=96)  # of the family that takes most
    reserved_fields: ClassVar[frozenset[str]] = HTTPProvider.reserved_fields | {
        *("texts", "images", "inputs", "embedding_types", "output_dimension", "truncate"),
        *("inputText", "normalize", "embeddingTypes"),
        *("taskType", "schemaVersion", "singleEmbeddingParams", "embeddingDimension", "truncationMode"),
        *("text", "image", "audio", "video"),
    }

    def __init__(self, settings: ProviderSettings) -> None:
        address = find_address(settings.base_url)
        canonical = canonical_url(address) if address is not None else ""
        self.token: Secret | None = settings.find_key(KEY_VARIABLE)
        self.chain: Chain = Chain.of_environment()
        super().__init__(settings, canonical, self.token or self.chain.identity, needs_key=False)
        self.wire: Wire = _wire(settings)
        self.kind: str = _embedding_type(self.wire, settings)
        self.address = canonical or None
        self.region: str | None = find_region(canonical, self.model)
        self.account = (  # a client sends to one model, and quotas are per model and region
            *(self.name, canonical, self.region, self.model, self.secret.fingerprint, self.connection.fingerprint),
            self.chain.fingerprint if self.token is None else "",
        )
        self.limits = (settings.info.limits if settings.info else Limits(self.wire.texts)).capped(self.wire.texts)
        self.encodings = (self.kind,)
        named = bare_name(self.model)
        self._key_name = named if find_wire(named) is not None else self.model
        self._roles = settings.role_values(self.wire.roles)

    @classmethod
    def is_own_host(cls, base_url: str | None) -> bool:
        """Return True if the address is one of AWS, public or private; all serve the same models."""
        address = find_address(base_url)
        return address is None or own_region(canonical_url(address)) is not None

    @classmethod
    def catalogue_name(cls, name: str) -> str:
        """Return the model's own name, without a geographic prefix or the rest of an ARN."""
        return bare_name(name)

    @classmethod
    def default_info(cls, name: str) -> ModelInfo:
        """Return the assumptions about a model without a catalogue row, by its family."""
        info, wire = super().default_info(name), find_wire(name)
        if wire is None:
            return info
        return replace(info, limits=Limits(texts=wire.texts), dtypes=tuple(wire.types), space=name)

    def request_body(self, input_type: InputType) -> dict[str, Any]:
        """Return the request without texts: the fields of the wire, the key's name of the model, and the prompt."""
        wire = self.wire
        body: dict[str, Any] = {"model": self._key_name, **wire.fields}
        if wire.role_field is not None:
            body[wire.role_field] = self._roles[input_type]
        if wire.type_field is not None:
            body[wire.type_field] = [self.kind]
        if self._sent_dimensions is not None and wire.dimensions_field is not None:
            body[wire.dimensions_field] = self._sent_dimensions
        body |= self._options
        if self._prompts[input_type]:
            body["prompt"] = self._prompts[input_type]
        return body

    def truncating_body(self, input_type: InputType) -> dict[str, Any] | None:
        """Return the request with truncation by the model at the end of each text, None if it cannot."""
        truncating = self.wire.truncating
        return None if truncating is None else {**self.request_body(input_type), **truncating}

    def connect(self) -> Client:
        """Open the SDK's client. It looks for credentials, which may need files and a network."""
        from embedkit_core.providers.bedrock.client import BedrockClient, Target

        self.connection.check_not_lost()
        if self.token is not None:
            self.token.reveal()
        return BedrockClient(
            Target(self.model, self.wire, self.address, self.region, self.token, self.chain, self.connection)
        )


def _wire(settings: ProviderSettings) -> Wire:
    """Return the wire of the model, which `like` of `model_info` may name.

    Raises:
        ConfigurationError: It is unknown, or lacks a setting.
    """
    name = bare_name(settings.name)
    wire = find_wire(name) or find_wire(settings.info.space if settings.info else None)
    if wire is None:
        known = ", ".join(f"{beginning}*" for beginning in WIRES)
        raise ConfigurationError(
            f"model: the requests of {settings.name!r} are unknown. Use a model whose ID begins with {known}; for an "
            "ARN that does not name its model, pass model_info={'like': 'bedrock:amazon.titan-embed-text-v2:0'} with "
            "the model that it stands for."
        )
    if settings.options and not wire.takes_options:
        raise ConfigurationError(f"provider_options: {name} has no other fields (got {', '.join(settings.options)}).")
    known_row = settings.info is not None and settings.info.allowed_dimensions is not None
    if settings.dimensions is not None and wire.dimensions_field is None and not known_row:
        raise ConfigurationError(f"dimensions: requests to {name} have no field for them (got {settings.dimensions}).")
    return wire


def _embedding_type(wire: Wire, settings: ProviderSettings) -> str:
    if settings.dtype not in wire.types:
        raise ConfigurationError(
            f"dtype: {settings.name} does not offer {settings.dtype!r}; it offers {', '.join(wire.types)}."
        )
    return wire.types[settings.dtype]
