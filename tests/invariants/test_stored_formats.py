"""A later version reads stored cache folders and LlamaIndex's transformation hashes.

`tests/fixtures/stored/write.py` wrote the files, and nothing rewrites them by itself. If a test here fails, users embed
again what they have paid for: keep the format, or keep reading the old one.
"""

import base64
import contextlib
import gzip
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from llama_index.core.ingestion.pipeline import get_transformation_hash
from llama_index.core.schema import TextNode

from embedkit_core import Embedder
from embedkit_core.cache.maintenance import CacheFolder
from embedkit_core.coordination.local.coordinator import LocalCoordinator
from embedkit_core.costs.amounts import Amount, BudgetLimit, BudgetStatus
from llamaindex_embedkit import EmbedKitEmbedding

STORED = Path(__file__).parents[1] / "fixtures" / "stored"
PACKED = STORED / "cache" / "embedkit-v1" / "cache.db.gz"
EXPECTED = json.loads((STORED / "cache" / "expected.json").read_text(encoding="utf-8"))
HASHED = json.loads((STORED / "llamaindex.json").read_text(encoding="utf-8"))
NOWHERE = {"api_key": "any", "proxy": "http://127.0.0.1:9", "max_retries": 0}  # a miss is an error


@pytest.fixture(autouse=True)
def own_hosts(monkeypatch):
    """An address in the environment changes keys and hashes."""
    for name in ("OPENAI_BASE_URL", "CO_API_URL"):
        monkeypatch.delenv(name, raising=False)


def unpack(folder: Path, database: bytes) -> None:
    own = folder / "embedkit-v1"
    own.mkdir(mode=0o700)
    (own / "cache.db").write_bytes(database)
    (own / "cache.db").chmod(0o600)


def read_all(folder: Path) -> None:
    """Assert that every stored text is a hit, and its vector the stored one bit for bit."""
    for case in EXPECTED["cases"]:
        with Embedder(**case["settings"], **NOWHERE, cache=folder) as embedder:
            result = embedder.embed(case["texts"], input_type=case["input_type"])
        assert (result.usage.requests, result.usage.cache_hits) == (0, len(case["texts"]))
        assert result.vectors.dtype == np.dtype(case["dtype"])
        assert [row.tobytes() for row in result.vectors] == [base64.b64decode(row) for row in case["vectors"]]
        assert sorted(result.truncated) == case["truncated"]


def test_a_stored_cache_answers_every_text(tmp_path):
    unpack(tmp_path, gzip.decompress(PACKED.read_bytes()))
    read_all(tmp_path)


def test_a_stored_cache_is_verified_as_intact(tmp_path):
    unpack(tmp_path, gzip.decompress(PACKED.read_bytes()))
    found = CacheFolder(tmp_path).verify()
    assert (found.vectors, found.damaged, found.quarantined) == (EXPECTED["entries"], 0, False)


def test_the_stored_cases_cover_each_type_and_a_truncated_text():
    types = {np.dtype(case["dtype"]) for case in EXPECTED["cases"]}
    assert types == {np.dtype(name) for name in ("float32", "float16", "int8", "uint8")}
    assert any(case["truncated"] for case in EXPECTED["cases"])


def test_a_stored_coordination_file_of_version_1_is_upgraded_in_place(tmp_path):
    """Its named budgets are kept. A process of version 1 refuses it from then on, by its version."""
    folder = tmp_path / "embedkit-coordination-v1"
    folder.mkdir(mode=0o700)
    file = folder / "coordination.db"
    file.write_bytes(gzip.decompress((STORED / "coordination" / "coordination.db.gz").read_bytes()))
    file.chmod(0o600)
    limit, spent = BudgetLimit(1000, None), {"spent": Amount(100, 5), "lost": Amount(40, 2)}
    for reopened in range(2):
        coordinator = LocalCoordinator(folder)
        held = Amount(860, 9) if reopened else Amount()
        assert coordinator.budgets() == [BudgetStatus("ingest", limit, **spent, held=held, holds=held)]
        assert coordinator.hold("batch", "ingest", limit, Amount(860, 9)) is None
        coordinator.close()
    with contextlib.closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)


READ_ONLY = """
import gzip, importlib, logging, os, sys, tempfile
from pathlib import Path
from embedkit_core.providers.registry import provider_class
sys.path.insert(0, sys.argv[1])
from test_stored_formats import PACKED, read_all, unpack
database = gzip.decompress(PACKED.read_bytes())
with tempfile.TemporaryDirectory() as folder:  # a first read imports all that the second needs
    unpack(Path(folder), database)
    read_all(Path(folder))
for name in ("openai", "cohere"):  # found again below, where another user may not read the folder of the packages
    for package in provider_class(name).needs:
        importlib.import_module(package)
if os.geteuid() == 0:  # root may write anywhere
    os.setegid(65534)
    os.seteuid(65534)
records = []
handler = logging.Handler()
handler.emit = records.append
logging.getLogger("embedkit_core").addHandler(handler)
with tempfile.TemporaryDirectory() as folder:
    unpack(Path(folder), database)
    own = Path(folder, "embedkit-v1")
    (own / "cache.db").chmod(0o400)
    own.chmod(0o500)
    try:
        try:
            (own / "probe").touch()
        except PermissionError:
            pass
        else:
            raise AssertionError("the folder is not read-only")
        read_all(Path(folder))
        assert [path.name for path in own.iterdir()] == ["cache.db"]
        assert (own / "cache.db").read_bytes() == database
        messages = [record.getMessage() for record in records]
        complaints = [message for message in messages if "truncated to the model's limit" not in message]
        assert not complaints, complaints
    finally:
        own.chmod(0o700)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions")
def test_a_stored_cache_is_read_from_a_read_only_folder():
    command = [sys.executable, "-W", "error", "-c", READ_ONLY, str(Path(__file__).parent)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("case", HASHED, ids=[case["name"] for case in HASHED])
def test_llamaindex_finds_its_stored_transformations(case):
    """Every entry counts, also one at its default: LlamaIndex hashes the whole dictionary in its order."""
    model = EmbedKitEmbedding(**case["arguments"], api_key="any", cache=False)
    assert list(model.to_dict().items()) == list(case["to_dict"].items())
    assert get_transformation_hash([TextNode(text="a text")], model) == case["hash"]
