"""Local models: vectors, prompts, identity of a model folder, and threads."""

import asyncio
import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from support.embedders import (
    MINILM,
    WEIGHTS,
    copied_model,
    needs_local_model,
    numbered,
    reference_vectors,
    sentence_transformer,
)

from embedkit_core import Embedder, Usage
from embedkit_core.common.errors import ConfigurationError

pytestmark = needs_local_model

TEXTS = ["the cat sits on the mat", "a query about cats", "Ünïcode \U0001f408 und 猫", "x", "two\nlines", "word " * 30]
PROMPTS = {"query": "query: ", "document": "passage: "}


def asked(folder: Path | str, cache: Path, texts: list[str] = TEXTS) -> Usage:
    with Embedder(f"local:{folder}", cache=cache) as local:
        return local.embed(texts).usage


def test_vectors_are_those_of_sentence_transformers():
    with Embedder(MINILM, cache=False) as local:
        result = local.embed(TEXTS)
        assert local.dimensions == 384
    assert (result.vectors.dtype, result.vectors.shape) == (np.float32, (len(TEXTS), 384))
    np.testing.assert_allclose(result.vectors, reference_vectors(TEXTS), atol=1e-6)
    counts = [len(ids) for ids in sentence_transformer().tokenizer(TEXTS)["input_ids"]]
    assert result.usage == Usage(texts=len(TEXTS), sent=len(TEXTS), requests=1, tokens=sum(counts))
    assert result.usage.cost_usd == 0


def test_many_texts_keep_their_order():
    texts = [f"{text} {'long ' * (n % 8)}" for n, text in enumerate(numbered(100))]
    with Embedder(MINILM, cache=False) as local:
        result = local.embed(texts)
    np.testing.assert_allclose(result.vectors, reference_vectors(texts), atol=1e-6)
    assert result.usage.requests == 2  # one with a single text first, then the others


def test_a_query_of_a_symmetric_local_model_hits_the_document_entry(tmp_path):
    with Embedder(MINILM, cache=tmp_path) as local:
        documents = local.embed_documents(TEXTS)
        queries = local.embed(TEXTS, input_type="query")
        assert local.explain("x").key == local.explain("x", input_type="query").key
    assert queries.usage == Usage(texts=len(TEXTS), cache_hits=len(TEXTS))
    assert np.array_equal(queries.vectors, documents)


def test_a_model_with_prompts_embeds_queries_and_documents_differently(tmp_path):
    with copied_model(prompts=PROMPTS) as folder, Embedder(f"local:{folder}", cache=tmp_path) as local:
        documents, queries = (local.embed(TEXTS, input_type=kind) for kind in ("document", "query"))
        again = [local.embed(TEXTS, input_type=kind).usage for kind in ("document", "query")]
        assert local.explain("x").key != local.explain("x", input_type="query").key
        itself = sentence_transformer(str(folder))
        expected_documents = itself.encode_document(TEXTS, normalize_embeddings=True)
        expected_queries = itself.encode_query(TEXTS, normalize_embeddings=True)
    assert (documents.usage.sent, queries.usage.sent) == (len(TEXTS), len(TEXTS))
    assert again == [Usage(texts=len(TEXTS), cache_hits=len(TEXTS))] * 2
    assert not np.allclose(documents.vectors, queries.vectors, atol=1e-3)
    np.testing.assert_allclose(documents.vectors, expected_documents, atol=1e-6)
    np.testing.assert_allclose(queries.vectors, expected_queries, atol=1e-6)


@pytest.mark.parametrize("name", ["document", "passage", "corpus"])
def test_a_document_prompt_is_found_under_each_of_its_names(name):
    with copied_model(prompts={name: "passage: "}) as folder, Embedder(f"local:{folder}", cache=False) as local:
        assert local.explain("x").request_body["prompt"] == "passage: "
        assert "prompt" not in local.explain("x", input_type="query").request_body


def test_a_users_prompt_has_priority_over_the_models():
    with (
        copied_model(prompts=PROMPTS) as folder,
        Embedder(f"local:{folder}", cache=False, query_prompt="find: ", document_prompt="") as local,
    ):
        np.testing.assert_allclose(local.embed_query("cats"), reference_vectors(["find: cats"])[0], atol=1e-6)
        np.testing.assert_allclose(local.embed_documents(["cats"]), reference_vectors(["cats"]), atol=1e-6)


# Identity of a model


def test_a_moved_model_folder_keeps_its_cache_entries(tmp_path):
    with copied_model() as folder:
        first = asked(folder, tmp_path)
        moved = folder.rename(folder.with_name("moved"))
        second = asked(moved, tmp_path)
    assert (first.sent, second.sent, second.cache_hits) == (len(TEXTS), 0, len(TEXTS))


