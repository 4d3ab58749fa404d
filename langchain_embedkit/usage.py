"""Usage in LangChain's terms: `with` blocks, callback handlers, and runs in LangSmith."""

from __future__ import annotations

import logging
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from langchain_core.callbacks import (
    BaseCallbackHandler,
    BaseCallbackManager,
    adispatch_custom_event,
    dispatch_custom_event,
)
from langchain_core.messages.ai import UsageMetadata
from langchain_core.runnables.config import var_child_runnable_config

from embedkit_core import EmbedKitError, InputType, Usage, UsageTracker, track_usage
from embedkit_core.adapters.base import UsageAccumulator, run_in_thread, usage_by_model

if TYPE_CHECKING:
    from langsmith import RunTree

EVENT = "embedkit_usage"
logger = logging.getLogger("langchain_embedkit")


class EmbeddingUsage(UsageTracker):
    """Usage of a `with` block, as in `embedkit_core.track_usage`, also in LangChain's format."""

    @property
    def usage_metadata(self) -> dict[str, UsageMetadata]:
        """Billed tokens by model, in the format of LangChain's handler for chat models."""
        return _metadata(usage_by_model(self.rows))


def get_embedding_usage(
    *,
    budget_usd: float | str | Decimal | None = None,
    budget_tokens: int | None = None,
    budget_name: str | None = None,
) -> EmbeddingUsage:
    """Track the usage of a `with` block and optionally limit it by a budget, as `embedkit_core.track_usage` does.

    Raises:
        ConfigurationError: A budget is not a valid number, or a name is not valid or has no budget.

    Example:
        >>> with get_embedding_usage() as usage:
        ...     embeddings.embed_query("a")
    """
    tracker = track_usage(budget_usd=budget_usd, budget_tokens=budget_tokens, budget_name=budget_name)
    return EmbeddingUsage(tracker.budget)


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
    """What is reported about a call.

    Attributes:
        name: The name of the class that embeds.
        model: "provider:model".
        input_type: "document" or "query".
        usage: None until the call ends.
        run: The LangSmith run of the call, a child of the current run. None if nothing is traced.
    """

    name: str
    model: str
    input_type: InputType
    usage: Usage | None = None
    run: RunTree | None = None

    @contextmanager
    def observed(self) -> Iterator[Report]:
        """Begin the LangSmith run; add the usage and the error of a failed call."""
        try:
            self.run = self._begin_run()
        except Exception as error:
            logger.warning("LangSmith run of %s was not created: %s", self.model, type(error).__name__)
        try:
            yield self
        except BaseException as error:
            if isinstance(error, EmbedKitError):
                self.usage = error.usage
            if self.run is not None:
                self.run.error = f"{type(error).__name__}: {error}"
            raise

    def _begin_run(self) -> RunTree | None:
        parent = _current_trace()
        if parent is None:
            return None
        from langsmith.run_helpers import get_tracing_context
        from langsmith.utils import tracing_is_enabled

        context = get_tracing_context()
        if tracing_is_enabled(context) is not True:
            return None
        provider, _, model = self.model.partition(":")
        return parent.create_child(
            self.name,
            "embedding",
            inputs={"input_type": self.input_type},
            extra={"metadata": {**(context["metadata"] or {}), "ls_provider": provider, "ls_model_name": model}},
            tags=context["tags"],
        )

    def send_run(self) -> None:
        """Send the run to LangSmith, with counts, tokens and the cost, without texts and vectors.

        It never raises an error: the call may have been billed.
        """
        if self.run is None:
            return
        try:
            if self.usage is not None:
                self.run.add_metadata({"usage_metadata": _langsmith_usage(self.usage)})
                self.run.add_outputs(self.usage.to_dict())
            self.run.end()
            self.run.post()
        except Exception as error:
            logger.warning("LangSmith run of %s was not sent: %s", self.model, type(error).__name__)

    def event(self) -> dict[str, Any] | None:
        """Return the data of the custom event for the current run's callback handlers, None if there are none."""
        if self.usage is None or not _has_handlers():
            return None
        return {"model": self.model, "input_type": self.input_type, **self.usage.to_dict()}


def is_reported() -> bool:
    """Return True inside of a LangChain run with callback handlers, or of a LangSmith trace."""
    return _has_handlers() or _current_trace() is not None


def _has_handlers() -> bool:
    callbacks = (var_child_runnable_config.get() or {}).get("callbacks")
    if not isinstance(callbacks, BaseCallbackManager):
        return False
    return bool(callbacks.handlers) and callbacks.parent_run_id is not None


def _current_trace() -> RunTree | None:
    helpers = sys.modules.get("langsmith.run_helpers")  # imported by what starts a trace; the import is slow
    current = getattr(helpers, "get_current_run_tree", None)  # None while another thread imports the module
    return None if current is None else current()


@contextmanager
def reported(report: Report) -> Iterator[Report]:
    """Report a call, also a failed one, to LangSmith and to the callback handlers of the current run."""
    try:
        with report.observed():
            yield report
    finally:
        report.send_run()
        if (event := report.event()) is not None:
            dispatch_custom_event(EVENT, event)


@asynccontextmanager
async def areported(report: Report) -> AsyncIterator[Report]:
    """Report a call like `reported`, without blocking the event loop."""
    try:
        with report.observed():
            yield report
    finally:
        if report.run is not None:
            await run_in_thread(report.send_run)  # a client without batches sends it here
        if (event := report.event()) is not None:
            await adispatch_custom_event(EVENT, event)


def _langsmith_usage(usage: Usage) -> dict[str, Any]:
    """Return the billed tokens and their cost as LangSmith expects them; without a cost, it applies its own prices."""
    cost = {} if usage.cost_usd is None else dict.fromkeys(("input_cost", "total_cost"), float(usage.cost_usd))
    return {"input_tokens": usage.tokens, "output_tokens": 0, "total_tokens": usage.tokens, **cost}
