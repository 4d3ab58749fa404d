"""Texts over the model's limit: truncated, refused or averaged, and never silently."""

import logging
from collections.abc import Iterator
from math import ceil

import numpy as np
import pytest
from support.embedders import (
    MINILM,
    long_text,
    needs_local_model,
    numbered,
    openai_embedder,
    reference_vectors,
    sentence_transformer,
    texts_sent,
)
from support.openai_replies import error, too_long
from support.openai_server import Fault, OpenAIServer, tokens_of, vector_of

from embedkit_core import Embedder, Usage
from embedkit_core.common.errors import BadRequestError, PartialFailureError, TextTooLongError

LIMIT = 20
MARGIN = 0.98
POLICIES = ["truncate", "error", "mean"]


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer(max_tokens_per_text=LIMIT) as running:
        yield running


def truncated(text: str) -> str:
    """Truncate by rule "fit-1": to the ratio of limit and count, less 2 %, until the text fits."""
    while (tokens := tokens_of(text)) > LIMIT:
        text = text[: int(len(text) * (LIMIT / tokens * MARGIN))]
    return text


def chunks(text: str, tokens: int | None = None, limit: int = LIMIT) -> list[str]:
    """Split by rule "mean-1": into equal chunks, and chunks that are still too long again."""
    tokens = tokens_of(text) if tokens is None else tokens
    if tokens <= limit:
        return [text]
    n = ceil(1 / (limit / tokens * MARGIN))
    edges = [len(text) * i // n for i in range(n + 1)]
    return [end for i in range(n) for end in chunks(text[edges[i] : edges[i + 1]], limit=limit)]


def mean(vectors: np.ndarray, weights: list[int]) -> np.ndarray:
    whole = sum(weight * vector.astype(np.float64) for weight, vector in zip(weights, vectors, strict=True))
    return whole / np.linalg.norm(whole)


def mean_of(text: str) -> np.ndarray:
    parts = chunks(text)
    return mean(np.array([vector_of(part) for part in parts]), [len(part.encode()) for part in parts])


def test_a_text_over_the_limit_is_truncated_and_listed(server):
    texts = ["short", long_text(50), "brief"]
    result = openai_embedder(server).embed(texts)
    assert result.truncated == (1,)
    assert texts[1].startswith(truncated(texts[1]))
    assert tokens_of(truncated(texts[1])) <= LIMIT
    assert np.array_equal(
        result.vectors, np.array([vector_of(text) for text in ("short", truncated(texts[1]), "brief")])
    )
    usage = result.usage
    assert (usage.texts, usage.sent, usage.retries, usage.requests) == (3, 3, 0, len(server.requests))
    assert usage.tokens == server.billed_tokens


@pytest.mark.parametrize("input_type", ["document", "query"])
def test_a_truncated_text_is_also_listed_on_a_cache_hit(server, tmp_path, input_type):
    texts = [long_text(50), "short", long_text(50)]
    with openai_embedder(server, cache=tmp_path) as caching:
        first = caching.embed(texts, input_type=input_type)
        sent = len(server.requests)
        again = [caching.embed(texts, input_type=input_type) for _ in range(2)]  # the last query comes from memory
    for result in (first, *again):
        assert result.truncated == (0, 2)
        assert np.array_equal(result.vectors, first.vectors)
    assert len(server.requests) == sent
    assert {result.usage for result in again} == {Usage(texts=3, cache_hits=2, duplicates=1)}


def test_one_warning_counts_the_truncated_texts_and_shows_none(server, caplog):
    caplog.set_level(logging.WARNING, logger="embedkit_core")
    embedder = openai_embedder(server)
    for mark in "ab":
        embedder.embed([long_text(50, mark), "short", long_text(60, mark)])
    (record,) = caplog.records
    assert record.getMessage().startswith("openai:text-embedding-3-small: 2 of 3 texts were truncated")
    assert "a0000" not in record.getMessage()


def test_the_mean_of_a_long_text_is_weighted_by_its_chunks_and_normalized(server):
    text = long_text(130) + " \U0001f600\U0001f600\U0001f600" * 5  # the end weighs more: four bytes per character
    result = openai_embedder(server, on_long_text="mean").embed(["short", text])
    parts = sorted(set(server.billed_texts) - {"short"}, key=text.index)
    assert "".join(parts) == text
    assert parts == chunks(text)
    assert np.array_equal(result.vectors[0], vector_of("short"))
    np.testing.assert_allclose(result.vectors[1], mean_of(text), atol=1e-6)
    assert np.linalg.norm(result.vectors[1].astype(np.float64)) == pytest.approx(1.0, abs=1e-6)
    assert (result.truncated, result.usage.sent) == ((), 2)
    assert result.usage.tokens == server.billed_tokens


def test_a_long_text_is_an_error_with_its_token_count_on_request(server):
    embedder = openai_embedder(server, on_long_text="error")
    with pytest.raises(TextTooLongError, match="has 50 tokens, over the limit of 20") as caught:
        embedder.embed([long_text(50)])
    assert (caught.value.tokens, caught.value.limit, caught.value.status) == (50, LIMIT, 400)
    assert "w0001" not in str(caught.value)
    with pytest.raises(PartialFailureError) as partly:
        embedder.embed(["short", long_text(70), "brief"])
    assert {p: (type(e), e.tokens) for p, e in partly.value.failed.items()} == {1: (TextTooLongError, 70)}
    assert np.array_equal(partly.value.result.vectors[[0, 2]], np.array([vector_of("short"), vector_of("brief")]))


def test_the_three_policies_do_not_share_cache_entries(server, tmp_path):
    def ask(policy: str) -> tuple[np.ndarray, int]:
        before = len(server.requests)
        with openai_embedder(server, cache=tmp_path, on_long_text=policy, on_error="return") as one:
            return one.embed_documents([long_text(50)]), len(server.requests) - before

    first = {policy: ask(policy) for policy in POLICIES}
    assert all(requests for _, requests in first.values())
    assert not np.array_equal(first["truncate"][0], first["mean"][0])
    assert np.isnan(first["error"][0]).all()
    for policy in ("truncate", "mean"):
        vectors, requests = ask(policy)
        assert requests == 0
        assert np.array_equal(vectors, first[policy][0])


@pytest.mark.parametrize("policy", POLICIES)
def test_many_long_texts_among_short_texts_get_the_right_vectors(server, policy):
    texts = [long_text(21 + n, f"m{n}-") if n % 5 == 0 else text for n, text in enumerate(numbered(200))]
    long = tuple(range(0, 200, 5))
    short = [n for n in range(200) if n % 5]
    result = openai_embedder(server, on_long_text=policy, on_error="return").embed(texts)
    assert np.array_equal(result.vectors[short], np.array([vector_of(texts[n]) for n in short]))
    assert result.truncated == (long if policy == "truncate" else ())
    assert {n: e.tokens for n, e in result.failed.items()} == ({n: 21 + n for n in long} if policy == "error" else {})
    for n in long:
        if policy == "truncate":
            assert np.array_equal(result.vectors[n], vector_of(truncated(texts[n])))
        elif policy == "mean":
            np.testing.assert_allclose(result.vectors[n], mean_of(texts[n]), atol=1e-6)
    assert result.usage.tokens == server.billed_tokens
    assert len(server.requests) < 400


@pytest.mark.parametrize("message", ["Input is too long for this model.", "exceeds the maximum sequence length"])
def test_without_a_token_count_a_text_is_shortened_by_a_quarter_until_accepted(server, message):
    refusal = Fault(status=400, body=error(message))
    server.fault_for(lambda texts, number: refusal if max(map(tokens_of, texts)) > LIMIT else None)
    text = long_text(50)
    result = openai_embedder(server).embed([text])
    tried = texts_sent(server)
    assert tried[0] == text
    assert [len(after) for after in tried[1:]] == [int(len(before) * 0.75) for before in tried[:-1]]
    assert tokens_of(tried[-1]) <= LIMIT < tokens_of(tried[-2])
    assert result.truncated == (0,)
    assert np.array_equal(result.vectors[0], vector_of(tried[-1]))


SERVERS = {  # status, message, and the most requests: fewer if the message has a token count
    "vLLM": (400, "This model's maximum context length is {limit} tokens. However, you requested {n} tokens", 6),
    "text-embeddings-inference": (413, "`inputs` must have less than {limit} tokens. Given: {n}", 6),
    "Ollama": (400, "the input length exceeds the context length", 9),
    "llama.cpp at its batch size": (
        500,
        "input ({n} tokens) is too large to process. increase the physical batch size (current batch size: {limit})",
        9,
    ),
    "llama.cpp at its context": (400, "input is larger than the max context size. skipping", 9),
}


@pytest.mark.parametrize("name", SERVERS)
def test_a_long_text_is_truncated_for_the_refusals_of_several_servers(name):
    status, words, requests = SERVERS[name]

    def refuse(texts: tuple[str, ...], number: int) -> Fault | None:
        n = max(map(tokens_of, texts))
        message = words.format(limit=LIMIT, n=n)
        return Fault(status=status, headers={"retry-after-ms": "1"}, body=error(message)) if n > LIMIT else None

    with OpenAIServer(api_key=None) as server:
        server.fault_for(refuse)
        embedder = openai_embedder(server, "some-model", api_key=None)
        result = embedder.embed(["short", long_text(50), "brief"])
        assert result.truncated == (1,)
        assert np.array_equal(result.vectors[0], vector_of("short", model="some-model"))
        assert len(server.requests) <= requests
        before = len(server.requests)
        embedder.embed(numbered(60))
        assert len(server.requests) <= before + 2  # short texts share requests as before


def test_a_single_character_that_is_too_long_is_an_error_and_no_endless_search():
    with OpenAIServer() as server:
        server.fault_for(lambda texts, number: Fault(status=400, body=error("maximum context length")))
        for policy in POLICIES:
            with pytest.raises(TextTooLongError):
                openai_embedder(server, on_long_text=policy).embed(["x" * 50])
        assert len(server.requests) < 150


def test_a_text_that_exceeds_the_request_limit_alone_is_truncated_too():
    with OpenAIServer(max_tokens_per_request=1000, max_tokens_per_text=2000) as server:
        result = openai_embedder(server).embed([long_text(1500), "short"])
        assert result.truncated == (0,)
        assert np.array_equal(result.vectors[1], vector_of("short"))


def test_a_refused_parameter_that_is_too_long_is_no_long_text():
    error = {"message": "'user' is too long: 80 > 64", "type": "invalid_request_error", "param": "user", "code": "x"}
    with OpenAIServer() as server:
        server.fault_for(lambda texts, n: Fault(status=400, body={"error": error}))
        with pytest.raises(BadRequestError, match="because of its field user"):
            openai_embedder(server, provider_options={"user": "u" * 80}).embed([f"text {i}" for i in range(200)])
        assert len(server.requests) == 1


# Local models, whose limit counts their special tokens


def local(policy: str, **options: object) -> Embedder:
    return Embedder(MINILM, **{"cache": False, "on_long_text": policy, **options})


def local_count(text: str) -> int:
    return len(sentence_transformer().tokenizer(text, truncation=False, verbose=False)["input_ids"])


LONG = "the quick brown fox jumps over the lazy dog " * 40


@needs_local_model
def test_a_local_model_truncates_and_the_result_lists_the_texts(tmp_path):
    with local("truncate", cache=tmp_path) as embedder:
        first, again = (embedder.embed(["short", LONG, "brief"]) for _ in range(2))
    assert first.truncated == again.truncated == (1,)
    np.testing.assert_allclose(first.vectors, reference_vectors(["short", LONG, "brief"]), atol=1e-6)
    assert np.array_equal(first.vectors, again.vectors)
    limit = sentence_transformer().max_seq_length
    assert first.usage.tokens == limit + local_count("short") + local_count("brief")
    assert (again.usage.cache_hits, again.usage.requests) == (3, 0)


@needs_local_model
def test_a_local_model_averages_the_chunks_of_a_long_text():
    with local("mean") as averaging:
        result = averaging.embed(["short", LONG])
    limit = sentence_transformer().max_seq_length
    n = ceil(1 / (limit / local_count(LONG) * MARGIN))
    edges = [len(LONG) * i // n for i in range(n + 1)]
    parts = [LONG[edges[i] : edges[i + 1]] for i in range(n)]
    assert all(local_count(part) <= limit for part in parts)
    np.testing.assert_allclose(
        result.vectors[1], mean(reference_vectors(parts), [len(part) for part in parts]), atol=1e-6
    )
    np.testing.assert_allclose(result.vectors[0], reference_vectors(["short"])[0], atol=1e-6)
    assert result.truncated == ()


@needs_local_model
def test_the_error_of_a_local_model_has_the_token_count_too():
    with local("error") as embedder, pytest.raises(PartialFailureError) as caught:
        embedder.embed(["short", LONG, LONG + "!"])
    counted = {position: failure.tokens for position, failure in caught.value.failed.items()}
    assert counted == {1: local_count(LONG), 2: local_count(LONG + "!")}
    assert {failure.limit for failure in caught.value.failed.values()} == {sentence_transformer().max_seq_length}
    for position, failure in caught.value.failed.items():
        assert f"has {counted[position]} tokens" in str(failure)
    assert "fox" not in str(caught.value)


@pytest.mark.parametrize(("tokens", "limit"), [(8042, 20), (10**9, 8000), (10**9, 1)])
@pytest.mark.parametrize("rule", ["mean", "truncate"])
def test_an_absurd_limit_in_a_refusal_costs_few_requests(rule, tokens, limit):
    text = long_text(4000)
    with OpenAIServer() as server:
        absurd = Fault(status=400, body=too_long(tokens, limit))
        server.fault_for(lambda texts, number: absurd if text in texts else None)
        result = openai_embedder(server, on_long_text=rule).embed(["short", text])
        sent = [each for each in texts_sent(server) if each not in ("short", text)]
    assert len(server.requests) < 25
    assert min(map(len, sent)) > len(text) / 20
    assert result.truncated == ((1,) if rule == "truncate" else ())


@pytest.mark.parametrize("body", [too_long(8042, 20), error("The text is too long.")])
def test_a_text_whose_pieces_are_all_refused_fails_after_few_requests(body):
    with OpenAIServer() as server:
        server.fault_for(lambda texts, number: None if texts == ("short",) else Fault(status=400, body=body))
        with pytest.raises(PartialFailureError) as failed:
            openai_embedder(server, on_long_text="mean", max_concurrency=1).embed(["short", long_text(8000)])
        assert isinstance(failed.value.failed[1], TextTooLongError)
    assert len(server.requests) < 200
