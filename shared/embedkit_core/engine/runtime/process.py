"""This process's engine, started when there is something to send.

With it comes asyncio, whose import alone takes as long as reading some thousand vectors from a cache.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from embedkit_core.common.errors import EmbedKitError
from embedkit_core.common.fork_safety import ForkLock, import_module

if TYPE_CHECKING:
    from embedkit_core.engine.runtime.engine import Engine

T = TypeVar("T")
_engine: Engine | None = None
_lock = ForkLock()
_parents_engines: list[Engine] = []


def engine() -> Engine:
    """Give this process's engine, started on first use."""
    global _engine
    if _engine is None:
        module = import_module("embedkit_core.engine.runtime.engine")
        with _lock.lock:
            if _engine is None:
                _engine = module.Engine()
    return _engine


def is_running() -> bool:
    """Tell whether the engine was started: nothing is under way where it was not."""
    return _engine is not None


def refuse_engine_thread(door: str) -> None:
    """Raise EmbedKitError on a thread of the engine's own, which must not wait for the engine."""
    if _engine is not None and _engine.owns(threading.current_thread()):
        raise EmbedKitError(f"{door}() would wait for the thread it runs on; use a{door}()")


def _after_fork() -> None:
    # The parent's threads do not exist here; its loop and sockets are its own, so nothing of it is closed or freed.
    global _engine
    if _engine is not None:
        _parents_engines.append(_engine)
        _engine = None


def _at_exit() -> None:
    if _engine is not None:
        _engine.shut_down()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)


async def off_loop(work: Callable[[], T]) -> T:
    """Do what may take long on a thread of ours."""
    import asyncio

    return await asyncio.get_running_loop().run_in_executor(engine().pool, work)
