"""Exact token counts with an installed vocabulary; a vocabulary is never downloaded."""

import importlib.util
from pathlib import Path

import pytest
from support.embedders import openai_embedder
from support.openai_server import OpenAIServer

from embedkit_core import Embedder
from embedkit_core.providers.openai import tokenizer as tokenizers


@pytest.fixture(autouse=True)
def fresh():
    tokenizers.tiktoken_counter.cache_clear()
    yield
    tokenizers.tiktoken_counter.cache_clear()


@pytest.fixture
def vocabulary(monkeypatch):
    """The vocabulary that LlamaIndex ships."""
    spec = importlib.util.find_spec("llama_index.core")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(Path(spec.origin).parent / "_static" / "tiktoken_cache"))


def test_tokens_are_counted_with_a_local_vocabulary(vocabulary):
    chosen = Embedder("openai:text-embedding-3-small", api_key="k", cache=False)
    assert chosen.provider.count_tokens("tiktoken is great!") == 6
    assert chosen.provider.count_tokens("<|endoftext|>") == 7  # text, not a special token
    other = Embedder("mistral:mistral-embed", api_key="k", cache=False)
    assert other.provider.count_tokens("tiktoken is great!") is None  # its tokenizer is another one


@pytest.mark.parametrize("folder", ["", "empty"])
def test_nothing_is_downloaded_without_a_local_vocabulary(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / folder) if folder else "")
    assert tokenizers.tiktoken_counter("cl100k_base") is None


def test_a_changed_vocabulary_is_not_used(tmp_path, monkeypatch, vocabulary):
    import hashlib

    url, _ = tokenizers._VOCABULARIES["cl100k_base"]
    (tmp_path / hashlib.sha1(url.encode()).hexdigest()).write_bytes(b"IQ== 0")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    assert tokenizers.tiktoken_counter("cl100k_base") is None


def test_a_text_that_is_only_estimated_as_too_long_shares_a_request(vocabulary):
    # 8 bytes per token: the estimate is more than twice the length.
    seeming = " ".join(["international"] * 3_000)
    with OpenAIServer() as server:
        openai_embedder(server).embed(["first", "second"])
        openai_embedder(server).embed(["third", seeming, "fourth"])
        assert [len(request.texts) for request in server.requests] == [2, 3]


def test_tokens_of_an_unknown_model_are_not_counted(vocabulary):
    chosen = Embedder("nomic-embed-text", base_url="http://localhost:1/v1", cache=False)
    assert chosen.provider.count_tokens("text") is None
