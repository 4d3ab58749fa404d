"""Hooks: observers of calls and streams, called at their beginning and end on the caller's thread."""

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

logger = logging.getLogger("embedkit_core.observability")


@dataclass(frozen=True, slots=True)
class CallInfo:
    """A call at its beginning.

    Attributes:
        provider: The provider's name in OpenTelemetry's conventions, else its own.
        model: The model, without the provider.
        address: The URL of requests, None if there is none or it depends on the API key.
        input_type: "document" or "query".
        dimensions: The number of dimensions, None before the first reply of an unknown model.
        dtype: The dtype of the vectors.
        encodings: The requested encodings, as the provider names them.
        texts: The texts, if they were passed as a list or a tuple; None for a stream.
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
    """A call at its end.

    Attributes:
        usage: The usage of the call.
        error: The class name of its error, None without an error.
        response_model: The model that replied, as far as replies state it. None if nothing was sent.
    """

    usage: Usage
    error: str | None = None
    response_model: str | None = None


class CallSpan(Protocol):
    """One observed call."""

    def end(self, outcome: CallOutcome) -> None:
        """Called when the call has ended."""


class CallObserver(Protocol):
    """An observer of calls."""

    def begin(self, info: CallInfo) -> CallSpan:
        """Called when a call begins, in the caller's context."""
        ...


observers: tuple[CallObserver, ...] = ()
_lock = ForkLock()
_failed_observers: weakref.WeakSet[CallObserver] = weakref.WeakSet()


def add_observer(observer: CallObserver) -> None:
    """Call an observer for each call that begins from now on."""
    global observers
    with _lock.lock:
        observers = (*observers, observer)


def remove_observer(observer: CallObserver) -> None:
    """Stop calling an observer. The calls in flight still end their spans."""
    global observers
    with _lock.lock:
        observers = tuple(one for one in observers if one is not observer)


def is_observed() -> bool:
    """Return True if calls have an observer."""
    return bool(observers)


def observe_call(info: Callable[[], CallInfo], outcome: Callable[[], CallOutcome]) -> AbstractContextManager[None]:
    """Observe a `with` block as a call.

    Args:
        info: Called at the beginning, if there is an observer.
        outcome: Called at the end. An exception raised in the block replaces its `error`.
    """
    return _ObservedCall(info, outcome) if observers else NO_OBSERVER


class _ObservedCall:
    """A call with the spans of its observers. An observer that fails does not affect the call."""

    __slots__ = ("_info", "_outcome", "_process", "_spans")

    def __init__(self, info: Callable[[], CallInfo], outcome: Callable[[], CallOutcome]) -> None:
        self._info = info
        self._outcome = outcome
        self._process = os.getpid()
        self._spans: list[tuple[CallObserver, CallSpan]] = []

    def __enter__(self) -> None:
        info = self._info()
        for observer in observers:
            try:
                self._spans.append((observer, observer.begin(info)))
            except Exception as error:
                _log_failure(observer, error)

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if os.getpid() != self._process:  # a stream of the parent process, which ends it
            return
        outcome = self._outcome()
        if exc_type is not None and exc_type is not GeneratorExit:  # closing a stream early is no error
            outcome = outcome._replace(error=exc_type.__name__)
        for observer, span in self._spans:
            try:
                span.end(outcome)
            except Exception as error:
                _log_failure(observer, error)


def _log_failure(observer: CallObserver, error: Exception) -> None:
    if observer not in _failed_observers:
        _failed_observers.add(observer)
        logger.warning("Call observer failed with %s; further failures are not logged", type(error).__name__)
