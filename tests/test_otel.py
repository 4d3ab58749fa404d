"""Spans and metrics, as the OpenTelemetry SDK's own exporters in memory get them."""

import asyncio
import json
import threading
from decimal import Decimal

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from support.embedders import embedder as openai_embedder
from support.openai_server import OpenAIServer
from support.waiting import wait_until_joined

from embedkit_core import BudgetError, Embedder, InputError, MissingExtraError, PartialFailureError
from embedkit_core.otel import instrument, uninstrument
from embedkit_core.testing import FakeServer
from langchain_embedkit import EmbedKitEmbeddings
from llamaindex_embedkit import EmbedKitEmbedding

PRICE = Decimal("0.02")
LATEST = "gen_ai_latest_experimental"


class Recorded:
    """What was exported."""

    def __init__(self, **settings):
        self.exporter, self.reader = InMemorySpanExporter(), InMemoryMetricReader()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        instrument(self.tracers, MeterProvider([self.reader]), **settings)

    @property
    def spans(self):
        return self.exporter.get_finished_spans()

    def points(self):
        """The points of each metric."""
        data = self.reader.get_metrics_data()
        metrics = [m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics] if data else []
        return {metric.name: list(metric.data.data_points) for metric in metrics}

    def all_told(self):
        spans = [json.loads(span.to_json()) for span in self.spans]
        return json.dumps(spans) + str(self.points())


@pytest.fixture
def recorded():
    yield Recorded()
    uninstrument()


def made(server, **settings):
    return Embedder("fake:model", **{"base_url": server.url, "cache": False, **settings})


def test_a_call_is_a_span_with_the_conventions_names(recorded):
    with OpenAIServer() as server:
        openai_embedder(server, dimensions=256).embed(["one two three", "four", "four"])
        [span] = recorded.spans
        host, port = server.base_url.removeprefix("http://").removesuffix("/v1").split(":")
    assert (span.name, span.kind) == ("embeddings text-embedding-3-small", trace.SpanKind.CLIENT)
    assert dict(span.attributes) == {
        "gen_ai.operation.name": "embeddings",
        "gen_ai.system": "openai",
        "gen_ai.request.model": "text-embedding-3-small",
        "gen_ai.embeddings.dimension.count": 256,
        "gen_ai.usage.input_tokens": 4,
        "server.address": host,
        "server.port": int(port),
        "embedkit.input_type": "document",
        "embedkit.dtype": "float32",
        "embedkit.texts": 3,
        "embedkit.texts.cache_hits": 0,
        "embedkit.texts.duplicates": 1,
        "embedkit.texts.joined": 0,
        "embedkit.texts.sent": 2,
        "embedkit.texts.failed": 0,
        "embedkit.requests": 1,
        "embedkit.retries": 0,
        "embedkit.possibly_billed.tokens": 0,
        "embedkit.cost.usd": 8e-8,
        "embedkit.saved.usd": 0.0,
    }


def test_metrics_have_the_names_of_both_generations(monkeypatch):
    names = {}
    for opted in ("", f"http, {LATEST}"):
        monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", opted)
        recorded = Recorded()
        server = FakeServer(usd_per_million=PRICE)
        made(server).embed(["one two"])
        names[opted] = set(recorded.points())
        [tokens] = next(p for n, p in recorded.points().items() if n.endswith(("usage", "input_tokens")))
        assert (tokens.sum, tokens.count) == (2, 1)
        key = "gen_ai.provider.name" if opted else "gen_ai.system"
        assert tokens.attributes[key] == recorded.spans[0].attributes[key] == "fake"
        assert ("gen_ai.token.type" in tokens.attributes) is (not opted)
        assert "gen_ai.embeddings.dimension.count" not in str(recorded.points())
    uninstrument()
    own = {"embedkit.texts", "embedkit.requests", "embedkit.cost"}
    assert names[""] == own | {"gen_ai.client.operation.duration", "gen_ai.client.token.usage"}
    assert names[f"http, {LATEST}"] == own | {
        "gen_ai.client.embeddings.duration",
        "gen_ai.client.embeddings.operation.input_tokens",
    }


def test_hits_are_not_billable(recorded, tmp_path):
    server = FakeServer(usd_per_million=PRICE)
    embedder = made(server, cache=tmp_path)
    embedder.embed(["one two"])
    embedder.embed(["one two"])
    first, second = recorded.spans
    assert first.attributes["gen_ai.usage.input_tokens"] == 2
    assert "gen_ai.usage.input_tokens" not in second.attributes
    assert second.attributes["embedkit.texts.cache_hits"] == 1
    assert second.attributes["embedkit.saved.usd"] > 0
    points = recorded.points()
    assert [point.sum for point in points["gen_ai.client.token.usage"]] == [2]
    assert {p.attributes["embedkit.outcome"]: p.value for p in points["embedkit.texts"]} == {"sent": 1, "cache_hits": 1}


async def test_tokens_that_several_wait_for_are_counted_once(recorded):
    server = FakeServer()
    embedder = made(server)
    server.hold()
    asked = asyncio.gather(*(embedder.aembed(["five words that all want"]) for _ in range(3)))
    await asyncio.to_thread(wait_until_joined, embedder, 3)
    server.release()
    await asked
    assert sum(span.attributes.get("gen_ai.usage.input_tokens", 0) for span in recorded.spans) == 5
    assert [point.sum for point in recorded.points()["gen_ai.client.token.usage"]] == [5]


