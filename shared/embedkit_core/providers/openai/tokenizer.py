"""Exact token counts with tiktoken, if it is installed and its vocabulary is cached. Nothing is downloaded."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

# URL and SHA-256 of each file; tiktoken downloads a file with another digest. Source: tiktoken_ext/openai_public.py.
_VOCABULARIES = {
    "cl100k_base": (
        "https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken",
        "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    )
}

MAX_COUNTED_CHARACTERS = 400_000  # longer texts exceed every model and take long to count


@cache
def tiktoken_counter(encoding: str) -> Callable[[str], int | None] | None:
    """Return a function that counts tokens in an OpenAI encoding, or None if that needs a download."""
    url, digest = _VOCABULARIES[encoding]
    if importlib.util.find_spec("tiktoken") is None or not _is_cached(url, digest):
        return None
    import tiktoken

    encoder = tiktoken.get_encoding(encoding)

    def count(text: str) -> int | None:
        if len(text) > MAX_COUNTED_CHARACTERS:
            return None
        try:
            return len(encoder.encode_ordinary(text))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # a panic in its Rust code is not an Exception
            return None

    return count


def _is_cached(url: str, digest: str) -> bool:
    import tempfile

    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    if folder == "":  # an empty value turns the cache off
        return False
    file = Path(folder or Path(tempfile.gettempdir()) / "data-gym-cache")
    file /= hashlib.sha1(url.encode(), usedforsecurity=False).hexdigest()
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest() == digest
    except OSError:
        return False
