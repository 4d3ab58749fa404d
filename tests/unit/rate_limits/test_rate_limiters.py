"""Rate limiters of the frameworks: one permit per request, with its tokens, and none for a cache hit."""

import asyncio
import subprocess
import sys
import threading

import pytest
from langchain_core.rate_limiters import BaseRateLimiter as LangChainLimiter
from langchain_core.rate_limiters import InMemoryRateLimiter
from support.embedders import numbered
from support.limiters import LIMITERS, LlamaIndexLimiter
from support.openai_server import Fault, vector_of

from embedkit_core import ConfigurationError, Embedder, EmbedKitError, ProviderError
from embedkit_core.costs.tokens import estimate_tokens
from embedkit_core.engine.runtime.process import engine
from embedkit_core.testing import FakeServer, fake_vector
from langchain_embedkit import EmbedKitEmbeddings
from llamaindex_embedkit import EmbedKitEmbedding

OPENAI = "openai:text-embedding-3-small"


class RecordingLimiter:
    """Grants permits while it is open, and records the tokens and the threads of the calls."""

    def __init__(self):
        self.asked = []
        self.threads = set()
        self.open = threading.Event()
        self.open.set()
        self.arrived = threading.Semaphore(0)

    def note(self, tokens):
        self.asked.append(tokens)
        self.threads.add(threading.current_thread())
        self.arrived.release()
        assert self.open.wait(60)


class LangChainStyle(RecordingLimiter, LangChainLimiter):
    def acquire(self, *, blocking=True):
        assert blocking
        self.note(None)
        return True

    async def aacquire(self, *, blocking=True):
        raise AssertionError("a limiter is asked on a thread of the library's own")


class LlamaIndexStyle(RecordingLimiter, LlamaIndexLimiter):
    def acquire(self, num_tokens=0):
        self.note(num_tokens)

    async def async_acquire(self, num_tokens=0):
        raise AssertionError("a limiter is asked on a thread of the library's own")


def options(server, **more):
    return {"model": OPENAI, "base_url": server.base_url, "api_key": "test-key", "cache": False, **more}


def langchain(server, limiter, **more):
    return EmbedKitEmbeddings(**options(server, rate_limiter=limiter, **more))


def llamaindex(server, limiter, **more):
    return EmbedKitEmbedding(**options(server, rate_limiter=limiter, **more))


def embed(model, texts):
    return model.embedder.embed(texts)


each_framework = pytest.mark.parametrize(
    ("make_model", "kind"), [(langchain, LangChainStyle), (llamaindex, LlamaIndexStyle)]
)


@each_framework
async def test_each_request_takes_one_permit_and_a_hit_takes_none(server, tmp_path, make_model, kind):
    limiter = kind()
    model = make_model(server, limiter, cache=tmp_path, max_batch_texts=40)
    documents = numbered(200)
    for _ in range(2):
        rows = (
            model.embed_documents(documents)
            if make_model is langchain
            else await model.aget_text_embedding_batch(documents)
        )
        assert rows == [vector_of(text).tolist() for text in documents]
        query = (
            await model.aembed_query("text-7 word") if make_model is langchain else model.get_query_embedding("a query")
        )
        assert len(query) == 1536
    assert len(limiter.asked) == len(server.requests) >= 6
    assert model.usage.requests == len(server.requests)


def test_the_llamaindex_limiter_gets_the_tokens_of_each_request(server):
    limiter = LlamaIndexStyle()
    model = llamaindex(server, limiter, max_batch_texts=10)
    model.get_text_embedding_batch(numbered(25, tokens=50))
    first, *others = server.requests
    assert limiter.asked[0] == sum(estimate_tokens(t, t.encode()) for t in first.texts)
    # The bill of the first request corrects the estimate.
    assert sum(limiter.asked[1:]) == pytest.approx(sum(request.tokens for request in others), rel=0.1)


@each_framework
def test_a_retry_needs_its_own_permit(server, make_model, kind):
    limiter = kind()
    server.faults.extend([Fault.rate_limited(retry_after=0), Fault(status=503)])
    embed(make_model(server, limiter), ["a"])
    assert len(limiter.asked) == len(server.requests) == 3


@each_framework
def test_a_limiter_is_never_called_on_an_event_loop(server, make_model, kind):
    limiter = kind()
    model = make_model(server, limiter)
    asyncio.run(model.embedder.aembed(["a"]))
    embed(model, ["b"])
    assert {thread.name for thread in limiter.threads} == {"embedkit-limiter"}


