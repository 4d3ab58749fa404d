"""The `rag-embedkit` command (extra `cli`): embed files, estimate costs, compare models, maintain the cache."""

from __future__ import annotations

import importlib.util
import io
import logging
import os
import signal
import sys
from pathlib import Path


def main() -> None:
    """Run the command and exit; docs/cli.md lists the exit codes."""
    _open_closed_streams()
    missing = [name for name in ("typer", "rich") if importlib.util.find_spec(name) is None]
    if missing:
        sys.stderr.write('rag-embedkit: the "cli" extra is not installed. Run: pip install "rag-embedkit[cli]"\n')
        sys.exit(2)
    # Loading a local model would draw further progress bars, even with --quiet.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        from embedkit_core.cli.completion import run_completion
        from embedkit_core.cli.console import LogHandler
        from embedkit_core.cli.run import run

        logging.getLogger("embedkit_core").addHandler(LogHandler())
        if isinstance(sys.stdout, io.TextIOWrapper):  # a file name need not be valid Unicode
            sys.stdout.reconfigure(errors="backslashreplace")
        code = run_completion(run)
    except KeyboardInterrupt:  # while the command was loaded, or for the second time
        code = 130
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the wait for requests in flight without a traceback
    sys.exit(code)


def _open_closed_streams() -> None:
    """Open output streams that the caller has closed, so that nothing needs to check for them."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - until the process ends
