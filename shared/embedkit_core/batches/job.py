"""A batch job: texts that a provider embeds within hours, at its batch price, into the cache."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from typing import Literal, NamedTuple, Self, TypeAlias, get_args

from embedkit_core.batches.service import JobService, Trackers
from embedkit_core.common.errors import ConfigurationError, JobError
from embedkit_core.common.formatting import count_noun
from embedkit_core.common.money import format_usd
from embedkit_core.common.threads import JOBS, off_loop
from embedkit_core.common.types import InputType
from embedkit_core.common.usage import Usage
from embedkit_core.common.validation import check_choice, check_input_type, check_seconds
from embedkit_core.config.roles import Leftovers
from embedkit_core.coordination.journal.journal import Journal
from embedkit_core.coordination.journal.records import BatchRecord, JobRecord
from embedkit_core.costs.tokens import cost_or_none
from embedkit_core.costs.tracker import active_trackers
from embedkit_core.observability.progress import ProgressOption, check_progress, make_reporter

JobStatus: TypeAlias = Literal["waiting", "running", "ready", "collected", "cancelling", "cancelled"]
FIRST_POLL_SECONDS, LONGEST_POLL_SECONDS, POLL_GROWTH = 30.0, 300.0, 1.3


class JobCounts(NamedTuple):
    """The texts of a job.

    Attributes:
        texts: All texts that were submitted, duplicates included.
        cache_hits: Distinct texts that the cache held. They were not sent.
        elsewhere: Distinct texts that are in other open jobs. They were not sent.
        left_out: Distinct texts that may be too long for the model. A normal call embeds them.
        sent: Distinct texts in the job's batches.
        done: Those of them whose vectors are in the cache.
        failed: Those of them that the provider refused.
        left: Those of them that were not embedded for another reason. A normal call embeds them.
    """

    texts: int
    cache_hits: int
    elsewhere: int
    left_out: int
    sent: int
    done: int
    failed: int
    left: int

    @property
    def open(self) -> int:
        """Distinct texts without a result yet."""
        return self.sent - self.done - self.failed - self.left


class JobView:
    """What the journal knows about a job. No provider is asked, and no embedder is needed.

    Attributes:
        id: The ID of the job.
        model: "provider:model".
        input_type: The input type of its texts.
        created_at: Its submission.
    """

    def __init__(self, journal: Journal, record: JobRecord) -> None:
        self._journal = journal
        self.id = record.id
        self.model = record.model
        self.input_type: InputType = record.input_type
        self.created_at = datetime.fromtimestamp(record.created_at, UTC)

    @property
    def status(self) -> JobStatus:
        """What is happening to the job.

        "waiting": no batch is with the provider, and the next step sends one. "running": the provider works on it.
        "ready": results can be collected. "collected": all results are in the cache. "cancelling": it was cancelled,
        and results so far can be collected. "cancelled": they were.
        """
        return _status(self._record(), self._batches())

    @property
    def counts(self) -> JobCounts:
        """The numbers of its texts."""
        record, by_state = self._record(), self._journal.counts(self.id)
        texts = {state: found.texts for state, found in by_state.items()}
        sent = sum(n for state, n in texts.items() if state != "moved")
        return JobCounts(
            *(record.texts, record.cache_hits, record.elsewhere, record.left_out, sent),
            *(texts.get("done", 0), texts.get("failed", 0), texts.get("left", 0)),
        )

    @property
    def tokens(self) -> int:
        """The billed tokens so far, as the results state them."""
        return sum(found.billed for found in self._journal.counts(self.id).values())

    @property
    def cost_usd(self) -> Decimal | None:
        """The cost of `tokens` at the batch price in USD. None if the price is unknown."""
        return cost_or_none(self.tokens, self._price)

    @property
    def max_cost_usd(self) -> Decimal | None:
        """An upper bound of its cost in USD: billed, possibly billed and open lines. None if the price is unknown."""
        totals = self._journal.counts(self.id).values()
        return cost_or_none(sum(found.billed + found.unknown for found in totals), self._price)

    @property
    def possibly_billed_usd(self) -> Decimal | None:
        """An upper bound of the cost of ended lines whose results state no tokens. None if the price is unknown."""
        by_state = self._journal.counts(self.id)
        unknown = sum(found.unknown for state, found in by_state.items() if state != "open")
        return cost_or_none(unknown, self._price)

    @property
    def expires_at(self) -> datetime | None:
        """When the provider gives up at the latest. None if no batch is with it."""
        times = [batch.expires_at for batch in self._batches() if batch.step == "CREATED" and batch.expires_at]
        return datetime.fromtimestamp(max(times), UTC) if times else None

    @property
    def errors(self) -> dict[str, int]:
        """The numbers of texts without a vector, by the provider's code."""
        return self._journal.failures(self.id)

    @property
    def is_finished(self) -> bool:
        """True if nothing of the job is open."""
        return self.status in ("collected", "cancelled")

    @property
    def _price(self) -> Decimal | None:
        price = self._record().price
        return None if price is None else Decimal(price)

    def _record(self) -> JobRecord:
        record = self._journal.job(self.id)
        if record is None:
            raise JobError(f"Job {self.id} is not in the journal {self._journal.folder} any more.", self.id)
        return record

    def _batches(self) -> list[BatchRecord]:
        return self._journal.batches(self.id)

    def __str__(self) -> str:
        """Return one line: "job-3f2a, running, 50,000 texts, 49,800 sent, 12,000 done, $0.12, ..."."""
        counts, cost = self.counts, self.cost_usd
        parts = [self.id, self.status, count_noun(counts.texts, "text"), f"{counts.cache_hits:,} from cache"]
        parts += [f"{n:,} {name}" for name, n in (("sent", counts.sent), ("done", counts.done)) if n or name == "sent"]
        others = (("in other jobs", counts.elsewhere), ("left out", counts.left_out), ("failed", counts.failed))
        parts += [f"{n:,} {name}" for name, n in (*others, ("left", counts.left)) if n]
        if counts.sent:
            parts.append("price unknown" if cost is None else f"{format_usd(cost)} billed")
        return ", ".join(parts)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} of {self.model}>"


