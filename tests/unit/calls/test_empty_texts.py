"""Empty texts with `on_empty_text="zero"`: zero vectors that are neither sent nor cached."""

import asyncio
import contextlib

import numpy as np
import pytest
from support.embedders import fake_embedder, openai_embedder, texts_sent
from support.openai_server import OpenAIServer

from embedkit_core import Embedder, InputError, PartialFailureError, ProviderError, track_usage
from embedkit_core.common.vectors import NUMPY_DTYPES
from embedkit_core.testing import FakeServer

TEXTS = ["", "a", " \n", "b", "a", "\u3000"]
EMPTY = (0, 2, 5)
FULL = [1, 3, 4]
UNKNOWN = "openai:some-model"  # a model whose width only a reply tells


@pytest.fixture
def embedder(server, tmp_path):
    return openai_embedder(server, cache=tmp_path, on_empty_text="zero")


def check(vectors, expected):
    """Check the rows of TEXTS against the vectors of "a", "b", "a"."""
    assert not vectors[list(EMPTY)].any()
    assert np.array_equal(vectors[FULL], expected)


def test_empty_texts_get_zero_vectors_and_are_neither_sent_nor_cached(server, embedder):
    result = embedder.embed(TEXTS)
    check(result.vectors, openai_embedder(server).embed_documents(["a", "b", "a"]))
    assert (result.empty, dict(result.failed)) == (EMPTY, {})
    assert texts_sent(server)[:2] == ["a", "b"]
    again = embedder.embed(TEXTS)
    assert (again.usage.cache_hits, again.usage.empty, again.usage.sent) == (2, 3, 0)
    assert embedder.estimate(TEXTS).cache_hits == 2
    backend = embedder.vector_cache.backend
    assert len(backend.get_many([bytes.fromhex(embedder.explain(t).key) for t in ("a", "b")])) == 2


def test_usage_and_progress_add_up_with_empty_texts(server):
    told = []
    embedder = openai_embedder(server, on_empty_text="zero", progress=told.append)
    with track_usage() as tracked:
        usage = embedder.embed(TEXTS).usage
    for one in (usage, embedder.usage, tracked.usage):
        assert (one.texts, one.sent, one.duplicates, one.empty) == (6, 2, 1, 3)
        assert one.texts == one.cache_hits + one.duplicates + one.coalesced + one.sent + one.failed + one.empty
    assert "3 empty" in str(usage)
    assert usage.to_dict()["empty"] == 3
    assert (told[-1].done, told[-1].texts) == (6, 6)


async def test_every_method_gives_zero_vectors(embedder):
    row = embedder.embed_documents(["a"])[0]
    assert not embedder.embed_query(" ").any()
    assert embedder.embed_query("").shape == row.shape
    assert not (await embedder.aembed_query("")).any()
    check(await embedder.aembed_documents(TEXTS), embedder.embed_documents(["a", "b", "a"]))
    check(np.array(list(embedder.embed_iter(TEXTS))), embedder.embed_documents(["a", "b", "a"]))
    rows = [row async for row in embedder.aembed_iter(TEXTS)]
    check(np.array(rows), embedder.embed_documents(["a", "b", "a"]))
    assert not embedder.embed_documents(["", " "]).any()


def test_the_adapters_give_zero_vectors_as_lists(framework_class, server):
    adapter = framework_class(
        model="openai:text-embedding-3-small",
        api_key=server.api_key,
        base_url=server.base_url,
        cache=False,
        on_empty_text="zero",
        dimensions=256,
    )
    is_langchain = hasattr(adapter, "embed_documents")
    many = adapter.embed_documents if is_langchain else adapter.get_text_embedding_batch
    one = adapter.embed_query if is_langchain else adapter.get_query_embedding
    rows = many(TEXTS)
    assert rows[0] == rows[2] == one("") == [0.0] * 256
    assert rows[1] == rows[4]
    assert any(rows[1])
    assert texts_sent(server) == ["a", "b"]
    assert type(adapter)(**{**adapter.model_dump(), "api_key": server.api_key, "on_empty_text": "error"}).embedder


@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
def test_a_zero_vector_has_the_dtype_and_the_code_of_zeros(dtype):
    vector = Embedder("voyage:voyage-4", api_key="unused", cache=False, dtype=dtype, on_empty_text="zero").embed_query(
        ""
    )
    assert vector.dtype == NUMPY_DTYPES[dtype]
    assert len(vector) == (128 if "binary" in dtype else 1024)
    assert set(vector.tolist()) == {{"uint8": 128, "binary": -128}.get(dtype, 0)}


def test_the_binary_dtypes_have_the_same_bits_for_an_empty_text():
    bits = []
    for dtype in ("binary", "ubinary"):
        vector = fake_embedder(FakeServer(), dtype=dtype, on_empty_text="zero").embed_query("")
        bits.append(np.unpackbits(vector.view(np.uint8) ^ np.uint8(0x80 if dtype == "binary" else 0)))
    assert not np.any(bits)


def test_the_option_is_not_in_the_key(server, tmp_path):
    one, other = (openai_embedder(server, cache=tmp_path, on_empty_text=value) for value in ("error", "zero"))
    assert one.fingerprint == other.fingerprint
    assert one.explain("a").key == other.explain("a").key


def test_the_width_of_an_unknown_model_comes_from_another_text_or_an_earlier_call():
    with OpenAIServer(dimensions=768) as server:
        embedder = openai_embedder(server, UNKNOWN, on_empty_text="zero")
        with pytest.raises(InputError, match=r"width of openai:some-model is unknown.*Set dimensions=") as caught:
            embedder.embed(["", " "])
        assert (caught.value.indices, server.requests, embedder.usage.texts) == ((0, 1), [], 0)
        with pytest.raises(InputError, match="Set dimensions="):
            asyncio.run(embedder.aembed_query(""))
        assert embedder.embed(["", "a"]).vectors.shape == (2, 768)
        assert embedder.embed_query("").shape == (768,)
        assert openai_embedder(server, UNKNOWN, on_empty_text="zero", dimensions=4).embed_query("").shape == (4,)


