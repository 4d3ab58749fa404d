"""LlamaIndex's extension point: methods with a leading underscore, which a subclass may override.

LlamaIndex's own methods call these hooks. Those of `EmbedKitEmbedding` embed a list in one call of the core. They use
the hooks only if a subclass overrides them.
"""

from __future__ import annotations

from collections.abc import Mapping
from inspect import getattr_static
from typing import Protocol

from embedkit_core import InputType
from embedkit_core.adapters.base import run_in_thread, run_together

HOOKS: Mapping[InputType, frozenset[str]] = {
    "query": frozenset({"_get_query_embedding"}),
    "document": frozenset({"_get_text_embedding", "_get_text_embeddings"}),
}
ASYNC_HOOKS: Mapping[InputType, frozenset[str]] = {
    input_type: frozenset(f"_a{name[1:]}" for name in names) for input_type, names in HOOKS.items()
}


class Hooks(Protocol):
    """The hooks of an embedding class."""

    def _get_query_embedding(self, query: str) -> list[float]: ...
    async def _aget_query_embedding(self, query: str) -> list[float]: ...
    def _get_text_embedding(self, text: str) -> list[float]: ...
    async def _aget_text_embedding(self, text: str) -> list[float]: ...
    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]: ...
    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]: ...


def overridden_hooks(cls: type, base: type) -> frozenset[str]:
    """Return the hooks that a subclass of `base` overrides."""
    names = frozenset[str]().union(*HOOKS.values(), *ASYNC_HOOKS.values())
    # Static, because LlamaIndex's wrapper of a method is a new object at each access.
    return frozenset(name for name in names if getattr_static(cls, name) is not getattr_static(base, name))


def embed_with_hooks(
    model: Hooks, overridden: frozenset[str], texts: list[str], input_type: InputType, *, is_single: bool
) -> list[list[float]]:
    """Embed texts with the hooks of a subclass.

    Args:
        model: The object of the subclass.
        overridden: The hooks that it overrides.
        texts: The texts.
        input_type: Their input type.
        is_single: Whether the caller asked for one text, not for a list.
    """
    if input_type == "query":
        return [model._get_query_embedding(text) for text in texts]
    if _uses_single_hook("_get_text_embedding", overridden, is_single=is_single):
        return [model._get_text_embedding(text) for text in texts]
    return model._get_text_embeddings(texts)


async def aembed_with_hooks(
    model: Hooks, overridden: frozenset[str], texts: list[str], input_type: InputType, *, is_single: bool
) -> list[list[float]]:
    """Embed texts like `embed_with_hooks`, without blocking the event loop.

    If only the sync hooks are overridden, they run on a worker thread: both ways must give the same vectors.
    """
    if not overridden & ASYNC_HOOKS[input_type]:
        return await run_in_thread(lambda: embed_with_hooks(model, overridden, texts, input_type, is_single=is_single))
    if input_type == "query":
        return await run_together(map(model._aget_query_embedding, texts))
    if _uses_single_hook("_aget_text_embedding", overridden, is_single=is_single):
        return await run_together(map(model._aget_text_embedding, texts))
    return await model._aget_text_embeddings(texts)


def _uses_single_hook(name: str, overridden: frozenset[str], *, is_single: bool) -> bool:
    """Return True if documents are embedded with the hook for one text, False if with the one for a list."""
    return name in overridden and (is_single or f"{name}s" not in overridden)