async def test_the_callers_loop_is_free_while_the_limiter_waits(server):
    limiter = LangChainStyle()
    limiter.open.clear()
    work = asyncio.create_task(langchain(server, limiter).aembed_documents(["a"]))
    await asyncio.to_thread(limiter.arrived.acquire)
    for _ in range(20):
        await asyncio.sleep(0)
    assert not work.done()
    assert server.requests == []
    limiter.open.set()
    assert await work == [vector_of("a").tolist()]


async def test_a_caller_cancelled_while_the_limiter_waits_sends_nothing(server):
    limiter = LangChainStyle()
    limiter.open.clear()
    model = langchain(server, limiter)
    work = asyncio.create_task(model.aembed_documents(["a"]))
    await asyncio.to_thread(limiter.arrived.acquire)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    limiter.open.set()
    assert await model.aembed_documents(["b"]) == [vector_of("b").tolist()]
    assert [request.texts for request in server.requests] == [("b",)]
    assert model.usage.requests == 1


async def test_a_caller_that_joins_while_the_limiter_waits_is_served_when_the_first_is_cancelled(server):
    limiter = LangChainStyle()
    limiter.open.clear()
    model = langchain(server, limiter)
    first = asyncio.create_task(model.aembed_documents(["a", "b"]))
    await asyncio.to_thread(limiter.arrived.acquire)
    second = asyncio.create_task(model.aembed_documents(["b"]))
    scheduler = engine().account(model.embedder.provider).scheduler
    while len(scheduler.registry.items[key(model, "b")].waiters) < 2:  # noqa: ASYNC110 - the engine has no event for it
        await asyncio.sleep(0.001)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    limiter.open.set()
    assert await second == [vector_of("b").tolist()]
    assert [request.texts for request in server.requests] == [("b",)]
    assert len(limiter.asked) == 1


def key(model, text):
    return bytes.fromhex(model.embedder.explain(text).key)


async def test_a_caller_without_a_limiter_does_not_wait_for_the_limiter_of_another(server):
    """Neither for a text that waits for a permit, nor for the only slot."""
    limiter = LangChainStyle()
    limiter.open.clear()
    limited = langchain(server, limiter, max_concurrency=1)
    work = asyncio.create_task(limited.aembed_documents(["a", "b"]))
    await asyncio.to_thread(limiter.arrived.acquire)
    free = langchain(server, None, max_concurrency=1)
    assert await free.aembed_documents(["b", "c"]) == [vector_of(text).tolist() for text in ("b", "c")]
    limiter.open.set()
    assert await work == [vector_of(text).tolist() for text in ("a", "b")]
    assert sorted(text for request in server.requests for text in request.texts) == ["a", "b", "c"]
    assert (limited.usage.sent, free.usage.coalesced, free.usage.sent) == (2, 1, 1)  # the first caller of a text pays
    assert len(limiter.asked) == 1


async def test_a_query_waits_for_at_most_one_permit_of_documents():
    server = FakeServer(asymmetric=False)
    limiter = LlamaIndexStyle()
    limiter.open.clear()
    model = EmbedKitEmbedding(
        model="fake:any", base_url=server.url, cache=False, rate_limiter=limiter, max_batch_texts=5
    )
    bulk = asyncio.create_task(model.aget_text_embedding_batch(numbered(50)))
    await asyncio.to_thread(limiter.arrived.acquire)
    query = asyncio.create_task(model.aget_query_embedding("a query"))
    table = engine().account(model.embedder.provider).scheduler.registry.items
    while key(model, "a query") not in table:  # noqa: ASYNC110 - the engine has no event for it
        await asyncio.sleep(0.001)
    limiter.open.set()
    assert await query == fake_vector("a query", model="any").tolist()
    assert len(await bulk) == 50
    assert server.received[1].texts == ("a query",)


@each_framework
def test_embedders_with_one_limiter_share_requests_and_with_two_limiters_do_not(server, make_model, kind):
    limiter = kind()
    one, other, apart = (make_model(server, limiter) for limiter in (limiter, limiter, kind()))
    specs = [model.embedder._specs["document"].request_spec for model in (one, other, apart)]
    assert specs[0] == specs[1]
    assert specs[0] != specs[2]


class Failing(LangChainStyle):
    def acquire(self, *, blocking=True):
        raise ValueError("a secret of the user's")


class Refusing(LangChainStyle):
    def acquire(self, *, blocking=True):
        return False


