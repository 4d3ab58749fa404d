"""Copies of MiniLM: in a Hugging Face cache, under another name, with other settings."""

import json
import shutil
from pathlib import Path

from .embedders import FOLDER, WEIGHTS

REVISION = "0123456789abcdef0123456789abcdef01234567"


def in_hub_cache(hub: Path, name: str, *, prompts: dict[str, str] | None = None) -> Path:
    """Copy MiniLM into a Hugging Face cache under a name; return the folder of its revision."""
    model = hub / f"models--{name.replace('/', '--')}"
    folder = model / "snapshots" / REVISION
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns(WEIGHTS))
    (folder / WEIGHTS).symlink_to(Path(FOLDER) / WEIGHTS)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(REVISION)
    if prompts is not None:
        configure(folder, prompts=prompts)
    return folder


def configure(folder: Path, file: str = "config_sentence_transformers.json", **settings: object) -> None:
    """Change settings in a JSON file of a model."""
    config = json.loads((folder / file).read_text(encoding="utf-8"))
    (folder / file).write_text(json.dumps(config | settings), encoding="utf-8")


def static_model(folder: Path) -> Path:
    """Make a static embedding model, as model2vec does: MiniLM's vocabulary with seeded random vectors."""
    import numpy as np
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import StaticEmbedding
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(FOLDER) / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    weights = np.random.default_rng(0).standard_normal((tokenizer.get_vocab_size(), 32)).astype(np.float32)
    module = StaticEmbedding(tokenizer, embedding_weights=weights)
    SentenceTransformer(modules=[module], device="cpu").save(str(folder), create_model_card=False)
    return folder
