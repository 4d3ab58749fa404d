"""Pickles, copies, and spawned and forked processes: the same model and cache, and no API key by default."""

import copy
import json
import logging
import pickle
import subprocess
import sys
import textwrap
from decimal import Decimal

import pytest
from langchain_core.rate_limiters import InMemoryRateLimiter
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from support.caches import DictCache
from support.embedders import core_embedder, texts_sent
from support.limiters import LIMITERS
from support.openai_server import OpenAIServer, vector_of

from embedkit_core import AuthenticationError, ConfigurationError, Embedder
from langchain_embedkit import EmbedKitEmbeddings
from llamaindex_embedkit import EmbedKitEmbedding

OPENAI = "openai:text-embedding-3-small"
KEY = "sk-only-for-this-test"


@pytest.fixture
def server():
    with OpenAIServer(api_key=KEY) as running:
        yield running


def made(class_, server, **options):
    return class_(**{"model": OPENAI, "base_url": server.base_url, "api_key": KEY, "cache": False, **options})


def pickled_copy(model):
    return pickle.loads(pickle.dumps(model))


def test_an_embedder_made_from_the_arguments_in_a_job_has_the_same_vectors_and_account():
    info = {"dimensions": 64, "allowed_dimensions": range(1, 65), "usd_per_million": Decimal("0.5")}
    secrets = {"api_key": KEY, "headers": {"x-key": KEY}, "proxy": f"http://user:{KEY}@localhost:1"}
    for options in (
        {"model": "text-embedding-3-small", "dtype": "binary", "account": "team"},
        {"model": "mine", "base_url": "http://localhost:1/v1", "model_info": info, "query_prompt": "q: "},
        {"model": "voyage:voyage-4", "on_long_text": "mean", "provider_options": {"n": [1]}},
        {"model": "google:gemini-embedding-001", "task": "classification"},
    ):
        submitted = Embedder(**options, **secrets, cache=False)
        stored = json.dumps(submitted.job_arguments())
        restored = Embedder(**json.loads(stored), api_key=KEY, cache=False)
        assert restored.fingerprint == submitted.fingerprint
        assert restored.provider_account.digest(b"salt") == submitted.provider_account.digest(b"salt")
        assert KEY not in stored


