"""Comparing, choosing and benchmarking, with texts small enough to check by hand."""

import csv
import io
import json
import math
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedkit_core import ConfigurationError, Embedder
from embedkit_core.testing import FakeServer
from embedkit_core.tools import (
    SpaceGuard,
    Task,
    bench,
    choose,
    compare,
    load_beir,
    load_questions,
    ranking,
    self_retrieval,
)
from embedkit_core.tools.tables import table

TASK = Task(
    "small",
    {f"d{i}": f"document number {i}" for i in range(30)},
    {f"q{i}": f"document number {i}" for i in range(10)},  # a symmetric fake gives them their document's vector
    {f"q{i}": {f"d{i}": 1} for i in range(10)},
)


def server_of(price="0.1", **settings):
    return FakeServer(asymmetric=False, usd_per_million=None if price is None else Decimal(price), **settings)


def compared(server, models=("fake:good",), task=TASK, **settings):
    return compare(models, task, base_url=server.url, cache=False, **settings)


# Tasks

HEAD = "query-id\tcorpus-id\tscore\n"


def write_beir(folder, corpus, queries, qrels):
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in corpus))
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    (folder / "qrels" / "test.tsv").write_text(HEAD + qrels)
    return folder


def test_a_folder_in_beir_layout_is_read(tmp_path):
    folder = write_beir(
        tmp_path / "mine",
        [{"_id": "1", "title": "Cats", "text": "They purr."}, {"_id": "2", "text": "Dogs bark."}],
        [{"_id": "a", "text": "Who purrs?"}, {"_id": "b", "text": "Without judgements."}],
        "a\t1\t2\na\t2\t0\n",
    )
    task = load_beir(folder)
    assert task.name == "mine"
    assert task.documents == {"1": "Cats They purr.", "2": " Dogs bark."}
    assert task.queries == {"a": "Who purrs?"}
    assert task.judgements == {"a": {"1": 2}}


def test_documents_left_out_of_a_data_set_are_reported(tmp_path):
    folder = write_beir(
        tmp_path / "mine",
        [{"_id": "1", "text": "They purr."}, {"_id": "2", "title": "", "text": " "}],
        [{"_id": "a", "text": "Who purrs?"}],
        "a\t1\t1\na\t2\t1\na\t3\t1\n",
    )
    task = load_beir(folder)
    assert (task.documents, task.judgements) == ({"1": " They purr."}, {"a": {"1": 1}})
    assert task.validity.endswith("1 empty document skipped; 2 relevant documents missing and ignored")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "corpus.jsonl").unlink(), r"corpus\.jsonl cannot be read \(No such file"),
        (
            lambda folder: (folder / "corpus.jsonl").write_text('{"_id": "1", "text": "x"}\n{"_id":\n'),
            "line 2: expected",
        ),
        (
            lambda folder: (folder / "queries.jsonl").write_text('{"id": "a"}\n'),
            r"queries\.jsonl, line 1: expected _id",
        ),
        (lambda folder: (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\na\t1\tx\n"), "line 2"),
        (
            lambda folder: (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n"),
            "no judged queries",
        ),
    ],
)
def test_a_broken_folder_is_refused_with_the_line(tmp_path, damage, message):
    folder = write_beir(tmp_path / "x", [{"_id": "1", "text": "x"}], [{"_id": "a", "text": "y"}], "a\t1\t1\n")
    damage(folder)
    with pytest.raises(ConfigurationError, match=message):
        load_beir(folder)


def test_questions_and_answers_are_read(tmp_path):
    file = tmp_path / "faq.csv"
    file.write_text("question,answer\nWho purrs?,A cat.\nWho meows?,A cat.\nWho barks?,A dog.\n")
    task = load_questions(file)
    assert set(task.documents.values()) == {"A cat.", "A dog."}
    assert [list(judged) for judged in task.judgements.values()] == [["answer 1"], ["answer 1"], ["answer 2"]]
    file.write_text("question,answer\nWho purrs?,A cat.\nWho meows?,\n")
    with pytest.raises(ConfigurationError, match=r"line 3: expected the columns 'question' and 'answer'"):
        load_questions(file)
    with pytest.raises(ConfigurationError, match="columns 'q'"):
        load_questions(file, question="q")
    file.write_text("question,answer\nWho purrs?,A cat.\nWell, who meows?,A cat.\n")
    with pytest.raises(ConfigurationError, match=r"line 3: expected 2 values; quote a text with ','"):
        load_questions(file)


def test_self_retrieval_splits_texts_and_states_its_validity():
    texts = [f"Title of page {i}\nBody of page {i}, which is long enough to stand alone." for i in range(12)]
    task = self_retrieval(texts)
    assert task.queries["3"] == "Title of page 3"
    assert task.documents["3"].startswith("Body of page 3")
    assert "no judgements" in task.validity
    plain = self_retrieval([f"{i} " + "word " * 40 for i in range(10)])
    assert len(plain.queries["0"]) == pytest.approx(len(plain.documents["0"]), abs=10)
    with pytest.raises(ConfigurationError, match=r"\(got 0\)"):
        self_retrieval(["short"] * 50)


# Ranking


def by_hand(ranks_of_relevant, n_relevant):
    gains = sum(1 / math.log2(rank + 1) for rank in ranks_of_relevant if rank <= 10)
    ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(n_relevant, 10) + 1))
    return gains / ideal


