"""The differences from the replaced classes that docs/limitations.md lists: each is still one.

If a check fails because this library now does what the replaced class does, remove the line from the page.
"""

import re
from pathlib import Path

import numpy as np
import openai
import pytest
from langchain_classic.embeddings import CacheBackedEmbeddings, init_embeddings
from langchain_classic.embeddings.base import _SUPPORTED_PROVIDERS
from langchain_classic.storage import LocalFileStore
from langchain_core.stores import InvalidKeyException
from langchain_openai import OpenAIEmbeddings
from llama_index.core.embeddings.loading import load_embed_model
from llama_index.embeddings.openai import OpenAIEmbedding
from support.embedders import cancel_in_flight, long_text, openai_embedder, texts_sent

import embedkit_core
from embedkit_core import ConfigurationError, Embedder, InputError
from langchain_embedkit import EmbedKitEmbeddings
from llamaindex_embedkit import EmbedKitEmbedding

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "limitations.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("## Differences from the replaced classes\n")[2].partition("\n## ")[0]
BULLETS = [" ".join(bullet.split()) for bullet in re.split(r"^- ", SECTION, flags=re.M)[1:]]
SMALL = "text-embedding-3-small"


def ours(server, cls=EmbedKitEmbeddings, **settings):
    return cls(model=f"openai:{SMALL}", base_url=server.base_url, api_key=server.api_key, cache=False, **settings)


async def long_texts(server, folder):
    result = ours(server).embedder.embed([long_text(9000)])
    assert result.truncated == (0,)
    mean = ours(server, on_long_text="mean").embed_query(long_text(9000))
    assert not np.allclose(mean, result.vectors[0])


async def newlines(server, folder):
    OpenAIEmbedding(api_key=server.api_key, api_base=server.base_url).get_text_embedding("a\nb")
    ours(server, EmbedKitEmbedding).get_text_embedding("a\nb")
    assert texts_sent(server) == ["a b", "a\nb"]


async def names(server, folder):
    model = ours(server, chunk_size=5)
    assert model.max_batch_texts == 5
    assert not hasattr(model, "chunk_size")


