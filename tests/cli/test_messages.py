"""Messages name the options of the command, not the arguments of Python."""

import json
import os
import re
import subprocess
import sys

import pytest
import typer
from support.inputs import MODEL, lines, pages

from embedkit_core.cli.console import USAGE, app
from embedkit_core.cli.messages import Wording
from embedkit_core.config.base import parameter_names

OPTIONS = {
    "model": "--model", "dimensions": "--dimensions", "dtype": "--dtype", "base_url": "--base-url", "price": "--price",
    "budget_usd": "--budget-usd", "cache": "--cache", "no_cache": "--no-cache", "max_concurrency": "--max-concurrency",
    "text": "--text",
}  # fmt: skip


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "No API key for x. Pass api_key= or set the environment variable KEY.",
            "No API key for x. Set the environment variable KEY.",
        ),
        ("Check api_key=.", "Check the API key."),
        (
            "cache: must not be empty. Use cache=False for no cache.",
            "--cache: must not be empty. Use --no-cache for no cache.",
        ),
        ("Set dimensions= or use another cache=.", "Set --dimensions or use another --cache."),
        (
            "prices['m']: must be an amount (got -1). Example: prices['m']=0.5",
            "--price: must be an amount (got -1). Example: --price 0.5",
        ),
        (
            "Set it as in prices={'openai:m': 0.02}, or use budget_tokens=.",
            "Set it as in --price 0.02, or use budget_tokens= (in Python).",
        ),
        ("max_concurrency and base_url of x apply.", "--max-concurrency and --base-url of x apply."),
        ("dimensions, dtype: contradict.", "--dimensions, dtype: contradict."),
        ("Server says 'max_concurrency'; cache/base_url.", "Server says 'max_concurrency'; cache/base_url."),
        ("pass model_info={}.", "pass model_info={} (in Python)."),
        ("Use for example dimensions=(8, 4).", "Use for example --dimensions 8,4."),
        (
            "got dtype='int8'. Use on_long_text='truncate'.",
            "got --dtype int8. Use on_long_text='truncate' (in Python).",
        ),
        ("Pass base_url='https://NAME.example'.", "Pass --base-url https://NAME.example."),
        ("base_url: not valid (got 'x'). Pass an address.", "--base-url: not valid (got 'x'). Pass an address."),
        ("model: unknown model 'x'.", "model: unknown model 'x'."),
        ("Invalid model name passed in model=nope, text=3", "Invalid model name passed in model=nope, text=3"),
        ("Input 'cache=1.txt' does not exist.", "Input 'cache=1.txt' does not exist."),
    ],
)
def test_an_argument_is_replaced_by_its_option(message, expected):
    wording = Wording()
    wording.use(OPTIONS)
    assert wording(message) == expected


def test_an_argument_without_an_option_of_the_command_is_marked():
    wording = Wording()
    wording.use({"model": "--model", "cache": "--cache"})
    assert wording("Use dtype='int8' or cache=False.") == "Use dtype='int8' (in Python) or cache=False (in Python)."


def test_an_argument_is_replaced_by_the_option_that_takes_several_values():
    wording = Wording()
    wording.use({"model": "--model", "dtypes": "--dtypes"})
    assert wording("Use dtype='int8'.") == "Use --dtypes int8."


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--dimensions", "0", "--dimensions: must be an integer of at least 1 (got 0)"),
        ("--dimensions", "9999", "--dimensions: text-embedding-3-small does not offer 9999 dimensions"),
        ("--dtype", "int7", "--dtype: must be one of"),
        ("--input-type", "q", "--input-type: must be one of 'document', 'query'"),
        ("--price", "-1", "--price: must be an amount of USD, 0 or more (got '-1'). Example: --price 0.5"),
        (
            "--budget-usd",
            "much",
            "--budget-usd: must be an amount of USD, 0 or more (got 'much'). Example: --budget-usd 0.5",
        ),
        ("--max-concurrency", "0", "--max-concurrency: must be an integer of at least 1"),
        ("--base-url", "nohost", "--base-url: not a valid address (got 'nohost')"),
        ("--cache", "nobody://x", "--cache: no package provides nobody://"),
    ],
)
def test_an_invalid_option_is_named_as_it_was_written(shell, server, tmp_path, option, value, message):
    source = lines(tmp_path / "in.txt", ["one"])
    code, _, err = shell("embed", source, "-o", "x.npy", "-m", MODEL, "-y", option, value)
    assert (code, server.requests) == (USAGE, [])
    assert err.startswith(f"rag-embedkit: {message}")
    assert not re.search(r"[a-z]_?[a-z]+=(?! \(in Python\))", err)


def test_an_unknown_price_names_the_option_that_sets_it(shell, server, tmp_path):
    job = ("embed", lines(tmp_path / "in.txt", ["one"]), "-o", "x.npy", "-m", "openai:unheard", "-y")
    code, _, err = shell(*job, "--budget-usd", "1")
    assert (code, server.requests) == (3, [])
    assert "as in --price 0.02" in err
    assert shell(*job, "--budget-usd", "1", "--price", "0.02")[0] == 0
    pages(tmp_path)
    compare = ("compare", "openai:unheard", "--texts", "pages", "-y", "--budget-usd", "1")
    err = shell(*compare)[2]
    assert ("as in --price openai:unheard=0.02, or" in err, ".result" in err) == (True, False)
    assert "; price: --price\n" in shell("estimate", "in.txt", "-m", "openai:unheard", "--price", "$0.02")[1]


