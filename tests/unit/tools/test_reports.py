"""Reports, their verdict, and the labels of charts."""

import itertools
import json
import re
from dataclasses import replace
from decimal import Decimal
from urllib.parse import unquote

from matplotlib.text import Text

from embedkit_core.testing import FakeServer
from embedkit_core.tools import Task, compare
from embedkit_core.tools.charts import QualityPoint, draw_comparison
from embedkit_core.tools.compare import Candidate
from embedkit_core.tools.ranking import Score
from embedkit_core.tools.verdict import comparison_verdict

TASK = Task("small", {f"d{i}": f"document {i}" for i in range(9)}, {"q": "document 1"}, {"q": {"d1": 1}})


def compared(**settings):
    server = FakeServer(asymmetric=False, usd_per_million=Decimal("0.1"))
    return compare("fake:good", settings.pop("task", TASK), base_url=server.url, cache=False, **settings)


def test_a_report_is_one_self_contained_file(tmp_path):
    found = compared()
    found.report(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "<svg" in text
    assert '<meta name="viewport"' in text
    assert 'class="verdict">Best: fake:good (8, float32), nDCG@10 ' in text
    assert '<td style="text-align: left">fake:good</td>' in text
    links = dict(re.findall(r'download="(.*?)" href="data:.*?;charset=utf-8,(.*?)"', text))
    assert unquote(links["comparison.csv"]) == found.to_csv()
    assert json.loads(unquote(links["comparison.json"])) == found.to_dict()
    assert "src=" not in text
    assert "<script" not in text
    assert "<link" not in text


def test_a_report_shows_markup_in_names_as_text(tmp_path):
    task = replace(TASK, name="<b>&'\"")
    comparison = compared(task=task, dimensions=(None, 99999))
    comparison.report(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "<b>" not in text
    assert "<summary>Not measured: 1</summary>" in text


def test_the_verdict_names_the_best_the_cheapest_and_ties():
    def candidate(model, mean, price, p=None):
        scores = {"nDCG@10": Score(mean, mean - 0.05, mean + 0.05)}
        usd = Decimal(price)
        return Candidate(model, 8, scores=scores, usd_per_million=usd, corpus_tokens=10**6, p_value=p)

    best, equal, worse = candidate("a:a", 0.8, 1), candidate("b:b", 0.78, "0.1", 0.6), candidate("c:c", 0.5, 0, 0.01)
    verdict = comparison_verdict([best, equal, worse], "nDCG@10", 50)
    assert "Best: a:a (8, float32), nDCG@10 0.8000 [0.7500, 0.8500]." in verdict
    assert "Cheapest within its confidence interval: b:b (8, float32), 0.7800 ($0.10 for these documents" in verdict
    assert verdict.endswith("50 queries show no significant difference: b:b (8, float32).")
    assert "also the cheapest" in (alone := comparison_verdict([best, worse], "nDCG@10", 50))
    assert alone.endswith("The difference to each of the others is significant.")
    assert comparison_verdict([Candidate("a:a", error="no key")], "nDCG@10", 50).startswith("No model")


def test_labels_of_a_chart_do_not_overlap():
    points = [QualityPoint("a:model", "float32", 2**n, 0.01, 0.5 + n / 1000, 0.4, 0.6) for n in range(3, 12)]
    figure = draw_comparison("t", 10, [*points, QualityPoint("b:other", "float32", 8, 0.02, 0.9, 0.8, 1.0)])
    figure.draw_without_rendering()
    axes = figure.axes[0]
    boxes = [Text.get_window_extent(label) for label in axes.texts]  # without the line to the point
    assert [label.get_text() for label in axes.texts] == ["8", *(str(point.dimensions) for point in points[::-1])]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert all(axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 for box in boxes)
