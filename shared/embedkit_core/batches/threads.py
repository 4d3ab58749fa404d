"""Threads of batch jobs: each operation has one, which ends it in order even if its caller is interrupted."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from embedkit_core.common.threads import WakeFlag, start_thread

T = TypeVar("T")


def run(work: Callable[[], T]) -> T:
    """Run a function on a new thread, and return its result.

    If the caller is interrupted meanwhile, by Ctrl-C, the function goes on until it is done or the process ends. So it
    must acquire its locks itself: a lock of the caller would be released before its work is done.
    """
    results: list[T] = []
    errors: list[BaseException] = []
    done = WakeFlag()

    def body() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)
        finally:
            done.set()

    start_thread(body, "embedkit-jobs")
    done.wait()
    if errors:
        raise errors.pop()
    return results.pop()
