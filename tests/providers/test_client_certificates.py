"""Mutual TLS: `client_cert` at a server that asks for a certificate, and errors for files that are none."""

import pickle
import ssl
from pathlib import Path

import pytest
from support.bedrock_server import BedrockServer
from support.cohere_server import CohereServer
from support.embedders import error_texts, numbered
from support.google_server import GoogleServer
from support.json_servers import NomicServer
from support.openai_server import OpenAIServer
from support.proxy import Relay, certificate, key_pair
from support.voyage_server import VoyageServer

from embedkit_core import AuthenticationError, ConfigurationError, Embedder, UnavailableError

TEXTS = numbered(3)
PASSWORD = "swordfish-of-a-key"
MODELS = {"azure:m": OpenAIServer, "ollama:m": OpenAIServer}
MODELS |= {
    "openai:m": OpenAIServer,
    "voyage:voyage-4": VoyageServer,
    "cohere:embed-v4.0": CohereServer,
    "nomic:nomic-embed-text-v1.5": NomicServer,
    "bedrock:cohere.embed-v4:0": BedrockServer,
    "google:gemini-embedding-001": GoogleServer,
}


class Files:
    """Certificates of a server and a client, and a context that requires the client's."""

    def __init__(self, folder: Path) -> None:
        self.ca_bundle, self.context = certificate(folder)
        self.cert, self.key = key_pair(folder, "client")
        _, self.other_key = key_pair(folder, "other")
        self.locked_cert, self.locked_key = key_pair(folder, "locked", PASSWORD)
        self.both = folder / "both.pem"
        self.both.write_text(self.cert.read_text() + self.key.read_text())
        self.empty = folder / "empty.pem"
        self.empty.touch()
        self.context.verify_mode = ssl.CERT_REQUIRED
        for trusted in (self.cert, self.locked_cert):
            self.context.load_verify_locations(trusted)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return Files(tmp_path_factory.mktemp("tls"))


def embed(model, server, files, *, kind=Embedder, **settings):
    with Relay(server.origin, files.context) as front:
        address = server.base_url.replace(server.origin, front.address)
        defaults = {"base_url": address, "api_key": "test-key", "cache": False, "max_retries": 0}
        embedder = kind(model=model, **{**defaults, "ca_bundle": files.ca_bundle, **settings})
        return getattr(embedder, "embedder", embedder).embed(TEXTS)


@pytest.mark.parametrize("model", MODELS)
def test_the_client_certificate_is_presented(model, files):
    with MODELS[model]() as server:
        assert len(embed(model, server, files, client_cert=(files.cert, files.key)).vectors) == 3
        with pytest.raises(UnavailableError):
            embed(model, server, files)
        assert len(server.requests) == 1


def test_a_certificate_is_accepted_in_each_form(embedder_class, files, server):
    forms = [files.both, str(files.both), (files.both,), (str(files.cert), files.key)]
    forms.append((files.locked_cert, files.locked_key, PASSWORD))
    for form in forms:
        embed("openai:m", server, files, kind=embedder_class, client_cert=form)
    assert len(server.requests) == len(forms)


@pytest.mark.parametrize("model", ["openai:m", "voyage:voyage-4", "cohere:embed-v4.0"])
def test_without_ca_bundle_the_default_certificates_are_trusted(model, files, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(files.ca_bundle))
    with MODELS[model]() as server:
        assert len(embed(model, server, files, ca_bundle=None, client_cert=files.both).vectors) == 3


@pytest.mark.parametrize(
    "given",
    [
        lambda files: files.cert,
        lambda files: (files.cert, files.other_key),
        lambda files: (files.locked_cert, files.locked_key),
        lambda files: (files.locked_cert, files.locked_key, f"wrong-{PASSWORD}"),
        lambda files: (files.locked_cert, files.locked_key, PASSWORD * 100),
        lambda files: files.empty,
    ],
    ids=["no key", "other key", "no password", "wrong password", "long password", "empty"],
)
@pytest.mark.parametrize("model", ["openai:m", "voyage:voyage-4", "cohere:embed-v4.0"])
def test_files_that_do_not_fit_are_one_clear_error_before_anything_is_sent(model, given, files):
    with MODELS[model]() as server:
        with pytest.raises(
            Exception, match="client_cert: the certificate and the key cannot be read or do not"
        ) as caught:
            embed(model, server, files, client_cert=given(files))
        assert not server.connections
    assert PASSWORD not in error_texts(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("/no/such.pem", r"not a file \(got '/no/such.pem'\)"),
        (("/no/such.pem", "/no/key.pem", PASSWORD), "not a file"),
        ((__file__, "/no/key.pem"), r"not a file \(got '/no/key.pem'\)"),
        ((), "must be a path"),
        ((__file__, __file__, 5), "must be a path"),
        ((__file__, __file__, PASSWORD, "d"), "must be a path"),
        (5, "not a file"),
        ([__file__], "not a file"),
    ],
)
def test_an_invalid_certificate_is_refused_by_the_constructor(embedder_class, given, message):
    with pytest.raises(ConfigurationError, match=f"client_cert: {message}") as caught:
        embedder_class(model="openai:text-embedding-3-small", api_key="k", cache=False, client_cert=given)
    assert PASSWORD not in error_texts(caught.value)


def test_a_password_is_not_shown_and_pickled_only_with_pickle_api_key(embedder_class):
    settings = {"model": "openai:text-embedding-3-small", "api_key": "k", "cache": False}
    model = embedder_class(client_cert=(__file__, __file__, PASSWORD), **settings)
    core = getattr(model, "embedder", model)
    assert PASSWORD not in f"{model!r} {model} {core!r} {core.provider.connection!r} {core.provider.account!r}"
    if model is not core:
        assert PASSWORD not in f"{model.model_dump()} {model.model_dump_json()}"
    assert PASSWORD.encode() not in pickle.dumps(model)
    restored = pickle.loads(pickle.dumps(model))
    with pytest.raises(AuthenticationError, match="nor the client_cert"):
        getattr(restored, "embedder", restored).embed(TEXTS)
    travels = pickle.loads(pickle.dumps(embedder_class(client_cert=__file__, pickle_api_key=True, **settings)))
    assert getattr(travels, "embedder", travels).provider.connection.client_cert == (__file__,)


def test_the_certificate_distinguishes_accounts_and_not_cache_keys():
    settings = {"api_key": "k", "cache": False}
    one, other = (
        Embedder("openai:text-embedding-3-small", client_cert=given, **settings) for given in (None, __file__)
    )
    assert one.provider.account != other.provider.account
    assert one.explain("x").key == other.explain("x").key
