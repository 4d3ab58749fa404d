"""The journal of the batch jobs of a cache folder. Every method is one transaction, on disk when it returns."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from embedkit_core.cache.disk import folder as folders
from embedkit_core.cache.disk.connections import (
    FORK_BARRIER,
    again_after_fork,
    close_all,
    connect,
    is_busy,
    is_damage,
    set_busy_timeout,
)
from embedkit_core.common.errors import CacheError, JobError
from embedkit_core.common.fork_safety import import_module
from embedkit_core.coordination.journal import schema
from embedkit_core.coordination.journal.records import BatchRecord, JobRecord, LineRecord, LineState
from embedkit_core.coordination.port import ProviderAccount

PREFIX_BYTES = 8  # of a key: texts of open jobs do not share them by chance
KEY_BYTES = 32
BUSY_SECONDS = 30.0  # that a transaction waits for those of other processes
QUEUE_DAYS = 7  # after which a learned limit is forgotten: the account may have a higher one by now
KEYS_PER_QUERY = 500
SYNCHRONOUS = "FULL"  # a power cut must not undo what precedes a request
MAX_QUEUED_SECONDS = 2 * 24 * 3600  # of a batch whose provider states no time
QUEUED_STEPS = ("CREATING", "CREATED")  # in which the provider counts a batch's tokens as queued

_FAILURES = (OSError, sqlite3.Error, CacheError, LookupError, OverflowError, TypeError, ValueError)
T = TypeVar("T")


class TextTotals(NamedTuple):
    """Sums of lines: texts, billed tokens, and upper bounds of the bills that are unknown."""

    texts: int
    billed: int
    unknown: int


class Journal:
    """The journal of a cache folder. Nothing is open between two calls.

    Attributes:
        folder: The folder of the journal and of the files of lines and results.
    """

    def __init__(self, cache_folder: Path) -> None:
        self.folder = cache_folder / schema.FOLDER

    @property
    def exists(self) -> bool:
        """True if there has been a job."""
        return (self.folder / schema.DATABASE).exists()

    def create(self) -> None:
        """Create the folder and the journal, if they do not exist.

        Raises:
            JobError: They cannot be used.
        """
        self._run(lambda _: None)

    # Reading

    def jobs(self) -> list[JobRecord]:
        """Return all jobs, the oldest first."""
        return self._run(lambda db: _jobs(db, "ORDER BY created_at, id"), writes=False) or []

    def job(self, job_id: str) -> JobRecord | None:
        """Return a job. None if it is unknown."""
        found = self._run(lambda db: _jobs(db, "WHERE id = ?", job_id), writes=False)
        return found[0] if found else None

    def batches(self, job_id: str) -> list[BatchRecord]:
        """Return the batches of a job, in order."""
        return self._run(lambda db: _batches(db, "WHERE job = ? ORDER BY number", job_id), writes=False) or []

    def batch(self, nonce: str) -> BatchRecord | None:
        """Return a batch. None if it is unknown."""
        found = self._run(lambda db: _batches(db, "WHERE nonce = ?", nonce), writes=False)
        return found[0] if found else None

    def lines(self, nonce: str) -> list[LineRecord]:
        """Return the lines of a batch, in order."""
        return self._run(lambda db: _lines(db, nonce), writes=False) or []

    def counts(self, job_id: str) -> dict[LineState, TextTotals]:
        """Return the sums of a job's lines, by their state."""
        query = (
            "SELECT state, SUM(texts), SUM(COALESCE(billed, 0)),"
            " SUM(CASE WHEN billed IS NULL THEN max_tokens ELSE 0 END)"
            " FROM Lines WHERE nonce IN (SELECT nonce FROM Batches WHERE job = ?) GROUP BY state"
        )
        rows = self._run(lambda db: db.execute(query, (job_id,)).fetchall(), writes=False) or []
        return {state: TextTotals(*sums) for state, *sums in rows}

    def failures(self, job_id: str) -> dict[str, int]:
        """Return the numbers of a job's texts that failed or are left, by code."""
        query = (
            "SELECT code, SUM(texts) FROM Lines WHERE state IN ('failed', 'left')"
            " AND nonce IN (SELECT nonce FROM Batches WHERE job = ?) GROUP BY code"
        )
        return dict(self._run(lambda db: db.execute(query, (job_id,)).fetchall(), writes=False) or [])

    def claimed(self, keys: Sequence[bytes]) -> dict[int, str]:
        """Return the jobs in whose open lines texts are, by the index of the text's key.

        A job that is being prepared is left out: it may be that of a dead process.
        """
        return self._run(lambda db: _claimed(db, keys), writes=False) or {}

    def account_digest(self, account: ProviderAccount) -> str:
        """Return the identifier of an account in this journal, which does not show its key."""

        def read(db: sqlite3.Connection) -> str:
            return account.digest(db.execute("SELECT value FROM Meta WHERE name = 'salt'").fetchone()[0])

        return self._run(read)

    def queue(self, account: str, model: str, now: float) -> tuple[int | None, int]:
        """Return the learned limit of queued tokens of a model, None if unknown, and the tokens queued by open jobs.

        A batch that has expired is not queued, even if no process has asked for its state since.
        """

        def read(db: sqlite3.Connection) -> tuple[int | None, int]:
            query = "SELECT tokens FROM Queues WHERE account = ? AND model = ? AND learned_at > ?"
            limit = db.execute(query, (account, model, now - QUEUE_DAYS * 86400)).fetchone()
            steps = ", ".join(f"'{step}'" for step in QUEUED_STEPS)
            query = (
                f"SELECT COALESCE(SUM(tokens), 0) FROM Batches WHERE step IN ({steps})"  # noqa: S608
                f" AND COALESCE(expires_at, stepped_at + {MAX_QUEUED_SECONDS}) > ?"
                " AND job IN (SELECT id FROM Jobs WHERE account = ? AND model = ?)"
            )
            return (None if limit is None else limit[0]), db.execute(query, (now, account, model)).fetchone()[0]

        return self._run(read)

    # Writing

    def learn_queue(self, account: str, model: str, tokens: int, now: float) -> None:
        """Store the limit of queued tokens of a model."""
        query = "INSERT OR REPLACE INTO Queues VALUES (?, ?, ?, ?)"
        self._run(lambda db: db.execute(query, (account, model, tokens, now)))

    def save_job(self, job: JobRecord) -> None:
        """Store a job, or replace it."""
        self._run(lambda db: _insert(db, "Jobs", job, replace=True))

    def add_batch(self, batch: BatchRecord, lines: Sequence[LineRecord]) -> None:
        """Store a batch with its lines, and claim their texts."""
        self._run(lambda db: _add_batch(db, batch, lines))

    def save_batch(self, batch: BatchRecord) -> None:
        """Replace a batch."""
        self._run(lambda db: _insert(db, "Batches", batch, replace=True))

    def end_lines(self, nonce: str, lines: Sequence[LineRecord]) -> None:
        """Store the states of lines that have ended, and release their claims."""
        self._run(lambda db: _end_lines(db, nonce, lines))

    def end_batch(
        self,
        batch: BatchRecord,
        ended: Sequence[LineRecord],
        successors: Iterable[tuple[BatchRecord, Sequence[LineRecord]]] = (),
    ) -> None:
        """Store the end of a batch, its lines and the batches that have what is left over, all or nothing."""

        def write(db: sqlite3.Connection) -> None:
            _end_lines(db, batch.nonce, ended)
            for successor, lines in successors:
                _add_batch(db, successor, lines)
            _insert(db, "Batches", batch, replace=True)

        self._run(write)

    def remove_job(self, job_id: str) -> None:
        """Remove a job with everything that belongs to it."""

        def remove(db: sqlite3.Connection) -> None:
            nonces = "(SELECT nonce FROM Batches WHERE job = ?)"
            for table in ("Claims", "Lines"):
                db.execute(f"DELETE FROM {table} WHERE nonce IN {nonces}", (job_id,))  # noqa: S608
            db.execute("DELETE FROM Batches WHERE job = ?", (job_id,))
            db.execute("DELETE FROM Jobs WHERE id = ?", (job_id,))

        self._run(remove)

    # The file

    def _run(self, work: Callable[[sqlite3.Connection], T], *, writes: bool = True) -> T:
        """Return what some work in a transaction returns. Reading waits for no other process, and creates nothing.

        Returns:
            None if there is no journal and `writes` is False.

        Raises:
            JobError: The journal cannot be used.
        """
        with FORK_BARRIER.entered():
            try:
                return self._attempt(work, writes)
            except JobError:
                raise
            except _FAILURES as error:
                raise self._error_for(error) from error

    @again_after_fork
    def _attempt(self, work: Callable[[sqlite3.Connection], T], writes: bool) -> T:
        if not self.exists and not writes:
            return None  # type: ignore[return-value]
        with self._opened() as connection:
            connection.execute("BEGIN IMMEDIATE" if writes else "BEGIN")
            result = work(connection)
            connection.execute("COMMIT")
            return result

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        network = folders.network_of(self.folder)
        if network is not None:
            raise CacheError(f"SQLite is unsafe on a network file system ({network})")
        if folders.identity(self.folder) is None:
            creation = import_module("embedkit_core.cache.disk.create")
            creation.create_folder(self.folder, schema.DATABASE, schema.fill)
        folders.harden(self.folder)
        reason = folders.foreign_file(self.folder, schema.DATABASE)
        if reason is not None:
            raise CacheError(reason)
        opened = [connect(self.folder / schema.DATABASE, "rw")]
        connection = opened[0]
        try:
            connection.text_factory = str
            set_busy_timeout(connection, BUSY_SECONDS)
            schema.check(connection, self.folder / schema.DATABASE)
            connection.execute(f"PRAGMA synchronous = {SYNCHRONOUS}")
            yield connection
        finally:
            close_all(opened)  # rolls back what is not committed

    def _error_for(self, error: Exception) -> JobError:
        file = self.folder / schema.DATABASE
        if is_busy(error):
            return JobError(f"The journal of batch jobs {file} is locked by another process. Continue or kill it.")
        if is_damage(error) or not isinstance(error, (OSError, sqlite3.Error, CacheError)):
            return JobError(
                f"The journal of batch jobs {file} is damaged ({type(error).__name__}). Restore it from a backup. "
                "Without it, batches at the provider are paid for and cannot be collected."
            )
        reason = str(error) if isinstance(error, (CacheError, sqlite3.Error)) else type(error).__name__
        return JobError(
            f"The journal of batch jobs in {self.folder} cannot be used ({reason}). Batch jobs need a cache folder "
            "that is writable and on a local disk."
        )


