"""The database is one that diskcache and diskcache-community open, read and write, and that needs no double quotes."""

import contextlib
import importlib
import re
import sqlite3
import subprocess
import sys

import pytest
from support.read_only import READ_ONLY_COPY
from test_disk_cache import ENVIRONMENT, POSIX, assert_holds, encode, entries, key
from test_disk_cache import run as run_script

from embedkit_core.cache.disk import create, pool, schema
from embedkit_core.cache.disk.cache import DiskCache
from embedkit_core.cache.maintenance import CacheFolder

PACKAGES = ("diskcache", "diskcache_community")
TEXTS_OF_TRIGGERS = "SELECT sql FROM sqlite_master WHERE type = 'trigger'"


@pytest.fixture
def folder(tmp_path):
    """A closed cache with vectors 0 to 9."""
    cache = DiskCache(tmp_path)
    cache.set_many(entries(range(10)))
    cache.close()
    return tmp_path


def connect(folder):
    return contextlib.closing(sqlite3.connect(folder / "embedkit-v1" / "cache.db", isolation_level=None))


def query(folder, statement):
    with connect(folder) as connection:
        return connection.execute(statement).fetchall()


def spell_as_diskcache(folder):
    """Replace the triggers by those that diskcache 5.6.3 and earlier versions of this library write."""
    with connect(folder) as connection:
        for statement in schema.REPLACE_TRIGGERS:
            connection.execute(statement.replace("'", '"'))
    assert has_double_quotes(folder)


def has_double_quotes(folder):
    found = ['"' in text for (text,) in query(folder, TEXTS_OF_TRIGGERS)]
    assert len(found) == 5
    assert len(set(found)) == 1, "some triggers were replaced and others not"
    return found[0]


def assert_counted(folder, count):
    assert query(folder, "SELECT value FROM Settings WHERE key = 'count'") == [(count,)]


def open_with(package, folder):
    module = pytest.importorskip(package)
    return module.Cache(str(folder / "embedkit-v1"), disk=module.Disk)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_cache_library_reads_and_writes_the_database_and_we_read_it_afterwards(folder, package, caplog):
    with open_with(package, folder) as other:
        assert other[key(3)] == encode(key(3), dict(entries([3]))[key(3)])
        assert len(other) == 10
        assert set(other) == {key(n) for n in range(10)}
        other[key(20)] = encode(key(20), dict(entries([20]))[key(20)])
        del other[key(0)]
        assert len(other) == 10
        assert not other.check()
        assert other.size_limit == schema.SETTINGS["size_limit"]
    cache = DiskCache(folder)
    assert_holds(cache, [*range(1, 10), 20])
    assert cache.get_many([key(0)]) == {}
    cache.set_many(entries([30]))
    assert_holds(cache, [30])
    assert (cache.stats.quarantined, cache.stats.write_failures, caplog.records) == (0, 0, [])
    assert_counted(folder, 11)
    with open_with(package, folder) as other:
        assert key(30) in other


@pytest.mark.parametrize("package", PACKAGES)
def test_a_cache_library_and_we_use_the_database_at_the_same_time(folder, package):
    cache = DiskCache(folder)
    with open_with(package, folder) as other:
        for number in range(10, 30, 2):
            cache.set_many(entries([number]))
            other[key(number + 1)] = encode(key(number + 1), dict(entries([number + 1]))[key(number + 1)])
            assert_holds(cache, range(number + 2))
            assert len(other) == number + 2
    assert cache.stats.write_failures == 0


def test_the_schema_is_that_of_diskcache_but_for_the_quotes(tmp_path):
    module = pytest.importorskip("diskcache")
    (tmp_path / "embedkit-v1").mkdir(mode=0o700)
    module.Cache(str(tmp_path / "embedkit-v1"), **schema.SETTINGS).close()
    stored = query(tmp_path, "SELECT type, name, tbl_name, sql FROM sqlite_master")
    assert {(*rest, sql and sql.replace('"', "'")) for *rest, sql in stored} == schema.SCHEMA
    assert set(module.DEFAULT_SETTINGS) == set(schema.SETTINGS), "a setting we do not give is diskcache's to choose"
    settings = dict(query(tmp_path, "SELECT key, value FROM Settings"))
    assert settings == {**schema.SETTINGS, **dict.fromkeys(schema.COUNTERS, 0)}
    with connect(tmp_path) as connection:
        assert schema.schema_mismatch(connection) is None


# Triggers with double-quoted strings


def test_old_triggers_are_accepted_and_replaced_by_the_first_write(folder, caplog):
    spell_as_diskcache(folder)
    cache = DiskCache(folder)
    assert_holds(cache, range(10))
    assert has_double_quotes(folder), "a read changes nothing"
    cache.set_many(entries([10]))
    cache.set_many(entries([11]))
    assert not has_double_quotes(folder)
    assert_holds(cache, range(12))
    assert_counted(folder, 12)
    assert (cache.stats.quarantined, caplog.records) == (0, [])


def test_a_database_with_triggers_of_both_spellings_is_accepted(folder):
    with connect(folder) as connection:
        for statement in schema.REPLACE_TRIGGERS[:4]:
            connection.execute(statement.replace("'", '"'))
    cache = DiskCache(folder)
    cache.set_many(entries([10]))
    assert_holds(cache, range(11))
    assert not has_double_quotes(folder)


