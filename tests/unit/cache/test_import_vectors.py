"""Import of vectors from elsewhere into the cache, if they are those of the model."""

import asyncio
import logging
import threading
import time

import numpy as np
import pytest
from langchain_classic.embeddings import CacheBackedEmbeddings
from langchain_classic.storage import LocalFileStore
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_openai import OpenAIEmbeddings
from support.embedders import MINILM, core_embedder, needs_local_model, numbered, openai_embedder, texts_sent
from support.openai_server import vector_of
from support.rows import check_rows

from embedkit_core import AuthenticationError, ConfigurationError, Embedder, EmbedKitError, InputError
from embedkit_core.calls.import_vectors import ImportReport
from embedkit_core.testing import FakeServer, fake_vector
from langchain_embedkit import EmbedKitEmbeddings

MODEL = "text-embedding-3-small"
sha1_is_the_default = pytest.mark.filterwarnings("ignore:Using default key encoder:UserWarning")


@pytest.fixture
def new(server, tmp_path):
    return openai_embedder(server, cache=tmp_path / "new")


def model_vectors(texts, **options):
    """Return the vectors of the model, as lists."""
    return [vector_of(text, **options).tolist() for text in texts]


def of_another_model(texts):
    return model_vectors(texts, model="text-embedding-ada-002")


def old_cache(folder, server=None, **options):
    """Return LangChain's cache; without a server it can only be read."""
    given = {"base_url": server.base_url, "api_key": "test-key"} if server else {}
    asked = (
        OpenAIEmbeddings(model=MODEL, check_embedding_ctx_length=False, **given)
        if server
        else DeterministicFakeEmbedding(size=1)
    )
    return CacheBackedEmbeddings.from_bytes_store(asked, LocalFileStore(folder), **options)


# LangChain's cache


@sha1_is_the_default
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"namespace": MODEL},
        {"namespace": MODEL, "key_encoder": "sha256"},
        {"key_encoder": "blake2b"},
        {"key_encoder": lambda text: text.encode().hex()},
    ],
    ids=["sha1", "sha1 namespace", "sha256 namespace", "blake2b", "own"],
)
def test_a_langchain_cache_folder_is_imported_without_paying_again(embedder_class, server, tmp_path, options):
    texts = numbered(50)
    written = old_cache(tmp_path / "old", server, **options).embed_documents(texts)
    before = len(texts_sent(server))
    vectors = old_cache(tmp_path / "old", **options).document_embedding_store.mget(texts)
    new = embedder_class(model=MODEL, base_url=server.base_url, api_key="test-key", cache=tmp_path / "new")
    assert new.import_vectors(texts, vectors, verify=0) == ImportReport(imported=50, missing=0, doubtful=())
    rows = core_embedder(new).embed_documents(texts)
    assert rows.tolist() == np.array(written, dtype=np.float32).tolist()
    assert len(texts_sent(server)) == before
    assert new.usage.sent == 0


@sha1_is_the_default
def test_another_namespace_has_nothing_to_import(server, tmp_path, new):
    old_cache(tmp_path / "old", server, namespace=MODEL).embed_documents(["a"])
    vectors = old_cache(tmp_path / "old", namespace="other").document_embedding_store.mget(["a"])
    assert new.import_vectors(["a"], vectors) == ImportReport(imported=0, missing=1, doubtful=())


@sha1_is_the_default
async def test_a_source_can_be_read_async(server, tmp_path, new):
    written = old_cache(tmp_path / "old", server).embed_documents(numbered(5))
    vectors = await old_cache(tmp_path / "old").document_embedding_store.amget(numbered(5))
    assert new.import_vectors(numbered(5), vectors).imported == 5
    assert (await new.aembed_documents(numbered(5))).tolist() == written


def test_texts_and_vectors_can_be_iterators(new):
    taken = new.import_vectors((text for text in numbered(5)), (vector_of(text) for text in numbered(5)))
    assert taken.imported == 5


# Requests


def test_three_texts_are_embedded_as_a_check_and_their_new_vectors_are_kept(server, new):
    texts = numbered(100)
    old = np.array(model_vectors(texts), dtype=np.float32) * np.float32(
        1 + 1e-6
    )  # OpenAI itself answers not quite the same
    new.import_vectors(texts, old)
    assert texts_sent(server) == [texts[0], texts[49], texts[99]]
    old[[0, 49, 99]] = [vector_of(texts[i]) for i in (0, 49, 99)]
    assert new.embed_documents(texts).tolist() == old.tolist()
    assert (new.usage.texts, new.usage.sent, new.usage.cache_hits) == (103, 3, 100)


