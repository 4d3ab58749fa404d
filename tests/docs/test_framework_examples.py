"""The frameworks' documented examples for embeddings, with the import changed.

Examples in docstrings are read from the installed classes; those of pages are paraphrased. docs/migrating.md lists
them.
"""

import ast
import importlib
import importlib.metadata
import inspect
import re
import textwrap
import uuid
import warnings
from pathlib import Path

import pytest
from langchain_classic.embeddings import CacheBackedEmbeddings
from langchain_classic.storage import LocalFileStore
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_openai import OpenAIEmbeddings as TheirEmbeddings
from llama_index.core import Document, Settings, SimpleDirectoryReader, VectorStoreIndex
from llama_index.core.llms import MockLLM
from llama_index.embeddings.openai import OpenAIEmbedding as TheirEmbedding
from support.embedders import texts_sent
from support.openai_server import vector_of
from support.reader import reader_environment

from embedkit_core import ConfigurationError
from langchain_embedkit import EmbedKitEmbeddings as OpenAIEmbeddings
from llamaindex_embedkit import EmbedKitEmbedding as OpenAIEmbedding

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", ".langchain-community. is being sunset", DeprecationWarning)  # FAISS lives there
    importlib.import_module("langchain_community")

ROOT = Path(__file__).parents[2]
THEIRS = "from langchain_openai import OpenAIEmbeddings"
OURS = "from langchain_embedkit import EmbedKitEmbeddings as OpenAIEmbeddings"
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*without model= uses 'text-embedding-ada-002'"),  # as in OpenAIEmbeddings()
    pytest.mark.filterwarnings("ignore:Using default key encoder:UserWarning"),  # CacheBackedEmbeddings' own
]


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A server with the vector width of the model that most examples use."""
    with reader_environment(tmp_path, monkeypatch) as running:
        yield running


@pytest.fixture(autouse=True)
def _settings_as_they_were():
    yield
    Settings._embed_model = Settings._llm = None


def large(text, dimensions=3072):
    return vector_of(text, dimensions, 3072, "text-embedding-3-large").tolist()


def small(text):
    return vector_of(text).tolist()


def ada(text):
    return vector_of(text, model="text-embedding-ada-002").tolist()


# Docstrings


def blocks_of(documented):
    """Return the Python blocks of a docstring, without those that only show output."""
    found = re.findall(r"^( *)```python\n(.*?)^\1```", documented.__doc__, re.M | re.S)
    found += re.findall(r"^( *)\.\. code-block:: python\n((?:\1 +.*\n| *\n)+)", documented.__doc__, re.M)
    return [block for _, body in found if not is_output(block := textwrap.dedent(body))]


def is_output(block):
    try:
        compile(block, "block", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        nodes = ast.parse(block).body
        return all(isinstance(node, ast.Expr) and not any_call(node) for node in nodes)
    except SyntaxError:
        return True


def any_call(node):
    return any(isinstance(part, (ast.Call, ast.Await)) for part in ast.walk(node))


async def run(blocks, changes=(), aliases=()):
    """Run blocks in order with the import changed; return their names."""
    scope = {}
    for block in blocks:
        for name, meant in aliases:
            if meant in scope:
                scope.setdefault(name, scope[meant])
        for old, new in ((THEIRS, OURS), *changes):
            block = block.replace(old, new)
        made = eval(compile(block, "documented", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), scope)
        if inspect.iscoroutine(made):
            await made
    return scope


async def test_the_docstring_of_openai_embeddings_works(server, capsys):
    """It names its object `embed` and then uses `embeddings`; the last block has values to fill in."""
    server.dimensions = 3072
    blocks = blocks_of(TheirEmbeddings)
    assert len(blocks) >= 5
    assert THEIRS in blocks[0]
    changes = [('model="..."', 'model="nomic-embed-text"'), ('base_url="..."', f"base_url={server.base_url!r}")]
    scope = await run(blocks, changes, aliases=[("embeddings", "embed")])
    assert isinstance(scope["embed"], OpenAIEmbeddings)
    assert scope["vectors"] == [large("hello"), large("goodbye")]
    assert capsys.readouterr().out.splitlines() == [str(large("hello")[:3]), "2", *[str(large("hello")[:3])] * 2]
    assert scope["embeddings"].embed_query("a") == vector_of("a", 3072, 3072, "nomic-embed-text").tolist()


async def test_the_docstring_of_cache_backed_embeddings_works(server):
    blocks = blocks_of(CacheBackedEmbeddings)
    assert THEIRS in blocks[0]
    scope = await run(blocks)
    assert isinstance(scope["underlying_embedder"], OpenAIEmbeddings)
    assert scope["embeddings"] == [ada("hello"), ada("goodbye")]
    assert texts_sent(server) == ["hello", "goodbye"]


async def test_a_cache_backed_folder_that_langchain_filled_is_used(server):
    """The namespace in the docstring is the model's name, which is the same here."""
    theirs = TheirEmbeddings(check_embedding_ctx_length=False)
    before = CacheBackedEmbeddings.from_bytes_store(theirs, LocalFileStore("./my_cache"), namespace=theirs.model)
    written = before.embed_documents(["hello", "goodbye"])
    scope = await run(blocks_of(CacheBackedEmbeddings))
    assert scope["embeddings"] == written
    assert len(server.requests) == 1


