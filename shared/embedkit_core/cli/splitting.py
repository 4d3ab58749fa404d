"""Splitting of plain text and Markdown into texts: the whole, lines or paragraphs. No I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

PER = ("file", "line", "paragraph")
# Of a code block of CommonMark, also in a list, where it is indented or follows a list marker.
_FENCE = re.compile(r"\s*((?:(?:[-*+]|\d{1,9}[.)])\s+)*)(`{3,}|~{3,})(.*)")


def split_text(lines: Iterable[str], per: str, *, is_markdown: bool) -> Iterator[tuple[int, str]]:
    """Yield each text with the number of its first line, without blank texts.

    Args:
        lines: The lines, with their line breaks.
        per: What one text is, one of `PER`. Paragraphs are separated by blank lines.
        is_markdown: Do not split fenced code blocks.
    """
    if per == "line":
        yield from ((number, line.rstrip("\r\n")) for number, line in enumerate(lines, 1) if line.strip())
    elif per == "paragraph":
        yield from _paragraphs(lines, is_markdown=is_markdown)
    elif (text := "".join(lines)).strip():
        yield 1, text


def _paragraphs(lines: Iterable[str], *, is_markdown: bool) -> Iterator[tuple[int, str]]:
    first, paragraph, fence = 0, list[str](), ""
    for number, line in enumerate(lines, 1):
        if not line.strip() and not fence:
            if paragraph:
                yield first, "".join(paragraph).rstrip("\r\n")
                paragraph = []
            continue
        first = first if paragraph else number
        paragraph.append(line)
        if is_markdown:
            fence = _fence_after(fence, line)
    if "".join(paragraph).strip():
        yield first, "".join(paragraph).rstrip("\r\n")


def _fence_after(fence: str, line: str) -> str:
    """Return the fence of the code block that is open after a line, "" for none."""
    found = _FENCE.match(line)
    if found is None:
        return fence
    list_marker, marks, rest = found[1], found[2], found[3].strip()
    if fence:
        return "" if marks.startswith(fence) and not rest and not list_marker else fence
    return "" if marks[0] == "`" and "`" in rest else marks
