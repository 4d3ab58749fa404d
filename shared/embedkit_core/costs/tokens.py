"""Token arithmetic: estimates, upper bounds, and sharing out a bill. No I/O."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from decimal import Decimal

from embedkit_core.common.usage import MILLION


def cost_usd(tokens: int, price: Decimal | None) -> Decimal:
    """Give what so many tokens cost, 0 where the price is unknown."""
    return Decimal(0) if price is None else tokens * price / MILLION


def max_tokens(text: str) -> int:
    """Give how many tokens a text may be at most: its bytes, also in the longer form some tokenizers bring it to."""
    if text.isascii():
        return len(text)
    return max(len(text.encode()), len(unicodedata.normalize("NFKC", text).encode()))


def estimate_tokens(text: str, encoded: bytes) -> int:
    """Guess the length of a text in tokens, without a tokenizer: pacing only, never money.

    Against cl100k: English 1.1, code 1.2, Chinese 1.2, Russian 1.6 times the true count.
    """
    return int(len(encoded) / 3.6 + 0.4 * (len(encoded) - len(text))) + 1


def split_bill(total: int, sizes: Sequence[int]) -> list[int]:
    """Divide billed tokens over texts by their size, in whole numbers that add up to the total."""
    weight = sum(sizes)
    if not weight:
        return [total if i == 0 else 0 for i in range(len(sizes))]
    shares, done, given = [], 0, 0
    for size in sizes:
        done += size
        upto = total * done // weight
        shares.append(upto - given)
        given = upto
    return shares
