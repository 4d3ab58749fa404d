"""The commands `cache stats`, `clear`, `prune`, `export` and `import`."""

import csv
import io
import json
import re
import sqlite3

import numpy as np
import pytest
from support.embedders import MINILM, needs_local_model
from support.inputs import MODEL, TEXTS, lines

from embedkit_core.cache import Entry, open_cache
from embedkit_core.cli.console import FAILED, REFUSED, USAGE

OTHER = "openai:text-embedding-ada-002"


def space_of(model):
    return f"{model}@http://host/v1/1536/float32"


@pytest.fixture
def mine(shell):
    """A cache with 40 vectors of one model, 3 of another and 1 without a vector space."""
    cache, vector = open_cache("mine"), np.ones(1536, np.float32)
    spaces = [space_of(MODEL)] * 40 + [space_of(OTHER)] * 3 + [None]
    cache.set_many([(bytes([n]) * 32, Entry(vector, space=space)) for n, space in enumerate(spaces)])
    cache.close()
    return "mine"


def test_the_command_stores_the_vector_space(shell, server, tmp_path):
    shell("cache", "warm", lines(tmp_path / "in.txt", TEXTS), "-m", MODEL, "-y", "--cache", "mine")
    assert vectors(shell, "mine") == {f"{MODEL}@{server.base_url}/1536/float32": 40}


def vectors(shell, folder):
    spaces = json.loads(shell("cache", "stats", "--cache", folder, "--json")[1])["spaces"]
    return {space["space"]: space["vectors"] for space in spaces}


def test_stats_lists_the_vector_spaces_with_size_and_last_use(shell, mine):
    code, out, _ = shell("cache", "stats", "--cache", mine)
    assert code == 0
    first, head, _, *spaces = out.splitlines()
    assert re.search(r"mine: 44 vectors, \d\.\d MB$", first)
    assert [cell.strip() for cell in head.split("|")[1:-1]] == ["vector space", "vectors", "size", "last use"]
    assert re.fullmatch(rf"\| {space_of(MODEL)} +\| +40 \| +0\.2 MB \| \d{{4}}-\d\d-\d\d \|", spaces[0])
    assert re.match(rf"\| {space_of(OTHER)} +\| +3 \| +\d\d kB \|", spaces[1])
    assert spaces[2].startswith("| unknown ")
    code, out, _ = shell("cache", "stats", "--cache", mine, "--csv", "-")
    assert [row["vectors"] for row in csv.DictReader(io.StringIO(out))] == ["40", "3", "1"]


def test_the_vectors_of_a_model_are_cleared_and_others_stay(shell, mine):
    code, _, err = shell("cache", "clear", "--model", MODEL, "--cache", mine)
    assert code == REFUSED
    assert f"confirmation required to delete 40 vectors in {open_cache(mine)._folder.parent} ({space_of(MODEL)})" in err
    assert "40 vectors deleted" in shell("cache", "clear", "-m", MODEL, "--cache", mine, "-y")[2]
    assert vectors(shell, mine) == {space_of(OTHER): 3, None: 1}
    code, _, err = shell("cache", "clear", "-m", MODEL, "--cache", mine, "-y")
    assert code == USAGE
    assert err.startswith(f"rag-embedkit: --model: the cache has no vectors of this model (got '{MODEL}'")


def test_the_vectors_of_a_model_are_exported_alone(shell, mine):
    assert "3 vectors copied to copy" in shell("cache", "export", "copy", "-m", OTHER, "--cache", mine)[2]
    assert vectors(shell, "copy") == {space_of(OTHER): 3}
    assert "3 vectors copied from copy" in shell("cache", "import", "copy", "--cache", "third")[2]
    assert vectors(shell, "third") == {space_of(OTHER): 3}


def test_one_vector_is_one_vector(shell, tmp_path):
    shell("cache", "warm", lines(tmp_path / "in.txt", ["one"]), "-m", MODEL, "-y", "--cache", "mine")
    assert "mine: 1 vector, " in shell("cache", "stats", "--cache", "mine")[1]
    assert "mine: 1 vector, 0 damaged" in shell("cache", "verify", "--cache", "mine")[1]
    assert shell("cache", "export", "copy", "--cache", "mine")[2] == "1 vector copied to copy\n"
    assert shell("cache", "clear", "--cache", "mine", "-y")[2] == "1 vector deleted\n"


@needs_local_model
def test_a_local_model_is_found_by_its_folder(shell, tmp_path):
    shell("cache", "warm", lines(tmp_path / "in.txt", ["one"]), "-m", MINILM, "-y", "--cache", "mine")
    assert shell("cache", "clear", "-m", MINILM, "--cache", "mine", "-y")[2] == "1 vector deleted\n"


