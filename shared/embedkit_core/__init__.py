"""Embeddings for retrieval: every text paid for once, no vector ever wrong."""

from embedkit_core.catalogue import models
from embedkit_core.embedder import Embedder
from embedkit_core.errors import (
    AuthenticationError,
    BadReplyError,
    BadRequestError,
    BadTextError,
    BudgetError,
    CacheError,
    ConfigurationError,
    EmbedKitError,
    InputError,
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
from embedkit_core.forecast import Estimate, Explanation
from embedkit_core.form import DType
from embedkit_core.importing import Imported
from embedkit_core.progress import Progress
from embedkit_core.sight import Snapshot, snapshot
from embedkit_core.tracking import UsageTracker, track_usage
from embedkit_core.types import EmbeddingResult, InputType, ModelInfo, RateLimiter, Usage
from embedkit_core.verifying import Verified

__version__ = "0.1.0"

__all__ = [
    "AuthenticationError",
    "BadReplyError",
    "BadRequestError",
    "BadTextError",
    "BudgetError",
    "CacheError",
    "ConfigurationError",
    "DType",
    "EmbedKitError",
    "Embedder",
    "EmbeddingResult",
    "Estimate",
    "Explanation",
    "Imported",
    "InputError",
    "InputType",
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
    "Verified",
    "__version__",
    "models",
    "snapshot",
    "track_usage",
]
