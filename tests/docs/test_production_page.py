"""The applications in docs/production.md run in several processes, and pay for each text once."""

import json
import re
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fastapi.testclient import TestClient
from support.openai_server import vector_of
from support.reader import reader_environment

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "production.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))
TEXTS = [f"Paragraph {number}" for number in range(200)]
REQUEST = """
import io, json, sys
from app import app
body = sys.stdin.buffer.read()
reply = app({"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}, lambda status, headers: None)
sys.stdout.write(b"".join(reply).decode())
"""


def application(section: str) -> str:
    """Return the code of a section's application."""
    (code,) = re.findall(r"^```py(?:thon)?\n(.*?)^```", SECTIONS[section], re.M | re.S)
    return code


def answer_of_a_worker(_number: int) -> list[list[float]]:
    """Return the answer of the application in a process of its own."""
    given = json.dumps(TEXTS).encode()
    worker = subprocess.run([sys.executable, "-c", REQUEST], input=given, stdout=subprocess.PIPE, check=True)
    rows: list[list[float]] = json.loads(worker.stdout)
    return rows


def test_two_workers_of_a_wsgi_application_pay_once_for_the_texts_of_both(tmp_path, monkeypatch):
    with reader_environment(tmp_path, monkeypatch) as server:
        server.latency = 0.3
        Path("app.py").write_text(application("gunicorn"), encoding="utf-8")
        with ThreadPoolExecutor(2) as pool:
            rows = list(pool.map(answer_of_a_worker, range(2)))
        assert server.billed_texts == Counter(TEXTS)
    assert rows[0] == rows[1]
    assert len(rows[0]) == len(TEXTS)


def test_the_asgi_application_returns_the_vectors_and_closes_its_embedder(tmp_path, monkeypatch):
    with reader_environment(tmp_path, monkeypatch):
        scope: dict[str, object] = {}
        exec(compile(application("uvicorn"), "app.py", "exec"), scope)
        with TestClient(scope["app"]) as client:
            (row,) = client.post("/", json=["Cats purr."]).json()
    assert row[:3] == [float(x) for x in vector_of("Cats purr.", 1536, 1536, "text-embedding-3-small")[:3]]


def test_the_celery_tasks_compile():
    compile(application("Celery"), "tasks.py", "exec")