def test_metrics_equal_those_computed_by_hand():
    task = Task("t", {str(i): "x" for i in range(20)}, {"a": "x", "b": "x"}, {"a": {"3": 1, "7": 1}, "b": {"0": 1}})
    places = np.array([[9, 3, 8, 1, 7, *range(10, 20)], [*range(1, 12), 0, 12, 13, 14]])
    found = ranking.evaluate(task, places, (2, 5))
    assert found["nDCG@10"] == pytest.approx([by_hand([2, 5], 2), 0.0])
    assert found["MRR@10"] == pytest.approx([0.5, 0.0])
    assert found["recall@2"] == pytest.approx([0.5, 0.0])
    assert found["recall@5"] == pytest.approx([1.0, 0.0])


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 40), st.integers(1, 8), st.integers(0, 5))
def test_documents_are_ranked_by_cosine_and_ties_by_position(n, queries, seed):
    rng = np.random.default_rng(seed)
    documents = ranking.comparable(rng.integers(-1, 2, (n, 3)).astype(np.float32), "float32")
    asked = ranking.comparable(rng.standard_normal((queries, 3)).astype(np.float32), "float32")
    places, cosines = ranking.rank(documents, asked, depth=n)
    for row, values, query in zip(places, cosines, asked, strict=True):
        truth = documents @ query
        assert sorted(row.tolist()) == list(range(n))
        assert np.allclose(values, truth[row], atol=1e-5)
        for place in range(n - 1):
            assert (values[place], -row[place]) > (values[place + 1], -row[place + 1])


def test_packed_bits_are_compared_by_hamming_distance():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (20, 32)).astype(np.uint8)
    packed = np.packbits(bits, axis=1)
    as_binary = (packed.astype(np.int16) - 128).astype(np.int8)
    distances = (bits[:5, None, :] != bits[None, :, :]).sum(axis=2)
    for vectors, dtype in ((packed, "ubinary"), (as_binary, "binary")):
        rows = ranking.comparable(vectors, dtype)
        assert np.allclose(rows[:5] @ rows.T, 1 - 2 * distances / 32, atol=1e-6)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
@settings(deadline=None, max_examples=25)
def test_a_confidence_interval_contains_the_mean(values):
    score = ranking.with_interval(np.array(values))
    assert min(values) - 1e-9 <= score.low <= score.mean <= score.high <= max(values) + 1e-9


def test_p_values_distinguish_chance_from_a_difference():
    rng = np.random.default_rng(1)
    one = rng.random(200)
    assert ranking.p_value(one, one) == 1.0
    assert ranking.p_value(one, one - 0.2) < 0.01
    assert ranking.p_value(one, one + rng.normal(0, 0.3, 200)) > 0.01


# Compare


def test_a_perfect_model_scores_1_and_a_guessing_model_less():
    server = server_of()
    guessing = FakeServer(usd_per_million=Decimal("0.1"))
    found = compare(
        [{"model": "fake:good", "base_url": server.url}, {"model": "fake:guess", "base_url": guessing.url}],
        TASK,
        cache=False,
    )
    good, guess = found.candidates
    assert (good.model, good.quality, good.scores["recall@10"].mean) == ("fake:good", 1.0, 1.0)
    assert guess.quality < 0.9
    assert guess.p_value < 0.05
    assert good.p_value is None
    assert good.usage.tokens == 3 * 30  # the questions have the text of a document, and the model does not mind
    assert found.best is good


