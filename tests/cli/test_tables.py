"""Tables fit the width of a terminal."""

import pytest

from embedkit_core.cli import console
from embedkit_core.tools.tables import table

HEAD = ["model", "dimensions", "nDCG@10", "p", "seconds"]
ROWS = [["openai:text-embedding-3-small", "1536", "0.8123", "", "1.0"], ["voyage:v", "?", "0.7", "0.010", "22.5"]]


def test_a_table_hides_columns_and_shortens_models_until_it_fits():
    full = table(HEAD, ROWS)
    assert table(HEAD, ROWS, len(full.splitlines()[0])) == full
    *lines, note = table(HEAD, ROWS, 70).splitlines()
    assert max(map(len, lines)) <= 70
    assert " p |" in lines[0]
    assert note == "hidden for the width: seconds (--wide shows all)"
    *lines, note = table(HEAD, ROWS, 50).splitlines()
    assert max(map(len, lines)) <= 50
    assert note == "hidden for the width: seconds, p (--wide shows all)"
    assert "| openai:…" in lines[2]


@pytest.mark.parametrize("columns", [80, 100, 120])
def test_the_models_fit_a_terminal_and_are_whole_in_a_pipe(shell, monkeypatch, columns):
    piped = shell("models")[1]
    monkeypatch.setattr(console.out, "_force_terminal", True)
    monkeypatch.setattr(console.out, "_width", columns)
    fitted = shell("models")[1]
    assert max(len(line) for line in fitted.splitlines()) <= columns
    assert fitted.count("\n") - fitted.count("hidden for") == piped.count("\n")
    assert shell("models", "--wide")[1] == piped
