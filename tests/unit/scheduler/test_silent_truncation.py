"""Texts over the limit at servers that truncate them without notice."""

from collections.abc import Iterator

import numpy as np
import pytest
from support.compatible_servers import CompatibleServer, InfinityServer
from support.embedders import long_text, numbered, openai_embedder, texts_sent
from support.openai_server import OpenAIServer, vector_of

from embedkit_core import Embedder, PartialFailureError, TextTooLongError
from embedkit_core.costs.tokens import estimate_tokens

LIMIT = 64
KNOWN = {"text_tokens": LIMIT}
DENSE = "x" * 4 * LIMIT  # one word, over the limit by the estimate only


@pytest.fixture
def server() -> Iterator[InfinityServer]:
    with InfinityServer() as running:
        yield running


def at(server: CompatibleServer, model: str = "infinity:m", **options) -> Embedder:
    options = {"base_url": server.base_url, "cache": False, "model_info": KNOWN, **options}
    return Embedder(model, **options)


def vector(text: str) -> np.ndarray:
    return vector_of(text, 384, 384, "m")


def test_a_text_with_more_words_than_tokens_are_allowed_is_truncated_before_it_is_sent(server, tmp_path):
    texts = ["short", long_text(100), "short too"]
    with at(server, cache=tmp_path) as embedder:
        for _ in range(2):
            result = embedder.embed(texts)
            assert (result.truncated, result.maybe_truncated) == ((1,), ())
    [cut] = set(texts_sent(server)) - set(texts)
    assert len(texts_sent(server)) == 3
    assert texts[1].startswith(cut)
    assert 0.9 * LIMIT < len(cut.split()) <= LIMIT
    assert np.array_equal(result.vectors[1], vector(cut))


def test_a_text_that_is_certainly_too_long_is_an_error_on_request(server):
    embedder = at(server, on_long_text="error")
    with pytest.raises(PartialFailureError) as failed:
        embedder.embed(["fine", long_text(100), long_text(70, "b")])
    assert {p: (type(e), e.limit) for p, e in failed.value.failed.items()} == {
        1: (TextTooLongError, LIMIT),
        2: (TextTooLongError, LIMIT),
    }
    with pytest.raises(TextTooLongError, match="A text is longer than the model's limit"):
        embedder.embed_query(long_text(100))
    assert texts_sent(server) == ["fine"]


def test_the_mean_of_a_text_that_is_certainly_too_long_has_pieces_within_the_limit(server, tmp_path):
    text = long_text(500) + long_text(300, "y").replace(" ", "\u00e9")
    with at(server, on_long_text="mean", cache=tmp_path) as embedder:
        for _ in range(2):
            result = embedder.embed(["short", text])
            assert (result.truncated, result.maybe_truncated) == ((), ())
    pieces = sorted(set(texts_sent(server)) - {"short"}, key=text.index)
    assert "".join(pieces) == text
    assert max(estimate_tokens(piece, piece.encode()) for piece in pieces) <= LIMIT
    weighted = sum(vector(piece).astype(np.float64) * len(piece.encode()) for piece in pieces)
    np.testing.assert_allclose(result.vectors[1], weighted / np.linalg.norm(weighted), atol=1e-6)


@pytest.mark.parametrize("rule", ["truncate", "error", "mean"])
def test_a_text_that_may_be_too_long_is_sent_whole_and_named(server, tmp_path, rule):
    texts = ["short", DENSE, "short too", DENSE]
    with at(server, on_long_text=rule, cache=tmp_path) as embedder:
        for _ in range(2):
            result = embedder.embed(texts)
            assert (result.truncated, result.maybe_truncated, dict(result.failed)) == ((), (1, 3), {})
    assert sorted(texts_sent(server)) == sorted({*texts})
    assert np.array_equal(result.vectors[1], vector(DENSE))


@pytest.mark.parametrize("model", ["openai:m", "tei:m", "ollama:m", "lmstudio:m"])
def test_the_rule_holds_at_every_server_that_may_truncate_silently(model):
    with CompatibleServer() as server:
        result = at(server, model).embed([long_text(100), DENSE])
    assert (result.truncated, result.maybe_truncated) == ((0,), (1,))


@pytest.mark.parametrize("model", ["vllm:m", "azure:m"])
def test_a_server_that_refuses_long_texts_gets_them_whole(model):
    with CompatibleServer() as server:
        result = at(server, model, api_key="key").embed([long_text(100), DENSE])
        assert set(texts_sent(server)) == {long_text(100), DENSE}
    assert (result.truncated, result.maybe_truncated) == ((), ())


def test_an_unknown_limit_names_no_text(server):
    result = at(server, model_info={}).embed([long_text(100), DENSE])
    assert (result.truncated, result.maybe_truncated) == ((), ())


def test_a_counted_text_within_the_limit_is_never_named(monkeypatch):
    counts = {DENSE: LIMIT, long_text(50): LIMIT + 1}
    monkeypatch.setattr("embedkit_core.providers.openai.provider.OpenAI.count_tokens", lambda _, text: counts.get(text))
    with OpenAIServer() as server:
        info = {"text_tokens": LIMIT}
        result = openai_embedder(server, model_info=info).embed([DENSE, long_text(50), *numbered(5)])
    assert (result.truncated, result.maybe_truncated) == ((1,), ())
