"""Inputs that can be read only once, and inputs that cannot be read."""

import io
import json
import os
import subprocess
import sys
import types

import numpy as np
import pytest
from support.inputs import MODEL, lines

from embedkit_core import ConfigurationError
from embedkit_core.cli.console import INTERRUPTED, USAGE
from embedkit_core.cli.reading import RecordSource
from embedkit_core.cli.splitting import split_text
from embedkit_core.tools import load_questions


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """The folder of temporary files."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def standard_input(monkeypatch, content):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))


def bash(command, folder):
    """Run a command line of bash in which "$EMBED" is `embed` with its options."""
    program = f"{sys.executable} -m embedkit_core embed -m {MODEL} --yes --quiet"
    environment = {**os.environ, "EMBED": program}
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )


def test_the_texts_of_a_pipe_are_embedded(server, tmp_path):
    done = bash(r"$EMBED <(printf 'one\ntwo\n') <(printf 'three\n') -o out.jsonl", tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["id"], row["text"]) for row in rows] == [("1", "one"), ("2", "two"), ("1", "three")]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_named_pipe_has_the_format_of_its_suffix(shell, tmp_path, kind):
    rows = lines(tmp_path / "in.jsonl", ['{"text": "one"}', '{"text": "two"}'])
    shell("embed", rows, "-o", "table.parquet", "-m", MODEL, "-y")
    os.mkfifo(tmp_path / f"pipe.{kind}")
    content = tmp_path / ("table.parquet" if kind == "parquet" else "in.jsonl")
    done = bash(f"cat {content.name} > pipe.{kind} & $EMBED pipe.{kind} -o out.npy", tmp_path)
    assert done.returncode == 0, done.stderr
    assert np.load(tmp_path / "out.npy").shape == (2, 1536)


def test_two_readers_of_a_pipe_do_not_disturb_each_other(monkeypatch):
    standard_input(monkeypatch, "".join(f"text {i}\n" for i in range(10_000)).encode())
    with RecordSource(["-"], "text", "id") as source:
        pairs = list(zip(source.texts(), source.texts(), strict=True))
    assert pairs == [(f"text {i}", f"text {i}") for i in range(10_000)]


@pytest.mark.parametrize(
    ("content", "more", "message"),
    [
        (b"fine\ncaf\xe9\n", [], "standard input is not UTF-8. Convert it to UTF-8."),
        (b"fine\n", ["missing.txt"], "Input 'missing.txt' does not exist."),
    ],
)
def test_standard_input_leaves_no_copy_after_an_error(shell, scratch, server, monkeypatch, content, more, message):
    standard_input(monkeypatch, content)
    code, _, err = shell("embed", "-", *more, "-o", "x.npy", "-m", MODEL, "-y")
    assert (code, err) == (USAGE, f"rag-embedkit: {message}\n")
    assert list(scratch.iterdir()) == []
    assert server.requests == []


def test_standard_input_leaves_no_copy_after_ctrl_c(shell, scratch, monkeypatch):
    seen = []

    class Interrupted:
        def read(self, n):
            seen.append(list(scratch.iterdir()))
            raise KeyboardInterrupt

    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=Interrupted()))
    assert shell("embed", "-", "-o", "x.npy", "-m", MODEL, "-y")[0] == INTERRUPTED
    assert seen == [[]]  # the copy has no name even while it is written
    assert list(scratch.iterdir()) == []


def test_deeply_nested_json_is_an_error_with_its_line(shell, tmp_path):
    lines(tmp_path / "in.jsonl", ['{"text": "fine"}', '{"text": ' + "[" * 100_000])
    code, _, err = shell("embed", "in.jsonl", "-o", "x.npy", "-m", MODEL, "-y")
    assert (code, err) == (USAGE, "rag-embedkit: in.jsonl, line 2: the JSON object is nested too deeply.\n")


def test_text_in_a_parquet_file_that_is_not_utf_8_is_an_error(shell, tmp_path):
    import pyarrow
    import pyarrow.parquet

    column = pyarrow.array([b"fine", b"caf\xe9"]).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "in.parquet")
    code, _, err = shell("embed", "in.parquet", "-o", "x.npy", "-m", MODEL, "-y")
    assert (code, err) == (USAGE, "rag-embedkit: in.parquet cannot be read as Parquet (UnicodeDecodeError).\n")


def test_a_file_name_that_is_not_unicode_is_refused_before_anything_is_sent(shell, server, tmp_path):
    (tmp_path / "folder").mkdir()
    with open(os.path.join(os.fsencode(tmp_path), b"folder", b"caf\xe9.txt"), "w") as file:  # noqa: PTH118, PTH123
        file.write("fine")
    code, _, err = shell("embed", "folder", "-o", "x.jsonl", "-m", MODEL, "-y")
    assert (code, err.count("\n"), server.requests) == (USAGE, 1, [])
    assert "the file name is not valid Unicode" in err


def test_an_id_that_is_an_object_is_refused(shell, tmp_path):
    lines(tmp_path / "in.jsonl", ['{"text": "fine", "id": {"a": 1}}'])
    code, _, err = shell("embed", "in.jsonl", "-o", "x.npy", "-m", MODEL, "-y")
    assert (code, err.count("\n")) == (USAGE, 1)
    assert "in.jsonl, line 1: the id is not a string or a number (got dict). Fix or remove the row." in err


def test_a_long_text_in_csv_is_read(shell, tmp_path):
    long = "word " * 60_000
    (tmp_path / "in.csv").write_text(f'text\n"{long}"\n')
    code, out, err = shell("estimate", "in.csv", "-m", MODEL, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["texts"] == 1
    (tmp_path / "faq.csv").write_text(f'question,answer\nWhat?,"{long}"\n')
    assert load_questions(tmp_path / "faq.csv").documents == {"answer 1": long.strip()}


def test_a_pipe_in_place_of_the_output_in_a_folder_does_not_block(shell, server, tmp_path):
    (tmp_path / "folder").mkdir()
    lines(tmp_path / "folder" / "in.jsonl", ['{"text": "one"}'])
    os.mkfifo(tmp_path / "folder" / "out.jsonl")
    code, _, err = shell("embed", "folder", "-o", "folder/out.jsonl", "-m", MODEL, "-y")
    assert (code, err.count("\n"), server.requests) == (USAGE, 1, [])
    assert "--output: " in err


# Rows without a text


def rows_with_gaps(path, n):
    rows = [{"id": f"n{i}", "text": "" if i % 2 else f"text {i}"} for i in range(n)]
    return lines(path, map(json.dumps, rows))


def test_all_rows_without_a_text_are_reported_and_the_first_ten_named(shell, server, tmp_path):
    rows_with_gaps(tmp_path / "in.jsonl", 30)
    lines(tmp_path / "other.jsonl", ['{"text": null}'])
    code, _, err = shell("embed", "in.jsonl", "other.jsonl", "-o", "x.npy", "-m", MODEL, "-y")
    assert (code, err.count("\n"), server.requests) == (USAGE, 1, [])
    for number in range(2, 21, 2):
        assert f"in.jsonl, line {number}, id 'n{number - 1}': the text is empty" in err
    assert "line 22" not in err
    assert err.endswith("; 6 more. Fix or remove these 16 rows, or add --skip-empty.\n")


def test_rows_without_a_text_are_skipped_on_request(shell, tmp_path):
    rows_with_gaps(tmp_path / "in.jsonl", 6)
    code, out, err = shell("embed", "in.jsonl", "-o", "x.jsonl", "-m", MODEL, "-y", "--skip-empty")
    assert (code, err.splitlines()[0]) == (0, "3 rows without a text skipped")
    assert "x.jsonl: 3 rows; 3 texts" in out
    ids = [json.loads(line)["id"] for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert ids == ["n0", "n2", "n4"]
    lines(tmp_path / "bad.jsonl", ['{"text": 7}'])
    code, _, err = shell("embed", "bad.jsonl", "-o", "x.jsonl", "-m", MODEL, "-y", "--skip-empty")
    assert (code, "not a string (got int). Fix or remove the row.\n" in err) == (USAGE, True)


@pytest.mark.parametrize("command", ["estimate", "compare", "choose"])
def test_every_command_that_reads_texts_can_skip_empty_rows(shell, tmp_path, command):
    rows = [{"text": f"Title of page {i}\nThe body of page {i}, which goes on for a while."} for i in range(12)]
    lines(tmp_path / "in.jsonl", map(json.dumps, [*rows, {"text": " "}]))
    options = {"estimate": ["in.jsonl", "-m", MODEL], "compare": [MODEL, "--texts", "in.jsonl", "-y"]}
    options["choose"] = [*options["compare"], "--floor", "0"]
    code, _, err = shell(command, *options[command])
    assert (code, "add --skip-empty" in err) == (USAGE, True)
    assert shell(command, *options[command], "--skip-empty")[0] == 0


def test_an_invalid_row_does_not_end_a_source_before_the_valid_ones(tmp_path):
    path = rows_with_gaps(tmp_path / "in.jsonl", 3)
    texts = []
    with RecordSource([str(path)], "text", "id") as source, pytest.raises(ConfigurationError, match="line 2"):
        texts.extend(record.text for record in source.records())
    with RecordSource([str(path)], "text", "id", skip_empty=True) as source:
        assert list(source.texts()) == ["text 0", "text 2"]
        assert source.skipped == 1


def test_a_subfolder_that_cannot_be_read_is_an_error(tmp_path):
    (tmp_path / "docs" / "closed").mkdir(parents=True)
    (tmp_path / "docs" / "page.md").write_text("one")
    program = (
        "import os\n"
        "from embedkit_core import ConfigurationError\n"
        "from embedkit_core.cli.reading import RecordSource\n"
        "os.chmod('docs/closed', 0)\n"
        "os.geteuid() or os.seteuid(65534)\n"  # root may read every folder
        "with RecordSource(['docs'], 'text', 'id') as source:\n"
        "    try:\n"
        "        print(list(source.records()))\n"
        "    except ConfigurationError as error:\n"
        "        print(error)\n"
    )
    for parent in (tmp_path, tmp_path / "docs"):
        parent.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout == "docs/closed cannot be read (Permission denied).\n", done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("~nobody-of-this-name/in.txt", "-o", "out.npy"), "Input '~nobody-of-this-name/in.txt' does not exist."),
        (("in.txt", "-o", "~nobody-of-this-name/out.npy"), "--output: folder '~nobody-of-this-name' does not exist."),
    ],
)
def test_the_home_of_an_unknown_user_is_a_folder_that_does_not_exist(shell, tmp_path, arguments, message):
    lines(tmp_path / "in.txt", ["one"])
    code, _, err = shell("embed", *arguments, "-m", MODEL, "-y")
    assert (code, err) == (USAGE, f"rag-embedkit: {message}\n")


MARKDOWN = "# Title\n\nOne\nparagraph.\n\n```python\na = 1\n\nb = 2\n```\n\n~~~\n```\n\n~~~\nLast.\n"


@pytest.mark.parametrize(
    ("name", "per", "expected"),
    [
        ("notes.md", None, [("notes.md", MARKDOWN)]),
        ("notes.md", "line", [(str(n), line) for n, line in enumerate(MARKDOWN.split("\n"), 1) if line]),
        (
            "notes.md",
            "paragraph",
            [
                ("1", "# Title"),
                ("3", "One\nparagraph."),
                ("6", "```python\na = 1\n\nb = 2\n```"),
                ("12", "~~~\n```\n\n~~~\nLast."),
            ],
        ),
        ("notes.txt", "file", [("notes.txt", MARKDOWN)]),
        ("folder", None, [("deep/notes.md", MARKDOWN)]),
    ],
)
def test_a_text_is_a_file_a_line_or_a_paragraph(tmp_path, monkeypatch, name, per, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    for file in ("notes.md", "notes.txt", "folder/deep/notes.md"):
        (tmp_path / file).write_text(MARKDOWN)
    with RecordSource([name], "text", "id", per=per) as source:
        assert [(record.id, record.text) for record in source.records()] == expected


@pytest.mark.parametrize("block", ["- ```py\n  a\n\n  b\n  ```", "    ```\n    a\n\n    - ```\n    ```"])
def test_a_code_block_in_a_list_is_not_split(block):
    found = split_text(io.StringIO(f"1. x\n\n{block}\n\nAfter.\n\nLast.\n"), "paragraph", is_markdown=True)
    assert [text for _, text in found] == ["1. x", block, "After.", "Last."]


def test_paragraphs_of_files_in_a_folder_have_ids_of_their_own(tmp_path):
    (tmp_path / "a.md").write_text("One.\n\nTwo.\n")
    (tmp_path / "b.txt").write_text("\nThree.\n")
    with RecordSource([str(tmp_path)], "text", "id", per="paragraph") as source:
        records = [(record.id, record.text) for record in source.records()]
    assert records == [("a.md#1", "One."), ("a.md#3", "Two."), ("b.txt#2", "Three.")]


def test_per_without_an_input_that_it_applies_to_is_an_error(shell, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"text": "one"}\n')
    code, _, err = shell("estimate", "in.jsonl", "-m", MODEL, "--per", "line")
    assert (code, "--per: no input is a .txt or .md file" in err) == (2, True)


def test_rows_without_a_text_get_zero_vectors_on_request(shell, server, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"text": "one"}\n{"text": null}\n{"text": " "}\n')
    job = ("embed", "in.jsonl", "-o", "out.npy", "-m", MODEL, "-y", "-q", "--on-empty-text", "zero")
    code, _, err = shell(*job)
    assert code == 0, err
    assert np.linalg.norm(np.load(tmp_path / "out.npy"), axis=1).round(3).tolist() == [1, 0, 0]
    code, _, err = shell(*job, "--skip-empty")
    assert (code, "--skip-empty: contradicts --on-empty-text zero" in err) == (2, True)
