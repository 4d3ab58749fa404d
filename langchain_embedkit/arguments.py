"""The arguments of the classes that `EmbedKitEmbeddings` stands in for, and what becomes of each.

langchain-openai's OpenAIEmbeddings and AzureOpenAIEmbeddings (read at 1.7.4), langchain-voyageai's VoyageAIEmbeddings
(0.4.1), langchain-cohere's CohereEmbeddings (0.6.0). docs/langchain.md shows this table; a test holds it against the
installed classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from embedkit_core.adapters.arguments import (
    AZURE,
    COMMON_RULES,
    ONE_CLIENT,
    Alias,
    ApiKey,
    CommonOptions,
    Ignored,
    Rule,
    Unsupported,
    none_if_empty,
    request_options,
    seconds,
)

TOKENIZER = "no tokenizer is used and strings are sent, so a compatible server understands them too"
BACKOFF = "waits follow the server's Retry-After, else grow with full jitter, for all callers together"

RULES: Final[Mapping[str, Rule]] = {
    **COMMON_RULES,
    "model_name": Alias("model", needed=True),
    "batch_size": Alias("max_batch_texts"),
    "request_timeout": Alias("timeout", seconds),
    "model_kwargs": Alias("provider_options", request_options),
    "deployment": Ignored("OpenAIEmbeddings sends no deployment either; with Azure's v1 endpoint it is the model"),
    "check_embedding_ctx_length": Ignored(f"{TOKENIZER}; on_long_text says what becomes of a long text"),
    "embedding_ctx_length": Ignored("the model's own limit counts; on_long_text says what becomes of a longer text"),
    "tiktoken_enabled": Ignored(TOKENIZER),
    "tiktoken_model_name": Ignored(TOKENIZER),
    "allowed_special": Ignored(TOKENIZER),
    "disallowed_special": Ignored(TOKENIZER),
    "retry_min_seconds": Ignored(BACKOFF),
    "retry_max_seconds": Ignored(BACKOFF),
    "user_agent": Ignored("it changes no vector"),
    "validate_base_url": Ignored("an address is always checked"),
    "encode_kwargs": Unsupported(
        "provider_options= has batch_size, precision and device; dtype= makes smaller types", ({},)
    ),
    "embed_instruction": Alias("document_prompt"),
    "skip_empty": Unsupported("leave empty texts out of the list: each position gets a vector here", (False,)),
    "organization": Unsupported("set the environment variable OPENAI_ORG_ID"),
    "openai_organization": Unsupported("set the environment variable OPENAI_ORG_ID"),
    "openai_proxy": Alias("proxy", none_if_empty),
    "default_query": Unsupported("a query of your own is not sent; give an endpoint that needs none", ({},)),
    "http_async_client": Unsupported(ONE_CLIENT),
    "client": Unsupported(ONE_CLIENT),
    "async_client": Unsupported(ONE_CLIENT),
    "openai_api_type": Unsupported(AZURE, ("", "open_ai", "openai")),
    "openai_api_version": Unsupported(AZURE, ("",)),
    "azure_ad_token": Alias("api_key"),
    "azure_ad_async_token_provider": Unsupported(
        "give a function that can simply be called: it has a thread of its own"
    ),
}


class LangChainOptions(CommonOptions, total=False):
    """The keyword arguments of `EmbedKitEmbeddings`: those of `Embedder`, the accepted ones of `RULES`."""

    model_name: str
    batch_size: int | None
    request_timeout: float | None
    model_kwargs: Mapping[str, Any] | None
    embed_instruction: str | None
    openai_proxy: str | None
    azure_ad_token: ApiKey
    deployment: object
    check_embedding_ctx_length: object
    embedding_ctx_length: object
    tiktoken_enabled: object
    tiktoken_model_name: object
    allowed_special: object
    disallowed_special: object
    retry_min_seconds: object
    retry_max_seconds: object
    user_agent: object
    validate_base_url: object
