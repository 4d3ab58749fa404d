"""Settle with a key of your own what could not be tried here: `make live PROVIDER=voyage`.

It asks one model of a live service for a few vectors, for a cent at most, and prints a report to paste into an issue.
The report holds no key and no text of yours.
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
MOST = Decimal("0.01")  # USD
TEXTS = [
    "The cat sat on the mat.",
    "Interest rates rose by a quarter of a point in March.",
    "Photosynthesis turns light, water and carbon dioxide into sugar.",
    "def double(x):\n\treturn 2 * x\n",
]
WORD = "house "  # one token, or two
Findings = Iterator[str]


class Live:
    """One model of one provider, asked with the reader's key; `spent` is what the provider's own counts come to."""

    def __init__(self, model: str, settings: dict[str, Any]) -> None:
        self.model = model
        self.settings = settings
        self.usage = Usage()

    def embedder(self, **settings: Any) -> Embedder:
        """An embedder of the model, without a cache."""
        return Embedder(self.model, **{"cache": False, "max_retries": 1, **self.settings, **settings})

    def vectors(self, texts: list[str], *, role: Any = "document", **settings: Any) -> Any:
        """The vectors of some texts, as this library gives them."""
        with self.embedder(**settings) as embedder:
            result = embedder.embed(texts, input_type=role)
        self.usage += result.usage
        return result.vectors

    def raw(self, texts: list[str], **wire: Any) -> Any:
        """The reply to one request exactly as it is put, past all of the engine's care."""
        provider = self.embedder().provider
        fields = {**provider.request_body("document"), **wire}

        async def ask() -> Any:
            client = provider.connect()
            try:
                return await client.embed(Batch(texts, fields, 60.0))
            finally:
                await client.aclose()

        self.usage += Usage(requests=1)
        reply = asyncio.run(ask())
        tokens = reply.tokens or 0
        self.usage += Usage(
            texts=len(texts), sent=len(texts), tokens=tokens, priced_usd=tokens * self.price / 1_000_000
        )
        return reply

    @property
    def price(self) -> Decimal:
        """USD for a million tokens; what is not known is taken for dear."""
        known = self.embedder().provider.usd_per_million
        return Decimal(1) if known is None else known

    @property
    def spent(self) -> Decimal:
        """USD so far."""
        return self.usage.priced_usd


def cosine(one: Any, other: Any) -> float:
    """The least cosine of rows with rows."""
    a, b = (np.asarray(rows, dtype=np.float64) for rows in (one, other))
    return float((np.einsum("ij,ij->i", a, b) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))).min())


def a_request(live: Live) -> Findings:
    """What a plain request gives."""
    reply = live.raw(TEXTS)
    lengths = np.linalg.norm(reply.vectors.astype(np.float64), axis=1)
    info = live.embedder().provider
    yield f"{len(reply.vectors)} vectors of {reply.vectors.shape[1]} dimensions (expected {info.dimensions})"
    yield f"lengths from {lengths.min():.7f} to {lengths.max():.7f} as they come"
    yield f"billed tokens: {reply.tokens}"
    yield f"headers about limits: {reply.rate_limits or 'none'}"


def the_same_again(live: Live) -> Findings:
    """How far two answers for one text are apart, alone and among others."""
    together, again = live.vectors(TEXTS), live.vectors(TEXTS)
    alone = np.vstack([live.vectors([text]) for text in TEXTS[:2]])
    yield f"asked twice: cosine {cosine(together, again):.8f}, largest difference {abs(together - again).max():.1e}"
    yield f"alone and together: cosine {cosine(together[:2], alone):.8f}"


def roles(live: Live) -> Findings:
    """Whether a query has another vector than a document, and whether the server's own prompt is billed."""
    yield f"query against document: cosine {cosine(live.vectors(TEXTS), live.vectors(TEXTS, role='query')):.6f}"
    if live.embedder().provider.request_body("document").get("input_type") == "document":
        told, bare = live.raw(TEXTS).tokens, live.raw(TEXTS, input_type=None).tokens
        yield f"billed tokens: {told} with an input type, {bare} without"


