"""The commands `compare`, `choose` and `bench`."""

import subprocess
import sys

import pytest
from support.inputs import MODEL, pages

from embedkit_core.cli.console import USAGE

BLOCKED = "import sys; sys.modules[sys.argv.pop(1)] = None; from embedkit_core.cli import main; main()"


@pytest.mark.parametrize("command", ["compare", "choose", "bench"])
def test_without_the_tools_extra_a_command_sends_nothing(server, tmp_path, command):
    options = (
        [] if command == "bench" else ["--texts", str(pages(tmp_path)), *(["--floor", "0"] * (command == "choose"))]
    )
    arguments = [sys.executable, "-c", BLOCKED, "ir_measures", command, MODEL, "--yes", *options]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, server.requests) == (USAGE, "", [])
    assert done.stderr == (
        f"rag-embedkit: {command} needs the extra [tools], which is not installed. "
        'Run: pip install "rag-embedkit[tools]"\n'
    )
