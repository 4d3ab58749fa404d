"""The cache key: what it covers, what it omits, and that it never changes."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.golden import CASES, key

from embedkit_core import Embedder
from embedkit_core.cache.key import key_parts, key_prefix
from embedkit_core.calls.plan import plan_call
from embedkit_core.testing import FakeServer, fake_vector

GOLDEN = json.loads((Path(__file__).parents[1] / "fixtures" / "golden_keys.json").read_text(encoding="utf-8"))
TEXTS = st.lists(st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda t: not t.isspace()), max_size=30)


@pytest.mark.parametrize("name", CASES)
def test_a_committed_key_never_changes(name):
    """With a changed key every cached text is paid for again: increase the key version and read the old keys."""
    assert key(name) == GOLDEN[name]


def test_every_golden_case_is_still_there():
    assert set(GOLDEN) == set(CASES)


def test_keys_differ_only_where_the_request_differs():
    same = {"a document", "a query of a symmetric model is its document", "the default dimensions, named"}
    same |= {"the provider's own host, named", "a document beside a query prompt"}
    assert len({GOLDEN[name] for name in same}) == 1
    elsewhere = {"Bedrock, Cohere 4 in another region": "Bedrock, Cohere 4, a document"}
    elsewhere["Azure, the older route of the deployment"] = "Azure, the v1 endpoint"
    elsewhere["Azure, the deployment in a project"] = "Azure, the v1 endpoint"
    assert all(GOLDEN[name] == GOLDEN[other] for name, other in elsewhere.items())
    others = [GOLDEN[name] for name in GOLDEN if name not in same | elsewhere.keys()]
    assert len(set(others)) == len(others)
    assert not set(others) & {GOLDEN[name] for name in same}


def test_settings_that_do_not_change_vectors_are_not_in_the_key():
    base = Embedder("openai:text-embedding-3-small", api_key="one", cache=False)
    other = Embedder(
        "openai:text-embedding-3-small",
        api_key="two",
        cache=False,
        max_concurrency=3,
        max_batch_texts=7,
        max_retries=0,
        timeout=1.0,
        on_error="return",
    )
    assert base.explain("x").key == other.explain("x").key


def test_a_field_at_its_neutral_value_does_not_change_the_key():
    parts = {"provider": "p", "endpoint": "", "wire": {"model": "m"}, "long_text": "server"}
    assert key_prefix(key_parts(**parts)) == key_prefix(key_parts(**parts, after={"cut": None, "normalize": False}))
    assert key_prefix(key_parts(**parts)) != key_prefix(key_parts(**parts, after={"cut": 256}))


@given(TEXTS)
def test_a_plan_requests_each_distinct_text_once_and_maps_it_to_its_positions(texts):
    plan = plan_call(texts, b"prefix")
    assert len(set(plan.keys)) == len(plan.keys) == len(set(texts))
    assert [plan.texts[i] for i in plan.source] == texts
    assert [texts[i] for i in plan.first] == plan.texts


@given(st.text(st.characters(codec="utf-8"), min_size=1), st.text(st.characters(codec="utf-8"), min_size=1))
def test_two_texts_share_a_key_only_if_they_are_equal(one, two):
    if not one.isspace() and not two.isspace():
        keys = {plan_call([t], b"prefix").keys[0] for t in (one, two)}
        assert len(keys) == len({one, two})


def test_queries_and_documents_of_an_asymmetric_model_have_separate_entries(tmp_path):
    """Two requests for a text with two input types, then none."""
    server = FakeServer(asymmetric=True)
    embedder = Embedder("fake:model", base_url=server.url, cache=tmp_path)
    for _ in range(2):
        document = embedder.embed_documents(["one text"])[0]
        query = embedder.embed_query("one text")
        assert np.array_equal(document, fake_vector("one text", role="document", model="model"))
        assert np.array_equal(query, fake_vector("one text", role="query", model="model"))
    assert len(server.received) == 2


def test_a_query_of_a_symmetric_model_hits_the_document_entry(tmp_path):
    server = FakeServer(asymmetric=False)
    embedder = Embedder("fake:model", base_url=server.url, cache=tmp_path)
    document = embedder.embed_documents(["one text"])[0]
    assert np.array_equal(embedder.embed_query("one text"), document)
    assert len(server.received) == 1


def test_configurations_in_one_cache_never_get_each_others_vectors(tmp_path):
    server = FakeServer(asymmetric=False)
    settings = [
        {"model": "fake:one"},
        {"model": "fake:two"},
        {"model": "fake:one", "dimensions": 5},
        {"model": "fake:one", "document_prompt": "passage: "},
        {"model": "fake:one", "on_long_text": "mean"},
        {"model": "fake:one", "provider_options": {"task": "classification"}},
    ]
    for n, chosen in enumerate(settings, start=1):
        embedder = Embedder(**chosen, base_url=server.url, cache=tmp_path)
        vector = embedder.embed_documents(["one text"])[0]
        assert len(server.received) == n
        assert np.array_equal(vector, server.vector("one text", server.received[-1].body))
