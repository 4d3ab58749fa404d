"""Programs that the tests run as processes of their own, to be interrupted, killed and forked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

from .openai_server import OpenAIServer

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


def interrupt(process: subprocess.Popen[str], server: OpenAIServer) -> str:
    """Interrupt a program that has sent one request, once it has 16 more in flight and held, and give what it says."""
    server.wait_for_requests(1)
    server.hold()
    server.wait_for_requests(17, timeout=30)
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    return process.stdout.readline()


def finish(process: subprocess.Popen[str], timeout: float = 60.0) -> str:
    """Wait for a program to end well and give what it printed."""
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == 0, err
    return out
