"""The commands `budget list` and `budget reset`, and what the cache commands do to the coordination file."""

import json
import sqlite3
from decimal import Decimal

import pytest
from support.coordinators import settled_budget
from support.embedders import texts_sent
from support.inputs import MODEL, TEXTS, lines
from support.openai_server import tokens_of

from embedkit_core.cli.console import BUDGET, REFUSED, USAGE
from embedkit_core.common.money import format_usd
from embedkit_core.coordination.opening import LOCAL_FOLDER, coordinator_of_folder
from embedkit_core.costs.amounts import BudgetLimit

NAMED = ("--budget-usd", "1", "--budget-name", "ingest", "--cache", "mine")


@pytest.fixture
def spent(shell, server, tmp_path):
    """A cache folder with the named budget of a command that has sent 40 texts; what they cost in USD."""
    code, out, err = shell("cache", "warm", lines(tmp_path / "in.txt", TEXTS), "-m", MODEL, *NAMED, "-y", "--json")
    assert code == 0, err
    settled_budget(tmp_path / "mine")
    return json.loads(out)["priced_usd"]


def budgets(shell, folder="mine"):
    return json.loads(shell("budget", "list", "--cache", folder, "--json")[1])


def shown(usd):
    return format_usd(Decimal(usd))


def test_a_budget_is_listed_with_its_amounts(shell, spent):
    [budget] = budgets(shell)
    left = budget.pop("left_usd")
    assert float(left) == pytest.approx(1 - float(spent))
    assert budget == {
        "name": "ingest",
        "limit_usd": "1",
        "spent_usd": spent,
        "possibly_billed_usd": "0",
        "reserved_usd": "0",
        "limit_tokens": None,
        "spent_tokens": budget["spent_tokens"],
        "possibly_billed_tokens": 0,
        "reserved_tokens": 0,
        "left_tokens": None,
    }
    _, text, _ = shell("budget", "list", "--cache", "mine")
    head, _, row = text.splitlines()
    assert [cell.strip() for cell in head.split("|")[1:-1]] == [
        "name", "limit", "spent", "possibly billed", "reserved", "left",
    ]  # fmt: skip
    assert [cell.strip() for cell in row.split("|")[1:-1]] == ["ingest", "$1", shown(spent), "$0", "$0", "$0.99"]


def test_a_budget_is_reset_after_confirmation(shell, spent):
    code, _, err = shell("budget", "reset", "ingest", "--cache", "mine")
    assert code == REFUSED
    assert (
        f"confirmation required to reset the budget 'ingest', of which {shown(spent)} of $1 are spent. Add --yes" in err
    )
    assert [budget["spent_usd"] for budget in budgets(shell)] == [spent]
    code, _, err = shell("budget", "reset", "ingest", "--cache", "mine", "-y")
    assert (code, err) == (0, f"budget 'ingest' reset; {shown(spent)} of $1 were spent\n")
    assert budgets(shell) == []


def test_an_unknown_budget_is_refused_with_the_right_name(shell, spent, tmp_path):
    code, _, err = shell("budget", "reset", "injest", "--cache", "mine", "-y")
    assert (code, err) == (
        USAGE, f"rag-embedkit: NAME: {tmp_path / 'mine'} has no budget 'injest'; did you mean 'ingest'?\n",
    )  # fmt: skip
    _, _, err = shell("budget", "reset", "q", "--cache", "mine", "-y")
    assert err.endswith("has no budget 'q'; its budgets: ingest\n")


def test_a_budget_in_tokens_is_listed_in_tokens(shell, tmp_path):
    (tmp_path / "mine").mkdir()
    coordinator = coordinator_of_folder(tmp_path / "mine").open()
    coordinator.open_budget("both", BudgetLimit(5 * 10**8, 2000))
    coordinator.open_budget("tokens", BudgetLimit(None, 1000))
    rows = [line.split("|") for line in shell("budget", "list", "--cache", "mine")[1].splitlines()[2:]]
    assert [[cell.strip() for cell in (row[1], row[2], row[-2])] for row in rows] == [
        ["both", "$0.5 and 2,000 tokens", "$0.50 and 2,000 tokens"],
        ["tokens", "1,000 tokens", "1,000 tokens"],
    ]
    coordinator.close()


