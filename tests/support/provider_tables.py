"""Table of all providers in docs/providers.md; run as a program, it writes it there."""

import re
from decimal import Decimal
from pathlib import Path

from embedkit_core import ModelInfo, models
from embedkit_core.providers.base import Provider
from embedkit_core.providers.openai.presets import PRESETS
from embedkit_core.providers.registry import provider_class, provider_names

DOCUMENT = Path(__file__).parents[2] / "docs" / "providers.md"
N_DTYPES = 5  # that a provider can return
KEYS = {
    "openai": ("OPENAI_API_KEY",),
    "voyage": ("VOYAGE_API_KEY",),
    "cohere": ("CO_API_KEY", "COHERE_API_KEY"),
    "google": ("GOOGLE_API_KEY", "GEMINI_API_KEY"),
    "vertex": ("GOOGLE_API_KEY",),
    "bedrock": ("AWS_BEARER_TOKEN_BEDROCK",),
    "nomic": ("NOMIC_API_KEY",),
    "hf-inference": ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACEHUB_API_TOKEN"),
}
OTHER_CREDENTIALS = {
    "vertex": "or Google's Application Default Credentials",
    "bedrock": "or AWS's chain of credentials",
    "azure": "or Entra ID",
}
TITLES = {
    "openai": "OpenAI",
    "voyage": "Voyage AI",
    "cohere": "Cohere",
    "google": "Gemini API",
    "vertex": "Vertex AI",
    "bedrock": "Amazon Bedrock",
    "nomic": "Nomic",
    "hf-inference": "Hugging Face Inference",
    "local": "sentence-transformers",
    "fastembed": "FastEmbed",
    "model2vec": "model2vec",
}
EXERCISED = {
    "openai": "`openai` 2.16 to 3.57",
    "voyage": "`voyageai` 0.3.7 to 0.5",
    "cohere": "`cohere` 5.13.6 to 7.3",
    "google": "`google-genai` 2.0 to 3.6",
    "vertex": "`google-genai` 2.0 to 3.6",
    "bedrock": "`botocore` 1.39 and later",
    "nomic": "HTTP",
    "hf-inference": "HTTP",
    "local": "the model MiniLM",
    "fastembed": "the model MiniLM, exported to ONNX",
    "model2vec": "a model made of MiniLM's token vectors",
}


def table() -> str:
    """Return the table in Markdown: services, servers that users run, and models on this machine."""
    head = ["provider; run with", "API key", "models", "input types; tasks", "dimensions; types", "a request; USD"]
    names = sorted(provider_names(), key=lambda name: (_group(name), name))
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [head, ["---"] * len(head), *map(_line, names)])


def written(text: str) -> str:
    """Return the document with its table updated."""
    return re.sub(r"(<!-- providers -->\n)(?:.*?\n)??(<!-- end -->)", lambda m: m[1] + table() + m[2], text, flags=re.S)


def _group(name: str) -> int:
    """Return 0 for a service, 1 for a server that users run, 2 for models on this machine."""
    return 2 if provider_class(name).is_local else int(name in PRESETS and not PRESETS[name].is_service)


def _line(name: str) -> list[str]:
    kind = provider_class(name)
    rows = [row for row in models() if row.provider == name and row.status != "retired"]
    title = PRESETS[name].title.removeprefix("the ") if name in PRESETS else TITLES.get(name, "")
    tasks = sorted({task for row in rows for task in row.tasks})
    shown = [task if all(task in row.tasks for row in rows) else f"({task})" for task in tasks]
    return [
        _lines(f"`{name}:`", title, EXERCISED.get(name, "`openai`")),
        _keys(name),
        _models(rows),
        _lines(_input_types(kind, rows), *shown),
        _lines(_dimensions(kind, rows), "all types" if len(kind.dtypes) == N_DTYPES else ", ".join(kind.dtypes)),
        "this machine" if kind.is_local else _lines(*_request(kind, rows), *_prices(rows), _batches(name, kind)),
    ]


def _lines(*parts: str) -> str:
    return "<br>".join(filter(None, parts))


def _keys(name: str) -> str:
    names = PRESETS[name].key_variables if name in PRESETS else KEYS.get(name, ())
    return _lines(*(f"`{one}`" for one in names), OTHER_CREDENTIALS.get(name, ""))


def _models(rows: list[ModelInfo]) -> str:
    if not rows:
        return "any"
    usual = [row for row in rows if row.status == "current" and row.name.count("/") <= 1]  # others widen the column
    first = (usual or rows)[0]
    return f"`{first.name}`" + (f"<br>and {len(rows) - 1} more" if len(rows) > 1 else "")


def _input_types(kind: type[Provider], rows: list[ModelInfo]) -> str:
    parts = ["field"] if kind.takes_roles else []
    return ", ".join(parts + (["prompts"] if not rows or any(row.prompts for row in rows) else []))


def _dimensions(kind: type[Provider], rows: list[ModelInfo]) -> str:
    if not kind.takes_dimensions:
        return "truncated here"
    return "requested" if not rows or any(len(row.allowed_dimensions or ()) > 1 for row in rows) else ""


def _request(kind: type[Provider], rows: list[ModelInfo]) -> list[str]:
    """Return the limits of a request: those of the model that takes most, else those of the provider."""
    limits = max(
        (row.limits for row in rows), key=lambda one: (one.texts, one.tokens or 0), default=kind.default_limits
    )
    return [f"{limits.texts:,} texts", *([f"{limits.tokens:,} tokens"] if limits.tokens else [])]


def _batches(name: str, kind: type[Provider]) -> str:
    """Return how `submit` can be used, "" if it cannot."""
    server = getattr(kind, "server", None)
    if kind.batch_endpoint is None and (server is None or server.batch is None):
        return ""
    return "`submit`, on request" if name == "cohere" else "`submit`"


def _prices(rows: list[ModelInfo]) -> list[str]:
    """Return the range of the prices and that of batches, in parentheses if any is not the provider's own."""
    found = []
    for field, label in (("usd_per_million", "$"), ("usd_per_million_batch", "batch $")):
        priced = [row for row in rows if getattr(row, field) is not None]
        prices: list[Decimal] = sorted({getattr(row, field) for row in priced})
        if prices:
            text = label + (f"{prices[0]}" if len(prices) == 1 else f"{prices[0]} to {prices[-1]}")
            found.append(text if all(row.confirmed for row in priced) else f"({text})")
    return found


if __name__ == "__main__":
    DOCUMENT.write_text(written(DOCUMENT.read_text("utf-8")), "utf-8")