def test_double_quotes_anywhere_else_are_a_foreign_schema(folder):
    with connect(folder) as connection:
        connection.execute("DROP INDEX Cache_expire_time")
        connection.execute('CREATE INDEX Cache_expire_time ON Cache ("expire_time")')
        assert schema.schema_mismatch(connection)


ANOTHER_PROCESS = """
import sys
import numpy as np
from embedkit_core.cache import Entry, open_cache
def entry(n): return (n.to_bytes(32, "little"), Entry(np.full(8, n, "f4"), n % 2 == 1))
cache = open_cache(sys.argv[1])
def write(n):
    cache.set_many([entry(n)])
    assert len(cache.get_many([entry(i)[0] for i in range(10)])) == 10
assert len(cache.get_many([entry(i)[0] for i in range(10)])) == 10
for line in sys.stdin:
    write(int(line))
    print("written", flush=True)
assert cache.stats.write_failures == cache.stats.quarantined == 0
"""


@pytest.mark.parametrize("writes_first", ["it", "we"])
def test_old_triggers_are_replaced_while_another_process_has_the_database_open(folder, writes_first):
    spell_as_diskcache(folder)
    command, pipe = [sys.executable, "-W", "error", "-c", ANOTHER_PROCESS, str(folder)], subprocess.PIPE
    with subprocess.Popen(command, env=ENVIRONMENT, stdin=pipe, stdout=pipe, text=True) as process:

        def it_writes(number):
            process.stdin.write(f"{number}\n")
            process.stdin.flush()
            assert process.stdout.readline() == "written\n"

        cache = DiskCache(folder)
        assert_holds(cache, range(10))
        it_writes(10) if writes_first == "it" else cache.set_many(entries([10]))
        assert not has_double_quotes(folder)
        for number in range(11, 21, 2):
            cache.set_many(entries([number]))
            it_writes(number + 1)
        assert_holds(cache, range(21))
        process.stdin.close()
        assert process.wait() == 0
    assert_counted(folder, 21)


READ_ONLY = f"""{READ_ONLY_COPY}
copy = read_only_copy(sys.argv[1], "500")
before = (copy / "embedkit-v1" / "cache.db").read_bytes()
cache = open_cache(copy)
assert cache.get_many([bytes(32)])
cache.set_many([(bytes(32), Entry(np.ones(8, "f4")))])
assert cache.stats.write_failures == 1
assert cache.get_many([bytes(32)])
cache.close()
assert (copy / "embedkit-v1" / "cache.db").read_bytes() == before
"""


@POSIX
def test_old_triggers_of_a_read_only_folder_stay(folder):
    spell_as_diskcache(folder)
    run_script(READ_ONLY, folder)


# SQLite builds that take a double-quoted string for the name of a column


@pytest.fixture
def statements(monkeypatch):
    """All SQL that this library executes. From Python 3.12 on, double-quoted strings are errors."""
    seen = []
    connect_to = sqlite3.connect

    def traced(*arguments, **options):
        connection = connect_to(*arguments, **options)
        if hasattr(connection, "setconfig"):  # Python 3.12
            connection.setconfig(sqlite3.SQLITE_DBCONFIG_DQS_DML, False)
            connection.setconfig(sqlite3.SQLITE_DBCONFIG_DQS_DDL, False)
        connection.set_trace_callback(seen.append)
        return connection

    for module in (create, pool):
        monkeypatch.setattr(module.sqlite3, "connect", traced)
    return seen


def use_everything(folder):
    cache = DiskCache(folder)
    cache.set_many(entries(range(600)))
    cache.set_many(entries(range(2)))
    assert_holds(cache, range(600))
    assert_holds(cache, [1])
    cache.close()
    assert (cache.stats.write_failures, cache.stats.quarantined) == (0, 0)
    kept = CacheFolder(folder)
    assert kept.verify().vectors == 600
    assert kept.copy_to(CacheFolder(folder / "copy")) == 600
    assert kept.prune(unused_days=1, max_bytes=1) == 600
    assert CacheFolder(folder / "copy").copy_to(kept) == 600
    assert kept.clear() == 600


def test_no_statement_has_a_double_quote(tmp_path, statements):
    use_everything(tmp_path)
    started = {re.sub("^-- ", "", statement).split()[0] for statement in statements}
    assert started >= {"PRAGMA", "CREATE", "INSERT", "SELECT", "BEGIN", "COMMIT"}
    assert not [statement for statement in statements if '"' in statement]


@pytest.mark.parametrize("name", ["cache", "create", "pool", "records", "schema"])
def test_no_string_of_the_modules_with_sql_has_a_double_quote(name):
    module = importlib.import_module(f"embedkit_core.cache.disk.{name}")
    constants = [value for name, value in vars(module).items() if not name.startswith("__")]
    texts = [value for value in constants if isinstance(value, str)]
    texts += [part for value in constants if isinstance(value, tuple) for part in value if isinstance(part, str)]
    assert not [text for text in texts if '"' in text]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="needs Connection.setconfig of Python 3.12")
@pytest.mark.parametrize("state", ["new", "current", "old"])
def test_everything_works_with_a_sqlite_that_knows_no_double_quoted_strings(tmp_path, statements, state):
    if state != "new":
        DiskCache(tmp_path).set_many(entries(range(3)))
    if state == "old":
        spell_as_diskcache(tmp_path)
    with contextlib.closing(sqlite3.connect(":memory:")) as connection, pytest.raises(sqlite3.OperationalError):
        connection.execute('SELECT "no column"')
    use_everything(tmp_path)
