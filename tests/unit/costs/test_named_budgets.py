"""Named budgets: limits in integers, errors, and what is refused before anything is sent."""

import copy
import multiprocessing
import pickle
import threading
from concurrent.futures import ProcessPoolExecutor
from decimal import Decimal

import pytest
from support.caches import DictCache
from support.coordinators import LoneCoordinator, settled_budget
from support.embedders import core_embedder, fake_embedder, texts_sent
from support.openai_client import MODEL
from support.openai_server import tokens_of
from support.rows import check_rows

from embedkit_core import BudgetError, ConfigurationError, Embedder, track_usage
from embedkit_core.common.errors import CoordinationError
from embedkit_core.coordination.local.coordinator import LocalCoordinator
from embedkit_core.coordination.opening import LOCAL_FOLDER
from embedkit_core.costs.amounts import Amount, BudgetLimit, BudgetStatus
from embedkit_core.costs.billing import CallBilling, budget_error, shared_budget_error
from embedkit_core.costs.budget import Budget
from embedkit_core.testing import FakeServer
from langchain_embedkit.usage import get_embedding_usage

PRICE = Decimal(1_000_000)  # one dollar per token
NAMED = {"budget_tokens": 1000, "budget_name": "ingest"}


def test_a_limit_in_usd_is_rounded_down_to_a_nano_usd():
    assert Budget(Decimal("0.0000000019"), 5).limit == BudgetLimit(1, 5)
    assert Budget(Decimal(10**9)).limit == BudgetLimit(10**18, None)


def test_the_limit_of_a_named_budget_applies_here_to_reservations_only():
    """Other processes spend too, and the spending may be reset: only the coordinator counts it."""
    budget = Budget(Decimal(10), 10, "ingest")
    budget.reserve(8, PRICE)
    assert not budget.allows(3, PRICE)
    budget.settle(8, 8, PRICE)
    budget.reserve(5, PRICE)
    budget.mark_unconfirmed(5, PRICE)
    assert budget.allows(10, PRICE)
    assert not budget.allows(11, PRICE)
    assert (budget.spent_tokens, budget.unconfirmed_tokens) == (8, 5)


def test_the_error_of_a_named_budget_has_the_amounts_of_all_processes():
    status = BudgetStatus("ingest", BudgetLimit(5 * 10**9, 1000), Amount(10**9, 100), Amount(1, 0), Amount(10**9, 50))
    error = shared_budget_error(status, 4, PRICE)
    assert str(error) == (
        "The budget 'ingest' of $5 has $2.99 left, but a text may cost up to $4.00. Reset it (rag-embedkit budget "
        "reset), or use a larger one with another budget_name=."
    )
    assert (error.budget_name, error.limit_usd, error.spent_usd) == ("ingest", 5, Decimal("1.000000001"))
    assert (error.limit_tokens, error.spent_tokens, error.needed_tokens) == (1000, 100, 4)
    error = shared_budget_error(status, 900, None)
    assert "has an unknown price. Set prices=." in str(error)
    error = shared_budget_error(status, 900, Decimal(1))
    assert "of 1,000 tokens has 850 left, but a text may need up to 900 tokens" in str(error)


def test_the_error_of_a_text_above_a_named_budget_claims_no_spending():
    error = budget_error(Budget(None, 10, "ingest"), 11, None)
    assert "The budget 'ingest' of 10 tokens has at most 10 left, but a text" in str(error)
    assert (error.spent_usd, error.spent_tokens) == (None, None)


def test_the_amounts_of_a_named_budget_are_not_replaced_by_those_of_a_budget_here():
    error = shared_budget_error(BudgetStatus("ingest", BudgetLimit(None, 10), Amount(0, 5)), 6, None)
    budgets = [Budget(None, 10), Budget(None, 10, "ingest")]
    for budget in budgets:
        budget.reserve(9, None)
    assert CallBilling((), None, budgets).refresh_errors({0: error}) == {0: error}


def test_an_invalid_name_of_a_budget_is_refused():
    def check(value):
        with pytest.raises(ConfigurationError, match="budget_name: must be a string of 1 to 100 printable characters"):
            track_usage(budget_usd=1, budget_name=value)

    check_rows(["", "a\nb", "x" * 101, 1, True, b"name", "\ud800"], check)


def test_a_name_without_a_budget_is_refused():
    with pytest.raises(ConfigurationError, match=r"budget_name: has no budget \(got 'ingest'\)\. Set budget_usd="):
        track_usage(budget_name="ingest")


def test_a_named_budget_needs_a_coordinator(embedder_class, tmp_path):
    def check(options):
        with pytest.raises(ConfigurationError, match=r"budget_name: needs a coordinator.*\(got 'ingest' without one\)"):
            embedder_class(model="openai:text-embedding-3-small", api_key="key", **NAMED, **options)

    check_rows([{"cache": False}, {"cache": DictCache()}, {"cache": str(tmp_path), "coordination": False}], check)
    made = embedder_class(model="openai:text-embedding-3-small", api_key="key", cache=str(tmp_path), **NAMED)
    assert core_embedder(made).budget.name == "ingest"


def test_a_block_with_a_named_budget_refuses_embedders_without_a_coordinator():
    server = FakeServer()
    embedder = fake_embedder(server)
    with track_usage(**NAMED):
        for call in (embedder.embed, embedder.embed_documents, lambda texts: list(embedder.embed_iter(texts))):
            with pytest.raises(ConfigurationError, match="budget_name: needs a coordinator"):
                call(["a"])
    with (
        get_embedding_usage(**NAMED),
        pytest.raises(ConfigurationError, match="budget_name: needs a coordinator"),
    ):
        embedder.embed(["a"])
    assert not server.received


