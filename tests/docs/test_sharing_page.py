"""The examples and the rights in docs/sharing-a-cache.md, on a real Redis server."""

import re
from pathlib import Path

import pytest
from redis.exceptions import ResponseError
from support.embedders import numbered
from support.openai_client import expected
from support.reader import reader_environment

from embedkit_core import BudgetError, Embedder
from embedkit_core.cache.redis.address import PASSWORD, USERNAME, parse
from embedkit_core.cache.redis.connection import connection_to
from embedkit_core.coordination.redis.coordinator import RedisCoordinator

PAGE = (Path(__file__).parents[2] / "docs" / "sharing-a-cache.md").read_text(encoding="utf-8")
EXAMPLE = "\n".join(re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S))
(LINES,) = re.findall(r"^```\n(user .*?)^```", PAGE, re.M | re.S)
USERS = {line.split()[1]: line for line in LINES.splitlines()}
FORBIDDEN = (
    ("GET", "other"),
    ("SET", "other", "1"),
    ("EVAL", "return redis.call('GET', 'other')", "0"),
    ("KEYS", "*"),
    ("SCAN", "0"),
    ("DEL", "embedkit:v1:x"),
    ("FLUSHALL",),
    ("FLUSHDB",),
    ("CONFIG", "GET", "*"),
    ("ACL", "LIST"),
    ("SUBSCRIBE", "channel"),
)


def test_the_examples_print_what_they_show(redis, tmp_path, monkeypatch, capsys):
    code = EXAMPLE.replace("6379", str(redis.port))
    scope = {}
    with reader_environment(tmp_path, monkeypatch):
        exec(compile(code, "docs: Sharing a cache", "exec"), scope)
        for value in scope.values():
            if isinstance(value, Embedder):
                value.close()
    assert capsys.readouterr().out.splitlines() == re.findall(r"^print\(.*\)  # (.*)$", EXAMPLE, re.M)


@pytest.fixture
def with_users(new_redis, tmp_path, monkeypatch):
    """A server with the users of the page, and the environment of one of them."""
    file = tmp_path / "users.acl"
    file.write_text(f"user default off\nuser admin on >admin ~* &* +@all\n{LINES}")
    server = new_redis("--aclfile", str(file), "--appendonly", "yes")

    def log_in(name):
        (password,) = re.findall(r">(\S+)", USERS[name])
        monkeypatch.setenv(USERNAME, name)
        monkeypatch.setenv(PASSWORD, password)
        return server.client(username=name, password=password)

    server.log_in = log_in
    return server


def rights(name):
    return set(re.findall(r"\+(\S+)", USERS[name]))


def used(server):
    """Return the commands that users without a right for it have tried, and all that were called."""
    with server.client(username="admin", password="admin") as admin:
        denied = [entry["object"] for entry in admin.acl_log()]
        called = {name.removeprefix("cmdstat_") for name in admin.info("commandstats")}
    return denied, called


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("vectors", [("SET", "embedkit:{coordination-v1}:meta", "1"), ("TIME",), ("INFO",)]),
        ("embedder", []),
        ("reader", [("SET", "embedkit:v1:x", "1")]),
    ],
)
def test_a_user_of_the_page_can_do_nothing_else(with_users, name, more):
    with with_users.log_in(name) as client:
        assert client.ping()
        for command in (*FORBIDDEN, *more):
            with pytest.raises(ResponseError, match=r"permission|The user executing the script"):
                client.execute_command(*command)


def test_the_users_of_vectors_have_the_rights_that_they_need(with_users, server, caplog):
    texts, address = numbered(30), f"redis://127.0.0.1:{with_users.port}/1"
    options = {"base_url": server.base_url, "api_key": "test-key", "dimensions": 16, "coordination": False}
    for name, sent in (("vectors", 30), ("reader", 0)):
        with_users.log_in(name).close()
        with Embedder("openai:text-embedding-3-small", cache=address, **options) as embedder:
            assert embedder.embed(texts).usage.sent == sent
            assert embedder.embed(texts).usage.cache_hits == 30
    assert not caplog.records
    denied, called = used(with_users)
    assert not denied
    assert rights("vectors") - called <= {"ping"}  # after a failure only


def test_the_user_that_coordinates_has_the_rights_that_it_needs_and_no_others(with_users, server, tmp_path, caplog):
    with_users.log_in("embedder").close()
    address = f"redis://127.0.0.1:{with_users.port}/1"
    options = {
        "base_url": server.base_url,
        "api_key": "test-key",
        "dimensions": 16,
        "cache": [tmp_path / "folder", address],
        "requests_per_minute": 1000,
        "budget_tokens": 1000,
        "budget_name": "ingest",
    }
    texts = numbered(30)
    with Embedder("openai:text-embedding-3-small", **options) as embedder:
        assert (embedder.embed(texts).vectors == expected(texts, dimensions=16)).all()
        with pytest.raises(BudgetError):
            embedder.embed(numbered(500, 10))
        coordinator = RedisCoordinator(connection_to(parse(address, "coordination")[0]))
        assert [budget.name for budget in coordinator.budgets()] == ["ingest"]
        assert coordinator.reset_budget("ingest")
        assert coordinator.ended(["another owner.1"])
    assert not caplog.records
    denied, called = used(with_users)
    assert not denied
    assert rights("embedder") - called == set()