class _Poll(NamedTuple):
    """What a poll has found: texts, those that the provider has done, the usage; and the seconds until the next one."""

    pause: float
    texts: int
    done: int
    usage: Usage
    is_last: bool


class _Reports:
    """Reports of polls, shown on the thread or event loop of the caller.

    Raises:
        ConfigurationError: `progress` is invalid, or a bar needs a package that is not installed.
    """

    def __init__(self, progress: ProgressOption, model: str) -> None:
        check_progress(progress)
        self._reporter = make_reporter(progress, model)

    def show(self, poll: _Poll) -> None:
        """Show a poll, if progress was requested."""
        if self._reporter is not None:
            self._reporter.begin(poll.texts)
            self._reporter.report(poll.done, poll.usage, finished=poll.is_last)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._reporter is not None:
            self._reporter.close()


class BatchJob(JobView):
    """A job of texts at a provider's batch endpoint. Its vectors go to the cache, where a normal call finds them.

    Everything about it is in a journal beside the cache, so any process with the same cache folder and the same
    settings can go on with it: `Embedder.job(id)`. Its properties read the journal; `refresh`, `collect`, `wait` and
    `cancel` ask the provider.

    Attributes:
        id: The ID of the job.
        model: "provider:model".
        input_type: The input type of its texts.
        created_at: Its submission.

    Example:
        ```python
        job = embedder.submit(texts)
        job.wait()  # hours later, in this process or in another one
        embedder.embed(texts)  # all from the cache
        ```
    """

    def __init__(self, service: JobService, record: JobRecord) -> None:
        super().__init__(service.journal, record)
        self._service = service

    def refresh(self) -> JobStatus:
        """Send what can be sent, ask the provider for the state of its batches, and return the job's status.

        Raises:
            ProviderError: The provider refused it.
            JobError: Another process is working on the job, or this embedder cannot.
        """
        return self._refresh(active_trackers())

    def collect(self) -> JobCounts:
        """Write all results that there are to the cache, and send what can be sent. It does not wait.

        Returns:
            The numbers of its texts.

        Raises:
            ProviderError, JobError: As for `refresh`.
            CacheError: The cache cannot be written. What is not written stays with the provider.
            BudgetError: A budget has no room for texts that must be sent again.
        """
        return self._collect(active_trackers())

    def wait(
        self, timeout: float | None = None, *, poll: float | None = None, progress: ProgressOption = None
    ) -> JobCounts:
        """Collect the job until nothing of it is open. Interrupt it at any time; another call goes on.

        Args:
            timeout: Seconds to wait at most. None for no limit.
            poll: Seconds between two polls. By default 30 s that grow to 5 minutes.
            progress: Where progress is reported, as for `Embedder.embed`.

        Returns:
            The numbers of its texts.

        Raises:
            TimeoutError: The job has not finished within `timeout` seconds. Nothing is lost.
            ProviderError, JobError, CacheError, BudgetError: As for `collect`.
        """
        with _Reports(progress, self.model) as reports:
            for one in self._polls(timeout, poll, active_trackers()):
                reports.show(one)
                time.sleep(one.pause)
        return self.counts

    def cancel(self) -> JobStatus:
        """Cancel what the provider has not done yet. `collect` writes the results so far, which are billed.

        Raises:
            ProviderError, JobError: As for `refresh`.
        """
        return self._cancel(active_trackers())

    async def arefresh(self) -> JobStatus:
        """Do what `refresh` does without blocking the event loop."""
        return await off_loop(partial(self._refresh, active_trackers()), JOBS)

    async def acollect(self) -> JobCounts:
        """Do what `collect` does without blocking the event loop."""
        return await off_loop(partial(self._collect, active_trackers()), JOBS)

    async def await_(
        self,
        timeout: float | None = None,  # noqa: ASYNC109 - as `wait`
        *,
        poll: float | None = None,
        progress: ProgressOption = None,
    ) -> JobCounts:
        """Do what `wait` does without blocking the event loop."""
        polls = self._polls(timeout, poll, active_trackers())
        with _Reports(progress, self.model) as reports:
            while (one := await off_loop(lambda: next(polls, None), JOBS)) is not None:
                reports.show(one)
                await asyncio.sleep(one.pause)
        return await off_loop(lambda: self.counts, JOBS)

    async def acancel(self) -> JobStatus:
        """Do what `cancel` does without blocking the event loop."""
        return await off_loop(partial(self._cancel, active_trackers()), JOBS)

    def _refresh(self, trackers: Trackers) -> JobStatus:
        self._advance(trackers, collects=False)
        return self.status

    def _collect(self, trackers: Trackers) -> JobCounts:
        self._advance(trackers, collects=True)
        return self.counts

    def _cancel(self, trackers: Trackers) -> JobStatus:
        if not self.is_finished:
            self._service.cancel(self.id, trackers)
        return self.status

    def _polls(self, timeout: float | None, poll: float | None, trackers: Trackers) -> Iterator[_Poll]:
        """Collect the job until nothing is open; yield what was found each time."""
        for name, seconds in (("timeout", timeout), ("poll", poll)):
            if seconds is not None:
                check_seconds(name, seconds)
        until = None if timeout is None else time.monotonic() + timeout
        pause = FIRST_POLL_SECONDS
        while True:
            try:
                self._collect(trackers)
            except JobError as error:
                if not error.is_busy:
                    raise
            if self.is_finished:
                yield self._poll(0.0, is_last=True)
                return
            if until is not None and time.monotonic() >= until:
                raise TimeoutError(f"Job {self.id} has not finished within {timeout:g} s: {self}")
            left = float("inf") if until is None else until - time.monotonic()
            wanted = pause * random.uniform(0.8, 1.0) if poll is None else poll  # noqa: S311
            yield self._poll(max(0.0, min(left, wanted)), is_last=False)
            pause = min(pause * POLL_GROWTH, LONGEST_POLL_SECONDS)

    def _poll(self, pause: float, *, is_last: bool) -> _Poll:
        """Return the number of texts that the provider has done, and the usage so far."""
        counts, tokens = self.counts, self.tokens
        with_provider = sum(
            batch.texts * min(batch.done + batch.failed, batch.lines) // batch.lines
            for batch in self._batches()
            if batch.step in ("CREATED", "TERMINAL") and batch.lines
        )
        done = min(counts.sent, counts.sent - counts.open + with_provider)
        priced = None if self._price is None else cost_or_none(tokens, self._price)
        usage = Usage(unpriced_tokens=tokens) if priced is None else Usage(priced_usd=priced)
        usage += Usage(tokens=tokens, failed=counts.failed + counts.left)
        return _Poll(pause, counts.sent, done, usage, is_last)

    def _advance(self, trackers: Trackers, *, collects: bool) -> None:
        if self.is_finished:
            self._service.close(self.id)
        else:
            self._service.advance(self.id, trackers, collects=collects)


