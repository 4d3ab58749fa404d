"""Reading a cache from another process, which imports the suite's class and creates the cache again."""

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

TIMEOUT_SECONDS = 100
CHILD_CODE = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from embedkit_core.testing.another_process import print_entries
print_entries()
"""


def read_in_another_process(suite: Any, folder: Path, keys: Sequence[bytes]) -> dict[bytes, Entry]:
    """Return the entries that a new process finds under `keys`; skip the test if it cannot create the cache."""
    suite_class = type(suite)
    if "<locals>" in suite_class.__qualname__:
        skip(f"another process cannot import {suite_class.__qualname__}. Define the suite at the top of its module.")
    try:
        request = pickle.dumps((vars(suite), str(folder), list(keys)))
    except Exception as error:
        skip(f"attributes set by fixtures of {suite_class.__name__} cannot be pickled ({type(error).__name__})")
    header = json.dumps([suite_class.__module__, inspect.getfile(suite_class), suite_class.__qualname__]).encode()
    # Starts this interpreter with the code above.
    run = subprocess.run(  # noqa: S603
        [sys.executable, "-c", CHILD_CODE, json.dumps(sys.path)],
        input=header + b"\n" + request,
        capture_output=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    _, marker, output = run.stdout.rpartition(b"\n--answer--\n")
    if not marker:
        raise AssertionError(f"another process cannot read the cache: {run.stderr.decode(errors='replace')[-2000:]}")
    reply: dict[str, Any] = json.loads(output)
    if "error" in reply:
        skip(f"another process cannot create the cache ({reply['error']})")
    return {
        bytes.fromhex(key): Entry(np.frombuffer(bytes.fromhex(row), dtype=np.float32), truncated)
        for key, row, truncated in reply["entries"]
    }


def print_entries() -> None:
    """Print the entries of the cache described by standard input; runs in the other process."""
    module, file, name = json.loads(sys.stdin.buffer.readline())
    try:
        suite: Any = _import_module(module, file)
        for part in name.split("."):
            suite = getattr(suite, part)
        state, folder, keys = pickle.loads(sys.stdin.buffer.read())  # noqa: S301 - written by the parent process
        instance = suite()
        vars(instance).update(state)
        cache = instance.make(Path(folder))
    except Exception as error:
        reply: dict[str, Any] = {"error": f"{type(error).__name__}: {error}"}
    else:
        found = cache.get_many(keys)
        entries = [(key.hex(), entry.vector.tobytes().hex(), entry.truncated) for key, entry in found.items()]
        reply = {"entries": entries}
    print("\n--answer--\n" + json.dumps(reply), flush=True)


def _import_module(name: str, file: str) -> object:
    """Import a test module by name, or from its file if the module of that name is another one."""
    try:
        module = import_module(name)
        if Path(inspect.getfile(module)).samefile(file):
            return module
    except (ImportError, TypeError, OSError):
        pass
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None  # noqa: PT018
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
