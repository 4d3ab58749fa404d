"""Files of a local coordinator that are damaged, foreign, deleted, full or read-only: an error with the reason."""

import contextlib
import os
import shutil
import sqlite3

import pytest
from support.coordination import LIMIT, begin, reservation, start, told

from embedkit_core.common.errors import CoordinationError
from embedkit_core.coordination.local.coordinator import LocalCoordinator
from embedkit_core.coordination.port import End
from embedkit_core.costs.amounts import Amount

POSIX = pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")


@pytest.fixture
def closed(folder):
    """The database of a closed coordinator, with a named budget."""
    coordinator = LocalCoordinator(folder)
    coordinator.open_budget("ingest", LIMIT)
    coordinator.close()
    return folder / "coordination.db"


def sql(database, *statements):
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


def overwrite(database, content, at=0):
    with database.open("r+b") as file:
        file.seek(at)
        file.write(content)


# Damaged and foreign


@pytest.mark.parametrize(
    "damage",
    [
        lambda database: database.write_bytes(b"a text" * 1000),
        lambda database: overwrite(database, b"x" * (database.stat().st_size - 100), 100),
        lambda database: os.truncate(database, database.stat().st_size - 8192),
        lambda database: sql(database, "UPDATE Meta SET value = 'x' WHERE name = 'salt'", "DROP TABLE Leases"),
    ],
    ids=["text", "content", "cut", "table"],
)
def test_a_damaged_file_is_named_and_stays_as_it_is(closed, coordinator, damage):
    damage(closed)
    content = closed.read_bytes()
    for use in (lambda: begin(coordinator, "a"), lambda: coordinator.open_budget("ingest", LIMIT), coordinator.budgets):
        with pytest.raises(CoordinationError) as raised:
            use()
        assert str(closed.parent) in str(raised.value)
        assert "is damaged" in str(raised.value) or "was not created by this library" in str(raised.value)
    assert closed.read_bytes() == content


@pytest.mark.parametrize("column", ["Models SET requests", "Leases SET keys", "Leases SET reserved"])
def test_a_value_that_this_library_does_not_write_is_damage(folder, coordinator, column):
    begin(coordinator, "a", reservations=[reservation(10)])
    coordinator.exchange([], [End(begin(coordinator, "b").lease, pause=60)])
    sql(folder / "coordination.db", f"UPDATE {column} = x'00'")
    coordinator._resources.lock.close()  # so that others read its reservations
    with pytest.raises(CoordinationError, match="is damaged"):
        begin(LocalCoordinator(folder), "c")


def test_an_empty_file_was_not_created_by_this_library(closed, coordinator):
    os.truncate(closed, 0)
    with pytest.raises(CoordinationError, match="was not created by this library"):
        begin(coordinator, "a")


def test_a_file_of_another_version_is_refused_with_both_versions(closed, coordinator):
    sql(closed, "PRAGMA user_version = 3")
    with pytest.raises(CoordinationError, match=r"has version 3, and this process uses version 2\."):
        begin(coordinator, "a")
    sql(closed, "PRAGMA user_version = 2")
    assert begin(coordinator, "a").lease is not None


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER t AFTER INSERT ON Leases BEGIN DELETE FROM Budgets; END",
        "CREATE VIEW v AS SELECT 1",
        "CREATE TABLE t (x)",
        "PRAGMA application_id = 1",
    ],
)
def test_a_file_with_something_else_in_it_is_refused(closed, coordinator, statement):
    sql(closed, statement)
    with pytest.raises(CoordinationError, match="was not created by this library"):
        begin(coordinator, "a")


@POSIX
def test_a_link_is_refused(closed, coordinator, tmp_path):
    shutil.move(closed, tmp_path / "elsewhere.db")
    closed.symlink_to(tmp_path / "elsewhere.db")
    with pytest.raises(CoordinationError, match="is a link, not a file"):
        begin(coordinator, "a")
    closed.unlink()
    shutil.move(closed.parent, tmp_path / "elsewhere")
    closed.parent.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CoordinationError, match="is a link or a file, not a folder"):
        begin(coordinator, "a")


@POSIX
def test_the_folder_of_another_user_is_refused(closed, coordinator):
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    os.chown(closed.parent, 65534, 65534)
    with pytest.raises(CoordinationError, match="belongs to another user"):
        begin(coordinator, "a")


