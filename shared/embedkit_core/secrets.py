"""A key that does not show itself."""

from __future__ import annotations

import hashlib
import os

from embedkit_core.errors import AuthenticationError, ConfigurationError

_SALT = os.urandom(16)


def clean(value: str, source: str) -> str:
    """Give a key without the white space around it, as files and shells leave it.

    Raises:
        ConfigurationError: nothing is left, or it holds what no HTTP header can carry.
    """
    stripped = value.strip()
    if stripped and not stripped.strip("*"):
        raise ConfigurationError(f"{source} is a masked key, as a dump shows it; give the key itself")
    if not stripped or not stripped.isascii() or not stripped.isprintable() or " " in stripped:
        raise ConfigurationError(f"{source} is empty, or holds white space or a character that no API key has")
    return stripped


class Secret:
    """Holds a credential; its text, its repr and its pickle do not.

    `mark` tells two credentials apart within this process and nothing more.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Give the credential itself, to the client that sends it.

        Raises:
            AuthenticationError: it stayed behind in another process.
        """
        if self.is_lost:
            raise AuthenticationError(
                "the api_key given in another process is not pickled; set the provider's environment variable here"
            )
        return self._value

    @classmethod
    def lost(cls) -> Secret:
        """Give what stands for a key that stayed behind in another process."""
        return cls("")

    @property
    def is_lost(self) -> bool:
        """Tell whether the credential stayed behind in another process."""
        return not self._value

    @property
    def mark(self) -> str:
        """Give a salted digest."""
        return hashlib.sha256(_SALT + self._value.encode()).hexdigest()

    def __repr__(self) -> str:
        return "Secret('**********')"

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("a key is not pickled; set it in the environment of the process that needs it")
