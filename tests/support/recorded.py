"""Recorded or documented requests and replies of a provider, from tests/fixtures/recorded."""

import json
from pathlib import Path
from typing import Any, NamedTuple

RECORDED = Path(__file__).parents[1] / "fixtures" / "recorded"


class Recorded(NamedTuple):
    """The pairs by name, and the names of those with vectors and of those with an error."""

    pairs: dict[str, dict[str, Any]]
    answered: list[str]
    refused: list[str]


def recorded(provider: str) -> Recorded:
    """Return the pairs of a provider."""
    files = sorted((RECORDED / provider).glob("*.json"))
    pairs = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in files}
    answered, refused = ([name for name, pair in pairs.items() if kind in pair] for kind in ("vectors", "error"))
    return Recorded(pairs, answered, refused)
