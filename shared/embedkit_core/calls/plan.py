"""From texts to cache keys: the distinct texts of a call and their positions. No I/O.

A key is the SHA-256 of the request body for one text, the post-processing of the reply and a key version. Fields with
a neutral value are left out, so that a later version can add fields without changing existing keys.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from embedkit_core.common.errors import InputError
from embedkit_core.common.formatting import count_noun
from embedkit_core.costs.tokens import estimate_tokens

MAX_SHOWN_POSITIONS = 10
EMPTY_REASON = "empty or whitespace only"
NOT_STRING_REASON = "not a string"
FIXES = {  # by the beginning of a reason
    EMPTY_REASON: "Remove empty texts, or set on_empty_text='zero' for zero vectors.",
    NOT_STRING_REASON: "Pass strings, such as the page_content or text of each document.",
}


class Plan(NamedTuple):
    """The distinct texts of a call. An index counts distinct texts, a position counts the texts of the call.

    Attributes:
        n: The number of texts in the call.
        keys: The cache key of each distinct text.
        indexes: The index of each key.
        texts: The distinct texts.
        sizes: Their estimated lengths in tokens.
        first: The position of each distinct text's first occurrence, shape (n_distinct,).
        source: The index of the text at each position, -1 for an empty text, shape (n,).
        empty: The positions of the empty texts, which have no key and get zero vectors.
        call_texts: The texts of the call.
    """

    n: int
    keys: list[bytes]
    indexes: dict[bytes, int]
    texts: list[str]
    sizes: list[int]
    first: npt.NDArray[np.intp]
    source: npt.NDArray[np.intp]
    empty: list[int]
    call_texts: list[str]

    @property
    def n_duplicates(self) -> int:
        """The number of texts that repeat an earlier one."""
        return self.n - len(self.keys) - len(self.empty)

    def origin(self) -> npt.NDArray[np.intp] | None:
        """Return the position of the first equal text for each position, None if there are no duplicates."""
        if not self.n_duplicates:
            return None
        return np.where(self.source < 0, np.arange(self.n), self.first[self.source])


def plan_call(texts: Iterable[str], prefix: bytes, *, allows_empty: bool = False) -> Plan:
    """Check the texts, compute their keys and find the distinct ones.

    Args:
        texts: The texts of the call.
        prefix: The prefix of the cache keys.
        allows_empty: Whether texts may be empty or whitespace only.

    Raises:
        InputError: Some texts are not strings, are not valid Unicode, or are empty. `indices` holds their positions.
    """
    texts = as_list(texts)
    start = hashlib.sha256(prefix)
    indexes: dict[bytes, int] = {}
    keys: list[bytes] = []
    unique: list[str] = []
    sizes: list[int] = []
    first: list[int] = []
    source = np.empty(len(texts), dtype=np.intp)
    bad: list[int] = []
    empty: list[int] = []
    for position, text in enumerate(texts):
        # str() of a subclass may differ from its content (an enum's does): the content counts.
        if isinstance(text, str) and type(text) is not str:
            text = str.__str__(text)
        if not isinstance(text, str):
            bad.append(position)
            continue
        if not text or text.isspace():  # is_empty, inlined for speed
            empty.append(position)
            source[position] = -1
            continue
        try:
            encoded = text.encode()
        except UnicodeEncodeError:
            bad.append(position)
            continue
        hasher = start.copy()
        hasher.update(encoded)
        key = hasher.digest()
        index = indexes.setdefault(key, len(keys))
        if index == len(keys):
            keys.append(key)
            unique.append(text)
            sizes.append(estimate_tokens(text, encoded))
            first.append(position)
        source[position] = index
    if empty and not allows_empty:
        bad = sorted(bad + empty)
    if bad:
        raise input_error({position: reason_for(texts[position]) for position in bad}, len(texts))
    return Plan(len(texts), keys, indexes, unique, sizes, np.array(first, dtype=np.intp), source, empty, texts)


def as_list(texts: Iterable[str]) -> list[str]:
    """Return the texts as a list.

    Raises:
        InputError: `texts` is a single string, a mapping, a set or not iterable.
    """
    if type(texts) is list:
        return texts.copy()
    check_is_list(texts)
    try:
        return list(_python_values(texts))
    except TypeError:
        raise not_iterable_error(texts) from None


def _python_values(texts: Iterable[str]) -> Iterable[str]:
    """Return the strings of a column of pyarrow, which iterates over scalars of its own; anything else as it is."""
    to_pylist: Callable[[], list[str]] | None = getattr(texts, "to_pylist", None)
    return texts if to_pylist is None else to_pylist()


def check_is_list(texts: object) -> None:
    """Raise InputError for iterables that are not lists of texts: a single string, a mapping, a set."""
    if isinstance(texts, (str, bytes)):
        raise InputError(
            f"texts: expected a list of texts (got a single {type(texts).__name__}). "
            "Pass a list of texts, or use the method for one text.",
            (),
        )
    if isinstance(texts, (Mapping, Set)):
        raise InputError(
            f"texts: expected a list of texts (got {type(texts).__name__}). Pass the texts of the "
            f"{type(texts).__name__} as a list.",
            (),
        )


def not_iterable_error(texts: object) -> InputError:
    """Return the error for a value that is not iterable."""
    return InputError(f"texts: expected a list of texts (got {type(texts).__name__}). Pass a list of strings.", ())


def input_error(reasons: Mapping[int, str], n: int) -> InputError:
    """Return the error for the texts that cannot be embedded.

    Args:
        reasons: The reason by the position of the text.
        n: The number of texts in the call.
    """
    by_reason: dict[str, list[int]] = {}
    for position, reason in reasons.items():
        by_reason.setdefault(reason, []).append(position)
    listed = "; ".join(f"{reason} at {_format_positions(found)}" for reason, found in by_reason.items())
    listed += fixes_for(by_reason)
    return InputError(
        f"{len(reasons)} of {count_noun(n, 'text')} cannot be embedded; nothing was sent: {listed}", list(reasons)
    )


def is_empty(text: object) -> bool:
    """Return True for a string that is empty or whitespace only."""
    return isinstance(text, str) and (not text or text.isspace())


def reason_for(text: object) -> str:
    """Return the reason why a rejected text cannot be embedded."""
    if not isinstance(text, str):
        return f"{NOT_STRING_REASON} (got {type(text).__name__})"
    if is_empty(text):
        return EMPTY_REASON
    return "not valid Unicode (a lone surrogate; decode with errors='replace')"


def fixes_for(reasons: Iterable[str]) -> str:
    """Return what to do about texts that cannot be embedded, as the end of a message: empty or ". <fix> <fix>"."""
    reasons = list(reasons)
    fixes = [fix for beginning, fix in FIXES.items() if any(reason.startswith(beginning) for reason in reasons)]
    return ". " * bool(fixes) + " ".join(fixes)


def unknown_width_error(model: str, empty: Iterable[int]) -> InputError:
    """Return the error for empty texts whose zero vectors have no known width."""
    return InputError(
        f"The width of {model} is unknown until its first vector, so the empty texts have no zero vectors. Set "
        "dimensions=.",
        list(empty),
    )


def _format_positions(positions: list[int]) -> str:
    shown = ", ".join(map(str, positions[:MAX_SHOWN_POSITIONS]))
    more = len(positions) - MAX_SHOWN_POSITIONS
    noun = "position" if len(positions) == 1 else "positions"
    return f"{noun} {shown} and {more} more" if more > 0 else f"{noun} {shown}"


def iterate_texts(texts: Iterable[str]) -> Iterator[str]:
    """Return an iterator over a possibly endless iterable of texts.

    Raises:
        InputError: `texts` is a single string, a mapping, a set or not iterable.
    """
    check_is_list(texts)
    try:
        return iter(_python_values(texts))
    except TypeError:
        raise not_iterable_error(texts) from None


def plan_chunks(texts: Iterable[str], prefix: bytes, chunk_texts: int, *, allows_empty: bool = False) -> Iterator[Plan]:
    """Yield the plan of each chunk of texts, which are read chunk by chunk.

    Raises:
        InputError: Some texts cannot be embedded, with the positions of all of them. Plans that were yielded before
            must not be used then.
    """
    stream, start, reasons = iterate_texts(texts), 0, dict[int, str]()
    while chunk := list(itertools.islice(stream, chunk_texts)):
        try:
            plan = plan_call(chunk, prefix, allows_empty=allows_empty)
        except InputError as error:
            reasons.update({start + position: reason_for(chunk[position]) for position in error.indices})
        else:
            if not reasons:
                yield plan
        start += len(chunk)
    if reasons:
        raise input_error(reasons, start)
