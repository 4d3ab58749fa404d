"""The entry point of `opentelemetry-instrument`, which enables OpenTelemetry without a change of the program.

It is imported only by that command, whose package it needs: opentelemetry-instrumentation.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined] # checks are off there

from embedkit_core.observability.otel import instrument, uninstrument


class EmbedKitInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Calls `instrument` and `uninstrument` of `embedkit_core.observability.otel`."""

    def instrumentation_dependencies(self) -> Collection[str]:
        """Return no package: what is instrumented is in this distribution."""
        return ()

    def _instrument(self, **kwargs: Any) -> None:
        instrument(kwargs.get("tracer_provider"), kwargs.get("meter_provider"))

    def _uninstrument(self, **kwargs: Any) -> None:  # noqa: ARG002 - the signature of the base class
        uninstrument()
