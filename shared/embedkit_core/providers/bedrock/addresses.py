"""Addresses and regions of Amazon Bedrock, from arguments and the environment. No network I/O."""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit

from embedkit_core.providers.bedrock.wires import arn_region

# As botocore resolves them (botocore/configprovider.py, 1.44.8).
ADDRESS_VARIABLES = ("AWS_ENDPOINT_URL_BEDROCK_RUNTIME", "AWS_ENDPOINT_URL")
IGNORE_VARIABLE = "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"
REGION_VARIABLES = ("AWS_REGION", "AWS_DEFAULT_REGION")  # botocore reads the second only
OWN_HOST = re.compile(
    r"(?:[\w-]+\.)?bedrock-runtime(?:-fips)?\.(?P<region>[a-z0-9-]+)\.(?:vpce\.)?(?:amazonaws\.com(?:\.cn)?|api\.aws)"
)


def find_address(base_url: str | None) -> str | None:
    """Return the user's address, else the environment's, else None."""
    if base_url is not None:
        return base_url
    if os.environ.get(IGNORE_VARIABLE, "").lower() == "true":
        return None
    return next((os.environ[name] for name in ADDRESS_VARIABLES if os.environ.get(name)), None)


def own_region(address: str) -> str | None:
    """Return the region of an address of AWS, public or private, None for any other address."""
    found = OWN_HOST.fullmatch(urlsplit(address).hostname or "")
    return found["region"] if found else None


def find_region(address: str, model: str) -> str | None:
    """Return the region of an address, of a model's ARN or of the environment, None to use that of the profile."""
    found = next((os.environ[name] for name in REGION_VARIABLES if os.environ.get(name)), None)
    return own_region(address) or arn_region(model) or found