def _jobs(db: sqlite3.Connection, where: str, *parameters: object) -> list[JobRecord]:
    return [JobRecord(*_loaded(JobRecord, row)) for row in db.execute(f"SELECT * FROM Jobs {where}", parameters)]  # noqa: S608


def _batches(db: sqlite3.Connection, where: str, *parameters: object) -> list[BatchRecord]:
    return [BatchRecord(*_loaded(BatchRecord, row)) for row in db.execute(f"SELECT * FROM Batches {where}", parameters)]  # noqa: S608


def _lines(db: sqlite3.Connection, nonce: str) -> list[LineRecord]:
    query = "SELECT number, digest, keys, texts, tokens, max_tokens, state, billed, code FROM Lines WHERE nonce = ?"
    found = db.execute(f"{query} ORDER BY number", (nonce,))
    return [LineRecord(number, digest, _split(keys), *rest) for number, digest, keys, *rest in found]


def _split(keys: bytes) -> list[bytes]:
    return [keys[start : start + KEY_BYTES] for start in range(0, len(keys), KEY_BYTES)]


def _claimed(db: sqlite3.Connection, keys: Sequence[bytes]) -> dict[int, str]:
    found: dict[int, str] = {}
    if db.execute("SELECT 1 FROM Claims LIMIT 1").fetchone() is None:
        return found
    for start in range(0, len(keys), KEYS_PER_QUERY):
        prefixes: dict[bytes, list[int]] = {}
        for index in range(start, min(start + KEYS_PER_QUERY, len(keys))):
            prefixes.setdefault(keys[index][:PREFIX_BYTES], []).append(index)
        marks = ", ".join("?" * len(prefixes))
        query = (
            "SELECT prefix, job FROM Claims JOIN Batches USING (nonce) JOIN Jobs ON Jobs.id = job"  # noqa: S608
            f" WHERE prefix IN ({marks}) AND state <> 'preparing'"
        )
        for prefix, job in db.execute(query, list(prefixes)):
            found.update((index, job) for index in prefixes[prefix])
    return found


