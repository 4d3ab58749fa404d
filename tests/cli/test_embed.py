"""The command `embed`: inputs, output files, budgets and interruptions."""

import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
from decimal import ROUND_CEILING, Decimal
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
from support.inputs import MODEL, TEXTS, lines
from support.openai_server import vector_of

from embedkit_core import Embedder
from embedkit_core.cli.console import BUDGET, FAILED, INTERRUPTED, PARTIAL, REFUSED, USAGE
from embedkit_core.cli.reading import Record, RecordSource
from embedkit_core.cli.writing import Output
from embedkit_core.common.money import format_usd


def records(path):
    """Return the records of an input file."""
    with RecordSource([str(path)], "text", "id") as source:
        return list(source.records())


def written(path):
    """Return the rows of a matrix or the texts of a table."""
    return np.load(path).tolist() if path.suffix == ".npy" else [record.text for record in records(path)]


def test_lines_are_embedded_into_every_file_format(shell, tmp_path):
    source = lines(tmp_path / "in.txt", TEXTS)
    truth = np.stack([vector_of(text) for text in TEXTS])
    for kind in ("parquet", "jsonl", "npy"):
        code, out, _ = shell("embed", source, "-o", f"out.{kind}", "-m", MODEL, "--yes")
        assert code == 0, out
    assert np.array_equal(np.load(tmp_path / "out.npy"), truth)
    table = parquet.read_table(tmp_path / "out.parquet")
    assert np.array_equal(np.stack(table["vector"].to_pylist()).astype(np.float32), truth)
    assert table["text"].to_pylist() == TEXTS
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert np.allclose([row["vector"] for row in rows], truth)
    assert [row["id"] for row in rows][:2] == ["1", "2"]
    assert "40 rows; 40 texts, 40 from cache, 0 requests" in out
    assert sorted(path.name for path in tmp_path.glob("*.partial*")) == []


@pytest.mark.parametrize("dtype", ["float16", "binary"])
def test_the_dtype_is_kept_in_the_file(shell, tmp_path, dtype):
    source = lines(tmp_path / "in.txt", TEXTS[:3])
    for kind in ("npy", "parquet"):
        assert shell("embed", source, "-o", f"out.{kind}", "-m", MODEL, "-y", "--dtype", dtype)[0] == 0
    rows = np.load(tmp_path / "out.npy")
    assert rows.dtype == (np.float16 if dtype == "float16" else np.int8)
    assert rows.tolist() == [list(map(float if dtype == "float16" else int, r)) for r in
                             parquet.read_table(tmp_path / "out.parquet")["vector"].to_pylist()]  # fmt: skip


def test_texts_are_read_from_tables_folders_and_standard_input(shell, tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text('{"id": "x", "body": "one"}\n\n{"id": "y", "body": "two"}\n')
    (tmp_path / "b.csv").write_text("id,body\nz,three\n")
    folder = tmp_path / "folder" / "deep"
    folder.mkdir(parents=True)
    (folder / "page.md").write_text("four\nand its second line\n")
    (folder / "empty.txt").write_text(" \n")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    code, _, err = shell(
        "embed", "a.jsonl", "b.csv", "folder", "-o", "out.jsonl", "-m", MODEL, "-y", "--column", "body"
    )
    assert code == 0, err
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["id"], row["text"]) for row in rows] == [
        ("x", "one"),
        ("y", "two"),
        ("z", "three"),
        ("deep/page.md", "four\nand its second line\n"),
    ]
    shell("embed", "a.jsonl", "-o", "again.parquet", "-m", MODEL, "-y", "--column", "body")
    code, out, _ = shell("estimate", "again.parquet", "-m", MODEL, "--json")
    assert (code, json.loads(out)["cache_hits"]) == (0, 2)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"five\nsix\n")))
    assert shell("embed", "-", "-o", "stdin.npy", "-m", MODEL, "-y")[0] == 0
    assert np.load(tmp_path / "stdin.npy").shape == (2, 1536)


