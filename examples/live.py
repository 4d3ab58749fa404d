"""Test a live service with your API key: `make live PROVIDER=voyage`, for any provider that sends texts to a service.

Requests a few vectors of one model, for at most one cent, and prints a report to paste into an issue. The report
contains no API key and none of your texts. The questions are those that a model's documentation leaves open.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal
from functools import cached_property
from typing import Any

import numpy as np

import embedkit_core
from embedkit_core import AuthenticationError, ConfigurationError, Embedder, EmbedKitError, ModelInfo, UnavailableError
from embedkit_core.common import plugins
from embedkit_core.common.money import MILLION
from embedkit_core.common.types import Batch
from embedkit_core.common.usage import Usage
from embedkit_core.common.vectors import PostProcessing
from embedkit_core.costs.tokens import estimate_tokens
from embedkit_core.providers.openai.provider import OpenAI

MAX_USD = Decimal("0.01")
UNKNOWN_PRICE = Decimal(1)  # USD per million tokens
TEXTS = [
    "The cat sat on the mat.",
    "Interest rates rose by a quarter of a point in March.",
    "Photosynthesis turns light, water and carbon dioxide into sugar.",
    "def double(x):\n\treturn 2 * x\n",
]
WORD, OTHER_WORD = "house ", "river "  # one token each, or two
WIDTHS = (2048, 1536, 1024, 768, 512, 256)
Findings = Iterator[str]


class Live:
    """One model of one provider, with the user's API key.

    Attributes:
        model: Model as "provider:model".
        settings: The user's settings of the embedder.
        price: USD per million tokens.
        title: The model and its price.
        usage: Usage so far. Tokens that the provider does not state are estimated.
    """

    def __init__(self, model: str, settings: dict[str, Any], price: Decimal | None = None) -> None:
        self.model = model
        self.settings = settings
        self.usage = Usage()
        known = self.provider.usd_per_million if price is None else price
        self.price = UNKNOWN_PRICE if known is None else known
        source = "assumed" if known is None else "stated by the user" if price is not None else "by the provider"
        if source == "by the provider" and not self.provider.has_confirmed_price:
            source = "not confirmed by the provider"
        self.title = f"{model}, ${self.price} per million tokens ({source})"

    @cached_property
    def provider(self) -> Any:
        """The provider of the model, with the settings of the user."""
        return self.embedder().provider

    @cached_property
    def row(self) -> ModelInfo | None:
        """The model's row of the catalogue, or that of the model that it is like."""
        like = (self.settings.get("model_info") or {}).get("like", self.model)
        provider, _, name = like.partition(":")
        rows = embedkit_core.models(name=type(self.provider).catalogue_name(name))
        return next((row for row in rows if row.provider == provider), None)

    @cached_property
    def texts(self) -> list[str]:
        """Texts for one request."""
        return TEXTS[: self.provider.limits.texts]

    def embedder(self, **settings: Any) -> Embedder:
        """Return an embedder of the model, without a cache."""
        return Embedder(**{"model": self.model, "cache": False, "max_retries": 1, **self.settings, **settings})

    def vectors(self, texts: list[str], *, input_type: Any = "document", **settings: Any) -> Any:
        """Return the vectors of texts, as this library returns them."""
        return self.result(texts, input_type=input_type, **settings).vectors

    def result(self, texts: list[str], *, input_type: Any = "document", **settings: Any) -> Any:
        """Return the result for texts."""
        with self.embedder(**settings) as embedder:
            result = embedder.embed(texts, input_type=input_type)
        self.usage += result.usage
        return result

    def raw(
        self,
        texts: list[str],
        fields: dict[str, Any] | None = None,
        *,
        without: str | None = None,
        widths: tuple[int, ...] = (),
        settings: dict[str, Any] | None = None,
    ) -> Any:
        """Send one request without the engine and return the reply.

        Args:
            texts: Texts of the request.
            fields: Fields that replace those of the provider.
            without: Field to leave out.
            widths: Widths that the vectors may have.
            settings: Other settings of the embedder.
        """
        provider = self.embedder(**(settings or {})).provider
        body = {**provider.request_body("document"), **(fields or {})}
        if without is not None:
            del body[without]

        async def send() -> Any:
            client = provider.connect()
            try:
                return await client.embed(Batch(texts, body, 60.0, widths))
            finally:
                await client.aclose()

        self.usage += Usage(requests=1)
        reply = asyncio.run(send())
        tokens = sum(estimate_tokens(text, text.encode()) for text in texts) if reply.tokens is None else reply.tokens
        cost = tokens * self.price / MILLION
        self.usage += Usage(texts=len(texts), sent=len(texts), tokens=tokens, priced_usd=cost)
        return reply

    @property
    def spent(self) -> Decimal:
        """USD spent so far, at most."""
        return (self.usage.tokens + self.usage.possibly_billed_tokens) * self.price / MILLION


