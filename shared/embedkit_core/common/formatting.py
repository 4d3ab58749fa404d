"""Text formatting for messages and tables: counts, positions, Markdown. No I/O."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import PurePath

MARKUP = re.compile(r"[\\`|<*]")  # of Markdown


def format_positions(positions: Iterable[int]) -> str:
    """Return "position 1" or "positions 1, 2": the first ten, with "…" if there are more."""
    named = list(map(str, positions))
    return f"position{'' if len(named) == 1 else 's'} " + ", ".join(named[:10]) + (", …" if len(named) > 10 else "")


def shorten_model_name(model: str, most: int) -> str:
    """Return the name of a model in at most `most` characters: the provider and the end of the name."""
    provider, colon, name = model.partition(":")
    return model if len(model) <= most else f"{provider}{colon}…{name[len(provider) + 2 - most :]}"


def without_folders(model: str) -> str:
    """Return the name of a model; of an absolute path only the last part."""
    provider, _, name = model.partition(":")
    path = PurePath(name)
    return f"{provider}:{path.name}" if path.is_absolute() else model


def suggest(name: object, candidates: Iterable[str], *, cutoff: float = 0.5) -> str:
    """Return "did you mean 'x'?" with the candidate most like `name`, or "" if none is similar.

    Args:
        name: The unknown name.
        candidates: The known names. A mapping shows its value in place of the name that matched.
        cutoff: The least similarity, from 0 to 1, as `difflib` measures it.
    """
    import difflib  # only errors need it

    close = difflib.get_close_matches(str(name), candidates, n=1, cutoff=cutoff)
    if not close:
        return ""
    return f"did you mean {candidates[close[0]] if isinstance(candidates, Mapping) else close[0]!r}?"


def count_noun(n: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun: "1 text", "2,000 texts". The plural of `noun` is "texts" if omitted."""
    return f"{n:,} {noun if n == 1 else plural or f'{noun}s'}"


def escape_markdown(text: str) -> str:
    """Return one line of Markdown that shows a text as it is; it may contain markup, HTML and line breaks."""
    return MARKUP.sub(r"\\\g<0>", " ".join(text.split()))


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], right: Container[int]) -> str:
    """Return a Markdown table of plain texts; columns at the indices `right` are aligned to the right."""
    rows = [[escape_markdown(cell) for cell in row] for row in rows]
    widths = [max(3, *(len(line[column]) for line in [head, *rows])) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = [c.rjust(w) if n in right else c.ljust(w) for n, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * (w - 1) + ":" if n in right else "-" * w for n, w in enumerate(widths)]
    return "\n".join([line(head), f"| {' | '.join(rule)} |", *map(line, rows)])