def test_a_failed_model_is_a_row_with_its_error(monkeypatch):
    monkeypatch.delenv("VOYAGE_API_KEY", raising=False)
    server = server_of()
    lines = []
    found = compare(
        [{"model": "fake:good", "base_url": server.url}, "voyage:voyage-4", "nobody:knows"],
        TASK,
        cache=False,
        log=lines.append,
    )
    assert [contender.error is None for contender in found.candidates] == [True, False, False]
    assert "No API key for voyage:voyage-4" in found.table()
    [row] = [line for line in choose(found, floor=0).table().splitlines() if "voyage-4" in line]
    assert [cell.strip() for cell in row.split("|")][5:9] == ["unknown"] * 4  # what it costs, and its index
    assert any(line.startswith("fake:good, documents: 30 texts, 0 from cache") for line in lines)
    assert json.loads(json.dumps(found.to_dict()))["models"][1]["error"]


def test_dimensions_and_dtypes_are_separate_rows_and_cut_vectors_cost_nothing(tmp_path, monkeypatch):
    from support.openai_server import OpenAIServer

    with OpenAIServer() as server:
        found = compare(
            ["text-embedding-3-small"],
            TASK,
            dimensions=(None, 256),
            dtypes=("float32", "ubinary"),
            base_url=server.base_url,
            api_key="test-key",
            cache=tmp_path,
        )
    names = {(c.dimensions, c.dtype): c for c in found.candidates}
    assert set(names) == {(1536, "float32"), (256, "float32"), (1536, "ubinary"), (256, "ubinary")}
    assert [c.bytes_per_vector for c in names.values() if c.dtype == "ubinary"] in ([192, 32], [32, 192])
    assert sum(c.usage.tokens > 0 for c in found.candidates) == 1
    assert {c.error for c in found.candidates} == {None}


def test_a_dtype_that_a_model_does_not_offer_is_an_error_of_that_row():
    server = server_of()
    found = compared(server, dtypes=("float32", "int8"))
    assert [contender.error is None for contender in found.candidates] == [True, False]


def test_tables_csv_and_dict_have_the_same_numbers():
    found = compared(server_of(), dimensions=(8, 4))
    rows = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert [row["model"] for row in rows] == ["fake:good"] * 2
    assert float(rows[0]["scores.nDCG@10.mean"]) == found.best.quality
    assert f"{found.best.quality:.4f} [" in found.table()
    assert found.to_dict()["models"][0]["scores"]["nDCG@10"]["mean"] == found.best.quality


def test_numeric_columns_with_unknown_values_are_right_aligned():
    printed = table(
        ["model", "tokens", "USD"], [["a", "8,192", "$0.02"], ["b", "?", "unknown"], ["c", "1", "(0.06)"]]
    ).splitlines()
    assert printed[1] == "| ----- | -----: | ------: |"
    assert printed[3] == "| b     |      ? | unknown |"


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_a_chart_is_drawn_and_labelled(tmp_path, kind):
    found = compared(server_of(), models=("fake:good", "fake:other"), dimensions=(8, 4))
    found.chart(tmp_path / f"chart.{kind}")
    data = (tmp_path / f"chart.{kind}").read_bytes()
    assert len(data) > 5000
    figure = found._figure()
    assert [axes.get_xlabel() for axes in figure.axes] == ["cost of 30 documents, USD", "dimensions"]
    assert figure.axes[0].xaxis.get_major_formatter()(0.00003, 0) == "$0.00003"
    assert all("nDCG@10" in axes.get_ylabel() for axes in figure.axes)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["fake:good", "fake:other"]
    with pytest.raises(ConfigurationError, match=r"\.png, \.svg, \.pdf"):
        found.chart(tmp_path / "chart.docx")


def test_a_comparison_without_models_or_tasks_is_refused():
    with pytest.raises(ConfigurationError, match="at least one model"):
        compare([], TASK)
    with pytest.raises(ConfigurationError, match=r"task: must be a Task .* load_beir\('scifact'\)"):
        compare("fake:good", "scifact")
    with pytest.raises(ConfigurationError, match="sizes: contains no job size"):
        bench("fake:good", sizes=())
    server = server_of()
    with pytest.raises(ConfigurationError, match=r"most: must be an integer of at least 1 \(got 0\)"):
        bench("fake:good", most=0, base_url=server.url)
    assert server.received == []
    with pytest.raises(ConfigurationError, match="missing"):
        Task("t", {"a": "x"}, {"q": "y"}, {"q": {"b": 1}})


# Choose


@pytest.fixture
def two():
    """An expensive model that is good and a cheap model that guesses."""
    good, bad = server_of("10"), FakeServer(usd_per_million=Decimal("0.1"))
    models = [{"model": "fake:good", "base_url": good.url}, {"model": "fake:guess", "base_url": bad.url}]
    yield compare(models, TASK, cache=False)
    assert good.received
    assert bad.received


