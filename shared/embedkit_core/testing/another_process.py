"""What another process finds in a cache: the suite's class is imported there, and makes the cache anew."""

from __future__ import annotations

import importlib.util
import inspect
import json
import pickle
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from embedkit_core.cache import Entry
from embedkit_core.testing.suite import skip

SECONDS = 100
CHILD = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from embedkit_core.testing.another_process import answer
answer()
"""


def found_by_another_process(suite: Any, folder: Path, keys: Sequence[bytes]) -> dict[bytes, Entry]:
    """Give what a process that is started now finds under keys; skip where it cannot make the cache."""
    of = type(suite)
    if "<locals>" in of.__qualname__:
        skip(f"another process cannot import {of.__qualname__}: define the suite at the top of its module")
    try:
        asked = pickle.dumps((vars(suite), str(folder), list(keys)))
    except Exception as error:
        skip(f"what the fixtures of {of.__name__} set cannot be pickled for another process ({type(error).__name__})")
    head = json.dumps([of.__module__, inspect.getfile(of), of.__qualname__]).encode()
    # It is this interpreter that is started, with code of ours.
    run = subprocess.run(  # noqa: S603
        [sys.executable, "-c", CHILD, json.dumps(sys.path)],
        input=head + b"\n" + asked,
        capture_output=True,
        timeout=SECONDS,
        check=False,
    )
    said = run.stdout.rpartition(b"\n--answer--\n")
    if not said[1]:
        raise AssertionError(f"another process fails to read the cache: {run.stderr.decode(errors='replace')[-2000:]}")
    answered: dict[str, Any] = json.loads(said[2])
    if "unmade" in answered:
        skip(f"another process cannot make the cache ({answered['unmade']})")
    return {
        bytes.fromhex(key): Entry(np.frombuffer(bytes.fromhex(row), dtype=np.float32), truncated)
        for key, row, truncated in answered["found"]
    }


def answer() -> None:
    """Read the cache that standard input names, and print what is in it."""
    module, file, name = json.loads(sys.stdin.buffer.readline())
    try:
        suite: Any = _imported(module, file)
        for part in name.split("."):
            suite = getattr(suite, part)
        state, folder, keys = pickle.loads(sys.stdin.buffer.read())  # noqa: S301 - the suite's own process wrote it
        made = suite()
        vars(made).update(state)
        cache = made.make(Path(folder))
    except Exception as error:
        said: dict[str, Any] = {"unmade": f"{type(error).__name__}: {error}"}
    else:
        found = cache.get_many(keys)
        said = {"found": [(key.hex(), entry.vector.tobytes().hex(), entry.truncated) for key, entry in found.items()]}
    print("\n--answer--\n" + json.dumps(said), flush=True)


def _imported(name: str, file: str) -> object:
    """Import a test's module by its name, or from its file where pytest has not put that on the path."""
    try:
        found = import_module(name)
        if Path(inspect.getfile(found)).samefile(file):
            return found
    except (ImportError, TypeError, OSError):
        pass
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None  # noqa: PT018
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
