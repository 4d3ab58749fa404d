"""OpenTelemetry: a span for each call, and metrics, named by the conventions for generative AI. Needs the extra `otel`.

Names follow semantic-conventions-genai 0.1.0 (client-embeddings.md). Only the API is used: the program's SDK exports
spans and metrics. No text, vector, key or error message is recorded, unless content capture is enabled.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from embedkit_core.common.errors import ConfigurationError, MissingExtraError
from embedkit_core.common.fork_safety import ForkLock
from embedkit_core.common.usage import Usage
from embedkit_core.observability.hooks import CallInfo, CallOutcome, CallSpan, add_observer, remove_observer

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter, MeterProvider
    from opentelemetry.trace import Span, Tracer, TracerProvider

# The core conventions. Those for generative AI are kept apart since, and have no published schema yet.
SCHEMA_URL = "https://opentelemetry.io/schemas/1.44.0"
CAPTURE_VARIABLE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
CAPTURE_VALUES = ("true", "1", "span_only", "span_and_event")
DURATION_BUCKETS = [0.01 * 2**n for n in range(14)]
TOKEN_BUCKETS = [4**n for n in range(14)]
DEFAULT_PORTS = {"http": 80, "https": 443}
# Usage field: span attribute. No attribute may be a prefix (with a dot) of another one.
OUTCOME_ATTRIBUTES: Mapping[str, str] = {
    "cache_hits": "embedkit.cache.hits",
    "duplicates": "embedkit.duplicates",
    "coalesced": "embedkit.coalesced",
    "sent": "embedkit.sent",
    "failed": "embedkit.failed",
    "empty": "embedkit.empty",
}

_lock = ForkLock()
_instrumented: _Instruments | None = None


def instrument(
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
    capture_content: bool | None = None,
) -> None:
    """Record a span and metrics for each call from now on. A second call replaces the configuration.

    Args:
        tracer_provider: By default the global one.
        meter_provider: By default the global one.
        capture_content: Whether spans contain the texts of calls. Defaults to the environment variable
            OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT.

    Raises:
        MissingExtraError: The package opentelemetry-api is not installed.
        ConfigurationError: A provider is not one of OpenTelemetry.
    """
    global _instrumented
    try:  # other packages install parts of the namespace package opentelemetry
        from opentelemetry.metrics import get_meter
        from opentelemetry.trace import get_tracer
    except ImportError:
        raise MissingExtraError("OpenTelemetry", "otel") from None
    for name, provider, method in (
        ("tracer_provider", tracer_provider, "get_tracer"),
        ("meter_provider", meter_provider, "get_meter"),
    ):
        if provider is not None and not callable(getattr(provider, method, None)):
            raise ConfigurationError(
                f"{name}: must have a method {method}() (got {type(provider).__name__}). Omit it for the global one."
            )
    version = _version()
    if capture_content is None:
        capture_content = os.environ.get(CAPTURE_VARIABLE, "").strip().lower() in CAPTURE_VALUES
    instruments = _Instruments(
        get_tracer("embedkit_core", version, tracer_provider, SCHEMA_URL),
        get_meter("embedkit_core", version, meter_provider, SCHEMA_URL),
        capture_content=capture_content,
    )
    with _lock.lock:
        uninstrument()
        _instrumented = instruments
        add_observer(instruments)


def _version() -> str:
    """Return the version of the installed distribution, or "" if only the source tree is available."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("rag-embedkit")
    except PackageNotFoundError:
        return ""


def uninstrument() -> None:
    """Stop recording. The calls in flight still end their spans."""
    global _instrumented
    with _lock.lock:
        if _instrumented is not None:
            remove_observer(_instrumented)
            _instrumented = None


