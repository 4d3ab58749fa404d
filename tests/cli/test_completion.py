"""`--version`, and completion in Bash of commands, options and models, whose names have colons."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from embedkit_core import __version__
from embedkit_core.cli.completion import join_words

BASH = """
eval "$(_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION=1 rag-embedkit --show-completion bash)"
COMP_WORDS=(rag-embedkit embed -m openai : text-embedding-3-) COMP_CWORD=5
_rag_embedkit_completion rag-embedkit
echo "${COMPREPLY[@]}"
"""


def test_bash_completes_a_model_after_its_colon(server):
    env = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    done = subprocess.run(["bash", "-c", BASH], capture_output=True, text=True, timeout=100, env=env)
    assert done.stdout.split() == ["text-embedding-3-small", "text-embedding-3-large"], done.stderr


@pytest.mark.parametrize(
    ("words", "current", "expected"),
    [
        (["c", "-m", "openai", ":", "te"], 4, (["c", "-m", "openai:te"], 2)),
        (["c", "-m", "openai", ":"], 3, (["c", "-m", "openai:"], 2)),
        (["c", "-m", "openai", ":", "te", "in.txt", ""], 6, (["c", "-m", "openai:te", "in.txt", ""], 4)),
        (["c", "emb"], 1, (["c", "emb"], 1)),
    ],
)
def test_words_that_bash_splits_at_colons_are_joined(words, current, expected):
    assert join_words(words, current) == expected


def test_options_and_their_values_are_completed(shell, monkeypatch, capfd):
    monkeypatch.setenv("_RAG_EMBEDKIT_COMPLETE", "complete_fish")
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    for typed, expected in (
        ("embed --on-l", "--on-long-text"),
        ("embed --dtype ub", "ubinary"),
        ("compare voyage:voyage-4-l", "voyage:voyage-4-l"),
    ):
        monkeypatch.setenv("_TYPER_COMPLETE_ARGS", f"rag-embedkit {typed}")
        with pytest.raises(SystemExit):
            shell()
        assert capfd.readouterr().out.startswith(expected), typed


def test_the_version_is_shown(shell):
    assert shell("--version") == (0, f"rag-embedkit {__version__}\n", "")
