"""Output files of the tools: validated before anything is sent, written after the table is printed."""

from __future__ import annotations

from pathlib import Path

from embedkit_core.cli.writing import check_writable
from embedkit_core.tools import BenchResult, Comparison
from embedkit_core.tools.charts import check_suffix


class Outputs:
    """Paths of a chart, a report and a CSV file, each optional.

    Raises:
        ConfigurationError: A path is not writable.
    """

    def __init__(self, chart: str | None, report: str | None, csv_file: str | None = None) -> None:
        self._chart, self._report, self._csv = chart, report, csv_file
        for option, path in (("--chart", chart), ("--report", report), ("--csv", csv_file)):
            if path is not None:
                check_writable(option, Path(path))
        if chart is not None:
            check_suffix(chart)

    def write(self, result: Comparison | BenchResult) -> None:
        """Write the requested files, the CSV file first."""
        if self._csv is not None and isinstance(result, Comparison):
            Path(self._csv).write_text(result.to_csv(), encoding="utf-8")
        if self._report is not None:
            result.report(self._report)
        if self._chart is not None:
            result.chart(self._chart)
