"""OpenTelemetry: a span for each call, and metrics, by the conventions for generative AI; the extra `otel`.

Names as of semantic-conventions 1.36 by default, and of semantic-conventions-genai (client-embeddings.md, read
2026-11-25) where OTEL_SEMCONV_STABILITY_OPT_IN has gen_ai_latest_experimental. Only the API is used: what becomes of
spans and metrics is up to the SDK that the program sets up. No text, vector, key or error message is recorded, unless
content is asked for.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from embedkit_core.common.errors import MissingExtraError
from embedkit_core.common.fork_safety import ForkLock
from embedkit_core.common.usage import Usage
from embedkit_core.observability.hooks import CallInfo, CallOutcome, CallSpan, add_observer, remove_observer

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter, MeterProvider
    from opentelemetry.trace import Span, Tracer, TracerProvider

OPT_IN = "OTEL_SEMCONV_STABILITY_OPT_IN"
LATEST = "gen_ai_latest_experimental"
CAPTURE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
CAPTURING = ("true", "1", "span_only", "span_and_event")
SECONDS = [0.01 * 2**n for n in range(14)]
TOKENS = [4**n for n in range(14)]
PORTS = {"http": 80, "https": 443}
# What became of the texts, as spans have it; a name of theirs must not be the beginning of another.
OUTCOMES: Mapping[str, str] = {
    "cache_hits": "embedkit.cache.hits",
    "duplicates": "embedkit.duplicates",
    "coalesced": "embedkit.coalesced",
    "sent": "embedkit.sent",
    "failed": "embedkit.failed",
}

_lock = ForkLock()
_instrumented: _Instrumented | None = None


def instrument(
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
    capture_content: bool | None = None,
) -> None:
    """Record a span and metrics for each call from now on; once more replaces what was set up before.

    `capture_content` puts texts into spans; by default the environment variable
    OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT says whether.

    Raises:
        MissingExtraError: the package opentelemetry-api is not installed.
    """
    global _instrumented
    try:  # other packages bring a part of what is called opentelemetry
        from opentelemetry.metrics import get_meter
        from opentelemetry.trace import get_tracer
    except ImportError:
        raise MissingExtraError("OpenTelemetry", "otel") from None
    version = _version()
    if capture_content is None:
        capture_content = os.environ.get(CAPTURE, "").strip().lower() in CAPTURING
    made = _Instrumented(
        get_tracer("embedkit_core", version, tracer_provider),
        get_meter("embedkit_core", version, meter_provider),
        latest=LATEST in os.environ.get(OPT_IN, "").replace(" ", "").split(","),
        content=capture_content,
    )
    with _lock.lock:
        uninstrument()
        _instrumented = made
        add_observer(made)


def _version() -> str:
    """Return the version of the installed distribution, "" if only the source tree is there."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("rag-embedkit")
    except PackageNotFoundError:
        return ""


def uninstrument() -> None:
    """Record nothing from now on, but the ends of calls that have begun."""
    global _instrumented
    with _lock.lock:
        if _instrumented is not None:
            remove_observer(_instrumented)
            _instrumented = None


