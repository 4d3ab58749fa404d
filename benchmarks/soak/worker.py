"""One process of the soak test: threads, event loops, and forked and spawned children, some of which are killed."""

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

from benchmarks.record import ROOT
from benchmarks.soak import defects
from benchmarks.soak.actions import Actions
from benchmarks.soak.leaks import lasting_leaks, open_files, rss_mb, wait_until_idle
from benchmarks.soak.settings import HANG_SECONDS, Events, Settings
from embedkit_core.engine.runtime.process import engine

PROGRAM = (sys.executable, "-m", "benchmarks.soak")


def command(settings: Settings) -> list[str]:
    """Return the command that starts a process of the soak test, in the folder ROOT."""
    return [*PROGRAM, "--worker", settings.to_json()]


class Warnings(logging.Handler):
    """Adds the library's warnings to the events: a problem with the cache is a cause of repeated billing."""

    def __init__(self, settings: Settings, events: Events) -> None:
        super().__init__(logging.WARNING)
        self._settings, self._events = settings, events

    def emit(self, record: logging.LogRecord) -> None:
        self._events.add("warning", key=self._settings.key, message=record.getMessage())


def run(settings: Settings) -> None:
    """Use the library for some seconds, close it, and report counts, memory and violations."""
    events = Events(settings.events)
    logging.getLogger("embedkit_core").handlers = [Warnings(settings, events)]
    defects.plant(settings.defect)
    if settings.budget:
        events.add("budget", key=settings.key, budget=settings.budget)
    engine()
    files, threads_before = open_files(), {thread.name for thread in threading.enumerate()}
    actions = Actions(settings, events)
    memory = _work(settings, actions, events)
    if held := wait_until_idle(60.0):
        events.add("violation", what=f"the engine holds {held} without callers", key=settings.key)
    usage = actions.embedder.usage
    actions.embedder.close()
    defects.leak(settings.defect)
    for leak in lasting_leaks(files, threads_before):
        events.add("violation", what=f"open after close(): {leak}", key=settings.key)
    if usage.texts != usage.cache_hits + usage.duplicates + usage.coalesced + usage.sent + usage.failed + usage.empty:
        events.add("violation", what=f"usage does not add up: {usage!r}")
    events.add("report", key=settings.key, counts=actions.counts, memory=memory, usage=str(usage))


def _work(settings: Settings, actions: Actions, events: Events) -> list[float]:
    """Run all jobs to their end; return samples of the memory in MB."""
    rng = random.Random(settings.seed)
    until = time.monotonic() + settings.seconds
    jobs: list[Callable[[], None]] = [
        lambda: _make_sync_calls(actions, random.Random(rng.random()), until),
        lambda: _make_sync_calls(actions, random.Random(rng.random()), until),
        lambda: _run_loops(actions, random.Random(rng.random()), until),
    ]
    if settings.children:
        jobs.append(lambda: _run_children(settings, events, random.Random(rng.random()), until))
    threads = [threading.Thread(target=_run_job, args=(job, events), daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    memory = []
    while any(thread.is_alive() for thread in threads):
        memory.append(rss_mb())
        _check_for_hangs(actions, events, settings)
        if time.monotonic() > until + 2 * HANG_SECONDS:
            _abort(f"{sum(t.is_alive() for t in threads)} threads did not end", events, settings)
        time.sleep(0.5)
    return memory


def _run_job(job: Callable[[], None], events: Events) -> None:
    try:
        job()
    except BaseException as error:
        events.add("violation", what=f"{type(error).__name__}: {error}: {traceback.format_exc()}")


def _check_for_hangs(actions: Actions, events: Events, settings: Settings) -> None:
    for method, since in list(actions.running.values()):
        if time.monotonic() - since > HANG_SECONDS:
            _abort(f"{method} has not ended after {HANG_SECONDS:.0f} s", events, settings)


def _abort(what: str, events: Events, settings: Settings) -> None:
    events.add("violation", what=what, key=settings.key)
    faulthandler.dump_traceback(all_threads=True)
    os._exit(3)


def _make_sync_calls(actions: Actions, rng: random.Random, until: float) -> None:
    while time.monotonic() < until:
        actions.call_sync(rng)


def _run_loops(actions: Actions, rng: random.Random, until: float) -> None:
    while (now := time.monotonic()) < until:
        asyncio.run(actions.session(rng, min(until, now + rng.uniform(0.5, 4.0))))


def _run_children(settings: Settings, events: Events, rng: random.Random, until: float) -> None:
    """Run one child at a time, forked or spawned; its texts differ from those of its parent, unless they are shared."""
    n = 0
    while (left := until - time.monotonic()) > 1.0:
        n += 1
        child = settings.replace(
            lineage=settings.lineage if settings.is_shared else f"{settings.lineage}-child",
            key=f"{settings.key}.{n}",
            seconds=min(left, rng.uniform(1.0, 4.0)),
            seed=rng.randrange(10**9),
            children=False,
        )
        kill_after = rng.choice([None, rng.uniform(0.5, 3.0)])
        spawned = None if rng.random() < 0.5 else subprocess.Popen(command(child), cwd=ROOT)
        pid = spawned.pid if spawned else _fork(child)
        if kill_after is not None:
            time.sleep(min(left, kill_after))
            events.add("kill", key=child.key)
            os.kill(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status not in ((-signal.SIGKILL, 0) if kill_after is not None else (0,)):
            events.add("violation", what=f"a child ended with exit code {status}", key=child.key)


def _fork(child: Settings) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        run(child)
        atexit._run_exitfuncs()  # the fork came from a thread, so no main thread ends this process
        status = 0
    except BaseException as error:  # the child must not continue as a second parent
        Events(child.events).add("violation", what=f"a forked child failed: {type(error).__name__}: {error}")
    finally:
        os._exit(status)
