"""An embedder whose process dies at a certain text, in a module that the workers of Ray can import."""

import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from embedkit_core import Embedder, EmbeddingResult

POISON = "poison"
DEATHS = "EMBEDKIT_BENCH_DEATHS"  # environment variable with a file, which gets a line for each death


class PoisonedEmbedder(Embedder):
    """Kills its process before it embeds `POISON`."""

    def embed(self, texts: Iterable[str], **arguments: Any) -> EmbeddingResult:
        """Embed texts, unless one is `POISON`."""
        texts = list(texts)
        if POISON in texts:
            with Path(os.environ[DEATHS]).open("a", encoding="utf-8") as file:
                file.write(f"{os.getpid()}\n")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().embed(texts, **arguments)