def test_a_named_budget_belongs_to_one_coordinator():
    server = FakeServer()
    with track_usage(**NAMED):
        fake_embedder(server, coordination=LoneCoordinator()).embed(["a"])
        other = fake_embedder(server, coordination=LoneCoordinator())
        with pytest.raises(
            ConfigurationError, match=r"'ingest' is used with two coordinators \(LoneCoordinator and LoneCoordinator\)"
        ):
            other.embed(["b"])
    assert len(server.received) == 1


def test_a_named_budget_is_opened_once_before_the_first_text_is_sent(tmp_path):
    server, mine = FakeServer(), LoneCoordinator()
    fake_embedder(server, cache=tmp_path).embed(["hit"])
    embedder = fake_embedder(server, cache=tmp_path, coordination=mine, **NAMED)
    embedder.embed(["hit"])
    assert mine.opened == []
    for text in ("a", "b"):
        copy.copy(embedder).embed([text])
    assert mine.opened == [("ingest", threading.current_thread())]
    assert mine.limits == {"ingest": BudgetLimit(None, 1000)}


async def test_a_named_budget_is_opened_off_the_event_loop():
    mine = LoneCoordinator()
    await fake_embedder(FakeServer(), coordination=mine).aembed(["a"])  # the engine runs
    embedder = fake_embedder(FakeServer(), coordination=mine, **NAMED)
    await embedder.aembed(["b"])
    [(name, thread)] = mine.opened
    assert (name, thread is threading.current_thread()) == ("ingest", False)


def test_another_amount_for_the_same_name_is_refused_before_anything_is_sent():
    server, mine = FakeServer(), LoneCoordinator()
    fake_embedder(server, coordination=mine, **NAMED).embed(["a"])
    with pytest.raises(ConfigurationError, match="'ingest' exists with another budget"):
        fake_embedder(server, coordination=mine, budget_name="ingest", budget_tokens=7).embed(["b"])
    assert len(server.received) == 1


@pytest.mark.parametrize(
    ("failure", "reason"),
    [(CoordinationError("the disk is full."), "the disk is full"), (ValueError("hunter2"), "ValueError")],
)
def test_a_named_budget_that_cannot_be_checked_refuses_and_hits_are_served(tmp_path, failure, reason):
    server, mine = FakeServer(), LoneCoordinator(failure)
    fake_embedder(server, cache=tmp_path).embed(["hit"])
    embedder = fake_embedder(server, cache=tmp_path, coordination=mine, on_error="return", **NAMED)
    result = embedder.embed(["hit", "miss"])
    assert (result.usage.cache_hits, list(result.failed)) == (1, [1])
    error = result.failed[1]
    assert isinstance(error, BudgetError)
    assert str(error) == f"The budget 'ingest' cannot be checked: {reason}. Nothing was sent."
    assert error.budget_name == "ingest"
    mine.failure = None
    assert embedder.embed(["miss"]).usage.sent == 1
    assert len(server.received) == 2


def test_an_embedder_with_a_named_budget_can_be_pickled(embedder_class, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    made = embedder_class(model="openai:text-embedding-3-small", cache=str(tmp_path), **NAMED)
    budget = core_embedder(pickle.loads(pickle.dumps(made))).budget
    assert (budget.name, budget.limit) == ("ingest", BudgetLimit(None, 1000))


def test_a_changed_copy_of_an_adapter_shares_its_named_budget_with_the_same_coordinator(framework_class, tmp_path):
    made = framework_class(model="openai:text-embedding-3-small", api_key="key", cache=str(tmp_path / "a"), **NAMED)
    assert made.model_copy(update={"timeout": 5.0}).embedder.budget is made.embedder.budget
    moved = made.model_copy(update={"cache": str(tmp_path / "b")})
    assert moved.embedder.budget is not made.embedder.budget
    assert moved.embedder.budget.name == "ingest"


def test_processes_share_a_named_budget_which_can_be_reset_while_they_run(server, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", server.api_key)
    embedder = Embedder(
        MODEL, base_url=server.base_url, cache=tmp_path, budget_tokens=600, budget_name="ingest", on_error="return"
    )
    texts = [[f"text {job} {n}" for n in range(60)] for job in range(4)]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        theirs = [pool.submit(embedder.embed, part) for part in texts[:2]]
        results = [embedder.embed(part) for part in texts[2:]] + [job.result(100) for job in theirs]
        budget = settled_budget(tmp_path)
        billed = sum(map(tokens_of, texts_sent(server)))
        assert budget.spent.tokens == billed == sum(result.usage.tokens for result in results) <= 600
        assert budget.held == budget.lost == Amount()
        refused = [error for result in results for error in result.failed.values()]
        assert {type(error) for error in refused} == {BudgetError}
        assert 600 - billed < max(error.needed_tokens for error in refused)
        assert refused[-1].spent_tokens <= 600
    long_text = "word " * 60
    assert isinstance(embedder.embed([long_text]).failed[0], BudgetError)
    LocalCoordinator(tmp_path / LOCAL_FOLDER).reset_budget("ingest")
    assert embedder.embed([long_text]).usage.sent == 1
    embedder.close()