class _Instruments:
    """The tracer and the metric instruments, an observer of calls."""

    def __init__(self, tracer: Tracer, meter: Meter, *, capture_content: bool) -> None:
        self._capture_content = capture_content
        self._tracer = tracer
        self.duration = meter.create_histogram(
            "gen_ai.client.embeddings.duration",
            "s",
            "Duration of an embedding call.",
            explicit_bucket_boundaries_advisory=DURATION_BUCKETS,
        )
        self.tokens = meter.create_histogram(
            "gen_ai.client.embeddings.operation.input_tokens",
            "{token}",
            "Billed input tokens of an embedding call.",
            explicit_bucket_boundaries_advisory=TOKEN_BUCKETS,
        )
        self.texts = meter.create_counter("embedkit.texts", "{text}", "Texts by outcome.")
        self.requests = meter.create_counter("embedkit.requests", "{request}", "Requests sent, including retries.")
        self.retries = meter.create_counter("embedkit.retries", "{request}", "Retried requests.")
        self.cost = meter.create_counter("embedkit.cost", "{USD}", "Cost of billed tokens with a known price.")
        self.saved = meter.create_counter("embedkit.saved", "{USD}", "Estimated cost avoided by cache hits.")

    def begin(self, info: CallInfo) -> CallSpan:
        """Start a span as a child of the caller's current span."""
        from opentelemetry.trace import SpanKind

        metric_attributes: dict[str, Any] = {
            "gen_ai.operation.name": "embeddings",
            "gen_ai.provider.name": info.provider,
            "gen_ai.request.model": info.model,
            **_server_attributes(info.address),
        }
        span_attributes: dict[str, Any] = {"embedkit.input_type": info.input_type, "embedkit.dtype": info.dtype}
        if info.dimensions is not None:
            span_attributes["gen_ai.embeddings.dimension.count"] = info.dimensions
        if info.encodings:
            span_attributes["gen_ai.request.encoding_formats"] = info.encodings
        if self._capture_content and info.texts is not None:
            span_attributes["embedkit.input"] = list(_exportable(info.texts))
        span = self._tracer.start_span(
            f"embeddings {info.model}", kind=SpanKind.CLIENT, attributes=metric_attributes | span_attributes
        )
        return _CallSpan(self, span, metric_attributes)


class _CallSpan:
    """The span of one call."""

    def __init__(self, instruments: _Instruments, span: Span, metric_attributes: dict[str, Any]) -> None:
        self._instruments = instruments
        self._span = span
        self._metric_attributes = metric_attributes
        self._started = time.monotonic()

    def end(self, outcome: CallOutcome) -> None:
        """End the span and record the metrics."""
        from opentelemetry.trace import Status, StatusCode

        usage, error, model = outcome
        error_attributes = {} if error is None else {"error.type": error}
        model_attributes = {} if model is None else {"gen_ai.response.model": model}
        try:
            if error is not None:
                self._span.set_status(Status(StatusCode.ERROR))
            self._span.set_attributes({**_usage_attributes(usage), **error_attributes, **model_attributes})
            self._count(usage, error_attributes, model_attributes)
        finally:
            self._span.end()

    def _count(self, usage: Usage, error_attributes: Mapping[str, str], model_attributes: Mapping[str, str]) -> None:
        from opentelemetry.trace import set_span_in_context

        instruments, metric_attributes = self._instruments, self._metric_attributes
        context = set_span_in_context(self._span)
        attributes = {**metric_attributes, **model_attributes}
        instruments.duration.record(time.monotonic() - self._started, {**attributes, **error_attributes}, context)
        if usage.tokens:
            instruments.tokens.record(usage.tokens, attributes, context)
        for outcome in OUTCOME_ATTRIBUTES:
            if texts := getattr(usage, outcome):
                instruments.texts.add(texts, {**metric_attributes, "embedkit.outcome": outcome}, context)
        for counter, amount in (
            (instruments.requests, usage.requests),
            (instruments.retries, usage.retries),
            (instruments.cost, float(usage.priced_usd)),
            (instruments.saved, float(usage.saved_usd or 0)),
        ):
            if amount:
                counter.add(amount, metric_attributes, context)


def _server_attributes(address: str | None) -> dict[str, Any]:
    """Return the attributes of a server's address; none if it is not an HTTP URL."""
    parts = urlsplit(address or "")
    if parts.scheme not in DEFAULT_PORTS or not parts.hostname:
        return {}
    return {"server.address": parts.hostname, "server.port": parts.port or DEFAULT_PORTS[parts.scheme]}


def _exportable(texts: Sequence[object]) -> Iterator[str]:
    """Yield the texts without lone surrogates: an exporter that meets one loses its whole batch."""
    return (text.encode(errors="replace").decode() for text in texts if isinstance(text, str))


def _usage_attributes(usage: Usage) -> dict[str, Any]:
    """Return the span attributes of a usage, without USD amounts if the price is unknown."""
    attributes: dict[str, Any] = {
        "embedkit.texts": usage.texts,
        **{attribute: getattr(usage, outcome) for outcome, attribute in OUTCOME_ATTRIBUTES.items()},
        "embedkit.requests": usage.requests,
        "embedkit.retries": usage.retries,
        "embedkit.possibly_billed.tokens": usage.possibly_billed_tokens,
    }
    if usage.tokens:
        attributes["gen_ai.usage.input_tokens"] = usage.tokens
    if usage.cost_usd is not None:
        attributes["embedkit.cost.usd"] = float(usage.cost_usd)
    if usage.saved_usd is not None:
        attributes["embedkit.saved.usd"] = float(usage.saved_usd)
    return attributes
