"""Results of commands with tables: printed, and written to files that are validated before anything is sent."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from embedkit_core.cli.console import out, show
from embedkit_core.cli.writing import check_writable, naming
from embedkit_core.common.errors import ConfigurationError
from embedkit_core.tools import BenchResult, Comparison
from embedkit_core.tools.charts import check_suffix

STDOUT = "-"


class Outputs:
    """A result as text, JSON or CSV, and its files: a CSV file, a chart and a report, each optional.

    Args:
        csv_file: Path of the CSV file, - for standard output in place of the text.
        as_json: Print JSON in place of the text.
        chart: Path of the chart.
        report: Path of the HTML report.
        inputs: Paths of the inputs, which must not be overwritten.

    Raises:
        ConfigurationError: A path is not writable, or is that of an input or of another output, or both JSON and CSV
            are for standard output.
    """

    def __init__(
        self,
        csv_file: str | None,
        *,
        as_json: bool,
        chart: str | None = None,
        report: str | None = None,
        inputs: Iterable[str] = (),
    ) -> None:
        if csv_file == STDOUT and as_json:
            raise ConfigurationError("--csv -: contradicts --json. Remove one of them.")
        self._chart, self._report, self._csv, self._as_json = chart, report, csv_file, as_json
        taken = {Path(name).resolve() for name in inputs}
        for option, name in (("--chart", chart), ("--report", report), ("--csv", csv_file)):
            if name is not None and (option, name) != ("--csv", STDOUT):
                path = Path(name)
                check_writable(option, path)
                if path.resolve() in taken:
                    raise ConfigurationError(f"{option}: would overwrite {name!r}. Use another name.")
                taken.add(path.resolve())
        if chart is not None:
            check_suffix(chart)

    def show(self, text: str, data: Any, csv: str) -> None:
        """Print a result, then write the CSV file.

        Raises:
            OSError: The file cannot be written; the error names it.
        """
        if self._csv == STDOUT:
            out.out(csv, end="", highlight=False)
            return
        show(text, data, as_json=self._as_json)
        if self._csv is not None:
            with naming(Path(self._csv)):
                Path(self._csv).write_text(csv, encoding="utf-8")

    def draw(self, result: Comparison | BenchResult) -> None:
        """Write the report and the chart.

        Raises:
            OSError: A file cannot be written; the error names it.
        """
        warnings.filterwarnings("ignore", r"Glyph .* missing from font", UserWarning)  # one for each character
        if self._report is not None:
            with naming(Path(self._report)):
                result.report(self._report)
        if self._chart is not None:
            with naming(Path(self._chart)):
                result.chart(self._chart)
