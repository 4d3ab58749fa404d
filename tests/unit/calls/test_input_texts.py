"""Input texts: which are refused before anything is sent, and which kinds of lists are accepted."""

import asyncio
import enum
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from support.embedders import MINILM, fake_embedder, needs_local_model, openai_embedder, texts_sent
from support.openai_client import expected
from support.openai_server import OpenAIServer
from support.rows import check_rows

from embedkit_core import Embedder, Usage
from embedkit_core.common.errors import InputError
from embedkit_core.testing import FakeServer

BAD = {
    "nothing": "",
    "white space": " \t\r\n",
    "wide space": "\u3000\u2003",
    "None": None,
    "bytes": b"text",
    "a number": 7,
    "not a number": float("nan"),
    "a list": ["text"],
    "half a pair": "fine until \ud800",
}
WIDTHS = {"openai": 1536, "fake": 8, "local": 384}
each_provider = pytest.mark.parametrize("name", ["openai", "fake", pytest.param("local", marks=needs_local_model)])


@contextmanager
def provider(name: str) -> Iterator[tuple[Embedder, Any]]:
    """Yield an embedder, and a function that returns the number of its requests."""
    if name == "openai":
        with OpenAIServer() as server:
            yield openai_embedder(server), lambda: len(server.requests)
    elif name == "fake":
        server = FakeServer()
        yield Embedder("fake:any", base_url=server.url, cache=False), lambda: len(server.received)
    else:
        yield Embedder(MINILM, cache=False), lambda: 0


@each_provider
def test_no_texts_return_no_vectors_and_send_no_request(name):
    with provider(name) as (empty, requests):
        for nothing in ([], (), iter(())):
            result = empty.embed(nothing)
            assert (result.vectors.shape, result.vectors.dtype) == ((0, WIDTHS[name]), np.float32)
            assert (result.usage, result.truncated, dict(result.failed)) == (Usage(), (), {})
            assert result.to_lists() == []
        assert empty.embed_documents([]).shape == (0, WIDTHS[name])
        assert requests() == 0


def test_no_texts_of_a_model_of_unknown_width_have_no_columns_until_it_is_known():
    with OpenAIServer(dimensions=768) as server:
        learning = openai_embedder(server, "some-model")
        assert (learning.embed_documents([]).shape, learning.dimensions) == ((0, 0), None)
        learning.embed_query("x")
        assert (learning.embed_documents([]).shape, learning.dimensions) == ((0, 768), 768)


@each_provider
def test_invalid_texts_are_named_by_position_and_nothing_is_sent(name):
    def check(kind):
        with provider(name) as (embedder, requests):
            for input_type in ("document", "query"):
                with pytest.raises(InputError, match=r"2 of 4 texts .* at positions 1, 3") as caught:
                    embedder.embed(["fine", BAD[kind], "good", BAD[kind]], input_type=input_type)
                assert caught.value.indices == (1, 3)
                assert "fine" not in str(caught.value)
            with pytest.raises(InputError) as alone:
                embedder.embed_query(BAD[kind])
            assert alone.value.indices == (0,)
            assert (requests(), embedder.usage) == (0, Usage())

    check_rows(BAD, check)


@each_provider
async def test_the_async_methods_refuse_the_same_texts(name):
    with provider(name) as (embedder, requests):
        with pytest.raises(InputError) as caught:
            await embedder.aembed_documents(["fine", ""])
        assert caught.value.indices == (1,)
        with pytest.raises(InputError):
            await embedder.aembed_query(" ")
        with pytest.raises(InputError, match=r"got a single str.*Pass a list of texts, or use the method for one text"):
            await embedder.aembed("text")
        assert (await embedder.aembed([])).vectors.shape == (0, WIDTHS[name])
        assert requests() == 0


@each_provider
def test_a_value_that_is_no_list_of_texts_is_refused(name):
    def check(texts):
        with provider(name) as (embedder, requests):
            with pytest.raises(InputError, match="expected a list of texts") as caught:
                embedder.embed(texts)
            assert caught.value.indices == ()
            assert isinstance(caught.value, ValueError)
            with pytest.raises(InputError, match="expected a list of texts"):
                asyncio.run(embedder.aembed(texts))
            assert requests() == 0

    check_rows(["text", b"text", "", None, 7], check)


def test_many_invalid_texts_are_counted_and_the_first_are_listed():
    server = FakeServer()
    with pytest.raises(InputError) as caught:
        Embedder("fake:any", base_url=server.url, cache=False).embed([*[""] * 30, "fine", None, "\udfff"])
    assert caught.value.indices == (*range(30), 31, 32)
    message = str(caught.value)
    assert "empty or whitespace only at positions 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 20 more" in message
    assert "not a string (got NoneType) at position 31" in message
    assert "lone surrogate" in message
    assert message.endswith("zero vectors. Pass strings, such as the page_content or text of each document.")


class Codec:
    """An object with an encode method that is no string."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]


def test_an_object_with_an_encode_method_is_no_text():
    server = FakeServer()
    with pytest.raises(InputError, match=r"not a string \(got Codec\) at position 1") as caught:
        Embedder("fake:any", base_url=server.url, cache=False).embed(["fine", Codec()])
    assert (caught.value.indices, server.received) == ((1,), [])


class Animal(enum.StrEnum):
    CAT = "cat"

    def __str__(self):
        return "Animal.CAT"


def test_a_string_enum_is_sent_as_its_value():
    server = FakeServer()
    fake_embedder(server).embed([Animal.CAT])
    assert server.received[0].texts == ("cat",)


def test_every_iterable_of_strings_is_accepted():
    with OpenAIServer() as server:
        embedder = openai_embedder(server)
        texts = ["a", "b", "a"]
        for given in (texts, tuple(texts), iter(texts), (text for text in texts), np.array(texts)):
            assert np.array_equal(embedder.embed_documents(given), expected(texts))
        assert np.array_equal(asyncio.run(embedder.aembed_documents(iter(texts))), expected(texts))
        assert set(texts_sent(server)) == {"a", "b"}
        assert all(type(text) is str for request in server.requests for text in request.body["input"])