def _add_batch(db: sqlite3.Connection, batch: BatchRecord, lines: Sequence[LineRecord]) -> None:
    _insert(db, "Batches", batch)
    db.executemany(
        "INSERT INTO Lines VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            (
                batch.nonce,
                n.number,
                n.digest,
                b"".join(n.keys),
                n.texts,
                n.tokens,
                n.max_tokens,
                n.state,
                n.billed,
                n.code,
            )
            for n in lines
        ),
    )
    db.executemany(
        "INSERT OR IGNORE INTO Claims VALUES (?, ?)",
        ((key[:PREFIX_BYTES], batch.nonce) for line in lines for key in line.keys),
    )


def _end_lines(db: sqlite3.Connection, nonce: str, lines: Sequence[LineRecord]) -> None:
    db.executemany(
        "UPDATE Lines SET state = ?, billed = ?, code = ?, keys = x'' WHERE nonce = ? AND number = ?",
        ((line.state, line.billed, line.code, nonce, line.number) for line in lines),
    )
    db.executemany(
        "DELETE FROM Claims WHERE prefix = ? AND nonce = ?",
        ((key[:PREFIX_BYTES], nonce) for line in lines for key in line.keys),
    )


_IDS = {
    "id": re.compile(r"job-[0-9a-f]{12}"),
    "job": re.compile(r"job-[0-9a-f]{12}"),
    "nonce": re.compile(r"[0-9a-f]{16}"),
}
_JSON_FIELDS = frozenset({"settings", "options", "outputs"})


def _insert(db: sqlite3.Connection, table: str, record: Any, *, replace: bool = False) -> None:
    names = [field.name for field in fields(record)]
    values = [json.dumps(value) if n in _JSON_FIELDS else value for n in names for value in (getattr(record, n),)]
    statement = "INSERT OR REPLACE" if replace else "INSERT"
    marks = ", ".join("?" * len(values))
    db.execute(f"{statement} INTO {table} ({', '.join(names)}) VALUES ({marks})", values)


def _loaded(record: type[Any], row: Sequence[Any]) -> list[Any]:
    """Return the values of a row; its columns are in the order of the record's fields.

    Raises:
        ValueError: An ID is not one of this library: names of files are made of them.
    """
    names = [field.name for field in fields(record)]
    for name, value in zip(names, row, strict=True):
        if name in _IDS and not _IDS[name].fullmatch(value):
            raise ValueError(name)
    return [json.loads(value) if n in _JSON_FIELDS else value for n, value in zip(names, row, strict=True)]