STORES = {
    ("langchain_core.vectorstores", "InMemoryVectorStore"): "* thud [{'bar': 'baz'}]",
    ("langchain_chroma", "Chroma"): "* thud [{'bar': 'baz'}]",
    ("langchain_community.vectorstores", "FAISS"): "* thud [{'bar': 'baz'}]",
}


@pytest.mark.parametrize("documented", STORES, ids=[name for _, name in STORES])
async def test_the_docstring_of_a_vector_store_works(server, capsys, documented):
    """Chroma's collection gets a unique name: in memory it outlives a test."""
    module, name = documented
    blocks = blocks_of(getattr(importlib.import_module(module), name))
    assert len(blocks) >= 6
    assert sum(THEIRS in block for block in blocks) == 1
    scope = await run(blocks, [('collection_name="foo"', f'collection_name="c{uuid.uuid4().hex}"')])
    assert STORES[documented] in capsys.readouterr().out
    assert isinstance(scope["vector_store"].embeddings, OpenAIEmbeddings)
    assert scope["retriever"].invoke("thud")[0].page_content == "thud"


# LangChain's page on OpenAI's embeddings


def test_the_openai_page_indexing_and_retrieval_works(server):
    server.dimensions = 3072
    embeddings = OpenAIEmbeddings(model="text-embedding-3-large")
    text = "A framework with a memory."
    vectorstore = InMemoryVectorStore.from_texts([text], embedding=embeddings)
    assert vectorstore.as_retriever().invoke("What has a memory?")[0].page_content == text


def test_the_openai_page_direct_usage_works(server):
    server.dimensions = 3072
    embeddings = OpenAIEmbeddings(model="text-embedding-3-large")
    text, other = "A framework with a memory.", "Another one."
    assert embeddings.embed_query(text) == large(text)
    assert embeddings.embed_documents([text, other]) == [large(text), large(other)]


def test_the_openai_page_fewer_dimensions_work(server):
    server.dimensions = 3072
    embeddings = OpenAIEmbeddings(model="text-embedding-3-large", dimensions=1024)
    assert embeddings.embed_query("a") == large("a", 1024)


def test_the_openai_page_azure_v1_endpoint_with_a_key_works(server):
    server.dimensions = 3072
    embeddings = OpenAIEmbeddings(model="text-embedding-3-large", base_url=f"{server.base_url}/", api_key="test-key")
    assert embeddings.embed_query("Hello") == large("Hello")