@POSIX
def test_permissions_of_other_users_are_removed(closed, coordinator):
    closed.parent.chmod(0o755)
    begin(coordinator, "a")
    assert closed.parent.stat().st_mode & 0o777 == 0o700


def test_a_network_file_system_is_refused(coordinator, monkeypatch, folder):
    monkeypatch.setattr("embedkit_core.cache.disk.folder.network_of", lambda folder: "nfs4")
    with pytest.raises(CoordinationError, match=r"SQLite is unsafe on a network file system \(nfs4\)"):
        begin(coordinator, "a")
    assert not folder.exists()


def test_a_folder_with_unknown_files_and_no_database_is_left_alone(folder, coordinator):
    folder.mkdir(parents=True)
    (folder / "mine.txt").touch()
    with pytest.raises(CoordinationError, match=r"coordination\.db is missing"):
        begin(coordinator, "a")
    assert (folder / "mine.txt").exists()


# Deleted


@pytest.mark.parametrize("what", ["folder", "database", "lock files"])
def test_processes_go_on_with_a_new_file_after_theirs_was_deleted(folder, coordinator, what):
    other = LocalCoordinator(folder)
    lease = begin(coordinator, "a", reservations=[reservation(10)]).lease
    begin(other, "b")
    if what == "folder":
        shutil.rmtree(folder)
    elif what == "database":
        (folder / "coordination.db").unlink()
    else:
        shutil.rmtree(folder / "owners")
    new = begin(coordinator, "c").lease
    assert begin(other, "c").others == {0: new}
    assert list(other.ended([lease, new])) == [lease]
    coordinator.exchange([], [End(lease)])
    assert not other.ended([new])
    if what == "lock files":
        assert coordinator.budgets()[0].lost == Amount(10, 10)
    else:
        assert coordinator.budgets() == []
    other.close()


def test_a_file_that_a_process_does_not_look_at_is_not_recreated_by_budgets(closed, coordinator):
    shutil.rmtree(closed.parent)
    assert coordinator.budgets() == []
    assert not closed.parent.exists()


# Full and read-only


@POSIX
def test_a_full_disk_is_an_error_until_there_is_space(folder):
    program = start(
        folder,
        """
        import resource
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        def limit(size):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, unlimited))
        limit(0)
        with contextlib.suppress(CoordinationError):
            begin(coordinator, "a")
            tell("created on a full disk")
        limit(unlimited)
        begin(coordinator, "a", reservations=[reservation(10)])
        size = os.stat(folder / "coordination.db-wal").st_size
        limit(size)
        failures = 0
        for _ in range(3):
            try:
                begin(coordinator, "b", reservations=[reservation(10)])
            except CoordinationError as error:
                failures += "cannot be used" in str(error)
        limit(unlimited)
        grant = begin(coordinator, "b", reservations=[reservation(10)])
        tell(failures, grant.lease is not None, coordinator.budgets()[0].held.nano_usd)
        """,
    )
    assert told(program) == "3 True 20"
    program.communicate(input="", timeout=60)


@POSIX
def test_a_read_only_folder_is_an_error_with_the_reason(closed):
    program = start(
        closed.parent,
        """
        import embedkit_core.cache.disk.create, shutil, tempfile
        copy = Path(tempfile.mkdtemp(), "copy")
        own = copy / "embedkit-coordination-v1"
        shutil.copytree(folder, own)
        if os.geteuid() == 0:
            for path in (copy.parent, copy, own, *own.rglob("*")):
                os.chown(path, 65534, 65534)
            os.setegid(65534)
            os.seteuid(65534)
        for path in (copy, own, *own.rglob("*")):
            path.chmod(0o500 if path.is_dir() else 0o400)
        for place in (own, copy / "another"):
            try:
                begin(LocalCoordinator(place), "a")
            except CoordinationError as error:
                tell(str(error).replace(str(copy), ""))
        for path in (copy, own, own / "owners"):
            path.chmod(0o700)
        shutil.rmtree(copy.parent)
        """,
    )
    existing, new = told(program), told(program)
    assert "cannot be used (unable to open database file). Use a cache folder that is writable" in existing or (
        "cannot be used (attempt to write a readonly database). Use a cache folder that is writable" in existing
    )
    assert "/another cannot be used (PermissionError). Use a cache folder that is writable" in new
    program.communicate(input="", timeout=60)
