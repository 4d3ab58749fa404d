"""Usage in LangChain's terms: `with` blocks, callback handlers, and runs in LangSmith."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from langchain_core.callbacks import BaseCallbackHandler, adispatch_custom_event, dispatch_custom_event
from langchain_core.messages.ai import UsageMetadata
from langchain_core.runnables.config import RunnableConfig, var_child_runnable_config

from embedkit_core import EmbedKitError, InputType, Usage, UsageTracker, track_usage
from embedkit_core.adapters.base import UsageAccumulator, usage_by_model

if TYPE_CHECKING:
    from langsmith import RunTree, trace

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
    """What is reported about a call.

    Attributes:
        name: The name of the class that embeds.
        model: "provider:model".
        input_type: "document" or "query".
        usage: None until the call ends.
    """

    name: str
    model: str
    input_type: InputType
    usage: Usage | None = None

    def trace(self) -> trace | nullcontext[None]:
        """Return the LangSmith run of the call, a child of the current one; nothing is traced without a current one.

        The run has counts, tokens and the cost. It has no texts and no vectors.
        """
        if not _is_traced():
            return nullcontext()
        from langsmith import trace

        provider, _, model = self.model.partition(":")
        metadata = {"ls_provider": provider, "ls_model_name": model}
        return trace(self.name, "embedding", inputs={"input_type": self.input_type}, metadata=metadata)

    @contextmanager
    def ending(self, run: RunTree | None) -> Iterator[Report]:
        """Set the usage of a failed call, and add the usage to its LangSmith run."""
        try:
            yield self
        except EmbedKitError as error:
            self.usage = error.usage
            raise
        finally:
            if run is not None and self.usage is not None:
                run.add_metadata({"usage_metadata": _langsmith_usage(self.usage)})
                run.add_outputs(self.usage.to_dict())

    def event(self) -> dict[str, Any] | None:
        """Return the data of the custom event for the current run's callback handlers, None if there are none."""
        callbacks = (current_config() or {}).get("callbacks")
        if self.usage is None or getattr(callbacks, "parent_run_id", None) is None:
            return None
        return {"model": self.model, "input_type": self.input_type, **self.usage.to_dict()}


def current_config() -> RunnableConfig | None:
    """Return the configuration of the current LangChain run, or None outside of a run."""
    return var_child_runnable_config.get()


def is_reported() -> bool:
    """Return True inside of a LangChain run or of a LangSmith trace."""
    return current_config() is not None or _is_traced()


def _is_traced() -> bool:
    helpers = sys.modules.get("langsmith.run_helpers")  # whoever starts a trace has imported it; the import is slow
    return helpers is not None and helpers.get_current_run_tree() is not None


@contextmanager
def reported(report: Report) -> Iterator[Report]:
    """Report a call, also a failed one, to LangSmith and to the callback handlers of the current run."""
    try:
        with report.trace() as run, report.ending(run):
            yield report
    finally:
        if (event := report.event()) is not None:
            dispatch_custom_event(EVENT, event)


@asynccontextmanager
async def areported(report: Report) -> AsyncIterator[Report]:
    """Report a call like `reported`, without blocking the event loop."""
    try:
        async with report.trace() as run:
            with report.ending(run):
                yield report
    finally:
        if (event := report.event()) is not None:
            await adispatch_custom_event(EVENT, event)


def _langsmith_usage(usage: Usage) -> dict[str, Any]:
    """Return the billed tokens and their cost as LangSmith expects them; without a cost, it applies its own prices."""
    cost = {} if usage.cost_usd is None else dict.fromkeys(("input_cost", "total_cost"), float(usage.cost_usd))
    return {"input_tokens": usage.tokens, "output_tokens": 0, "total_tokens": usage.tokens, **cost}