def test_unverified_vectors_need_neither_a_key_nor_a_provider(tmp_path):
    nowhere = {"base_url": "http://127.0.0.1:1/v1", "api_key": "none", "cache": tmp_path}
    new = EmbedKitEmbeddings(model=MODEL, **nowhere)
    new.import_vectors(["a"], model_vectors(["a"]), verify=0)
    assert new.embed_documents(["a"]) == model_vectors(["a"])
    assert new.embed_query("a") == model_vectors(["a"])[0]


def test_a_missing_vector_is_paid_for_when_it_is_embedded(server, new):
    texts = numbered(10)
    vectors = [None if position % 2 else vector for position, vector in enumerate(model_vectors(texts))]
    assert new.import_vectors(texts, vectors, verify=1) == ImportReport(imported=5, missing=5, doubtful=())
    assert new.embed_documents(texts).tolist() == model_vectors(texts)
    assert texts_sent(server) == [texts[0], *texts[1::2]]


def test_a_second_import_sends_nothing_and_changes_nothing(server, new):
    texts = numbered(10)
    for _ in range(2):
        assert new.import_vectors(texts, model_vectors(texts)) == ImportReport(imported=10, missing=0, doubtful=())
    assert len(texts_sent(server)) == 3
    assert new.embed_documents(texts).tolist() == model_vectors(texts)


def test_importing_nothing_sends_no_request(server, new):
    assert new.import_vectors([], []) == ImportReport(imported=0, missing=0, doubtful=())
    assert new.import_vectors(["a"], [None]) == ImportReport(imported=0, missing=1, doubtful=())
    assert server.requests == []


@pytest.mark.parametrize("verify", [1, 2, 50])
def test_verify_sets_the_number_of_checked_vectors(server, new, verify):
    new.import_vectors(numbered(10), model_vectors(numbered(10)), verify=verify)
    assert len(texts_sent(server)) == min(verify, 10)


def test_duplicates_are_one_text_and_any_of_their_vectors_is_used(server, new):
    texts, vectors = ["a", "b", "a", "c", "b"], model_vectors(["a", "b", "a", "c", "b"])
    assert new.import_vectors(texts, [None, *vectors[1:3], None, None]) == ImportReport(
        imported=2, missing=1, doubtful=()
    )
    assert new.embed_documents(texts).tolist() == vectors
    assert sorted(texts_sent(server)) == ["a", "b", "c"]


# Refusals


def nothing_was_imported(server, new, texts):
    """Return True if the cache holds the texts of the check, with the vectors of the provider, and nothing else."""
    checked = set(texts_sent(server))
    return {text for text in texts if new.explain(text).served_from != "provider"} == checked and (
        new.embed_documents(texts).tolist() == model_vectors(texts)
    )


def test_vectors_of_another_model_of_the_same_width_are_refused(server, new):
    texts = numbered(20)
    message = r"position 0 differs from the vector of openai:text-embedding-3-small for .*another model"
    with pytest.raises(ConfigurationError, match=message):
        new.import_vectors(texts, of_another_model(texts))
    assert nothing_was_imported(server, new, texts)


def test_one_vector_of_another_model_in_the_sample_refuses_all(server, new):
    texts = numbered(20)
    with pytest.raises(ConfigurationError, match=r"position 19 .*Nothing was imported"):
        new.import_vectors(texts, [*model_vectors(texts[:-1]), *of_another_model(texts[-1:])])
    assert nothing_was_imported(server, new, texts)


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_vectors_of_another_length_are_refused_inside_and_outside_the_sample(server, new, factor):
    vectors = [vector_of(text) for text in numbered(5)]
    vectors[1] = vectors[1] * np.float32(factor)
    with pytest.raises(ConfigurationError, match=f"at position 1 has length {factor:.4g}, .* have length 1"):
        new.import_vectors(numbered(5), vectors)
    assert nothing_was_imported(server, new, numbered(5))


def test_vectors_of_the_opposite_direction_are_refused(server, new):
    with pytest.raises(ConfigurationError, match="cosine -1"):
        new.import_vectors(numbered(5), [-vector_of(text) for text in numbered(5)])
    assert nothing_was_imported(server, new, numbered(5))


def test_zero_vectors_are_refused(server, new):
    with pytest.raises(InputError, match="position 3 contains only zeros") as refused:
        new.import_vectors(numbered(5), [vector_of(text) * (n != 3) for n, text in enumerate(numbered(5))], verify=0)
    assert refused.value.indices == (3,)
    assert nothing_was_imported(server, new, numbered(5))


