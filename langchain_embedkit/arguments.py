"""Rules for the arguments of the classes that `EmbedKitEmbeddings` replaces. No I/O.

Covered: langchain-openai's OpenAIEmbeddings and AzureOpenAIEmbeddings (read at 1.7.4), langchain-voyageai's
VoyageAIEmbeddings (0.4.1) and langchain-cohere's CohereEmbeddings (0.6.0). docs/langchain.md shows this table; a test
compares it with the installed classes.

Of the classes for other providers, it has the names that their examples use: langchain-google-genai 4.4.3,
langchain-google-vertexai 3.2.5, langchain-aws 1.9.1, langchain-mistralai 1.1.6, langchain-nvidia-ai-endpoints 1.5.0,
langchain-fireworks 1.7.1, langchain-together 0.4.0, langchain-nomic 1.0.1, langchain-huggingface 1.2.3, and
JinaEmbeddings, DashScopeEmbeddings and DeepInfraEmbeddings of langchain-community 0.4.2, read 2026-11-30.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

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
    none_if_empty,
    request_options,
    seconds,
)

TOKENIZER = "No tokenizer is used: texts are sent as strings, which compatible servers accept too."

RULES: Final[Mapping[str, Rule]] = {
    **COMMON_RULES,
    "model_name": Alias("model", required=True),
    "batch_size": Alias("max_batch_texts"),
    "request_timeout": Alias("timeout", seconds),
    "model_kwargs": Alias("provider_options", request_options),
    "deployment": Ignored(
        "OpenAIEmbeddings does not send it either. With Azure's v1 endpoint, the deployment is the model."
    ),
    "check_embedding_ctx_length": Ignored(f"{TOKENIZER} on_long_text= decides how long texts are handled."),
    "embedding_ctx_length": Ignored(
        "The limit of the model applies. on_long_text= decides how longer texts are handled."
    ),
    "tiktoken_enabled": Ignored(TOKENIZER),
    "tiktoken_model_name": Ignored(TOKENIZER),
    "allowed_special": Ignored(TOKENIZER),
    "disallowed_special": Ignored(TOKENIZER),
    "retry_min_seconds": Ignored(BACKOFF),
    "retry_max_seconds": Ignored(BACKOFF),
    "user_agent": Ignored("It does not affect vectors."),
    "validate_base_url": Ignored("The URL is always validated."),
    "encode_kwargs": Unsupported(
        "Use provider_options= for batch_size, precision and device, and dtype= for smaller types. Vectors of local "
        "models have length 1.",
        ({}, {"normalize_embeddings": True}),
    ),
    "embed_instruction": Alias("document_prompt"),
    "skip_empty": Unsupported(
        "Every position gets a vector. Remove empty texts from the list, or use on_empty_text='zero'.", (False,)
    ),
    "organization": Unsupported("Set the environment variable OPENAI_ORG_ID."),
    "openai_organization": Unsupported("Set the environment variable OPENAI_ORG_ID."),
    "openai_proxy": Alias("proxy", none_if_empty),
    "default_query": Unsupported("Custom URL queries are not sent. Use an endpoint that needs none.", ({},)),
    "http_async_client": Unsupported(ONE_CLIENT),
    "client": Unsupported(ONE_CLIENT),
    "async_client": Unsupported(ONE_CLIENT),
    "openai_api_type": Unsupported(AZURE, ("", "open_ai", "openai")),
    "openai_api_version": Unsupported(AZURE, ("",)),
    "azure_ad_token": Alias("api_key"),
    "azure_ad_async_token_provider": Unsupported(
        "Use azure_ad_token_provider= with a sync function: it is called on a worker thread."
    ),
    "model_id": Alias("model", required=True),
    "repo_id": Alias("model"),
    "endpoint": Alias("base_url"),
    "endpoint_url": Alias("base_url"),
    "together_api_base": Alias("base_url"),
    "deepinfra_api_token": Alias("api_key"),
    "dimensionality": Alias("dimensions"),
    "max_batch_size": Alias("max_batch_texts"),
    "max_concurrent_requests": Alias("max_concurrency"),
    "additional_headers": Alias("headers", none_if_empty),
    "wait_time": Ignored(BACKOFF),
    "tokenizer": Ignored(TOKENIZER),
    "inference_mode": Unsupported(
        "For a model on this machine, use for example model='local:nomic-ai/nomic-embed-text-v1.5'.", ("remote",)
    ),
    "provider": Unsupported("The prefix of the model names it, as in model='bedrock:...' or model='together:...'."),
    "credentials_profile_name": Unsupported(AWS_KEYS),
    "project": Unsupported("Set the environment variable GOOGLE_CLOUD_PROJECT, and use model='vertex:...'."),
    "location": Unsupported("Set the environment variable GOOGLE_CLOUD_LOCATION, and use model='vertex:...'."),
    "credentials": Unsupported(
        "Set the environment variable GOOGLE_APPLICATION_CREDENTIALS to the file, and use model='vertex:...'."
    ),
    "vertexai": Unsupported("Use model='vertex:...'.", (False,)),
}


# Options of one call: a setting of the constructor is taken instead of the object's own. `OpenAIEmbeddings` adds the
# others to the request; here they would replace what the object sets.
CALL_RULES: Final[Mapping[str, Rule]] = {
    **RULES,
    "encoding_format": Ignored("Replies in every encoding are decoded."),
    "extra_headers": Unsupported("Set headers= when you create the object.", ({},)),
    "extra_body": Unsupported("Set provider_options= when you create the object.", ({},)),
    "extra_query": Unsupported("Custom URL queries are not sent.", ({},)),
    "embeddings_task_type": Unsupported(ROLE_FIX),
    "titles": Unsupported("Write each title at the beginning of its text."),
    "user": Unsupported("Set provider_options={'user': ...} when you create the object. It is part of the cache key."),
}


class LangChainOptions(CommonOptions, total=False):
    """Keyword arguments of `EmbedKitEmbeddings`: those of `Embedder` and the accepted ones of `RULES`."""

    model_name: KnownModel | str
    batch_size: int | None
    request_timeout: float | None
    model_kwargs: Mapping[str, Any] | None
    embed_instruction: str | None
    openai_proxy: str | None
    azure_ad_token: ApiKey
    model_id: KnownModel | str
    repo_id: str | None
    endpoint: str | None
    endpoint_url: str | None
    together_api_base: str | None
    deepinfra_api_token: ApiKey
    dimensionality: int | None
    max_batch_size: int | None
    max_concurrent_requests: int | None
    additional_headers: Mapping[str, str] | None
    wait_time: object
    tokenizer: object
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
