"""What a journal holds: jobs, their batches and the lines of these. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from embedkit_core.common.types import InputType

# PREPARED    its file of lines is on disk.
# UPLOADING   an upload may have begun. It may be repeated: it costs nothing.
# UPLOADED    the provider has the file.
# CREATING    a batch may have been created. It is looked for before another one is created.
# CREATED     the batch is with the provider.
# TERMINAL    it has ended, and its results can be downloaded.
# COLLECTED   its results are in the cache, and what is left over is in another batch.
Step: TypeAlias = Literal["PREPARED", "UPLOADING", "UPLOADED", "CREATING", "CREATED", "TERMINAL", "COLLECTED"]
JobState: TypeAlias = Literal["preparing", "open", "collected", "cancelled"]
# open: without a result. done: in the cache. failed: the provider refused its text. left: not embedded for another
# reason. moved: now in other lines.
LineState: TypeAlias = Literal["open", "done", "failed", "left", "moved"]


@dataclass(frozen=True, slots=True)
class JobRecord:
    """One job.

    Attributes:
        id: Its ID.
        created_at: Its submission, in seconds since 1970.
        model: "provider:model".
        input_type: The input type of its texts.
        fingerprint: That of the embedder.
        settings: The arguments for an embedder that can work on the job, without secrets.
        account: The digest of the provider's account.
        endpoint: The name of the batch endpoint.
        options: The options of `submit`.
        price: The price of the batch endpoint, USD per million tokens as a string. None if unknown.
        state: Its state.
        texts: The texts that were submitted.
        unique_texts: The distinct ones.
        cache_hits: Those of them that the cache held.
        elsewhere: Those of them that are in other open jobs.
        left_out: Those of them that may be too long for the model.
    """

    id: str
    created_at: float
    model: str
    input_type: InputType
    fingerprint: str
    settings: Mapping[str, Any]
    account: str
    endpoint: str
    options: Mapping[str, Any]
    price: str | None
    state: JobState = "preparing"
    texts: int = 0
    unique_texts: int = 0
    cache_hits: int = 0
    elsewhere: int = 0
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """One batch of a job.

    Attributes:
        nonce: Its ID here and in the provider's metadata.
        job: The job.
        number: Its position in the job.
        step: How far it is.
        generation: 0 for a batch of `submit`, then one more than the batch whose leftovers it has.
        lines: Its lines.
        texts: Its texts.
        tokens: Their estimated tokens.
        max_tokens: An upper bound of its bill in tokens.
        file_id: The provider's ID of the uploaded file.
        remote_id: The provider's ID of the batch.
        status: The provider's word for its state.
        outputs: The provider's IDs of its result files.
        done: Lines that the provider has completed.
        failed: Lines that failed there.
        expires_at: When the provider gives up, in seconds since 1970.
        stepped_at: When its step was last written.
        not_before: When the next attempt may be made.
        tries: How often the current step was tried.
        creations: How often the provider was asked to create it.
        error: Why the provider refused it, "" if it did not.
    """

    nonce: str
    job: str
    number: int
    step: Step = "PREPARED"
    generation: int = 0
    lines: int = 0
    texts: int = 0
    tokens: int = 0
    max_tokens: int = 0
    file_id: str | None = None
    remote_id: str | None = None
    status: str = ""
    outputs: Sequence[str] = ()
    done: int = 0
    failed: int = 0
    expires_at: float | None = None
    stepped_at: float = 0.0
    not_before: float = 0.0
    tries: int = 0
    creations: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class LineRecord:
    """One line of a batch.

    Attributes:
        number: Its position in the batch.
        digest: Of its keys, in order.
        keys: The cache key of each text. Empty if it was read after its end.
        texts: The number of texts.
        tokens: The estimated tokens.
        max_tokens: An upper bound of its bill in tokens.
        state: Its state.
        billed: The billed tokens. None if they are unknown, or it is not done.
        code: The provider's code of a failure, "" for none.
    """

    number: int
    digest: str
    keys: Sequence[bytes] = field(repr=False)
    texts: int
    tokens: int = 0
    max_tokens: int = 0
    state: LineState = "open"
    billed: int | None = None
    code: str = ""
