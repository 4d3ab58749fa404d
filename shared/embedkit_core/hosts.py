"""What the adapters share: which arguments there are, how an embedder is made of them, and lists of floats."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from embedkit_core import config
from embedkit_core.embedder import Embedder, parameter_names
from embedkit_core.errors import ConfigurationError
from embedkit_core.lists import ato_lists, to_lists

__all__ = ["ato_lists", "complaint", "make_embedder", "refuse_unknown", "to_lists"]


class _SecretStr(Protocol):
    def get_secret_value(self) -> str: ...


def make_embedder(arguments: Mapping[str, Any], *, api_key: _SecretStr | None) -> Embedder:
    """Make an embedder from those of an adapter's fields that are arguments of it; the rest are the host's own."""
    known = {name: value for name, value in arguments.items() if name in parameter_names() and name != "api_key"}
    return Embedder(**known, api_key=api_key.get_secret_value() if api_key is not None else None)


def refuse_unknown(owner: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise ConfigurationError for an argument the adapter does not have, naming the nearest that it has."""
    names = set(known)
    config.refuse_unknown(owner, [name for name in given if name not in names], sorted(names))


def complaint(owner: str, errors: Iterable[Mapping[str, Any]]) -> ConfigurationError:
    """Put a host's findings about its fields (their `loc` and `msg`) into one error of ours, without any value."""
    return ConfigurationError(f"{owner}: " + "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in errors))
