"""API key holder that never exposes its value in repr, str or pickle."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from types import MethodType

from embedkit_core.common.errors import AuthenticationError, ConfigurationError, UnavailableError

SALT = os.urandom(16)


def clean(value: str, source: str) -> str:
    """Return a key without surrounding white space, which files and shells often add.

    Args:
        value: The key.
        source: Where the key comes from, for the error message.

    Raises:
        ConfigurationError: The key is empty, masked or contains a character that is not allowed in an HTTP header.
    """
    stripped = value.strip()
    if stripped and not stripped.strip("*"):
        raise ConfigurationError(f"{source}: masked key, as in a dump. Pass the key itself.")
    if not stripped or not stripped.isascii() or not stripped.isprintable() or " " in stripped:
        raise ConfigurationError(
            f"{source}: the key is empty, or contains white space or a character that no API key has. Check the key."
        )
    return stripped


class Secret:
    """A credential that is absent from its str, repr and pickle.

    Attributes:
        source: Function of the user that returns the key, None for a constant key.
    """

    __slots__ = ("_value", "source")

    def __init__(self, value: str, source: Callable[[], str] | None = None) -> None:
        self._value = value
        self.source = source

    def refresh(self) -> None:
        """Get the current key from the source. Runs user code that may block, so it is called on its own thread.

        Raises:
            UnavailableError: The source raised an error; the request is retried.
            AuthenticationError: The source did not return a valid key.
        """
        if self.source is None:
            return
        failure = flaw = ""
        value: object = None
        try:
            value = self.source()
        except BaseException as error:  # its message may contain anything; SystemExit would end the thread silently
            failure = type(error).__name__
        if failure:
            raise UnavailableError(f"api_key: the function failed with {failure}")
        if not isinstance(value, str):
            flaw = f"returned {type(value).__name__} instead of a string"
        else:
            try:
                self._value = clean(value, "")
            except ConfigurationError:
                flaw = "returned a key that is empty, masked or contains a character that no API key has"
        if flaw:
            raise AuthenticationError(f"api_key: the function {flaw}")

    def reveal(self) -> str:
        """Return the credential, for the client that sends it.

        Raises:
            AuthenticationError: The key was not pickled with the embedder.
        """
        if self.is_lost:
            raise AuthenticationError(
                "The api_key was not pickled. Set the provider's environment variable in this process."
            )
        return self._value

    @classmethod
    def lost(cls) -> Secret:
        """Return the placeholder of a key that was not pickled."""
        return cls("")

    @property
    def is_lost(self) -> bool:
        """Return True if the key was not pickled."""
        return not self._value and self.source is None

    @property
    def fingerprint(self) -> str:
        """Salted digest that distinguishes credentials within this process; with a source, it identifies the source.

        The digest is valid as long as this object: it holds the source, so that no other one can have its id.
        """
        if self.source is None:
            identity = f"key {self._value}"
        elif isinstance(self.source, MethodType):  # a new object at each access
            identity = f"method {id(self.source.__self__)} {id(self.source.__func__)}"
        else:
            identity = f"function {id(self.source)}"
        return hashlib.sha256(SALT + identity.encode()).hexdigest()

    def __repr__(self) -> str:
        return "Secret('**********')"

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("A Secret is not pickled. Set the key in the environment of the process that needs it.")
