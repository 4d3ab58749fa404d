"""The commands `batch submit`, `list`, `status`, `collect` and `cancel`, and `cache clear` while a job is open."""

import itertools
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
from support.inputs import MODEL, lines
from support.openai_batch_server import OpenAIBatchServer
from support.openai_server import vector_of

from embedkit_core import Embedder
from embedkit_core.cli.console import FAILED, INTERRUPTED, PARTIAL, REFUSED, USAGE
from embedkit_core.cli.run import run

TEXTS = ["Cats purr.", "Dogs bark.", "Cows moo."]
CACHE = ("--cache", "mine")


@pytest.fixture
def running():
    """A server with batches that end when a test says so."""
    with OpenAIBatchServer(finishes_after=None) as server:
        yield server


@pytest.fixture
def submitted(shell, tmp_path):
    """The ID of a job of three texts."""
    code, out, err = shell(
        *("batch", "submit", lines(tmp_path / "in.txt", TEXTS), "-m", MODEL, *CACHE),
        *("--dimensions", "8", "-y", "-q", "--json"),
    )
    assert code == 0, err
    return json.loads(out)["id"]


def test_a_job_is_submitted_once_it_is_confirmed(shell, server, tmp_path):
    job = ("batch", "submit", lines(tmp_path / "in.txt", TEXTS), "-m", MODEL, *CACHE)
    code, out, err = shell(*job)
    assert (code, out, server.calls) == (REFUSED, "", [])
    assert f"{MODEL}: 3 texts, 0 from cache, 3 to send in 1 request, " in err
    assert "confirmation required to submit 3 texts for about $" in err
    code, out, err = shell(*job, "-y")
    assert code == 0, err
    job_id = out.partition(",")[0]
    assert out.startswith(f"{job_id}, running, 3 texts, 0 from cache, 3 sent, $0 billed\n  model: {MODEL}, document\n")
    assert "\n  deadline: 20" in out
    assert err.endswith(f"Collect it with: rag-embedkit batch collect {job_id} --cache mine --wait\n")
    again = json.loads(shell(*job, "-y", "--json")[1])
    assert (again["status"], again["elsewhere"], again["sent"], server.created) == ("collected", 3, 0, 1)