def test_prune_deletes_what_was_not_used_for_long_or_exceeds_a_size(shell, mine, tmp_path):
    with sqlite3.connect(tmp_path / "mine" / "embedkit-v1" / "cache.db") as connection:
        connection.execute("UPDATE Cache SET access_time = 1000.0 WHERE tag LIKE '%ada%'")
    connection.close()
    prune = ("cache", "prune", "--cache", mine)
    code, _, err = shell(*prune, "--older-than", "90d")
    assert (code, "delete vectors not used for 90 days of 44 in" in err) == (REFUSED, True)
    assert shell(*prune, "--older-than", "90", "-y")[2].startswith("3 vectors deleted; 41 vectors, ")
    assert shell(*prune, "--older-than", "90d", "--max-size", "1GB", "-y")[2].startswith(
        "0 vectors deleted; 41 vectors"
    )
    assert re.match(
        r"\d+ vectors deleted; \d+ vectors, 0\.[234] MB left", shell(*prune, "--max-size", "0.4 mb", "-y")[2]
    )
    stats = json.loads(shell("cache", "stats", "--cache", mine, "--json")[1])
    assert stats["bytes_on_disk"] <= 400_000
    assert 0 < stats["vectors"] < 41


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--older-than, --max-size: one of them is required, such as --older-than 90d."),
        (["--older-than", "soon"], "--older-than: must be a positive number, such as 90d (got 'soon')."),
        (["--older-than", "0d"], "--older-than: must be a positive number, such as 90d (got '0d')."),
        (["--older-than", "-3"], "--older-than: must be a positive number, such as 90d (got '-3')."),
        (["--older-than", "3h"], "--older-than: must be a positive number, such as 90d (got '3h')."),
        (["--max-size", "9" * 400], f"--max-size: must be a positive number, such as 2GB (got '{'9' * 49})."),
        (["--max-size", "2XB"], "--max-size: must be a positive number, such as 2GB (got '2XB')."),
        (["--max-size", "0"], "--max-size: must be a positive number, such as 2GB (got '0')."),
    ],
)
def test_an_invalid_limit_of_prune_is_one_clear_line(shell, mine, options, message):
    code, out, err = shell("cache", "prune", "--cache", mine, "-y", *options)
    assert (code, out, err) == (USAGE, "", f"rag-embedkit: {message}\n")
    assert sum(vectors(shell, mine).values()) == 44


def test_a_warm_up_whose_vectors_are_not_stored_is_a_failure_with_the_number(shell, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "embedkit-v1").symlink_to(tmp_path / "elsewhere")
    code, out, err = shell("cache", "warm", lines(tmp_path / "in.txt", TEXTS), "-m", MODEL, "-y", "--cache", "mine")
    assert (code, "40 sent" in out) == (FAILED, True)
    assert "40 vectors could not be written to the cache" in err.splitlines()[-1]


def test_an_export_that_does_not_arrive_is_a_failure_with_the_number(shell, mine, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "embedkit-v1").symlink_to(tmp_path / "elsewhere")
    for command in (("export", "copy", "--cache", mine), ("import", mine, "--cache", "copy")):
        code, out, err = shell("cache", *command)
        assert (code, out) == (FAILED, "")
        assert "only 0 vectors arrived, then writing failed" in err.splitlines()[-1]


@pytest.mark.parametrize(
    "arguments", [("clear",), ("clear", "-m", MODEL), ("prune", "--older-than", "90d"), ("prune", "--max-size", "1KB")]
)
def test_nothing_is_deleted_from_a_destroyed_cache_and_the_command_fails(shell, mine, tmp_path, arguments):
    for file in (tmp_path / "mine" / "embedkit-v1").iterdir():
        file.write_bytes(b"no database at all" * 1000)
    code, _, err = shell("cache", *arguments, "--cache", "mine", "-y")
    assert (code, err.count("\n")) == (FAILED, 1)
    assert "was quarantined. Its vectors must be embedded again." in err
    assert len(list((tmp_path / "mine").glob("embedkit-v1.set-aside-*"))) == 1


def test_an_export_of_a_model_from_a_destroyed_cache_fails(shell, mine, tmp_path):
    for file in (tmp_path / "mine" / "embedkit-v1").iterdir():
        file.write_bytes(b"no database at all" * 1000)
    code, _, err = shell("cache", "export", "copy", "-m", MODEL, "--cache", "mine")
    assert (code, "was quarantined" in err) == (FAILED, True)


def test_vectors_that_were_not_replaced_are_not_copied(shell, mine, tmp_path, monkeypatch):
    monkeypatch.setattr("embedkit_core.cache.disk.cache.BULK_WAIT_SECONDS", 0.1)
    monkeypatch.setattr("embedkit_core.cache.disk.cache.WRITE_WAIT_SECONDS", 0.1)
    shell("cache", "export", "copy", "--cache", "mine")
    lock = sqlite3.connect(tmp_path / "copy" / "embedkit-v1" / "cache.db", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    code, _, err = shell("cache", "import", "mine", "--cache", "copy")
    lock.close()
    assert (code, "only 0 vectors arrived" in err) == (FAILED, True)
