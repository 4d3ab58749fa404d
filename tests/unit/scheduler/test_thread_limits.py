"""A process without room for another thread gets one of our errors, and a later call works."""

import sys

import pytest
from support.scripts import finish, start

# A stack that is larger than the address space: the operating system refuses the thread.
PROGRAM = """
from embedkit_core import EmbedKitError
from embedkit_core.engine.runtime.process import is_running
case = sys.argv[3]

class Limiter:
    def acquire(self): pass

def embedder_of(**options):
    return Embedder("text-embedding-3-small", **{"base_url": url, "api_key": "test-key", "cache": False, **options})

if case == "first call":
    call = lambda: embedder_of().embed(["one"])
elif case == "first call on an event loop":
    call = lambda: asyncio.run(embedder_of().aembed(["one"]))
elif case == "look-up on an event loop":
    call = lambda: asyncio.run(embedder.aembed(["one"]))
elif case == "rate limiter":
    embedder_of().embed(["start the engine"])
    limited = embedder_of(rate_limiter=Limiter())
    call = lambda: limited.embed(["one"])
elif case == "key function":
    embedder_of().embed(["start the engine"])
    keyed = embedder_of(api_key=lambda: "test-key")
    call = lambda: keyed.embed(["one"])

for _ in range(2):
    threading.stack_size(1 << 46)
    try:
        call()
    except EmbedKitError as error:
        assert "cannot be started" in str(error) and "limit of threads" in str(error), error
    else:
        raise AssertionError("no error")
    threading.stack_size(0)
call()
"""
CASES = ["first call", "first call on an event loop", "look-up on an event loop", "rate limiter", "key function"]


@pytest.mark.skipif(sys.platform != "linux", reason="the size of the address space")
@pytest.mark.parametrize("case", CASES)
def test_a_thread_that_cannot_start_is_an_error_that_says_what_to_do(server, tmp_path, case):
    finish(start(PROGRAM, server.base_url, tmp_path, case))
