"""Exact lengths in tokens, where a tokenizer is installed and its vocabulary is on this machine; nothing is fetched."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

# What tiktoken looks for, and the digest it would fetch the file again without. Source: tiktoken_ext/openai_public.py.
_VOCABULARIES = {
    "cl100k_base": (
        "https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken",
        "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    )
}


LONGEST = 400_000  # characters that are counted: more are too long for any model, and take long


@cache
def tiktoken_counter(encoding: str) -> Callable[[str], int | None] | None:
    """Give what counts the tokens of a text in one of OpenAI's encodings, or None where that would fetch something."""
    url, digest = _VOCABULARIES[encoding]
    if importlib.util.find_spec("tiktoken") is None or not _is_here(url, digest):
        return None
    import tiktoken

    encoder = tiktoken.get_encoding(encoding)

    def count(text: str) -> int | None:
        if len(text) > LONGEST:
            return None
        try:
            return len(encoder.encode_ordinary(text))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # what goes wrong in its Rust is no Exception
            return None

    return count


def _is_here(url: str, digest: str) -> bool:
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    if folder == "":  # which switches its cache off
        return False
    file = Path(folder or Path(tempfile.gettempdir()) / "data-gym-cache")
    file /= hashlib.sha1(url.encode(), usedforsecurity=False).hexdigest()
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest() == digest
    except OSError:
        return False
