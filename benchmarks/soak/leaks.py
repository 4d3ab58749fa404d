"""What a process has open, and what of it should not be there."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from pathlib import Path

from embedkit_core.engine.runtime.process import engine

OURS = ("MainThread", "embedkit-engine", "embedkit-writer", "embedkit-work")


def open_files() -> dict[int, str]:
    """Every file descriptor of this process, sockets too, with what it leads to."""
    found = {}
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - the folder lists the descriptor it is read by
        with contextlib.suppress(OSError):
            found[int(name)] = str(Path(f"/proc/self/fd/{name}").readlink())
    return found


def rss_mb() -> float:
    """The memory this process holds, in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6


def left_over(before: dict[int, str], threads_before: set[str]) -> list[str]:
    """Name the descriptors, threads and tasks that are there and were not before, but for the engine's own."""
    files = {fd: what for fd, what in open_files().items() if before.get(fd) != what}
    # OpenAI's SDK asks the platform for its name on a thread of the loop's own executor, once.
    theirs = getattr(getattr(engine()._loop, "_default_executor", None), "_threads", set())
    threads = [
        thread.name
        for thread in threading.enumerate()
        if not thread.name.startswith(OURS) and thread.name not in threads_before and thread not in theirs
    ]
    tasks = [str(task.get_coro()) for task in asyncio.all_tasks(engine()._loop)]
    named = [f"file {fd}: {what}" for fd, what in files.items()] + [f"thread {name}" for name in threads]
    return named + [f"task {task}" for task in tasks]


def left_in_the_end(before: dict[int, str], threads_before: set[str], seconds: float = 10.0) -> list[str]:
    """Give what is still left after some seconds: connections are closed by the engine, in its own time."""
    until = time.monotonic() + seconds
    while (left := left_over(before, threads_before)) and time.monotonic() < until:
        time.sleep(0.05)
    return left


def wait_until_idle(seconds: float) -> list[str]:
    """Wait until the engine has nothing under way; name what it still holds after some seconds."""
    until = time.monotonic() + seconds
    held: list[str] = ["not looked"]
    while held and time.monotonic() < until:
        held = []
        for account in list(engine()._accounts.values()):
            scheduler = account.scheduler
            held += [f"{len(scheduler.registry.items)} texts under way"] if scheduler.registry.items else []
            held += [f"{len(scheduler.recent.lookups)} look-ups open"] if scheduler.recent.lookups else []
            held += [f"{scheduler.in_flight} slots taken"] if scheduler.in_flight else []
            held += ["a bound of no caller"] if any(scheduler.dispatcher._bounds.values()) else []
            paces = list(scheduler.dispatcher._rate_controllers.values())
            held += ["a limit of no caller"] if any(pace.user_limits.callers for pace in paces) else []
            held += [f"{n} requests of a pace" for pace in paces if (n := pace.in_flight)]
            held += [f"{n} deadlines" for n in [len(scheduler._with_deadline)] if n]
            held += [f"{len(account._waiting)} tickets waiting"] if account._waiting else []
        time.sleep(0.05)
    return held
