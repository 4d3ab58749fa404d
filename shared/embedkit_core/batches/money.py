"""Money of a job: upper bounds are reserved for each batch, at the batch price, and settled with its results.

Named budgets hold what a batch may cost at their coordinator, so any process can settle it. The budgets of a process
know what was reserved in this process; a batch of another process is counted in them when it is collected.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from embedkit_core.calls.shared_budgets import hold_budgets, settle_budgets
from embedkit_core.common.errors import BudgetError, CoordinationError, JobError
from embedkit_core.common.fork_safety import register_after_fork
from embedkit_core.common.usage import Usage
from embedkit_core.coordination.journal.journal import Journal
from embedkit_core.coordination.journal.records import BatchRecord, JobRecord, LineRecord
from embedkit_core.coordination.opening import Coordination
from embedkit_core.costs.amounts import amount_of, to_usd
from embedkit_core.costs.billing import CallBilling
from embedkit_core.costs.budget import Budget
from embedkit_core.costs.meter import TextCounts
from embedkit_core.engine.runtime.batch_budgets import reserve_batch, settle_batch

logger = logging.getLogger("embedkit_core.batches")


@dataclass(slots=True)
class _Reservation:
    """What this process has reserved for a batch: the billing whose budgets have it, and the tokens that are left."""

    billing: CallBilling
    tokens: int


class _Reservations:
    """The reservations of this process, by the nonce of the batch."""

    def __init__(self) -> None:
        self.by_nonce: dict[str, _Reservation] = {}
        register_after_fork(self)

    def after_fork_in_child(self) -> None:
        """Leave them to the parent."""
        self.by_nonce = {}


_reservations = _Reservations()


class JobMoney:
    """The budgets and meters of a job.

    Args:
        billing: The meters and the budgets of the caller, with the batch price.
        coordination: The coordination of the embedder. None for none.
        journal: The journal.
        job: The job.
    """

    def __init__(
        self, billing: CallBilling, coordination: Coordination | None, journal: Journal, job: JobRecord
    ) -> None:
        named = [
            Budget(None if usd is None else to_usd(usd), tokens, name) for name, usd, tokens in job.options["budgets"]
        ]
        self._billing = replace(billing, budgets=billing.own_budgets)
        self._named = replace(billing, budgets=named)
        self._coordination = coordination
        self._journal = journal
        self._job = job

    def check_price(self) -> None:
        """Check that the batch price is known, if a budget limits USD.

        Raises:
            BudgetError: It is not.
        """
        if self._billing.needs_price or self._named.needs_price:
            raise BudgetError(
                f"budget_usd: the batch price of {self._job.model} is not published by the provider; nothing was sent. "
                "Use budget_tokens= for the job, or embed() at the normal price."
            )

    def reserve(self, batches: Sequence[BatchRecord]) -> BudgetError | None:
        """Reserve the upper bounds of batches, all or none. What is reserved already stays so.

        Returns:
            The error of a budget without room.

        Raises:
            ConfigurationError: A named budget exists with other limits, or there is no coordination.
        """
        reserved = []
        for batch in batches:
            refusal = None
            if batch.nonce not in _reservations.by_nonce:
                refusal = reserve_batch(self._billing, batch.max_tokens)
                if refusal is None:
                    _reservations.by_nonce[batch.nonce] = _Reservation(self._billing, batch.max_tokens)
                    reserved.append(batch)
            if refusal is None and self._named.budgets:
                refusal = hold_budgets(self._named, self._coordination, batch.nonce, batch.max_tokens)
            if refusal is not None:
                self.release(reserved)
                return refusal
        return None

    def release(self, batches: Sequence[BatchRecord]) -> None:
        """Release the reservations of batches that were not created."""
        for batch in batches:
            if (reason := self._settle_named(batch.nonce, 0, is_final=True)) is not None:
                logger.warning("Job %s: named budgets keep what they hold for it: %s", self._job.id, reason)
            self._settle_own(batch.nonce, batch.max_tokens, 0, 0)

    def count(self, batch: BatchRecord, ended: Sequence[LineRecord]) -> None:
        """Count lines whose vectors are in the cache now, and settle their bills."""
        if self._named.budgets:
            lines = self._journal.lines(batch.nonce)
            self._settle_named(batch.nonce, sum(line.billed or 0 for line in lines), is_final=False)
        self.meter(batch, ended)

    def settle(self, batch: BatchRecord, ended: Sequence[LineRecord] = ()) -> None:
        """Settle the whole bill of a batch in named budgets, and release what is left of its reservation there.

        Args:
            batch: The batch, which has ended.
            ended: Its lines without vectors, whose end is not in the journal yet.

        Raises:
            JobError: They cannot be reached. They hold the upper bound until the job is collected again.
        """
        if not self._named.budgets:
            return
        lines = {line.number: line for line in (*self._journal.lines(batch.nonce), *ended)}.values()
        lost = sum(line.max_tokens for line in lines if line.state != "open" and line.billed is None)
        reason = self._settle_named(batch.nonce, sum(line.billed or 0 for line in lines), lost, is_final=True)
        if reason is not None:
            raise JobError(
                f"Job {self._job.id}: its vectors are in the cache, but its named budgets cannot be settled ({reason})."
                " Collect it again with the coordination of the embedder that submitted it.",
                self._job.id,
            )

    def meter(self, batch: BatchRecord, ended: Sequence[LineRecord]) -> None:
        """Count lines that have ended in the meters, and settle their bills in the budgets of this process."""
        done = sum(line.texts for line in ended if line.state == "done")
        failed = sum(line.texts for line in ended if line.state in ("failed", "left"))
        billed = sum(line.billed or 0 for line in ended)
        lost = sum(line.max_tokens for line in ended if line.billed is None)
        usage = self._settle_own(batch.nonce, sum(line.max_tokens for line in ended), billed, lost)
        usage += Usage(requests=sum(line.state != "moved" for line in ended))
        for meter in self._billing.meters:
            meter.add(usage)
        self._billing.count(TextCounts(done + failed, 0, 0, 0, done, failed, 0, 0))

    def _settle_own(self, nonce: str, reserved: int, billed: int, lost: int) -> Usage:
        reservation = _reservations.by_nonce.get(nonce)
        if reservation is None:
            return settle_batch(self._billing, 0, billed, lost)
        released = min(reserved, reservation.tokens)
        reservation.tokens -= released
        if not reservation.tokens:
            _reservations.by_nonce.pop(nonce, None)
        return settle_batch(reservation.billing, released, billed, lost)

    def _settle_named(self, nonce: str, billed: int, lost: int = 0, *, is_final: bool) -> str | None:
        """Settle a batch in named budgets. Return the reason why they keep what they hold for it, None if settled."""
        names = list(self._named.named_budgets)
        if not names:
            return None
        if self._coordination is None:
            return "coordination=False"
        amounts = amount_of(billed, self._named.price), amount_of(lost, self._named.price)
        try:
            settle_budgets(names, self._coordination, nonce, *amounts, is_final=is_final)
        except CoordinationError as error:
            return str(error)
        return None
