"""docs/errors.md names every error class, and its web service answers with the status that it states."""

import inspect
import re
from pathlib import Path

from fastapi.testclient import TestClient
from support.openai_server import Fault
from support.reader import reader_environment

import embedkit_core

PAGE = (Path(__file__).parents[2] / "docs" / "errors.md").read_text(encoding="utf-8")
CLASSES = PAGE.partition("## Classes")[2].partition("\n## ")[0]


def test_the_table_has_every_public_error_class_and_no_others():
    public = [value for name, value in vars(embedkit_core).items() if name in embedkit_core.__all__]
    errors = {one.__name__ for one in public if inspect.isclass(one) and issubclass(one, embedkit_core.EmbedKitError)}
    assert set(re.findall(r"^\| `(\w+)`", CLASSES, re.M)) == errors


def test_the_service_answers_with_the_status_of_each_kind_of_error(tmp_path, monkeypatch):
    scope: dict[str, object] = {}
    with reader_environment(tmp_path, monkeypatch) as server:
        for block in re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)[:2]:
            exec(compile(block, "errors.md", "exec"), scope)
        scope["embedder"] = embedkit_core.Embedder("openai:text-embedding-3-small", max_retries=0, cache=False)
        client = TestClient(scope["app"])
        faults = [(Fault(status=429, headers={"retry-after": "7"}), 503), (Fault(status=401), 500), (None, 200)]
        for fault, status in faults:
            server.fault_for(lambda texts, number, fault=fault: fault)
            answer = client.post("/embed", json=["a text"])
            assert answer.status_code == status
            assert answer.headers.get("retry-after") == ("7" if status == 503 else None)
        assert client.post("/embed", json=["a text", " "]).status_code == 422
