"""Rules for the arguments of the classes that `EmbedKitEmbedding` replaces. No I/O.

Covered: llama-index-embeddings-openai's OpenAIEmbedding (read at 0.7.0), and the names that the Voyage, Cohere and
Hugging Face classes use for the same arguments. docs/llamaindex.md shows this table; a test compares it with the
installed class.

Of the classes for other providers, it has the names that their examples use: llama-index-embeddings-google-genai,
-mistralai, -nvidia, -fireworks, -together, -nebius, -deepinfra, -dashscope and -huggingface-api (0.6.0), -bedrock
(0.9.0), -jinaai (0.7.0) and -gemini (0.4.2), read 2026-11-30.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from embedkit_core.adapters.arguments import (
    AWS_KEYS,
    AZURE,
    BACKOFF,
    COMMON_RULES,
    ONE_CLIENT,
    ROLE_FIX,
    Alias,
    ApiKey,
    CommonOptions,
    Ignored,
    KnownModel,
    Rule,
    Unsupported,
    request_options,
    sign_in,
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
    "use_azure_ad": Alias("api_key", sign_in, only="azure:", fix=AZURE),
    "max_length": Unsupported("The limit of the model applies. on_long_text= decides how longer texts are handled."),
    "async_http_client": Unsupported(ONE_CLIENT),
    "model_id": Alias("model_name", required=True),
    "token": Alias("api_key"),
    "api_token": Alias("api_key"),
    "query_prefix": Alias("query_prompt"),
    "text_prefix": Alias("document_prompt"),
    "retries": Alias("max_retries"),
    "retry_min_seconds": Ignored(BACKOFF),
    "retry_max_seconds": Ignored(BACKOFF),
    "text_type": Unsupported(ROLE_FIX),
    "encoding_queries": Unsupported("Use dtype=, for queries and documents."),
    "encoding_documents": Unsupported("Use dtype=, for queries and documents."),
    "late_chunking": Unsupported("A vector depends on its own text only, so that it can be cached.", (False,)),
    "embedding_config": Unsupported("Use dimensions= and task=."),
    "vertexai_config": Unsupported(
        "Use model_name='vertex:...', and set the environment variables GOOGLE_CLOUD_PROJECT and GOOGLE_CLOUD_LOCATION."
    ),
    "profile_name": Unsupported(AWS_KEYS),
    "application_inference_profile_arn": Unsupported(
        "Use model_name='bedrock:ARN' with model_info={'like': 'bedrock:MODEL'}, where MODEL is the profile's model."
    ),
}


class LlamaIndexOptions(CommonOptions, total=False):
    """Keyword arguments of `EmbedKitEmbedding`: LlamaIndex's, those of `Embedder`, and the accepted ones of `RULES`."""

    callback_manager: CallbackManager | None
    embed_batch_size: int
    num_workers: int | None
    embeddings_cache: object
    model_name: KnownModel | str
    api_base: str | None
    additional_kwargs: Mapping[str, Any] | None
    text_instruction: str | None
    embedding_type: str | None
    model_id: KnownModel | str
    token: ApiKey
    api_token: ApiKey
    query_prefix: str | None
    text_prefix: str | None
    retries: int | None
    retry_min_seconds: object
    retry_max_seconds: object
    use_azure_ad: bool | None
    mode: object
    reuse_client: object