def cosine(left: Any, right: Any) -> float:
    """Return the lowest cosine of corresponding rows."""
    a, b = (np.asarray(rows, dtype=np.float64) for rows in (left, right))
    return float((np.einsum("ij,ij->i", a, b) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))).min())


def compare(left: Any, right: Any) -> str:
    """Return how much two matrices differ."""
    difference = abs(np.asarray(left, dtype=np.float64) - np.asarray(right, dtype=np.float64)).max()
    return f"cosine {cosine(left, right):.8f}, largest difference {difference:.1e}"


def attempt(send: Callable[[], Any]) -> tuple[str, Any]:
    """Return what came of a request, as text, and the reply or None."""
    try:
        reply = send()
    except EmbedKitError as error:
        return f"{type(error).__name__}, HTTP {getattr(error, 'status', None)}: {error}", None
    return f"answered, {billed(reply)}", reply


def billed(reply: Any) -> str:
    """Return the billed tokens of a reply."""
    return "no tokens stated" if reply.tokens is None else f"{reply.tokens} tokens billed"


def field_of_dimensions(live: Live) -> str | None:
    """Return the request field for dimensions, None if there is none."""
    allowed = live.row.allowed_dimensions if live.row else None
    try:
        other = next(width for width in allowed or WIDTHS[::-1] if width != live.provider.dimensions)
        provider = live.embedder(dimensions=other).provider
    except (StopIteration, ConfigurationError):
        return None
    added = provider.request_body("document").keys() - live.provider.request_body("document").keys()
    return next(iter(added), None)


def field_of_role(live: Live) -> str | None:
    """Return the request field for the input type, None if there is none."""
    document, query = (live.provider.request_body(input_type) for input_type in ("document", "query"))
    return next((name for name in document if name != "prompt" and document[name] != query.get(name)), None)


def plain_request(live: Live) -> Findings:
    """A plain request."""
    reply = live.raw(live.texts)
    lengths = np.linalg.norm(reply.vectors.astype(np.float64), axis=1)
    yield f"{len(reply.vectors)} vectors of {reply.vectors.shape[1]} dimensions (expected {live.provider.dimensions})"
    yield f"lengths from {lengths.min():.7f} to {lengths.max():.7f} in the reply"
    yield billed(reply)
    yield f"rate limit headers: {reply.rate_limits or 'none'}"


def encodings(live: Live) -> Findings:
    """Whether base64 is float32, if the API is OpenAI's."""
    provider = live.provider
    field = provider.server.encoding_field if isinstance(provider, OpenAI) else None
    if field is None:
        yield "no field for the encoding is sent"
        return
    numbers = live.raw(live.texts, {field: "float"}).vectors
    said, reply = attempt(lambda: live.raw(live.texts, {field: "base64"}, widths=(numbers.shape[1],)))
    yield f"base64: {said}" if reply is None else f"base64 and numbers: {compare(reply.vectors, numbers)}"


