"""Lines of a batch: which texts share a line and a batch, and how the lines of results are read. No I/O."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from embedkit_core.common.types import Limits
from embedkit_core.coordination.journal.records import LineRecord
from embedkit_core.providers.batch_endpoint import BatchLimits, LineResult

DIGEST_DIGITS = 16
CUSTOM_ID = re.compile(r"([0-9a-f]{16})-(\d{1,9})-([0-9a-f]{16})")


class SizedText(NamedTuple):
    """A text with its prompt, its cache key, its estimated tokens, and an upper bound of its bill in tokens."""

    key: bytes
    text: str
    tokens: int
    max_tokens: int


@dataclass(slots=True)
class PlannedLine:
    """The texts of a line, and its number if it was in a batch before."""

    texts: list[SizedText] = field(default_factory=list)
    number: int = -1

    @property
    def tokens(self) -> int:
        """Estimated tokens."""
        return sum(text.tokens for text in self.texts)

    def record(self, number: int) -> LineRecord:
        """Return the line as the journal stores it."""
        keys = [text.key for text in self.texts]
        return LineRecord(
            number, digest_of(keys), keys, len(keys), self.tokens, sum(text.max_tokens for text in self.texts)
        )


def plan_lines(texts: Iterable[SizedText], limits: Limits, batch: BatchLimits) -> Iterator[PlannedLine]:
    """Yield lines with as many texts as a line and a request may have; a text over the limits has a line of its own.

    Args:
        texts: The texts.
        limits: Limits of a request of the model.
        batch: Limits of a batch.
    """
    most_texts = min(batch.line_texts, limits.texts)
    most_tokens = min((n for n in (limits.tokens, batch.tokens) if n is not None), default=None)
    line, tokens = PlannedLine(), 0
    for text in texts:
        is_full = len(line.texts) >= most_texts or (most_tokens is not None and tokens + text.tokens > most_tokens)
        if line.texts and is_full:
            yield line
            line, tokens = PlannedLine(), 0
        line.texts.append(text)
        tokens += text.tokens
    if line.texts:
        yield line


@dataclass(slots=True)
class BatchRoom:
    """What a batch has room for.

    Args:
        limits: Limits of a batch.
        queue_tokens: The most tokens that the provider queues. None if unknown.
    """

    limits: BatchLimits
    queue_tokens: int | None
    lines: int = 0
    texts: int = 0
    tokens: int = 0
    file_bytes: int = 0

    def takes(self, line: PlannedLine, encoded: bytes) -> bool:
        """Return True if the batch has room for a line; an empty one always has."""
        if not self.lines:
            return True
        most_tokens = min((n for n in (self.limits.tokens, self.queue_tokens) if n is not None), default=None)
        return (
            self.lines < self.limits.lines
            and self.texts + len(line.texts) <= self.limits.texts
            and self.file_bytes + len(encoded) + 1 <= self.limits.file_bytes
            and (most_tokens is None or self.tokens + line.tokens <= most_tokens)
        )

    def add(self, line: PlannedLine, encoded: bytes) -> None:
        """Count a line."""
        self.lines += 1
        self.texts += len(line.texts)
        self.tokens += line.tokens
        self.file_bytes += len(encoded) + 1


def digest_of(keys: Sequence[bytes]) -> str:
    """Return the digest of a line's keys, in order."""
    return hashlib.sha256(b"".join(keys)).hexdigest()[:DIGEST_DIGITS]


def custom_id(nonce: str, line: LineRecord) -> str:
    """Return the ID of a line at the provider."""
    return f"{nonce}-{line.number}-{line.digest}"


def line_of(result: LineResult, nonce: str, lines: Mapping[int, LineRecord]) -> LineRecord | None:
    """Return the line that a result is for. None if it is for no line of the batch."""
    match = CUSTOM_ID.fullmatch(result.custom_id) if isinstance(result.custom_id, str) else None
    if match is None or match[1] != nonce:
        return None
    line = lines.get(int(match[2]))
    return line if line is not None and line.digest == match[3] else None
