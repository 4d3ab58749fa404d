"""The core and the two adapters as clients."""

from typing import Any

from benchmarks.speed.setting import KEY, MODEL, Client, Methods, Setting

SDK = ("openai", "httpx2", "orjson", "pybase64", "numpy")


def _arguments(setting: Setting) -> dict[str, Any]:
    return {
        "model": MODEL,
        "api_key": KEY,
        "base_url": setting.base_url,
        "cache": setting.folder or False,
        "max_concurrency": setting.slots,
        **setting.options.get("arguments", {}),
    }


def core(setting: Setting) -> Methods:
    """The core, float32 matrices."""
    from embedkit_core import Embedder

    embedder = Embedder(**_arguments(setting))

    async def aembed(texts: list[str]) -> Any:
        return (await embedder.aembed(texts)).vectors

    return Methods(
        embed=lambda texts: embedder.embed(texts).vectors,
        aembed=aembed,
        query=embedder.embed_query,
        aquery=embedder.aembed_query,
        close=embedder.close,
    )


def core_lists(setting: Setting) -> Methods:
    """The core, with lists made from its matrix at the end."""
    from embedkit_core import Embedder

    embedder = Embedder(**_arguments(setting))

    async def aembed(texts: list[str]) -> Any:
        return (await embedder.aembed(texts)).to_lists()

    return Methods(embed=lambda texts: embedder.embed(texts).to_lists(), aembed=aembed, close=embedder.close)


def langchain(setting: Setting) -> Methods:
    """LangChain's interface, lists."""
    from langchain_embedkit import EmbedKitEmbeddings

    model = EmbedKitEmbeddings(**_arguments(setting))
    return Methods(
        embed=model.embed_documents,
        aembed=model.aembed_documents,
        query=model.embed_query,
        aquery=model.aembed_query,
        close=model.embedder.close,
    )


def llamaindex(setting: Setting) -> Methods:
    """LlamaIndex's interface, lists."""
    from llamaindex_embedkit import EmbedKitEmbedding

    model = EmbedKitEmbedding(**_arguments(setting))
    return Methods(
        embed=model.get_text_embedding_batch,
        aembed=model.aget_text_embedding_batch,
        query=model.get_query_embedding,
        aquery=model.aget_query_embedding,
        close=model.embedder.close,
    )


CLIENTS = {
    "core": Client(core, ("embedkit_core", *SDK)),
    "core-lists": Client(core_lists, ("embedkit_core", *SDK)),
    "langchain": Client(langchain, ("langchain_embedkit.embeddings", *SDK)),
    "llamaindex": Client(llamaindex, ("llamaindex_embedkit.embedding", *SDK)),
}