async def environment(server, folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_PROXY", "http://127.0.0.1:9")
        patch.setenv("AZURE_OPENAI_ENDPOINT", "http://127.0.0.1:9")
        assert ours(server, dimensions=3).embed_query("a")
    assert OpenAIEmbeddings.model_fields["openai_proxy"].default_factory is not None


async def cohere_lengths(server, folder):
    assert Embedder("cohere:embed-v4.0", api_key="unused", cache=False).is_normalized


async def empty_texts(server, folder):
    with pytest.raises(InputError, match="on_empty_text='zero'"):
        ours(server).embed_documents([""])
    assert not server.requests


async def clients(server, folder):
    for name in ("http_client", "http_async_client", "client", "async_client"):
        assert name in OpenAIEmbeddings.model_fields
        with pytest.raises(ConfigurationError, match=f"{name}= is not supported"):
            ours(server, **{name: object()})


async def async_keys(server, folder):
    async def key():
        return "test-key"

    with pytest.raises(ConfigurationError, match=r"api_key: .*coroutine function"):
        EmbedKitEmbeddings(SMALL, api_key=key, base_url=server.base_url)
    sync = EmbedKitEmbeddings(SMALL, api_key=lambda: server.api_key, base_url=server.base_url, cache=False)
    assert sync.embed_query("a")


async def errors(server, folder):
    assert not issubclass(embedkit_core.RateLimitError, openai.OpenAIError)
    assert not issubclass(embedkit_core.ProviderError, openai.OpenAIError)


async def loaders(server, folder):
    for provider in ("embedkit", "langchain_embedkit", "huggingface:x", "voyage"):
        with pytest.raises((ValueError, ImportError)):
            init_embeddings("model", provider=provider)
    model = ours(server, EmbedKitEmbedding)
    with pytest.raises(ValueError, match="Invalid Embedding name"):
        load_embed_model(model.to_dict())
    assert EmbedKitEmbedding.from_dict({**model.to_dict(), "api_key": "x"}).model_name == model.model_name
    with pytest.raises(ConfigurationError, match="did you mean 'local:owner/model'"):
        EmbedKitEmbeddings("huggingface:owner/model")


def test_every_provider_of_init_embeddings_is_on_the_page():
    """The same strings are taken, and the others are an error that names the prefix on the page."""
    page = (DOCS / "langchain.md").read_text(encoding="utf-8")
    section = page.partition("### init_embeddings\n")[2].partition("\n## ")[0]
    (same,) = re.findall(r"The strings of (.*?) are the same", section)
    rows = re.findall(r"^\| (`.*?) \| `(\w+):` \|$", section, re.M)
    prefixes = {name: here for names, here in rows for name in re.findall(r"`(\w+):`", names)}
    assert {*prefixes, *re.findall(r"`(\w+):`", same)} == {*_SUPPORTED_PROVIDERS}
    for prefix in re.findall(r"`(\w+):`", same):
        model = "amazon.titan-embed-text-v2:0" if prefix == "bedrock" else "some-model"
        assert EmbedKitEmbeddings(f"{prefix}:{model}", api_key="unused").model == f"{prefix}:{model}"
    for prefix, here in prefixes.items():
        with pytest.raises(ConfigurationError, match=f"did you mean '{here}:some-model'"):
            EmbedKitEmbeddings(f"{prefix}:some-model", api_key="unused")


async def cancellation(server, folder):
    embedder = openai_embedder(server, cache=folder)
    server.hold()
    await cancel_in_flight(embedder, server, ["a"], requests=1)
    server.release()
    embedder.embed(["a"])
    assert texts_sent(server) == ["a"]


CHECKS = {
    "LangChain's `OpenAIEmbeddings` splits a long text": long_texts,
    "LlamaIndex's `OpenAIEmbedding` replaces newlines": newlines,
    "Arguments given in another class's spelling": names,
    "`OPENAI_PROXY` is not read": environment,
    "Cohere's vectors are normalized here": cohere_lengths,
    "An empty text is an `InputError`": empty_texts,
    "Custom HTTP clients are not accepted": clients,
    "An async function as `api_key=`": async_keys,
    "Errors are this library's own": errors,
    "LangChain's `init_embeddings`": loaders,
    "After Ctrl-C or a cancelled task": cancellation,
}


@pytest.mark.filterwarnings("ignore:The function `init_embeddings` was deprecated")
@pytest.mark.parametrize("beginning", CHECKS)
async def test_a_difference_on_the_page_is_still_one(beginning, server, tmp_path):
    assert [bullet for bullet in BULLETS if bullet.startswith(beginning)]
    await CHECKS[beginning](server, tmp_path)


def test_every_difference_on_the_page_is_checked():
    assert [bullet for bullet in BULLETS if not bullet.startswith(tuple(CHECKS))] == []


def test_the_examples_that_do_not_run_are_those_that_are_checked():
    """The two tests in test_framework_examples fail if one of them works."""
    rows = re.findall(r"^\| (.*?) \| (yes|no|-) \|", (DOCS / "migrating.md").read_text(encoding="utf-8"), re.M)
    assert len(rows) > 10
    assert [example for example, runs in rows if runs == "no"] == [
        "docstring of `AzureOpenAIEmbeddings`",
        "the same page: `get_text_embeddings([...])`",
    ]


@pytest.mark.filterwarnings("ignore:Using default key encoder:UserWarning")
def test_the_namespace_on_the_migration_page_works_in_a_folder_and_the_model_does_not(server, tmp_path):
    model = ours(server)

    def wrapped(namespace):
        return CacheBackedEmbeddings.from_bytes_store(model, LocalFileStore(tmp_path), namespace=namespace)

    with pytest.raises(InvalidKeyException):
        wrapped(model.model).embed_documents(["a"])
    assert wrapped(model.embedder.fingerprint).embed_documents(["a"]) == model.embed_documents(["a"])
