"""The arguments of the classes that `EmbedKitEmbedding` stands in for, and what becomes of each.

llama-index-embeddings-openai's OpenAIEmbedding (read at 0.7.0), and the names that the Voyage, Cohere and Hugging Face
classes have for the same things. docs/llamaindex.md shows this table; a test holds it against the installed class.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from embedkit_core.adapters.arguments import (
    Mapped,
    NoEffect,
    Refused,
    Rule,
    cut_or_refuse,
    one_type,
    or_none,
    wire_options,
)

ONE_CLIENT = "one client is kept for all callers; headers=, proxy= and ca_bundle= say how it connects"
AZURE = (
    "use Azure's v1 endpoint, which needs no version: model='azure:DEPLOYMENT', base_url="
    "'https://NAME.openai.azure.com', model_info={'like': 'openai:text-embedding-3-small'} for what it serves, "
    "api_key= Azure's key"
)

RULES: Final[Mapping[str, Rule]] = {
    "model": Mapped("model_name", needed=True),
    "api_base": Mapped("base_url"),
    "openai_api_base": Mapped("base_url"),
    "chunk_size": Mapped("max_batch_texts"),
    "show_progress": Mapped("progress"),
    "show_progress_bar": Mapped("progress"),
    "openai_api_key": Mapped("api_key"),
    "voyage_api_key": Mapped("api_key"),
    "cohere_api_key": Mapped("api_key"),
    "output_dimension": Mapped("dimensions"),
    "additional_kwargs": Mapped("provider_options", wire_options),
    "truncation": Mapped("on_long_text", cut_or_refuse),
    "truncate": Mapped("on_long_text", cut_or_refuse),
    "query_instruction": Mapped("query_prompt"),
    "text_instruction": Mapped("document_prompt"),
    "on_error": Refused("the host has no place for texts that failed; use .embedder, made with on_error='return'"),
    "normalize": Refused(
        "vectors have length 1 where their model promises it, and where they are made or cut here", (True,)
    ),
    "mode": NoEffect("the models it chose among are gone; those of today have one name for queries and documents"),
    "reuse_client": NoEffect("one client is kept for all callers, and works from any event loop"),
    "api_version": Refused(AZURE, ("",)),
    "azure_endpoint": Refused(AZURE),
    "azure_deployment": Refused(AZURE),
    "deployment_name": Refused(AZURE),
    "use_azure_ad": Refused(AZURE, (False,)),
    "azure_ad_token_provider": Mapped("api_key"),
    "embedding_types": Mapped("dtype", one_type),
    "output_dtype": Mapped("dtype", one_type),
    "max_length": Refused("the model's own limit counts; on_long_text says what becomes of a longer text"),
    "default_headers": Mapped("headers", or_none),
    "http_client": Refused(ONE_CLIENT),
    "async_http_client": Refused(ONE_CLIENT),
}
