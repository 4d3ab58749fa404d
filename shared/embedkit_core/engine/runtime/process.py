"""The engine of this process, started with the first request.

It imports asyncio, which takes as long as reading some thousand vectors from a cache.
"""

from __future__ import annotations

import atexit
import os
import threading
from typing import TYPE_CHECKING

from embedkit_core.common.errors import EmbedKitError
from embedkit_core.common.fork_safety import ForkLock, import_module
from embedkit_core.common.threads import BULK, JOBS, LOOKUPS, SLOW_LOOKUPS

if TYPE_CHECKING:
    from embedkit_core.engine.runtime.engine import Engine

_engine: Engine | None = None
_lock = ForkLock()
_parent_engines: list[Engine] = []


def engine() -> Engine:
    """Return the engine of this process, started on first use."""
    global _engine
    if _engine is None:
        module = import_module("embedkit_core.engine.runtime.engine")
        with _lock.lock:
            if _engine is None:
                started: Engine = module.Engine()
                _engine = started
    return _engine


def is_running() -> bool:
    """Return True if the engine was started; otherwise nothing is pending."""
    return _engine is not None


def is_engine_thread() -> bool:
    """Return True if this is a thread of the engine, which must not wait for the engine."""
    return _engine is not None and _engine.owns(threading.current_thread())


def refuse_engine_thread(method_name: str) -> None:
    """Check that this is no thread of the engine, which must not wait for the engine.

    Raises:
        EmbedKitError: It is.
    """
    if is_engine_thread():
        raise EmbedKitError(f"{method_name}() would wait for the thread it runs on. Use a{method_name}()")


def _after_fork() -> None:
    # The parent's threads do not exist in the child, and it still uses its sockets: close and free nothing.
    global _engine
    if _engine is not None:
        _parent_engines.append(_engine)
        _engine = None


def _at_exit() -> None:
    if _engine is not None:
        _engine.shut_down()
    for pool in (LOOKUPS, SLOW_LOOKUPS, BULK, JOBS):
        pool.stop()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