def test_a_stream_gets_the_width_of_its_empty_texts_from_its_other_texts():
    texts = ["", " ", "a", *[""] * 3000]
    with OpenAIServer(dimensions=8) as server:
        rows = list(openai_embedder(server, UNKNOWN, on_empty_text="zero").embed_iter(texts))
        assert (len(rows), {row.shape for row in rows}) == (3003, {(8,)})
        assert [index for index, row in enumerate(rows) if row.any()] == [2]


async def test_an_async_stream_gets_the_width_of_its_empty_texts_from_its_other_texts():
    async def source():
        for text in ["", " ", "a", *[""] * 3000]:
            yield text
            await asyncio.sleep(0)

    with OpenAIServer(dimensions=8) as server:
        embedder = openai_embedder(server, UNKNOWN, on_empty_text="zero")
        rows = [row async for row in embedder.aembed_iter(source())]
        assert (len(rows), {row.shape for row in rows}) == (3003, {(8,)})
        assert [index for index, row in enumerate(rows) if row.any()] == [2]


async def test_an_empty_text_at_the_end_of_an_async_stream_waits_for_the_width():
    held = asyncio.Event()

    async def source():
        yield "a"
        await held.wait()  # the first text is in flight, and no chunk after it contains a text
        for _ in range(3000):
            yield ""

    with OpenAIServer(dimensions=8) as server:
        server.hold()
        embedder = openai_embedder(server, UNKNOWN, on_empty_text="zero")

        async def release():
            await asyncio.to_thread(server.wait_for_requests, 1)
            held.set()
            await asyncio.sleep(0)
            server.release()

        task = asyncio.create_task(release())
        rows = [row async for row in embedder.aembed_iter(source())]
        await task
        assert (len(rows), {row.shape for row in rows}) == (3001, {(8,)})


def test_a_stream_of_empty_texts_of_unknown_width_is_refused():
    with OpenAIServer(dimensions=8) as server:
        embedder = openai_embedder(server, UNKNOWN, on_empty_text="zero")
        with pytest.raises(InputError, match="Set dimensions=") as caught:
            list(embedder.embed_iter(["", " "]))
        assert caught.value.indices == (0,)

        async def collect():
            return [row async for row in embedder.aembed_iter(["", " "])]

        with pytest.raises(InputError, match="Set dimensions="):
            asyncio.run(collect())


def test_other_invalid_texts_are_still_refused(embedder, server):
    with pytest.raises(InputError, match=r"1 of 3 texts .* not a string \(got NoneType\) at position 1\."):
        embedder.embed(["", None, "a"])
    assert not server.requests


def test_the_error_for_an_empty_text_names_the_option(embedder_class, server):
    model = embedder_class(model="openai:text-embedding-3-small", api_key="x", base_url=server.base_url, cache=False)
    embedder = model if isinstance(model, Embedder) else model.embedder
    with pytest.raises(InputError, match=r"at position 1\. Remove empty texts, or set on_empty_text='zero'"):
        embedder.embed(["a", ""])
    with pytest.raises(InputError, match="set on_empty_text='zero'"):
        list(embedder.embed_iter(["", "a"]))
    with pytest.raises(InputError) as caught:
        embedder.embed(["a", None])
    assert "on_empty_text" not in str(caught.value)


def test_empty_texts_do_not_hide_that_all_other_texts_failed():
    server = FakeServer()
    server.rejected_texts |= {"bad", "worse"}
    embedder = fake_embedder(server, on_empty_text="zero")
    with pytest.raises(ProviderError) as caught:
        embedder.embed(["", "bad", "worse"])
    assert (caught.value.usage.failed, caught.value.usage.empty) == (2, 1)
    with pytest.raises(PartialFailureError) as partial:
        embedder.embed(["", "bad", "good"])
    assert partial.value.result.empty == (0,)
    assert not partial.value.result.vectors[0].any()
    result = fake_embedder(server, on_empty_text="zero", on_error="return").embed(["", "bad", "good"])
    assert ([*result.failed], result.empty, bool(np.isnan(result.vectors[1]).all())) == ([1], (0,), True)


def test_estimates_imports_and_verification_leave_empty_texts_out(embedder, server):
    estimate = embedder.estimate(TEXTS)
    assert (estimate.texts, estimate.unique_texts, estimate.texts_to_send) == (6, 2, 2)
    vectors = openai_embedder(server).embed_documents(["a", "b", "a"])
    rows = [np.zeros(1536), vectors[0], None, vectors[1], None, [1.0]]
    report = embedder.import_vectors(TEXTS, rows)
    assert (report.imported, report.missing, report.doubtful) == (2, 0, ())
    verified = embedder.verify_cache(TEXTS)
    assert (verified.cached, [*verified.cosines]) == (2, [1, 3])
    with pytest.raises(InputError, match="empty: its vector is zero"):
        embedder.explain("")


def test_the_option_is_checked_and_travels_with_pickles_and_copies(embedder):
    import pickle

    with contextlib.closing(pickle.loads(pickle.dumps(embedder))) as copied:
        assert not copied.embed_query("").any()
    assert not embedder.without_cache().embed_query("").any()
    with pytest.raises(ValueError, match="on_empty_text: must be one of 'error', 'zero'"):
        Embedder("openai:text-embedding-3-small", api_key="x", on_empty_text="skip")