def test_a_folder_without_budgets_has_none_and_nothing_is_created(shell, tmp_path):
    (tmp_path / "empty").mkdir()
    assert shell("budget", "list", "--cache", "empty") == (0, f"{tmp_path / 'empty'}: no budgets\n", "")
    assert budgets(shell, "empty") == []
    assert shell("budget", "reset", "x", "--cache", "empty", "-y")[0] == USAGE
    assert list((tmp_path / "empty").iterdir()) == []
    assert shell("budget", "list")[1].endswith("no budgets\n")
    assert not (tmp_path / "home").exists()
    code, _, err = shell("budget", "list", "--cache", "absent")
    assert code == USAGE
    assert err.startswith("rag-embedkit: --cache: the folder does not exist (got 'absent').")


def test_a_named_budget_limits_the_commands_together(shell, server, tmp_path):
    texts, others = (lines(tmp_path / f"{mark}.txt", [f"{mark} {text}" for text in TEXTS]) for mark in "ab")
    limit = Decimal("0.000005")
    tight = ("-m", MODEL, "--budget-usd", limit, "--budget-name", "tight", "--cache", "mine", "-y", "-q")
    shell("cache", "warm", texts, *tight)
    code, _, err = shell("cache", "warm", others, *tight)
    assert (code, "The budget 'tight' of $0.000005 has $" in err) == (BUDGET, True), err
    settled_budget(tmp_path / "mine")
    [budget] = budgets(shell)
    assert Decimal(budget["spent_usd"]) == sum(map(tokens_of, texts_sent(server))) * Decimal("0.00000002") <= limit
    code, _, err = shell("cache", "warm", lines(tmp_path / "c.txt", ["c"]), "-m", MODEL, "--budget-usd", 2, *tight[4:])
    assert (code, "--budget-name: 'tight' exists with a budget of $0.000005" in err) == (USAGE, True), err


def test_a_name_without_a_budget_or_a_cache_is_refused_in_words_of_the_command(shell, tmp_path):
    texts = lines(tmp_path / "in.txt", TEXTS)
    embed = ("embed", texts, "-o", "o.npy", "-m", MODEL, "-y", "--budget-name", "x")
    code, _, err = shell(*embed)
    assert (code, "--budget-name: has no budget (got 'x'). Set --budget-usd or" in err) == (USAGE, True)
    code, _, err = shell(*embed, "--budget-usd", "1", "--no-cache")
    assert (code, "--budget-name: needs a coordinator" in err) == (USAGE, True)


def test_cache_commands_leave_the_coordination_file_alone(shell, spent, tmp_path):
    before = budgets(shell)
    stats = json.loads(shell("cache", "stats", "--cache", "mine", "--json")[1])
    assert (stats["vectors"], len(stats["spaces"])) == (40, 1)
    assert shell("cache", "verify", "--cache", "mine")[0] == 0
    assert shell("cache", "prune", "--max-size", "1kb", "--cache", "mine", "-y")[0] == 0
    assert shell("cache", "clear", "--cache", "mine", "-y")[0] == 0
    assert budgets(shell) == before


def test_a_quarantined_cache_keeps_its_budgets(shell, spent, tmp_path):
    before = budgets(shell)
    with sqlite3.connect(tmp_path / "mine" / "embedkit-v1" / "cache.db") as connection:
        connection.execute("CREATE TABLE Foreign_ (x)")
    connection.close()
    assert "quarantined" in shell("cache", "stats", "--cache", "mine")[2]
    assert budgets(shell) == before
    assert (tmp_path / "mine" / LOCAL_FOLDER).is_dir()


def test_a_folder_with_budgets_alone_is_no_cache(shell, spent, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "mine" / LOCAL_FOLDER).rename(tmp_path / "other" / LOCAL_FOLDER)
    code, _, err = shell("cache", "stats", "--cache", "other")
    assert (code, "the folder contains no cache" in err) == (USAGE, True)
    assert [budget["name"] for budget in budgets(shell, "other")] == ["ingest"]
