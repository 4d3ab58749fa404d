"""Ray Data with real workers: right rows, the usage of all workers, killed workers and batches that kill them."""

import logging
import os
import signal
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import ray
from support.embedders import numbered
from support.openai_client import expected
from support.openai_server import Fault
from support.ray_cluster import local_ray
from support.ray_workers import worker_pids

from embedkit_core import ConfigurationError, Embedder, track_usage
from embedkit_core.fleet.ray import embed
from embedkit_core.fleet.ray.dataset import PATIENCE, _cpus_for
from embedkit_core.fleet.ray.driver import driver
from embedkit_core.fleet.ray.ledger import Life

DIMENSIONS = 8
IN_FLIGHT, REQUEST_TEXTS = 2, 25
pytestmark = [
    pytest.mark.timeout(240),
    # Files and processes that Ray 2.53 leaves open.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def _ray():
    with local_ray():
        yield


@pytest.fixture
def embedder(server, tmp_path):
    """An embedder at the local server."""
    options = {"dimensions": DIMENSIONS, "max_concurrency": IN_FLIGHT, "max_batch_texts": REQUEST_TEXTS}
    return Embedder("openai:text-embedding-3-small", base_url=server.base_url, cache=tmp_path, **options)


def dataset(texts):
    return ray.data.from_items([{"id": n, "text": text} for n, text in enumerate(texts)])


def check(embedded, texts):
    """Check the rows of a dataset of these texts, in any order."""
    rows = embedded.take_batch(len(texts) + 1)
    assert sorted(rows["id"]) == list(range(len(texts)))
    assert rows["vector"].dtype == np.float32
    np.testing.assert_allclose(
        rows["vector"], expected([texts[n] for n in rows["id"]], dimensions=DIMENSIONS), atol=1e-6
    )


def test_all_rows_are_right_and_the_driver_has_the_usage_of_all_workers(server, embedder):
    texts, reports = numbered(1000), []
    with track_usage() as tracked:
        lazy = embed(dataset(texts), "text", embedder, workers=2, block_rows=100, progress=reports.append)
    assert not server.requests
    embedded = lazy.materialize()
    assert embedder.usage.tokens == server.billed_tokens == tracked.tokens
    assert (embedder.usage.texts, embedder.usage.sent, tracked.sent) == (1000, 1000, 1000)
    assert embedder.usage.cost_usd == tracked.cost_usd > 0
    assert max(server.billed_texts.values()) == 1
    check(embedded, texts)
    assert (reports[-1].finished, reports[-1].texts, reports[-1].done) == (True, 1000, 1000)
    lazy.materialize()  # runs again, and the cache has everything
    assert embedder.usage.tokens == server.billed_tokens
    assert embedder.usage.cache_hits == 1000


def test_a_killed_worker_loses_at_most_its_requests_in_flight(server, embedder):
    texts, killed = numbered(1200), []

    @server.fault_for
    def kill_one(_, number):
        if number == 12:
            killed.append(worker_pids()[0])
            os.kill(killed[0], signal.SIGKILL)

    server.latency = 0.1
    check(embed(dataset(texts), "text", embedder, workers=2, block_rows=300).materialize(), texts)
    assert killed
    again = Counter(server.billed_texts) - Counter(texts)
    assert again.total() <= IN_FLIGHT * REQUEST_TEXTS


def test_a_batch_that_kills_its_workers_ends_the_run_with_ray_s_defaults(server, embedder):
    killed = []

    @server.fault_for
    def kill(texts, _):
        if "deadly" in texts:
            killed.extend(worker_pids())
            os.kill(killed[-1], signal.SIGKILL)

    run = embed(dataset(["deadly"]), "text", embedder, workers=1, max_restarts=-1, max_task_retries=-1)
    with pytest.raises(ray.exceptions.RayError, match="A worker died 3 times during a batch of 1 text"):
        run.materialize()
    assert len(killed) == 3


def test_errors_of_texts_go_to_a_column(server, embedder):
    texts = ["a", "", "b", None]
    options = {"error_column": "error", "progress": (reports := []).append}
    rows = embed(dataset(texts), "text", embedder, workers=1, **options).take_batch(5)
    by_id = dict(zip(rows["id"].tolist(), rows["error"].tolist(), strict=True))
    assert {n: error is None for n, error in by_id.items()} == {0: True, 1: False, 2: True, 3: False}
    assert np.isnan(rows["vector"][rows["id"] == 1]).all()
    assert (reports[-1].finished, reports[-1].done, reports[-1].failed) == (True, 4, 2)


def test_an_error_reaches_the_driver_without_texts_and_vectors(server, embedder):
    server.fault_for(lambda texts, _: Fault(status=400) if "refused" in texts else None)
    with pytest.raises(ray.exceptions.RayError, match="PartialFailureError") as raised:
        embed(dataset(["accepted", "refused"]), "text", embedder, workers=1).materialize()
    assert "1 of 2 texts failed" in str(raised.value)
    assert len(ray.cloudpickle.dumps(raised.value)) < 20_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workers": 0}, "workers: must be an integer of at least 1"),
        ({"workers": None}, "workers: must be an integer of at least 1"),
        ({"threads": 0}, "threads: must be an integer of at least 1"),
        ({"block_rows": 0}, "block_rows: must be an integer of at least 1"),
        ({"column": ""}, "text_column: must be the name of a column"),
        ({"column": "txt"}, "column: there is no column 'txt'. The columns are 'id', 'text'"),
        ({"progress": 1}, "progress: must be True"),
        ({"dataset": [{"text": "a"}]}, r"dataset: must be a ray.data.Dataset \(got list\)"),
        ({"concurrency": 2}, "concurrency: is set by embed. Use workers="),
        ({"batch_size": 10}, "batch_size: is set by embed. Use block_rows="),
        ({"block_row": 10}, "block_row: is no argument of embed; did you mean 'block_rows'"),
    ],
)
def test_invalid_arguments_are_refused(embedder, arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        embed(**{"dataset": dataset(["a"]), "column": "text", "embedder": embedder, "workers": 1, **arguments})


def test_a_run_may_wait_for_a_low_limit_longer_than_by_ray_s_default(embedder):
    waits = embed(dataset(["a"]), "text", embedder, workers=1).context
    own = dataset(["a"])
    own.context.execution_no_progress_timeout_s = 60
    assert getattr(waits, "execution_no_progress_timeout_s", PATIENCE) == PATIENCE
    assert embed(own, "text", embedder, workers=1).context.execution_no_progress_timeout_s == 60


def test_a_budget_that_workers_would_not_keep_is_refused(embedder):
    with (
        track_usage(budget_tokens=10),
        pytest.raises(ConfigurationError, match="budget of a block does not limit workers"),
    ):
        embed(dataset(["a"]), "text", embedder, workers=1)


@pytest.mark.parametrize(
    ("cpus", "workers", "expected"),
    [
        ([2], 2, 0.25),
        ([2], 8, 0.125),  # one CPU is left
        ([1], 2, 0.0),
        ([0, 2], 8, 0.125),  # a head without CPUs has no workers
        ([0], 8, 0.25),  # machines are added when they are needed
    ],
)
def test_workers_leave_a_cpu_to_read_with(monkeypatch, cpus, workers, expected):
    nodes = [{"Alive": True, "Resources": {"CPU": float(n)} if n else {}} for n in cpus]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    assert _cpus_for(workers) == expected


def test_a_cluster_of_machines_without_a_shared_cache_is_warned_of(embedder, monkeypatch, caplog):
    nodes = ray.nodes()
    monkeypatch.setattr(ray, "nodes", lambda: [*nodes, {**nodes[0], "NodeID": "2"}, {"Alive": False}])
    with caplog.at_level(logging.WARNING, "embedkit_core"):
        embed(dataset(["a"]), "text", embedder, workers=1)
    assert "has 2 machines, and the cache is a folder on each" in caplog.text
    caplog.clear()
    shared = Embedder(embedder.model, cache=["folder", "redis://localhost:1/0"])
    with caplog.at_level(logging.WARNING, "embedkit_core"):
        embed(dataset(["a"]), "text", shared, workers=1)
    assert not caplog.text


def test_a_process_may_start_ray_again():
    first = driver()
    ray.shutdown()
    with local_ray():
        assert driver() is not first  # Ray ends a process that calls an actor of another session
        assert ray.get(driver().ledger.begin.remote(Life("run", "worker", "process"), b"batch")) == 1


PROGRAM = """
import ray
from embedkit_core.fleet.ray.dataset import _cpus_for
from embedkit_core.fleet.ray.driver import driver
from embedkit_core.fleet.ray.ledger import Life
ray.init("local", num_cpus=1, include_dashboard=False, logging_level="error")
print(ray.get(driver().ledger.begin.remote(Life("run", "worker", "process"), b"batch")))
"""


def test_the_end_of_a_process_logs_no_error():
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=True)
    assert (ended.stdout, ended.stderr) == ("1\n", "")