class _Instrumented:
    """Begins spans, and has the instruments that they are counted with."""

    def __init__(self, tracer: Tracer, meter: Meter, *, latest: bool, content: bool) -> None:
        self.token_type = {} if latest else {"gen_ai.token.type": "input"}
        self._content = content
        self._provider_key = "gen_ai.provider.name" if latest else "gen_ai.system"
        self._tracer = tracer
        names = ("gen_ai.client.embeddings.duration", "gen_ai.client.embeddings.operation.input_tokens")
        if not latest:
            names = ("gen_ai.client.operation.duration", "gen_ai.client.token.usage")
        self.seconds = meter.create_histogram(
            names[0], "s", "Duration of a call.", explicit_bucket_boundaries_advisory=SECONDS
        )
        self.tokens = meter.create_histogram(
            names[1], "{token}", "Tokens billed for a call.", explicit_bucket_boundaries_advisory=TOKENS
        )
        self.texts = meter.create_counter("embedkit.texts", "{text}", "Texts asked for, by what became of them.")
        self.requests = meter.create_counter("embedkit.requests", "{request}", "Requests sent, those again included.")
        self.retries = meter.create_counter("embedkit.retries", "{request}", "Requests that repeated an earlier one.")
        self.cost = meter.create_counter("embedkit.cost", "{USD}", "Cost of tokens with a known price.")
        self.saved = meter.create_counter("embedkit.saved", "{USD}", "What cache hits would have cost, estimated.")

    def begin(self, facts: CallInfo) -> CallSpan:
        """Begin a span, whose parent is that of the caller."""
        from opentelemetry.trace import SpanKind

        common: dict[str, Any] = {
            "gen_ai.operation.name": "embeddings",
            self._provider_key: facts.provider,
            "gen_ai.request.model": facts.model,
            **_server(facts.address),
        }
        mine: dict[str, Any] = {"embedkit.input_type": facts.input_type, "embedkit.dtype": facts.dtype}
        if facts.dimensions is not None:
            mine["gen_ai.embeddings.dimension.count"] = facts.dimensions
        if facts.encodings:
            mine["gen_ai.request.encoding_formats"] = facts.encodings
        if self._content and facts.texts is not None:
            mine["embedkit.input"] = list(_exportable(facts.texts))
        span = self._tracer.start_span(f"embeddings {facts.model}", kind=SpanKind.CLIENT, attributes=common | mine)
        return _Call(self, span, common)


class _Call:
    """One call's span, and what it is counted by."""

    def __init__(self, owner: _Instrumented, span: Span, common: dict[str, Any]) -> None:
        self._owner = owner
        self._span = span
        self._common = common
        self._began = time.monotonic()

    def end(self, outcome: CallOutcome) -> None:
        """End the span and count the call."""
        from opentelemetry.trace import Status, StatusCode

        usage, error = outcome
        failed = {} if error is None else {"error.type": error}
        try:
            if error is not None:
                self._span.set_status(Status(StatusCode.ERROR))
            self._span.set_attributes({**_told(usage), **failed})
            self._count(usage, failed)
        finally:
            self._span.end()

    def _count(self, usage: Usage, failed: Mapping[str, str]) -> None:
        from opentelemetry.trace import set_span_in_context

        owner, common, context = self._owner, self._common, set_span_in_context(self._span)
        owner.seconds.record(time.monotonic() - self._began, {**common, **failed}, context)
        if usage.tokens:
            owner.tokens.record(usage.tokens, {**common, **owner.token_type}, context)
        for outcome in OUTCOMES:
            if texts := getattr(usage, outcome):
                owner.texts.add(texts, {**common, "embedkit.outcome": outcome}, context)
        for counter, amount in (
            (owner.requests, usage.requests),
            (owner.retries, usage.retries),
            (owner.cost, float(usage.priced_usd)),
            (owner.saved, float(usage.saved_usd or 0)),
        ):
            if amount:
                counter.add(amount, common, context)


def _server(address: str | None) -> dict[str, Any]:
    """Give the attributes of a server's address; none of one that is not HTTP's, as a test's is."""
    parts = urlsplit(address or "")
    if parts.scheme not in PORTS or not parts.hostname:
        return {}
    return {"server.address": parts.hostname, "server.port": parts.port or PORTS[parts.scheme]}


def _exportable(texts: Sequence[object]) -> Iterator[str]:
    """Give texts as UTF-8 can hold them: an exporter that meets another loses its whole batch."""
    return (text.encode(errors="replace").decode() for text in texts if isinstance(text, str))


def _told(usage: Usage) -> dict[str, Any]:
    """Give the attributes that a usage comes to; those of dollars are left out where the price is unknown."""
    told: dict[str, Any] = {
        "embedkit.texts": usage.texts,
        **{attribute: getattr(usage, outcome) for outcome, attribute in OUTCOMES.items()},
        "embedkit.requests": usage.requests,
        "embedkit.retries": usage.retries,
        "embedkit.possibly_billed.tokens": usage.possibly_billed_tokens,
    }
    if usage.tokens:
        told["gen_ai.usage.input_tokens"] = usage.tokens
    if usage.cost_usd is not None:
        told["embedkit.cost.usd"] = float(usage.cost_usd)
    if usage.saved_usd is not None:
        told["embedkit.saved.usd"] = float(usage.saved_usd)
    return told
