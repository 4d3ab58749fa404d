"""The encoding of vectors: when base64 is requested, and whether it is float32. No I/O.

Base64 is smaller and faster to read than numbers as text, but servers send float32, float64 and float16 under that
name, and some send other dimensions than requested. So it is only used if its bytes show that it is float32.
"""

from __future__ import annotations

from collections.abc import Sequence

from embedkit_core.providers.http.decoding import NUMPY_FLOAT32
from embedkit_core.providers.openai.servers import BASE64, FLOATS


class EncodingNegotiation:
    """Chooses the encoding of requests that differ in their texts only.

    - At OpenAI's own service, base64 is float32.
    - If the width is known, from the catalogue or from a reply with numbers, base64 with the bytes of float32 in this
      width is float32. Other bytes may be another dtype or another width: numbers are requested from then on.
    - If the width is unknown, the first request is for numbers.

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
        # If the server ignores dimensions, the width may be unknown, or 2 or 4 times the requested one: then the bytes
        # of float32 in the one are those of float16 or int8 in the other.
        is_ambiguous = any(factor * width in widths for width in widths for factor in (2, 4))
        is_ambiguous |= requests_dimensions and len(widths) == 1
        self._widths = () if is_ambiguous else tuple(widths)
        self._bytes = tuple(widths[:1] if is_ambiguous else widths)
        self._is_refused = self._is_accepted = self._is_trying = False

    def choose(self) -> str:
        """Return the encoding to request. Call `ended` after the request."""
        is_known = self._is_documented or self._widths
        if self._is_refused or not is_known or (self._is_trying and not self._is_accepted):
            return FLOATS
        self._is_trying = True
        return BASE64

    def is_float32(self, n_bytes: int) -> bool:
        """Return True if base64 with so many bytes per row is float32."""
        return self._is_documented or n_bytes / NUMPY_FLOAT32.itemsize in self._widths

    def is_one_byte_per_number(self, n_bytes: int) -> bool:
        """Return True if base64 with so many bytes per row is int8, uint8 or packed, or if nothing is known of it."""
        return not self._bytes or n_bytes in self._bytes

    def accepted(self, encoding: str, width: int) -> None:
        """Accept that a reply was read and has rows of this width."""
        if encoding == BASE64:
            self._is_accepted = True
        else:
            self._widths = (width,)

    def refused(self) -> None:
        """Accept that the server does not support base64, or sends another dtype or width."""
        self._is_refused = True

    def ended(self, encoding: str) -> None:
        """Accept that a request ended, with a reply or an error."""
        if encoding == BASE64:
            self._is_trying = False
