"""The script examples/live.py, run against local servers."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.cohere_server import CohereServer
from support.openai_server import OpenAIServer
from support.voyage_server import VoyageServer

SCRIPT = Path(__file__).parents[2] / "examples" / "live.py"
KINDS = {
    "openai": (OpenAIServer, "OPENAI_API_KEY"),
    "voyage": (VoyageServer, "VOYAGE_API_KEY"),
    "cohere": (CohereServer, "CO_API_KEY"),
}
KEY = "a-key-that-nobody-may-see"


def live(provider, server, monkeypatch, *arguments):
    monkeypatch.setenv(KINDS[provider][1], KEY)
    command = [sys.executable, str(SCRIPT), provider, "--base-url", server.base_url, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.parametrize("provider", KINDS)
def test_the_report_answers_every_question_and_costs_less_than_a_cent(provider, monkeypatch):
    with KINDS[provider][0](api_key=KEY) as server:
        run = live(provider, server, monkeypatch)
        assert run.returncode == 0, run.stderr
        assert server.billed_tokens < 50_000
        counted = len(server.requests), server.billed_tokens
    report = run.stdout
    assert KEY not in report + run.stderr
    length = "1.2500000" if provider == "cohere" else "1.0000000"
    assert re.search(rf"lengths from {re.escape(length[:5])}", report)
    assert "sent twice: cosine 1.00000000" in report
    assert "256 of " in report
    assert re.search(r"an unknown model: \w+Error|an unknown model: answered", report)
    assert "an invalid key: AuthenticationError, HTTP 401" in report
    assert re.search(r"too many texts: (RequestTooLarge|BadText)Error", report)
    assert "ended with" not in report
    assert "unsupported dimensions: BadRequestError" in report
    spent = re.search(r"Spent: .* ([\d,]+) requests, ([\d,]+) tokens, \$0\.00", report)
    requests, tokens = (int(number.replace(",", "")) for number in spent.groups())
    assert requests == counted[0] - 1  # without the one with an invalid key
    if provider != "voyage":  # its server counts the words of a truncated text
        assert tokens == counted[1]


def test_a_wrong_key_is_one_line_after_one_request(monkeypatch):
    with VoyageServer(api_key="another") as server:
        run = live("voyage", server, monkeypatch)
        assert len(server.requests) == 1
    assert run.returncode == 1
    assert run.stderr.count("\n") == 1
    assert "API key was refused" in run.stderr
    assert KEY not in run.stdout + run.stderr


def test_without_a_key_the_error_is_one_line(monkeypatch):
    for _, variable in KINDS.values():
        monkeypatch.delenv(variable, raising=False)
    run = subprocess.run(
        [sys.executable, str(SCRIPT), "voyage"], capture_output=True, text=True, timeout=100, check=False
    )
    assert run.returncode == 1
    assert run.stderr.count("\n") == 1
    assert "VOYAGE_API_KEY" in run.stderr