def test_a_key_argument_is_not_pickled_and_is_missing_at_the_first_request(embedder_class, server, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert KEY.encode() not in pickle.dumps(made(embedder_class, server))
    with pytest.raises(AuthenticationError, match="OPENAI_API_KEY"):
        core_embedder(pickled_copy(made(embedder_class, server))).embed_query("a")
    at_openai = pickled_copy(embedder_class(model=OPENAI, api_key=KEY, cache=False))
    with pytest.raises(AuthenticationError, match="OPENAI_API_KEY"):
        core_embedder(at_openai).embed(["a"])
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    core_embedder(pickled_copy(made(embedder_class, server))).embed_query("a")
    assert len(server.requests) == 1


def test_a_key_argument_is_pickled_with_pickle_api_key(embedder_class, server, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    copied = pickled_copy(pickled_copy(made(embedder_class, server, pickle_api_key=True)))
    assert core_embedder(copied).embed_query("a").tolist() == vector_of("a").tolist()


def test_a_key_of_the_environment_is_never_pickled(embedder_class, server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    model = made(embedder_class, server, api_key=None, pickle_api_key=True)
    assert KEY.encode() not in pickle.dumps(model)
    assert core_embedder(pickled_copy(model)).embed_query("a").tolist() == vector_of("a").tolist()


def test_a_copy_keeps_its_address_in_another_environment(embedder_class, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    state = pickle.dumps(embedder_class(model=OPENAI, cache=False))
    here = core_embedder(pickle.loads(state))
    monkeypatch.setenv("OPENAI_BASE_URL", "http://elsewhere.example/v1")
    there = core_embedder(pickle.loads(state))
    assert there.provider.url == here.provider.url == "https://api.openai.com/v1"
    assert there.fingerprint == here.fingerprint == Embedder(OPENAI, base_url=here.provider.url).fingerprint
    assert there.space == here.space


def test_a_pickle_names_only_what_differs_from_the_defaults(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    _, (_, arguments, _) = Embedder(OPENAI, cache=False, max_retries=6, timeout=60, coordination=False).__reduce__()
    assert arguments == {
        "model": OPENAI,
        "base_url": "https://api.openai.com/v1",
        "cache": False,
        "timeout": 60,  # an int, and the default is a float
        "coordination": False,
    }


def test_langchain_shows_the_key_of_the_environment_as_a_secret(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for model in (made(EmbedKitEmbeddings, server, api_key=None), EmbedKitEmbeddings(model=OPENAI, cache=False)):
        for one in (model, copy.deepcopy(model), pickled_copy(model), model.model_copy(update={"timeout": 5.0})):
            assert one.api_key.get_secret_value() == KEY
            assert KEY not in repr(one)
            assert "api_key" not in one.model_fields_set


@pytest.mark.parametrize("limiter", [InMemoryRateLimiter(requests_per_second=1e6), *LIMITERS])
def test_a_limiter_is_shared_by_a_deep_copy_and_dropped_by_a_pickle(
    framework_class, server, limiter, caplog, monkeypatch
):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    model = made(framework_class, server, rate_limiter=limiter)
    copied = copy.deepcopy(model)
    assert copied.rate_limiter is limiter
    assert core_embedder(copied).rate_limiter is limiter
    core_embedder(copied).embed_query("a")
    with caplog.at_level(logging.WARNING, "embedkit_core"):
        other = pickled_copy(model)
    assert (other.rate_limiter, core_embedder(other).rate_limiter) == (None, None)
    assert "rate_limiter of openai:text-embedding-3-small cannot be pickled" in caplog.text
    core_embedder(other).embed_query("a")


class Shared:
    """A limiter that is the same in every process, like one in a database."""

    def acquire(self):
        return True


def test_a_limiter_that_can_be_pickled_is_pickled(embedder_class, server):
    copied = pickled_copy(made(embedder_class, server, rate_limiter=Shared()))
    assert isinstance(copied.rate_limiter, Shared)
    assert core_embedder(copied).rate_limiter is copied.rate_limiter


def test_a_custom_cache_is_shared_by_a_copy_and_cannot_be_pickled(embedder_class, server):
    cache = DictCache()
    model = made(embedder_class, server, cache=cache)
    core_embedder(copy.deepcopy(model)).embed_query("a")
    assert len(cache.rows) == 1
    with pytest.raises(ConfigurationError, match="an embedder with a cache object or a client cannot be pickled"):
        pickle.dumps(model)


def test_picklable_llamaindex_callbacks_are_pickled(server, monkeypatch, caplog):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    model = made(
        EmbedKitEmbedding, server, callback_manager=CallbackManager([TokenCountingHandler(tokenizer=str.split)])
    )
    copied = pickled_copy(model)
    copied.get_text_embedding("two words")
    unpicklable = CallbackManager([TokenCountingHandler(tokenizer=lambda text: text.split())])
    pickled_copy(made(EmbedKitEmbedding, server, callback_manager=unpicklable)).get_text_embedding("again")


SPAWNED = """
import multiprocessing, sys
from langchain_embedkit import EmbedKitEmbeddings
from llamaindex_embedkit import EmbedKitEmbedding

def embed(model):
    embed = getattr(model, "embed_documents", None) or model.get_text_embedding_batch
    rows = embed(["a", "b"])
    return model.embedder.model, len(rows), model.usage.requests, model.usage.cache_hits

if __name__ == "__main__":
    options = {"model": "text-embedding-3-small", "base_url": sys.argv[1], "cache": sys.argv[2]}
    models = [EmbedKitEmbeddings(**options), EmbedKitEmbedding(**options)]
    embed(models[0])
    with multiprocessing.get_context(sys.argv[3]).Pool(2) as pool:
        for found in pool.map(embed, models):
            print(*found)
"""

PIPELINE = """
import asyncio, sys
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.schema import TextNode
from llamaindex_embedkit import EmbedKitEmbedding

if __name__ == "__main__":
    model = EmbedKitEmbedding(model="text-embedding-3-small", base_url=sys.argv[1], cache=sys.argv[2])
    model.get_query_embedding("text 0")  # its threads are there when the workers start
    pipeline = IngestionPipeline(transformations=[model])
    nodes = [TextNode(text=f"text {i}") for i in range(10)]
    if sys.argv[3] == "run":
        embedded = pipeline.run(nodes=nodes, num_workers=2)
    else:
        embedded = asyncio.run(pipeline.arun(nodes=nodes, num_workers=2))
    assert all(len(node.embedding) == 1536 for node in embedded)
    print(*[node.text.split()[1] for node in embedded])
"""


def run(program, server, folder, *arguments):
    path = folder / "program.py"
    path.write_text(textwrap.dedent(program))
    done = subprocess.run(
        [sys.executable, str(path), server.base_url, str(folder / "cache"), *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_a_worker_has_the_same_model_and_cache(server, tmp_path, monkeypatch, method):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    found = run(SPAWNED, server, tmp_path, method)
    langchains, llamaindexs = (line.split() for line in found)
    assert langchains[:2] == llamaindexs[:2] == ["openai:text-embedding-3-small", "2"]
    assert llamaindexs[2:] == ["0", "2"]
    assert len(server.requests) == 1


@pytest.mark.parametrize("method", ["run", "arun"])
def test_an_ingestion_pipeline_embeds_in_worker_processes(server, tmp_path, monkeypatch, method):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert run(PIPELINE, server, tmp_path, method) == [" ".join(map(str, range(10)))]
    assert sorted(texts_sent(server)) == [f"text {i}" for i in range(10)]
    assert run(PIPELINE, server, tmp_path, method)
    assert len(texts_sent(server)) == 10
