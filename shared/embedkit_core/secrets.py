"""A key that does not show itself."""

from __future__ import annotations

import hashlib
import os

_SALT = os.urandom(16)


class Secret:
    """Holds a credential; its text, its repr and its pickle do not.

    `mark` tells two credentials apart within this process and nothing more.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Give the credential itself, to the client that sends it."""
        return self._value

    @property
    def mark(self) -> str:
        """Give a salted digest."""
        return hashlib.sha256(_SALT + self._value.encode()).hexdigest()

    def __repr__(self) -> str:
        return "Secret('**********')"

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("a key is not pickled; set it in the environment of the process that needs it")
