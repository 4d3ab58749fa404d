"""Budgets of this process that batches reserve and settle, from any thread."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import pytest
from support.embedders import fake_embedder

from embedkit_core import BudgetError, EmbedKitError, track_usage
from embedkit_core.common.fork_safety import ForkLock
from embedkit_core.costs.billing import CallBilling
from embedkit_core.costs.budget import Budget
from embedkit_core.engine.runtime import engine as engines
from embedkit_core.engine.runtime.batch_budgets import reserve_batch, settle_batch
from embedkit_core.engine.runtime.process import engine
from embedkit_core.testing import FakeServer

PRICE = Decimal(1_000_000)  # one dollar per token


def test_a_batch_is_reserved_in_all_budgets_of_the_process_or_in_none():
    usd, tokens, named = Budget(Decimal(10)), Budget(None, 7), Budget(None, 1, "ingest")
    billing = CallBilling((), PRICE, [usd, tokens, named])
    refusal = reserve_batch(billing, 8)
    assert isinstance(refusal, BudgetError)
    assert "The budget of 7 tokens has 7 left, but the batch may need up to 8 tokens. Increase" in str(refusal)
    assert (usd.reserved_tokens, tokens.reserved_tokens, named.reserved_tokens) == (0, 0, 0)
    assert reserve_batch(billing, 6) is None
    assert (usd.left_usd, tokens.left_tokens, named.reserved_tokens) == (4, 1, 0)
    usage = settle_batch(billing, 4, 3)
    assert (usage.tokens, usage.priced_usd) == (3, 3)
    usage = settle_batch(billing, 2, 0, lost=2)
    assert (usage.possibly_billed_tokens, usage.possibly_billed_usd) == (2, 2)
    assert (usd.reserved_usd, usd.spent_usd, usd.unconfirmed_usd, usd.left_usd) == (0, 3, 2, 5)


def test_an_unknown_price_refuses_a_batch_with_a_budget_in_usd():
    with pytest.raises(BudgetError, match=r"but the batch has an unknown price\. Set prices="):
        raise reserve_batch(CallBilling((), None, [Budget(Decimal(10))]), 1)


def test_a_call_does_not_wait_for_what_a_batch_has_reserved():
    with track_usage(budget_tokens=100) as usage:
        billing = CallBilling((), PRICE, [usage.budget])
        assert reserve_batch(billing, 100) is None
        with pytest.raises(BudgetError, match="The budget of 100 tokens has 0 left"):
            fake_embedder(FakeServer()).embed(["a text"])
        settle_batch(billing, 100, 0)
        assert fake_embedder(FakeServer()).embed(["a text"]).usage.sent == 1


def test_threads_never_reserve_more_than_a_budget_has():
    budget = Budget(None, 100)
    billing = CallBilling((), PRICE, [budget])
    with ThreadPoolExecutor(8) as pool:
        refusals = list(pool.map(lambda _: reserve_batch(billing, 7), range(40)))
    assert refusals.count(None) == 14
    assert (budget.reserved_tokens, budget.held_tokens) == (98, 98)


def test_a_reservation_whose_caller_was_interrupted_is_released(monkeypatch):
    budget = Budget(None, 100)

    def interrupted(self, timeout):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(engines.WakeFlag, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            reserve_batch(CallBilling((), PRICE, [budget]), 7)
    assert engine().run(lambda: (budget.reserved_tokens, budget.held_tokens)) == (0, 0)


def test_the_engine_runs_a_function_on_its_thread_and_returns_its_result_or_error():
    running = engine()
    assert running.run(threading.current_thread) is running.thread
    assert running.run(lambda: running.run(threading.current_thread)) is running.thread
    with pytest.raises(ZeroDivisionError):
        running.run(lambda: 1 / 0)
    holder = ForkLock()
    with holder.lock, pytest.raises(EmbedKitError, match="A signal handler or finalizer has interrupted"):
        running.run(int)


PROGRAM = """
import atexit, os
atexit.register(lambda: (settle_batch(billing, 7, 3), print(budget.spent_tokens, budget.left_tokens)))  # runs last
from decimal import Decimal
from embedkit_core.costs.billing import CallBilling
from embedkit_core.costs.budget import Budget
from embedkit_core.engine.runtime.batch_budgets import reserve_batch, settle_batch
from embedkit_core.engine.runtime.process import engine
budget = Budget(None, 10)
billing = CallBilling((), Decimal(1), [budget])
assert reserve_batch(billing, 7) is None
parent = engine()
if hasattr(os, "fork"):
    child = os.fork()
    if child == 0:
        settle_batch(billing, 7, 2)
        os._exit(parent.run(lambda: budget.left_tokens))  # the thread of the parent's engine is gone
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 8
"""


def test_a_batch_is_settled_in_a_forked_child_and_after_the_engine_has_ended():
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, timeout=60)
    assert (run.stdout, run.stderr, run.returncode) == ("3 7\n", "", 0)
