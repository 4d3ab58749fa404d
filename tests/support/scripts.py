"""Programs that the tests run as processes of their own, to be interrupted, killed and forked."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

PREAMBLE = """
import asyncio, os, signal, sys, threading
from embedkit_core import Embedder
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background starts with SIGINT ignored
url, cache = sys.argv[1:3]
embedder = Embedder("text-embedding-3-small", base_url=url, api_key="test-key", cache=cache)
"""


def start(body: str, url: str, cache: Path, *more: str) -> subprocess.Popen[str]:
    """Start a program that has an `embedder` for a server and a cache folder; `more` are its last arguments."""
    return subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + textwrap.dedent(body), url, str(cache), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def finish(process: subprocess.Popen[str], timeout: float = 60.0) -> str:
    """Wait for a program to end well and give what it printed."""
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == 0, err
    return out
