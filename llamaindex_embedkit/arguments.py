"""Rules for the arguments of the classes that `EmbedKitEmbedding` replaces. No I/O.

Covered: llama-index-embeddings-openai's OpenAIEmbedding (read at 0.7.0), and the names that the Voyage, Cohere and
Hugging Face classes use for the same arguments. docs/llamaindex.md shows this table; a test compares it with the
installed class.
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
    single_dtype,
)

if TYPE_CHECKING:
    from llama_index.core.callbacks.base import CallbackManager

RULES: Final[Mapping[str, Rule]] = {
    **COMMON_RULES,
    "model": Alias("model_name", required=True),
    "api_base": Alias("base_url"),
    "additional_kwargs": Alias("provider_options", request_options),
    "text_instruction": Alias("document_prompt"),
    "embedding_type": Alias("dtype", single_dtype),
    "mode": Ignored("The models it selects were retired. Current models have one name for queries and documents."),
    "reuse_client": Ignored("All callers share one client, which works from any event loop."),
    "deployment_name": Unsupported(AZURE),
    "use_azure_ad": Unsupported(AZURE, (False,)),
    "max_length": Unsupported("The limit of the model applies. on_long_text= decides how longer texts are handled."),
    "async_http_client": Unsupported(ONE_CLIENT),
}


class LlamaIndexOptions(CommonOptions, total=False):
    """Keyword arguments of `EmbedKitEmbedding`: LlamaIndex's, those of `Embedder`, and the accepted ones of `RULES`."""

    callback_manager: CallbackManager | None
    embed_batch_size: int
    num_workers: int | None
    embeddings_cache: object
    model_name: str
    api_base: str | None
    additional_kwargs: Mapping[str, Any] | None
    text_instruction: str | None
    embedding_type: str | None
    mode: object
    reuse_client: object
