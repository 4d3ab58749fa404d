"""Fixtures that several test files share."""

import asyncio
import os
import signal
from importlib import import_module

import pytest
from support import redis_server
from support.local_models import export_to_onnx, save_static
from support.openai_server import OpenAIServer
from support.plugin import install_example
from support.proxy import certificate

collect_ignore = ["fixtures/plugin_example"]  # its tests run where the package is installed

# Otherwise pytest-asyncio makes Python 3.11 create an event loop, which is never closed.
asyncio.set_event_loop(None)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # pytest was started in the background of a script
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.pop("RAG_EMBEDKIT_CACHE", None)  # of the developer; the tests have caches of their own

CORE = "embedkit_core:Embedder"
FRAMEWORKS = {
    "langchain": "langchain_embedkit:EmbedKitEmbeddings",
    "llamaindex": "llamaindex_embedkit:EmbedKitEmbedding",
}


def _load(path):
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


@pytest.fixture(scope="session")
def acme(tmp_path_factory):
    """The folder in which the example plugin is installed."""
    return install_example(tmp_path_factory.mktemp("acme"))


@pytest.fixture(scope="session")
def onnx_model(tmp_path_factory):
    """The folder of MiniLM as an ONNX file."""
    return export_to_onnx(tmp_path_factory.mktemp("onnx") / "MiniLM")


@pytest.fixture(scope="session")
def static_model(tmp_path_factory):
    """The folder of a model of model2vec."""
    return save_static(tmp_path_factory.mktemp("static") / "static")


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    """A certificate for localhost: its path, and a server context."""
    return certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def server():
    """A local server with OpenAI's API and limits."""
    with OpenAIServer() as running:
        yield running


@pytest.fixture(params=["core", *FRAMEWORKS])
def embedder_class(request):
    """The core's class, then that of each framework."""
    return _load({"core": CORE, **FRAMEWORKS}[request.param])


@pytest.fixture(params=FRAMEWORKS)
def framework_class(request):
    """The class of each framework."""
    return _load(FRAMEWORKS[request.param])


@pytest.fixture(scope="session")
def _shared_redis(tmp_path_factory):
    if not redis_server.is_installed():
        pytest.skip(redis_server.MISSING)
    server = redis_server.RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture
def redis(_shared_redis):
    """A Redis server without data, which tests do not stop, suspend or reconfigure."""
    with _shared_redis.client() as client:
        client.flushall()
    return _shared_redis


@pytest.fixture
def new_redis(tmp_path):
    """A function that starts a Redis server of the test's own, with settings of the command line."""
    if not redis_server.is_installed():
        pytest.skip(redis_server.MISSING)
    servers = []

    def start(*settings):
        servers.append(redis_server.RedisServer(tmp_path / f"redis-{len(servers)}", *settings))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()
