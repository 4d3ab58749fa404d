"""From texts to keys: what is asked, once each. Pure.

A key is the SHA-256 over the request as it would go on the wire for one text, what is done to the reply, and a key
version. Fields at their neutral value are left out, so that a later version can add fields without changing a key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from embedkit_core.common.errors import InputError
from embedkit_core.costs.tokens import estimate_tokens

SHOWN_POSITIONS = 10


class Plan(NamedTuple):
    """The distinct texts of a call: `first[i]` is where the i-th stands first, `source[p]` which one position p asks.

    `sizes` are their lengths in tokens, estimated; `places` says which of them a key is.
    """

    n: int
    keys: list[bytes]
    places: dict[bytes, int]
    texts: list[str]
    sizes: list[int]
    first: npt.NDArray[np.intp]
    source: npt.NDArray[np.intp]


def plan_call(texts: Iterable[str], prefix: bytes) -> Plan:
    """Check the texts, give each its key, and find the distinct ones.

    Raises:
        InputError: with the positions, for what is not a string, holds a lone surrogate, or is empty or white space.
    """
    texts = as_list(texts)
    start = hashlib.sha256(prefix)
    places: dict[bytes, int] = {}
    keys: list[bytes] = []
    kept: list[str] = []
    sizes: list[int] = []
    first: list[int] = []
    source = np.empty(len(texts), dtype=np.intp)
    bad: list[int] = []
    for position, text in enumerate(texts):
        # A subclass may show itself as another text than it holds (an enum does): what it holds counts.
        if isinstance(text, str) and type(text) is not str:
            text = str.__str__(text)
        if not isinstance(text, str) or not text or text.isspace():
            bad.append(position)
            continue
        try:
            encoded = text.encode()
        except UnicodeEncodeError:
            bad.append(position)
            continue
        hasher = start.copy()
        hasher.update(encoded)
        key = hasher.digest()
        place = places.setdefault(key, len(keys))
        if place == len(keys):
            keys.append(key)
            kept.append(text)
            sizes.append(estimate_tokens(text, encoded))
            first.append(position)
        source[position] = place
    if bad:
        raise input_error({position: reason_for(texts[position]) for position in bad}, len(texts))
    return Plan(len(texts), keys, places, kept, sizes, np.array(first, dtype=np.intp), source)


def as_list(texts: Iterable[str]) -> list[str]:
    """Give the texts as a list, refusing a lone string, which would fall apart into characters."""
    if type(texts) is list:
        return texts.copy()
    check_is_list(texts)
    try:
        return list(texts)
    except TypeError:
        raise not_iterable_error(texts) from None


def check_is_list(texts: object) -> None:
    """Refuse what can be iterated over and is no list of texts all the same."""
    if isinstance(texts, (str, bytes)):
        raise InputError("expected a list of texts and got a single one; use embed_query(text) or embed([text])", ())
    if isinstance(texts, (Mapping, Set)):
        raise InputError(f"expected a list of texts and got a {type(texts).__name__}, give its texts as a list", ())


def not_iterable_error(texts: object) -> InputError:
    """Give the error for what cannot be iterated over."""
    return InputError(f"expected a list of texts and got {type(texts).__name__}", ())


def input_error(flaws: Mapping[int, str], n: int) -> InputError:
    """Give the error for those of n texts that cannot be embedded, by their positions."""
    reasons: dict[str, list[int]] = {}
    for position, flaw in flaws.items():
        reasons.setdefault(flaw, []).append(position)
    found = "; ".join(f"{reason} at position {_listed(positions)}" for reason, positions in reasons.items())
    return InputError(f"{len(flaws)} of {n} texts cannot be embedded, and nothing was sent: {found}", list(flaws))


def reason_for(text: object) -> str:
    """Say why a text that was refused cannot be embedded."""
    if not isinstance(text, str):
        return f"not a string but {type(text).__name__}"
    if not text or text.isspace():
        return "empty or only white space"
    return "not valid Unicode (a lone surrogate; decode with errors='replace')"


def _listed(positions: list[int]) -> str:
    shown = ", ".join(map(str, positions[:SHOWN_POSITIONS]))
    return shown + (f" and {len(positions) - SHOWN_POSITIONS} more" if len(positions) > SHOWN_POSITIONS else "")


def iterate_texts(texts: Iterable[str]) -> Iterator[str]:
    """Give an iterator over what may be a stream of texts.

    Raises:
        InputError: it is none.
    """
    check_is_list(texts)
    try:
        return iter(texts)
    except TypeError:
        raise not_iterable_error(texts) from None
