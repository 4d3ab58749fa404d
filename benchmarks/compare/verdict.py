"""What the values of the rounds say about a row. No I/O."""

import statistics
from dataclasses import dataclass

TOLERANCE = 0.05


@dataclass(frozen=True)
class Verdict:
    """The comparison of a row; lower values are better.

    Attributes:
        base: BASE's median.
        current: the current tree's median.
        ratio: the median of the ratios current / BASE, one for each round: the two runs of a round follow each other.
        spread: the interquartile range of BASE's values, divided by their median.
    """

    base: float
    current: float
    ratio: float
    spread: float

    @property
    def is_worse(self) -> bool:
        """Return True if the current tree is slower by more than the larger of 5 % and BASE's spread."""
        return self.ratio > 1 + max(TOLERANCE, self.spread)


def judge(base: list[float], current: list[float]) -> Verdict:
    """Compare the values of the rounds; both lists are in the order of the rounds."""
    median = statistics.median(base)
    low, _, high = statistics.quantiles(base, method="inclusive")
    ratios = [mine / theirs for theirs, mine in zip(base, current, strict=True)]
    return Verdict(median, statistics.median(current), statistics.median(ratios), (high - low) / median)
