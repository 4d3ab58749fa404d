"""A machine of a cluster that dies during a run of Ray Data: the others do its work."""

from collections import Counter

import pytest
import ray
from support.embedders import numbered
from support.openai_client import expected
from support.ray_cluster import local_machines

from embedkit_core import Embedder
from embedkit_core.fleet.ray import embed

IN_FLIGHT, REQUEST_TEXTS = 2, 25


@pytest.mark.timeout(240)
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_machine_that_dies_loses_at_most_the_requests_in_flight_of_its_workers(server, tmp_path):
    options = {"dimensions": 8, "max_concurrency": IN_FLIGHT, "max_batch_texts": REQUEST_TEXTS, "cache": tmp_path}
    embedder = Embedder("openai:text-embedding-3-small", base_url=server.base_url, **options)
    texts = numbered(1500)
    server.latency = 0.1
    with local_machines(2, 2) as (cluster, machines):

        @server.fault_for
        def kill_one(_, number):
            if number == 16:
                cluster.remove_node(machines.pop(), allow_graceful=False)

        rows = embed(ray.data.from_items(texts), "item", embedder, workers=2, block_rows=100).take_all()
    assert not machines[1:]
    vectors = dict(zip([row["item"] for row in rows], [row["vector"] for row in rows], strict=True))
    assert len(rows) == 1500
    assert [vectors[text] for text in texts] == pytest.approx(expected(texts, dimensions=8), abs=1e-6)
    assert (Counter(server.billed_texts) - Counter(texts)).total() <= 2 * IN_FLIGHT * REQUEST_TEXTS
