"""Names in other libraries: of arguments, with the argument of `Embedder` that is meant, and of providers. No I/O.

The adapters accept many of the arguments. Elsewhere, the error for an unknown argument shows the advice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_LOCAL = "for a local model, pass provider_options={{{0!r}: ...}}"
_LOCAL_OPTIONS = ("device", "precision", "max_seq_length", "backend", "file_name", "threads", "providers")
_GOOGLE_CLOUD = "set the environment variable {0}, and use model='vertex:...'"
_QUERIES = "pass it to embed(), or use embed_query() and embed_documents()"

MEANT: Mapping[str, tuple[str, ...]] = {
    "api_key": (
        *("openai_api_key", "voyage_api_key", "cohere_api_key", "google_api_key", "mistral_api_key", "key", "token"),
        "api_token",
        *("nvidia_api_key", "nomic_api_key", "jina_api_key", "fireworks_api_key", "together_api_key"),
        *("dashscope_api_key", "huggingfacehub_api_token", "azure_ad_token_provider"),
    ),
    "model": ("model_name", "model_id", "repo_id", "model_name_or_path", "engine", "deployment", "deployment_name"),
    "base_url": ("openai_api_base", "api_base", "endpoint", "endpoint_url", "url", "host", "azure_endpoint"),
    "headers": ("default_headers", "extra_headers"),
    "dimensions": (
        *("dim", "dims", "size", "output_dimension", "output_dimensionality", "dimensionality", "truncate_dim"),
    ),
    "dtype": ("embedding_type", "embedding_types", "output_dtype", "encoding"),
    "cache": ("embeddings_cache",),
    "query_prompt": ("query_instruction", "query_prefix"),
    "document_prompt": ("text_instruction", "embed_instruction", "document_instruction", "document_prefix"),
    "on_long_text": (
        *("truncation", "truncate", "max_length", "embedding_ctx_length", "check_embedding_ctx_length"),
        "long_text_mode",
    ),
    "on_empty_text": ("skip_empty",),
    "max_batch_texts": ("chunk_size", "batch_size", "embed_batch_size"),
    "max_concurrency": ("num_workers", "max_workers", "workers", "parallel"),
    "timeout": ("request_timeout",),
    "provider_options": ("model_kwargs", "additional_kwargs", "encode_kwargs", "extra_body"),
    "progress": ("show_progress", "show_progress_bar"),
    "proxy": ("openai_proxy", "proxies"),
}
ADVICE: Mapping[str, str] = {
    **{name: f"use {argument}=" for argument, names in MEANT.items() for name in names},
    **{name: _LOCAL.format(name) for name in _LOCAL_OPTIONS},
    **dict.fromkeys(("input_type", "task_type", "mode"), _QUERIES),
    **dict.fromkeys(("cache_folder", "cache_dir"), "models are in HF_HUB_CACHE; for the cache of vectors, use cache="),
    "trust_remote_code": "the code of a model is never run here",
    **dict.fromkeys(("normalize", "normalize_embeddings"), "vectors have length 1 if the model documents it"),
    **dict.fromkeys(("organization", "openai_organization"), "set the environment variable OPENAI_ORG_ID"),
    **dict.fromkeys(("region_name", "region", "aws_region"), "set the environment variable AWS_REGION"),
    **dict.fromkeys(("credentials_profile_name", "profile_name"), "set the environment variable AWS_PROFILE"),
    **{
        name: f"set the environment variable {name.upper()}"
        for name in ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
    },
    **dict.fromkeys(
        ("api_version", "openai_api_version"), "Azure's v1 endpoint needs none; use model='azure:DEPLOYMENT'"
    ),
    **dict.fromkeys(
        (
            *("http_client", "http_async_client", "async_http_client", "httpx_client", "httpx_async_client"),
            *("client", "async_client", "client_kwargs"),
        ),
        "use headers=, proxy=, ca_bundle= and client_cert=",
    ),
    **dict.fromkeys(("client_options", "http_options", "client_args"), "use base_url=, headers= and proxy="),
    **dict.fromkeys(("project", "project_id"), _GOOGLE_CLOUD.format("GOOGLE_CLOUD_PROJECT")),
    "location": _GOOGLE_CLOUD.format("GOOGLE_CLOUD_LOCATION"),
    "credentials": _GOOGLE_CLOUD.format("GOOGLE_APPLICATION_CREDENTIALS to the file"),
    "vertexai": "use model='vertex:...'",
    "account_id": "set the environment variable CLOUDFLARE_ACCOUNT_ID",
    **dict.fromkeys(("user", "encoding_format"), "additional fields of the request are provider_options="),
}
_PROVIDERS: Mapping[str, str] = {  # of LiteLLM, LangChain and the providers themselves, without separators
    "aigateway": "vercel",
    "alibaba": "dashscope",
    "aws": "bedrock",
    "amazon": "bedrock",
    "azureopenai": "azure",
    "bigmodel": "zhipu",
    "cf": "cloudflare",
    "fireworksai": "fireworks",
    "gemini": "google",
    "googleai": "google",
    "googlegenai": "google",
    "googlevertexai": "vertex",
    "hf": "local",
    "hostedvllm": "vllm",
    "huggingface": "local",
    "jinaai": "jina",
    "litellmproxy": "litellm",
    "llamaserver": "llamacpp",
    "mistralai": "mistral",
    "models": "google",  # the Gemini API's "models/gemini-embedding-001"
    "nim": "nvidia",
    "nvidianim": "nvidia",
    "perplexityai": "perplexity",
    "pplx": "perplexity",
    "qwen": "dashscope",
    "sentencetransformers": "local",
    "textembeddingsinference": "tei",
    "togetherai": "together",
    "vercelaigateway": "vercel",
    "vertexai": "vertex",
    "voyageai": "voyage",
    "workersai": "cloudflare",
    "zai": "zhipu",
    "zhipuai": "zhipu",
}


def provider_meant(name: str, known: Iterable[str]) -> str | None:
    """Return the known provider that another library or spelling calls `name`, None if there is none."""
    plain = {_without_separators(one): one for one in known}
    written = _without_separators(name)
    return plain.get(_PROVIDERS.get(written, written))


def _without_separators(name: str) -> str:
    return re.sub(r"[-_. ]", "", name).lower()
