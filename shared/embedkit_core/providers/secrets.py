"""API key holder that never exposes its value in repr, str or pickle."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any

from embedkit_core.common.errors import AuthenticationError, ConfigurationError, UnavailableError

SALT = os.urandom(16)
SECRET_ARGUMENTS = ("api_key", "headers", "proxy", "client_cert")  # arguments of an embedder that may hold credentials
KEY_PREFIXES = ("sk-", "pa-", "al-")  # of OpenAI's and Voyage's keys
MASK = "**********"
PLACEHOLDER_KEY = "no-key-needed"  # sent to servers that need no key; not a secret
SIGN_IN = "azure-identity"  # as a key: the package that signs in instead; not a secret
# The one query that an address may have: that of a deployment at Azure.
API_VERSION = re.compile(r"api-version=(\d{4}-\d{2}-\d{2}(?:-preview)?)")


class Hidden:
    """Value of an argument that is absent from its repr.

    Tools that report errors show the local variables of every frame of a traceback. Therefore a function that may raise
    an error hides an argument that may hold a secret in its first line, and reveals it only within an expression.
    """

    __slots__ = ("_value",)

    def __init__(self, value: Any) -> None:
        self._value = value

    def __repr__(self) -> str:
        return f"Hidden({MASK!r})"

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("A Hidden value is not pickled.")


def hide(value: Any) -> Any:
    """Return the value hidden, with a copy of a dict. None and a hidden value are returned unchanged."""
    if value is None or isinstance(value, Hidden):
        return value
    return Hidden(dict(value) if type(value) is dict else value)


def reveal(value: Any) -> Any:
    """Return a value that may be hidden."""
    return value._value if isinstance(value, Hidden) else value


def hide_secrets(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of an embedder with those hidden that may hold credentials."""
    return {name: hide(value) if name in SECRET_ARGUMENTS else value for name, value in arguments.items()}


def is_sign_in(key: Any) -> bool:
    """Return True if a key, which may be hidden, names the package that signs in."""
    key = reveal(key)
    return (key._value if isinstance(key, Secret) and key.source is None else key) == SIGN_IN


def mask_key(model: Any) -> Any:
    """Return a model name; of an API key passed as the model, only the prefix, by which it is refused."""
    prefix = next((one for one in KEY_PREFIXES if isinstance(model, str) and model.strip().startswith(one)), None)
    return model if prefix is None else prefix + MASK


def mask_login(url: Any) -> Any:
    """Return an address with user name, password and query masked; addresses with any of them are refused.

    An API version alone is not masked.
    """
    if not isinstance(url, str):
        return url
    if not API_VERSION.fullmatch(url.partition("?")[2].strip()):
        url = re.sub(r"\?.+", f"?{MASK}", url, flags=re.S)
    return re.sub(r"//[^/]*@", f"//{MASK}@", url)


def key_flaw(key: str) -> str:
    """Return what is wrong with a key and what to do, "" if nothing is. White space around it is ignored."""
    stripped = key.strip()
    if not stripped:
        return "the key is empty. Pass the key itself."
    if not stripped.strip("*"):
        return "the key is masked, as in a dump. Pass the key itself."
    if not stripped.isascii() or not stripped.isprintable() or " " in stripped:
        return "the key has white space or a character that no API key has. Check the key."
    return ""


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
        failure, value = "", None
        try:
            value = Hidden(self.source())
        except BaseException as error:  # its message may contain anything; SystemExit would end the thread silently
            failure = type(error).__name__
        if failure:
            raise UnavailableError(f"api_key: the function failed with {failure}")
        if not isinstance(reveal(value), str):
            raise AuthenticationError(
                f"api_key: the function returned {type(reveal(value)).__name__} instead of a string"
            )
        if key_flaw(reveal(value)):
            raise AuthenticationError(
                "api_key: the function returned a key that is empty, masked or contains a character that no API key has"
            )
        self._value = reveal(value).strip()

    @classmethod
    def checked(cls, key: Hidden, source: str) -> Secret:
        """Return the Secret of a key without surrounding white space, which files and shells often add.

        Args:
            key: The key, a string.
            source: Where the key comes from, for the error message.

        Raises:
            ConfigurationError: The key is empty, masked or contains a character that is not allowed in an HTTP header.
        """
        if flaw := key_flaw(reveal(key)):
            raise ConfigurationError(f"{source}: {flaw}")
        return cls(reveal(key).strip())

    def constant(self) -> Secret:
        """Return the current key as a Secret that does not change."""
        return Secret(self.reveal())

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
    def _identity(self) -> str:
        if self.source is None:
            return f"key {self._value}"
        if isinstance(self.source, MethodType):  # a new object at each access
            return f"method {id(self.source.__self__)} {id(self.source.__func__)}"
        return f"function {id(self.source)}"

    @property
    def fingerprint(self) -> str:
        """Salted digest that distinguishes credentials within this process; with a source, it identifies the source.

        The digest is valid as long as this object: it holds the source, so that no other one can have its id.
        """
        return hashlib.sha256(SALT + self._identity.encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    def __repr__(self) -> str:
        return f"Secret({MASK!r})"

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("A Secret is not pickled. Set the key in the environment of the process that needs it.")
