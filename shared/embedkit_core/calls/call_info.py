"""What call observers receive when a call or a stream begins and ends."""

from __future__ import annotations

from embedkit_core.config.base import BaseEmbedder
from embedkit_core.config.roles import InputTypeSpec
from embedkit_core.engine.scheduler.items import Ticket
from embedkit_core.observability.hooks import CallInfo


def call_info(embedder: BaseEmbedder, spec: InputTypeSpec, texts: object = None) -> CallInfo:
    """Return what observers receive when a call or a stream begins; `texts` only if it is a list or a tuple."""
    provider = embedder.provider
    return CallInfo(
        provider=provider.telemetry_name,
        model=provider.model,
        address=provider.url,
        input_type=spec.input_type,
        dimensions=embedder.dimensions,
        dtype=spec.format.dtype,
        encodings=provider.encodings,
        texts=texts if isinstance(texts, (list, tuple)) else None,
    )


def response_model(ticket: Ticket | None) -> str | None:
    """Return the name of the model as far as replies state it; None if nothing was sent."""
    return None if ticket is None else ticket.response_model
