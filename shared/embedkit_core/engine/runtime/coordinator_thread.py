"""Coordinator thread: exchanges requests with the coordinator of several processes, off the engine's loop."""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import time
from collections import deque
from collections.abc import Callable, Collection
from typing import NamedTuple, TypeAlias, TypeVar

from embedkit_core.common.errors import CoordinationError, safe_reason
from embedkit_core.common.threads import start_thread
from embedkit_core.coordination.opening import CoordinatorHandle
from embedkit_core.coordination.port import (
    MAX_WAIT_AHEAD,
    RENEW_SECONDS,
    Begin,
    Coordinator,
    End,
    Grant,
    LeaseID,
)

T = TypeVar("T")
logger = logging.getLogger("embedkit_core.coordination")

OFF_SECONDS = 5.0  # after a failure, the coordinator is not asked again for so long
MAX_UNSENT_ENDS = 10_000  # that are kept while the coordinator cannot be reached

Granted: TypeAlias = Callable[[Grant | str], None]  # the grant, or why the coordinator cannot be reached
Checked: TypeAlias = Callable[[Collection[LeaseID] | None], None]  # None: it cannot be reached


class Exchange(NamedTuple):
    """Requests to begin, each with a function for its grant, and leases to end."""

    begins: list[tuple[Begin, Granted]]
    ends: list[End]


class Check(NamedTuple):
    """Leases of other processes, and a function for those that have ended."""

    leases: list[LeaseID]
    checked: Checked


class CoordinatorThread:
    """The thread that talks to one coordinator. Everything that waits goes into one exchange.

    After a failure, the coordinator counts as unreachable for `OFF_SECONDS`, so that it delays requests only once. The
    first failure in a row is logged.

    Attributes:
        handle: The coordinator.
        thread: The thread.
        used_at: The time of the last job.
    """

    def __init__(self, handle: CoordinatorHandle) -> None:
        self.handle = handle
        self.used_at = time.monotonic()
        self._jobs: queue.SimpleQueue[Exchange | Check | None] = queue.SimpleQueue()
        self._ends: deque[End] = deque(maxlen=MAX_UNSENT_ENDS)
        self._end_at = 0.0  # when the ends are sent, if no request begins before
        self._leases: set[LeaseID] = set()
        self._renew_at = 0.0
        self._off_until = 0.0
        self._reason = ""
        self._is_logged = False
        self.thread = start_thread(self._run, "embedkit-coordinator")

    def put(self, job: Exchange | Check) -> None:
        """Queue a job. Its functions are called on the coordinator thread."""
        self.used_at = time.monotonic()
        self._jobs.put(job)

    @property
    def is_idle(self) -> bool:
        """True if it has nothing to do: no jobs, and no leases to renew or to end."""
        return self._jobs.empty() and not self._leases and not self._ends

    def stop(self, timeout: float) -> None:
        """Do the queued jobs, then close the coordinator and end the thread."""
        self._jobs.put(None)
        self.thread.join(timeout)

    def _run(self) -> None:
        runs = True
        while runs:
            jobs: list[Exchange | Check] = []  # new, since jobs keep the results of callers alive
            job = None
            with contextlib.suppress(queue.Empty):
                job = self._jobs.get(timeout=self._timeout())
                while job is not None:
                    jobs.append(job)
                    job = self._jobs.get_nowait()
                runs = False
            self._exchange([job for job in jobs if isinstance(job, Exchange)], is_last=not runs)
            for job in jobs:
                if isinstance(job, Check):
                    self._check(job)
            self._renew()
        with contextlib.suppress(Exception):
            self.handle.close()

    def _timeout(self) -> float | None:
        """Return the seconds until there is something to do without a job; None for ever."""
        if self._ends:
            return max(0.0, self._end_at - time.monotonic())
        return RENEW_SECONDS / 2 if self._leases else None

    def _exchange(self, jobs: list[Exchange], *, is_last: bool) -> None:
        begins, new_ends = [begin for job in jobs for begin in job.begins], [end for job in jobs for end in job.ends]
        if not self._ends:
            self._end_at = time.monotonic() + self.handle.end_delay
        if any(end.pause for end in new_ends):
            self._end_at = 0.0
        self._ends.extend(new_ends)
        if not begins and not (self._ends and (is_last or time.monotonic() >= self._end_at)):
            return
        ends = list(self._ends)

        def exchange(coordinator: Coordinator) -> list[Grant]:
            grants = coordinator.exchange([begin for begin, _ in begins], ends)
            if len(grants) != len(begins):
                raise CoordinationError(f"{len(grants)} grants for {len(begins)} requests")
            for (begin, _), grant in zip(begins, grants, strict=True):
                check_grant(begin, grant)
            return grants

        grants = self._ask(exchange)
        if grants is None:
            self._end_at = time.monotonic() + RENEW_SECONDS / 2
        else:
            self._ends.clear()
            if not self._leases:
                self._renew_at = time.monotonic() + RENEW_SECONDS
            self._leases.difference_update(end.lease for end in ends)
            self._leases.update(grant.lease for grant in grants if grant.lease is not None)
        for index, (_, granted) in enumerate(begins):
            granted(self._reason if grants is None else grants[index])

    def _check(self, job: Check) -> None:
        job.checked(self._ask(lambda coordinator: frozenset(coordinator.ended(job.leases))))

    def _renew(self) -> None:
        now = time.monotonic()
        if self._leases and now >= self._renew_at:
            self._renew_at = now + RENEW_SECONDS
            self._ask(lambda coordinator: coordinator.renew())

    def _ask(self, question: Callable[[Coordinator], T]) -> T | None:
        """Return the coordinator's answer; None if it cannot be reached."""
        if time.monotonic() < self._off_until:
            return None
        try:
            answer = question(self.handle.open())
        except BaseException as error:  # a user's coordinator must not make a call fail
            self._off_until = time.monotonic() + OFF_SECONDS
            self._reason = safe_reason(error).rstrip(".")
            self._log(error)
            return None
        self._is_logged = False
        return answer

    def _log(self, error: BaseException) -> None:
        if not self._is_logged:
            self._is_logged = True
            if isinstance(error, CoordinationError) and error.is_logged:
                return
            with contextlib.suppress(BaseException):  # a user's log handler may raise
                logger.warning(
                    "Coordination of processes by %s is off for now (%s). Texts may be paid for more than once, and "
                    "requests_per_minute= and tokens_per_minute= are divided by the number of processes.",
                    self.handle,
                    self._reason,
                )


def check_grant(begin: Begin, grant: Grant) -> None:
    """Check a grant, which may come from a user's coordinator.

    Raises:
        CoordinationError: It is no answer to the request.
    """
    named = [*grant.others, *grant.recheck, *grant.unfunded]
    paid = {(reservation.budget, index) for reservation in begin.reservations for index in reservation.amounts}
    valid = (
        all(type(index) is int and 0 <= index < len(begin.keys) for index in named)
        and all((status.name, index) in paid for index, status in grant.unfunded.items())
        and all(
            isinstance(lease, (int, str))
            for lease in (*grant.others.values(), 0 if grant.lease is None else grant.lease)
        )
        and 0 <= grant.paused < math.inf
        and 0 <= grant.wait < math.inf
        and (grant.wait > 0 or grant.lease is not None or len(set(named)) == len(begin.keys))
        and (grant.wait <= MAX_WAIT_AHEAD or grant.lease is None)
    )
    if not valid or type(grant.processes) is not int:
        raise CoordinationError("a grant does not match its request")
