"""The encoding of vectors: when base64 is requested, and which dtype it has. No I/O.

Base64 is smaller and faster to read than numbers as text, but servers send float32, float64 and float16 under that
name, and some send other dimensions than requested. So it is only requested if its bytes will show its dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from embedkit_core.providers.http.decoding import FLOAT_DTYPES, NUMPY_FLOAT32

BASE64, FLOATS = "base64", "float"  # values of `encoding_format`


class EncodingNegotiation:
    """Chooses the encoding of requests that differ in their texts only.

    - At OpenAI's own service, base64 is float32.
    - If the catalogue has the width, base64 with as many bytes as float32 has is float32.
    - Otherwise the first reply has numbers, which show the width; then the bytes of a row show the dtype.

    After a refusal of base64, numbers are requested. Until base64 was read once, one request at a time asks for it.
    """

    def __init__(self, *, is_documented: bool, widths: Sequence[int], requests_dimensions: bool) -> None:
        """Start without a reply.

        Args:
            is_documented: True if base64 is float32 by the documentation of the server.
            widths: The widths that a row may have; empty if unknown.
            requests_dimensions: True if the requests have dimensions, which a server may ignore.
        """
        self._is_documented = is_documented
        # The width of a server that ignores dimensions may be unknown, or twice the requested one: then the bytes of
        # float32 are also those of float16 or float64.
        is_ambiguous = any(2 * width in widths for width in widths) or (requests_dimensions and len(widths) == 1)
        self._expected = () if is_ambiguous else tuple(widths)
        self._seen: int | None = None  # the width of a reply with numbers
        self._is_refused = self._is_accepted = self._is_trying = False

    def choose(self) -> str:
        """Return the encoding to request. Call `ended` after the request."""
        is_readable = self._is_documented or self._expected or self._seen is not None
        if self._is_refused or not is_readable or (self._is_trying and not self._is_accepted):
            return FLOATS
        self._is_trying = True
        return BASE64

    def dtype_of(self, n_bytes: int) -> np.dtype[Any] | None:
        """Return the dtype of base64 with so many bytes per row, None if it is unknown."""
        if self._is_documented:
            return NUMPY_FLOAT32
        if self._seen is not None:
            return FLOAT_DTYPES.get(n_bytes / self._seen)
        fitting = {FLOAT_DTYPES.get(n_bytes / width) for width in self._expected} - {None}
        # Float16 and float64 of this width may be float32 of half or twice the width, from another model.
        return None if fitting - {NUMPY_FLOAT32} or not self._expected else NUMPY_FLOAT32

    def accepted(self, encoding: str, width: int) -> None:
        """Accept that a reply was read and has rows of this width."""
        if encoding == BASE64:
            self._is_accepted = True
        else:
            self._seen = width

    def refused(self) -> None:
        """Accept that the server does not support base64."""
        self._is_refused = True

    def unreadable(self) -> None:
        """Accept that the dtype of base64 was unknown: the next reply has numbers, which show the width."""
        self._is_refused, self._expected = self._seen is not None, ()

    def ended(self, encoding: str) -> None:
        """Accept that a request ended, in whatever way."""
        if encoding == BASE64:
            self._is_trying = False