def dimensions(live: Live) -> Findings:
    """Whether the provider's own shorter vector is the beginning of the longer one."""
    info = embedkit_core.models(name=live.model.partition(":")[2])
    allowed = info[0].allowed_dimensions if info else None
    if not allowed or len(allowed) < 2:
        yield "the model has one number of dimensions"
        return
    widths = [n for n in (2048, 1536, 1024, 512, 256) if n in allowed]
    whole = live.vectors(TEXTS, dimensions=widths[0])
    for width in widths[1:]:
        own, cut = live.vectors(TEXTS, dimensions=width), PostProcessing(truncate_to=width)(whole)
        apart = abs(own - cut).max()
        yield f"{width} of {widths[0]}: cosine {cosine(own, cut):.8f}, largest difference {apart:.1e}"


def types(live: Live) -> Findings:
    """What the other types are."""
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
        yield f"binary is ubinary less 128: {np.array_equal(found['binary'], (found['ubinary'] ^ 0x80).view(np.int8))}"
    if {"int8", "uint8"} <= found.keys():
        shifted = np.array_equal(found["uint8"], (found["int8"].astype(np.int16) + 128).astype(np.uint8))
        yield f"uint8 is int8 plus 128: {shifted}"


def refusals(live: Live) -> Findings:
    """What errors come to."""
    limits = live.embedder().provider.limits
    too_long = WORD * (limits.text_tokens or 8192) * 2
    asked: dict[str, Callable[[], Any]] = {
        "an empty text": lambda: live.raw([""]),
        "white space": lambda: live.raw(["   "]),
        "a model that there is not": lambda: live.raw(TEXTS[:1], model="no-such-model-0"),
        "too many texts": lambda: live.raw(["x"] * (limits.texts + 1)),
        "dimensions that it has not": lambda: live.raw(TEXTS[:1], **{_field_of_dimensions(live): 333_333}),
        "a key that is none": lambda: Live(live.model, live.settings | {"api_key": "no-such-key"}).raw(TEXTS[:1]),
    }
    if len(too_long) < 1_000_000:
        asked["a text twice too long"] = lambda: live.raw([too_long])
    for what, ask in asked.items():
        try:
            reply = ask()
        except EmbedKitError as error:
            status = getattr(error, "status", None)
            yield f"{what}: {type(error).__name__}, HTTP {status}: {error}"
        else:
            yield f"{what}: answered, {reply.tokens} tokens billed"


def _field_of_dimensions(live: Live) -> str:
    return "dimensions" if live.model.startswith("openai:") else "output_dimension"


def long_texts(live: Live) -> Findings:
    """Whether a text over the limit is cut and named, where that costs next to nothing."""
    provider = live.embedder().provider
    limit, price = provider.limits.text_tokens, provider.usd_per_million
    if limit is None or price is None or limit * 3 * price / 1_000_000 > MOST / 4:
        yield "left out: it would cost too much"
        return
    with live.embedder() as embedder:
        result = embedder.embed([WORD * int(limit * 1.2), TEXTS[0]])
    live.usage += result.usage
    yield f"limit {limit}: positions {result.truncated} cut, {result.usage.tokens} tokens billed"


CHECKS: tuple[Callable[[Live], Findings], ...] = (
    *(a_request, the_same_again, roles, dimensions, types, refusals, long_texts),
)


def report(live: Live) -> Iterator[str]:
    """Give the report line by line; it stops before more than a cent is spent."""
    yield f"## {live.model}, rag-embedkit {embedkit_core.__version__}, numpy {np.__version__}"
    for check in CHECKS:
        yield f"\n### {(check.__doc__ or '').rstrip('.')}"
        if live.spent > MOST * 3 / 4:
            yield "- left out: a cent is nearly spent"
            continue
        try:
            for finding in check(live):
                yield f"- {finding}"
        except (AuthenticationError, UnavailableError):
            raise  # so will be all that follow
        except EmbedKitError as error:
            yield f"- ended with {type(error).__name__}: {error}"
    yield f"\nSpent: {live.usage}"
    yield "Please paste this into an issue of the project: it holds no key and no text of yours."


def main(arguments: list[str] | None = None) -> int:
    """Read the arguments, ask, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("provider", choices=sorted(MODELS))
    parser.add_argument("--model", default="", help="a model of it; by default the cheapest that has most to settle")
    parser.add_argument("--base-url", help="another address than the provider's own")
    given = parser.parse_args(arguments)
    live = Live(f"{given.provider}:{given.model or MODELS[given.provider]}", {"base_url": given.base_url})
    try:
        live.embedder()  # without a key there is nothing to report
        for line in report(live):
            print(line, flush=True)
    except EmbedKitError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
