"""Checks of many rows in one test, which fails once and names every row that fails."""

from collections.abc import Callable, Iterable
from typing import TypeVar

import pytest

Row = TypeVar("Row")


def check_rows(rows: Iterable[Row], check: Callable[[Row], object]) -> None:
    """Call `check` with each row, and fail with the list of the rows for which it fails."""
    failed = []
    for row in rows:
        try:
            check(row)
        except (Exception, pytest.fail.Exception) as error:
            failed.append(f"{row!r:.200}: {type(error).__name__}: {error}")
    assert not failed, "\n".join(failed)
