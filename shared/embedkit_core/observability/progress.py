"""Progress of a call, reported to a bar or a callback on the caller's thread."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import inspect
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Protocol, TypeAlias

from embedkit_core.common.errors import ConfigurationError, MissingExtraError
from embedkit_core.common.fork_safety import import_module, progress_lock
from embedkit_core.common.formatting import shorten_model_name
from embedkit_core.common.money import format_usd
from embedkit_core.common.usage import Usage

logger = logging.getLogger("embedkit_core.observability")

BAR_SHRINK_COLUMNS = 5  # how far a bar of ten columns shrinks before text beside it is dropped
REPORT_INTERVAL = 0.1  # seconds between two reports, except before the last


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a call or a stream.

    Attributes:
        texts: The number of texts, None for a stream of unknown length.
        done: The finished texts, including failures, duplicates and cache hits; equal to `texts` at the end.
        cache_hits: The texts from the cache.
        failed: The failed texts.
        tokens: The tokens billed so far.
        cost_usd: Their cost in USD, None if the price is unknown.
        seconds: The seconds since the beginning.
        finished: Whether this is the last report.
    """

    texts: int | None
    done: int
    cache_hits: int
    failed: int
    tokens: int
    cost_usd: Decimal | None
    seconds: float
    finished: bool = False

    @property
    def tokens_per_second(self) -> float:
        """The average number of billed tokens per second."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def seconds_left(self) -> float | None:
        """The estimated seconds until the end: 0.0 when finished, None if unknown. The rate excludes cache hits."""
        if self.finished:
            return 0.0
        sent = self.done - self.cache_hits
        if self.texts is None or sent <= 0:
            return None
        return self.seconds * (self.texts - self.done) / sent


ProgressOption: TypeAlias = bool | Callable[[Progress], object] | None


def make_reporter(option: ProgressOption, name: str, texts: int | None = None) -> ProgressReporter | None:
    """Return a reporter for a call to one model, None if no progress was requested."""
    return None if option is None or option is False else ProgressReporter(option, name, texts)


class ProgressSink(Protocol):
    """The destination of progress reports."""

    def show(self, progress: Progress) -> None:
        """Show a report."""

    def close(self) -> None:
        """Stop showing reports."""


def check_progress(value: object) -> None:
    """Check a `progress` argument.

    Raises:
        ConfigurationError: It is neither a bool, None nor a sync callable.
        MissingExtraError: It is True and tqdm is not installed.
    """
    if value is None or isinstance(value, bool):
        if value and importlib.util.find_spec("tqdm") is None:
            raise MissingExtraError("a progress bar", "progress")
        return
    if not callable(value):
        raise ConfigurationError(
            f"progress: must be True for a bar, False, or a callable that takes a Progress (got {value!r:.80})"
        )
    if inspect.iscoroutinefunction(value):
        raise ConfigurationError("progress: must be a sync callable (got a coroutine function)")


class ProgressReporter:
    """Reports the progress of one call or stream. If the sink fails, the call continues without reports."""

    def __init__(self, option: bool | Callable[[Progress], object], name: str, texts: int | None) -> None:
        self._sink: ProgressSink | None = _Bar(name) if isinstance(option, bool) else _CallbackSink(option)
        self._texts = texts
        self._started = self._last_report = time.monotonic()

    def begin(self, texts: int) -> None:
        """Set the number of texts."""
        self._texts = texts

    def due(self) -> bool:
        """Return True if it is time for another report."""
        return time.monotonic() - self._last_report >= REPORT_INTERVAL

    def report(self, done: int, usage: Usage, *, finished: bool = False) -> None:
        """Send a report."""
        self._last_report = now = time.monotonic()
        if self._sink is None:
            return
        done = self._texts if finished and self._texts is not None else done
        counts = (usage.cache_hits, usage.failed, usage.tokens, usage.cost_usd)
        progress = Progress(self._texts, done, *counts, seconds=now - self._started, finished=finished)
        try:
            self._sink.show(progress)
        except Exception as error:  # raised by the user's function
            logger.warning("Progress callback failed with %s; the call continues without it", type(error).__name__)
            finished = True
        if finished:
            self.close()

    def close(self) -> None:
        """Stop reporting."""
        sink, self._sink = self._sink, None
        if sink is not None:
            with contextlib.suppress(Exception):  # the terminal may be closed
                sink.close()


class _CallbackSink:
    """Calls a user's function."""

    def __init__(self, function: Callable[[Progress], object]) -> None:
        self._function = function

    def show(self, progress: Progress) -> None:
        self._function(progress)

    def close(self) -> None:
        """Do nothing."""


class _Bar:
    """A tqdm bar, in a terminal or a notebook. A single text has none."""

    def __init__(self, name: str) -> None:
        self._name = shorten_model_name(name, 30)
        self._bar: Any = None

    def show(self, progress: Progress) -> None:
        if progress.texts == 1:
            return
        bar_class = _bar_class()
        with progress_lock.lock:
            if self._bar is None:
                self._bar = bar_class(desc=self._name, total=progress.texts, unit=" texts", dynamic_ncols=True)
            bar = self._bar
            bar.total, bar.n = progress.texts, progress.done
            bar.initial = progress.cache_hits  # excluded from the rate
            self._set_description(progress)
            bar.refresh()

    def _set_description(self, progress: Progress) -> None:
        """Set as much text beside the bar as fits; the count of texts, time and cost are dropped last."""
        bar, parts = self._bar, _postfix_parts(progress)
        candidates = [*((self._name, parts[:n]) for n in range(max(1, len(parts)), 0, -1)), ("", parts[:1])]
        for name, shown in candidates:
            bar.set_description_str(name, refresh=False)
            bar.set_postfix_str(", ".join(shown), refresh=False)
            columns = bar.format_dict["ncols"]
            if columns is None:
                return
            meter = bar.format_meter(**{**bar.format_dict, "ncols": None})  # with a bar of ten columns
            if len(meter) - BAR_SHRINK_COLUMNS <= columns:
                return

    def close(self) -> None:
        if self._bar is not None:
            with progress_lock.lock:
                self._bar.close()


def _postfix_parts(progress: Progress) -> list[str]:
    """Return the text beside the bar, the most important part first."""
    parts = []
    if progress.tokens:
        parts.append("price unknown" if progress.cost_usd is None else format_usd(progress.cost_usd))
    if progress.failed:
        parts.append(f"{progress.failed:,} failed")
    if progress.cache_hits:
        parts.append(f"{progress.cache_hits:,} from cache")
    if progress.tokens:
        parts.append(f"{progress.tokens_per_second:,.0f} tokens/s")
    return parts


@functools.cache
def _bar_class() -> Any:
    tqdm: Any = import_module("tqdm.auto", "tqdm").tqdm

    class Bar(tqdm):  # type: ignore[misc]
        """A bar without tqdm's monitor thread, which does not survive a fork."""

        monitor_interval = 0

        def refresh(self, nolock: bool = False, lock_args: Any = None) -> Any:  # noqa: ARG002 - tqdm's own
            """Draw the bar. Unlike tqdm's method, release the lock that all bars share if the terminal fails."""
            with contextlib.nullcontext() if nolock else self.get_lock():
                return super().refresh(nolock=True)

    return Bar
