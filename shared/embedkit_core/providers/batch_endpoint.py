"""Batch endpoints: what a provider with asynchronous batches implements. `batches/` decides when to call which method.

A batch is a file of lines; each line is one request with several texts. The provider works it off within a window of
hours, at a lower price, and writes a file of results, in any order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

from embedkit_core.common.errors import ConfigurationError, ProviderError
from embedkit_core.common.fork_safety import import_module
from embedkit_core.common.types import Reply
from embedkit_core.providers.base import Provider


class BatchLimits(NamedTuple):
    """Limits of one batch.

    Attributes:
        window: Seconds in which the provider completes a batch, or ends it.
        texts: Maximum texts of a batch.
        lines: Maximum lines of a batch.
        file_bytes: Maximum size of its file.
        line_texts: Maximum texts of a line.
        tokens: Maximum tokens of a batch. None if the provider states no limit.
    """

    window: float
    texts: int
    lines: int
    file_bytes: int
    line_texts: int
    tokens: int | None = None


@dataclass(frozen=True, slots=True)
class BatchOrder:
    """A batch that is to be created from an uploaded file.

    Attributes:
        file_id: The provider's ID of the uploaded file.
        nonce: Identifies the batch in the provider's metadata, 16 hexadecimal digits.
        body: The request without its texts, as `Provider.request_body` returned it. Its `prompt` is not sent.
        lines: The number of lines.
    """

    file_id: str
    nonce: str
    body: Mapping[str, Any]
    lines: int


@dataclass(frozen=True, slots=True)
class RemoteBatch:
    """A batch, as its provider describes it.

    Attributes:
        id: The provider's ID.
        status: The provider's word for its state.
        has_ended: True if it will not change any more.
        outputs: IDs of the files with results and errors; complete only if it has ended.
        lines: The number of lines. None if unknown.
        done: Completed lines.
        failed: Failed lines.
        expires_at: The time at which the provider gives up, in seconds since 1970. None if unknown.
        error: Why it was refused as a whole, without texts and credentials. "" if it was not.
        queue_is_full: True if it was refused because too many tokens are queued. Nothing was billed then.
        queue_tokens: The limit of queued tokens, if the refusal states it.
    """

    id: str
    status: str
    has_ended: bool
    outputs: Sequence[str] = ()
    lines: int | None = None
    done: int = 0
    failed: int = 0
    expires_at: float | None = None
    error: str = ""
    queue_is_full: bool = False
    queue_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class LineResult:
    """The result of one line, not decoded.

    Attributes:
        custom_id: The ID of the line. None if it has none.
        status: HTTP status; 0 if the line was not sent to the model.
        reply: What `BatchEndpoint.decode` reads, of a line with status 200.
        model: The model that the reply names. None if it names none.
        code: The error's code: letters, digits and underscores, "" without one.
        is_transient: True if a failed line can be sent again as it is.
    """

    custom_id: str | None
    status: int
    reply: Any = None
    model: str | None = None
    code: str = ""
    is_transient: bool = False


class BatchEndpoint(ABC):
    """The batch endpoint of one provider with its settings.

    Use it as an async context manager around all methods that are coroutines, in one event loop. Files are read and
    written with blocking calls, so that loop must have no other work. Clients do not retry: of the methods, only
    `create` must not be repeated blindly, because the provider may have created a batch when its response was lost.

    Coroutines raise the errors of `Client.embed`. `create` raises an error with `unsent` set, or with a status below
    500 other than 408, only if no batch was created.

    Args:
        provider: The provider.

    Attributes:
        name: Its name, such as "batches".
        is_opt_in: True if it must be requested by its name, because the provider publishes no lower price for it.
        ended_statuses: The statuses with which the provider may refuse to cancel a batch that has ended.
        limits: Limits of one batch.
    """

    name: ClassVar[str] = "batches"
    is_opt_in: ClassVar[bool] = False
    ended_statuses: ClassVar[tuple[int, ...]] = (400, 409, 422)
    limits: BatchLimits

    @abstractmethod
    def __init__(self, provider: Provider) -> None: ...

    @abstractmethod
    async def __aenter__(self) -> Self: ...

    @abstractmethod
    async def __aexit__(self, *exc: object) -> None: ...

    @abstractmethod
    def line(self, custom_id: str, body: Mapping[str, Any], texts: Sequence[str]) -> bytes:
        """Return a line of the file, without its line break. No I/O.

        Args:
            custom_id: Identifies the line: up to 48 letters, digits and hyphens.
            body: The request without its texts, as `Provider.request_body` returned it. Its `prompt` is not sent.
            texts: The texts, each with its prompt, at most `limits.line_texts`.
        """

    @abstractmethod
    def texts_of(self, line: bytes) -> list[str]:
        """Return the texts of a line that `line` returned. No I/O."""

    @abstractmethod
    async def upload(self, file: Path, name: str) -> str:
        """Upload a file of lines and return its ID.

        Args:
            file: The file.
            name: The name to give to it, which has the nonce.
        """

    @abstractmethod
    async def create(self, order: BatchOrder) -> RemoteBatch:
        """Create a batch.

        Raises:
            FileNotReadyError: The provider does not know the uploaded file yet.
        """

    @abstractmethod
    async def find(self, nonce: str) -> list[RemoteBatch]:
        """Return the batches with a nonce, from the provider's list; more than one if `create` was repeated."""

    @abstractmethod
    async def retrieve(self, batch_id: str) -> RemoteBatch:
        """Return the current state of a batch.

        Raises:
            BatchNotFoundError: The provider does not know it.
        """

    @abstractmethod
    async def download(self, output: str, file: Path) -> None:
        """Write the lines of a result file to `file`, which exists and is overwritten, in bounded memory.

        Raises:
            BatchNotFoundError: The provider has deleted the results.
        """

    async def cancel(self, batch_id: str) -> None:
        """Ask the provider to cancel a batch; one that has ended stays as it is."""
        try:
            await self._cancel(batch_id)
        except ProviderError as error:
            if error.status not in self.ended_statuses or not (await self.retrieve(batch_id)).has_ended:
                raise

    @abstractmethod
    async def _cancel(self, batch_id: str) -> None:
        """Send the request that cancels a batch. Raises what the provider answers if the batch has ended."""

    @abstractmethod
    async def delete_upload(self, file_id: str) -> None:
        """Delete an uploaded file; one that is gone already is no error."""

    @abstractmethod
    def parse(self, line: bytes) -> LineResult:
        """Return the result that a line of a result file has. No I/O.

        Raises:
            ValueError: It is not a line of a result file.
        """

    @abstractmethod
    def decode(self, result: LineResult, n_texts: int) -> Reply:
        """Return the vectors of a result with status 200, in the order of the line's texts, and its billed tokens.

        Raises:
            BadReplyError: It does not have one vector for each of `n_texts` texts.
        """


