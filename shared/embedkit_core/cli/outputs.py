"""Output files of the tools: validated before anything is sent, written after the table is printed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from embedkit_core.cli.writing import check_writable, naming
from embedkit_core.common.errors import ConfigurationError
from embedkit_core.tools import BenchResult, Comparison
from embedkit_core.tools.charts import check_suffix


class Outputs:
    """Paths of a chart, a report and a CSV file, each optional.

    Args:
        chart: Path of the chart.
        report: Path of the HTML report.
        csv_file: Path of the CSV file.
        inputs: Paths of the inputs, which must not be overwritten.

    Raises:
        ConfigurationError: A path is not writable, or is that of an input or of another output.
    """

    def __init__(
        self, chart: str | None, report: str | None, csv_file: str | None = None, *, inputs: Iterable[str] = ()
    ) -> None:
        self._chart, self._report, self._csv = chart, report, csv_file
        taken = {Path(name).resolve() for name in inputs}
        for option, name in (("--chart", chart), ("--report", report), ("--csv", csv_file)):
            if name is not None:
                path = Path(name)
                check_writable(option, path)
                if path.resolve() in taken:
                    raise ConfigurationError(f"{option}: would overwrite {name!r}. Use another name.")
                taken.add(path.resolve())
        if chart is not None:
            check_suffix(chart)

    def write(self, result: Comparison | BenchResult) -> None:
        """Write the requested files, the CSV file first.

        Raises:
            OSError: A file cannot be written; the error names it.
        """
        if self._csv is not None and isinstance(result, Comparison):
            with naming(Path(self._csv)):
                Path(self._csv).write_text(result.to_csv(), encoding="utf-8")
        if self._report is not None:
            with naming(Path(self._report)):
                result.report(self._report)
        if self._chart is not None:
            with naming(Path(self._chart)):
                result.chart(self._chart)
