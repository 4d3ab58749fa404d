"""Waiting for what the engine has, without a timer."""

import threading

from embedkit_core import Embedder
from embedkit_core.engine.current import engine


def wait_until_joined(embedder: Embedder, callers: int) -> None:
    """Block until so many texts are waited for at the embedder's account, by asking the engine's own thread."""
    account = engine().account(embedder.provider)
    counted = threading.Event()

    def look() -> None:
        if sum(len(item.waiters) for item in account.scheduler.table.values()) >= callers:
            counted.set()
        else:
            engine().call(account, look)

    engine().call(account, look)
    assert counted.wait(20)
