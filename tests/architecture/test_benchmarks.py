"""The internal names that the soak test reads and patches."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import threading
from benchmarks.soak import defects, leaks
from embedkit_core import Embedder
from embedkit_core.engine.runtime.process import engine
from embedkit_core.testing import FakeServer
server = FakeServer()
engine()
files, threads = leaks.open_files(), {thread.name for thread in threading.enumerate()}
with Embedder("fake:model", base_url=server.url, cache=False) as embedder:
    embedder.embed(["a", "b"])
    assert leaks.wait_until_idle(10) == []
assert leaks.lasting_leaks(files, threads) == []
for name in defects.DEFECTS:
    defects.plant(name)
"""


@pytest.mark.skipif(not (ROOT / "benchmarks").is_dir(), reason="the benchmarks are not here")
@pytest.mark.skipif(sys.platform != "linux", reason="the soak test reads /proc")
def test_the_soak_test_finds_the_names_that_it_reads_and_patches():
    run = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, run.stderr