def test_the_openai_page_token_provider_works(server):
    server.dimensions = 3072
    embeddings = OpenAIEmbeddings(
        model="text-embedding-3-large", base_url=server.base_url, api_key=lambda: "test-key", cache=False
    )
    assert len(embeddings.embed_query("a")) == 3072


def test_the_azure_class_arguments_are_refused_with_the_v1_endpoint():
    with pytest.raises(ConfigurationError, match="v1 endpoint"):
        OpenAIEmbeddings(model="text-embedding-3-large", azure_endpoint="https://name.openai.azure.com/", api_key="k")


# LlamaIndex


def test_the_llamaindex_openai_package_has_no_example():
    """If the package gets an example, add it here."""
    text = importlib.metadata.metadata("llama-index-embeddings-openai").get_payload()
    assert "```" not in text
    assert ">>>" not in TheirEmbedding.__doc__
    assert "```" not in TheirEmbedding.__doc__


def test_the_embeddings_page_global_default_works(server):
    Settings.embed_model = OpenAIEmbedding()
    assert OpenAIEmbedding().get_text_embedding("hello world") == ada("hello world")
    index = VectorStoreIndex.from_documents([Document(text="hello world")])
    assert index.as_retriever().retrieve("hello world")[0].score == pytest.approx(1)
    assert texts_sent(server) == ["hello world"]


def test_the_embeddings_page_names_a_method_that_neither_class_has():
    assert not hasattr(TheirEmbedding, "get_text_embeddings")
    assert not hasattr(OpenAIEmbedding, "get_text_embeddings")


def test_the_embeddings_page_one_model_per_index_works(server):
    embed_model = OpenAIEmbedding(model="text-embedding-3-small")
    index = VectorStoreIndex.from_documents([Document(text="a"), Document(text="b")], embed_model=embed_model)
    assert index.as_retriever(similarity_top_k=1).retrieve("b")[0].text == "b"
    assert embed_model.usage.texts == 3


def test_the_embeddings_page_folder_to_answer_works(server, tmp_path):
    Settings.embed_model, Settings.llm = OpenAIEmbedding(), MockLLM()
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "page.txt").write_text("A page about rivers.")
    index = VectorStoreIndex.from_documents(SimpleDirectoryReader(str(folder)).load_data())
    assert "A page about rivers." in str(index.as_query_engine().query("What is it about?"))


def test_the_embeddings_page_batch_size_works(server):
    """It is accepted; the size of a request depends on the core and on `max_batch_texts`."""
    embed_model = OpenAIEmbedding(embed_batch_size=42)
    texts = [f"text {i}" for i in range(100)]
    assert embed_model.embed_batch_size == 42
    assert embed_model.get_text_embedding_batch(texts, show_progress=True) == [ada(text) for text in texts]
    assert sorted(texts_sent(server)) == sorted(texts)


async def test_the_embeddings_page_standalone_use_works(server):
    embed_model = OpenAIEmbedding(model="text-embedding-3-small")
    one, other = embed_model.get_text_embedding("cats"), await embed_model.aget_text_embedding("dogs")
    assert (one, other) == (small("cats"), small("dogs"))
    assert embed_model.get_query_embedding("cats") == one
    assert embed_model.similarity(one, other) == pytest.approx(float(vector_of("cats") @ vector_of("dogs")), abs=1e-6)


@pytest.mark.parametrize(
    ("model", "dimensions", "width"),
    [
        ("text-embedding-3-large", None, 3072),
        ("text-embedding-3-small", None, 1536),
        ("text-embedding-3-large", 512, 512),
    ],
)
def test_the_openai_page_models_and_dimensions_work(server, model, dimensions, width):
    server.dimensions = native = 3072 if model.endswith("large") else 1536
    options = {"dimensions": dimensions} if dimensions else {}
    vector = OpenAIEmbedding(model=model, **options).get_text_embedding("a")
    assert vector == vector_of("a", width, native, model).tolist()
