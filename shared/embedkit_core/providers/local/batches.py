"""Which texts go through a model together: those of a length, since all are padded to the longest. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

# What another batch costs beside its numbers, in characters of padding: some 60 tokens on a CPU, from 2 to 4 ms of
# MiniLM's. Measured with benchmarks/local.py's texts, 2026-11-25.
BATCH_COSTS = 280
# More numbers than these at once no longer fit a CPU's cache: 32 texts of 256 tokens take a quarter more time for each
# token than 16 do.
MOST_CHARACTERS = 16_000


def batches(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Cut texts of these lengths in characters into batches of their places, the longest first, `most` in each.

    A batch ends where the padding that it has taken on costs as much as another batch.
    """
    places = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    batch: list[int] = []
    padding = 0
    for place in places:
        longest = lengths[batch[0]] if batch else lengths[place]
        padding += longest - lengths[place]
        if batch and (len(batch) == most or padding > BATCH_COSTS or longest * (len(batch) + 1) > MOST_CHARACTERS):
            yield batch
            batch, padding = [], 0
        batch.append(place)
    if batch:
        yield batch
