"""Tables of models in docs/models.md; run as a program, it writes them there."""

import json
import re
from importlib.resources import files
from pathlib import Path

from embedkit_core import ModelInfo, models

DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"
OWN_TABLE = ("openai", "voyage", "cohere")
ALL_TYPES = ("float32", "int8", "uint8", "binary", "ubinary")


def tables() -> dict[str, str]:
    """Return the text between `<!-- name -->` and `<!-- end -->`, by name."""
    rows = models()
    found = {name: _api([row for row in rows if row.provider == name]) for name in OWN_TABLE}
    others = [row for row in rows if row.provider not in (*OWN_TABLE, "local")]
    others.sort(key=lambda row: row.provider)
    return found | {"others": _api(others), "local": _local(rows), "fields": _fields()}


def written(text: str) -> str:
    """Return a document with its tables updated."""
    made = tables()
    return re.sub(r"(<!-- (\w+) -->\n)(?:.*?\n)??(<!-- end -->)", lambda m: m[1] + made[m[2]] + m[3], text, flags=re.S)


def _table(head: list[str], lines: list[list[str]]) -> str:
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [head, ["---"] * len(head), *lines])


def shown_name(row: ModelInfo) -> str:
    """Return the name of a model in the table of its provider, or in the one of several providers."""
    return row.name if row.provider in (*OWN_TABLE, "local") else f"{row.provider}:{row.name}"


def _api(rows: list[ModelInfo]) -> str:
    head = ["model", "dimensions, types", "limits", "USD", "notes"]
    return _table(
        head,
        [
            [
                f"[`{shown_name(row)}`]({row.source})<br>{_status(row)}<br>{row.checked_on or '?'}",
                f"{_dimensions(row)}<br>{'all' if row.dtypes == ALL_TYPES else ', '.join(row.dtypes)}",
                f"{_count(row.limits.text_tokens)} tokens<br>{_request(row)}",
                _price(row),
                "; ".join(filter(None, [row.note, f"tasks: {', '.join(row.tasks)}" if row.tasks else ""])),
            ]
            for row in rows
        ],
    )


def _local(rows: tuple[ModelInfo, ...]) -> str:
    head = ["model", "dimensions", "tokens", "prompts", "notes"]
    return _table(
        head,
        [
            [
                f"[`{row.name}`]({row.source})",
                _dimensions(row),
                _count(row.limits.text_tokens),
                _prompts(row),
                row.note or "",
            ]
            for row in rows
            if row.provider == "local"
        ],
    )


def _fields() -> str:
    schema = json.loads(files("embedkit_core.providers.catalogue").joinpath("schema.json").read_text("utf-8"))
    kinds = {name: part.get("description", "") for name, part in schema["$defs"].items()}
    lines = []
    for name, part in schema["$defs"]["model"]["properties"].items():
        of = kinds.get(part.get("$ref", "").rpartition("/")[2], "")
        lines.append([f"`{name}`", "; ".join(filter(None, [part.get("description", ""), of]))])
    return _table(["field", "meaning"], lines)


def _status(row: ModelInfo) -> str:
    said = f"{row.status} {row.retired}" if row.retired else row.status
    return f"{said}: `{row.successor}`" if row.successor else said


def _request(row: ModelInfo) -> str:
    """Return the limits of a request; those that are not the provider's own are in parentheses."""
    texts = "1 text" if row.limits.texts == 1 else f"{_count(row.limits.texts)} texts"
    limits = f"{texts}, {_count(row.limits.tokens)} tokens"
    return limits if row.limits_confirmed else f"({limits})"


def _price(row: ModelInfo) -> str:
    """Return the price with its source, and that of a batch, in parentheses if not the provider's own."""
    price = f"[{row.usd_per_million}]({row.price_source})" if row.price_source else "?"
    price += f"<br>batch {row.usd_per_million_batch}" if row.usd_per_million_batch else ""
    return price if row.confirmed else f"({price})"


def _dimensions(row: ModelInfo) -> str:
    allowed = row.allowed_dimensions
    assert allowed is not None
    if isinstance(allowed, range):
        return f"{row.dimensions}, any from {allowed.start}"
    return ", ".join([str(row.dimensions), *(str(n) for n in allowed if n != row.dimensions)])


def _count(number: int | None) -> str:
    return "?" if number is None else f"{number:,}"


def _prompts(row: ModelInfo) -> str:
    prompts = {name: row.prompts.get(name) for name in ("query", "document")}
    return "<br>".join(f"{name}: `{json.dumps(text, ensure_ascii=False)}`" for name, text in prompts.items() if text)


if __name__ == "__main__":
    DOCUMENT.write_text(written(DOCUMENT.read_text("utf-8")), "utf-8")