@pytest.mark.parametrize(
    ("kind", "message"), [(Failing, r"acquire\(\) failed with ValueError"), (Refusing, r"acquire\(\) refused a permit")]
)
def test_a_limiter_that_fails_fails_its_callers_and_sends_nothing(server, kind, message):
    model = langchain(server, kind())
    with pytest.raises(ProviderError, match=message) as failed:
        model.embed_documents(numbered(100))
    assert "secret" not in str(failed.value)
    assert failed.value.__cause__ is None
    assert server.requests == []
    assert (model.usage.requests, model.usage.failed) == (0, 100)
    with pytest.raises(EmbedKitError):
        model.embed_documents(["again"])
    assert langchain(server, None).embed_documents(["again"]) == [vector_of("again").tolist()]


@pytest.mark.parametrize(
    "limiter",
    [
        InMemoryRateLimiter(requests_per_second=1e6, check_every_n_seconds=0.001, max_bucket_size=100),
        *LIMITERS,
    ],
    ids=lambda limiter: type(limiter).__name__,
)
@pytest.mark.parametrize(
    "make_model", [langchain, llamaindex, lambda s, limiter: Embedder(**options(s, rate_limiter=limiter))]
)
def test_the_limiters_of_both_frameworks_work_in_every_class(server, limiter, make_model):
    model = make_model(server, limiter)
    core = model if isinstance(model, Embedder) else model.embedder
    assert core.embed_documents(numbered(100)).tolist() == [vector_of(text).tolist() for text in numbered(100)]


def test_no_request_asks_a_bucket_for_more_tokens_than_its_capacity(server):
    """Otherwise the bucket would wait without end: it holds one minute of tokens at most."""

    class Small(LlamaIndexStyle):
        tokens_per_minute = 50

    limiter = Small()
    model = llamaindex(server, limiter)
    model.get_text_embedding_batch([*numbered(60, tokens=5), " ".join(["long"] * 300)])
    assert max(limiter.asked) == 50
    assert len(limiter.asked) == len(server.requests) > 10


def test_an_object_that_is_no_limiter_is_refused(server):
    for make_model in (langchain, llamaindex, lambda s, limiter: Embedder(**options(s, rate_limiter=limiter))):
        with pytest.raises(ConfigurationError, match="rate_limiter"):
            make_model(server, object())


@pytest.mark.parametrize(
    "make_model", [langchain, llamaindex, lambda s, limiter: Embedder(**options(s, rate_limiter=limiter))]
)
def test_a_limiter_with_async_methods_only_is_refused_with_the_reason(server, make_model):
    with pytest.raises(ConfigurationError, match=r"rate_limiter: acquire\(\) must not be async \(got Semaphore\)"):
        make_model(server, asyncio.Semaphore(1))


LEAVING = """
import sys, threading
from langchain_core.rate_limiters import BaseRateLimiter
from langchain_embedkit import EmbedKitEmbeddings
asked = threading.Event()
class Never(BaseRateLimiter):
    def acquire(self, *, blocking=True):
        asked.set()
        threading.Event().wait()
    async def aacquire(self, *, blocking=True): ...
model = EmbedKitEmbeddings(model=sys.argv[1], base_url=sys.argv[2], api_key="k", cache=False, rate_limiter=Never())
threading.Thread(target=model.embed_query, args=("a",), daemon=True).start()
assert asked.wait(60)
print("leaving")
"""


def test_a_limiter_that_never_returns_does_not_keep_the_process_alive(server):
    command = [sys.executable, "-c", LEAVING, OPENAI, server.base_url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "leaving\n"), done.stderr


# Limiters that misbehave


class ReturnsCoroutine:
    """A sync method that returns a coroutine."""

    def acquire(self):
        return self._later()

    async def _later(self): ...


def test_a_limiter_that_returns_a_coroutine_fails_the_call(server):
    with pytest.raises(ProviderError, match="is async"):
        Embedder(**options(server, rate_limiter=ReturnsCoroutine())).embed_query("a")
    assert server.requests == []


class Recursive:
    """Embeds a text in `acquire`."""

    def acquire(self):
        self.embedder.embed_query("may I?")


def test_a_limiter_that_embeds_fails_the_call_and_does_not_hang(server):
    limiter = Recursive()
    limiter.embedder = Embedder(**options(server, rate_limiter=limiter))
    with pytest.raises(ProviderError, match=r"acquire\(\) failed with EmbedKitError"):
        limiter.embedder.embed_query("a")


class BrokenAttribute:
    @property
    def tokens_per_minute(self):
        raise RuntimeError("not now")

    def acquire(self): ...


def test_a_limiter_with_a_failing_attribute_is_still_used(server):
    assert (
        Embedder(**options(server, rate_limiter=BrokenAttribute())).embed_query("a").tolist() == vector_of("a").tolist()
    )
