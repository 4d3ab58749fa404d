"""The OpenAI SDK, connected to the local server."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import openai
from openai.types import CreateEmbeddingResponse

from .openai_server import OpenAIServer, vector_of

MODEL = "text-embedding-3-small"
Rows = np.ndarray[tuple[int, int], np.dtype[np.float32]]


def client(server: OpenAIServer, **options: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(**{"base_url": server.base_url, "api_key": "test-key", "max_retries": 0, **options})


async def embed(
    server: OpenAIServer,
    texts: Any,
    *,
    model: str = MODEL,
    client_options: dict[str, Any] | None = None,
    **options: Any,
) -> CreateEmbeddingResponse:
    """Send one request with the SDK, without retries."""
    async with client(server, **(client_options or {})) as api:
        return await api.embeddings.create(model=model, input=texts, **options)


def vectors(reply: CreateEmbeddingResponse) -> Rows:
    """Return the rows of a reply, float32 (n_texts, dimensions), in its order."""
    return np.array([item.embedding for item in reply.data], dtype=np.float32)


def expected(texts: Iterable[str], **options: Any) -> Rows:
    """Return the expected rows, float32 (n_texts, dimensions)."""
    return np.array([vector_of(text, **options) for text in texts])
