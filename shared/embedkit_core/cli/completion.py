"""Completion in Bash of words with a colon, such as `openai:text-embedding-3-small`.

Bash splits a word at colons, passes the parts as words, and replaces what follows the last colon only. Typer completes
the words as they are passed.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Sequence

VARIABLE = "_RAG_EMBEDKIT_COMPLETE"  # set by the script that `--install-completion` installs


def run_completion(run: Callable[[], int]) -> int:
    """Run the command line; if Bash completes a word, join its parts first and shorten the answers."""
    if os.environ.get(VARIABLE) != "complete_bash":
        return run()
    words, current = join_words(os.environ["COMP_WORDS"].split("\n"), int(os.environ["COMP_CWORD"]))
    is_split = current < int(os.environ["COMP_CWORD"]) and ":" in words[current]
    os.environ.update(COMP_WORDS="\n".join(words), COMP_CWORD=str(current))
    answers = io.StringIO()
    try:
        with contextlib.redirect_stdout(answers):
            return run()
    finally:  # typer exits
        begun = f"{words[current].rpartition(':')[0]}:" if is_split else ""
        print(*(line.removeprefix(begun) for line in answers.getvalue().splitlines()), sep="\n")


def join_words(words: Sequence[str], current: int) -> tuple[list[str], int]:
    """Return words that Bash has split, such as "a", ":", "b", as they were typed, and the index of the current one."""
    joined, index = list[str](), 0
    for position, word in enumerate(words):
        if joined and (word == ":" or joined[-1].endswith(":")):
            joined[-1] += word
        else:
            joined.append(word)
        if position == current:
            index = len(joined) - 1
    return joined, index
