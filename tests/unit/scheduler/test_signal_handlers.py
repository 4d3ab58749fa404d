"""Signal handlers and finalizers may embed and fork wherever they interrupt the library.

Tracing calls a function between the lines of a thread, as the interpreter calls signal handlers. So the tests try every
line; another one uses real signals.
"""

import sys
import threading

import pytest
from support.scripts import finish, start

from embedkit_core.common.threads import WakeFlag

SETUP = """
import gc, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads
from embedkit_core import EmbedKitError
from embedkit_core.testing import FakeServer
server = FakeServer()
embedder = Embedder("fake:model", base_url=server.url, cache=cache)
texts = [f"text {n}" for n in range(20)]
expected = embedder.embed(texts).vectors
embedder.embed_query("a query in memory")
number, refused = 0, 0

def cached():
    assert (embedder.embed(texts[:2]).vectors == expected[:2]).all()
    embedder.embed_query("a query in memory")

def new():
    global number, refused
    number += 1
    try:
        embedder.embed([f"new text {number}"])
    except EmbedKitError as error:
        assert "signal handler" in str(error), error
        refused += 1

def forks():
    child = os.fork()
    if child == 0:
        code = 1
        try:
            cached()
            new()
            code = int(bool(refused) or bool(embedder.vector_cache.backend.stats.write_failures))
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0

handler = {"cached": cached, "new": new, "forks": forks}[sys.argv[3]]
"""

EVERY_LINE = f"""
{SETUP}
lines = set()

def trace(frame, event, argument):
    name, line = frame.f_code.co_filename, frame.f_lineno
    if event == "line" and "embedkit_core" in name and (name, line) not in lines:
        lines.add((name, line))
        handler()
    return trace

def work():
    embedder.embed(texts[:3])
    embedder.embed_query("a query in memory")
    embedder.embed_query(f"another query {{len(lines)}}")

embedder.vector_cache.close()
before = len(server.received)
sys.settrace(trace)
work()
embedder.vector_cache.close()
work()
sys.settrace(None)
assert any(name.endswith("pool.py") for name, _ in lines) and len(lines) > 200, len(lines)
assert sys.argv[3] != "new" or refused < number / 4, (refused, number)
assert (embedder.embed(texts).vectors == expected).all()
assert not embedder.vector_cache.backend.stats.write_failures
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.parametrize("handler", ["cached", "new", "forks"])
def test_a_handler_may_interrupt_the_library_at_every_line(server, tmp_path, handler):
    """Cached texts are always available. New ones are, unless other threads wait for a lock of the interrupted code."""
    finish(start(EVERY_LINE, server.base_url, tmp_path, handler))


REAL_SIGNALS = f"""
{SETUP}
import itertools
seen, done = 0, False

def on_alarm(signum, frame):
    global seen
    seen += 1
    handler()
    if not done:  # else an alarm at the exit of the interpreter, without its handler, would kill the process
        signal.setitimer(signal.ITIMER_REAL, 0.0005)

signal.signal(signal.SIGALRM, on_alarm)
signal.setitimer(signal.ITIMER_REAL, 0.0005)
for n in itertools.count():
    assert (embedder.embed(texts[:3]).vectors == expected[:3]).all()
    embedder.embed_query(f"query {{n}}")
    if seen >= (20 if sys.argv[3] == "forks" else 200):
        break
done = True
signal.setitimer(signal.ITIMER_REAL, 0)
assert not embedder.vector_cache.backend.stats.write_failures
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.parametrize("handler", ["cached", "new", "forks"])
def test_signal_handlers_embed_and_fork_while_the_main_thread_embeds(server, tmp_path, handler):
    finish(start(REAL_SIGNALS, server.base_url, tmp_path, handler))


def test_a_wake_flag_wakes_a_thread_and_can_be_reset():
    flag = WakeFlag()
    assert not flag.wait(0)
    for _ in range(2):
        flag.set()
        flag.set()
        assert flag.is_set()
        assert flag.wait()
        assert flag.wait(0)
        flag.clear()
        flag.clear()
        assert not flag.is_set()
        assert not flag.wait(0)
    thread = threading.Thread(target=flag.set)
    thread.start()
    assert flag.wait(20)
    thread.join()
