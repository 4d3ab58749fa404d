"""Wait for states of the engine, without polling by time."""

import threading
from collections.abc import Callable

from embedkit_core import Embedder
from embedkit_core.engine.runtime.process import engine
from embedkit_core.engine.scheduler.items import Item


def wait_until_joined(embedder: Embedder, callers: int) -> None:
    """Block until `callers` callers wait for texts at the embedder's account."""
    _wait(embedder, lambda table: sum(len(item.waiters) for item in table.values()) >= callers)


def wait_until_idle(embedder: Embedder) -> None:
    """Block until the embedder's account has no text in progress."""
    _wait(embedder, lambda table: not table)


def _wait(embedder: Embedder, until: Callable[[dict[bytes, Item]], bool]) -> None:
    """Check the condition on the engine's thread, between its steps, until it is true."""
    account = engine().account(embedder.provider)
    seen = threading.Event()

    def look() -> None:
        if until(account.scheduler.registry.items):
            seen.set()
        else:
            account.loop.call_soon(look)

    engine().call(account, look)
    assert seen.wait(20)
