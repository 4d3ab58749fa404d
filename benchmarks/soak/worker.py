"""One process of the soak: threads, loops one after the other, and children of both kinds, some of them killed."""

from __future__ import annotations

import asyncio
import atexit
import faulthandler
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from embedkit_core.engine.runtime.process import engine
from soak import defects
from soak.actions import Actions
from soak.leaks import left_in_the_end, open_files, rss_mb, wait_until_idle
from soak.settings import HANG, Events, Settings

SCRIPT = Path(__file__).parents[1] / "soak.py"


def command(settings: Settings) -> list[str]:
    """How a process of the soak is started."""
    return [sys.executable, str(SCRIPT), "--worker", settings.written()]


class Warnings(logging.Handler):
    """Notes what the library says, so that a text that is billed twice can be put down to a cache in trouble."""

    def __init__(self, settings: Settings, events: Events) -> None:
        super().__init__(logging.WARNING)
        self._settings, self._events = settings, events

    def emit(self, record: logging.LogRecord) -> None:
        self._events.add("said", key=self._settings.key, said=record.getMessage())


def run(settings: Settings) -> None:
    """Use the library for some seconds, close it, and report what was done and what is left."""
    events = Events(settings.events)
    logging.getLogger("embedkit_core").handlers = [Warnings(settings, events)]
    defects.plant(settings.defect)
    engine()
    files, threads_before = open_files(), {thread.name for thread in threading.enumerate()}
    actions = Actions(settings, events)
    memory = _work(settings, actions, events)
    if held := wait_until_idle(60.0):
        events.add("violation", what=f"the engine holds {held} although nobody calls", key=settings.key)
    usage = actions.embedder.usage
    actions.embedder.close()
    defects.before_the_look(settings.defect)
    for left in left_in_the_end(files, threads_before):
        events.add("violation", what=f"left after close(): {left}", key=settings.key)
    if usage.texts != usage.cache_hits + usage.duplicates + usage.coalesced + usage.sent + usage.failed:
        events.add("violation", what=f"usage does not add up: {usage!r}")
    events.add("report", key=settings.key, counts=actions.counts, memory=memory, usage=str(usage))


def _work(settings: Settings, actions: Actions, events: Events) -> list[float]:
    rng = random.Random(settings.seed)
    until = time.monotonic() + settings.seconds
    jobs: list[Callable[[], None]] = [
        lambda: _block(actions, random.Random(rng.random()), until),
        lambda: _block(actions, random.Random(rng.random()), until),
        lambda: _loops(actions, random.Random(rng.random()), until),
    ]
    if settings.children:
        jobs.append(lambda: _children(settings, events, random.Random(rng.random()), until))
    threads = [threading.Thread(target=_do, args=(job, events), daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    memory = []
    while any(thread.is_alive() for thread in threads):
        memory.append(rss_mb())
        _check_for_hangs(actions, events, settings)
        if time.monotonic() > until + 2 * HANG:
            _give_up(f"{sum(t.is_alive() for t in threads)} threads did not end", events, settings)
        time.sleep(0.5)
    return memory


def _do(job: Callable[[], None], events: Events) -> None:
    try:
        job()
    except BaseException as error:
        events.add("violation", what=f"{type(error).__name__}: {error}: {traceback.format_exc()}")


def _check_for_hangs(actions: Actions, events: Events, settings: Settings) -> None:
    for door, since in list(actions.under_way.values()):
        if time.monotonic() - since > HANG:
            _give_up(f"{door} has not ended after {HANG:.0f} s", events, settings)


def _give_up(what: str, events: Events, settings: Settings) -> None:
    events.add("violation", what=what, key=settings.key)
    faulthandler.dump_traceback(all_threads=True)
    os._exit(3)


def _block(actions: Actions, rng: random.Random, until: float) -> None:
    while time.monotonic() < until:
        actions.block(rng)


def _loops(actions: Actions, rng: random.Random, until: float) -> None:
    while (now := time.monotonic()) < until:
        asyncio.run(actions.session(rng, min(until, now + rng.uniform(0.5, 4.0))))


def _children(settings: Settings, events: Events, rng: random.Random, until: float) -> None:
    """One child at a time, forked or spawned, with texts that no other living process asks for."""
    n = 0
    while (left := until - time.monotonic()) > 1.0:
        n += 1
        child = settings.but(
            lineage=f"{settings.lineage}-child",
            key=f"{settings.key}.{n}",
            seconds=min(left, rng.uniform(1.0, 4.0)),
            seed=rng.randrange(10**9),
            children=False,
        )
        killed_after = rng.choice([None, rng.uniform(0.5, 3.0)])
        spawned = None if rng.random() < 0.5 else subprocess.Popen(command(child))
        pid = spawned.pid if spawned else _fork(child)
        if killed_after is not None:
            time.sleep(min(left, killed_after))
            events.add("kill", key=child.key)
            os.kill(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status not in ((-signal.SIGKILL, 0) if killed_after is not None else (0,)):
            events.add("violation", what=f"a child ended with {status}", key=child.key)


def _fork(child: Settings) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        run(child)
        atexit._run_exitfuncs()  # a thread forked this process, and no main thread will end it
        status = 0
    except BaseException as error:  # it must not go on as a second parent
        Events(child.events).add("violation", what=f"a forked child failed: {type(error).__name__}: {error}")
    finally:
        os._exit(status)
