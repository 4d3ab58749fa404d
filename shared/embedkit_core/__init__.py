"""Embeddings for retrieval, with a cache, batching, retries, rate limits and budgets. Each text is paid for once."""

from typing import TYPE_CHECKING

from embedkit_core.calls.estimate import Estimate
from embedkit_core.calls.explain import Explanation
from embedkit_core.calls.import_vectors import ImportReport
from embedkit_core.calls.verify_cache import CacheVerification
from embedkit_core.common.errors import (
    AuthenticationError,
    BadReplyError,
    BadRequestError,
    BadTextError,
    BatchNotFoundError,
    BudgetError,
    CacheError,
    ConfigurationError,
    CoordinationError,
    EmbedKitError,
    InputError,
    JobError,
    MissingExtraError,
    PartialFailureError,
    ProviderError,
    QuotaError,
    RateLimitError,
    RequestTooLargeError,
    TextTooLongError,
    TimedOutError,
    UnavailableError,
)
from embedkit_core.common.fork_safety import import_module as _import_module
from embedkit_core.common.results import EmbeddingResult
from embedkit_core.common.types import InputType, ModelInfo, RateLimiter
from embedkit_core.common.usage import Usage
from embedkit_core.common.vectors import DType
from embedkit_core.costs.tracker import UsageTracker, track_usage
from embedkit_core.embedder import Embedder
from embedkit_core.observability.progress import Progress
from embedkit_core.providers.catalogue import models

if TYPE_CHECKING:
    from embedkit_core.batches.job import BatchJob
    from embedkit_core.observability.snapshot import Snapshot, snapshot
else:
    # Imported on first use: a program that only embeds starts faster without them.
    _ON_FIRST_USE = {
        "BatchJob": "batches.job",
        "Snapshot": "observability.snapshot",
        "snapshot": "observability.snapshot",
    }

    def __getattr__(name: str) -> object:
        if name in _ON_FIRST_USE:
            return getattr(_import_module(f"{__name__}.{_ON_FIRST_USE[name]}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        """Return the names for completion, also before their import."""
        return sorted({*globals(), *__all__})


__version__ = "0.1.0"

__all__ = [
    "AuthenticationError",
    "BadReplyError",
    "BadRequestError",
    "BadTextError",
    "BatchJob",
    "BatchNotFoundError",
    "BudgetError",
    "CacheError",
    "CacheVerification",
    "ConfigurationError",
    "CoordinationError",
    "DType",
    "EmbedKitError",
    "Embedder",
    "EmbeddingResult",
    "Estimate",
    "Explanation",
    "ImportReport",
    "InputError",
    "InputType",
    "JobError",
    "MissingExtraError",
    "ModelInfo",
    "PartialFailureError",
    "Progress",
    "ProviderError",
    "QuotaError",
    "RateLimitError",
    "RateLimiter",
    "RequestTooLargeError",
    "Snapshot",
    "TextTooLongError",
    "TimedOutError",
    "UnavailableError",
    "Usage",
    "UsageTracker",
    "__version__",
    "models",
    "snapshot",
    "track_usage",
]