def test_an_output_that_is_an_input_is_refused_under_every_name(shell, server, tmp_path):
    source = tmp_path / "data.jsonl"
    source.write_text('{"text": "one", "more": 1}\n')
    (tmp_path / "link.jsonl").symlink_to(source)
    (tmp_path / "folder").mkdir()
    for given, output in [
        ("data.jsonl", "data.jsonl"),
        ("data.jsonl", "link.jsonl"),
        ("link.jsonl", "data.jsonl"),
        ("data.jsonl", source),
        ("data.jsonl", "folder/../data.jsonl"),
    ]:
        code, _, err = shell("embed", given, "-o", output, "-m", MODEL, "-y")
        assert (code, err.count("\n")) == (USAGE, 1)
        assert f"--output: would overwrite the input {given!r}. Use another name." in err
    assert source.read_text() == '{"text": "one", "more": 1}\n'
    assert server.requests == []


def test_texts_in_a_folder_are_not_overwritten_by_their_own_vectors(shell, server, tmp_path):
    (tmp_path / "folder").mkdir()
    source = lines(tmp_path / "folder" / "data.jsonl", ['{"text": "one", "title": "T"}'])
    code, _, err = shell("embed", "folder", "-o", "folder/data.jsonl", "-m", MODEL, "-y")
    assert (code, err.count("\n")) == (USAGE, 1)
    assert "--output: would overwrite" in err
    assert "title" in source.read_text()
    assert server.requests == []


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_an_output_in_an_input_folder_is_not_read(shell, tmp_path, kind):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "page.md").write_text("one")
    (folder / f"out.{kind}.0123abcd.partial").write_text("what a killed run has left")
    lines(folder / "more.jsonl", ['{"text": "two"}'])
    for _ in range(3):
        code, out, err = shell("embed", "folder", "-o", f"folder/out.{kind}", "-m", MODEL, "-y")
        assert (code, "2 rows" in out) == (0, True), err
        assert shell("embed", "folder", "-o", "folder/out.npy", "-m", MODEL, "-y")[0] == 0
    assert written(folder / f"out.{kind}") == ["two", "one"]


def test_an_estimate_is_printed_and_nothing_is_sent_without_confirmation(shell, server, tmp_path):
    source = lines(tmp_path / "in.txt", TEXTS)
    with Path(os.devnull).open() as nothing:
        sys.stdin, stdin = nothing, sys.stdin
        try:
            code, _, err = shell("embed", source, "-o", "out.npy", "-m", MODEL)
        finally:
            sys.stdin = stdin
    assert code == REFUSED
    assert "40 to send in 2 requests, about " in err
    assert "Add --yes" in err
    assert server.requests == []
    assert not (tmp_path / "out.npy").exists()


def test_the_estimate_covers_all_texts(shell, server, tmp_path):
    texts = [f"line number {i}" for i in range(5000)] * 2
    told = json.loads(shell("estimate", lines(tmp_path / "in.txt", texts), "-m", MODEL, "--json")[1])
    assert told == json.loads(json.dumps(Embedder(MODEL, base_url=server.base_url).estimate(texts).to_dict()))
    assert (told["texts"], told["unique_texts"], told["texts_to_send"]) == (10_000, 5000, 5000)


def test_an_invalid_text_is_reported_with_its_line_and_id(shell, server, tmp_path):
    rows = [json.dumps({"id": f"n{i}", "text": f"text {i}"}) for i in range(1, 7003)]
    rows[5000] = '{"id": "n5001", "text": "bad \\ud800"}'
    code, _, err = shell("embed", lines(tmp_path / "in.jsonl", rows), "-o", "x.jsonl", "-m", MODEL, "-y")
    assert (code, err.count("\n")) == (USAGE, 1)
    assert "in.jsonl, line 5001, id 'n5001': the text is not valid Unicode" in err
    code, _, err = shell("embed", lines(tmp_path / "in.jsonl", ['{"id": "\\ud800", "text": "fine"}']), "-o", "x.jsonl",
                         "-m", MODEL, "-y")  # fmt: skip
    assert (code, "in.jsonl, line 1, id '\\ud800': the id is not valid Unicode" in err) == (USAGE, True)
    assert server.requests == []