def test_every_option_of_an_argument_is_named_in_messages(shell, server):
    seen = set()
    for words, command in commands(typer.main.get_command(app), ()):
        options = {option.name: option.opts[0] for option in command.params}
        wording = Wording()
        wording.use(options)
        for name, option in options.items():
            if name in {*parameter_names()} - {"model", "prices"} and option.startswith("--"):
                seen.add(name)
                shown = wording(f"{name}: is wrong. Set {name}=5, or another {name}=.")
                assert shown == f"{option}: is wrong. Set {option} 5, or another {option}.", words
    assert seen >= {"task", "on_long_text", "on_empty_text", "requests_per_minute", "tokens_per_minute", "timeout"}


def commands(command, words):
    for name, child in getattr(command, "commands", {}).items():
        yield from commands(child, (*words, name))
    if not hasattr(command, "commands"):
        yield words, command


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (("--on-long-text", "cut"), "--on-long-text: "),
        (("--on-empty-text", "skip"), "--on-empty-text: must be one of 'error', 'zero'"),
        (("--task", "x"), "--task: "),
        (("--timeout", "0"), "--timeout: must be a number of seconds above 0 (got 0.0)"),
        (("--requests-per-minute", "0"), "--requests-per-minute: must be an integer of at least 1 (got 0)"),
        (("--tokens-per-minute", "0"), "--tokens-per-minute: must be an integer of at least 1 (got 0)"),
        (("--per", "word"), "--per: must be one of 'file', 'line', 'paragraph'"),
    ],
)
def test_an_invalid_setting_is_named_as_its_option(shell, server, tmp_path, value, message):
    code, _, err = shell("estimate", lines(tmp_path / "in.txt", ["one"]), "-m", MODEL, *value)
    assert (code, server.requests) == (USAGE, [])
    assert err.startswith(f"rag-embedkit: {message}")
    assert "(in Python)" not in err


def test_control_characters_do_not_reach_the_terminal(shell, tmp_path):
    model = "openai:\x1b[31m\x9bred"
    code, out, err = shell("embed", lines(tmp_path / "a\x1b]0;b.txt", ["one"]), "-o", "\x1b.npy", "-m", model, "-y")
    assert code == 0, err
    assert out.startswith("\\u001b.npy: 1 row; ")
    assert err.startswith("openai:\\u001b[31m\\u009bred: ")
    (tmp_path / "a\x1b]0;b.txt").write_bytes(b"\xff")
    assert "a\\u001b]0;b.txt is not UTF-8" in shell("embed", "a\x1b]0;b.txt", "-o", "x.npy", "-m", MODEL)[2]
    assert json.loads(shell("explain", "one", "-m", model, "--json")[1])["model"] == model


@pytest.mark.parametrize("option", ["--dimensions", "--max-concurrency"])
def test_an_option_for_a_whole_number_refuses_other_text_in_plain_english(shell, tmp_path, option):
    code, _, err = shell("embed", lines(tmp_path / "in.txt", ["one"]), "-o", "x.npy", "-m", MODEL, option, "abc")
    assert (code, "must be a whole number (got 'abc')." in err) == (USAGE, True)


def test_texts_and_names_are_printed_without_emoji(shell):
    code, out, _ = shell("explain", "a text", "-m", "openai:x", "--json")
    assert code == 0
    for name in ("openai:x:smile:", "openai:heart:x:"):
        out = shell("explain", "a text", "-m", name, "--json")[1]
        assert json.loads(out)["model"] == name
        assert f"model: {name}\n" in shell("explain", "a text", "-m", name)[1]


def test_a_local_model_is_listed_as_free(shell):
    _, out, _ = shell("models", "local")
    assert all(line.split("|")[4].strip() == "free" for line in out.splitlines()[2:])
    assert all(row["usd_per_million"] == "0" for row in json.loads(shell("models", "local", "--json")[1]))
    assert shell("models", "vllm") == (0, "The catalogue has no models of 'vllm'.\n", "")


def test_one_vector_is_singular(shell, tmp_path):
    source = lines(tmp_path / "in.txt", ["one"])
    assert "out.npy: 1 row; 1 text" in shell("embed", source, "-o", "out.npy", "-m", MODEL, "-y", "--cache", "mine")[1]
    assert "1 vector, " in shell("cache", "stats", "--cache", "mine")[1]
    assert "1 vector, 0 damaged" in shell("cache", "verify", "--cache", "mine")[1]
    assert "1 vector deleted" in shell("cache", "clear", "--cache", "mine", "-y")[2]


def test_a_warning_of_the_library_is_one_line_in_the_words_of_the_command(server, tmp_path):
    source = lines(tmp_path / "in.txt", ["word " * 9000])
    command = [sys.executable, "-m", "embedkit_core", "embed", str(source), "-o", "x.npy", "-m", MODEL, "-y", "-q"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (0, 1), done.stderr
    assert done.stderr.startswith(f"rag-embedkit: {MODEL}: 1 of 1 text was truncated")
    assert "--on-long-text mean" in done.stderr


def test_an_output_whose_name_is_not_unicode_is_written(server, tmp_path):
    lines(tmp_path / "in.txt", ["one"])
    name = b"caf\xe9.npy"
    command = [sys.executable, "-m", "embedkit_core", "embed", "in.txt", "-o", name, "-m", MODEL, "-y", "-q"]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("caf\\udce9.npy: 1 row; ")
    assert (tmp_path / os.fsdecode(name)).is_file()
