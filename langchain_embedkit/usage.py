"""Usage where LangChain looks for it: in `with` blocks, in callbacks, in the traces of the run that embeds."""

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
    """What a block embeds and pays for, as `embedkit_core.track_usage` counts it, in LangChain's shape too."""

    @property
    def usage_metadata(self) -> dict[str, UsageMetadata]:
        """Tokens as billed, by model, as LangChain's own handler has them for chat models."""
        return _metadata(usage_by_model(self.rows))


def get_embedding_usage(
    *, budget_usd: float | str | Decimal | None = None, budget_tokens: int | None = None
) -> EmbeddingUsage:
    """Count what a block embeds and pays for, and bound it: `with get_embedding_usage() as usage:`.

    Raises:
        ConfigurationError: a budget is no number that can be one.
    """
    return EmbeddingUsage(track_usage(budget_usd=budget_usd, budget_tokens=budget_tokens).budget)


class EmbeddingUsageHandler(BaseCallbackHandler):
    """A callback handler for `config={"callbacks": [handler]}`: counts what is embedded in the runs that have it.

    `usage_metadata` is LangChain's shape, tokens as billed by model; `usage` is all of it, hits and dollars too.
    """

    def __init__(self) -> None:
        self._heard = UsageAccumulator()

    @property
    def usage(self) -> Usage:
        """All of it so far."""
        return self._heard.usage

    @property
    def usage_metadata(self) -> dict[str, UsageMetadata]:
        """Tokens as billed, by model."""
        return _metadata(usage_by_model(self._heard.rows))

    def on_custom_event(self, name: str, data: Any, **kwargs: Any) -> None:  # noqa: ARG002 - the host's signature
        """Take in the usage of a call."""
        if name == EVENT:
            self._heard.add(data)

    def __repr__(self) -> str:
        return str(self.usage_metadata)


def _metadata(usages: Mapping[str, Usage]) -> dict[str, UsageMetadata]:
    return {
        model: UsageMetadata(input_tokens=usage.tokens, output_tokens=0, total_tokens=usage.tokens)
        for model, usage in usages.items()
    }


@dataclass(slots=True)
class Report:
    """What a call took, for the run that it is part of."""

    usage: Usage | None = None


def current_run() -> RunnableConfig | None:
    """Give the configuration of the run that the caller is part of, if any."""
    return var_child_runnable_config.get()


@contextmanager
def reported(model: str, input_type: InputType, run: RunnableConfig) -> Iterator[Report]:
    """Tell a run what a call took, on failure too, as a custom event that tracers keep with it."""
    report = Report()
    try:
        with _failures_too(report):
            yield report
    finally:
        manager = get_callback_manager_for_config(run)
        if report.usage is not None and manager.parent_run_id is not None and manager.handlers:
            manager.on_custom_event(EVENT, _told(model, input_type, report.usage), run_id=manager.parent_run_id)


@asynccontextmanager
async def areported(model: str, input_type: InputType, run: RunnableConfig) -> AsyncIterator[Report]:
    """Tell a run what a call took, as `reported` does."""
    report = Report()
    try:
        with _failures_too(report):
            yield report
    finally:
        manager = get_async_callback_manager_for_config(run)
        if report.usage is not None and manager.parent_run_id is not None and manager.handlers:
            await manager.on_custom_event(EVENT, _told(model, input_type, report.usage), run_id=manager.parent_run_id)


@contextmanager
def _failures_too(report: Report) -> Iterator[None]:
    try:
        yield
    except EmbedKitError as error:
        report.usage = error.usage
        raise


def _told(model: str, input_type: InputType, usage: Usage) -> dict[str, Any]:
    return {"model": model, "input_type": input_type, **usage.to_dict()}