@pytest.mark.parametrize("bad", [0, 5000])
def test_a_text_that_the_provider_rejects_is_reported_with_its_line_and_id(shell, server, tmp_path, bad):
    lines(tmp_path / "first.txt", [f"line number {i}" for i in range(bad)])
    (tmp_path / "then.csv").write_text("id,text\nx,poison\ny,fine\n")
    server.rejected_texts.add("poison")
    code, _, err = shell("embed", "first.txt", "then.csv", "-o", "x.jsonl", "-m", MODEL, "-y")
    assert code == (PARTIAL if bad else FAILED)
    told = err.splitlines()[-1]
    assert told.startswith("rag-embedkit: then.csv, line 2, id 'x': ")
    assert "position" not in told
    assert told.endswith("Finished vectors are in the cache: a rerun sends only the rest.")
    assert not list(tmp_path.glob("x.jsonl*"))


@pytest.mark.parametrize(
    "broken", ['"never closed\nmore,z\n', '"closed" too early,z\n', '"' + "never closed " * 20_000]
)
def test_an_unclosed_quote_is_an_error_with_its_line(shell, server, tmp_path, broken):
    (tmp_path / "in.csv").write_text('text,id\n"two\nlines",x\n\n' + broken + "\nlast,y\n")
    code, _, err = shell("embed", "in.csv", "-o", "x.jsonl", "-m", MODEL, "-y")
    assert (code, err.count("\n")) == (USAGE, 1)
    assert "in.csv, line 5: cannot be read as CSV" in err
    assert server.requests == []


def test_quotes_and_line_breaks_in_csv_are_kept(tmp_path):
    path = tmp_path / "in.csv"
    path.write_text(
        '\ufeffid,text,more\r\na,"two\r\nlines, ""quoted""",1\r\n\r\nb,a 5" pipe\r\nc,x,1,,\r\n', newline=""
    )
    found = [(record.id, record.text, record.location) for record in records(path)]
    assert found == [
        ("a", 'two\r\nlines, "quoted"', f"{path}, line 2, id 'a'"),
        ("b", 'a 5" pipe', f"{path}, line 5, id 'b'"),
        ("c", "x", f"{path}, line 6, id 'c'"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,text\na,fine\nb,Hello, world\n", "in.csv, line 3: 3 values for 2 columns; quote a text with commas. "),
        ("text,text\none,two\n", "in.csv, line 1: 2 columns are named 'text'. Rename all but one."),
    ],
)
def test_a_table_that_does_not_say_which_value_is_the_text_is_refused(shell, server, tmp_path, content, message):
    (tmp_path / "in.csv").write_text(content)
    code, _, err = shell("embed", "in.csv", "-o", "x.npy", "-m", MODEL, "-y")
    assert (code, err.startswith(f"rag-embedkit: {message}"), server.requests) == (USAGE, True, []), err


@pytest.mark.parametrize(
    ("row", "arguments", "message"),
    [
        ({"id": "x", "text": ""}, [], "line 2, id 'x': the text is empty or only white space. Fix or remove the row, "
                               "or add --skip-empty."),
        ({"text": 7}, [], "line 2: the text is not a string (got int). Fix or remove the row."),
        ({"text": None}, [], "line 2: the text is null. Fix or remove the row, or add --skip-empty."),
        (["text"], [], "line 2: expected one JSON object"),
        ({"key": 1, "body": "x"}, [], "line 2: no column 'text' (columns: 'key', 'body'). Set --column."),
        ({"key": 1, "text": "x"}, ["--id-column", "kee"], "line 1: no column 'kee' (columns: 'key', 'text'). "
                                                          "Set --id-column."),
    ],
)  # fmt: skip
def test_an_invalid_row_is_an_error_with_its_line_and_reason(shell, server, tmp_path, row, arguments, message):
    lines(tmp_path / "in.jsonl", [json.dumps({"key": 0, "text": "fine"}), json.dumps(row)])
    code, _, err = shell("embed", "in.jsonl", "-o", "x.npy", "-m", MODEL, "-y", *arguments)
    assert (code, err.count("\n")) == (USAGE, 1)
    assert f"in.jsonl, {message}" in err
    assert server.requests == []


