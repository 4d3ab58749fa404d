"""What notebooks show of results: tables whose text is escaped."""

from decimal import Decimal
from html.parser import HTMLParser

from support.embedders import fake_embedder

from embedkit_core import Snapshot, Usage, models, snapshot
from embedkit_core.testing import FakeServer
from embedkit_core.tools import Task, compare

HOSTILE = "</td><script>alert('x')</script>"


class Cells(HTMLParser):
    """The rows of the tables in a page, and the tags."""

    def __init__(self, page):
        super().__init__()
        self.rows, self.tags = [], set()
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.removesuffix("\n")


def cells(shown):
    parsed = Cells(shown._repr_html_())
    assert parsed.tags <= {"table", "caption", "thead", "tbody", "tr", "th", "td", "div"}
    return parsed.rows


def test_usage_is_a_table_without_zero_counts():
    usage = Usage(texts=1200, sent=1200, requests=2, tokens=9, unpriced_tokens=4, priced_usd=Decimal("0.020"))
    assert cells(usage) == [
        ["texts", "1,200"], ["sent", "1,200"], ["requests", "2"], ["tokens", "9"], ["unpriced_tokens", "4"],
        ["priced_usd", "$0.02"], ["cost_usd", "-"],
    ]  # fmt: skip
    assert cells(Usage()) == [["texts", "0"], ["requests", "0"], ["cost_usd", "$0"]]


def test_estimates_and_snapshots_are_tables_of_their_fields():
    embedder = fake_embedder(FakeServer(usd_per_million=Decimal("0.02")))
    estimate = embedder.estimate(["Cats purr."])
    shown = dict(cells(estimate))
    assert (shown["model"], shown["cost_usd"]) == (estimate.model, f"${estimate.cost_usd:f}")
    assert (shown["seconds"], shown["batch_seconds"]) == (f"{estimate.seconds:.1f}", "-")
    embedder.embed(["Cats purr."])
    found = snapshot()
    rows = {name: values for name, *values in cells(found)}
    assert rows["model"] == [one.model for one in found]
    assert list(rows) == list(Snapshot.__dataclass_fields__)
    assert dict(cells(found[-1]))["endpoint"] == found[-1].endpoint


def test_the_models_of_the_catalogue_are_a_tuple_and_a_table():
    found = models("openai")
    assert isinstance(found, tuple)
    head, *rows = cells(found)
    assert head == ["model", "dimensions", "max tokens", "USD per 1M tokens", "status"]
    assert ["openai:text-embedding-3-small", "1,536", "8,192", "$0.02", "current"] in rows
    assert len(rows) == len(found)


def test_a_comparison_is_a_table_and_escapes_what_others_wrote():
    server = FakeServer(asymmetric=False, dimensions=16, usd_per_million=Decimal("0.02"))
    task = Task(HOSTILE, {f"d{n}": f"document {n}" for n in range(9)}, {"q": "document 3"}, {"q": {"d3": 1}})
    found = compare({"model": f"fake:{HOSTILE}", "base_url": server.url}, task, dimensions=(None, 8), cache=False)
    page = found._repr_html_()
    head, row = cells(found)
    assert (head[0], row[1], len(row)) == ("model", "16", len(head))
    assert found.best.model[-30:] in row[0]
    assert "<script" not in page
    assert page.count("cannot be derived") == 1