def test_the_cheapest_model_above_the_floor_is_chosen(two):
    assert choose(two, floor=0.0).chosen.candidate.model == "fake:guess"
    choice = choose(two, floor=0.99, corpus_texts=1_000_000, queries_per_month=1000)
    assert choice.chosen.candidate.model == "fake:good"
    [other] = [option for option in choice.options if option is not choice.chosen]
    assert "is below 0.99" in other.rejected
    tokens = two.best.corpus_tokens / 30 * 1_000_000
    assert choice.chosen.corpus_usd == pytest.approx(Decimal(tokens) * 10 / 1_000_000)
    assert choice.chosen.total_usd == pytest.approx(choice.chosen.corpus_usd + 12 * choice.chosen.month_usd)


def test_the_best_model_within_the_budget_is_chosen(two):
    assert choose(two, budget_usd=1000, corpus_texts=1000).chosen.candidate.model == "fake:good"
    choice = choose(two, budget_usd="0.01", corpus_texts=10_000)
    assert choice.chosen.candidate.model == "fake:guess"
    assert "exceeds $0.01" in choice.table()


def test_if_no_model_fits_the_table_gives_the_reasons(two):
    choice = choose(two, floor=0.99, budget_usd="0.000001", corpus_texts=10_000)
    assert choice.chosen is None
    assert "exceeds" in choice.table()
    with pytest.raises(ConfigurationError, match="No model meets the criteria"):
        choice.embedder()
    with pytest.raises(ConfigurationError, match=r"floor=.*budget_usd=, or both"):
        choose(two)


@pytest.mark.parametrize("floor", [2, -0.1, float("nan"), True, "0.9"])
def test_a_floor_that_no_score_can_have_is_refused(two, floor):
    with pytest.raises(ConfigurationError, match=r"floor: must be an nDCG@10, from 0 to 1"):
        choose(two, floor=floor)


def test_cached_texts_reduce_the_cost(tmp_path):
    server = server_of("10")
    found = compare(["fake:good"], TASK, base_url=server.url, cache=tmp_path)
    texts = list(TASK.documents.values())
    settings = {"base_url": server.url, "cache": tmp_path}
    assert choose(found, floor=0, texts=texts, **settings).chosen.corpus_usd == 0
    assert choose(found, floor=0, texts=[*texts, "a new one"], **settings).chosen.corpus_usd > 0


def test_the_chosen_embedder_is_built(two):
    server = server_of()
    embedder = choose(two, floor=0.0).embedder(base_url=server.url, cache=False)
    assert (embedder.model, embedder.dimensions) == ("fake:guess", 8)


def test_a_model_of_unknown_price_is_never_chosen():
    choice = choose(compared(server_of(None)), floor=0)
    assert choice.chosen is None
    assert "price unknown" in choice.table()


def test_a_guard_accepts_vectors_of_one_space_only():
    server, other = server_of(), server_of()
    one = Embedder("fake:model", base_url=server.url, cache=False)
    guard = SpaceGuard()
    guard.check(one.embed(["text"]))
    guard.check(one)
    kept = SpaceGuard(guard.space)
    with pytest.raises(ConfigurationError, match="must not be compared"):
        kept.check(Embedder("fake:other", base_url=other.url, cache=False).embed(["text"]))


# Bench


def test_a_benchmark_measures_several_settings_and_recommends_one(tmp_path):
    server = FakeServer(latency=0.01, usd_per_million=Decimal("0.02"))
    lines = []
    found = bench("fake:model", sizes=(64, 128), most=4, max_batch_texts=8, base_url=server.url, log=lines.append)
    assert lines[0].startswith("fake:model: up to ")
    assert "about $" in lines[0]
    assert {(run.texts, run.concurrency) for run in found.runs} >= {(64, 1), (128, 1)}
    took = {run.concurrency: run.seconds for run in found.runs if run.texts == 128}
    assert found.speed_up(128) == took[1] / took[found.concurrency]
    assert f"use max_concurrency={found.concurrency}" in found.table()
    assert found.latency(50) <= found.latency(99)
    assert found.usage.tokens == sum(len(text.split()) * n for text, n in server.billed.items())
    assert set(server.billed.values()) == {1}
    found.chart(tmp_path / "bench.png")
    found.report(tmp_path / "bench.html")
    assert (tmp_path / "bench.png").stat().st_size > 5000
    assert json.loads(json.dumps(found.to_dict()))["max_concurrency"] == found.concurrency


def test_a_benchmark_uses_given_texts_and_sends_each_once():
    server = FakeServer()
    bench("fake:model", sizes=(20,), most=2, texts=["my own text"], base_url=server.url)
    assert all(text.startswith("my own text ") for seen in server.received for text in seen.texts)
    assert set(server.billed.values()) == {1}