def open_endpoint(provider: Provider, name: str | None) -> BatchEndpoint:
    """Return the batch endpoint of a provider.

    Args:
        provider: The provider.
        name: The name of an endpoint that must be requested by name. None for the usual one.

    Raises:
        ConfigurationError: The provider has none, or not this one.
    """
    if provider.batch_endpoint is None:
        raise ConfigurationError(
            f"{provider.name}:{provider.model} has no batch endpoint here. Use embed() instead of submit(); "
            "docs/providers.md lists the providers with one."
        )
    module, _, attribute = provider.batch_endpoint.partition(":")
    endpoint_class: type[BatchEndpoint] = getattr(import_module(module), attribute)
    if name is None and endpoint_class.is_opt_in:
        raise ConfigurationError(
            f"{provider.name} publishes no lower price for its batch endpoint. Use embed(), or pass "
            f"endpoint={endpoint_class.name!r} to use it all the same."
        )
    if name not in (None, endpoint_class.name):
        raise ConfigurationError(
            f"endpoint: {provider.name} has no batch endpoint of this name (got {name!r}). Omit it, or use "
            f"{endpoint_class.name!r}."
        )
    return endpoint_class(provider)


def batch_window(provider: Provider) -> float | None:
    """Return the seconds in which a provider's batch endpoint completes a batch. None if `submit` does not use one."""
    if provider.batch_endpoint is None:
        return None
    try:
        return open_endpoint(provider, None).limits.window
    except ConfigurationError:
        return None