def test_the_parent_is_the_caller_s_span_in_tasks_and_threads(recorded):
    server = FakeServer()
    embedder = made(server)
    tracer = recorded.tracers.get_tracer("mine")

    async def in_a_task():
        with tracer.start_as_current_span("task"):
            await asyncio.gather(embedder.aembed(["a"]), asyncio.to_thread(embedder.embed, ["b"]))

    asyncio.run(in_a_task())
    with tracer.start_as_current_span("sync"):
        embedder.embed_query("c")
        list(embedder.embed_iter(["d", "e"]))
    by_id = {span.context.span_id: span.name for span in recorded.spans}
    parents = [by_id[span.parent.span_id] for span in recorded.spans if span.name.startswith("embeddings")]
    assert sorted(parents) == ["sync", "sync", "task", "task"]


@pytest.mark.parametrize("is_async", [False, True])
def test_a_stream_is_one_span(recorded, is_async):
    embedder = made(FakeServer())

    async def run():
        return [row async for row in embedder.aembed_iter(f"text {i}" for i in range(5000))]

    rows = asyncio.run(run()) if is_async else list(embedder.embed_iter(f"text {i}" for i in range(5000)))
    [span] = recorded.spans
    assert len(rows) == span.attributes["embedkit.texts"] == 5000
    assert span.attributes["gen_ai.usage.input_tokens"] == 10_000
    assert span.status.is_unset


def test_a_stream_that_is_left_is_no_error(recorded):
    rows = made(FakeServer()).embed_iter(f"text {i}" for i in range(5000))
    next(rows)
    rows.close()
    assert recorded.spans[0].status.is_unset


def test_errors_are_named_and_nothing_of_their_message_is_told(recorded):
    server = FakeServer(usd_per_million=PRICE)
    server.poison.add("a poisonous text")
    embedder = made(server)
    with pytest.raises(PartialFailureError):
        embedder.embed(["good", "a poisonous text"])
    with pytest.raises(InputError):
        embedder.embed([" "])
    with pytest.raises(BudgetError):
        made(server, budget_usd=0).embed(["a poisonous text"])
    with pytest.raises(PartialFailureError):
        list(embedder.embed_iter(["fine", "a poisonous text"]))
    assert [span.attributes["error.type"] for span in recorded.spans] == [
        "PartialFailureError",
        "InputError",
        "BudgetError",
        "PartialFailureError",
    ]
    assert all(span.status.status_code is trace.StatusCode.ERROR for span in recorded.spans)
    assert "poisonous" not in recorded.all_told()
    errors = {p.attributes.get("error.type") for p in recorded.points()["gen_ai.client.operation.duration"]}
    assert errors == {"PartialFailureError", "InputError", "BudgetError"}


async def test_a_caller_who_leaves_ends_its_span(recorded):
    server = FakeServer()
    embedder = made(server)
    server.hold()
    task = asyncio.create_task(embedder.aembed(["text"]))
    await asyncio.to_thread(server.wait_for_requests, 1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    server.release()
    [span] = recorded.spans
    assert span.attributes["error.type"] == "CancelledError"


def test_texts_are_told_only_where_content_is_asked_for(monkeypatch):
    recorded = Recorded()
    server = FakeServer()
    made(server).embed(["a secret text"])
    assert "secret" not in recorded.all_told()
    recorded = Recorded(capture_content=True)
    made(server).embed(["a secret text"])
    assert recorded.spans[0].attributes["embedkit.input"] == ("a secret text",)
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "true")
    recorded = Recorded()
    made(server).embed(["a secret text"])
    uninstrument()
    assert "secret" in recorded.all_told()


def test_no_key_is_told(recorded):
    with OpenAIServer() as server:
        embedder = Embedder(
            "text-embedding-3-small",
            base_url=server.base_url,
            api_key="sk-not-to-be-seen",
            headers={"x-mine": "also-secret"},
            cache=False,
            max_retries=0,
        )
        with pytest.raises(Exception, match="refused"):
            embedder.embed(["text"])
    assert "not-to-be-seen" not in recorded.all_told()
    assert "also-secret" not in recorded.all_told()


def test_both_frameworks_calls_are_spans(recorded):
    server = FakeServer()
    settings = {"base_url": server.url, "cache": False}
    EmbedKitEmbeddings("fake:model", **settings).embed_query("one")
    EmbedKitEmbedding("fake:model", **settings).get_text_embedding_batch(["one", "two"])
    assert [span.attributes["embedkit.input_type"] for span in recorded.spans] == ["query", "document"]


def test_what_fails_in_a_processor_harms_no_call(recorded, caplog):
    class Broken(SimpleSpanProcessor):
        def on_start(self, span, parent_context=None):
            raise RuntimeError("broken")

    recorded.tracers.add_span_processor(Broken(InMemorySpanExporter()))
    assert made(FakeServer()).embed(["text"]).usage.sent == 1
    assert "what watches calls failed with RuntimeError" in caplog.text


def test_nothing_is_recorded_after_uninstrument(recorded):
    uninstrument()
    uninstrument()
    made(FakeServer()).embed(["text"])
    assert recorded.spans == ()


def test_spans_are_ended_on_no_thread_of_the_engine_s(recorded):
    threads = set()

    class Seen(SimpleSpanProcessor):
        def on_end(self, span):
            threads.add(threading.current_thread().name)

    recorded.tracers.add_span_processor(Seen(InMemorySpanExporter()))
    embedder = made(FakeServer())
    embedder.embed(["text"])
    asyncio.run(embedder.aembed([f"text {i}" for i in range(500)]))
    assert not threads & {"embedkit-engine", "embedkit-writer"}


def test_without_the_package_the_error_is_the_line_that_installs_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"rag-embedkit\[otel\]"):
        instrument()
