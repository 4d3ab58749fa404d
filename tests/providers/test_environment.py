"""Environment variables of SDKs and HTTP clients: none reaches a server that it was not meant for."""

import pytest
from support.bedrock_server import BedrockServer
from support.cohere_server import CohereServer
from support.embedders import error_texts
from support.google_server import GoogleServer, VertexServer
from support.json_servers import NomicServer
from support.openai_server import Fault, OpenAIServer
from support.voyage_server import VoyageServer

from embedkit_core import BadRequestError, ConfigurationError, Embedder

HOSTILE = "leak-of-the-environment"
KEY = "key-of-the-user"
# Every variable that openai 2.16 to 3.57, cohere 5.13 to 7.3, voyageai 0.3.7 to 0.5, google-genai 2.0 to 3.6, httpx,
# httpx2, aiohttp and requests read, except the addresses of proxies and certificates, which are meant for every host.
VARIABLES = [
    *("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_ORGANIZATION", "OPENAI_PROJECT_ID"),
    *("OPENAI_WEBHOOK_SECRET", "OPENAI_API_TYPE", "OPENAI_API_VERSION"),
    *("AZURE_OPENAI_API_KEY", "AZURE_OPENAI_AD_TOKEN", "AWS_BEARER_TOKEN_BEDROCK", "AWS_REGION", "AWS_DEFAULT_REGION"),
    *("CO_API_KEY", "COHERE_API_KEY", "VOYAGE_API_KEY", "HF_TOKEN", "GOOGLE_API_KEY", "GEMINI_API_KEY"),
    *("GOOGLE_CLOUD_PROJECT", "GOOGLE_CLOUD_LOCATION", "GOOGLE_GENAI_API_VERSION", "GOOGLE_GENAI_USE_VERTEXAI"),
    *("NOMIC_API_KEY", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACEHUB_API_TOKEN"),
]
ADDRESSES = ["OPENAI_API_BASE", "OPENAI_BASE_URL", "AZURE_OPENAI_ENDPOINT", "AWS_BEDROCK_BASE_URL", "CO_API_URL"]
ADDRESSES += ["GOOGLE_GEMINI_BASE_URL", "GOOGLE_VERTEX_BASE_URL"]
CUSTOM_HEADERS = "\n".join(
    f"{name}: {HOSTILE}" for name in ("Authorization", "X-Custom", "User-Agent", "X-Stainless-Lang", "OpenAI-Project")
)
MODELS = {f"{name}:m": OpenAIServer for name in ("azure", "ollama", "mistral", "jina")}
MODELS |= {
    "openai:m": OpenAIServer,
    "voyage:voyage-4": VoyageServer,
    "cohere:embed-v4.0": CohereServer,
    "nomic:nomic-embed-text-v1.5": NomicServer,
    "bedrock:cohere.embed-v4:0": BedrockServer,
    "google:gemini-embedding-001": GoogleServer,
    "vertex:text-embedding-005": VertexServer,
}
OWN_NAMES = {"openai-organization", "openai-project"}  # sent to every server of the provider "openai"


@pytest.fixture
def hostile(monkeypatch, tmp_path):
    """An environment in which each variable and ~/.netrc has a secret."""
    for name in VARIABLES:
        monkeypatch.setenv(name, HOSTILE)
    for name in ADDRESSES:
        monkeypatch.setenv(name, "http://127.0.0.1:9/v1")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", CUSTOM_HEADERS)
    netrc = tmp_path / ".netrc"
    netrc.write_text(f"machine 127.0.0.1 login user password {HOSTILE}\ndefault login user password {HOSTILE}\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(netrc))


def at(server, model, **settings):
    return Embedder(
        model, **{"base_url": server.base_url, "api_key": KEY, "cache": False, "max_retries": 0, **settings}
    )


def unwanted(headers, allowed=()):
    return [name for name, value in headers.items() if HOSTILE in value and name not in allowed]


@pytest.mark.usefixtures("hostile")
@pytest.mark.parametrize("model", MODELS)
def test_no_server_receives_a_value_of_the_environment(model):
    with MODELS[model](api_key=None) as server:
        at(server, model).embed(["a"])
        [request] = server.requests
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert not unwanted(request.headers, OWN_NAMES if model == "openai:m" else ())
    assert "basic" not in str(request.headers).lower()


@pytest.mark.parametrize("model", MODELS)
def test_no_server_receives_a_variable_that_is_set_after_the_embedder_was_made(model, request):
    with MODELS[model](api_key=None) as server:
        embedder = at(server, model)
        request.getfixturevalue("hostile")
        embedder.embed(["a"])
        [sent] = server.requests
    assert sent.headers["authorization"] == f"Bearer {KEY}"
    assert not unwanted(sent.headers)


@pytest.mark.usefixtures("hostile")
@pytest.mark.parametrize("preset", ["ollama", "mistral"])
def test_a_server_without_a_key_receives_no_key_of_the_environment(preset):
    with OpenAIServer(api_key=None) as server:
        at(server, f"{preset}:m", api_key=None).embed(["a"])
        assert not unwanted(server.requests[0].headers)


def test_custom_headers_are_sent_to_the_address_of_the_environment(monkeypatch):
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", f"X-Team: search\nX-Own: theirs\n Authorization : {HOSTILE}\nno colon")
    with OpenAIServer(api_key=None) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        at(server, "openai:m", base_url=None, headers={"x-own": "mine"}).embed(["a"])
        [request] = server.requests
    assert (request.headers["x-team"], request.headers["x-own"]) == ("search", "mine")
    assert request.headers["authorization"] == f"Bearer {KEY}"


def test_an_error_shows_no_custom_header(monkeypatch):
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", f"X-Gateway-Key: {HOSTILE}")
    with OpenAIServer(api_key=None) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        server.fault_for(lambda texts, number: Fault(status=404, body={"error": {"message": f"no {HOSTILE}"}}))
        with pytest.raises(BadRequestError) as caught:
            at(server, "openai:m", base_url=None).embed(["a"])
    assert HOSTILE not in error_texts(caught.value)


def test_an_invalid_custom_header_is_one_clear_error_without_its_value(monkeypatch):
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", f"not a name: {HOSTILE}")
    with pytest.raises(ConfigurationError, match="environment variable OPENAI_CUSTOM_HEADERS") as caught:
        Embedder("openai:text-embedding-3-small", api_key=KEY, cache=False)
    assert HOSTILE not in error_texts(caught.value)
    Embedder("ollama:m", cache=False)