@pytest.fixture(scope="module")
def changed_weights():
    """MiniLM with one changed weight."""
    with TemporaryDirectory() as parent, copied_model() as folder:
        changed = Path(parent) / "model"
        shutil.copytree(folder, changed)
        with (changed / WEIGHTS).open("r+b") as file:
            file.seek(-4, 2)
            file.write(np.float32(0.5).tobytes())
        yield changed


def keys(folder: Path | str) -> tuple[str, str]:
    with Embedder(f"local:{folder}", cache=False) as local:
        return local.explain("x").key, local.space


def test_a_copy_has_the_key_and_the_space_of_the_original():
    with copied_model() as folder:
        assert keys(folder) == keys(MINILM.removeprefix("local:"))


def test_changed_weights_are_another_model(changed_weights, tmp_path):
    assert set(keys(changed_weights)).isdisjoint(keys(MINILM.removeprefix("local:")))
    with copied_model() as folder:
        asked(folder, tmp_path)
    assert asked(changed_weights, tmp_path).sent == len(TEXTS)


@pytest.mark.parametrize(
    "name", ["config_sentence_transformers.json", "sentence_bert_config.json", "1_Pooling/config.json"]
)
def test_a_changed_configuration_is_another_model(name):
    with copied_model() as folder:
        before = keys(folder)
        config = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(config | {"comment": "changed"}))
        assert set(keys(folder)).isdisjoint(before)


def test_a_changed_file_changes_the_keys_of_an_open_embedder():
    with copied_model() as folder, Embedder(f"local:{folder}", cache=False) as local:
        before = local.explain("x").key
        (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 64, "do_lower_case": false}')
        assert keys(folder)[0] != before


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("local:/no/such/folder", {}, "No model '/no/such/folder' on this machine"),
        ("local:.", {}, "has no modules.json"),
        ("local:no-such-model", {}, "No model 'no-such-model' on this machine"),
        ("thenlper/gte-large", {}, "services have it: .*'fireworks:thenlper/gte-large'"),
        (MINILM, {"dimensions": 100}, r"^dimensions: .* does not offer 100 dimensions; it offers 384"),
        (MINILM, {"base_url": "http://localhost/v1"}, "base_url: not supported by the model"),
        (MINILM.removeprefix("local:"), {}, "is a folder. Use 'local:"),
    ],
)
def test_invalid_settings_are_refused_before_the_model_is_loaded(model, options, message):
    with pytest.raises(ConfigurationError, match=message):
        Embedder(model, cache=False, **options)


# Threads


async def test_the_callers_event_loop_runs_while_the_model_works():
    ticks = 0

    async def heart() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.005)
            ticks += 1

    async with Embedder(MINILM, cache=False) as local:
        await local.aembed_query("loaded")
        beating = asyncio.create_task(heart())
        await local.aembed_documents([f"{n} {'word ' * 40}" for n in range(100)])
        beating.cancel()
    assert ticks >= 10


def model_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "embedkit-model"}


def test_all_callers_share_one_model_on_one_thread():
    before = model_threads()
    with copied_model() as folder:
        embedders = [Embedder(f"local:{folder}", cache=False) for _ in range(3)]
        with ThreadPoolExecutor(6) as pool:
            jobs = [pool.submit(embedders[n % 3].embed_documents, [f"{n} {text}" for text in TEXTS]) for n in range(6)]
            answers = [job.result() for job in jobs]
        started = model_threads() - before
        for one in embedders:
            one.close()
    assert len(started) == 1
    for n, vectors in enumerate(answers):
        np.testing.assert_allclose(vectors, reference_vectors([f"{n} {text}" for text in TEXTS]), atol=1e-6)
    started.pop().join(timeout=10)
    assert not model_threads() - before


def test_a_closed_embedder_can_be_used_again():
    with Embedder(MINILM, cache=False) as local:
        first = local.embed_query("again")
        local.close()
        assert np.array_equal(local.embed_query("again"), first)


def test_a_replaced_model_folder_is_loaded_again(tmp_path):
    """In one process, the new key never gets a vector of the replaced model."""
    with copied_model() as folder:
        first = Embedder(f"local:{folder}", cache=tmp_path)
        before = first.embed(["the quick brown fox"]).vectors[0]
        pooling = folder / "1_Pooling" / "config.json"
        config = json.loads(pooling.read_text(encoding="utf-8"))
        config |= {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}
        pooling.write_text(json.dumps(config), encoding="utf-8")
        after = Embedder(f"local:{folder}", cache=tmp_path).embed(["the quick brown fox"])
        assert after.usage.cache_hits == 0
        assert np.allclose(after.vectors, reference_vectors(["the quick brown fox"], str(folder)), atol=1e-6)
        assert not np.allclose(after.vectors[0], before, atol=1e-2)
