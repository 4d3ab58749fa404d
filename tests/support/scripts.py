"""Programs that tests run in other processes, to interrupt, kill and fork them."""

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
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs start with SIGINT ignored
url, cache = sys.argv[1:3]
embedder = Embedder("text-embedding-3-small", base_url=url, api_key="test-key", cache=cache)
"""


def start(body: str, url: str, cache: Path, *more: str) -> subprocess.Popen[str]:
    """Start a program with an `embedder` at a server with a cache folder; `more` are further arguments."""
    return subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + textwrap.dedent(body), url, str(cache), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def interrupt(process: subprocess.Popen[str], server: OpenAIServer) -> str:
    """Interrupt a program that has sent one request and has 16 more in flight; return the line that it prints."""
    server.wait_for_requests(1)
    server.hold()
    server.wait_for_requests(17, timeout=30)
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    return process.stdout.readline()


def finish(process: subprocess.Popen[str], timeout: float = 60.0) -> str:
    """Wait for a program to succeed; return its output."""
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == 0, err
    return out
