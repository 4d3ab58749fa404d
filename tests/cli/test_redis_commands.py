"""Commands with a Redis as the cache, or for the budgets of several machines."""

import json

import pytest
from support.embedders import texts_sent
from support.inputs import MODEL, TEXTS, lines

from embedkit_core.cli.console import FAILED, USAGE

BUDGET = ("--budget-usd", "1", "--budget-name", "ingest", "-y", "--json")


def test_a_command_embeds_into_a_redis_and_another_one_reads_it(shell, server, redis, tmp_path):
    texts = lines(tmp_path / "in.txt", TEXTS)
    code, _, err = shell("cache", "warm", texts, "-m", MODEL, "--cache", redis.address, "-y")
    assert code == 0, err
    code, out, err = shell("embed", texts, "-o", "a.npy", "-m", MODEL, "--cache", redis.address, "-y", "--json")
    assert code == 0, err
    assert json.loads(out)["cache_hits"] == len(TEXTS)
    code, out, _ = shell("estimate", texts, "-m", MODEL, "--cache", redis.address, "--json")
    assert json.loads(out)["cache_hits"] == len(TEXTS)
    assert sorted(texts_sent(server)) == sorted(TEXTS)


def test_a_full_redis_is_a_failure_of_cache_warm(shell, server, new_redis, tmp_path):
    address = new_redis("--maxmemory 1mb --maxmemory-policy noeviction").address
    texts = lines(tmp_path / "in.txt", TEXTS)
    code, _, err = shell("cache", "warm", texts, "-m", MODEL, "--cache", address, "-y", "-q")
    assert code == FAILED
    assert "40 vectors could not be written to the cache; the log has the reason. Use a --cache that is writable" in err


@pytest.mark.parametrize(
    "command",
    [
        ("stats",),
        ("verify",),
        ("clear", "-y"),
        ("prune", "--older-than", "90d", "-y"),
        ("export", "x"),
        ("import", "x"),
    ],
    ids=lambda command: command[0],
)
def test_a_command_that_needs_a_folder_says_so(shell, command, tmp_path):
    for address in ("redis://:hunter2@127.0.0.1:9/0", "file:///folder"):
        code, _, err = shell("cache", *command, "--cache", address)
        option = (
            "SOURCE: the folder does not exist" if command[0] == "import" else "--cache: this command needs a folder"
        )
        assert (code, err.startswith(f"rag-embedkit: {option} (got")) == (USAGE, True), err
        assert "hunter2" not in err
    assert not list(tmp_path.iterdir())


def test_a_folder_is_exported_to_a_redis(shell, server, redis, tmp_path):
    texts = lines(tmp_path / "in.txt", TEXTS)
    assert shell("cache", "warm", texts, "-m", MODEL, "--cache", "mine", "-y")[0] == 0
    code, _, err = shell("cache", "export", redis.address, "--cache", "mine")
    assert (code, err) == (0, f"40 vectors copied to {redis.address}\n")
    code, out, _ = shell("cache", "warm", texts, "-m", MODEL, "--cache", redis.address, "-y", "--json")
    assert json.loads(out)["cache_hits"] == len(TEXTS)
    assert len(texts_sent(server)) == len(TEXTS)


def test_an_export_that_does_not_arrive_is_a_failure(shell, server, new_redis, tmp_path):
    address = new_redis("--maxmemory 1mb --maxmemory-policy noeviction").address
    assert shell("cache", "warm", lines(tmp_path / "in.txt", TEXTS), "-m", MODEL, "--cache", "mine", "-y")[0] == 0
    code, _, err = shell("cache", "export", address, "--cache", "mine")
    assert code == FAILED
    assert f"Cache RedisCache('{address}'): only 0 vectors arrived, then writing failed; the log has the reason." in err


def test_an_invalid_target_of_an_export_is_refused(shell, tmp_path):
    def refused(target):
        code, _, err = shell("cache", "export", target)
        assert code == USAGE
        assert "hunter2" not in err
        return err

    assert refused("redis://:hunter2@host").startswith("rag-embedkit: TARGET: the redis:// address must not contain")
    assert shell("cache", "import", "redis://host", "--cache", "x")[2].startswith("rag-embedkit: SOURCE: this command")
    assert refused("acme://host").startswith("rag-embedkit: TARGET: no package provides acme://")


@pytest.mark.parametrize("where", ["--cache", "--coordination"])
def test_the_budgets_in_a_redis_are_listed_and_reset(shell, server, new_redis, tmp_path, where):
    redis = new_redis()
    texts = lines(tmp_path / "in.txt", TEXTS)
    folder = () if where == "--cache" else ("--cache", "mine")
    options = ("-o", "a.npy", "-m", MODEL, where, redis.address, *folder)
    code, _, err = shell("embed", texts, *options, *BUDGET)
    assert code == 0, err
    [budget] = json.loads(shell("budget", "list", where, redis.address, "--json")[1])
    assert (budget["name"], budget["limit_usd"]) == ("ingest", "1")
    code, _, err = shell("budget", "reset", "ingest", where, redis.address, "-y")
    assert (code, err.startswith("budget 'ingest' reset; $")) == (0, True), err
    assert json.loads(shell("budget", "list", where, redis.address, "--json")[1]) == []
    assert shell("budget", "list", where, redis.address)[1] == f"{redis.address}: no budgets\n"


def test_an_address_of_a_coordination_that_is_none_is_refused(shell, tmp_path):
    for value in ("mine", "acme://host"):
        code, _, err = shell("budget", "list", "--coordination", value)
        assert (code, err) == (
            USAGE,
            "rag-embedkit: --coordination: must be an address. Use redis://host:6379/0, or rediss:// for TLS.\n",
        )
    code, _, err = shell("budget", "list", "--cache", "acme://host")
    assert (code, "--cache: this command needs a folder" in err) == (USAGE, True)
    texts = lines(tmp_path / "in.txt", TEXTS)
    code, _, err = shell("embed", texts, "-o", "a.npy", "-m", MODEL, "--coordination", "mine", "-y")
    assert (code, err.startswith("rag-embedkit: --coordination: must be")) == (USAGE, True), err


def test_a_redis_that_is_down_is_a_failure_of_the_budget_commands(shell):
    code, _, err = shell("budget", "list", "--coordination", "redis://127.0.0.1:9/0")
    assert code == FAILED
    assert "Redis redis://127.0.0.1:9/0 cannot be used" in err
