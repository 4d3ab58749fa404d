"""A key that does not show itself."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable

from embedkit_core.common.errors import AuthenticationError, ConfigurationError, UnavailableError

SALT = os.urandom(16)


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

    `mark` tells two credentials apart within this process and nothing more. One that has a `source` is asked for anew
    before each request: `refresh` does that, which is the user's code and may take its time.
    """

    __slots__ = ("_value", "source")

    def __init__(self, value: str, source: Callable[[], str] | None = None) -> None:
        self._value = value
        self.source = source

    def refresh(self) -> None:
        """Ask the source for what is to be sent from now on; called on a thread of its own.

        Raises:
            UnavailableError: it fails, which may pass.
            AuthenticationError: it gives what is no key.
        """
        if self.source is None:
            return
        failure = flaw = ""
        given: object = None
        try:
            given = self.source()
        except BaseException as error:  # its message may hold anything; who exits this thread would be waited for
            failure = type(error).__name__
        if failure:
            raise UnavailableError(f"the function that gives the key failed with {failure}")
        if not isinstance(given, str):
            flaw = f"gave {type(given).__name__} in place of a string"
        else:
            try:
                self._value = clean(given, "")
            except ConfigurationError:
                flaw = "gave what is empty, masked, or holds what no API key has"
        if flaw:
            raise AuthenticationError(f"the function that gives the key {flaw}")

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
        return not self._value and self.source is None

    @property
    def fingerprint(self) -> str:
        """Give a salted digest; of a source, whatever it gives."""
        of = self._value
        if self.source is not None:  # a bound method is another object each time
            owner = getattr(self.source, "__self__", self.source)
            of = f"{id(owner)} {getattr(self.source, '__qualname__', '')}"
        return hashlib.sha256(SALT + of.encode()).hexdigest()

    def __repr__(self) -> str:
        return "Secret('**********')"

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("a key is not pickled; set it in the environment of the process that needs it")
