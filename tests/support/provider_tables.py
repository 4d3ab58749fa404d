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
    """Return the table in Markdown."""
    head = ["provider", "extra", "API key", "models", "input types", "tasks", "dimensions", "data types", "a request"]
    head += ["USD", "USD (batch)", "exercised with"]
    lines = [head, ["---"] * len(head), *(_line(name) for name in provider_names())]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def written(text: str) -> str:
    """Return the document with its table updated."""
    return re.sub(r"(<!-- providers -->\n)(?:.*?\n)??(<!-- end -->)", lambda m: m[1] + table() + m[2], text, flags=re.S)


def _line(name: str) -> list[str]:
    kind = provider_class(name)
    rows = [row for row in models() if row.provider == name and row.status != "retired"]
    return [
        f"`{name}:`",
        kind.extra or "",
        _keys(name),
        _models(rows),
        _input_types(kind, rows),
        ", ".join(sorted({task for row in rows for task in row.tasks})),
        _dimensions(kind, rows),
        "all" if len(kind.dtypes) == N_DTYPES else ", ".join(kind.dtypes),
        "" if kind.is_local else _request(kind, rows),
        "this machine" if kind.is_local else _prices(rows, "usd_per_million"),
        "" if kind.is_local else _prices(rows, "usd_per_million_batch"),
        EXERCISED.get(name, "`openai`"),
    ]


def _keys(name: str) -> str:
    names = PRESETS[name].key_variables if name in PRESETS else KEYS.get(name, ())
    return " ".join([", ".join(f"`{one}`" for one in names), OTHER_CREDENTIALS.get(name, "")]).strip()


def _models(rows: list[ModelInfo]) -> str:
    if not rows:
        return "any"
    first = next((row for row in rows if row.status == "current"), rows[0])
    return f"`{first.name}`" + (f" and {len(rows) - 1} more" if len(rows) > 1 else "")


def _input_types(kind: type[Provider], rows: list[ModelInfo]) -> str:
    parts = ["field"] if kind.takes_roles else []
    return ", ".join(parts + (["prompts"] if not rows or any(row.prompts for row in rows) else []))


def _dimensions(kind: type[Provider], rows: list[ModelInfo]) -> str:
    if not kind.takes_dimensions:
        return "truncated here"
    return "requested" if not rows or any(len(row.allowed_dimensions or ()) > 1 for row in rows) else ""


def _request(kind: type[Provider], rows: list[ModelInfo]) -> str:
    """Return the limits of a request: those of the model that takes most, else those of the provider."""
    limits = max(
        (row.limits for row in rows), key=lambda one: (one.texts, one.tokens or 0), default=kind.default_limits
    )
    return f"{limits.texts:,} texts" + (f", {limits.tokens:,} tokens" if limits.tokens else "")


def _prices(rows: list[ModelInfo], field: str) -> str:
    """Return the range of the prices, in parentheses if any of them is not the provider's own."""
    priced = [row for row in rows if getattr(row, field) is not None]
    found: list[Decimal] = sorted({getattr(row, field) for row in priced})
    if not found:
        return "?"
    text = f"{found[0]}" if len(found) == 1 else f"{found[0]} to {found[-1]}"
    return text if all(row.confirmed for row in priced) else f"({text})"


if __name__ == "__main__":
    DOCUMENT.write_text(written(DOCUMENT.read_text("utf-8")), "utf-8")
