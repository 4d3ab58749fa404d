"""The command line: usage errors, help, and commands beside `embed`."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from support.embedders import MINILM, needs_local_model
from support.inputs import MODEL, TEXTS, lines, pages
from support.openai_server import Fault

from embedkit_core import Embedder
from embedkit_core.cli.console import FAILED, PARTIAL, REFUSED, USAGE


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["embed", "nothere.txt", "-o", "x.npy", "-m", MODEL], USAGE, "Input 'nothere.txt' does not exist."),
        (
            ["embed", "in.txt", "-o", "x.docx", "-m", MODEL],
            USAGE,
            "--output: must end with one of .parquet, .jsonl, .npy",
        ),
        (["embed", "in.txt", "-o", "no/x.npy", "-m", MODEL], USAGE, "--output: folder 'no' does not exist"),
        (
            ["embed", "-", "-o", "folder.npy", "-m", MODEL],
            USAGE,
            "--output: 'folder.npy' is a folder. Use a file name.",
        ),
        (["embed", "-", "-o", "pipe.npy", "-m", MODEL], USAGE, "--output: 'pipe.npy' is not a regular file"),
        (["embed", "in.txt", "-o", "x.npy", "-m", "opnai:x"], USAGE, "did you mean 'openai:x'?"),
        (["embed", "bad.jsonl", "-o", "x.npy", "-m", MODEL], USAGE, "bad.jsonl, line 2: expected one JSON object"),
        (
            ["embed", "in.csv", "-o", "x.npy", "-m", MODEL],
            USAGE,
            "in.csv, line 2: no column 'text' (columns: 'body'). Set --column.",
        ),
        (["embed", "latin.txt", "-o", "x.npy", "-m", MODEL], USAGE, "latin.txt is not UTF-8. Convert it to UTF-8."),
        (["embed", "not.parquet", "-o", "x.npy", "-m", MODEL], USAGE, "cannot be read as Parquet"),
        (["estimate", "in.txt", "-m", MODEL, "--input-type", "qury"], USAGE, "did you mean 'query'?"),
        (["compare", MODEL, "opnai:x", "--texts", "in.txt"], USAGE, "did you mean 'openai:x'?"),
        (["compare", MODEL, "--texts", "in.txt", "--dtypes", "int88"], USAGE, "--dtypes: must be one of 'float32'"),
        (["choose", MODEL, "--texts", "in.txt", "--floor", "2"], USAGE, "--floor: must be an nDCG@10, from 0 to 1"),
        (["choose", MODEL, "--texts", "in.txt", "--floor", "high"], USAGE, "--floor: must be a number (got 'high')"),
        (
            ["choose", MODEL, "--texts", "in.txt", "--floor", "0", "--months", "0"],
            USAGE,
            "--months: must be an integer",
        ),
        (["bench", "-m", MODEL, "--most", "0"], USAGE, "--most: must be an integer of at least 1 (got 0)"),
        (["models", "opnai"], USAGE, "no model in the catalogue has the provider 'opnai'; did you mean 'openai'?"),
        (
            ["embed", "in.txt", "-o", "x.npy", "-m", MODEL, "--no-cache", "--cache", "foo"],
            USAGE,
            "--no-cache: contradicts --cache (got 'foo'). Remove one of them.",
        ),
        (["cache", "verify", "in.txt", "--live", "-3", "-m", MODEL], USAGE, "--live: must be an integer of at least 0"),
        (
            ["compare", MODEL, "--texts", "in.txt", "--dimensions", "all"],
            USAGE,
            "--dimensions: must be whole numbers or own, as in own,512,256 (got 'all').",
        ),
        (["compare", MODEL, "--texts", "in.txt", "--dimensions", ""], USAGE, "--dimensions: is empty."),
        (["compare", MODEL], USAGE, "Set exactly one of --data"),
        (["compare", MODEL, "--data", "nowhere"], USAGE, "Folder 'nowhere' does not exist."),
        (["choose", MODEL, "--texts", "in.txt"], USAGE, "Set --floor"),
        (["bench", "-m", MODEL, "--sizes", "0"], USAGE, "--sizes: must be an integer of at least 1 (got 0)"),
        (["bench", "-m", MODEL, "--sizes", ","], USAGE, "--sizes: contains no job size"),
        (
            ["bench", "-m", MODEL, "--sizes", "many"],
            USAGE,
            "--sizes: must be whole numbers, as in 100,500 (got 'many')",
        ),
        (["compare", MODEL, "--texts", "in.txt", "--chart", "x.gif"], USAGE, "one of .png, .svg, .pdf (got 'x.gif')"),
        (["compare", MODEL, "--texts", "in.txt", "--chart", "no/x.png"], USAGE, "--chart: folder 'no' does not exist"),
        (["compare", MODEL, "--texts", "in.txt", "--csv", "no/x.csv"], USAGE, "--csv: folder 'no' does not exist"),
        (["compare", MODEL, "--texts", "in.txt", "--report", "."], USAGE, "--report: '.' is a folder"),
        (["compare", MODEL, "--questions", "in.csv", "--csv", "./in.csv"], USAGE, "--csv: would overwrite './in.csv'"),
        (["compare", MODEL, "--texts", "in.txt", "--csv", "in.txt"], USAGE, "--csv: would overwrite 'in.txt'"),
        (["bench", "-m", MODEL, "--chart", "x.svg", "--report", "x.svg"], USAGE, "--report: would overwrite 'x.svg'"),
        (["bench", "-m", MODEL, "--chart", "no/x.png"], USAGE, "--chart: folder 'no' does not exist"),
        *(
            (["cache", *command, "--cache", "."], USAGE, "--cache: the folder contains no cache (got '.')")
            for command in (["stats"], ["verify"], ["clear", "-y"], ["export", "copy"])
        ),
        (["cache", "stats", "--cache", "nowhere"], USAGE, "the folder does not exist (got 'nowhere')"),
        (["cache", "import", "."], USAGE, "SOURCE: the folder contains no cache (got '.')"),
        (["compare", MODEL, "--data", "."], USAGE, "cannot be read (No such file or directory)"),
        (["cache", "import", "nowhere"], USAGE, "the folder does not exist (got 'nowhere')"),
        (["cache", "verify", "--live", "3"], USAGE, "--live: requires --model and the texts"),
        (["cache", "verify", "in.txt"], USAGE, "--live: is required to compare texts with a model"),
        (["cache", "export", "in.txt"], USAGE, "TARGET: cannot be a folder, "),
        (["cache", "import", "in.txt"], USAGE, "SOURCE: cannot be a folder, "),
        (["cache", "export", ""], USAGE, "TARGET: must not be empty."),
        (["cache", "stats", "--cache", ""], USAGE, "--cache: must not be empty."),
        (["cache", "warm", "empty.txt", "-m", MODEL, "-q"], USAGE, "The inputs have no texts."),
        (["embed", "", "-o", "x.npy", "-m", MODEL], USAGE, "Input '' does not exist."),
        (["compare", MODEL, "--questions", "in.csv", "--per", "line"], USAGE, "--per: needs --texts. Remove it."),
    ],
)
def test_each_usage_error_is_one_clear_line(shell, server, tmp_path, arguments, code, message):
    lines(tmp_path / "in.txt", [f"{text} " * 10 for text in TEXTS])
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n{"text":\n')
    (tmp_path / "in.csv").write_text("body\nx\n")
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    (tmp_path / "folder.npy").mkdir()
    (tmp_path / "empty.txt").touch()
    os.mkfifo(tmp_path / "pipe.npy")
    (tmp_path / "not.parquet").write_bytes(b"nothing of the kind")
    found, out, err = shell(*arguments, *(["--yes"] if arguments[0] in ("embed", "compare", "bench") else []))
    told = err.strip().splitlines()
    assert (found, out) == (code, "")
    assert told[-1].startswith("rag-embedkit: ")
    assert message in told[-1]
    assert server.requests == []


def test_a_missing_key_is_one_clear_line(shell, monkeypatch, tmp_path):
    lines(tmp_path / "in.txt", TEXTS)
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.delenv("OPENAI_BASE_URL")
    code, _, err = shell("embed", "in.txt", "-o", "x.npy", "-m", MODEL)
    assert (code, err.count("\n")) == (USAGE, 1)
    assert "No API key for openai:text-embedding-3-small" in err
    assert "40 to send" in shell("estimate", "in.txt", "-m", MODEL)[1]  # an estimate needs no key
    assert "served_from: provider" in shell("explain", "a text", "-m", MODEL)[1]


def test_a_failing_server_has_its_own_exit_code(shell, server, tmp_path):
    source = lines(tmp_path / "in.txt", TEXTS)
    server.fault_for(lambda texts, number: Fault(status=404))
    assert shell("embed", source, "-o", "x.npy", "-m", MODEL, "-y")[0] in (FAILED, PARTIAL)
    assert not list(tmp_path.glob("x.npy*"))


def test_a_mistyped_command_is_refused_with_the_nearest_name(shell):
    code, _, err = shell("embedd")
    assert code == USAGE
    assert "Did you mean 'embed'" in err
    code, _, err = shell("embed", "--modle", "x")
    assert code == USAGE
    assert "No such option" in err


# Other commands


def test_models_and_explain_print_text_and_json(shell):
    code, out, _ = shell("models", "cohere")
    assert code == 0
    assert "cohere:embed-v4.0" in out
    assert "(0.20)" in shell("models", "google")[1]
    listed = json.loads(shell("models", "--json")[1])
    assert any(row["model"] == MODEL and row["usd_per_million"] == "0.02" for row in listed)
    told = json.loads(shell("explain", "a text", "-m", MODEL, "--json")[1])
    assert (told["served_from"], told["request_body"]["model"]) == ("provider", "text-embedding-3-small")
    assert "served_from: provider" in shell("explain", "a text", "-m", MODEL)[1]


def test_the_cache_commands_count_verify_copy_and_clear(shell, tmp_path):
    source = lines(tmp_path / "in.txt", TEXTS)
    assert shell("cache", "warm", source, "-m", MODEL, "-y")[0] == 0
    assert json.loads(shell("cache", "stats", "--json")[1])["vectors"] == 40
    assert shell("cache", "verify")[0] == 0
    assert "40 vectors copied" in shell("cache", "export", "copy")[2]
    assert json.loads(shell("cache", "stats", "--cache", "copy", "--json")[1])["vectors"] == 40
    assert "40 vectors copied" in shell("cache", "import", "copy", "--cache", "third")[2]
    told = json.loads(shell("estimate", source, "-m", MODEL, "--cache", "third", "--json")[1])
    assert told["cache_hits"] == 40
    assert shell("cache", "export", "copy", "--cache", "copy")[0] == USAGE
    assert "40 vectors deleted" in shell("cache", "clear", "--cache", "third", "-y")[2]
    assert json.loads(shell("cache", "stats", "--cache", "third", "--json")[1])["vectors"] == 0


def test_live_verification_sends_nothing_without_confirmation(shell, server, tmp_path):
    source = lines(tmp_path / "in.txt", TEXTS)
    live = ("cache", "verify", source, "--live", "3", "-m", MODEL)
    code, out, _ = shell(*live)
    assert (code, "nothing was compared" in out) == (0, True)  # nothing is cached, so nothing to confirm
    shell("cache", "warm", source, "-m", MODEL, "-y")
    sent = len(server.requests)
    code, _, err = shell(*live)
    assert (code, len(server.requests)) == (REFUSED, sent)
    assert err.startswith("rag-embedkit: confirmation required to embed 3 cached texts again for about $0.0000")
    code, out, _ = shell(*live, "--yes")
    assert (code, "3 of 40 cached vectors" in out) == (0, True)


def test_a_damaged_vector_is_found(shell, tmp_path):
    import sqlite3

    shell("cache", "warm", lines(tmp_path / "in.txt", TEXTS), "-m", MODEL, "-y", "--cache", "mine")
    database = tmp_path / "mine" / "embedkit-v1" / "cache.db"
    connection = sqlite3.connect(database)
    connection.execute("UPDATE Cache SET value = zeroblob(100) WHERE rowid = 1")
    connection.commit()
    connection.close()
    code, out, _ = shell("cache", "verify", "--cache", "mine")
    assert code == 1
    assert "1 damaged" in out


@pytest.mark.parametrize("command", ["stats", "verify"])
def test_a_destroyed_cache_is_not_reported_as_empty(shell, tmp_path, command):
    shell("cache", "warm", lines(tmp_path / "in.txt", TEXTS), "-m", MODEL, "-y", "--cache", "mine")
    for file in (tmp_path / "mine" / "embedkit-v1").iterdir():
        file.write_bytes(b"no database at all" * 1000)
    shutil.copytree(tmp_path / "mine", tmp_path / "other")
    code, out, err = shell("cache", command, "--cache", "mine")
    assert (code, out, err.count("\n")) == (FAILED, "", 1)
    assert "was quarantined. Its vectors must be embedded again." in err
    code, out, _ = shell("cache", command, "--cache", "other", "--json")
    assert (code, json.loads(out)["quarantined"]) == (FAILED, True)


def test_the_default_cache_may_not_exist_yet(shell):
    assert shell("cache", "stats")[0] == shell("cache", "verify")[0] == 0


def test_the_help_of_yes_says_what_it_confirms(shell, server, tmp_path):
    pages(tmp_path)
    own = shell("compare", "unheard-of", "--texts", "pages", "-q", "--base-url", server.base_url)
    assert (own[0], "with openai:unheard-of for an unknown price" in own[2]) == (REFUSED, True)
    help_of_clear = " ".join(shell("cache", "clear", "--help")[1].split())
    assert "Delete vectors without asking for confirmation" in help_of_clear
    assert "money" not in help_of_clear


def test_help_has_examples(shell):
    code, out, _ = shell("embed", "--help")
    assert code == 0
    assert "Usage: rag-embedkit embed" in out
    assert "A rerun sends only the remaining texts" in " ".join(out.split())
    assert "-o vectors.parquet" in out


@pytest.mark.parametrize("command", ["embed", "compare", "choose", "bench"])
def test_help_names_the_values_of_an_option(shell, command):
    out = " ".join(shell(command, "--help")[1].replace("│", " ").split())
    assert "classification, clustering, similarity, code." in out


def test_without_the_cli_extra_the_error_has_the_install_command(monkeypatch, capsys):
    from embedkit_core.cli import main

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == USAGE
    assert 'pip install "rag-embedkit[cli]"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("package", "extra", "command"),
    [
        ("pyarrow", "parquet", ["embed", "in.txt", "-m", MODEL, "-y", "-o", "out.parquet"]),
        ("pyarrow", "parquet", ["embed", "in.parquet", "-m", MODEL, "-y", "-o", "out.npy"]),
        ("matplotlib", "tools", ["bench", "-m", MODEL, "-y"]),
        ("ir_measures", "tools", ["compare", MODEL, "--texts", "in.txt", "-y"]),
    ],
)
def test_parquet_and_tools_name_their_extra_before_anything_is_sent(
    shell, server, tmp_path, monkeypatch, package, extra, command
):
    lines(tmp_path / "in.txt", ["one", "two"])
    (tmp_path / "in.parquet").write_bytes(b"PAR1")
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    code, _, err = shell(*command)
    assert code == USAGE
    assert f'pip install "rag-embedkit[{extra}]"' in err
    assert server.requests == []


@needs_local_model
def test_a_local_model_needs_no_confirmation(shell, tmp_path):
    code, _, _ = shell("embed", lines(tmp_path / "in.txt", TEXTS[:5]), "-o", "out.npy", "-m", MINILM)
    assert code == 0
    assert np.allclose(np.load(tmp_path / "out.npy"), Embedder(MINILM, cache=False).embed(TEXTS[:5]).vectors, atol=1e-6)


@needs_local_model
def test_a_quiet_run_of_a_local_model_prints_one_line(tmp_path):
    """The libraries that load the model would draw progress bars."""
    arguments = [sys.executable, "-m", "embedkit_core", "embed", str(lines(tmp_path / "in.txt", TEXTS[:2]))]
    arguments += ["-o", str(tmp_path / "out.npy"), "-m", MINILM, "--cache", str(tmp_path), "--quiet"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 1
