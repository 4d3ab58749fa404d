"""Wait for states of the engine, without polling by time."""

import threading
from collections.abc import Callable, Collection

from embedkit_core import Embedder
from embedkit_core.engine.runtime.account import Account
from embedkit_core.engine.runtime.process import engine
from embedkit_core.engine.scheduler.items import Item


def wait_until_joined(embedder: Embedder, callers: int) -> None:
    """Block until `callers` callers wait for texts at the embedder's account."""
    wait_until(embedder, lambda account: sum(len(item.waiters) for item in _items(account)) >= callers)


def wait_until_idle(embedder: Embedder) -> None:
    """Block until the embedder's account has no text in progress."""
    wait_until(embedder, lambda account: not _items(account))


def _items(account: Account) -> Collection[Item]:
    return account.scheduler.registry.items.values()


def wait_until(embedder: Embedder, until: Callable[[Account], bool]) -> None:
    """Block until a condition on the embedder's account is true; it is checked between the steps of the engine."""
    account = engine().account(embedder.provider)
    seen = threading.Event()

    def look() -> None:
        if until(account):
            seen.set()
        else:
            account.loop.call_soon(look)

    engine().call(account, look)
    assert seen.wait(20)
