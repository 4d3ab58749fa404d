"""The command `rag-embedkit`, extra `cli`: chores and decisions around embeddings without writing code."""

from __future__ import annotations

import importlib.util
import os
import sys


def main() -> None:
    """Run the command; exit codes are listed in docs/cli.md."""
    missing = [name for name in ("typer", "rich") if importlib.util.find_spec(name) is None]
    if missing:
        sys.stderr.write('rag-embedkit: the command needs an extra: pip install "rag-embedkit[cli]"\n')
        sys.exit(2)
    # A local model that is loaded draws bars of its own, between ours and with --quiet too.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from embedkit_core.cli.run import run

    sys.exit(run())
