"""CPU of the engine's thread for a text, and the part of it that parses and decodes replies.

The server answers at once, with base64 or with JSON lists of numbers. Both parts are measured by the CPU clock of the
thread.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Callable
from functools import wraps
from typing import Any

from benchmarks.speed.bench import NO_LATENCY, running
from benchmarks.speed.control import reset
from benchmarks.speed.corpus import make_texts
from benchmarks.speed.setting import KEY, MODEL
from embedkit_core import Embedder
from embedkit_core.providers.http.decoding import ReplyReader

TEXTS = 10_000
KINDS: dict[str, dict[str, Any]] = {"base64": {}, "JSON numbers": {"float_lists": True, "prepare": ["floats"]}}
_spent = {"decoding": 0.0}
_inside = threading.local()


def timed(method: Callable[..., Any]) -> Callable[..., Any]:
    """Add the CPU time of the outermost call on a thread."""

    @wraps(method)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if getattr(_inside, "decoding", False):
            return method(*args, **kwargs)
        _inside.decoding = True
        began = time.thread_time()
        try:
            return method(*args, **kwargs)
        finally:
            _spent["decoding"] += time.thread_time() - began
            _inside.decoding = False

    return wrapper


def engine_seconds() -> float:
    """Return the CPU seconds of the engine's thread so far."""
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "embedkit-engine"]
    assert thread.ident is not None
    return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    for name in ("load", "read_data", "read_rows"):
        setattr(ReplyReader, name, timed(getattr(ReplyReader, name)))
    texts = make_texts(TEXTS)
    print("| replies | CPU of the engine's thread per text | decoding per text | share |")
    print("| --- | --- | --- | --- |")
    with running() as bench:
        for kind, server in KINDS.items():
            reset(bench.port, NO_LATENCY | server)
            embedder = Embedder(
                MODEL, base_url=f"http://127.0.0.1:{bench.port}/v1", api_key=KEY, cache=False, max_concurrency=16
            )
            embedder.embed(texts[:512])
            totals, decoding = [], []
            for _ in range(rounds):
                began, _spent["decoding"] = engine_seconds(), 0.0
                embedder.embed(texts)
                totals.append((engine_seconds() - began) / TEXTS * 1e6)
                decoding.append(_spent["decoding"] / TEXTS * 1e6)
            total, part = statistics.median(totals), statistics.median(decoding)
            print(f"| {kind} | {total:.1f} us | {part:.1f} us | {part / total:.0%} |", flush=True)
            embedder.close()
