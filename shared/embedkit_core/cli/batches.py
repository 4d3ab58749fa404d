"""Commands `batch submit`, `list`, `status`, `collect` and `cancel`: jobs at the providers' batch endpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypedDict, Unpack, get_args

import typer

from embedkit_core.batches.job import BatchJob, JobView
from embedkit_core.cli import options as o
from embedkit_core.cli.caches import opened
from embedkit_core.cli.console import PARTIAL, StoppedError, batch_app, confirm, err, format_price, show, table_width
from embedkit_core.cli.jobs import JobFolder, command, format_time, to_dict
from embedkit_core.cli.reading import RecordSource
from embedkit_core.common.errors import ConfigurationError, JobError
from embedkit_core.common.formatting import count_noun
from embedkit_core.common.money import format_usd
from embedkit_core.common.types import InputType
from embedkit_core.common.validation import check_choice, check_seconds
from embedkit_core.config.roles import Leftovers
from embedkit_core.coordination.journal.journal import Journal
from embedkit_core.embedder import Embedder
from embedkit_core.providers.batch_endpoint import open_endpoint
from embedkit_core.tools.tables import table

JobId = Annotated[str, typer.Argument(metavar="JOB", help="The job, as `batch list` shows it.")]
Wait = Annotated[bool, typer.Option("--wait", help="Wait until the job is collected. Ctrl-C stops the wait only.")]
WaitTimeout = Annotated[float | None, o.number("With --wait: wait so many seconds at most.")]


class JobSettings(TypedDict):
    """Options for a job."""

    cache: o.FolderOption
    coordination: o.CoordinationOption
    base_url: o.BaseUrl


class CollectSettings(JobSettings, o.ServerSettings):
    """Options of `batch collect`."""


class SubmitSettings(o.InputSettings, o.ModelSettings, o.VectorSettings, CollectSettings, o.BudgetSettings):
    """Options of `batch submit`."""

    input_type: o.InputTypeOption


@batch_app.command()
@o.with_settings
def submit(
    inputs: o.Inputs,
    keep_texts: Annotated[
        bool,
        typer.Option(
            "--keep-texts/--no-keep-texts",
            help="Keep the texts in the cache folder until they are collected, so that what fails can be sent again.",
        ),
    ] = True,
    leftovers: Annotated[
        str, o.choice(get_args(Leftovers), "What happens to texts that the provider did not embed")
    ] = "batch",
    endpoint: Annotated[
        str | None, typer.Option(help="Name of a batch endpoint without a published lower price: embed-jobs of Cohere.")
    ] = None,
    wait: Wait = False,
    wait_timeout: WaitTimeout = None,
    yes: o.Yes = False,
    quiet: o.Quiet = False,
    as_json: o.Json = False,
    **settings: Unpack[SubmitSettings],
) -> None:
    """Submit texts to the provider's batch endpoint, which embeds them within hours at a lower price.

    Shows the cost and asks for confirmation first. Only texts that the cache lacks are sent.

    Example: `rag-embedkit batch submit docs/ -m openai:text-embedding-3-small`
    """
    _check_wait(wait_timeout, wait=wait)
    check_choice("leftovers", leftovers, get_args(Leftovers))
    folder = opened(settings["cache"], "--cache").folder
    input_type = o.as_input_type(settings["input_type"])
    with o.record_source(inputs, settings) as source, o.make_embedder(settings) as embedder:
        open_endpoint(embedder.provider, endpoint)
        _confirm_submission(embedder, source, input_type, yes=yes, quiet=quiet)
        try:
            job = embedder.submit(
                source.texts(),
                input_type=input_type,
                keep_texts=keep_texts,
                leftovers=leftovers,  # type: ignore[arg-type]
                endpoint=endpoint,
            )
        except KeyboardInterrupt:
            raise StoppedError(
                f"`{command('list', {'cache': settings['cache']})}` shows whether the job was submitted."
            ) from None
        place = JobFolder(Journal(folder), settings)
        if wait:
            place.wait(job, wait_timeout, quiet=quiet)
        place.show(job, quiet=quiet, as_json=as_json)
        _exit_if_partial(job)


@batch_app.command(name="list")
def list_command(cache: o.FolderOption = None, wide: o.Wide = False, as_json: o.Json = False) -> None:
    """List the batch jobs of a cache folder, the oldest first, as its journal has them. No provider is asked."""
    place = _open({"cache": cache})
    jobs = [JobView(place.journal, record) for record in place.records()]
    head = ["job", "status", "model", "texts", "sent", "done", "failed", "left", "billed", "submitted"]
    cells = [
        [
            *(job.id, job.status, job.model),
            *(f"{n:,}" for n in (counts.texts, counts.sent, counts.done, counts.failed, counts.left)),
            *(format_usd(job.cost_usd), format_time(job.created_at)),
        ]
        for job in jobs
        for counts in (job.counts,)
    ]
    text = table(head, cells, table_width(wide=wide)) if jobs else f"{place.name}: no jobs"
    show(text, [to_dict(job) for job in jobs], as_json=as_json)


@batch_app.command()
@o.with_settings
def status(job: JobId, as_json: o.Json = False, **settings: Unpack[JobSettings]) -> None:
    """Ask the provider for the state of a job; show its texts, cost, deadline and errors."""
    place = _open(settings)
    with place.job(job) as found:
        if isinstance(found, BatchJob):
            try:
                found.refresh()
            except JobError as error:
                if not error.is_busy:  # else another process writes the state to the journal
                    raise
        place.show(found, quiet=False, as_json=as_json)


@batch_app.command()
@o.with_settings
def collect(
    job: JobId,
    wait: Wait = False,
    wait_timeout: WaitTimeout = None,
    quiet: o.Quiet = False,
    as_json: o.Json = False,
    **settings: Unpack[CollectSettings],
) -> None:
    """Write the vectors of a job to the cache, where other commands find them. Run it again for the rest."""
    _check_wait(wait_timeout, wait=wait)
    place = _open(settings)
    with place.job(job) as found:
        if isinstance(found, BatchJob):
            if wait:
                place.wait(found, wait_timeout, quiet=quiet)
            else:
                found.collect()
        place.show(found, quiet=quiet, as_json=as_json)
        _exit_if_partial(found)


@batch_app.command()
@o.with_settings
def cancel(job: JobId, as_json: o.Json = False, **settings: Unpack[JobSettings]) -> None:
    """Cancel what the provider has not done yet. What it has done is billed, and `batch collect` writes it."""
    place = _open(settings)
    with place.job(job) as found:
        if isinstance(found, BatchJob):
            found.cancel()
        place.show(found, quiet=False, as_json=as_json)


def _confirm_submission(
    embedder: Embedder, source: RecordSource, input_type: InputType, *, yes: bool, quiet: bool
) -> None:
    """Show the estimate, and ask for confirmation if it costs money."""
    estimated = embedder.estimate(source.texts(), input_type=input_type)
    if not estimated.texts:
        raise ConfigurationError("The inputs have no texts.")
    cost = estimated.batch_cost_usd
    if not quiet:
        if source.skipped:
            err.print(f"{count_noun(source.skipped, 'row')} without a text skipped")
        err.print(f"{embedder.model}: {estimated}")
    if cost is None or cost > 0:
        confirm(f"submit {count_noun(estimated.texts_to_send, 'text')} for {format_price(cost)}?", yes=yes)


def _open(settings: Mapping[str, Any]) -> JobFolder:
    """Return the jobs of a cache folder, which must exist unless it is the user's own."""
    cache = settings["cache"]
    folder = opened(cache, "--cache").folder
    if cache is not None and not folder.is_dir():
        raise ConfigurationError(f"--cache: the folder does not exist (got {cache!r}). Use the folder of a cache.")
    return JobFolder(Journal(folder), settings)


def _check_wait(timeout: float | None, *, wait: bool) -> None:
    if timeout is not None and not wait:
        raise ConfigurationError("--wait-timeout: needs --wait. Add it, or remove --wait-timeout.")
    if timeout is not None:
        check_seconds("--wait-timeout", timeout)


def _exit_if_partial(job: JobView) -> None:
    """Exit with the code for failed texts if a job was collected and has texts without a vector."""
    counts = job.counts
    if job.status == "collected" and (counts.failed or counts.left):
        raise typer.Exit(PARTIAL)
