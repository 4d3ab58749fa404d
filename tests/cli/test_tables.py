"""Tables fit the width of a terminal."""

import pytest

from embedkit_core.cli import console
from embedkit_core.tools.tables import table, to_csv, wrap

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
    assert (lines.pop(), note) == ("hidden for the width: seconds, p (--wide shows", "all)")
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


def test_a_vector_space_keeps_its_model_and_its_size():
    space = "openai:text-embedding-3-small@https://api.example.com/v1/1536/float32"
    shown = table(["vector space", "vectors"], [[space, "1"]], 60).splitlines()[2]
    assert len(shown) == 60
    assert shown.startswith("| openai:text-embedding-3-small@")
    assert "/1536/float32 |" in shown


def test_lines_around_a_table_are_wrapped_and_its_rows_are_not():
    row = f"| {'word ' * 10}|"
    assert wrap(f"one two three\n\n{row}\na-long-word of-it", 10) == f"one two\nthree\n\n{row}\na-long-word\nof-it"
    assert wrap("one two three", None) == "one two three"


def test_a_text_in_csv_is_not_a_formula():
    rows = [{"a": "=1+1", "b": {"c": "-2.5", "d": None}}, {"a": "@x", "b": {"c": -1, "d": ["x", "y"]}}, {"a": "-1+A1"}]
    assert to_csv(rows) == "a,b.c,b.d\n'=1+1,-2.5,\n'@x,-1,\"x, y\"\n'-1+A1,,\n"
    assert to_csv([]) == ""