def test_another_process_collects_a_job_with_the_settings_of_its_submission(
    shell, server, submitted, tmp_path, monkeypatch
):
    status = json.loads(shell("batch", "status", submitted, *CACHE, "--json")[1])
    assert (status["status"], status["texts"], status["done"], status["errors"]) == ("running", 3, 0, {})
    code, out, err = shell("batch", "collect", submitted, *CACHE)
    assert (code, f"{submitted}, running, " in out, "Collect it with: " in err) == (0, True, True)
    server.finish(server.last_batch.id)
    command = [sys.executable, "-m", "embedkit_core", "batch", "collect", submitted, *CACHE, "--wait"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{submitted}, collected, 3 texts, 0 from cache, 3 sent, 3 done, $")
    with Embedder(MODEL, dimensions=8, cache=tmp_path / "mine") as embedder:
        rows = embedder.embed_documents(TEXTS)
        assert embedder.usage.cache_hits == 3
    assert [row.tolist() for row in rows] == [pytest.approx(vector_of(text, 8).tolist()) for text in TEXTS]
    monkeypatch.delenv("OPENAI_API_KEY")  # a finished job needs no provider
    assert shell("batch", "collect", submitted, *CACHE)[:2] == (0, done.stdout)


def test_jobs_are_listed_without_their_provider(shell, submitted, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    [job] = json.loads(shell("batch", "list", *CACHE, "--json")[1])
    assert (job["id"], job["model"], job["texts"], job["cost_usd"]) == (submitted, MODEL, 3, "0")
    head, _, row = shell("batch", "list", *CACHE)[1].splitlines()
    assert [cell.strip() for cell in head.split("|")[1:4]] == ["job", "status", "model"]
    assert [cell.strip() for cell in row.split("|")[1:-2]] == [
        submitted, "running", MODEL, "3", "3", "0", "0", "0", "$0",
    ]  # fmt: skip
    assert shell("batch", "list")[1].endswith("no jobs\n")


def test_a_cache_with_an_open_job_is_not_cleared(shell, server, submitted, tmp_path):
    shell("cache", "warm", lines(tmp_path / "more.txt", ["one"]), "-m", MODEL, *CACHE, "-y", "-q")
    code, _, err = shell("cache", "clear", *CACHE, "-y")
    assert (code, f"is open ({submitted}). Collect or cancel them first, with: rag-embedkit" in err) == (FAILED, True)
    code, out, err = shell("batch", "cancel", submitted, *CACHE)
    assert (code, out.partition("\n")[0]) == (0, f"{submitted}, cancelling, 3 texts, 0 from cache, 3 sent, $0 billed")
    code, out, err = shell("batch", "collect", submitted, *CACHE, "--wait")
    assert (code, f"{submitted}, cancelled, " in out, server.cancelled) == (0, True, 1)
    assert shell("cache", "clear", *CACHE, "-y")[2] == "1 vector deleted\n"
    assert submitted in shell("batch", "list", *CACHE)[1]


def test_an_interrupted_wait_says_that_the_job_goes_on(shell, server, submitted, monkeypatch):
    def interrupt(seconds):
        raise KeyboardInterrupt

    clock = SimpleNamespace(sleep=interrupt, monotonic=itertools.count().__next__)
    monkeypatch.setattr("embedkit_core.batches.job.time", clock)
    collect = f"rag-embedkit batch collect {submitted} --cache mine --wait"
    code, out, err = shell("batch", "collect", submitted, *CACHE, "--wait")
    assert (code, out) == (INTERRUPTED, "")
    assert err == f"rag-embedkit: stopped. The job goes on. Collect it with: {collect}\n"
    clock.sleep = lambda seconds: None
    code, _, err = shell("batch", "collect", submitted, *CACHE, "--wait", "--wait-timeout", "1", "-q")
    assert (code, "has not finished within 1 s: " in err, collect in err) == (FAILED, True, True)


def test_texts_that_the_provider_refused_are_shown(shell, server, submitted):
    server.line_fault = lambda custom_id, texts: 400 if "Dogs bark." in texts else None
    server.finish(server.last_batch.id)
    server.finishes_after = 1  # the halves of the line are sent again
    code, out, err = shell("batch", "collect", submitted, *CACHE, "--wait")
    assert (code, "2 done, 1 failed" in out) == (PARTIAL, True), (out, err)
    assert "\n  not embedded: 1 text (" in out
    code, out, _ = shell("batch", "submit", "in.txt", "-m", MODEL, *CACHE, "--dimensions", "8", "-y", "--wait")
    assert (code, "2 from cache, 1 sent, 1 failed" in out) == (PARTIAL, True), out


def test_texts_that_are_not_sent_are_explained(shell, server, submitted, tmp_path):
    file = lines(tmp_path / "more.txt", ["Cats purr.", "word " * 9000])
    out = shell("batch", "submit", file, "-m", MODEL, *CACHE, "--dimensions", "8", "-y")[1]
    assert "\n  in other jobs: 1 text; see `batch list`\n  left out: 1 text, maybe too long for the model; " in out


def test_an_error_says_what_to_do(shell, server, submitted, tmp_path):
    folder, submit = tmp_path / "mine", f"submit in.txt -y -m {MODEL}"
    messages = {
        f"status {submitted}0": f"JOB: {folder} has no job '{submitted}0'; did you mean '{submitted}'?",
        "collect ?": f"JOB: {folder} has no job '?'; its jobs: {submitted}",
        f"collect {submitted} --wait-timeout 1": "--wait-timeout: needs --wait.",
        f"{submit} --wait --wait-timeout -5": "--wait-timeout: must be a number of seconds above 0",
        "submit in.txt -m ollama:x": "ollama:x has no batch endpoint here. Use `embed` instead of `batch submit`",
        f"{submit} --endpoint x": "--endpoint: openai has no batch endpoint of this name (got 'x').",
        f"{submit} --leftovers x": "--leftovers: must be one of 'batch', ",
    }
    for arguments, message in messages.items():
        code, _, err = shell("batch", *arguments.split(), *CACHE)
        assert (code, f"rag-embedkit: {message}" in err) == (USAGE, True), err
    assert server.created == 1


def test_a_job_whose_settings_are_not_in_the_journal_is_left_to_python(shell, server, submitted, monkeypatch):
    monkeypatch.setattr("embedkit_core.config.base.BaseEmbedder.fingerprint", "0" * 32)
    code, _, err = shell("batch", "status", submitted, *CACHE)
    assert (code, f"Job {submitted} of {MODEL} was submitted with settings that" in err) == (FAILED, True)
    assert run(["batch", "list", *CACHE]) == 0


def test_the_api_key_is_not_sent_to_an_address_that_only_the_journal_names(shell, server, submitted, monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL")
    calls = len(server.calls)
    for name in ("status", "collect", "cancel"):
        code, _, err = shell("batch", name, submitted, *CACHE)
        said = f"add: --base-url {server.base_url}" in " ".join(err.split())
        assert (code, said, len(server.calls)) == (FAILED, True, calls)
    code, _, err = shell("batch", "collect", submitted, *CACHE, "--base-url", server.base_url)
    assert (code, len(server.calls)) == (0, calls + 1)
    assert err.endswith(f"rag-embedkit batch collect {submitted} --cache mine --base-url {server.base_url} --wait\n")


def test_the_command_that_is_shown_has_the_address_of_the_coordination(shell, server, submitted):
    for name in ("status", "collect", "cancel"):
        code, _, err = shell("batch", name, submitted, *CACHE, "--coordination", "redis://127.0.0.1:9/0")
        assert (code, err.endswith("--cache mine --coordination redis://127.0.0.1:9/0 --wait\n")) == (0, True), err
