"""Record the demo for the README: `python -m benchmarks.readme_demo`. It needs make and npm.

It runs `make demo FAST=1` twice in a terminal, with an empty cache: the first run embeds all texts, the second none.
The output is real. Only its timing is changed: long waits are shortened, and paragraphs are shown one by one.
"""

import codecs
import contextlib
import itertools
import json
import os
import pty
import shutil
import subprocess
import tempfile
import termios
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
RECORDING = ROOT / "docs" / "images" / "demo.svg"
COMMAND = "make demo FAST=1"
RENDERER = "svg-term-cli@2.1.1"
ROWS, COLUMNS = 28, 100
KEY, PARAGRAPH, LONGEST_WAIT, END = 0.06, 0.6, 1.0, 3.0  # seconds: per key and paragraph, at most, and after a run
NEEDED = ("Makefile", "pyproject.toml", "examples/demo.py")

Event = tuple[float, str]


def runs(folder: Path) -> Iterator[Event]:
    """Yield what a terminal shows of two runs of the demo in a folder, with the seconds since the event before."""
    for _ in range(2):
        yield 0.0, "$ "
        yield 1.0, COMMAND[0]
        yield from ((KEY, key) for key in f"{COMMAND[1:]}\r\n")
        for seconds, text in run(folder):
            first, *paragraphs = text.split("\r\n\r\n")
            yield min(seconds, LONGEST_WAIT), first
            yield from ((PARAGRAPH, f"\r\n\r\n{paragraph}") for paragraph in paragraphs)
        yield PARAGRAPH, "\r\n"
        yield END, ""


def run(folder: Path) -> Iterator[Event]:
    """Run the demo in a terminal and yield its output, with the seconds since the output before."""
    terminal, program_side = pty.openpty()
    termios.tcsetwinsize(program_side, (ROWS, COLUMNS))
    began = time.monotonic()
    streams = {"stdin": program_side, "stdout": program_side, "stderr": program_side}
    with subprocess.Popen(COMMAND.split(), cwd=folder, **streams) as make:
        os.close(program_side)
        for output in codecs.iterdecode(_output(terminal), "utf-8"):
            now = time.monotonic()
            yield now - began, output
            began = now
    os.close(terminal)
    if make.returncode:
        raise SystemExit(f"{COMMAND} failed with exit code {make.returncode}")


def asciicast(events: Iterator[Event]) -> str:
    """Return events as a recording in the format asciicast, version 2."""
    header = {"version": 2, "width": COLUMNS, "height": ROWS}
    waits, texts = zip(*events, strict=True)
    timed = zip(itertools.accumulate(waits), texts, strict=True)
    return "\n".join(json.dumps(line) for line in [header, *([round(at, 3), "o", text] for at, text in timed)])


def _output(terminal: int) -> Iterator[bytes]:
    with contextlib.suppress(OSError):  # how Linux reports the end
        while output := os.read(terminal, 65_536):
            yield output


def main() -> None:
    subprocess.run(["make", ".venv-fast/.installed"], cwd=ROOT, check=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in NEEDED:
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
        (folder / ".venv-fast").symlink_to(ROOT / ".venv-fast")
        cast = folder / "demo.cast"
        cast.write_text(asciicast(runs(folder)), encoding="utf-8")
        render = ["npx", "--yes", RENDERER, "--in", str(cast), "--out", str(RECORDING), "--window", "--no-cursor"]
        subprocess.run(render, check=True)


if __name__ == "__main__":
    main()
