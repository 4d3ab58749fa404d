"""The script examples/live.py, run against local servers: one provider of each wire format."""

import importlib.util
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from support.bedrock_server import BedrockServer
from support.cohere_server import CohereServer
from support.google_server import GoogleServer
from support.openai_server import OpenAIServer
from support.voyage_server import VoyageServer

SCRIPT = Path(__file__).parents[2] / "examples" / "live.py"
QwenServer = partial(OpenAIServer, dimensions=4096, max_tokens_per_text=32_768, max_inputs=64, base64=False)
KINDS = {
    "openai": (OpenAIServer, "OPENAI_API_KEY"),
    "voyage": (VoyageServer, "VOYAGE_API_KEY"),
    "cohere": (CohereServer, "CO_API_KEY"),
    "nebius": (QwenServer, "NEBIUS_API_KEY"),
    "google": (partial(GoogleServer, truncates_silently=True), "GOOGLE_API_KEY"),
    "bedrock": (BedrockServer, "AWS_BEARER_TOKEN_BEDROCK"),
}
MODELS = {"cohere": ["--model", "embed-v4.0"]}
KEY = "a-key-that-nobody-may-see"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("examples_live", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch):
    for _, variable in KINDS.values():
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.parametrize("provider", KINDS)
def test_the_report_answers_every_question_and_costs_less_than_a_cent(provider, script, monkeypatch, capsys):
    make_server, variable = KINDS[provider]
    monkeypatch.setenv(variable, KEY)
    with make_server(api_key=KEY) as server:
        code = script.main([provider, "--base-url", server.base_url, *MODELS.get(provider, [])])
        report, errors = capsys.readouterr()
        assert code == 0, errors
        assert server.billed_tokens < 100_000
        counted = len(server.requests), server.billed_tokens
    assert KEY not in report + errors
    length = "1.2500000" if provider == "cohere" else "1.0000000"
    assert re.search(rf"lengths from {re.escape(length[:5])}", report)
    assert "sent twice: cosine 1.00000000" in report
    assert "256 of " in report
    assert re.search(r"an unknown model: \w+Error|an unknown model: answered", report)
    assert re.search(r"an invalid key: AuthenticationError, HTTP 40[013]", report)
    assert provider == "bedrock" or re.search(r"too many texts \(\d+\): (RequestTooLarge|BadText)Error", report)
    assert "ended with" not in report
    assert "unsupported dimensions: BadRequestError" in report
    spent = re.search(r"Spent, at most \$0\.00\d+: .* ([\d,]+) requests, ([\d,]+) tokens, \$0\.00", report)
    requests, tokens = (int(number.replace(",", "")) for number in spent.groups())
    assert requests == counted[0]
    if provider not in ("voyage", "google"):  # one counts the words of a truncated text, one states no tokens
        assert tokens == counted[1]
    else:
        assert "no tokens stated" in report or provider == "voyage"
    of_one = {
        "openai": "base64 and numbers: cosine 1.00000000, largest difference 0.0e+00",
        "voyage": "without input_type: answered",
        "cohere": "clustering, document: cosine",
        "nebius": "base64: BadRequestError, HTTP 400",
        "google": "1.2 times the limit of 2048: answered, no tokens stated, truncated without notice",
        "bedrock": "$0.02 per million tokens (not confirmed by the provider)",
    }
    assert of_one[provider] in report


def test_a_wrong_key_is_one_line_after_one_request(monkeypatch):
    monkeypatch.setenv("VOYAGE_API_KEY", KEY)
    with VoyageServer(api_key="another") as server:
        command = [sys.executable, str(SCRIPT), "voyage", "--base-url", server.base_url]
        run = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
        assert len(server.requests) == 1
    assert run.returncode == 1
    assert run.stderr.count("\n") == 1
    assert "API key was refused" in run.stderr
    assert KEY not in run.stdout + run.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["voyage"], "VOYAGE_API_KEY"),
        (["mixedbread"], "Name a model with --model: mixedbread-ai/mxbai-embed-large-v1, "),
        (["ollama"], "Name a model with --model."),
        (["model2vec"], "Models of model2vec: run on this machine. Name a service."),
    ],
)
def test_what_is_missing_is_one_line(arguments, message, script, capsys):
    assert script.main(arguments) == 1
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1


def test_a_deployment_has_the_limits_of_the_model_that_it_is_like(script, capsys):
    with OpenAIServer(api_key="k") as server:
        settings = ["--base-url", server.base_url, "--like", "openai:text-embedding-3-small", "--price", "0.02"]
        assert script.main(["vllm", "--model", "m", "--option", 'user="u"', *settings]) == 1  # there is no key
        assert server.requests[0].body["user"] == "u"
    assert "vllm:m, $0.02 per million tokens (stated by the user)" in capsys.readouterr().out