def test_a_row_without_an_id_gets_its_line_number(tmp_path):
    rows = [{"text": "no id"}, {"id": None, "text": "null"}, {"id": "", "text": "empty"}, {"id": 0, "text": "zero"}]
    path = lines(tmp_path / "in.jsonl", map(json.dumps, rows))
    assert [record.id for record in records(path)] == ["1", "2", "3", "0"]


def test_a_budget_is_kept_and_finished_texts_stay_cached(shell, server, tmp_path):
    source = lines(tmp_path / "in.txt", [f"a b c d e f g h i j {i}" for i in range(500)])  # more tokens than estimated
    budget = json.loads(shell("estimate", source, "-m", MODEL, "--json")[1])["cost_usd"]
    code, _, err = shell("embed", source, "-o", "out.npy", "-m", MODEL, "-y", "--budget-usd", budget)
    assert code == BUDGET
    assert f"The budget of ${budget}" in err
    assert not (tmp_path / "out.npy").exists()
    assert 0 < server.billed_tokens * 0.02 / 1e6 <= float(budget)
    assert shell("embed", source, "-o", "out.npy", "-m", MODEL, "-y")[0] == 0
    assert set(server.billed_texts.values()) == {1}


@pytest.mark.parametrize("no_cache", [[], ["--no-cache"]])
def test_a_job_whose_estimate_exceeds_the_budget_is_not_started(shell, server, tmp_path, no_cache):
    source = lines(tmp_path / "in.txt", TEXTS)
    told = json.loads(shell("estimate", source, "-m", MODEL, "--json")[1])
    job = ("embed", source, "-o", "out.npy", "-m", MODEL, "-y", "-q", *no_cache)
    code, _, err = shell(*job, "--budget-usd", "0.000001")
    assert (code, server.requests) == (BUDGET, [])
    expected, most = (format_usd(Decimal(told[name]), ROUND_CEILING) for name in ("cost_usd", "max_cost_usd"))
    assert err == (
        f"rag-embedkit: --budget-usd: the estimated cost of about {expected} exceeds the budget of $0.000001. "
        f"Nothing was sent. Set at least the estimate; {most} is certain to be enough.\n"
    )
    assert shell(*job, "--budget-usd", told["max_cost_usd"])[0] == 0


def test_a_budget_covers_what_is_not_cached(shell, tmp_path):
    source = lines(tmp_path / "in.txt", TEXTS)
    warm = ("cache", "warm", source, "-m", MODEL, "-y", "--budget-usd")
    assert shell(*warm, "0.000001")[0] == BUDGET
    assert shell(*warm, "1")[0] == 0
    assert shell(*warm, "0")[0] == 0


def test_inputs_without_texts_leave_the_old_output(shell, tmp_path):
    shell("embed", lines(tmp_path / "in.txt", TEXTS), "-o", "out.npy", "-m", MODEL, "-y")
    before = (tmp_path / "out.npy").read_bytes()
    for texts in ([], [" ", ""]):
        code, _, err = shell("embed", lines(tmp_path / "in.txt", texts), "-o", "out.npy", "-m", MODEL, "-y", "-q")
        assert (code, err) == (USAGE, "rag-embedkit: The inputs have no texts. 'out.npy' was not written.\n")
    assert (tmp_path / "out.npy").read_bytes() == before


def test_a_killed_run_continues_without_paying_again(server, tmp_path):
    source = lines(tmp_path / "in.txt", [f"text {i}" for i in range(3000)])
    arguments = [sys.executable, "-m", "embedkit_core", "embed", str(source), "-o", "out.npy", "-m", MODEL, "-y", "-q"]
    arguments += ["--max-concurrency", "2"]
    server.latency = 0.02
    process = subprocess.Popen(arguments, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    server.wait_for_requests(6, timeout=60)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    paid = sum(server.billed_texts.values())
    assert 0 < paid < 3000
    server.latency = 0.0
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    again = sum(n - 1 for n in server.billed_texts.values())
    assert again <= 3 * 256  # in flight, or not yet written, at the kill
    rows = np.load(tmp_path / "out.npy")
    assert rows.shape == (3000, 1536)
    assert np.array_equal(rows[2999], vector_of("text 2999"))


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "npy"])
def test_two_concurrent_runs_leave_the_complete_file_of_the_later(tmp_path, kind):
    path = tmp_path / f"out.{kind}"
    with Output(str(path)) as later:
        with Output(str(path)) as first:
            for i in range(3):
                later.add(Record(str(i), "later", ""), np.full(4, i, np.float32))
                first.add(Record(str(i), "first", ""), np.full(4, 9, np.float32))
        assert written(path) == ([[9] * 4] * 3 if kind == "npy" else ["first"] * 3)
        later.add(Record("3", "later", ""), np.full(4, 3, np.float32))
    assert written(path) == ([[i] * 4 for i in range(4)] if kind == "npy" else ["later"] * 4)
    assert [left.name for left in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "npy"])
