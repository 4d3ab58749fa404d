"""A comparison pays once, states its cost first, and builds what it compared."""

from decimal import Decimal

import numpy as np
import pytest
from support.embedders import MINILM, needs_local_model
from support.openai_server import OpenAIServer

from embedkit_core import ConfigurationError, Embedder
from embedkit_core.testing import FakeServer
from embedkit_core.tools import SpaceGuard, Task, bench, choose, compare, load_questions
from embedkit_core.tools.ranking import comparable, holm, rank
from langchain_embedkit import EmbedKitEmbeddings

DOCUMENTS = {f"d{n}": f"document number {n}" for n in range(30)}
QUERIES = {f"q{n}": f"question number {n}" for n in range(12)}
TASK = Task("numbers", DOCUMENTS, QUERIES, {f"q{n}": {f"d{n}": 1} for n in range(12)})
CUT = {"dimensions": 64, "allowed_dimensions": [8, 16, 32, 64], "cut": "prefix"}
TEXTS = len(DOCUMENTS) + len(QUERIES)


@pytest.fixture
def server():
    return FakeServer(asymmetric=False, dimensions=64, usd_per_million=Decimal("0.02"))


def words(server, **settings):
    return {"model": "fake:words", "base_url": server.url, **settings}


@pytest.mark.parametrize("kept", [False, True], ids=["cache=False", "a folder"])
def test_dimensions_and_dtypes_of_a_model_are_paid_once_with_and_without_a_cache(server, tmp_path, kept):
    rows = compare(
        words(server, model_info=CUT),
        TASK,
        dimensions=(16, None, 8),
        dtypes=("binary", "float32"),
        cache=tmp_path if kept else False,
    )
    assert {one.error for one in rows.candidates} == {None}
    assert {(one.dimensions, one.dtype) for one in rows.candidates} == {
        (width, dtype) for width in (8, 16, 64) for dtype in ("float32", "binary")
    }
    assert set(server.billed.values()) == {1}
    assert sum(server.billed.values()) == TEXTS


def test_a_row_that_would_be_paid_again_is_refused_with_the_fix(server):
    rows = compare(words(server), TASK, dimensions=(None, 16), cache=False)
    assert [(one.dimensions, one.error is None) for one in rows.candidates] == [(64, True), (16, False)]
    assert "list it as a separate model" in rows.candidates[1].error
    assert sum(server.billed.values()) == TEXTS
    own = compare([words(server, dimensions=16)], TASK, dimensions=(None, 8), cache=False)
    assert [(one.dimensions, one.error) for one in own.candidates] == [(16, None)]


def test_the_cost_of_all_models_is_logged_before_anything_is_sent(server):
    sent = []
    compare(
        [words(server), words(server, dimensions=16)],
        TASK,
        cache=False,
        log=lambda line: sent.append((len(server.received), line)),
    )
    lines = [line for requests, line in sent if not requests]
    assert [line.split(":")[1].rsplit(", ", 1)[1] for line in lines] == ["documents", "queries"] * 2


def test_one_budget_holds_for_all_models():
    cheap, dear = (FakeServer(usd_per_million=Decimal(price)) for price in ("0.02", "1000"))
    models = [{"model": f"fake:{name}", "base_url": one.url} for name, one in (("cheap", cheap), ("dear", dear))]
    rows = compare(models, TASK, cache=False, budget_usd="0.01")
    assert [(one.model, one.error is None) for one in rows.candidates] == [("fake:cheap", True), ("fake:dear", False)]
    assert "The budget of $0.01" in rows.candidates[1].error


def test_recall_is_computed_to_the_requested_depth(server):
    documents = {f"d{n}": f"document number {n}" for n in range(250)}
    task = Task("deep", documents, QUERIES, TASK.judgements)
    found = compare(words(server), task, ks=(5, 250), cache=False)
    assert found.best.scores["recall@250"].mean == 1


def test_truncated_texts_are_counted(caplog):
    server = FakeServer(max_words=2, cuts=True)
    found = compare(words(server), TASK, dtypes=("float32", "float16", "binary"), cache=False)
    assert {one.truncated for one in found.candidates} == {TEXTS}
    assert f"{TEXTS} texts truncated to the model's limit" in found.table()
    assert caplog.text.count("Logged once per embedder") == 1


def test_the_chosen_embedder_has_the_settings_of_the_comparison(server, tmp_path):
    found = compare(words(server, model_info=CUT), TASK, dimensions=(16,), cache=tmp_path)
    choice = choose(found, floor=0, texts=[*DOCUMENTS.values(), "one more"])
    assert choice.chosen.corpus_usd < Decimal("0.000001")  # of the one that is new
    with choice.embedder(max_concurrency=2) as embedder:
        requests = len(server.received)
        embedder.embed([*DOCUMENTS.values()])
        assert len(server.received) == requests
        assert embedder.space == choice.chosen.candidate.space
        assert embedder.settings.max_concurrency == 2


