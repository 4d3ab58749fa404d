"""Who watches calls: told when a call or a stream begins and ends, on the caller's side; nobody, unless asked for."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from types import TracebackType
from typing import NamedTuple, Protocol

from embedkit_core.common.fork_safety import ForkLock
from embedkit_core.common.types import InputType
from embedkit_core.common.usage import Usage

NO_OBSERVER = nullcontext()

logger = logging.getLogger("embedkit_core")


@dataclass(frozen=True, slots=True)
class CallInfo:
    """What is known of a call at its beginning.

    `address` is where requests go, None where that is nowhere, or only the key tells; `encodings` are those that
    vectors are asked for in, as the provider names them. `texts` are the caller's own, and there only where they came
    as a list or a tuple: a stream has none.
    """

    provider: str
    model: str
    address: str | None
    input_type: InputType
    dimensions: int | None
    dtype: str
    encodings: tuple[str, ...] = ()
    texts: Sequence[object] | None = field(default=None, repr=False)


class CallOutcome(NamedTuple):
    """What a call took, and the name of the error that it ended with, if it did."""

    usage: Usage
    error: str | None = None


class CallSpan(Protocol):
    """One call, watched."""

    def end(self, outcome: CallOutcome) -> None:
        """Take in what became of it."""


class CallObserver(Protocol):
    """What wants to know of calls."""

    def begin(self, facts: CallInfo) -> CallSpan:
        """Take in that one begins, in the context of its caller."""


observers: tuple[CallObserver, ...] = ()
_lock = ForkLock()
_logged: weakref.WeakSet[CallObserver] = weakref.WeakSet()


def add_observer(watcher: CallObserver) -> None:
    """Have a watcher told of each call that begins from now on."""
    global observers
    with _lock.lock:
        observers = (*observers, watcher)


def remove_observer(watcher: CallObserver) -> None:
    """Tell a watcher of no further call; of those under way it is told the end."""
    global observers
    with _lock.lock:
        observers = tuple(one for one in observers if one is not watcher)


def observe_call(info: Callable[[], CallInfo], outcome: Callable[[], CallOutcome]) -> AbstractContextManager[None]:
    """Observe a `with` block as a call.

    Args:
        info: Called at the beginning, if there is an observer.
        outcome: Called at the end, for what the call took and for an error that it does not raise.
    """
    return _ObservedCall(info, outcome) if observers else NO_OBSERVER


class _ObservedCall:
    """A call with those who watch it; one of them that fails harms nobody."""

    __slots__ = ("_info", "_outcome", "_process", "_spans")

    def __init__(self, info: Callable[[], CallInfo], outcome: Callable[[], CallOutcome]) -> None:
        self._info = info
        self._outcome = outcome
        self._process = os.getpid()
        self._spans: list[tuple[CallObserver, CallSpan]] = []

    def __enter__(self) -> None:
        facts = self._info()
        for watcher in observers:
            try:
                self._spans.append((watcher, watcher.begin(facts)))
            except Exception as failure:
                _log_failure(watcher, failure)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if os.getpid() != self._process:  # a stream of the parent's, which ends there
            return
        outcome = self._outcome()
        if kind is not None and kind is not GeneratorExit:  # a stream may be left
            outcome = outcome._replace(error=kind.__name__)
        for watcher, watch in self._spans:
            try:
                watch.end(outcome)
            except Exception as failure:
                _log_failure(watcher, failure)


def _log_failure(watcher: CallObserver, failure: Exception) -> None:
    if watcher not in _logged:
        _logged.add(watcher)
        logger.warning("what watches calls failed with %s; said once", type(failure).__name__)
