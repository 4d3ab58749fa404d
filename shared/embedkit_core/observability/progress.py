"""How far a call has come: a bar, or a function of the user's, told on the caller's side."""

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
from embedkit_core.common.formatting import TWO_DIGITS, format_usd, shorten_model_name
from embedkit_core.common.usage import Usage

logger = logging.getLogger("embedkit_core")

SHRINKS = 5  # columns that a bar of ten gives up before anything is left out beside it
REPORT_INTERVAL = 0.1  # seconds between two reports at least, but for the last


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a call or a stream has come.

    `texts` is how many there are, None for a stream that does not say; `done` counts those that are served or have
    failed, duplicates and hits too, and is `texts` when it has `finished`. `tokens` and `cost_usd` are what was billed
    so far, None where the price is unknown.
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
        """The tokens billed a second, since the beginning."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def seconds_left(self) -> float | None:
        """The seconds until the end at the pace so far, hits left out of it; None while nobody knows."""
        if self.finished:
            return 0.0
        sent = self.done - self.cache_hits
        if self.texts is None or sent <= 0:
            return None
        return self.seconds * (self.texts - self.done) / sent


ProgressOption: TypeAlias = bool | Callable[[Progress], object] | None


def make_reporter(to: ProgressOption, name: str, texts: int | None = None) -> ProgressReporter | None:
    """Give what reports of a call to one model, None where nobody wants to know."""
    return None if to is None or to is False else ProgressReporter(to, name, texts)


class ProgressSink(Protocol):
    """What a report goes to."""

    def show(self, progress: Progress) -> None:
        """Show it."""

    def close(self) -> None:
        """Show nothing more."""


def check_progress(value: object) -> None:
    """Raise ConfigurationError unless an argument says where reports go, MissingExtraError for a bar without tqdm."""
    if value is None or isinstance(value, bool):
        if value and importlib.util.find_spec("tqdm") is None:
            raise MissingExtraError("a progress bar", "progress")
        return
    if not callable(value):
        raise ConfigurationError(f"progress={value!r:.80} must be True for a bar, False, or a function of a Progress")
    if inspect.iscoroutinefunction(value):
        raise ConfigurationError("progress is an async function; give one that can simply be called")


class ProgressReporter:
    """Reports of one call or stream, to a bar or a function; one that fails is not called again, the call goes on."""

    def __init__(self, to: bool | Callable[[Progress], object], name: str, texts: int | None) -> None:
        self._to: ProgressSink | None = _Bar(name) if isinstance(to, bool) else _CallbackSink(to)
        self._texts = texts
        self._began = self._reported = time.monotonic()

    def begin(self, texts: int) -> None:
        """Take in how many texts there are."""
        self._texts = texts

    def due(self) -> bool:
        """Tell whether it is time for another report."""
        return time.monotonic() - self._reported >= REPORT_INTERVAL

    def report(self, done: int, usage: Usage, *, finished: bool = False) -> None:
        """Tell how far it is."""
        self._reported = now = time.monotonic()
        if self._to is None:
            return
        done = self._texts if finished and self._texts is not None else done
        told = (usage.cache_hits, usage.failed, usage.tokens, usage.cost_usd)
        progress = Progress(self._texts, done, *told, seconds=now - self._began, finished=finished)
        try:
            self._to.show(progress)
        except Exception as error:  # the user's own
            logger.warning("progress= failed with %s; the call goes on without it", type(error).__name__)
            finished = True
        if finished:
            self.close()

    def close(self) -> None:
        """Tell nothing more: the caller has left, or all is done."""
        to, self._to = self._to, None
        if to is not None:
            with contextlib.suppress(Exception):  # a terminal that is gone
                to.close()


class _CallbackSink:
    """Calls a function of the user's."""

    def __init__(self, function: Callable[[Progress], object]) -> None:
        self._function = function

    def show(self, progress: Progress) -> None:
        self._function(progress)

    def close(self) -> None:
        """Nothing is open."""


class _Bar:
    """A tqdm bar, in a terminal or a notebook. A single text has none."""

    def __init__(self, name: str) -> None:
        self._name = shorten_model_name(name, 30)
        self._bar: Any = None

    def show(self, progress: Progress) -> None:
        if progress.texts == 1:
            return
        made = _bar_class()
        with progress_lock.lock:
            if self._bar is None:
                self._bar = made(desc=self._name, total=progress.texts, unit=" texts", dynamic_ncols=True)
            bar = self._bar
            bar.total, bar.n = progress.texts, progress.done
            bar.initial = progress.cache_hits  # they took no time
            self._describe(progress)
            bar.refresh()

    def _describe(self, progress: Progress) -> None:
        """Say beside the bar as much as there is room for; texts, time and dollars are left to the end."""
        bar, said = self._bar, _described(progress)
        for name, parts in [*((self._name, said[:n]) for n in range(max(1, len(said)), 0, -1)), ("", said[:1])]:
            bar.set_description_str(name, refresh=False)
            bar.set_postfix_str(", ".join(parts), refresh=False)
            columns = bar.format_dict["ncols"]
            if columns is None:
                return
            whole = bar.format_meter(**{**bar.format_dict, "ncols": None})  # with a bar of ten columns
            if len(whole) - SHRINKS <= columns:
                return

    def close(self) -> None:
        if self._bar is not None:
            with progress_lock.lock:
                self._bar.close()


def _described(progress: Progress) -> list[str]:
    """Say how it stands, the most important first."""
    said = []
    if progress.tokens:
        said.append(
            "price unknown" if progress.cost_usd is None else f"${format_usd(TWO_DIGITS.plus(progress.cost_usd))}"
        )
    if progress.failed:
        said.append(f"{progress.failed:,} failed")
    if progress.cache_hits:
        said.append(f"{progress.cache_hits:,} from cache")
    if progress.tokens:
        said.append(f"{progress.tokens_per_second:,.0f} tokens/s")
    return said


@functools.cache
def _bar_class() -> Any:
    tqdm: Any = import_module("tqdm.auto").tqdm

    class Bar(tqdm):  # type: ignore[misc]
        """A bar without the thread by which tqdm watches its own: it would outlive a fork."""

        monitor_interval = 0

        def refresh(self, nolock: bool = False, lock_args: Any = None) -> Any:  # noqa: ARG002 - tqdm's own
            """Draw it; where the terminal fails, tqdm's own leaves the lock shut that all bars share."""
            with contextlib.nullcontext() if nolock else self.get_lock():
                return super().refresh(nolock=True)

    return Bar
