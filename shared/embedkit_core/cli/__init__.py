"""The command `rag-embedkit`, extra `cli`: chores and decisions around embeddings without writing code."""

from __future__ import annotations

import importlib.util
import sys


def main() -> None:
    """Run the command; exit codes are listed in docs/cli.md."""
    missing = [name for name in ("typer", "rich") if importlib.util.find_spec(name) is None]
    if missing:
        sys.stderr.write('rag-embedkit: the command needs an extra: pip install "rag-embedkit[cli]"\n')
        sys.exit(2)
    from embedkit_core.cli.app import run

    sys.exit(run())
