"""Jobs at the batch endpoint of every provider with one: vectors are those of normal requests, whatever fails."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.batch_server import BatchServer
from support.cohere_jobs_server import CohereJobsServer
from support.google_batch_server import GeminiBatchServer
from support.mistral_batch_server import MistralBatchServer
from support.openai_batch_server import OpenAIBatchServer
from support.voyage_batch_server import VoyageBatchServer

from embedkit_core import Embedder
from embedkit_core.batches import runner, service

TEXTS = [f"the text number {n}" for n in range(30)]


@dataclass(frozen=True)
class Case:
    """A provider: its model, its server and the settings that a job of it needs."""

    model: str
    server: Callable[..., BatchServer]
    settings: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    def embedder(self, server: BatchServer, cache: Any) -> Embedder:
        return Embedder(self.model, base_url=server.base_url, api_key="test-key", cache=cache, **self.settings)


CASES = {
    "openai": Case("openai:text-embedding-3-small", OpenAIBatchServer, {"dimensions": 16}),
    "voyage": Case("voyage:voyage-4", VoyageBatchServer, {"dimensions": 256}),
    "mistral": Case("mistral:codestral-embed", MistralBatchServer, {"dimensions": 256}),
    "google": Case("google:gemini-embedding-001", GeminiBatchServer, {"dimensions": 128}),
    "cohere": Case("cohere:embed-english-v3.0", CohereJobsServer, {}, {"endpoint": "embed-jobs"}),
}


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SEARCH_SECONDS", "FIRST_RETRY_SECONDS", "LONGEST_RETRY_SECONDS", "QUEUE_SECONDS"):
        monkeypatch.setattr(runner, name, 0.01)
    monkeypatch.setattr(service, "SUBMIT_SECONDS", 5.0)


@pytest.mark.parametrize("name", CASES)
def test_a_job_survives_every_failure_of_its_provider_and_caches_the_vectors_of_normal_requests(
    name: str, tmp_path: Path
) -> None:
    case, shuffle = CASES[name], random.Random(0)

    def mangle(lines: list[Any]) -> list[Any]:
        shuffle.shuffle(lines)
        return lines

    with case.server() as server:
        server.mangle = mangle
        server.faults_of = {
            "upload": [503],
            "create": [503],
            "list": [503],
            "retrieve": [502, None, "lost"],
            "download": [503, ("cut", 50)],
            "delete": [500],
        }
        server.file_ready_after = 1
        embedder = case.embedder(server, tmp_path)
        job = embedder.submit(TEXTS, **case.options)
        counts = job.wait(60, poll=0.01)
        assert (counts.done, job.status) == (30, "collected")
        assert server.created == 1
        assert server.paid_texts == dict.fromkeys(TEXTS, 1)
        found = embedder.embed(TEXTS)
        assert found.usage.cache_hits == 30
        assert np.array_equal(found.vectors, case.embedder(server, cache=False).embed(TEXTS).vectors)
        assert {path.suffix for path in (tmp_path / "embedkit-jobs-v1").iterdir()} <= {".db", ".lock"}
        embedder.close()
