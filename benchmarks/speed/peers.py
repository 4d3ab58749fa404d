"""Other libraries, with their defaults unless the name says otherwise."""

import asyncio
import importlib.util
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.speed.setting import KEY, MODEL, Client, Methods, Setting

CATSU_URL = b"https://api.openai.com/v1/embeddings"
CATSU_BATCH = 128
CATSU_MODEL = f"openai:{MODEL}"


def _langchain(setting: Setting) -> Any:
    from langchain_openai import OpenAIEmbeddings
    from pydantic import SecretStr

    return OpenAIEmbeddings(model=MODEL, api_key=SecretStr(KEY), base_url=setting.base_url)


def langchain_openai(setting: Setting) -> Methods:
    """LangChain's own class."""
    model = _langchain(setting)
    return Methods(
        embed=model.embed_documents,
        aembed=model.aembed_documents,
        query=model.embed_query,
        aquery=model.aembed_query,
    )


def cache_backed(setting: Setting) -> Methods:
    """LangChain's own class behind LangChain's own cache, in files."""
    from langchain_classic.embeddings import CacheBackedEmbeddings
    from langchain_classic.storage import LocalFileStore

    model = CacheBackedEmbeddings.from_bytes_store(
        _langchain(setting),
        LocalFileStore(str(setting.folder)),
        namespace=MODEL,
        key_encoder="blake2b",
        query_embedding_cache=True,
    )
    return Methods(embed=model.embed_documents, query=model.embed_query)


def llamaindex_openai(setting: Setting) -> Methods:
    """LlamaIndex's own class."""
    from llama_index.embeddings.openai import OpenAIEmbedding

    model = OpenAIEmbedding(model=MODEL, api_key=KEY, api_base=setting.base_url)
    return Methods(
        embed=model.get_text_embedding_batch,
        aembed=model.aget_text_embedding_batch,
        query=model.get_query_embedding,
        aquery=model.aget_query_embedding,
    )


def llamaindex_base(setting: Setting) -> Methods:  # noqa: ARG001 - it sends no request
    """LlamaIndex's base class around a prepared list: the overhead of the base class."""
    from llama_index.core.base.embeddings.base import BaseEmbedding

    prepared = [0.5] * 1536

    class Prepared(BaseEmbedding):
        def _get_query_embedding(self, query: str) -> list[float]:  # noqa: ARG002 - the answer is constant
            return prepared

        async def _aget_query_embedding(self, query: str) -> list[float]:  # noqa: ARG002 - the answer is constant
            return prepared

        def _get_text_embedding(self, text: str) -> list[float]:  # noqa: ARG002 - the answer is constant
            return prepared

    return Methods(query=Prepared().get_query_embedding)


def _import_catsu(setting: Setting) -> None:
    """Import catsu from a copy with the local server's address, which has the same length, in its binary."""
    url = f"{setting.base_url}/embeddings".encode()
    if len(url) != len(CATSU_URL):
        raise RuntimeError("catsu needs a port of five digits")
    spec = importlib.util.find_spec("catsu")
    assert spec is not None
    assert spec.origin is not None
    with tempfile.TemporaryDirectory(prefix="bench-catsu-") as folder:  # a loaded module does not need its file
        copy = Path(folder) / "catsu"
        copy.mkdir()
        for source in Path(spec.origin).parent.iterdir():
            if source.is_file():
                (copy / source.name).write_bytes(source.read_bytes().replace(CATSU_URL, url))
        sys.path.insert(0, folder)
        importlib.import_module("catsu")
        sys.path.remove(folder)


def catsu_gathered(setting: Setting) -> Methods:
    """catsu, which parses replies in Rust: sequential calls, or slices gathered by hand."""
    import catsu

    client = catsu.Client(api_keys={"openai": KEY})

    def slices(texts: list[str]) -> list[list[str]]:
        return [texts[start : start + CATSU_BATCH] for start in range(0, len(texts), CATSU_BATCH)]

    def embed(texts: list[str]) -> Any:
        return [row for some in slices(texts) for row in client.embed(CATSU_MODEL, some).embeddings]

    async def aembed(texts: list[str]) -> Any:
        slots = asyncio.Semaphore(setting.slots)

        async def one(some: list[str]) -> Any:
            async with slots:
                return (await client.aembed(CATSU_MODEL, some)).embeddings

        return [row for rows in await asyncio.gather(*map(one, slices(texts))) for row in rows]

    return Methods(embed=embed, aembed=aembed)


def tiktoken_folder() -> str:
    """Return LlamaIndex's folder of tiktoken files, so that none are downloaded."""
    spec = importlib.util.find_spec("llama_index.core")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return os.path.join(spec.submodule_search_locations[0], "_static", "tiktoken_cache")  # noqa: PTH118 - an environment variable


CLIENTS = {
    "peer-langchain": Client(langchain_openai, ("langchain_openai", "tiktoken")),
    "peer-cache-backed": Client(cache_backed, ("langchain_openai", "langchain_classic.embeddings")),
    "peer-llamaindex": Client(llamaindex_openai, ("llama_index.embeddings.openai",)),
    "peer-llamaindex-base": Client(llamaindex_base, ("llama_index.core.base.embeddings.base",)),
    "peer-catsu": Client(catsu_gathered, ("numpy",), _import_catsu),
}
