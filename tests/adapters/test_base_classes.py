"""The public methods and fields of the frameworks' base classes: each is overridden, or inherited on purpose."""

import inspect

import pytest
from langchain_core.embeddings import Embeddings
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import TextNode

from embedkit_core.testing import FakeServer
from langchain_embedkit import EmbedKitEmbeddings
from llamaindex_embedkit import EmbedKitEmbedding
from llamaindex_embedkit.hooks import ASYNC_HOOKS, HOOKS

BASES = {EmbedKitEmbeddings: Embeddings, EmbedKitEmbedding: BaseEmbedding}
# Overridden otherwise: LlamaIndex's own would use embeddings_cache, split calls, and call the rate limiter for hits.
INHERITED = {
    EmbedKitEmbeddings: set(),
    EmbedKitEmbedding: {
        "similarity",  # of two vectors
        "check_base_embeddings_class",  # validates the callback manager
        "callback_manager",
        "acall",  # embeds nodes with aget_text_embedding_batch
        *("custom_model_dump", "dict", "json", "to_json", "from_dict", "from_json"),  # from fields and to_dict()
    },
}
both = pytest.mark.parametrize("cls", BASES)


def declared(cls, packages):
    """Return the public names that a class and its bases in some packages declare, with the fields."""
    names = set()
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] in packages:
            names |= vars(base).keys() | inspect.get_annotations(base).keys()
    return {name for name in names if not name.startswith(("_", "model_"))}


@both
def test_each_public_method_and_field_of_the_base_class_is_overridden_or_listed(cls):
    """If this fails with a new version: override the name in the adapter, or list it with its reason."""
    theirs = declared(BASES[cls], {"langchain_core", "llama_index"})
    ours = declared(cls, {"langchain_embedkit", "llamaindex_embedkit", "embedkit_core"})
    assert len(theirs) >= 4
    assert theirs - ours == INHERITED[cls]


def test_the_hooks_are_those_of_the_base_class():
    names = set().union(*HOOKS.values(), *ASYNC_HOOKS.values())
    private = {name for name, _ in inspect.getmembers(BaseEmbedding, inspect.isroutine) if "_embedding" in name}
    hooks = {name for name in private if name.startswith("_") and not name.endswith(("_cached", "_rate_limited"))}
    assert hooks == names


async def test_the_inherited_methods_of_llamaindex_work():
    server = FakeServer()
    model = EmbedKitEmbedding(model="fake:any", base_url=server.url, cache=False, api_key="secret")
    sync, later = [TextNode(text="a"), TextNode(text="b")], [TextNode(text="c"), TextNode(text="d")]
    assert model(sync) == sync
    assert await model.acall(later) == later
    assert [request.body["role"] for request in server.received] == ["document", "document"]
    vectors = [node.embedding for node in sync]
    assert model.similarity(vectors[0], vectors[0]) == pytest.approx(1)
    for text in (model.to_json(), model.json(), str(model.dict()), repr(model)):
        assert "secret" not in text
    again = EmbedKitEmbedding.from_json(model.to_json(), api_key="secret", cache=False)
    assert again.get_text_embedding_batch(["a", "b"]) == vectors
