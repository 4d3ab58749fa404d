"""Copies of MiniLM as they lie about: in the Hugging Face cache, by another name."""

import json
import shutil
from pathlib import Path

from .embedders import FOLDER, WEIGHTS

REVISION = "0123456789abcdef0123456789abcdef01234567"


def in_hub_cache(hub: Path, name: str, *, prompts: dict[str, str] | None = None) -> Path:
    """Put MiniLM into a Hugging Face cache under a name; give the folder of its only revision."""
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
    """Change what a file of a model says."""
    config = json.loads((folder / file).read_text(encoding="utf-8"))
    (folder / file).write_text(json.dumps(config | settings), encoding="utf-8")


def static_model(folder: Path) -> Path:
    """Make a model of one table, as model2vec has them: MiniLM's words, and vectors that a seed draws."""
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
