"""The folder of a local model: its location, its name on the Hugging Face Hub, its configuration and its digest.

The model is not loaded and nothing is downloaded. The digest of configuration and weights identifies a model in cache
keys, so that a moved copy shares the cached vectors and a changed model does not.
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

CUSTOM_CODE = (
    "the model has custom code, which is never run here. Serve it with text-embeddings-inference or vLLM and pass "
    "base_url=, or use a model whose architecture transformers supports."
)
DIGEST_FILES = ("*.json", "*.txt", "*.model", "*.safetensors", "*.bin", "*.py")
DEFAULT_OWNER = "sentence-transformers"  # for names without an owner
SAME_WIDTH_MODULES = ("Transformer", "Normalize", "LayerNorm", "Dropout")
DOCUMENT_PROMPTS = ("document", "passage", "corpus")  # in the order of encode_document


def find_folder(name: str) -> Path:
    """Return the folder of a model, a path or a name in the local Hugging Face cache. Nothing is downloaded.

    Raises:
        ConfigurationError: There is no such model, or it is not a sentence-transformers model.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "modules.json").is_file():
            raise ConfigurationError(f"{name} has no modules.json, so it is not a sentence-transformers model")
        return folder.resolve()
    if _may_be_hub_name(name):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

        try:
            snapshot = Path(snapshot_download(hub_name(name), local_files_only=True)).resolve()
        except (LocalEntryNotFoundError, HFValidationError, OSError):
            pass
        else:
            if (snapshot / "modules.json").is_file():
                return snapshot
            raise ConfigurationError(
                f"{name} in the local Hugging Face cache has no modules.json: it is not a sentence-transformers model, "
                "or its download is incomplete. Download it with: hf download OWNER/NAME"
            )
    raise ConfigurationError(
        f"No model {name!r} on this machine. Pass an existing folder (local:/path/to/model), or download the model "
        "once (hf download OWNER/NAME). Nothing is downloaded at run time."
    )


def hub_name(name: str) -> str:
    """Return the Hub name of a folder in the Hugging Face cache or of a name without an owner, else `name` itself.

    A folder in the cache is models--OWNER--NAME/snapshots/REVISION.
    Source: huggingface.co/docs/huggingface_hub/guides/manage-cache, read 2026-11-25.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        parts = folder.absolute().parts[-3:]
        if len(parts) == 3 and parts[0].startswith("models--") and parts[1] == "snapshots":
            return parts[0].removeprefix("models--").replace("--", "/")
        return name
    return f"{DEFAULT_OWNER}/{name}" if _may_be_hub_name(name) and "/" not in name else name


def _may_be_hub_name(name: str) -> bool:
    return name.count("/") <= 1 and not name.startswith((".", "~", "/"))


class FolderInfo:
    """Facts from the files of a model, each None if the files do not state it.

    Attributes:
        prompts: Prompts of the model, None if all are empty: sentence-transformers writes empty prompts by default.
        asymmetric: True if queries and documents are encoded differently.
        max_tokens: Length in tokens to which the configuration truncates texts.
        positions: Maximum tokens that the architecture supports.
        dimensions: Width of the vectors.
    """

    def __init__(self, folder: Path) -> None:
        self.prompts = _prompts(_read_json(folder / "config_sentence_transformers.json").get("prompts") or {})
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        if custom := [m["type"] for m in modules if not m["type"].startswith("sentence_transformers.")]:
            raise ConfigurationError(f"{folder.name} needs {custom[0]}: {CUSTOM_CODE}")
        self.asymmetric = any("Router" in m["type"] or "Asym" in m["type"] for m in modules)
        transformer = folder / next((m["path"] for m in modules if m["type"].endswith("Transformer")), "")
        self.max_tokens: int | None = _read_json(transformer / "sentence_bert_config.json").get("max_seq_length")
        self.positions = _positions(transformer)
        self.dimensions = _width(folder, modules)


def _prompts(named: Mapping[str, str]) -> dict[InputType, str] | None:
    query = named.get("query") or ""
    document = next((named[name] for name in DOCUMENT_PROMPTS if name in named), "") or ""
    return {"query": query, "document": document} if query or document else None


def _positions(transformer: Path) -> int | None:
    """Return the maximum tokens of a model, as sentence-transformers computes it if no limit is set."""
    model = _read_json(transformer / "config.json").get("max_position_embeddings")
    tokenizer = _read_json(transformer / "tokenizer_config.json").get("model_max_length")
    return min((int(n) for n in (model, tokenizer) if isinstance(n, (int, float))), default=None)


def _width(folder: Path, modules: list[dict[str, Any]]) -> int | None:
    """Return the width of the last module that states one, None if only a vector shows it."""
    width: int | None = None
    for module in modules:
        config = _read_json(folder / module["path"] / "config.json")
        if module["type"].endswith("Pooling"):
            size = config.get("word_embedding_dimension", config.get("embedding_dimension"))
            width = size * _count_pooling_modes(config) if size else None
        elif module["type"].endswith("Dense"):
            width = config.get("out_features")
        elif not module["type"].endswith(SAME_WIDTH_MODULES):
            return None
    return width or None


def _count_pooling_modes(pooling: Mapping[str, Any]) -> int:
    """Return the number of concatenated pooling modes: a name or list since sentence-transformers 6, flags before."""
    modes = pooling.get("pooling_mode")
    if modes is not None:
        return 1 if isinstance(modes, str) else len(modes)
    return sum(1 for name, enabled in pooling.items() if name.startswith("pooling_mode_") and enabled is True)


def folder_digest(folder: Path) -> str:
    """Return the SHA-256 of a model's configuration and weights, memoized by path, size and modification time."""
    paths = sorted(path for path in _files(folder) if any(path.match(pattern) for pattern in DIGEST_FILES))
    stats = [(path.relative_to(folder).as_posix(), path.stat()) for path in paths]
    return _digest(str(folder), tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats))


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files of a model, including linked folders, which are also followed when the model is loaded."""
    seen: set[Path] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        if (real := Path(parent).resolve()) in seen:  # a cycle of links
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(parent, name) for name in names)


@cache
def _digest(folder: str, files: tuple[tuple[str, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for name, _, _ in files:
        with (Path(folder) / name).open("rb") as file:
            file_digest = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{name}\0{file_digest}\n".encode())
    return digest.hexdigest()


def _read_json(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
