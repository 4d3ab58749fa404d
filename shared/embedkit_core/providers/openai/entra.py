"""Tokens of Entra ID from the azure-identity package, which is imported on the thread that gets the first one.

Scopes: cognitiveservices.azure.com in Microsoft's documentation of Azure OpenAI, ai.azure.com in azure-ai-projects 2.10
for projects, cognitiveservices.azure.us in AzureOpenAIAudience of the .NET SDK; read 2026-11-30.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache, partial
from typing import Final

from embedkit_core.common.errors import AuthenticationError
from embedkit_core.providers.secrets import Secret

ENTRA_SCOPE: Final = "https://cognitiveservices.azure.com/.default"
FOUNDRY_SCOPE: Final = "https://ai.azure.com/.default"
GOVERNMENT_SCOPE: Final = "https://cognitiveservices.azure.us/.default"


class EntraToken(Secret):
    """A token that azure-identity gets and renews."""

    __slots__ = ()

    def refresh(self) -> None:
        """Get the current token. azure-identity keeps it until shortly before it expires.

        Raises:
            AuthenticationError: The sign-in failed.
            UnavailableError: As for `Secret.refresh`.
        """
        is_refused = False
        try:
            super().refresh()
        except AuthenticationError:
            is_refused = True
        if is_refused:
            raise AuthenticationError(
                "Entra ID: azure-identity could not sign in; its logger, azure.identity, says why. Set the environment "
                "variable AZURE_OPENAI_API_KEY, or sign in, for example with `az login`."
            )


def entra_token(scope: str) -> Secret:
    """Return a secret that is the token of DefaultAzureCredential for a scope. No I/O."""
    return EntraToken("", source=_source(scope))


@cache
def _source(scope: str) -> Callable[[], str]:
    """Return the same function for a scope, so that embedders share an account."""
    return partial(_token, scope)


def _token(scope: str) -> str:
    """Return the token, "" if the sign-in failed: the message of the error names accounts and addresses."""
    from azure.core.exceptions import ClientAuthenticationError

    try:
        return _token_provider(scope, os.getpid())()
    except (ClientAuthenticationError, ValueError):  # ValueError: a setting of the environment
        return ""


@cache
def _token_provider(scope: str, pid: int) -> Callable[[], str]:  # noqa: ARG001 - a forked child has its own connections
    from azure.identity import DefaultAzureCredential, get_bearer_token_provider

    return get_bearer_token_provider(DefaultAzureCredential(), scope)
