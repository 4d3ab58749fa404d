"""Settings and texts whose cache keys are committed; `python tests/support/golden.py` prints the keys."""

import json

from embedkit_core import Embedder

SMALL = "openai:text-embedding-3-small"
CASES: dict[str, tuple[dict[str, object], str, str]] = {
    "a document": ({"model": SMALL}, "document", "hello"),
    "a query of a symmetric model is its document": ({"model": SMALL}, "query", "hello"),
    "the default dimensions, named": ({"model": SMALL, "dimensions": 1536}, "document", "hello"),
    "fewer dimensions": ({"model": SMALL, "dimensions": 256}, "document", "hello"),
    "another model": ({"model": "openai:text-embedding-3-large"}, "document", "hello"),
    "a model without dimensions of its own": ({"model": "openai:text-embedding-ada-002"}, "document", "hello"),
    "another host": ({"model": SMALL, "base_url": "https://gateway.example/v1"}, "document", "hello"),
    "the provider's own host, named": (
        {"model": SMALL, "base_url": "https://API.openai.com:443/v1/"},
        "document",
        "hello",
    ),
    "an unknown model at a compatible server": (
        {"model": "nomic-embed-text:latest", "base_url": "http://localhost:11434/v1"},
        "document",
        "hello",
    ),
    "a query prompt": ({"model": SMALL, "query_prompt": "query: "}, "query", "hello"),
    "a document beside a query prompt": ({"model": SMALL, "query_prompt": "query: "}, "document", "hello"),
    "an option of the provider's": ({"model": SMALL, "provider_options": {"user": "u-1"}}, "document", "hello"),
    "long texts refused": ({"model": SMALL, "on_long_text": "error"}, "document", "hello"),
    "long texts averaged": ({"model": SMALL, "on_long_text": "mean"}, "document", "hello"),
    "a trailing space": ({"model": SMALL}, "document", "hello "),
    "a composed accent": ({"model": SMALL}, "document", "caf\u00e9"),
    "a decomposed accent": ({"model": SMALL}, "document", "cafe\u0301"),
    "a new line and an emoji": ({"model": SMALL}, "document", "line one\nline two \U0001f600"),
    "half the precision": ({"model": SMALL, "dtype": "float16"}, "document", "hello"),
    "the signs of fewer dimensions": ({"model": SMALL, "dtype": "ubinary", "dimensions": 256}, "document", "hello"),
    "other dimensions": ({"model": SMALL, "dimensions": 512}, "document", "hello"),
    "Voyage, a document": ({"model": "voyage:voyage-4"}, "document", "hello"),
    "Voyage, a query": ({"model": "voyage:voyage-4"}, "query", "hello"),
    "Voyage, another type and width": (
        {"model": "voyage:voyage-4", "dtype": "int8", "dimensions": 256},
        "document",
        "hello",
    ),
    "Voyage, without an input type": (
        {"model": "voyage:voyage-4", "provider_options": {"input_type": None}},
        "document",
        "hello",
    ),
    "Cohere, a document": ({"model": "cohere:embed-v4.0"}, "document", "hello"),
    "Cohere, a query": ({"model": "cohere:embed-v4.0"}, "query", "hello"),
    "Cohere, another type": ({"model": "cohere:embed-v4.0", "dtype": "binary"}, "document", "hello"),
    "Nomic, a document": ({"model": "nomic:nomic-embed-text-v1.5"}, "document", "hello"),
    "Nomic, a query of fewer dimensions": (
        {"model": "nomic:nomic-embed-text-v1.5", "dimensions": 256},
        "query",
        "hello",
    ),
    "hf-inference, a query": ({"model": "hf-inference:intfloat/multilingual-e5-large"}, "query", "hello"),
    "mistral, fewer dimensions": ({"model": "mistral:codestral-embed", "dimensions": 256}, "document", "hello"),
    "jina, a query": ({"model": "jina:jina-embeddings-v5-text-small"}, "query", "hello"),
    "jina, a task": ({"model": "jina:jina-embeddings-v5-text-small", "task": "clustering"}, "query", "hello"),
    "perplexity, float32": ({"model": "perplexity:pplx-embed-v1-4b"}, "document", "hello"),
    "perplexity, int8": ({"model": "perplexity:pplx-embed-v1-4b", "dtype": "int8"}, "document", "hello"),
    "deepinfra, a query": ({"model": "deepinfra:Qwen/Qwen3-Embedding-8B"}, "query", "hello"),
    "llamacpp": ({"model": "llamacpp:m"}, "document", "hello"),
    "hf-inference, an unknown model": ({"model": "hf-inference:an/unknown-model"}, "document", "hello"),
    "Gemini, a document": ({"model": "google:gemini-embedding-001"}, "document", "hello"),
    "Gemini, a query": ({"model": "google:gemini-embedding-001"}, "query", "hello"),
    "Gemini, fewer dimensions": ({"model": "google:gemini-embedding-001", "dimensions": 768}, "document", "hello"),
    "Gemini 2, a document": ({"model": "google:gemini-embedding-2"}, "document", "hello"),
    "Gemini 2, a query": ({"model": "google:gemini-embedding-2"}, "query", "hello"),
    "Gemini 2, a task": ({"model": "google:gemini-embedding-2", "task": "clustering"}, "query", "hello"),
    "Vertex AI, a document": ({"model": "vertex:gemini-embedding-001"}, "document", "hello"),
    "Vertex AI, a query": ({"model": "vertex:gemini-embedding-001"}, "query", "hello"),
    "Vertex AI, an older model": ({"model": "vertex:text-embedding-005"}, "document", "hello"),
    "Vertex AI, Gemini 2": ({"model": "vertex:gemini-embedding-2", "dimensions": 768}, "document", "hello"),
    "Bedrock, Titan 1": ({"model": "bedrock:amazon.titan-embed-text-v1"}, "query", "hello"),
    "Bedrock, Titan 2": ({"model": "bedrock:amazon.titan-embed-text-v2:0"}, "document", "hello"),
    "Bedrock, Titan 2 of fewer dimensions": (
        {"model": "bedrock:amazon.titan-embed-text-v2:0", "dimensions": 256},
        "document",
        "hello",
    ),
    "Bedrock, Nova, a document": ({"model": "bedrock:amazon.nova-2-multimodal-embeddings-v1:0"}, "document", "hello"),
    "Bedrock, Nova, a query": ({"model": "bedrock:amazon.nova-2-multimodal-embeddings-v1:0"}, "query", "hello"),
    "Bedrock, Cohere 3, a query": ({"model": "bedrock:cohere.embed-english-v3"}, "query", "hello"),
    "Bedrock, Cohere 4, a document": ({"model": "bedrock:cohere.embed-v4:0"}, "document", "hello"),
    "Bedrock, Cohere 4 in another region": (
        {"model": "bedrock:eu.cohere.embed-v4:0", "base_url": "https://bedrock-runtime.eu-west-1.amazonaws.com"},
        "document",
        "hello",
    ),
    "Bedrock, Cohere 4, another type and width": (
        {"model": "bedrock:cohere.embed-v4:0", "dtype": "int8", "dimensions": 256},
        "document",
        "hello",
    ),
    "Bedrock, an opaque ARN": (
        {
            "model": "bedrock:arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/abc",
            "model_info": {"like": "bedrock:cohere.embed-v4:0"},
        },
        "document",
        "hello",
    ),
    "Azure, the v1 endpoint": ({"model": "azure:dep", "base_url": "https://r.openai.azure.com"}, "document", "hello"),
    "Azure, the older route of the deployment": (
        {
            "model": "azure:dep",
            "base_url": "https://r.openai.azure.com/openai/deployments/dep/embeddings?api-version=2024-10-21",
        },
        "document",
        "hello",
    ),
    "Azure, the deployment in a project": (
        {"model": "azure:dep", "base_url": "https://r.services.ai.azure.com/api/projects/p"},
        "document",
        "hello",
    ),
    "Azure, a query of a model of Cohere": (
        {
            "model": "azure:dep",
            "base_url": "https://r.openai.azure.com",
            "model_info": {"like": "cohere:embed-v4.0"},
            "dimensions": 256,
        },
        "query",
        "hello",
    ),
    "an open model at a compatible server": (
        {"model": "vllm:nomic-ai/nomic-embed-text-v1.5", "dimensions": 256},
        "query",
        "hello",
    ),
}


def key(name: str) -> str:
    """Return the cache key of a case, in hexadecimal."""
    settings, input_type, text = CASES[name]
    embedder = Embedder(**settings, api_key="any", cache=False)
    return embedder.explain(text, input_type=input_type).key


if __name__ == "__main__":
    print(json.dumps({name: key(name) for name in CASES}, indent=2))