def test_a_killed_run_leaves_the_old_output_intact(tmp_path, kind):
    path = tmp_path / f"out.{kind}"
    with Output(str(path)) as file:
        file.add(Record("1", "text", ""), np.ones(4, np.float32))
    before = path.read_bytes()
    program = (
        "import os, sys, numpy as np\n"
        "from embedkit_core.cli.reading import Record\n"
        "from embedkit_core.cli.writing import Output\n"
        "with Output(sys.argv[1]) as file:\n"
        "    for i in range(3000):\n"
        "        file.add(Record(str(i), 'killed', ''), np.zeros(4, np.float32))\n"
        "    os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", program, path.name], cwd=tmp_path).returncode == 9
    assert path.read_bytes() == before
    [left] = (other for other in tmp_path.iterdir() if other != path)
    assert re.fullmatch(rf"out\.{kind}\.[0-9a-f]{{8}}\.partial", left.name)
    with Output(str(path)) as file:
        file.add(Record("1", "next", ""), np.full(4, 2, np.float32))
    assert written(path) == ([[2] * 4] if kind == "npy" else ["next"])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ([], "stopped. Finished vectors are in the cache: run the same command to continue."),
        (["--no-cache"], "stopped."),
    ],
)
def test_an_interrupted_run_says_how_to_continue(server, tmp_path, option, message):
    source = lines(tmp_path / "in.txt", [f"text {i}" for i in range(3000)])
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    program += "from embedkit_core.cli import main; main()"
    arguments = ["embed", str(source), "-o", "out.npy", "-m", MODEL, "-y", "-q", "--max-concurrency", "2", *option]
    server.latency = 0.02
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    server.wait_for_requests(4, timeout=60)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (INTERRUPTED, f"rag-embedkit: {message}\n")
    assert not list(tmp_path.glob("out.npy*"))


def test_a_full_disk_is_one_line(server, tmp_path):
    source = lines(tmp_path / "in.txt", [f"text {i}" for i in range(1500)])  # more than one write to a Parquet file

    def small_files():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    command = [sys.executable, "-m", "embedkit_core", "embed", str(source), "-m", MODEL, "-y", "-q", "--no-cache"]
    for kind in ("npy", "jsonl", "parquet"):
        done = subprocess.run(
            [*command, "-o", f"out.{kind}"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            preexec_fn=small_files,
            timeout=60,
        )
        assert done.returncode == FAILED
        assert done.stderr == f"rag-embedkit: File too large (out.{kind})\n"
        assert not (tmp_path / f"out.{kind}").exists()


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "npy"])
def test_a_failed_run_completes_no_file(tmp_path, kind, monkeypatch):
    file = Output(str(tmp_path / f"out.{kind}"))
    finished = []

    def stop_after_a_row():
        with file:
            monkeypatch.setattr(type(file._writer), "finish", finished.append)
            file.add(Record("1", "text", ""), np.ones(4, np.float32))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_after_a_row()
    assert (finished, list(tmp_path.iterdir())) == ([], [])


def test_an_output_that_is_a_link_replaces_the_file_it_refers_to(shell, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out.npy").symlink_to(tmp_path / "disk" / "real.npy")
    lines(tmp_path / "in.txt", ["one"])
    assert shell("embed", "in.txt", "-o", "out.npy", "-m", MODEL, "-y")[0] == 0
    assert (tmp_path / "out.npy").is_symlink()
    assert len(np.load(tmp_path / "disk" / "real.npy")) == 1
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["real.npy"]