def repeated_request(live: Live) -> Findings:
    """Difference of two replies for one text, alone and in a batch."""
    together, again = live.vectors(TEXTS), live.vectors(TEXTS)
    alone = np.vstack([live.vectors([text]) for text in TEXTS[:2]])
    yield f"sent twice: {compare(together, again)}"
    yield f"alone and in a batch: cosine {cosine(together[:2], alone):.8f}"


def input_types(live: Live) -> Findings:
    """Whether a query and a document differ, and whether the server's own prompt is billed."""
    yield f"query against document: cosine {cosine(live.vectors(TEXTS), live.vectors(TEXTS, input_type='query')):.6f}"
    if field := field_of_role(live):
        yield f"with {field}: {attempt(lambda: live.raw(live.texts))[0]}"
        yield f"without {field}: {attempt(lambda: live.raw(live.texts, without=field))[0]}"


def tasks(live: Live) -> Findings:
    """Whether the vectors of a task differ from those of retrieval."""
    texts, known = TEXTS[:2], live.row.tasks if live.row else {}
    if not known:
        yield "the catalogue has none for the model"
    for input_type in ("document", "query") if known else ():
        usual = live.vectors(texts, input_type=input_type)
        for task in known:
            own = live.vectors(texts, input_type=input_type, task=task)
            yield f"{task}, {input_type}: cosine {cosine(own, usual):.6f}"


def dimensions(live: Live) -> Findings:
    """Whether the provider's shorter vector is the beginning of the longer one."""
    allowed = live.row.allowed_dimensions if live.row else None
    widths = [width for width in WIDTHS if width in (allowed or ())]
    if len(widths) < 2 or field_of_dimensions(live) is None:
        yield "no dimensions are requested from the model"
        return
    whole = live.vectors(TEXTS, dimensions=widths[0])
    for width in widths[1:]:
        own, truncated = live.vectors(TEXTS, dimensions=width), PostProcessing(truncate_to=width)(whole)
        yield f"{width} of {widths[0]}: {compare(own, truncated)}"


def dtypes(live: Live) -> Findings:
    """The other data types."""
    found: dict[str, Any] = {}
    offered = [dtype for dtype in (live.row or live.provider).dtypes if dtype != "float32"]
    if not offered:
        yield "none is requested from the model"
    for dtype in offered:
        try:
            found[dtype] = live.vectors(TEXTS, dtype=dtype)
        except EmbedKitError as error:
            yield f"{dtype}: {error}"
        else:
            yield f"{dtype}: {found[dtype].dtype} {found[dtype].shape}"
    if "ubinary" in found:
        signs = np.packbits(live.vectors(TEXTS) > 0, axis=1)
        yield f"ubinary is the signs of the floats: {np.array_equal(found['ubinary'], signs)}"
    if {"binary", "ubinary"} <= found.keys():
        yield f"binary is ubinary minus 128: {np.array_equal(found['binary'], (found['ubinary'] ^ 0x80).view(np.int8))}"
    if {"int8", "uint8"} <= found.keys():
        shifted = np.array_equal(found["uint8"], (found["int8"].astype(np.int16) + 128).astype(np.uint8))
        yield f"uint8 is int8 plus 128: {shifted}"


def refusals(live: Live) -> Findings:
    """Refusals and their errors."""
    one, most = TEXTS[:1], live.provider.limits.texts
    unknown: dict[str, Any] = {"model": f"{live.model}-no-such"}
    if live.row is not None:
        unknown["model_info"] = {"like": f"{live.row.provider}:{live.row.name}"}
    cases: dict[str, Callable[[], Any]] = {
        "an empty text": lambda: live.raw([""]),
        "white space": lambda: live.raw(["   "]),
        "an unknown model": lambda: live.raw(one, settings=unknown),
        "an invalid key": lambda: live.raw(one, settings={"api_key": "no-such-key"}),
    }
    if most > 1:
        cases[f"too many texts ({most + 1})"] = lambda: live.raw(["x"] * (most + 1))
    if field := field_of_dimensions(live):
        cases["unsupported dimensions"] = lambda: live.raw(one, {field: 333_333})
    for name, send in cases.items():
        yield f"{name}: {attempt(send)[0]}"


