"""The files that a tool writes beside its table: looked at before anything is paid for, written after the table."""

from __future__ import annotations

import os
from pathlib import Path

from embedkit_core.common.errors import ConfigurationError
from embedkit_core.tools import BenchResult, Comparison
from embedkit_core.tools.charts import check_drawing, check_kind


class Outputs:
    """Where a chart, a report and the numbers go, each where one is wanted.

    Raises:
        ConfigurationError: a name or a place that nothing can be written to, or matplotlib is not installed.
    """

    def __init__(self, chart: str | None, report: str | None, csv_file: str | None = None) -> None:
        self._chart, self._report, self._csv = chart, report, csv_file
        for option, path in (("--chart", chart), ("--report", report), ("--csv", csv_file)):
            if path is not None:
                _check_place(option, Path(path))
        if chart is not None:
            check_kind(chart)
        if chart is not None or report is not None:
            check_drawing()

    def write(self, found: Comparison | BenchResult) -> None:
        """Write what is wanted, the numbers first."""
        if self._csv is not None and isinstance(found, Comparison):
            Path(self._csv).write_text(found.to_csv(), encoding="utf-8")
        if self._report is not None:
            found.report(self._report)
        if self._chart is not None:
            found.chart(self._chart)


def _check_place(option: str, path: Path) -> None:
    if path.is_dir():
        raise ConfigurationError(f"{option}: {str(path)!r} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise ConfigurationError(f"{option}: there is no folder {str(path.parent)!r}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigurationError(f"{option}: {str(path)!r} cannot be written; name a place that is yours")
