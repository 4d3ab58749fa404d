"""The batch jobs of a cache folder, as the commands open and show them."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from decimal import ROUND_CEILING
from pathlib import Path
from typing import Any, NamedTuple

from embedkit_core.batches import files
from embedkit_core.batches.job import BatchJob, JobView
from embedkit_core.cli.console import StoppedError, err, show
from embedkit_core.common.errors import ConfigurationError, JobError
from embedkit_core.common.formatting import count_noun, suggest
from embedkit_core.common.money import exact_decimal, format_usd
from embedkit_core.coordination.journal.journal import Journal
from embedkit_core.coordination.journal.records import JobRecord
from embedkit_core.costs.amounts import to_usd
from embedkit_core.embedder import Embedder

ADDRESSES = ("cache", "base_url", "coordination")
LIMITS = ("timeout", "requests_per_minute", "tokens_per_minute")


class JobFolder(NamedTuple):
    """A cache folder with jobs.

    Attributes:
        journal: Its journal.
        settings: The values of the command's options by name. `ADDRESSES` and `LIMITS` are arguments of `Embedder`.
    """

    journal: Journal
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The path of the folder."""
        return str(self.journal.folder.parent)

    def records(self) -> list[JobRecord]:
        """Return the jobs, the oldest first."""
        return [record for record in self.journal.jobs() if record.state != "preparing"]

    @contextmanager
    def job(self, job_id: str) -> Iterator[JobView]:
        """Open a job with the settings that it was submitted with; a finished one is only viewed.

        Raises:
            ConfigurationError: There is none.
            JobError: Its settings cannot be restored.
        """
        records = {record.id: record for record in self.records()}
        if job_id not in records:
            hint = suggest(job_id, list(records)) or f"its jobs: {', '.join(records) or 'none'}"
            raise ConfigurationError(f"JOB: {self.name} has no job {job_id!r:.80}; {hint}")
        view = JobView(self.journal, records[job_id])
        if view.is_finished and not files.exist(self.journal.folder, job_id):  # else a process died, which left them
            yield view
            return
        with self._embedder_of(records[job_id]) as embedder:
            yield embedder.job(job_id)

    def wait(self, job: BatchJob, timeout: float | None, *, quiet: bool) -> None:
        """Collect a job until nothing of it is open, with a progress bar on a terminal."""
        more = f"The job goes on. Collect it with: {self.command_of(job)} --wait"
        try:
            job.wait(timeout, progress=not quiet and sys.stderr.isatty())
        except KeyboardInterrupt:
            raise StoppedError(more) from None
        except TimeoutError as error:
            raise JobError(f"{error}. {more}", job.id) from None

    def show(self, job: JobView, *, quiet: bool, as_json: bool) -> None:
        """Print a job and what to do next."""
        show(described(job), to_dict(job), as_json=as_json)
        if not quiet and not job.is_finished:
            err.print(f"Collect it with: {self.command_of(job)} --wait")

    def command_of(self, job: JobView) -> str:
        """Return the command that collects a job."""
        return command(f"collect {job.id}", self.settings)

    def _embedder_of(self, record: JobRecord) -> Embedder:
        """Return an embedder with the settings of a job.

        The API key and the address that gets it are the user's, because a job in the folder may be planted.

        Raises:
            JobError: The address is another one; or the embedder would make other vectors: the job's settings depend on
                more than the journal has.
        """
        arguments = dict(record.settings)
        address = arguments.pop("base_url", None)
        for name, nano_usd, tokens in record.options.get("budgets", ()):
            arguments |= {"budget_name": name, "budget_tokens": tokens}
            arguments["budget_usd"] = None if nano_usd is None else to_usd(nano_usd)
        arguments |= {name: self.settings[name] for name in (*ADDRESSES, *LIMITS) if name in self.settings}
        embedder = Embedder(**arguments)
        if embedder.provider.url != address:
            embedder.close()
            given = (
                "" if address is None else f" If you trust it with the API key, add: --base-url {shlex.quote(address)}"
            )
            raise JobError(
                f"Job {record.id} of {record.model} was submitted to {address or 'the default address'}, and this "
                f"command uses {embedder.provider.url or 'the default address'}.{given}",
                record.id,
            )
        if embedder.fingerprint != record.fingerprint:
            embedder.close()
            raise JobError(
                f"Job {record.id} of {record.model} was submitted with settings that depend on its environment or its "
                f"version of the library. Collect it where it was submitted, or in Python: embedder.job({record.id!r}) "
                "of an embedder with the same arguments.",
                record.id,
            )
        return embedder


