"""The commands in docs/cli.md print the shown output."""

import os
import re
import subprocess
import sys
from pathlib import Path

from support.reader import reader_environment

JOB = r"job-[0-9a-f]{12}"
RANDOM = re.compile(rf"{JOB}|\d{{4}}-\d\d-\d\d \d\d:\d\d UTC")
ROOT = Path(__file__).parents[2]


def told(document):
    """Yield each command of the console blocks and its output lines."""
    blocks = re.findall(r"^```console\n(.*?)^```", (ROOT / document).read_text(encoding="utf-8"), re.M | re.S)
    for block in blocks:
        for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
            command, *lines = part.splitlines()
            yield command, lines


def test_the_commands_of_the_page_print_what_it_shows(tmp_path, monkeypatch):
    with reader_environment(tmp_path, monkeypatch):
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        commands = list(told("docs/cli.md"))
        assert len(commands) >= 6
        jobs: dict[str, str] = {}  # of the page and of this run
        for command, lines in commands:
            done = subprocess.run(
                ["bash", "-c", re.sub(JOB, lambda shown: jobs[shown[0]], command)],
                cwd=tmp_path,
                env={**os.environ, "PATH": path},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=60,
            )
            jobs.update(zip(re.findall(JOB, "".join(lines)), re.findall(JOB, done.stdout), strict=False))
            assert RANDOM.sub("", done.stdout).splitlines() == [RANDOM.sub("", line) for line in lines], command