def long_texts(live: Live) -> Findings:
    """Whether a text over the limit is refused, truncated and reported, or truncated without notice."""
    limit = live.provider.limits.text_tokens
    if limit is None or limit * 4 * live.price / MILLION > MAX_USD / 2:
        yield "skipped: " + ("the limit is unknown" if limit is None else "it would cost too much")
        return
    beginning = WORD * int(limit * 1.1)
    text = beginning + OTHER_WORD * int(limit * 0.1)
    said, reply = attempt(lambda: live.raw([text]))
    if reply is not None:
        same = cosine(reply.vectors, live.raw([beginning]).vectors) > 0.999999
        said += f", truncated {'and reported' if reply.truncated else 'without notice'}" if same else ", not truncated"
    yield f"1.2 times the limit of {limit}: {said}"
    result = live.result([text, TEXTS[0]])
    yield f"by this library: positions {result.truncated} truncated, {result.usage.tokens} tokens billed"


CHECKS: tuple[Callable[[Live], Findings], ...] = (
    *(plain_request, encodings, repeated_request, input_types, tasks, dimensions, dtypes, refusals, long_texts),
)


def report(live: Live) -> Iterator[str]:
    """Yield the lines of the report; stop before more than one cent is spent."""
    yield f"## {live.title}, rag-embedkit {embedkit_core.__version__}, numpy {np.__version__}"
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
    yield f"\nSpent, at most ${live.spent:.4f}: {live.usage}"
    yield "Please paste this into an issue of the project. It contains no API key and none of your texts."


def default_model(provider: str) -> str:
    """Return the cheapest current model of a provider.

    Raises:
        ConfigurationError: No price is known.
    """
    rows = [row for row in embedkit_core.models() if row.provider == provider]
    priced = [row for row in rows if row.status not in ("legacy", "retired") and row.usd_per_million is not None]
    if priced:
        return min(priced, key=lambda row: row.usd_per_million or 0).name
    known = ", ".join(row.name for row in rows)
    raise ConfigurationError(f"Name a model with --model{f': {known}' if known else ''}.")


def option(text: str) -> tuple[str, Any]:
    """Return name and value of NAME=JSON."""
    name, _, value = text.partition("=")
    return name, json.loads(value)


def main(arguments: list[str] | None = None) -> int:
    """Print the report. Return 0, or 1 after an error."""
    names = sorted({*plugins.BUILT_IN[plugins.PROVIDERS], *plugins.registered(plugins.PROVIDERS)} - {"fake"})
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("provider", choices=names, metavar="provider", help=", ".join(names))
    parser.add_argument("--model", help="model (default: the cheapest current one)")
    parser.add_argument("--base-url", help="address (default: the provider's own)")
    parser.add_argument("--like", metavar="PROVIDER:MODEL", help="model of the catalogue that a deployment serves")
    parser.add_argument("--option", type=option, action="append", metavar="NAME=JSON", help="one of provider_options")
    parser.add_argument("--price", type=Decimal, metavar="USD", help="USD per million tokens, if it is unknown")
    options = parser.parse_args(arguments)
    settings = {
        "base_url": options.base_url,
        "provider_options": dict(options.option or ()) or None,
        "model_info": {"like": options.like} if options.like else None,
    }
    try:
        kind: Any = plugins.load(plugins.PROVIDERS, options.provider)
        if kind.is_local:
            raise ConfigurationError(f"Models of {options.provider}: run on this machine. Name a service.")
        model = f"{options.provider}:{options.model or default_model(options.provider)}"
        for line in report(Live(model, settings, options.price)):  # fails at once if there is no API key
            print(line, flush=True)
    except EmbedKitError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