def test_documents_are_refused_as_queries_of_an_asymmetric_model(tmp_path):
    server = FakeServer()
    new = Embedder("fake:any", base_url=server.url, cache=tmp_path)
    documents, queries = ([fake_vector("x", role=role, model="any")] for role in ("document", "query"))
    with pytest.raises(ConfigurationError, match="another input type"):
        new.import_vectors(["x"], documents, input_type="query")
    new.import_vectors(["x"], queries, input_type="query")
    assert new.explain("x", input_type="query").served_from != "provider"
    assert new.explain("x").served_from == "provider"
    assert new.embed_query("x").tolist() == queries[0].tolist()


@pytest.mark.parametrize("model", [MODEL, "nomic-embed-text:latest"], ids=["known", "unknown"])
def test_vectors_of_another_width_are_refused(server, tmp_path, model):
    new = openai_embedder(server, model, cache=tmp_path)
    with pytest.raises(ConfigurationError, match=r"position 0 has 256 dimensions, but .* has 1536"):
        new.import_vectors(numbered(5), model_vectors(numbered(5), dimensions=256))
    assert new.explain(numbered(5)[1]).served_from == "provider"


def test_vectors_must_have_the_configured_width(server, tmp_path):
    new = openai_embedder(server, dimensions=256, cache=tmp_path)
    with pytest.raises(ConfigurationError, match=r"has 1536 dimensions, but .* has 256"):
        new.import_vectors(["a"], model_vectors(["a"]))
    assert server.requests == []
    assert new.import_vectors(["a"], model_vectors(["a"], dimensions=256)).imported == 1


def test_vectors_of_several_widths_are_refused_if_the_width_is_unknown(server, tmp_path):
    new = openai_embedder(server, "nomic-embed-text:latest", cache=tmp_path)
    with pytest.raises(ConfigurationError, match="position 1 has 3 dimensions"):
        new.import_vectors(["a", "b"], [[1.0, 0.0], [1.0, 0.0, 0.0]], verify=0)
    assert server.requests == []


def test_an_invalid_vector_is_named_by_its_position(server, new):
    def check(bad):
        with pytest.raises(InputError, match="position 2 is not one row of finite numbers") as refused:
            new.import_vectors(["a", "b", "c"], [*model_vectors(["a", "b"]), bad])
        assert refused.value.indices == (2,)
        assert {new.explain(text).served_from for text in "abc"} == {"provider"}

    check_rows([[float("nan")] * 1536, [1e300] * 1536, [], 7.0, [[1.0] * 1536], ["x"] * 1536, "no"], check)
    assert nothing_was_imported(server, new, ["a", "b", "c"])


def test_another_number_of_vectors_than_texts_is_refused(server, new):
    def check(n):
        with pytest.raises(InputError, match=rf"got {n} for 2 texts"):
            new.import_vectors(["a", "b"], model_vectors(numbered(n)))
        assert server.requests == []

    check_rows([0, 1, 3], check)


def test_a_single_string_and_an_empty_text_are_refused(new):
    with pytest.raises(InputError, match="a list of texts"):
        new.import_vectors("ab", model_vectors(["a", "b"]))
    with pytest.raises(InputError, match="position 1"):
        new.import_vectors(["a", " "], model_vectors(["a", " "]))


def test_an_import_without_a_cache_is_refused(embedder_class):
    new = embedder_class(model=MODEL, api_key="k", cache=False)
    with pytest.raises(ConfigurationError, match=r"cache: import_vectors needs a cache \(got False\)"):
        new.import_vectors(["a"], model_vectors(["a"]))


def test_an_invalid_argument_of_import_vectors_is_named(embedder_class, tmp_path):
    new = embedder_class(model=MODEL, api_key="k", cache=tmp_path)
    with pytest.raises(ConfigurationError, match="verify"):
        new.import_vectors(["a"], model_vectors(["a"]), verify=-1)
    with pytest.raises(ConfigurationError, match="input_type"):
        new.import_vectors(["a"], model_vectors(["a"]), input_type="passage")


@pytest.mark.parametrize("on_error", ["raise", "return"])
def test_an_error_of_the_check_is_raised_as_it_is(server, tmp_path, on_error):
    new = openai_embedder(server, api_key="wrong", cache=tmp_path, on_error=on_error)
    with pytest.raises(AuthenticationError):
        new.import_vectors(["a"], model_vectors(["a"]))
    assert new.explain("a").served_from == "provider"


