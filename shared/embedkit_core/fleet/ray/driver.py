"""The driver's side of the runs: the actor with the ledger, and a thread that adds the workers' usage here."""

from __future__ import annotations

import atexit
import threading
import uuid
from concurrent.futures import Future
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from embedkit_core.common.threads import start_thread
from embedkit_core.common.types import InputType
from embedkit_core.common.usage import Usage
from embedkit_core.embedder import Embedder
from embedkit_core.fleet.column_embedder import meters_of
from embedkit_core.fleet.ray.ledger import Ledger
from embedkit_core.observability.progress import ProgressOption, make_reporter

THREAD = "embedkit-ray"
MAX_CALLS = 10_000  # to the ledger at a time: one for each batch that a worker is ending
POLL_SECONDS = 0.5  # between two looks at whether Ray has been shut down
CLOSE_SECONDS = 1.0  # at exit, for the last call to the ledger


class Run:
    """One call of `embed`: where the usage of its workers is added, and where their progress is shown.

    Attributes:
        name: The name of the run in the ledger.
    """

    def __init__(self, embedder: Embedder, input_type: InputType, progress: ProgressOption, rows: int | None) -> None:
        self.name = uuid.uuid4().hex
        self._meters = meters_of(embedder, input_type)
        self._reporter = make_reporter(progress, embedder.model, rows)
        self._rows = rows
        self._usage = self._shown = Usage()

    def add(self, usage: Usage) -> None:
        """Add usage of workers."""
        self._usage += usage
        for meter in self._meters:
            meter.add(usage)

    def show(self) -> None:
        """Show the progress, if that is wanted and there is something new."""
        if self._reporter is None or self._shown is self._usage:
            return
        texts = self._usage.texts
        is_finished = self._rows is not None and texts >= self._rows
        if is_finished or self._reporter.due():
            self._shown = self._usage
            self._reporter.report(texts, self._usage, finished=is_finished)


class Driver:
    """The runs of this process in one session of Ray.

    Attributes:
        session: The session.
        ledger: The actor with the ledger, on the machine of the driver.
    """

    def __init__(self, session: tuple[str, str] | None) -> None:
        self.session = session
        # Not soft: Ray 2.60 then ignores a machine without CPUs, such as the head of many clusters.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options = {"num_cpus": 0, "max_concurrency": MAX_CALLS, "scheduling_strategy": here}
        options |= {"max_restarts": -1, "max_task_retries": -1}
        self.ledger: Any = ray.remote(Ledger).options(**options).remote()
        self._runs: dict[str, Run] = {}
        self._closed = False
        self._thread = start_thread(self._collect, THREAD)

    def add(self, run: Run) -> None:
        """Add a run."""
        self._runs[run.name] = run

    def close(self) -> None:
        """Stop collecting. Ray logs an error for each call to an actor that is not done when it is shut down."""
        self._closed = True
        if _session() == self.session:
            self.ledger.close.remote()
            self._thread.join(CLOSE_SECONDS)

    def _collect(self) -> None:
        """Add what the workers report, until Ray is shut down."""
        while not self._closed:
            try:
                if _session() != self.session:  # Ray ends a process that calls an actor of another session
                    return
                future: Future[dict[str, Usage]] = self.ledger.collect.remote().future()
                new = self._wait(future)
            except Exception:  # the ledger's process, or Ray, is gone
                return
            for name, usage in new.items():
                self._runs[name].add(usage)
            self._show()

    def _wait(self, future: Future[dict[str, Usage]]) -> dict[str, Usage]:
        while True:
            try:
                return future.result(POLL_SECONDS)
            except TimeoutError:
                self._show()
                if _session() != self.session:
                    raise

    def _show(self) -> None:
        for run in list(self._runs.values()):
            run.show()


_driver: Driver | None = None
_lock = threading.Lock()


def driver() -> Driver:
    """Return the driver of this process in the current session of Ray."""
    global _driver
    with _lock:
        session = _session()
        if _driver is None or _driver.session != session:
            _driver = Driver(session)
        return _driver


@atexit.register  # before that of Ray, which is older
def _at_exit() -> None:
    if _driver is not None:
        _driver.close()


def _session() -> tuple[str, str] | None:
    """Return the IDs of the machine and the job, None without Ray. The first job of each cluster has the same ID."""
    if not ray.is_initialized():
        return None
    context = ray.get_runtime_context()
    return context.get_node_id(), context.get_job_id()
