"""The folder of a model: where it is, which model of the hub it holds, what its files say, and its identity.

Everything is read without loading the model, and nothing is fetched. A model's identity in a key is the digest of its
configuration and weights, so that a moved copy shares its vectors and a changed one does not.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.types import InputType

OWN_CODE = (
    "it brings code of its own, which is never run here. Serve it with a server (text-embeddings-inference, vLLM) and "
    "name its base_url=, or take a model whose architecture transformers knows"
)
FILES = ("*.json", "*.txt", "*.model", "*.safetensors", "*.bin", "*.py")
OURS = "sentence-transformers"  # the owner whose models are named without one
KEEP_WIDTH = ("Transformer", "Normalize", "LayerNorm", "Dropout")  # modules whose vectors are as wide as they were
DOCUMENT_PROMPTS = ("document", "passage", "corpus")  # the names that encode_document looks for, in its order


def find_folder(name: str) -> Path:
    """Give the folder of a model: a path, or a name in the local Hugging Face cache. Nothing is fetched."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "modules.json").is_file():
            raise ConfigurationError(f"{name} holds no modules.json, so it is no sentence-transformers model")
        return folder.resolve()
    if _may_be_hub_name(name):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

        try:
            found = Path(snapshot_download(hub_name(name), local_files_only=True)).resolve()
        except (LocalEntryNotFoundError, HFValidationError, OSError):
            pass
        else:
            if (found / "modules.json").is_file():
                return found
            raise ConfigurationError(
                f"{name} in the local Hugging Face cache holds no modules.json: it is no sentence-transformers model, "
                "or was not downloaded whole (hf download OWNER/NAME)"
            )
    raise ConfigurationError(
        f"no model {name!r} on this machine: give an existing folder (local:/path/to/model), or download it once "
        "(hf download OWNER/NAME); nothing is fetched at run time"
    )


def hub_name(name: str) -> str:
    """Give the name on the hub of a model: of a folder in the Hugging Face cache, or of a name without an owner.

    Such a folder is models--OWNER--NAME/snapshots/REVISION. What is neither stays as it is.
    Source: huggingface.co/docs/huggingface_hub/guides/manage-cache, read 2026-11-25.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        parts = folder.absolute().parts[-3:]
        if len(parts) == 3 and parts[0].startswith("models--") and parts[1] == "snapshots":
            return parts[0].removeprefix("models--").replace("--", "/")
        return name
    return f"{OURS}/{name}" if _may_be_hub_name(name) and "/" not in name else name


def _may_be_hub_name(name: str) -> bool:
    return name.count("/") <= 1 and not name.startswith((".", "~", "/"))


class FolderInfo:
    """What the files of a model say of it; None where they say nothing.

    `max_tokens` is where its configuration has texts cut, `positions` how many tokens it has room for at all.
    `prompts` are those of its own, None where it has none: sentence-transformers writes empty ones for a model that
    nobody gave any, so that only a prompt that is not empty says that the model was asked.
    """

    def __init__(self, folder: Path) -> None:
        self.prompts = _prompts(_read(folder / "config_sentence_transformers.json").get("prompts") or {})
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        if foreign := [m["type"] for m in modules if not m["type"].startswith("sentence_transformers.")]:
            raise ConfigurationError(f"{folder.name} needs {foreign[0]}: {OWN_CODE}")
        self.asymmetric = any("Router" in m["type"] or "Asym" in m["type"] for m in modules)
        transformer = folder / next((m["path"] for m in modules if m["type"].endswith("Transformer")), "")
        self.max_tokens: int | None = _read(transformer / "sentence_bert_config.json").get("max_seq_length")
        self.positions = _positions(transformer)
        self.dimensions = _width(folder, modules)


def _prompts(named: Mapping[str, str]) -> dict[InputType, str] | None:
    query = named.get("query") or ""
    document = next((named[name] for name in DOCUMENT_PROMPTS if name in named), "") or ""
    return {"query": query, "document": document} if query or document else None


def _positions(transformer: Path) -> int | None:
    """Give the tokens that a model has room for: as sentence-transformers reckons where nobody has set a limit."""
    model = _read(transformer / "config.json").get("max_position_embeddings")
    tokenizer = _read(transformer / "tokenizer_config.json").get("model_max_length")
    return min((int(n) for n in (model, tokenizer) if isinstance(n, (int, float))), default=None)


def _width(folder: Path, modules: list[dict[str, Any]]) -> int | None:
    """Give the width of the last module that states one; None where only a vector can tell."""
    width: int | None = None
    for module in modules:
        config = _read(folder / module["path"] / "config.json")
        if module["type"].endswith("Pooling"):
            size = config.get("word_embedding_dimension", config.get("embedding_dimension"))
            width = size * _modes(config) if size else None
        elif module["type"].endswith("Dense"):
            width = config.get("out_features")
        elif not module["type"].endswith(KEEP_WIDTH):
            return None
    return width or None


def _modes(pooling: Mapping[str, Any]) -> int:
    """Count what a pooling puts side by side: a name or a list since sentence-transformers 6, flags before."""
    named = pooling.get("pooling_mode")
    if named is not None:
        return 1 if isinstance(named, str) else len(named)
    return sum(1 for name, on in pooling.items() if name.startswith("pooling_mode_") and on is True)


def folder_digest(folder: Path) -> str:
    """Give the SHA-256 of a model's configuration and weights, remembered by path, size and time of change."""
    paths = sorted(path for path in _files(folder) if any(path.match(pattern) for pattern in FILES))
    stats = [(path.relative_to(folder).as_posix(), path.stat()) for path in paths]
    return _digest(str(folder), tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats))


def _files(folder: Path) -> Iterator[Path]:
    """Give the files of a model, those in folders that are links too: whoever loads it follows them."""
    seen: set[Path] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if (real := Path(place).resolve()) in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(place, name) for name in names)


@cache
def _digest(folder: str, files: tuple[tuple[str, int, int], ...]) -> str:
    whole = hashlib.sha256()
    for name, _, _ in files:
        with (Path(folder) / name).open("rb") as file:
            part = hashlib.file_digest(file, "sha256").hexdigest()
        whole.update(f"{name}\0{part}\n".encode())
    return whole.hexdigest()


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    found: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
