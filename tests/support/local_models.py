"""Copies of MiniLM as they lie about: in the Hugging Face cache, by another name."""

import json
import shutil
from pathlib import Path

from support.embedders import FOLDER, WEIGHTS

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
