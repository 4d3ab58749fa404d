"""Open files, threads and tasks of this process, and requests that the engine still holds."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from pathlib import Path

from embedkit_core.engine.runtime.account import Account
from embedkit_core.engine.runtime.process import engine

OWN_THREADS = (
    "MainThread",
    "embedkit-engine",
    "embedkit-writer",
    "embedkit-work",
    "embedkit-lookup",
    "embedkit-slow-lookup",
    "embedkit-tiers",
    "embedkit-coordinator",
)


def open_files() -> dict[int, str]:
    """Return the target of every file descriptor of this process, sockets included."""
    found = {}
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - the folder lists the descriptor it is read by
        with contextlib.suppress(OSError):
            found[int(name)] = str(Path(f"/proc/self/fd/{name}").readlink())
    return found


def rss_mb() -> float:
    """Return the resident memory of this process in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6


def leaks(files_before: dict[int, str], threads_before: set[str]) -> list[str]:
    """Return the new descriptors, threads and tasks, without the engine's own threads."""
    files = {fd: target for fd, target in open_files().items() if files_before.get(fd) != target}
    # OpenAI's SDK runs platform detection on a thread of the loop's own executor, once.
    executor_threads = getattr(getattr(engine()._loop, "_default_executor", None), "_threads", set())
    threads = [
        thread.name
        for thread in threading.enumerate()
        if not thread.name.startswith(OWN_THREADS)
        and thread.name not in threads_before
        and thread not in executor_threads
    ]
    tasks = [str(task.get_coro()) for task in asyncio.all_tasks(engine()._loop)]
    named = [f"file {fd}: {target}" for fd, target in files.items()] + [f"thread {name}" for name in threads]
    return named + [f"task {task}" for task in tasks]


def lasting_leaks(files_before: dict[int, str], threads_before: set[str], seconds: float = 10.0) -> list[str]:
    """Return the leaks that remain after some seconds: the engine closes connections in the background."""
    until = time.monotonic() + seconds
    while (found := leaks(files_before, threads_before)) and time.monotonic() < until:
        time.sleep(0.05)
    return found


def wait_until_idle(seconds: float) -> list[str]:
    """Wait until the engine holds nothing; return what it still holds after some seconds."""
    until = time.monotonic() + seconds
    held: list[str] = ["not checked"]
    while held and time.monotonic() < until:
        held = [line for account in list(engine()._accounts.values()) for line in _held(account)]
        time.sleep(0.05)
    return held


def _held(account: Account) -> list[str]:
    scheduler = account.scheduler
    controllers = list(scheduler.dispatcher._rate_controllers.values())
    counts = {
        "texts in flight": len(scheduler.registry.items),
        "open lookups": len(scheduler.recent.lookups),
        "used request slots": scheduler.in_flight,
        "concurrency limits without a caller": sum(map(bool, scheduler.dispatcher._bounds.values())),
        "user limits without a caller": sum(any(one.user_limits._callers.values()) for one in controllers),
        "requests counted by rate controllers": sum(one.in_flight for one in controllers),
        "texts that wait for other processes": len(scheduler.shared.waiting),
        "leases": len(scheduler.shared._open),
        "deadlines": len(scheduler.registry.deadlines._tickets),
        "waiting limiter permits": len(account._waiting),
    }
    return [f"{n} {name}" for name, n in counts.items() if n]
