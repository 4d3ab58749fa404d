"""Addresses of the Gemini API and of Vertex AI, from `base_url` and the SDK's environment variables. No network I/O."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

from embedkit_core.providers.http.address import canonical_url

GEMINI_HOST = "https://generativelanguage.googleapis.com"
GEMINI_ADDRESS_VARIABLE, VERTEX_ADDRESS_VARIABLE = "GOOGLE_GEMINI_BASE_URL", "GOOGLE_VERTEX_BASE_URL"
PROJECT_VARIABLE, LOCATION_VARIABLE = "GOOGLE_CLOUD_PROJECT", "GOOGLE_CLOUD_LOCATION"
GLOBAL = "global"
MULTI_REGIONS = ("us", "eu")
VERTEX_HOST = re.compile(r"https://([a-z0-9-]+-)?aiplatform(\.[a-z0-9-]+\.rep)?(\.mtls)?\.googleapis\.com")
# An address with or without a version, and on Vertex AI with or without a project and a location.
ADDRESS = re.compile(
    r"(?P<host>.*?)/*(/(?P<version>v\d+(alpha|beta)?\d*))?(/projects/(?P<project>[^/]+)/locations/(?P<location>[^/]+))?/*"
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where requests are sent.

    Attributes:
        host: Address without the version of the API.
        version: Version of the API.
        project: Google Cloud project, None if neither the address nor the environment names one.
        location: Location of the model on Vertex AI.
    """

    host: str
    version: str
    project: str | None = None
    location: str | None = None

    @property
    def canonical(self) -> str:
        """Canonical address with the project, which has its own limits per minute."""
        path = "" if self.project is None else f"/projects/{self.project}/locations/{self.location or GLOBAL}"
        return canonical_url(self.host) + path

    @property
    def is_gemini_api(self) -> bool:
        """Return True if this is the host of the Gemini API."""
        return canonical_url(self.host) == GEMINI_HOST

    @property
    def is_vertex_ai(self) -> bool:
        """Return True if this is a host of Vertex AI."""
        return VERTEX_HOST.fullmatch(canonical_url(self.host)) is not None


def gemini_place(base_url: str | None) -> Place:
    """Return where requests to the Gemini API are sent: `base_url`, else the environment's address, else Google's."""
    return _split(
        base_url if base_url is not None else os.environ.get(GEMINI_ADDRESS_VARIABLE) or GEMINI_HOST, "v1beta"
    )


def vertex_place(base_url: str | None, *, with_environment: bool = True) -> Place:
    """Return where requests to Vertex AI are sent.

    Args:
        base_url: The user's address, None for the environment's or the one of the location.
        with_environment: True if project and location may come from the environment.
    """
    address = base_url if base_url is not None else os.environ.get(VERTEX_ADDRESS_VARIABLE) or None
    place = Place("", "v1beta1") if address is None else _split(address, "v1beta1")
    project, location = place.project, place.location
    if with_environment:
        project = project or os.environ.get(PROJECT_VARIABLE) or None
        location = location or os.environ.get(LOCATION_VARIABLE) or None
    return Place(place.host if address is not None else _host_of(location), place.version, project, location)


def _split(address: Any, version: str) -> Place:
    """Return the parts of an address. One that is not a string is refused when it is made canonical."""
    parts = ADDRESS.fullmatch(address.strip()) if isinstance(address, str) else None
    if parts is None:
        return Place(address, version)
    return Place(parts["host"], parts["version"] or version, parts["project"], parts["location"])


def _host_of(location: str | None) -> str:
    """Return the host of a location, as the SDK chooses it."""
    if location in (None, GLOBAL):
        return "https://aiplatform.googleapis.com"
    if location in MULTI_REGIONS:
        return f"https://aiplatform.{location}.rep.googleapis.com"
    return f"https://{location}-aiplatform.googleapis.com"
