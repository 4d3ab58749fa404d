"""Deployments of Azure OpenAI and Microsoft Foundry resources. The model is the deployment's name.

Requests go to the v1 endpoint, with the key or a token of Entra ID as a bearer token. They go to the older routes of
deployments if the address has one or an API version, since gateways may have only these: there, a key is sent in the
header api-key. Bodies are the same, and so are cache keys. Sources, read 2026-11-30:

- v1: learn.microsoft.com/azure/ai-foundry/openai/api-version-lifecycle; of a project: azure-ai-projects 2.10.
- Older routes: learn.microsoft.com/azure/ai-services/openai/reference; the SDK's AzureOpenAI.
- `input_type` of Cohere's models: MicrosoftDocs/azure-ai-docs, foundry-models/includes/use-embeddings/rest.md. It is
  documented for the route /models, whose SDK is retired, and assumed for the v1 endpoint.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final
from urllib.parse import quote, unquote, urlsplit

from embedkit_core.common.errors import ConfigurationError, MissingExtraError
from embedkit_core.providers.base import ProviderSettings, is_installed
from embedkit_core.providers.http.address import canonical_url
from embedkit_core.providers.openai.entra import ENTRA_SCOPE, FOUNDRY_SCOPE, GOVERNMENT_SCOPE, entra_token
from embedkit_core.providers.openai.presets import Preset
from embedkit_core.providers.openai.servers import Role
from embedkit_core.providers.secrets import API_VERSION, Secret, is_sign_in

V1: Final = "/openai/v1"
VERSION_VARIABLE: Final = "OPENAI_API_VERSION"  # of the SDK's AzureOpenAI
DEPLOYMENTS = re.compile(r"(.*?)/deployments(?:/([^/]+))?")
OPERATION = re.compile(r"/embeddings/*$")
PROJECT = re.compile(r"^/api/projects/[^/]+")
# A resource has one name in all domains: learn.microsoft.com/azure/ai-services/cognitive-services-custom-subdomains.
OTHER_DOMAIN = re.compile(r"^(https://[\w-]+)\.(?:cognitiveservices|services\.ai)\.azure\.com$")
ROLE: Final = Role("input_type", {"query": "query", "document": "document"})


@dataclass(frozen=True, slots=True)
class Address:
    """Where the requests for a deployment go.

    Attributes:
        endpoint: The v1 endpoint of the resource, which identifies it in cache keys for every form of the address.
        base: The address without the path of the operation.
        version: The API version of an older route, None for the v1 endpoint.
        scope: What a token of Entra ID must be valid for.
    """

    endpoint: str
    base: str
    version: str | None
    scope: str

    @property
    def url(self) -> str:
        """The address in one form, as the user may pass it."""
        return self.base if self.version is None else f"{self.base}?api-version={self.version}"


def parse_address(given: str, model: str) -> Address:
    """Return where the requests for a deployment go.

    Args:
        given: Address of a resource, project or deployment, with or without the path of the API.
        model: The deployment.

    Raises:
        ConfigurationError: It is not such an address, or that of another deployment.
    """
    address, _, query = given.partition("?") if isinstance(given, str) else (given, "", "")
    found = API_VERSION.fullmatch(query.strip())
    if query and not found:
        canonical_url(given)  # refuses the query
    address = canonical_url(OPERATION.sub("", address.strip()) if isinstance(address, str) else address)
    path = urlsplit(address).path
    origin = address.removesuffix(path)
    if path == "/models" and origin.endswith(".services.ai.azure.com"):
        raise ConfigurationError(
            f"base_url: {address} is the API of the retired Azure AI Inference SDK. Pass base_url='{origin}', where "
            "the deployments have the same names."
        )
    scope = FOUNDRY_SCOPE if PROJECT.match(path) else GOVERNMENT_SCOPE if origin.endswith(".azure.us") else ENTRA_SCOPE
    resource = OTHER_DOMAIN.sub(r"\1.openai.azure.com", origin)
    route = DEPLOYMENTS.fullmatch(path)
    root = (path if route is None else route[1]).removesuffix("/openai")
    if route is None and not found:
        is_whole = root == path and root and not PROJECT.fullmatch(root)
        path = path if is_whole else root + V1
        return Address(resource + PROJECT.sub("", path), origin + path, None, scope)
    name = unquote(route[2] or "") if route else ""
    if name and name != model:
        raise ConfigurationError(
            f"model: 'azure:{model}' is not the deployment {name!r} of base_url. Pass model='azure:{name}', or the "
            "address of the resource as base_url."
        )
    if route is None and root.endswith(V1):
        raise ConfigurationError(
            f"base_url: the v1 endpoint takes no API version (got {query!r}). Remove it, or remove {V1} for the older "
            "routes."
        )
    base = f"{origin}{route[1] if route else f'{root}/openai'}/deployments/{quote(model, safe='')}"
    version = found[1] if found else _version_of_environment(f"{origin}{root}{V1}")
    return Address(resource + PROJECT.sub("", root) + V1, base, version, scope)


def _version_of_environment(endpoint: str) -> str:
    """Return the API version for an address that has none."""
    version = os.environ.get(VERSION_VARIABLE, "").strip()
    if API_VERSION.fullmatch(f"api-version={version}") is None:
        raise ConfigurationError(
            f"base_url: the API version of the deployment is missing. Pass base_url='{endpoint}', "
            f"which needs none, or append ?api-version=2024-10-21, or set {VERSION_VARIABLE} to such a date."
        )
    return version


def key_header(key: str) -> dict[str, str]:
    """Return the header with the credential for an older route: tokens of Entra ID are JSON Web Tokens."""
    return {"Authorization": f"Bearer {key}"} if key.startswith("eyJ") and "." in key else {"api-key": key}


class Azure(Preset, preset="azure"):
    """A deployment of an Azure OpenAI or Foundry resource. The model is the deployment's name."""

    telemetry_name: ClassVar[str] = "azure.ai.openai"
    served_providers: ClassVar[tuple[str, ...]] = ("cohere",)

    def __init__(self, settings: ProviderSettings) -> None:
        self._location = address = parse_address(self._given(settings.base_url), settings.name)
        super().__init__(replace(settings, base_url=address.endpoint, api_key=self._find_secret(settings)))
        self._base_url = address.base
        self.account = (self.account, address.url)
        if settings.info is not None and settings.info.provider in self.served_providers and settings.info.asymmetric:
            self._role, self._roles = ROLE, ROLE.values
            self.may_truncate_silently = True  # whether they refuse long texts is not documented
            self.documents_base64 = False

    def _given(self, base_url: str | None) -> str:
        """Return the user's address, else the environment's."""
        if base_url is not None:
            return base_url
        address = os.environ.get(self.server.address_variables[0], "").strip() or self.server.find(None)
        return address if "://" in address else f"https://{address}"

    def _find_secret(self, settings: ProviderSettings) -> Secret:
        """Return the user's credential, else the environment's, else the token of azure-identity, if it is installed.

        Raises:
            ConfigurationError: There is none.
        """
        found = settings.find_key(*self.server.key_variables)
        is_named = is_sign_in(found)
        if found is not None and not is_named:
            return found
        if is_installed("azure.identity"):
            return entra_token(self._location.scope)
        if is_named:
            raise MissingExtraError("the sign-in with Entra ID", "azure")
        raise ConfigurationError(
            f"No API key for azure:{settings.name}. Pass api_key= or set the environment variable {self.key_variable}. "
            'To sign in with Entra ID, install "rag-embedkit[azure]".'
        )

    @property
    def url(self) -> str | None:
        """Address of the requests, with the API version."""
        return self._location.url

    @property
    def identity_url(self) -> str | None:
        """Canonical spelling of the user's address, with which a copy sends the same requests."""
        return self._location.url

    def address_fix(self, path: str) -> str:
        """Return advice about an address that was not found."""
        if self._location.version is None:
            return super().address_fix(path)
        return f"Has the resource a deployment {self.model!r}, and this API version?"

    def sdk_arguments(self) -> dict[str, Any]:
        """Return the query and the header of the key for an older route."""
        version = self._location.version
        return {} if version is None else {"default_query": {"api-version": version}, "key_header": key_header}
