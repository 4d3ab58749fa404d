"""A coordination folder that cannot be used: the cache goes on, with one warning, and named budgets refuse."""

import os
import shutil
import sqlite3
import tempfile
import time
from pathlib import Path

import pytest
from support.embedders import numbered
from support.processes import WorkerError, check, embed, finish_embedding, repaid, start_embedding, wait_for_others

from embedkit_core.cache.disk import folder as folders
from embedkit_core.coordination.local import schema
from embedkit_core.coordination.local.store import Store


def overwrite(folder):
    (folder / schema.DATABASE).write_bytes(os.urandom(20_000))


def truncate(folder):
    (folder / schema.DATABASE).write_bytes((folder / schema.DATABASE).read_bytes()[:5000])


def other_version(folder):
    connection = sqlite3.connect(folder / schema.DATABASE)
    connection.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    connection.close()


def replace_by_file(folder):
    shutil.rmtree(folder)
    folder.write_text("")


@pytest.mark.parametrize(
    ("damage", "advice"),
    [
        (overwrite, "damaged.*delete"),
        (truncate, "damaged.*delete"),
        (other_version, f"has version {schema.VERSION + 1}.*Use one version"),
        (replace_by_file, "cannot be used"),
    ],
)
def test_without_its_file_the_cache_goes_on_and_named_budgets_refuse(workers, server, damage, advice):
    old = workers.one()
    old.run(embed, ["old"])
    assert old.close() == 0
    damage(workers.coordination)
    first, second = workers(2)
    for texts in (["old", "a"], ["a", "b"]):
        for worker, own in ((first, "first"), (second, "second")):
            check(worker.run(embed, [*texts, own + texts[-1]]), [*texts, own + texts[-1]])
    assert not repaid(server)  # they came from the cache
    for worker in (first, second):
        (warning,) = worker.warnings()
        assert warning.startswith("Coordination of processes by ")
        assert "is off for now" in warning
        with pytest.raises(WorkerError, match=rf"BudgetError.*'ingest' cannot be checked: .*{advice}"):
            workers.one(budget_tokens=10_000, budget_name="ingest").run(embed, ["new"])
    assert "new" not in server.billed_texts


def fill_disk(_embedder):
    """Let SQLite report a full disk for the coordination file: it may not grow, and a claim needs some pages."""
    create = Store.__init__

    def limit(store, folder, file, connection):
        create(store, folder, file, connection)
        connection.execute("PRAGMA max_page_count = 1")

    Store.__init__ = limit


def test_on_a_full_disk_the_cache_goes_on(workers, server):
    texts = numbered(1000)
    workers.one().run(embed, ["before"])
    full, other = workers(2, max_batch_texts=1000)
    full.run(fill_disk)
    check(full.run(embed, texts), texts)
    check(other.run(embed, [*texts, "own"]), [*texts, "own"])
    assert not repaid(server)
    (warning,) = full.warnings()
    assert "database or disk is full" in warning
    assert not other.warnings()


def on_network(_embedder):
    """Let all folders be on a network file system."""
    folders.network_of = lambda folder: "nfs4"


def test_on_a_network_file_system_texts_are_embedded(workers, server):
    worker = workers.one()
    worker.run(on_network)
    for text in ("a", "b"):
        check(worker.run(embed, [text]), [text])
    cache, coordination = sorted(worker.warnings())
    assert cache.startswith("Cache ")
    assert "nfs4" in coordination
    assert "local disk" in coordination


@pytest.fixture
def read_only_copy(workers):
    """A function that copies the cache folder to where a user without rights may only read it."""
    with tempfile.TemporaryDirectory() as parent:
        copy = Path(parent, "copy")

        def make():
            shutil.copytree(workers.cache, copy, ignore=shutil.ignore_patterns("*.lock"))
            paths = [*copy.rglob("*"), copy]
            for path in (*paths, Path(parent)):
                if os.geteuid() == 0:
                    os.chown(path, 65534, 65534)
                path.chmod(0o500 if path.is_dir() else 0o400)
            return copy

        yield make
        for path in (Path(parent), copy, *copy.glob("*")):
            path.chmod(0o700)


def drop_rights(_embedder):
    """Become a user without rights, if this process has any."""
    if os.geteuid() == 0:
        os.setegid(65534)
        os.seteuid(65534)


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX processes")
def test_in_a_read_only_folder_hits_are_served_and_other_texts_embedded(workers, server, read_only_copy):
    first = workers.one()
    first.run(embed, ["old"])
    first.close()
    second = workers.one(cache=read_only_copy())
    second.run(embed, [])  # imports
    second.run(drop_rights)
    check(second.run(embed, ["old"]), ["old"])
    assert not second.warnings()
    for _ in range(2):
        check(second.run(embed, ["old", "new"]), ["old", "new"])
    assert server.billed_texts == {"old": 1, "new": 2}
    coordination = [warning for warning in second.warnings() if warning.startswith("Coordination ")]
    assert len(coordination) == 1
    assert "writable" in coordination[0]
    assert len(second.warnings()) == 2  # and that the cache cannot be written


@pytest.mark.parametrize("whole", [True, False], ids=["with the cache", "alone"])
def test_a_folder_that_is_deleted_is_created_again(workers, server, whole):
    first, second = workers(2)
    for worker in (first, second):
        worker.run(embed, ["before"])
    server.hold()
    first.run(start_embedding, ["shared"])
    server.wait_for_requests(2)
    second.run(start_embedding, ["shared"])
    second.run(wait_for_others)
    shutil.rmtree(workers.cache if whole else workers.coordination)
    server.release()
    for worker in (first, second):
        check(worker.run(finish_embedding), ["shared"])
    server.latency = 0.1
    texts = numbered(30)
    jobs = [worker.start(embed, texts) for worker in (first, second)]
    for job in jobs:
        check(job.result(), texts)
    assert repaid(server).keys() <= {"shared"}
    assert server.billed_texts["shared"] <= 2
    assert not first.warnings() + second.warnings()


def jump(_embedder, seconds):
    """Set the clock of this process, as `time.time` shows it."""
    real = time.time
    time.time = lambda: real() + seconds


def test_a_clock_that_jumps_has_no_effect(workers, server):
    server.hold()
    first, second = workers(2)
    first.run(start_embedding, ["shared"])
    server.wait_for_requests(1)
    second.run(jump, -86400.0)
    second.run(start_embedding, ["shared", "own"])
    server.wait_for_requests(2)
    first.run(jump, 86400.0)
    server.release()
    check(second.run(finish_embedding), ["shared", "own"])
    check(first.run(finish_embedding), ["shared"])
    assert not repaid(server)
