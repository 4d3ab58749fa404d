"""Waiting for what the engine has, without a timer."""

import threading
from collections.abc import Callable

from embedkit_core import Embedder
from embedkit_core.engine.runtime.process import engine
from embedkit_core.engine.scheduler.items import Item


def wait_until_joined(embedder: Embedder, callers: int) -> None:
    """Block until so many texts are waited for at the embedder's account."""
    _wait(embedder, lambda table: sum(len(item.waiters) for item in table.values()) >= callers)


def wait_until_idle(embedder: Embedder) -> None:
    """Block until all that was asked of the embedder's account is served, and its callers woken."""
    _wait(embedder, lambda table: not table)


def _wait(embedder: Embedder, until: Callable[[dict[bytes, Item]], bool]) -> None:
    """Ask the engine's own thread, again and again, between two of its steps."""
    account = engine().account(embedder.provider)
    seen = threading.Event()

    def look() -> None:
        if until(account.scheduler.registry.items):
            seen.set()
        else:
            account.loop.call_soon(look)

    engine().call(account, look)
    assert seen.wait(20)
