"""Test a live service with your API key: `make live PROVIDER=voyage`.

Requests a few vectors of one model, for at most one cent, and prints a report to paste into an issue. The report
contains no API key and none of your texts.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import numpy as np

import embedkit_core
from embedkit_core import AuthenticationError, Embedder, EmbedKitError, UnavailableError
from embedkit_core.common.types import Batch
from embedkit_core.common.usage import Usage
from embedkit_core.common.vectors import PostProcessing

MODELS = {
    "openai": "text-embedding-3-small",
    "voyage": "voyage-4-lite",
    "cohere": "embed-v4.0",
}
MAX_USD = Decimal("0.01")
TEXTS = [
    "The cat sat on the mat.",
    "Interest rates rose by a quarter of a point in March.",
    "Photosynthesis turns light, water and carbon dioxide into sugar.",
    "def double(x):\n\treturn 2 * x\n",
]
WORD = "house "  # one token, or two
Findings = Iterator[str]


class Live:
    """One model of one provider, with the user's API key. `spent` is based on the tokens that the provider bills."""

    def __init__(self, model: str, settings: dict[str, Any]) -> None:
        self.model = model
        self.settings = settings
        self.usage = Usage()

    def embedder(self, **settings: Any) -> Embedder:
        """Return an embedder of the model, without a cache."""
        return Embedder(self.model, **{"cache": False, "max_retries": 1, **self.settings, **settings})

    def vectors(self, texts: list[str], *, input_type: Any = "document", **settings: Any) -> Any:
        """Return the vectors of texts, as this library returns them."""
        with self.embedder(**settings) as embedder:
            result = embedder.embed(texts, input_type=input_type)
        self.usage += result.usage
        return result.vectors

    def raw(self, texts: list[str], **fields: Any) -> Any:
        """Send one request with the given fields, without the engine, and return the reply."""
        provider = self.embedder().provider
        body = {**provider.request_body("document"), **fields}

        async def send() -> Any:
            client = provider.connect()
            try:
                return await client.embed(Batch(texts, body, 60.0))
            finally:
                await client.aclose()

        self.usage += Usage(requests=1)
        reply = asyncio.run(send())
        tokens = reply.tokens or 0
        self.usage += Usage(
            texts=len(texts), sent=len(texts), tokens=tokens, priced_usd=tokens * self.price / 1_000_000
        )
        return reply

    @property
    def price(self) -> Decimal:
        """USD per million tokens; 1 if the price is unknown."""
        known = self.embedder().provider.usd_per_million
        return Decimal(1) if known is None else known

    @property
    def spent(self) -> Decimal:
        """USD spent so far."""
        return self.usage.priced_usd


def cosine(left: Any, right: Any) -> float:
    """Return the lowest cosine of corresponding rows."""
    a, b = (np.asarray(rows, dtype=np.float64) for rows in (left, right))
    return float((np.einsum("ij,ij->i", a, b) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))).min())


def plain_request(live: Live) -> Findings:
    """A plain request."""
    reply = live.raw(TEXTS)
    lengths = np.linalg.norm(reply.vectors.astype(np.float64), axis=1)
    info = live.embedder().provider
    yield f"{len(reply.vectors)} vectors of {reply.vectors.shape[1]} dimensions (expected {info.dimensions})"
    yield f"lengths from {lengths.min():.7f} to {lengths.max():.7f} in the reply"
    yield f"billed tokens: {reply.tokens}"
    yield f"rate limit headers: {reply.rate_limits or 'none'}"


def repeated_request(live: Live) -> Findings:
    """Difference of two replies for one text, alone and in a batch."""
    together, again = live.vectors(TEXTS), live.vectors(TEXTS)
    alone = np.vstack([live.vectors([text]) for text in TEXTS[:2]])
    yield f"sent twice: cosine {cosine(together, again):.8f}, largest difference {abs(together - again).max():.1e}"
    yield f"alone and in a batch: cosine {cosine(together[:2], alone):.8f}"


def input_types(live: Live) -> Findings:
    """Whether a query and a document differ, and whether the server's own prompt is billed."""
    yield f"query against document: cosine {cosine(live.vectors(TEXTS), live.vectors(TEXTS, input_type='query')):.6f}"
    if live.embedder().provider.request_body("document").get("input_type") == "document":
        typed, untyped = live.raw(TEXTS).tokens, live.raw(TEXTS, input_type=None).tokens
        yield f"billed tokens: {typed} with an input type, {untyped} without"


def dimensions(live: Live) -> Findings:
    """Whether the provider's shorter vector is the beginning of the longer one."""
    info = embedkit_core.models(name=live.model.partition(":")[2])
    allowed = info[0].allowed_dimensions if info else None
    if not allowed or len(allowed) < 2:
        yield "the model has one number of dimensions"
        return
    widths = [n for n in (2048, 1536, 1024, 512, 256) if n in allowed]
    whole = live.vectors(TEXTS, dimensions=widths[0])
    for width in widths[1:]:
        own, truncated = live.vectors(TEXTS, dimensions=width), PostProcessing(truncate_to=width)(whole)
        difference = abs(own - truncated).max()
        yield f"{width} of {widths[0]}: cosine {cosine(own, truncated):.8f}, largest difference {difference:.1e}"


