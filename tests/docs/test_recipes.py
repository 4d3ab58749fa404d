"""The recipes in docs/recipes.md and docs/migrating.md run and print the output that they show."""

import asyncio
import csv
import importlib.util
import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import support.openai_server
from chromadb.api.shared_system_client import SharedSystemClient
from langchain_chroma import Chroma
from langchain_classic.embeddings import CacheBackedEmbeddings
from langchain_classic.storage import LocalFileStore
from langchain_openai import OpenAIEmbeddings
from langgraph.store.base.embed import ensure_embeddings
from langgraph.store.memory import InMemoryStore
from llama_index.core import Settings
from qdrant_client import QdrantClient
from qdrant_client.models import Distance, PointStruct, VectorParams
from support.openai_server import vector_of
from support.reader import reader_environment

from langchain_embedkit import EmbedKitEmbeddings

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", ".langchain-community. is being sunset", DeprecationWarning)  # FAISS lives there
    from langchain_community.vectorstores import FAISS

ROOT = Path(__file__).parents[2]
DOCUMENTS = [(ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("recipes.md", "migrating.md")]
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", "\n".join(DOCUMENTS), re.M | re.S))
RECIPES = {title: re.findall(r"^```python\n(.*?)^```", body, re.M | re.S) for title, body in SECTIONS.items()}
RECIPES = {title: "\n".join(blocks) for title, blocks in RECIPES.items() if blocks}
IN_BATCHES = ("LangChain's indexing API at half the price", "An IngestionPipeline at half the price")
PARTS = ("oil", "belt", "pump", "valve", "motor", "filter", "brake", "fuse", "lamp", "door")
LANGGRAPH = "A LangGraph server"

pytestmark = [
    pytest.mark.filterwarnings("ignore:.langchain-community. is being sunset:DeprecationWarning"),  # FAISS lives there
    pytest.mark.filterwarnings("ignore:Using default key encoder:UserWarning"),  # the folder was written with it
]


def words_vector(text, dimensions=1536, native=1536, model="any"):
    """Return a vector that is similar for texts with the same words."""
    words = [word[:4].lower() for word in re.findall(r"\w+", text)]
    vector = np.sum([vector_of(word, dimensions, native, model) for word in words], axis=0)
    return vector / np.linalg.norm(vector)


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(support.openai_server, "vector_of", words_vector)
    with reader_environment(tmp_path, monkeypatch) as running:
        yield running


@pytest.fixture(autouse=True)
def _settings_as_they_were():
    yield
    Settings._embed_model = Settings._llm = None
    SharedSystemClient.clear_system_cache()  # Chroma would open the folder of this name that another test has used


def prepare_the_old_cache():
    """Fill LangChain's cache, as before a migration."""
    embeddings = old_embeddings()
    old = CacheBackedEmbeddings.from_bytes_store(embeddings, LocalFileStore("my_cache"), namespace=embeddings.model)
    old.embed_documents([f"Paragraph {number}" for number in range(100)])


MANUALS = [f"The {part} of machine {number}." for number in range(10) for part in PARTS]


def old_embeddings():
    """Return the class that filled a store before a migration."""
    return OpenAIEmbeddings(model="text-embedding-3-small", check_embedding_ctx_length=False)


def prepare_chroma():
    Chroma("manuals", old_embeddings(), persist_directory="chroma").add_texts(MANUALS, [{"page": 1}] * len(MANUALS))


def prepare_faiss():
    FAISS.from_texts(MANUALS, old_embeddings()).save_local("faiss")


def prepare_qdrant():
    """Fill a collection as langchain-qdrant does."""
    client = QdrantClient(path="qdrant")
    client.create_collection("manuals", VectorParams(size=1536, distance=Distance.COSINE))
    vectors = old_embeddings().embed_documents(MANUALS)
    points = [
        PointStruct(id=n, vector=vector, payload={"page_content": text, "metadata": {}})
        for n, (text, vector) in enumerate(zip(MANUALS, vectors, strict=True))
    ]
    client.upsert("manuals", points)
    client.close()


def prepare_a_table():
    """Write the file as psql does: pgvector's text has the shortest digits that are exact for float32."""
    rows = np.array(old_embeddings().embed_documents(MANUALS), dtype=np.float32)
    with Path("manuals.csv").open("w", newline="", encoding="utf-8") as file:
        for text, row in zip(MANUALS, rows, strict=True):
            csv.writer(file, lineterminator="\n").writerow([text, f"[{','.join(map(str, row))}]"])


def prepare_an_imported_collection():
    prepare_chroma()
    exec(compile(RECIPES["Import a Chroma collection"], "docs", "exec"), {"print": lambda *_: None})


def prepare_a_data_set():
    """Write a data set in SciFact's layout, in which each query has the words of its document."""
    topics = [
        "the heart",
        "a vaccine",
        "red wine",
        "cold water",
        "a gene",
        "sleep",
        "smoking",
        "salt",
        "exercise",
        "light",
    ]
    folder = Path("scifact")
    (folder / "qrels").mkdir(parents=True)
    documents = [{"_id": str(n), "title": f"About {t}", "text": f"What is known of {t}."} for n, t in enumerate(topics)]
    queries = [{"_id": f"q{n}", "text": f"What do we know of {topic}?"} for n, topic in enumerate(topics)]
    for name, rows in (("corpus", documents), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    judged = "".join(f"q{n}\t{n}\t1\n" for n in range(len(topics)))
    (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}")


PREPARED = {
    "Move a CacheBackedEmbeddings folder": prepare_the_old_cache,
    "Keep a vector store": prepare_chroma,
    "Import a Chroma collection": prepare_chroma,
    "Import a FAISS index": prepare_faiss,
    "Import a Qdrant collection": prepare_qdrant,
    "Import a pgvector table": prepare_a_table,
    "Change the model or the dimensions": prepare_an_imported_collection,
    "Comparing models on SciFact": prepare_a_data_set,
    "Choosing within a budget": prepare_a_data_set,
}


def promised(recipe):
    """Return the output in the comments behind each print."""
    return re.findall(r"^(?:print|asyncio\.run)\(.*\)  # (.*)$", recipe, re.M)


@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_prints_what_it_shows(server, title, capsys):
    if title in PREPARED:
        PREPARED[title]()
    exec(compile(RECIPES[title], f"docs: {title}", "exec"), {})
    assert capsys.readouterr().out.splitlines() == promised(RECIPES[title])
    if title in IN_BATCHES:  # the texts that were submitted are those that the framework embeds
        assert server.requests == []
        assert set(server.paid_texts.values()) == {1}


def test_the_files_of_a_langgraph_server_load(server):
    """As langgraph-api's `resolve_embeddings` does: a path with a slash is executed, and the named object taken."""
    (configuration,) = re.findall(r"^```json\n(.*?)^```", SECTIONS[LANGGRAPH], re.M | re.S)
    configuration = json.loads(configuration)
    Path("src").mkdir()
    Path("src/app.py").write_text(RECIPES[LANGGRAPH], encoding="utf-8")

    def load(address):
        path, _, name = address.rpartition(":")
        assert "/" in path  # without one, it would be the name of a module
        spec = importlib.util.spec_from_file_location(re.sub(r"\W", "_", path), path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return getattr(module, name)

    index = configuration["store"]["index"]
    embeddings = ensure_embeddings(load(index["embed"]))
    assert isinstance(embeddings, EmbedKitEmbeddings)
    assert index["dims"] == embeddings.embedder.dimensions
    store = InMemoryStore(index={**index, "embed": embeddings})
    for key, text in enumerate(("Ann likes spicy food.", "Ann works at night.", "Bob likes rain.", "Bob is tall.")):
        store.put(("memories",), str(key), {"text": text, "source": "not embedded"})
    graph = load(configuration["graphs"]["agent"]).copy(update={"store": store})
    answer = asyncio.run(graph.ainvoke({"question": "Which food does Ann like?"}))
    assert answer["facts"][0] == "Ann likes spicy food."
    assert len(answer["facts"]) == 3
    assert embeddings.usage.texts == 5


def test_every_recipe_is_short_and_shows_its_output():
    assert len(RECIPES) >= 10
    for title, recipe in RECIPES.items():
        assert len([line for line in recipe.splitlines() if line.strip()]) <= 26, title
        assert len(promised(recipe)) == recipe.count("print("), title
