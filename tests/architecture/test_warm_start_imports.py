"""The modules that a process loads if the cache answers every text: no event loop, no SDK, no model, no engine."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from embedkit_core import Embedder

SETTINGS = {"model": "text-embedding-3-small", "dimensions": 8, "api_key": "x", "base_url": "http://127.0.0.1:9/v1"}
TEXTS = ["one text", "another text"]

SDKS = {"openai", "voyageai", "cohere", "botocore", "google.genai", "aiohttp", "httpx", "httpx2", "requests"}
LOCAL = {"torch", "transformers", "sentence_transformers", "tokenizers", "tiktoken", "fastembed", "model2vec"}
ENGINE = {
    f"embedkit_core.engine.{name}" for name in ("runtime.account", "runtime.engine", "scheduler.scheduler")
}  # threads and requests

MODULES = """
cache cache.access cache.codec cache.disk cache.disk.cache cache.disk.connections cache.disk.folder cache.disk.pool
cache.disk.schema cache.embedder_cache cache.key cache.memory cache.opening cache.stats cache.urls calls calls.call
calls.call_info calls.estimate calls.explain calls.failures calls.import_vectors calls.lookup calls.plan
calls.query_hit calls.rows calls.shared_budgets calls.verify_cache calls.waiting common common.errors
common.float_lists common.fork_safety common.formatting common.money common.plugins common.redis_clients
common.results common.threads common.types common.usage common.validation common.vectors config config.base
config.cached_variants config.coordination config.output_spec config.pickling config.resolve config.roles coordination
coordination.opening coordination.port coordination.sliding_window costs costs.amounts costs.billing costs.budget
costs.meter costs.prices costs.tokens costs.tracker embedder engine engine.batching engine.rate_limits
engine.rate_limits.limiter engine.runtime engine.runtime.process engine.scheduler engine.scheduler.items
engine.scheduler.long_text observability observability.hooks observability.progress providers providers.base
providers.catalogue providers.catalogue.known_models providers.catalogue.rows providers.http providers.http.address
providers.http.connection providers.http.provider providers.openai providers.openai.base providers.openai.provider
providers.openai.servers providers.openai.tokenizer providers.registry providers.secrets
"""
CORE = {"embedkit_core", *(f"embedkit_core.{name}" for name in MODULES.split())}
LANGCHAIN = {
    *CORE,
    *(f"embedkit_core.{name}" for name in ("adapters", "adapters.arguments", "adapters.base")),
    "langchain_embedkit",
    *(f"langchain_embedkit.{name}" for name in ("arguments", "embeddings", "usage")),
}

WARM_START = """
import importlib, json, sys
baseline, package, name, settings, texts = json.loads(sys.argv[1])
for module in baseline:
    importlib.import_module(module)
before = set(sys.modules)
embedder = getattr(importlib.import_module(package), name)(**settings)
assert len(embedder.embed_documents(texts)) == len(texts)
assert len(embedder.embed_query(texts[0])) == settings["dimensions"]
loaded = sorted(set(sys.modules) - before)
assert embedder.usage.requests == 0, embedder.usage
print(json.dumps(loaded))
"""


@pytest.mark.parametrize(
    ("package", "name", "baseline", "expected"),
    [
        ("embedkit_core", "Embedder", [], CORE),
        # LangChain loads asyncio and requests itself; the baseline is the class that the adapter derives from.
        ("langchain_embedkit", "EmbedKitEmbeddings", ["langchain_core.embeddings.embeddings"], LANGCHAIN),
    ],
    ids=["core", "langchain"],
)
def test_a_warm_start_loads_these_modules_and_no_others(package, name, baseline, expected, tmp_path):
    with Embedder(**SETTINGS, cache=tmp_path) as embedder:
        unit = [[1.0] + [0.0] * 7, [0.0] * 7 + [1.0]]
        assert embedder.import_vectors(TEXTS, unit, verify=0).imported == len(TEXTS)
    given = [baseline, package, name, {**SETTINGS, "cache": str(tmp_path), "max_retries": 0}, TEXTS]
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", WARM_START, json.dumps(given)],
        capture_output=True, text=True, check=False, timeout=100, env=dict(os.environ),
    )  # fmt: skip
    assert (run.returncode, run.stderr) == (0, "")
    loaded = set(json.loads(run.stdout))
    tops = {module.partition(".")[0] for module in loaded}
    assert not tops & {"asyncio", *SDKS, *LOCAL}
    assert not loaded & ENGINE
    ours = {module for module in loaded if module.partition(".")[0] in ("embedkit_core", package)}
    assert (sorted(ours - expected), sorted(expected - ours)) == ([], []), "(loaded and not expected, not loaded)"


def test_the_listed_engine_modules_exist():
    """A renamed module must not make the test above pass."""
    assert [module for module in sorted(ENGINE) if importlib.util.find_spec(module) is None] == []
