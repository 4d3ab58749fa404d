"""Batches of texts of similar length, because a model pads all texts to the longest. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

# Overhead of a batch in characters of padding: about 60 tokens on a CPU, 2 to 4 ms with MiniLM. Measured with the texts
# of benchmarks/local.py, 2026-11-25.
BATCH_COST_CHARACTERS = 280
# Larger batches do not fit a CPU's cache: 32 texts of 256 tokens take 25% more time per token than 16 texts.
MAX_BATCH_CHARACTERS = 16_000


def batches(lengths: Sequence[int], max_texts: int) -> Iterator[list[int]]:
    """Yield batches of the positions of texts with these lengths in characters, the longest texts first.

    A batch ends when its padding costs as much as another batch.

    Args:
        lengths: Length of each text in characters.
        max_texts: Maximum texts of a batch.
    """
    positions = sorted(range(len(lengths)), key=lambda position: -lengths[position])
    batch: list[int] = []
    padding = 0
    for position in positions:
        longest = lengths[batch[0]] if batch else lengths[position]
        padding += longest - lengths[position]
        is_full = len(batch) == max_texts or longest * (len(batch) + 1) > MAX_BATCH_CHARACTERS
        if batch and (is_full or padding > BATCH_COST_CHARACTERS):
            yield batch
            batch, padding = [], 0
        batch.append(position)
    if batch:
        yield batch
