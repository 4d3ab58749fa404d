"""The demo in examples/demo.py."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest
from support.embedders import needs_local_model

pytestmark = needs_local_model

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "examples" / "demo.py"
RECORDING = ROOT / "docs" / "images" / "demo.svg"
Runs = list[subprocess.CompletedProcess[str]]
WITHOUT_KEYS = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")}


def demo(*arguments: str, **keys: str) -> subprocess.CompletedProcess[str]:
    environment = WITHOUT_KEYS | keys
    return subprocess.run(
        [sys.executable, DEMO, *arguments], capture_output=True, text=True, env=environment, cwd=ROOT, check=False
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    cache = tmp_path_factory.mktemp("demo")
    return [demo("--limit", "40", "--cache", str(cache)) for _ in range(2)]


def embedded(run: subprocess.CompletedProcess[str]) -> list[int]:
    """Return the numbers of embedded texts: by LangChain, by LlamaIndex, in total."""
    return [int(count) for count in re.findall(r"(\d+) embedded in", run.stdout)]


@pytest.mark.timeout(300)
def test_the_demo_embeds_once_and_llamaindex_finds_it_all_in_the_cache(runs: Runs) -> None:
    assert runs[0].returncode == 0, runs[0].stderr
    assert embedded(runs[0]) == [43, 0, 43]


def test_the_second_run_of_the_demo_embeds_nothing(runs: Runs) -> None:
    assert runs[1].returncode == 0, runs[1].stderr
    assert embedded(runs[1]) == [0, 0, 0]


def test_both_runs_of_the_demo_find_the_same_texts(runs: Runs) -> None:
    hits = [re.findall(r"^    \d\.\d\d  .*$", run.stdout, re.MULTILINE) for run in runs]
    assert hits[0] == hits[1]
    assert len(hits[0]) == 9


def test_the_demo_is_quiet_and_fits_the_screen(runs: Runs) -> None:
    assert [run.stderr for run in runs] == ["", ""]
    assert [line for run in runs for line in run.stdout.splitlines() if len(line) > 100 and "cache: " not in line] == []


def test_the_fast_demo_runs_a_static_model(tmp_path: Path) -> None:
    run = demo("--fast", "--limit", "40", "--cache", str(tmp_path))
    assert run.returncode == 0, run.stderr
    assert embedded(run) == [43, 0, 43]
    assert "WordLlama" in run.stdout
    check_recording(run.stdout)


def check_recording(stdout: str) -> None:
    """Check that the recording in the README shows the output of the fast demo, except for numbers and hits."""
    recorded = " ".join(unescape(re.sub(r"<[^>]*>", " ", RECORDING.read_text(encoding="utf-8"))).split())
    [_, again] = re.findall(r"Receipt: \d+ texts: (\d+) embedded", recorded)
    assert again == "0"
    lines = [line for line in stdout.splitlines() if not re.match(r"    \d|  cache:", line)]
    assert len(lines) >= 20
    missing = [line for line in lines if without_numbers(line) not in without_numbers(recorded)]
    assert missing == []  # python -m benchmarks.readme_demo


def without_numbers(text: str) -> str:
    """Return a text without what depends on the number of docstrings, the version of Python and the machine."""
    text = re.sub(r"\d[\d.,]*", "0", " ".join(text.split()))
    return re.sub(r"-+", "-", text.replace("0 requests", "0 request"))


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ("opnai:text-embedding-3-small", "opnai"),
        ("openai:text-embeding-3-small", "text-embedding-3-small"),
        ("local:/no/such/folder", "/no/such/folder"),
    ],
)
def test_a_mistyped_model_is_one_clear_line(model: str, named: str, tmp_path: Path) -> None:
    run = demo("--model", model, "--cache", str(tmp_path), OPENAI_API_KEY="never sent")
    assert (run.returncode, run.stderr.count("\n")) == (2, 1)
    assert named in run.stderr


def test_a_missing_key_is_one_clear_line(tmp_path: Path) -> None:
    run = demo("--model", "openai:text-embedding-3-small", "--cache", str(tmp_path))
    assert (run.returncode, run.stderr.count("\n")) == (2, 1)
    assert "OPENAI_API_KEY" in run.stderr
