"""Usage in LangChain's terms: `with` blocks, callback handlers, and custom events in the traces of a run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages.ai import UsageMetadata
from langchain_core.runnables.config import (
    RunnableConfig,
    get_async_callback_manager_for_config,
    get_callback_manager_for_config,
    var_child_runnable_config,
)

from embedkit_core import EmbedKitError, InputType, Usage, UsageTracker, track_usage
from embedkit_core.adapters.base import UsageAccumulator, usage_by_model

EVENT = "embedkit_usage"


class EmbeddingUsage(UsageTracker):
    """Usage of a `with` block, as in `embedkit_core.track_usage`, also in LangChain's format."""

    @property
    def usage_metadata(self) -> dict[str, UsageMetadata]:
        """Billed tokens by model, in the format of LangChain's handler for chat models."""
        return _metadata(usage_by_model(self.rows))


def get_embedding_usage(
    *, budget_usd: float | str | Decimal | None = None, budget_tokens: int | None = None
) -> EmbeddingUsage:
    """Track the usage of a `with` block and optionally limit it by a budget.

    Raises:
        ConfigurationError: A budget is not a valid number.

    Example:
        >>> with get_embedding_usage() as usage:
        ...     embeddings.embed_query("a")
    """
    return EmbeddingUsage(track_usage(budget_usd=budget_usd, budget_tokens=budget_tokens).budget)


class EmbeddingUsageHandler(BaseCallbackHandler):
    """Callback handler that tracks the usage of runs: `config={"callbacks": [handler]}`."""

    def __init__(self) -> None:
        self._usage = UsageAccumulator()

    @property
    def usage(self) -> Usage:
        """Usage so far, with cache hits and cost."""
        return self._usage.usage

    @property
    def usage_metadata(self) -> dict[str, UsageMetadata]:
        """Billed tokens by model, in LangChain's format."""
        return _metadata(usage_by_model(self._usage.rows))

    def on_custom_event(self, name: str, data: Any, **kwargs: Any) -> None:  # noqa: ARG002 - LangChain's signature
        """Add the usage of a call."""
        if name == EVENT:
            self._usage.add(data)

    def __repr__(self) -> str:
        return str(self.usage_metadata)


def _metadata(usages: Mapping[str, Usage]) -> dict[str, UsageMetadata]:
    return {
        model: UsageMetadata(input_tokens=usage.tokens, output_tokens=0, total_tokens=usage.tokens)
        for model, usage in usages.items()
    }


@dataclass(slots=True)
class Report:
    """Usage of a call, None until the call ends."""

    usage: Usage | None = None


def current_run() -> RunnableConfig | None:
    """Return the configuration of the current run, or None outside of a run."""
    return var_child_runnable_config.get()


@contextmanager
def reported(model: str, input_type: InputType, run: RunnableConfig) -> Iterator[Report]:
    """Send the usage of a call to the run as a custom event, also if the call fails."""
    report = Report()
    try:
        with _usage_of_failure(report):
            yield report
    finally:
        manager = get_callback_manager_for_config(run)
        if report.usage is not None and manager.parent_run_id is not None and manager.handlers:
            manager.on_custom_event(EVENT, _event_data(model, input_type, report.usage), run_id=manager.parent_run_id)


@asynccontextmanager
async def areported(model: str, input_type: InputType, run: RunnableConfig) -> AsyncIterator[Report]:
    """Send the usage of a call to the run, as `reported` does."""
    report = Report()
    try:
        with _usage_of_failure(report):
            yield report
    finally:
        manager = get_async_callback_manager_for_config(run)
        if report.usage is not None and manager.parent_run_id is not None and manager.handlers:
            await manager.on_custom_event(
                EVENT, _event_data(model, input_type, report.usage), run_id=manager.parent_run_id
            )


@contextmanager
def _usage_of_failure(report: Report) -> Iterator[None]:
    try:
        yield
    except EmbedKitError as error:
        report.usage = error.usage
        raise


def _event_data(model: str, input_type: InputType, usage: Usage) -> dict[str, Any]:
    return {"model": model, "input_type": input_type, **usage.to_dict()}
