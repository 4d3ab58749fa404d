"""OpenTelemetry spans and metrics, exported in memory by the SDK."""

import asyncio
import contextlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import Future
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from support.cohere_server import CohereServer
from support.embedders import fake_embedder, openai_embedder
from support.openai_server import Fault, OpenAIServer
from support.waiting import wait_until_joined

from embedkit_core import (
    BudgetError,
    Embedder,
    EmbedKitError,
    InputError,
    MissingExtraError,
    PartialFailureError,
    ProviderError,
)
from embedkit_core.engine.runtime.process import engine
from embedkit_core.observability.otel import SCHEMA_URL, instrument, uninstrument
from embedkit_core.observability.otel_instrumentor import EmbedKitInstrumentor
from embedkit_core.testing import FakeServer
from langchain_embedkit import EmbedKitEmbeddings
from llamaindex_embedkit import EmbedKitEmbedding

PRICE = Decimal("0.02")
SECONDS, TOKENS = "gen_ai.client.embeddings.duration", "gen_ai.client.embeddings.operation.input_tokens"


class Recorded:
    """The spans and metrics that were exported."""

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

    def everything(self):
        spans = [json.loads(span.to_json()) for span in self.spans]
        return json.dumps(spans) + str(self.points())


@pytest.fixture
def recorded():
    yield Recorded()
    uninstrument()


class StartedSpans:
    """Records the names of the spans that start in a `with` block."""

    def __init__(self, recorded):
        self.spans = []
        self._is_open = True
        recorded.tracers.add_span_processor(self)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._is_open = False

    def on_start(self, span, parent_context=None):
        if self._is_open:
            self.spans.append(span.name)

    def _on_ending(self, span):
        pass

    def on_end(self, span):
        pass

    def shutdown(self):
        pass


@pytest.mark.parametrize("installed", [True, False])
def test_spans_and_metrics_have_the_version_of_the_installed_distribution(monkeypatch, installed):
    def not_installed(name):
        raise importlib.metadata.PackageNotFoundError(name)

    if not installed:
        monkeypatch.setattr(importlib.metadata, "version", not_installed)
    expected = importlib.metadata.version("rag-embedkit") if installed else ""
    recorded = Recorded()
    try:
        fake_embedder(FakeServer()).embed(["one"])
        [span], [metrics] = recorded.spans, recorded.reader.get_metrics_data().resource_metrics
    finally:
        uninstrument()
    assert span.instrumentation_scope.version == expected
    assert {scope.scope.version for scope in metrics.scope_metrics} == {expected}


def test_a_call_is_a_span_with_the_names_of_the_semantic_conventions(recorded):
    with OpenAIServer() as server:
        openai_embedder(server, dimensions=256).embed(["one two three", "four", "four"])
        [span] = recorded.spans
        host, port = server.base_url.removeprefix("http://").removesuffix("/v1").split(":")
    assert (span.name, span.kind) == ("embeddings text-embedding-3-small", trace.SpanKind.CLIENT)
    assert dict(span.attributes) == {
        "gen_ai.operation.name": "embeddings",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "text-embedding-3-small",
        "gen_ai.response.model": "text-embedding-3-small",
        "gen_ai.embeddings.dimension.count": 256,
        "gen_ai.request.encoding_formats": ("base64",),
        "gen_ai.usage.input_tokens": 4,
        "server.address": host,
        "server.port": int(port),
        "embedkit.input_type": "document",
        "embedkit.dtype": "float32",
        "embedkit.texts": 3,
        "embedkit.cache.hits": 0,
        "embedkit.duplicates": 1,
        "embedkit.coalesced": 0,
        "embedkit.sent": 2,
        "embedkit.failed": 0,
        "embedkit.empty": 0,
        "embedkit.requests": 1,
        "embedkit.retries": 0,
        "embedkit.possibly_billed.tokens": 0,
        "embedkit.cost.usd": 8e-8,
        "embedkit.saved.usd": 0.0,
    }


