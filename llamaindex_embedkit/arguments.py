"""The arguments of the classes that `EmbedKitEmbedding` stands in for, and what becomes of each.

llama-index-embeddings-openai's OpenAIEmbedding (read at 0.7.0), and the names that the Voyage, Cohere and Hugging Face
classes have for the same things. docs/llamaindex.md shows this table; a test holds it against the installed class.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from embedkit_core.adapters.arguments import (
    AZURE,
    COMMON_RULES,
    ONE_CLIENT,
    Alias,
    CommonOptions,
    Ignored,
    Rule,
    Unsupported,
    request_options,
)

if TYPE_CHECKING:
    from llama_index.core.callbacks.base import CallbackManager

RULES: Final[Mapping[str, Rule]] = {
    **COMMON_RULES,
    "model": Alias("model_name", needed=True),
    "api_base": Alias("base_url"),
    "additional_kwargs": Alias("provider_options", request_options),
    "text_instruction": Alias("document_prompt"),
    "mode": Ignored("the models it chose among are gone; those of today have one name for queries and documents"),
    "reuse_client": Ignored("one client is kept for all callers, and works from any event loop"),
    "deployment_name": Unsupported(AZURE),
    "use_azure_ad": Unsupported(AZURE, (False,)),
    "max_length": Unsupported("the model's own limit counts; on_long_text says what becomes of a longer text"),
    "async_http_client": Unsupported(ONE_CLIENT),
}


class LlamaIndexOptions(CommonOptions, total=False):
    """The keyword arguments of `EmbedKitEmbedding`: LlamaIndex's, those of `Embedder`, the accepted ones of `RULES`."""

    callback_manager: CallbackManager | None
    embed_batch_size: int
    num_workers: int | None
    embeddings_cache: object
    model_name: str
    api_base: str | None
    additional_kwargs: Mapping[str, Any] | None
    text_instruction: str | None
    mode: object
    reuse_client: object
