"""The folder of a local model: its location, its name on the Hugging Face Hub and its configuration.

The model is not loaded and nothing is downloaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.types import InputType
from embedkit_core.providers import catalogue

CUSTOM_CODE = (
    "the model has custom code, which is never run here. Serve it with text-embeddings-inference or vLLM and pass "
    "base_url=, or use a model whose architecture transformers supports."
)
DEFAULT_OWNER = "sentence-transformers"  # for names without an owner
SAME_WIDTH_MODULES = ("Transformer", "Normalize", "LayerNorm", "Dropout")
# Flags before sentence-transformers 6, and the names of these modes since.
POOLING_FLAGS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "lasttoken",
}
DOCUMENT_PROMPTS = ("document", "passage", "corpus")  # in the order of encode_document


def find_folder(
    name: str,
    *,
    provider: str = "local",
    owner: str = DEFAULT_OWNER,
    kind: str = "a sentence-transformers model",
    files: tuple[str, ...] = ("modules.json",),
) -> Path:
    """Return the folder of a model, a path or a name in the local Hugging Face cache. Nothing is downloaded.

    Args:
        name: The path or name.
        provider: The provider of the model, for the message.
        owner: Owner of names without one.
        kind: Kind of the model, for the message.
        files: Files of which such a model has at least one.

    Raises:
        ConfigurationError: There is no such model, or it is of another kind.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not _has_any(folder, files):
            raise ConfigurationError(f"{name} has no {files[0]}, so it is not {kind}")
        return folder.resolve()
    if _may_be_hub_name(name):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

        try:
            snapshot = Path(snapshot_download(hub_name(name, owner), local_files_only=True)).resolve()
        except (LocalEntryNotFoundError, HFValidationError, OSError):
            pass
        else:
            if _has_any(snapshot, files):
                return snapshot
            raise ConfigurationError(
                f"{name} in the local Hugging Face cache has no {files[0]}: it is not {kind}, or its download is "
                "incomplete. Download it with: hf download OWNER/NAME"
            )
    hosts = ", ".join(f"'{one}:{name}'" for one in catalogue.providers_of(name) if one != "local")
    raise ConfigurationError(
        f"No model {name!r} on this machine. Pass an existing folder ({provider}:/path/to/model), or download the "
        "model once (hf download OWNER/NAME). Nothing is downloaded at run time."
        + (f" These services have it: {hosts}." if hosts else "")
    )


def _has_any(folder: Path, files: tuple[str, ...]) -> bool:
    return any((folder / file).is_file() for file in files)


def hub_name(name: str, owner: str = DEFAULT_OWNER) -> str:
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
    return f"{owner}/{name}" if _may_be_hub_name(name) and "/" not in name else name


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
        transformer: Folder of the transformer, with its tokenizer.
        pooling: Pooling mode of all tokens, such as "mean"; None if there are several, or layers besides normalization.
    """

    def __init__(self, folder: Path) -> None:
        self.prompts = _prompts(read_json(folder / "config_sentence_transformers.json").get("prompts") or {})
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        if custom := [m["type"] for m in modules if not m["type"].startswith("sentence_transformers.")]:
            raise ConfigurationError(f"{folder.name} needs {custom[0]}: {CUSTOM_CODE}")
        self.asymmetric = any("Router" in m["type"] or "Asym" in m["type"] for m in modules)
        self.transformer = folder / next((m["path"] for m in modules if m["type"].endswith("Transformer")), "")
        self.max_tokens: int | None = read_json(self.transformer / "sentence_bert_config.json").get("max_seq_length")
        self.positions = _positions(self.transformer)
        self.pooling = _pooling(folder, modules)
        self.dimensions = _width(folder, modules)


def _prompts(named: Mapping[str, str]) -> dict[InputType, str] | None:
    query = named.get("query") or ""
    document = next((named[name] for name in DOCUMENT_PROMPTS if name in named), "") or ""
    return {"query": query, "document": document} if query or document else None


def _positions(transformer: Path) -> int | None:
    """Return the maximum tokens of a model, as sentence-transformers computes it if no limit is set."""
    model = read_json(transformer / "config.json").get("max_position_embeddings")
    tokenizer = read_json(transformer / "tokenizer_config.json").get("model_max_length")
    return min((int(n) for n in (model, tokenizer) if isinstance(n, (int, float))), default=None)


def _width(folder: Path, modules: list[dict[str, Any]]) -> int | None:
    """Return the width of the last module that states one, None if only a vector shows it."""
    width: int | None = None
    for module in modules:
        config = read_json(folder / module["path"] / "config.json")
        if module["type"].endswith("Pooling"):
            size = config.get("word_embedding_dimension", config.get("embedding_dimension"))
            width = size * len(_pooling_modes(config)) if size else None
        elif module["type"].endswith("Dense"):
            width = config.get("out_features")
        elif not module["type"].endswith(SAME_WIDTH_MODULES):
            return None
    return width or None


def _pooling(folder: Path, modules: list[dict[str, Any]]) -> str | None:
    kinds = [module["type"].rpartition(".")[2] for module in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        return None
    config = read_json(folder / modules[1]["path"] / "config.json")
    modes = _pooling_modes(config)
    return modes[0] if len(modes) == 1 and config.get("include_prompt", True) else None


def _pooling_modes(pooling: Mapping[str, Any]) -> list[str]:
    """Return the concatenated pooling modes: a name or list since sentence-transformers 6, flags before."""
    modes = pooling.get("pooling_mode")
    if modes is not None:
        return [modes] if isinstance(modes, str) else list(modes)
    flags = [name for name, enabled in pooling.items() if name.startswith("pooling_mode_") and enabled is True]
    return [POOLING_FLAGS.get(flag, flag) for flag in flags]


def read_json(path: Path) -> Mapping[str, Any]:
    """Return the object in a JSON file, an empty one if there is no such file."""
    if not path.is_file():
        return {}
    content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