# Texts that are not imported


def test_a_text_that_may_exceed_the_limit_is_not_imported_and_is_paid_for(server, new):
    over, under = "é" * 4097, "e" * 8192
    texts = ["a", over, under, over]
    assert new.import_vectors(texts, model_vectors(texts), verify=0) == ImportReport(
        imported=2, missing=0, doubtful=(1,)
    )
    assert new.embed_documents(texts).tolist() == model_vectors(texts)
    assert texts_sent(server) == [over]


def test_a_prompt_counts_towards_the_limit(server, tmp_path):
    new = openai_embedder(server, document_prompt="passage: ", cache=tmp_path)
    assert new.import_vectors(["e" * 8192], model_vectors(["any"]), verify=0).doubtful == (0,)


def test_a_missing_vector_is_not_doubtful(new):
    assert new.import_vectors(["e" * 9000], [None]) == ImportReport(imported=0, missing=1, doubtful=())


# Concurrent writers, slow and failing caches


class CountingCache(dict):
    """A cache that counts concurrent writers."""

    def __init__(self):
        self.writers, self.max_writers = 0, 0

    def get_many(self, keys):
        return {key: self[key] for key in keys if key in self}

    def set_many(self, items):
        self.writers += 1
        self.max_writers = max(self.max_writers, self.writers)
        time.sleep(0.002)
        self.update(items)
        self.writers -= 1

    def close(self): ...


def test_an_import_and_the_engine_never_write_at_the_same_time():
    server = FakeServer(dimensions=4)
    cache = CountingCache()
    embedder = Embedder("fake:m", base_url=server.url, cache=cache)
    texts = [f"t{i}" for i in range(40)]
    vectors = Embedder("fake:m", base_url=server.url, cache=False).embed(texts).vectors
    importing = threading.Thread(
        target=lambda: [embedder.import_vectors([t], [v], verify=0) for t, v in zip(texts, vectors, strict=True)]
    )
    importing.start()
    for i in range(20):
        embedder.embed([f"other {i}"])
    importing.join()
    assert cache.max_writers == 1
    assert len(cache) == 60


def test_an_import_does_not_replace_cached_vectors():
    server = FakeServer(dimensions=4)
    embedder = Embedder("fake:m", base_url=server.url, cache=CountingCache())
    texts = [f"t{i}" for i in range(10)]
    right = embedder.embed(texts).vectors
    embedder.import_vectors(texts, right[::-1], verify=0)
    assert (embedder.embed(texts).vectors == right).all()


@pytest.mark.parametrize(
    "model", ["any-model", pytest.param(MINILM, marks=needs_local_model)], ids=["compatible server", "local"]
)
def test_a_long_text_of_a_model_with_an_unknown_limit_is_doubtful(server, tmp_path, model):
    options = {} if model == MINILM else {"base_url": server.base_url, "api_key": "test-key"}
    embedder = Embedder(model, cache=tmp_path, **options)
    taken = embedder.import_vectors(["short", "long " * 100], [[1.0] * 384] * 2, verify=0)
    assert (taken.imported, taken.doubtful) == (1, (1,))


class SlowCache(CountingCache):
    def get_many(self, keys):
        time.sleep(0.2)
        return super().get_many(keys)


async def test_a_slow_custom_cache_does_not_block_the_loop():
    server = FakeServer()
    embedder = Embedder("fake:m", base_url=server.url, cache=SlowCache())
    work = asyncio.create_task(embedder.aembed_query("a"))
    ticks = 0
    while not work.done():
        await asyncio.sleep(0.005)
        ticks += 1
    assert ticks > 5


def test_a_failing_cache_raises_a_library_error_on_import(caplog):
    class Failing(CountingCache):
        def set_many(self, items):
            raise OSError("/secret/path")

    server = FakeServer()
    embedder = Embedder("fake:m", base_url=server.url, cache=Failing())
    with caplog.at_level(logging.ERROR), pytest.raises(EmbedKitError, match="could not be written") as failed:
        embedder.import_vectors(["a"], [[1.0] * 8], verify=0)
    assert "/secret" not in str(failed.value)
    assert failed.value.__context__ is None


@pytest.mark.parametrize("vectors", [5, None, 1.5])
def test_vectors_that_are_not_a_list_are_refused(server, tmp_path, vectors):
    with (
        openai_embedder(server, cache=tmp_path) as embedder,
        pytest.raises(InputError, match=r"vectors: expected a vector for each text \(got (int|NoneType|float)\)"),
    ):
        embedder.import_vectors(["a"], vectors)
