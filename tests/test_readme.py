"""The README's examples run, in order, as a reader would run them."""

import re
from pathlib import Path

import pytest
from support.openai_server import OpenAIServer

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)


def test_the_readme_has_examples():
    assert len(BLOCKS) >= 4


def test_the_readmes_examples_run_and_send_what_they_say(tmp_path, monkeypatch, capsys):
    with OpenAIServer() as server:
        monkeypatch.setenv("OPENAI_API_KEY", "test-key")
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setenv("HOME", str(tmp_path))
        scope: dict[str, object] = {}
        for block in BLOCKS:
            exec(compile(block, "README.md", "exec"), scope)
        printed = capsys.readouterr().out
    assert "Usage(texts=6, cache_hits=2, duplicates=2, joined=0, sent=2, failed=0, requests=1" in printed
    assert "(2, 256)" in printed
    assert "cache\n" in printed
    assert "(1,)" in printed


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_between_documents_lead_somewhere(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (ROOT / target).exists(), target