def dtypes(live: Live) -> Findings:
    """The other data types."""
    found: dict[str, Any] = {}
    for dtype in ("int8", "uint8", "binary", "ubinary"):
        try:
            found[dtype] = live.vectors(TEXTS, dtype=dtype)
        except EmbedKitError as error:
            yield f"{dtype}: {error}"
        else:
            yield f"{dtype}: {found[dtype].dtype} {found[dtype].shape}"
    floats = live.vectors(TEXTS)
    if "ubinary" in found:
        signs = np.packbits(floats > 0, axis=1)
        yield f"ubinary is the signs of the floats: {np.array_equal(found['ubinary'], signs)}"
    if {"binary", "ubinary"} <= found.keys():
        yield f"binary is ubinary minus 128: {np.array_equal(found['binary'], (found['ubinary'] ^ 0x80).view(np.int8))}"
    if {"int8", "uint8"} <= found.keys():
        shifted = np.array_equal(found["uint8"], (found["int8"].astype(np.int16) + 128).astype(np.uint8))
        yield f"uint8 is int8 plus 128: {shifted}"


def refusals(live: Live) -> Findings:
    """Refusals and their errors."""
    limits = live.embedder().provider.limits
    too_long = WORD * (limits.text_tokens or 8192) * 2
    cases: dict[str, Callable[[], Any]] = {
        "an empty text": lambda: live.raw([""]),
        "white space": lambda: live.raw(["   "]),
        "an unknown model": lambda: live.raw(TEXTS[:1], model="no-such-model-0"),
        "too many texts": lambda: live.raw(["x"] * (limits.texts + 1)),
        "unsupported dimensions": lambda: live.raw(TEXTS[:1], **{_field_of_dimensions(live): 333_333}),
        "an invalid key": lambda: Live(live.model, live.settings | {"api_key": "no-such-key"}).raw(TEXTS[:1]),
    }
    if len(too_long) < 1_000_000:
        cases["a text of twice the limit"] = lambda: live.raw([too_long])
    for name, send in cases.items():
        try:
            reply = send()
        except EmbedKitError as error:
            status = getattr(error, "status", None)
            yield f"{name}: {type(error).__name__}, HTTP {status}: {error}"
        else:
            yield f"{name}: answered, {reply.tokens} tokens billed"


def _field_of_dimensions(live: Live) -> str:
    return "dimensions" if live.model.startswith("openai:") else "output_dimension"


def long_texts(live: Live) -> Findings:
    """Whether a text over the limit is truncated and listed, if the cost is small."""
    provider = live.embedder().provider
    limit, price = provider.limits.text_tokens, provider.usd_per_million
    if limit is None or price is None or limit * 3 * price / 1_000_000 > MAX_USD / 4:
        yield "skipped: it would cost too much"
        return
    with live.embedder() as embedder:
        result = embedder.embed([WORD * int(limit * 1.2), TEXTS[0]])
    live.usage += result.usage
    yield f"limit {limit}: positions {result.truncated} truncated, {result.usage.tokens} tokens billed"


CHECKS: tuple[Callable[[Live], Findings], ...] = (
    *(plain_request, repeated_request, input_types, dimensions, dtypes, refusals, long_texts),
)


def report(live: Live) -> Iterator[str]:
    """Yield the lines of the report; stop before more than one cent is spent."""
    yield f"## {live.model}, rag-embedkit {embedkit_core.__version__}, numpy {np.__version__}"
    for check in CHECKS:
        yield f"\n### {(check.__doc__ or '').rstrip('.')}"
        if live.spent > MAX_USD * 3 / 4:
            yield "- skipped: the limit of one cent is nearly reached"
            continue
        try:
            for finding in check(live):
                yield f"- {finding}"
        except (AuthenticationError, UnavailableError):
            raise  # the remaining checks would fail in the same way
        except EmbedKitError as error:
            yield f"- ended with {type(error).__name__}: {error}"
    yield f"\nSpent: {live.usage}"
    yield "Please paste this into an issue of the project. It contains no API key and none of your texts."


def main(arguments: list[str] | None = None) -> int:
    """Print the report. Return 0, or 1 after an error."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("provider", choices=sorted(MODELS))
    parser.add_argument("--model", default="", help="model (default: a cheap one with the most open questions)")
    parser.add_argument("--base-url", help="address (default: the provider's own)")
    options = parser.parse_args(arguments)
    live = Live(f"{options.provider}:{options.model or MODELS[options.provider]}", {"base_url": options.base_url})
    try:
        live.embedder()  # fails if there is no API key
        for line in report(live):
            print(line, flush=True)
    except EmbedKitError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
