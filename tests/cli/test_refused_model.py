"""The command line at a gateway that refuses the model with HTTP 400."""

import pytest
from support.openai_replies import error
from support.openai_server import Fault, OpenAIServer

from embedkit_core.cli.console import FAILED
from embedkit_core.cli.run import run


@pytest.mark.parametrize("n", [1, 2, 100])
def test_a_refusal_that_any_text_would_get_names_no_line(tmp_path, monkeypatch, capfd, n):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.txt").write_text("".join(f"text {i}\n" for i in range(n)))
    with OpenAIServer() as server:
        monkeypatch.setenv("OPENAI_API_KEY", server.api_key)
        server.fault_for(lambda texts, number: Fault(status=400, body=error("The tenant is not provisioned.")))
        arguments = ["-o", "out.jsonl", "-m", "openai:nope", "--base-url", server.base_url, "-y"]
        assert run(["embed", "in.txt", *arguments]) == FAILED
    told = capfd.readouterr().err
    assert "The tenant is not provisioned." in told
    assert "line 1" not in told