def _status(record: JobRecord, batches: Sequence[BatchRecord]) -> JobStatus:
    is_open = any(batch.step != "COLLECTED" for batch in batches)
    if record.state == "cancelled":
        return "cancelling" if is_open else "cancelled"
    if not is_open:
        return "collected"
    steps = {batch.step for batch in batches}
    if "TERMINAL" in steps:
        return "ready"
    return "running" if "CREATED" in steps else "waiting"


class JobStore:
    """The jobs in the cache folder of an embedder."""

    def __init__(self, service: JobService) -> None:
        self._service = service

    def submit(
        self,
        texts: Iterable[str],
        trackers: Trackers,
        *,
        input_type: InputType = "document",
        keep_texts: bool = True,
        leftovers: Leftovers = "batch",
        endpoint: str | None = None,
    ) -> BatchJob:
        """Submit texts, as `Embedder.submit` does; `trackers` are those of the caller."""
        check_input_type(input_type)
        check_choice("leftovers", leftovers, get_args(Leftovers))
        if not isinstance(keep_texts, bool):  # "no" would keep them
            raise ConfigurationError(f"keep_texts: must be True or False (got {keep_texts!r:.80})")
        options = {"endpoint": endpoint, "keep_texts": keep_texts, "leftovers": leftovers}
        record = self._service.submit(texts, input_type, trackers, options)
        return BatchJob(self._service, record)

    def jobs(self) -> list[BatchJob]:
        """Return the jobs of the embedder, the oldest first."""
        return [BatchJob(self._service, record) for record in self._service.jobs()]

    def job(self, job_id: str) -> BatchJob:
        """Return the job with an ID.

        Raises:
            JobError: There is none, or it was submitted with other settings.
        """
        return BatchJob(self._service, self._service.find(job_id))