def test_metrics_have_the_names_of_the_semantic_conventions(recorded):
    with OpenAIServer() as server:
        openai_embedder(server).embed(["one two"])
    points = recorded.points()
    assert set(points) == {SECONDS, TOKENS, "embedkit.texts", "embedkit.requests", "embedkit.cost"}
    [tokens], [seconds] = points[TOKENS], points[SECONDS]
    assert (tokens.sum, tokens.count, seconds.count) == (2, 1, 1)
    assert tokens.explicit_bounds == (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304,
                                      16777216, 67108864)  # fmt: skip
    assert seconds.explicit_bounds == pytest.approx(
        (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
    )
    names = {"operation.name", "provider.name", "request.model", "response.model"}
    assert set(tokens.attributes) == {f"gen_ai.{name}" for name in names} | {"server.address", "server.port"}
    assert tokens.attributes == seconds.attributes


def test_tracer_and_meter_name_the_schema(recorded):
    fake_embedder(FakeServer()).embed(["one"])
    [span], [metrics] = recorded.spans, recorded.reader.get_metrics_data().resource_metrics
    assert {span.instrumentation_scope.schema_url, *(m.schema_url for m in metrics.scope_metrics)} == {SCHEMA_URL}


def test_the_model_that_replied_is_recorded_as_far_as_the_reply_names_it(recorded, tmp_path):
    """Of a call, a stream and a caller whose text another one is sending; not of a cache hit."""
    with OpenAIServer(reply_model="text-embedding-3-small-2024") as server:
        embedder = openai_embedder(server, cache=tmp_path)
        embedder.embed(["one"])
        list(embedder.embed_iter(["two"]))
        embedder.embed(["one"])
    with OpenAIServer(reply_model="x" * 10_000) as server:
        openai_embedder(server).embed(["three"])
    models = [span.attributes.get("gen_ai.response.model") for span in recorded.spans]
    assert models == ["text-embedding-3-small-2024", "text-embedding-3-small-2024", None, None]


def test_the_command_opentelemetry_instrument_records_without_a_change_of_the_program(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(INSTRUMENTED)
    command = [shutil.which("opentelemetry-instrument", path=Path(sys.executable).parent), sys.executable, program]
    environment = os.environ | {"OTEL_TRACES_EXPORTER": "console", "OTEL_METRICS_EXPORTER": "none"}
    environment |= {"OTEL_LOGS_EXPORTER": "none", "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": ""}
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["name"] == "embeddings my-model", run.stderr


INSTRUMENTED = """
from embedkit_core import Embedder
from embedkit_core.testing import FakeServer

server = FakeServer()
Embedder("fake:my-model", base_url=server.url, cache=False).embed(["text"])
"""


def test_the_instrumentor_can_be_called_and_undone(recorded):
    again = Recorded()
    EmbedKitInstrumentor().instrument(tracer_provider=recorded.tracers)
    fake_embedder(FakeServer()).embed(["text"])
    EmbedKitInstrumentor().uninstrument()
    fake_embedder(FakeServer()).embed(["text"])
    assert (len(recorded.spans), len(again.spans)) == (1, 0)


def test_hits_are_not_billable(recorded, tmp_path):
    server = FakeServer(usd_per_million=PRICE)
    embedder = fake_embedder(server, cache=tmp_path)
    embedder.embed(["one two"])
    embedder.embed(["one two"])
    first, second = recorded.spans
    assert first.attributes["gen_ai.usage.input_tokens"] == 2
    assert "gen_ai.usage.input_tokens" not in second.attributes
    assert second.attributes["embedkit.cache.hits"] == 1
    assert second.attributes["embedkit.saved.usd"] > 0
    points = recorded.points()
    assert [point.sum for point in points[TOKENS]] == [2]
    assert {p.attributes["embedkit.outcome"]: p.value for p in points["embedkit.texts"]} == {"sent": 1, "cache_hits": 1}


async def test_tokens_of_a_coalesced_text_are_counted_once(recorded):
    server = FakeServer()
    embedder = fake_embedder(server)
    server.hold()
    asked = asyncio.gather(*(embedder.aembed(["five words that all want"]) for _ in range(3)))
    await asyncio.to_thread(wait_until_joined, embedder, 3)
    server.release()
    await asked
    assert sum(span.attributes.get("gen_ai.usage.input_tokens", 0) for span in recorded.spans) == 5
    assert [point.sum for point in recorded.points()[TOKENS]] == [5]


def test_the_parent_is_the_span_of_the_caller_in_tasks_and_threads(recorded):
    server = FakeServer()
    embedder = fake_embedder(server)
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
    embedder = fake_embedder(FakeServer())

    async def run():
        return [row async for row in embedder.aembed_iter(f"text {i}" for i in range(5000))]

    rows = asyncio.run(run()) if is_async else list(embedder.embed_iter(f"text {i}" for i in range(5000)))
    [span] = recorded.spans
    assert len(rows) == span.attributes["embedkit.texts"] == 5000
    assert span.attributes["gen_ai.usage.input_tokens"] == 10_000
    assert span.status.is_unset


def test_errors_are_named_without_their_message(recorded):
    server = FakeServer(usd_per_million=PRICE)
    server.rejected_texts.add("a flawed text")
    embedder = fake_embedder(server)
    with pytest.raises(PartialFailureError):
        embedder.embed(["good", "a flawed text"])
    with pytest.raises(InputError):
        embedder.embed([" "])
    with pytest.raises(BudgetError):
        fake_embedder(server, budget_usd=0).embed(["a flawed text"])
    with pytest.raises(PartialFailureError):
        list(embedder.embed_iter(["fine", "a flawed text"]))
    assert [span.attributes["error.type"] for span in recorded.spans] == [
        "PartialFailureError",
        "InputError",
        "BudgetError",
        "PartialFailureError",
    ]
    assert all(span.status.status_code is trace.StatusCode.ERROR for span in recorded.spans)
    assert "flawed" not in recorded.everything()
    errors = {p.attributes.get("error.type") for p in recorded.points()[SECONDS]}
    assert errors == {"PartialFailureError", "InputError", "BudgetError"}


async def test_a_cancelled_call_ends_its_span(recorded):
    server = FakeServer()
    embedder = fake_embedder(server)
    server.hold()
    task = asyncio.create_task(embedder.aembed(["text"]))
    await asyncio.to_thread(server.wait_for_requests, 1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    server.release()
    [span] = recorded.spans
    assert span.attributes["error.type"] == "CancelledError"


def test_texts_are_recorded_only_if_content_capture_is_enabled(monkeypatch):
    recorded = Recorded()
    server = FakeServer()
    fake_embedder(server).embed(["a secret text"])
    assert "secret" not in recorded.everything()
    recorded = Recorded(capture_content=True)
    fake_embedder(server).embed(["a secret text"])
    assert recorded.spans[0].attributes["embedkit.input"] == ("a secret text",)
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "true")
    recorded = Recorded()
    fake_embedder(server).embed(["a secret text"])
    uninstrument()
    assert "secret" in recorded.everything()


def test_recorded_texts_can_always_be_exported():
    recorded = Recorded(capture_content=True)
    with pytest.raises(InputError):
        fake_embedder(FakeServer()).embed(["half a \ud83d", 5, "fine"])
    uninstrument()
    assert recorded.spans[0].attributes["embedkit.input"] == ("half a ?", "fine")
    assert recorded.everything().encode()


KEY, HEADER, TEXT = "sk-not-to-be-seen", "a-header-not-to-be-seen", "The patient Jane Roe was seen on the 4th of May."


@pytest.mark.parametrize("fault", [None, Fault(status=400), Fault(status=401), Fault(status=500), Fault(cut=True)])
def test_no_key_header_text_or_message_is_recorded(fault):
    """The server repeats the request in its errors."""
    recorded = Recorded()
    settings = {"api_key": KEY, "headers": {"x-mine": HEADER}, "cache": False, "max_retries": 0}
    with OpenAIServer(api_key=KEY, echo_input_in_errors=True) as server:
        settings |= {"model": "openai:text-embedding-3-small", "base_url": server.base_url}
        server.fault_for(lambda texts, number: fault)
        calls = [
            lambda: Embedder(**settings).embed([TEXT]),
            lambda: asyncio.run(Embedder(**settings).aembed([TEXT])),
            lambda: list(Embedder(**settings).embed_iter(iter([TEXT]))),
            lambda: EmbedKitEmbeddings(**settings).embed_documents([TEXT]),
            lambda: EmbedKitEmbedding(**settings).get_text_embedding(TEXT),
        ]
        for call in calls:
            with contextlib.nullcontext() if fault is None else pytest.raises(ProviderError):
                call()
    uninstrument()
    assert [span.status.is_ok or span.status.is_unset for span in recorded.spans] == [fault is None] * len(calls)
    exported = recorded.everything()
    assert not [piece for piece in (KEY, HEADER, "Jane", "Roe", "Refused", "refused") if piece in exported]
    assert not any(span.events for span in recorded.spans)


def test_the_address_is_recorded_for_provider_hosts_too(recorded, tmp_path):
    for model, host in [
        ("openai:text-embedding-3-small", "api.openai.com"),
        ("voyage:voyage-4", "api.voyageai.com"),
        ("cohere:embed-v4.0", "api.cohere.com"),
        ("azure:mine", "mine.openai.azure.com"),
    ]:
        azure = {"base_url": f"https://{host}", "dimensions": 8} if model == "azure:mine" else {}
        embedder = Embedder(model, api_key="pa-test", cache=tmp_path, **azure)
        vector = np.eye(1, embedder.dimensions, dtype=np.float32)
        embedder.import_vectors(["kept"], vector, verify=0)
        embedder.embed(["kept"])
        attributes = recorded.spans[-1].attributes
        assert (attributes["server.address"], attributes["server.port"]) == (host, 443)
        assert attributes["gen_ai.request.encoding_formats"] == ("base64",)
    assert attributes["gen_ai.provider.name"] == "azure.ai.openai"


def test_cohere_dtypes_are_recorded_as_encodings(recorded):
    with CohereServer() as server:
        for dtype in ("float32", "int8"):
            Embedder("cohere:embed-v4.0", api_key="test-key", base_url=server.base_url, dtype=dtype, cache=False).embed(
                ["text"]
            )
    assert [span.attributes["gen_ai.request.encoding_formats"] for span in recorded.spans] == [("base64",), ("int8",)]


def test_no_attribute_name_is_a_prefix_of_another(recorded):
    """A store that turns names with dots into objects refuses a span with both."""
    fake_embedder(FakeServer(usd_per_million=PRICE)).embed(["one"])
    names = set(recorded.spans[0].attributes)
    assert not [(one, other) for one in names for other in names if other.startswith(f"{one}.")]


@pytest.mark.parametrize("method", ["embed", "aembed", "embed_iter", "aembed_iter"])
def test_an_error_handled_by_the_caller_is_not_recorded(recorded, method):
    """As if the call were made to recover from another error."""
    embedder = fake_embedder(FakeServer())

    async def run():
        try:
            raise KeyError
        except KeyError:
            if method == "aembed":
                await embedder.aembed(["one two"])
            else:
                assert [row async for row in embedder.aembed_iter(["one two"])]

    try:
        raise KeyError
    except KeyError:
        if method.startswith("a"):
            asyncio.run(run())
        else:
            rows = getattr(embedder, method)(["one two"])
            assert method == "embed" or list(rows)
    [span] = recorded.spans
    assert span.status.is_unset
    assert span.attributes["embedkit.sent"] == 1


def test_a_call_refused_on_the_engine_thread_has_no_span(recorded):
    embedder = fake_embedder(FakeServer())
    refused = Future()
    account = engine().account(embedder.provider)

    def on_the_loop():
        with pytest.raises(EmbedKitError, match="aembed"):
            embedder.embed(["text"])
        refused.set_result(True)

    with StartedSpans(recorded) as started:
        engine().call(account, on_the_loop)
        assert refused.result(20)
    assert started.spans == []


def test_a_stream_that_is_never_iterated_has_no_span(recorded):
    with StartedSpans(recorded) as started:
        fake_embedder(FakeServer()).embed_iter(["text"]).close()
    assert started.spans == []


@pytest.mark.parametrize("texts", [50, 5000], ids=["one request", "requests in flight"])
def test_the_span_of_a_closed_stream_is_no_error_and_has_the_tokens_billed_by_then(recorded, texts):
    embedder = fake_embedder(FakeServer())
    rows = embedder.embed_iter(f"text {i}" for i in range(texts))
    next(rows)
    rows.close()
    [span] = recorded.spans
    assert span.status.is_unset
    if texts == 50:
        assert span.attributes["gen_ai.usage.input_tokens"] == embedder.usage.tokens == 100


async def test_a_call_cancelled_during_its_cache_lookup_ends_its_span(recorded):
    class Slow(dict):
        asked, go_on = threading.Event(), threading.Event()

        def get_many(self, keys):
            self.asked.set()
            assert self.go_on.wait(20)
            return {}

        def set_many(self, items):
            self.update(items)

        def close(self):
            pass

    cache = Slow()
    task = asyncio.create_task(fake_embedder(FakeServer(), cache=cache).aembed(["text"] * 100))
    await asyncio.to_thread(cache.asked.wait, 20)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    cache.go_on.set()
    [span] = recorded.spans
    assert span.attributes["error.type"] == "CancelledError"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_does_not_end_the_span_of_the_parent():
    """Otherwise its span would be exported twice."""
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", FORKED], capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout.split()) == (0, ["child", "0", "parent", "1"]), run.stderr


FORKED = """
import os
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from embedkit_core import Embedder
from embedkit_core.observability.otel import instrument
from embedkit_core.testing import FakeServer

tracers, exporter = TracerProvider(), InMemorySpanExporter()
tracers.add_span_processor(SimpleSpanProcessor(exporter))
instrument(tracers)
server = FakeServer()
rows = Embedder("fake:model", base_url=server.url, cache=False).embed_iter(f"text {i}" for i in range(9))
next(rows)
if (child := os.fork()) == 0:
    rows.close()
    print("child", len(exporter.get_finished_spans()), flush=True)
    os._exit(0)
os.waitpid(child, 0)
rows.close()
print("parent", len(exporter.get_finished_spans()), flush=True)
"""


def test_retries_are_counted(recorded):
    with OpenAIServer(faults=[Fault(status=500, headers={"retry-after": "0"})]) as server:
        openai_embedder(server).embed(["text"])
    assert recorded.spans[0].attributes["embedkit.retries"] == 1
    counted = {
        name: [point.value for point in recorded.points()[f"embedkit.{name}"]] for name in ("requests", "retries")
    }
    assert counted == {"requests": [2], "retries": [1]}


def test_failed_texts_are_an_error_also_with_on_error_return(recorded):
    server = FakeServer()
    server.rejected_texts.add("a flawed text")
    fake_embedder(server, on_error="return").embed(["good", "a flawed text"])
    [span] = recorded.spans
    assert (span.attributes["error.type"], span.attributes["embedkit.failed"]) == ("PartialFailureError", 1)


def test_a_call_in_progress_ends_its_span_after_uninstrument(recorded):
    server = FakeServer()
    server.hold()
    caller = threading.Thread(target=fake_embedder(server).embed, args=[["text"]])
    caller.start()
    server.wait_for_requests(1)
    uninstrument()
    server.release()
    caller.join(20)
    assert len(recorded.spans) == 1


def test_instrumenting_again_records_once(recorded):
    again = Recorded()
    fake_embedder(FakeServer()).embed(["text"])
    assert (len(recorded.spans), len(again.spans)) == (0, 1)


ROW = re.compile(r"^\| (`.*?) \|", re.M)


def test_the_page_names_every_attribute_and_metric_and_no_others(tmp_path):
    page = (Path(__file__).parents[3] / "docs" / "opentelemetry.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", page, re.M | re.S))
    recorded = Recorded(capture_content=True)
    with OpenAIServer(faults=[Fault(status=500, headers={"retry-after": "0"}), None, Fault(status=401)]) as server:
        embedder = openai_embedder(server, cache=tmp_path)
        embedder.embed(["text"])
        embedder.embed(["text"])
        with pytest.raises(ProviderError):
            embedder.embed(["another"])
    uninstrument()
    found = {name for span in recorded.spans for name in span.attributes}, set(recorded.points())
    for recorded_names, title in zip(found, ("Spans", "Metrics"), strict=True):
        cells = " ".join(ROW.findall(sections[title]))
        assert set(re.findall(r"`([a-z_.]+\.[a-z_.]+)`", cells)) == recorded_names


def test_calls_of_both_frameworks_are_spans(recorded):
    server = FakeServer()
    settings = {"base_url": server.url, "cache": False}
    EmbedKitEmbeddings("fake:model", **settings).embed_query("one")
    EmbedKitEmbedding("fake:model", **settings).get_text_embedding_batch(["one", "two"])
    assert [span.attributes["embedkit.input_type"] for span in recorded.spans] == ["query", "document"]


def test_a_failing_span_processor_affects_no_call(recorded, caplog):
    class Broken(SimpleSpanProcessor):
        def on_start(self, span, parent_context=None):
            raise RuntimeError("broken")

    recorded.tracers.add_span_processor(Broken(InMemorySpanExporter()))
    embedder = fake_embedder(FakeServer())
    assert [embedder.embed([text]).usage.sent for text in ("one", "two")] == [1, 1]
    assert caplog.text.count("Call observer failed with RuntimeError") == 1


def test_a_failure_at_the_end_of_a_span_affects_no_call_and_leaves_no_span_open(recorded, monkeypatch):
    def broken(self, *given):
        raise RuntimeError

    monkeypatch.setattr("opentelemetry.sdk.metrics.Counter.add", broken)
    assert fake_embedder(FakeServer()).embed(["text"]).usage.sent == 1
    assert len(recorded.spans) == 1


def test_nothing_is_recorded_after_uninstrument(recorded):
    uninstrument()
    uninstrument()
    fake_embedder(FakeServer()).embed(["text"])
    assert recorded.spans == ()


def test_spans_are_never_ended_on_an_engine_thread(recorded):
    threads = set()

    class Seen(SimpleSpanProcessor):
        def on_end(self, span):
            threads.add(threading.current_thread().name)

    recorded.tracers.add_span_processor(Seen(InMemorySpanExporter()))
    embedder = fake_embedder(FakeServer())
    embedder.embed(["text"])
    asyncio.run(embedder.aembed([f"text {i}" for i in range(500)]))
    assert not threads & {"embedkit-engine", "embedkit-writer"}


def test_without_opentelemetry_the_error_names_the_extra_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.metrics", None)  # of the namespace another part is there
    with pytest.raises(MissingExtraError, match=r"rag-embedkit\[otel\]"):
        instrument()