def check_no_open_jobs(folder: Path, option: str | None) -> None:
    """Check that the vectors in a cache folder are not those of jobs that are open.

    Raises:
        JobError: There are open jobs.
    """
    settings = {"cache": option}
    place = JobFolder(Journal(folder), settings)
    jobs = [record.id for record in place.records() if not JobView(place.journal, record).is_finished]
    if jobs:
        listed = ", ".join(jobs[:10]) + (", …" if len(jobs) > 10 else "")
        raise JobError(
            f"{count_noun(len(jobs), 'batch job')} of {place.name} {'is' if len(jobs) == 1 else 'are'} open "
            f"({listed}). Collect or cancel them first, with: {command('collect', settings)} JOB --wait",
            jobs[0],
        )


def command(words: str, settings: Mapping[str, Any]) -> str:
    """Return a command for the jobs of a cache folder, as a user writes it."""
    values = {name: settings[name] for name in ADDRESSES if settings.get(name) is not None}
    given = [f" --{name.replace('_', '-')} {shlex.quote(value)}" for name, value in values.items()]
    return f"rag-embedkit batch {words}{''.join(given)}"


def described(job: JobView) -> str:
    """Return the lines for a job: itself, its cost, its deadline and its texts without a vector."""
    lines, counts = [str(job), f"  model: {job.model}, {job.input_type}"], job.counts
    if counts.sent:
        most = "" if job.is_finished else f", {format_usd(job.max_cost_usd, ROUND_CEILING)} at most"
        lost = (
            f", {format_usd(job.possibly_billed_usd, ROUND_CEILING)} possibly billed besides"
            if job.possibly_billed_usd
            else ""
        )
        lines.append(f"  cost: {format_usd(job.cost_usd)} billed{most}{lost}")
    if job.status == "waiting":
        lines.append("  waiting: the provider has not taken a batch yet; `batch collect` sends it")
    if counts.elsewhere:
        lines.append(f"  in other jobs: {count_noun(counts.elsewhere, 'text')}; see `batch list`")
    if counts.left_out:
        lines.append(f"  left out: {count_noun(counts.left_out, 'text')}, maybe too long for the model; use `embed`")
    if job.expires_at is not None:
        lines.append(f"  deadline: {format_time(job.expires_at)}")
    lines += [f"  not embedded: {count_noun(n, 'text')} ({code or 'no code'})" for code, n in job.errors.items()]
    return "\n".join(lines)


def to_dict(job: JobView) -> dict[str, Any]:
    """Return a job for JSON: USD as strings, None if unknown."""
    amounts = {name: getattr(job, name) for name in ("cost_usd", "max_cost_usd", "possibly_billed_usd")}
    return {
        "id": job.id,
        "status": job.status,
        "model": job.model,
        "input_type": job.input_type,
        "created_at": job.created_at.isoformat(),
        "expires_at": None if job.expires_at is None else job.expires_at.isoformat(),
        **job.counts._asdict(),
        "tokens": job.tokens,
        **{name: None if usd is None else exact_decimal(usd) for name, usd in amounts.items()},
        "errors": job.errors,
    }


def format_time(moment: datetime) -> str:
    """Return a time in UTC, to the minute."""
    return f"{moment:%Y-%m-%d %H:%M} UTC"