def test_the_tokens_of_a_model_are_equal_in_every_row_and_every_run(server, tmp_path):
    before = Embedder(**words(server, cache=False)).estimate(DOCUMENTS.values()).tokens
    given = {"dimensions": (None, 8), "dtypes": ("float32", "binary"), "cache": tmp_path}
    runs = [compare(words(server, model_info=CUT), TASK, **given) for _ in range(2)]
    assert [sum(one.usage.sent for one in run.candidates) for run in runs] == [TEXTS, 0]
    assert {one.corpus_tokens for run in runs for one in run.candidates} == {before}
    assert len({one.query_tokens for run in runs for one in run.candidates}) == 1
    weighed = [choose(run, floor=0, texts=[*DOCUMENTS.values(), "one more"], cache=False) for run in runs]
    assert weighed[0].table() == weighed[1].table()


@needs_local_model
def test_the_tokens_of_a_local_model_do_not_exceed_its_limit():
    task = Task("long", {"d": "word " * 5000, "e": "another " * 5000}, {"q": "word"}, {"q": {"d": 1}})
    found = compare(MINILM, task, dtypes=("float32", "float16", "ubinary"), cache=False)
    assert {(one.error, one.corpus_tokens) for one in found.candidates} == {(None, 2 * 256)}


def test_the_api_key_of_a_comparison_is_never_shown():
    with OpenAIServer(api_key="sk-secret-of-mine") as server:
        settings = {"base_url": server.base_url, "api_key": "sk-secret-of-mine", "cache": False}
        found = compare("openai:text-embedding-3-small", TASK, **settings)
        assert found.best.error is None
        assert not [text for text in (repr(found), found.table(), str(found.to_dict())) if "sk-secret" in text]
        assert choose(found, floor=0).embedder().embed(["a"]).usage.sent == 1


def test_p_values_are_corrected_for_many_comparisons():
    assert holm([0.01, 0.04, 0.03, 0.9]) == pytest.approx([0.04, 0.09, 0.09, 0.9])
    assert holm([]) == []


def test_the_block_size_does_not_change_the_ranking(monkeypatch):
    rng = np.random.default_rng(0)
    documents = comparable(np.repeat(rng.standard_normal((9, 16)), 4, axis=0).astype(np.float32), "float32")
    queries = comparable(rng.standard_normal((7, 16)).astype(np.float32), "float32")
    whole, _ = rank(documents, queries, 20)
    monkeypatch.setattr("embedkit_core.tools.ranking.DOCUMENTS_PER_BLOCK", 5)
    assert rank(documents, queries, 20)[0].tolist() == whole.tolist()
    assert whole.tolist() == np.argsort(-(queries @ documents.T).round(6), axis=1, kind="stable")[:, :20].tolist()


@pytest.mark.parametrize("parts", [",", ";", "\t"])
def test_a_question_with_two_right_answers_is_one_question(tmp_path, parts):
    lines = [["question", "answer"], ["who?", "me"], ["who?", "you"], ["why?", "me"]]
    (tmp_path / "faq.csv").write_text("\n".join(map(parts.join, lines)))
    task = load_questions(tmp_path / "faq.csv")
    assert [*task.queries.values()] == ["who?", "why?"]
    assert [[task.documents[name] for name in right] for right in task.judgements.values()] == [["me", "you"], ["me"]]


def test_a_file_in_another_encoding_is_refused_with_its_name(tmp_path):
    (tmp_path / "faq.csv").write_bytes(b"question,answer\nwo?,M\xfcnchen\n")
    with pytest.raises(
        ConfigurationError, match=r"faq\.csv cannot be read \(it is not UTF-8\)\. Convert it to UTF-8\."
    ):
        load_questions(tmp_path / "faq.csv")


def test_a_guard_refuses_a_space_of_unknown_width():
    with OpenAIServer() as server:
        embedder = Embedder("unheard-of", base_url=server.base_url, api_key=server.api_key, cache=False)
        guard = SpaceGuard()
        with pytest.raises(ConfigurationError, match="Embed a text first"):
            guard.check(embedder)
        result = guard.check(embedder.embed(["a"]))
        assert guard.space == result.space
        assert guard.check(embedder) is embedder


def test_a_guard_accepts_framework_classes_and_refuses_objects_without_a_space():
    with OpenAIServer() as server:
        given = {"base_url": server.base_url, "api_key": server.api_key, "cache": False}
        model = EmbedKitEmbeddings(model="openai:text-embedding-3-small", **given)
        guard = SpaceGuard(model.embedder.space)
        assert guard.check(model) is model
        with pytest.raises(ConfigurationError, match="must not be compared"):
            guard.check(EmbedKitEmbeddings(model="openai:text-embedding-3-large", **given))
    with pytest.raises(ConfigurationError, match="ndarray has no vector space"):
        guard.check(np.zeros((1, 8)))


def test_all_requests_of_a_benchmark_are_in_its_usage(server):
    found = bench("fake:model", sizes=(20, 40), most=2, base_url=server.url)
    assert found.usage.sent == sum(server.billed.values())
