"""The alert rules and panels in docs/monitoring.md use metrics that its examples export."""

import re
from pathlib import Path

import pytest
from prometheus_client import REGISTRY, generate_latest
from support.openai_server import Fault
from support.reader import reader_environment

from embedkit_core import AuthenticationError

PAGE = (Path(__file__).parents[2] / "docs" / "monitoring.md").read_text(encoding="utf-8")


def unregister_collectors():
    for collector in list(REGISTRY._collector_to_names):
        if type(collector).__name__ == "EmbeddingCollector":  # of this test, or of the one that runs all pages
            REGISTRY.unregister(collector)


@pytest.fixture
def clean_registry():
    unregister_collectors()
    yield
    unregister_collectors()


@pytest.mark.usefixtures("clean_registry")
def test_the_rules_and_panels_use_exported_metrics_and_labels(tmp_path, monkeypatch):
    scope: dict[str, object] = {}
    metrics, collector, end = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
    with reader_environment(tmp_path, monkeypatch) as server:
        exec(metrics, scope)
        exec(collector, scope)
        server.faults.extend([Fault(status=500, headers={"retry-after": "0"}), None, Fault(status=401)])
        embedder = scope["embedder"]
        embedder.embed(["another text"])
        with pytest.raises(AuthenticationError):
            embedder.embed(["a third text"])
        embedder.embed(["another text"])
    exported = generate_latest().decode()
    exec(end, scope)
    used = re.findall(r"```(?:yaml|promql)\n(.*?)```", PAGE, re.S)
    names = set(re.findall(r"\b(?:embedkit|gen_ai|error)_\w+", " ".join(used)))
    assert len(names) > 8
    assert {name for name in names if not re.search(rf"\b{name}\b", exported)} == set()
