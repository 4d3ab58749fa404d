"""Fixtures that several test files share."""

from importlib import import_module

import pytest
from support.openai_server import OpenAIServer
from support.plugin import install_example
from support.proxy import certificate

collect_ignore = ["fixtures/plugin_example"]  # its tests run where the package is installed

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
