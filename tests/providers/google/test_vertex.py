"""Vertex AI: requests, truncation, addresses and credentials, with the real SDK and a local server."""

import json
import threading

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.oauth2 import service_account as service_account_credentials
from support.embedders import error_texts, long_text, numbered, statuses
from support.google_server import VertexServer, google_vector
from support.openai_replies import Fault
from support.provider_suites import ServedSuite

from embedkit_core import AuthenticationError, Embedder, PartialFailureError, TextTooLongError, UnavailableError
from embedkit_core.providers.google.client import GoogleClient

OLDER, GEMINI, NEWER = "vertex:text-embedding-005", "vertex:gemini-embedding-001", "vertex:gemini-embedding-2"
VARIABLES = ("GOOGLE_API_KEY", "GEMINI_API_KEY", "GOOGLE_CLOUD_PROJECT", "GOOGLE_CLOUD_LOCATION")
PUBLISHED = "publishers/google/models"
PROJECT = "projects/my-project/locations"
TEXTS = numbered(3)


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    for name in (*VARIABLES, "GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_VERTEX_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_GCE_CHECK", "true")  # asks no metadata server
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))  # nor the user's credentials


@pytest.fixture
def server():
    with VertexServer() as started:
        yield started


def vertex(server, model=OLDER, **settings):
    return Embedder(model, **{"base_url": server.base_url, "api_key": "test-key", "cache": False, **settings})


class TestVertex(ServedSuite):
    """A model of `predict`, with a server that repeats text and key in every refusal."""

    server_class = VertexServer
    model = OLDER
    api_key = "AQ-test-key-of-mine"
    other_model = "vertex:text-multilingual-embedding-002"
    other_dimensions = 256
    wrong_dimensions = 769
    asymmetric = True

    @property
    def options(self):
        return {"taskType": "CLUSTERING"}

    def faults(self):
        refused = self.server.error
        return {
            "auth": Fault(status=403, body=refused("Permission denied", 403, "PERMISSION_DENIED")),
            "bad_request": Fault(status=404, body=refused("Publisher Model was not found", 404, "NOT_FOUND")),
            "bad_text": Fault(status=400, body=refused("Empty instances.")),
            "bad_reply": Fault(transform=lambda reply: reply | {"data": reply["data"][:-1] or [{"embedding": None}]}),
        }


def test_a_gemini_model_gets_one_text_per_request(server):
    """Documented for both; gemini-embedding-2 has a method that takes one content only."""
    newer = vertex(server, NEWER).embed(TEXTS)
    older = vertex(server, GEMINI).embed(TEXTS)
    assert [len(request.texts) for request in server.requests] == [1] * 6
    assert set(server.paths) == {
        f"/v1beta1/{PUBLISHED}/gemini-embedding-2:embedContent",
        f"/v1beta1/{PUBLISHED}/gemini-embedding-001:predict",
    }
    rows = [google_vector(f"title: none | text: {text}", None, None, "gemini-embedding-2") for text in TEXTS]
    np.testing.assert_allclose(newer.vectors, np.stack(rows), atol=1e-6)
    rows = [google_vector(text, "RETRIEVAL_DOCUMENT", None, "gemini-embedding-001") for text in TEXTS]
    np.testing.assert_allclose(older.vectors, np.stack(rows), atol=1e-6)
    assert newer.usage.tokens + older.usage.tokens == server.billed_tokens


def test_fewer_texts_per_region_are_learned_from_a_refusal(server):
    server.max_inputs = 5
    assert len(vertex(server).embed(numbered(40)).vectors) == 40
    assert {len(request.texts) for request in server.requests if request.status == 200} <= set(range(1, 6))


@pytest.mark.parametrize("model", [OLDER, NEWER])
def test_a_long_text_is_refused_and_then_truncated_by_vertex(server, model):
    server.max_tokens_per_text = 40
    settings = {"model_info": {"text_tokens": 60}}
    result = vertex(server, model, **settings).embed(["short", long_text(50)])
    assert result.truncated == (1,)
    assert 400 in statuses(server)
    sent = [server.config_of(request.body)["autoTruncate"] for request in server.requests if request.status == 200]
    assert sorted(sent) == [False, True]
    with pytest.raises(PartialFailureError) as caught:
        vertex(server, model, **settings, on_long_text="error").embed(["short", long_text(50)])
    assert isinstance(caught.value.failed[1], TextTooLongError)


# Addresses


@pytest.mark.parametrize(
    ("base_url", "variables", "address", "path"),
    [
        (None, {"GOOGLE_API_KEY": "k"}, "https://aiplatform.googleapis.com", ""),
        (None, {"GOOGLE_CLOUD_PROJECT": "p"}, "https://aiplatform.googleapis.com", "projects/p/locations/global/"),
        (
            None,
            {"GOOGLE_CLOUD_PROJECT": "p", "GOOGLE_CLOUD_LOCATION": "europe-west4", "GOOGLE_API_KEY": "k"},
            "https://europe-west4-aiplatform.googleapis.com",
            "projects/p/locations/europe-west4/",
        ),
        (
            None,
            {"GOOGLE_CLOUD_PROJECT": "p", "GOOGLE_CLOUD_LOCATION": "eu"},
            "https://aiplatform.eu.rep.googleapis.com",
            "projects/p/locations/eu/",
        ),
        (
            f"https://us-east1-aiplatform.googleapis.com/v1/{PROJECT}/us-east1",
            {"GOOGLE_CLOUD_PROJECT": "p", "GOOGLE_CLOUD_LOCATION": "eu"},
            "https://us-east1-aiplatform.googleapis.com",
            f"{PROJECT}/us-east1/",
        ),
    ],
    ids=["express", "project", "region", "multi-region", "base_url"],
)
def test_project_and_location_come_from_the_address_or_the_environment(base_url, variables, address, path, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    made = Embedder(OLDER, base_url=base_url, cache=False)
    place = made.provider.place
    shown = "" if place.project is None else f"projects/{place.project}/locations/{place.location or 'global'}/"
    assert (place.host, shown) == (address, path)
    assert made.provider.uses_credentials == ("GOOGLE_CLOUD_PROJECT" in variables)
    assert made.provider.endpoint == ""


def test_project_and_location_are_not_part_of_the_key_and_another_host_is(monkeypatch, server):
    def key(model=OLDER, **settings):
        return Embedder(model, cache=False, **settings).explain("x").key

    plain = key(api_key="k")
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "p")
    monkeypatch.setenv("GOOGLE_CLOUD_LOCATION", "us-central1")
    other = f"https://europe-west4-aiplatform.googleapis.com/v1/{PROJECT}/europe-west4"
    names = {key(f"vertex:{PUBLISHED}/text-embedding-005"), key(base_url=other)}
    assert {key(), *names} == {plain}
    assert key(base_url=server.base_url, api_key="k") != plain
    assert key("vertex:projects/p/locations/us-central1/endpoints/123") != plain


def test_requests_of_two_projects_do_not_share_limits():
    hosts = [f"https://aiplatform.googleapis.com/v1/projects/{name}/locations/global" for name in ("a", "b")]
    assert len({Embedder(OLDER, base_url=host, api_key="k", cache=False).provider.account for host in hosts}) == 2


# Credentials


@pytest.fixture
def service_account(server, tmp_path, monkeypatch):
    """The file of a service account, whose tokens the server issues."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    encoded = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    account = {"type": "service_account", "client_email": "me@my-project.example", "private_key_id": "1"}
    account |= {"private_key": encoded.decode(), "token_uri": f"{server.origin}/token", "project_id": "my-project"}
    path = tmp_path / "account.json"
    path.write_text(json.dumps(account))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "my-project")
    server.access_token = "ya29.secret-access-token"
    server.max_inputs = 2


@pytest.mark.usefixtures("service_account")
async def test_credentials_are_used_without_a_key_and_refreshed_off_the_event_loop(server, monkeypatch):
    threads, refresh = [], service_account_credentials.Credentials.refresh

    def observed(self, request):
        threads.append(threading.current_thread().name)
        refresh(self, request)

    monkeypatch.setattr(service_account_credentials.Credentials, "refresh", observed)
    monkeypatch.setenv("GOOGLE_CLOUD_LOCATION", "us-central1")
    made = vertex(server, api_key=None)
    assert len((await made.aembed(numbered(6))).vectors) == 6
    assert (server.token_requests, len(threads)) == (1, 1)
    assert threads[0] not in ("embedkit-engine", "MainThread")
    assert set(server.paths) == {f"/v1beta1/{PROJECT}/us-central1/{PUBLISHED}/text-embedding-005:predict"}
    for request in server.requests:
        assert request.headers["authorization"] == "Bearer ya29.secret-access-token"
        assert "x-goog-api-key" not in request.headers


@pytest.mark.usefixtures("service_account")
def test_a_key_that_is_passed_replaces_credentials(server):
    server.access_token = None
    vertex(server).embed_query("a")
    assert server.paths == [f"/v1beta1/{PUBLISHED}/text-embedding-005:predict"]
    assert server.token_requests == 0


@pytest.mark.usefixtures("service_account")
def test_an_error_shows_no_access_token(server):
    server.fault_for(lambda texts, number: Fault(status=403, body=server.error("ya29.secret-access-token is bad", 403)))
    with pytest.raises(AuthenticationError, match="roles/aiplatform") as caught:
        vertex(server, api_key=None).embed(TEXTS)
    assert "ya29" not in error_texts(caught.value)


@pytest.mark.usefixtures("service_account")
def test_refused_and_unreachable_credentials_are_told_apart(server, monkeypatch, tmp_path):
    account = json.loads((tmp_path / "account.json").read_text())
    cases = {f"{server.origin}/no-token": AuthenticationError, "http://127.0.0.1:9/": UnavailableError}
    for number, (address, error) in enumerate(cases.items()):
        other = tmp_path / f"account-{number}.json"
        other.write_text(json.dumps(account | {"token_uri": address}))
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(other))
        with pytest.raises(error, match="Google Cloud credentials"):
            vertex(server, api_key=None, max_retries=0).embed(TEXTS)


def test_missing_credentials_and_projects_say_what_to_do(server, monkeypatch):
    with pytest.raises(AuthenticationError, match="gcloud auth application-default login"):
        Embedder(OLDER, cache=False).embed(TEXTS)
    server.api_key = None
    vertex(server, api_key=None).embed_query("a")  # a gateway that needs none
    assert server.requests


# The SDK's public method


@pytest.mark.parametrize("model", [OLDER, GEMINI, NEWER])
def test_the_public_method_gives_the_same_vectors_tokens_and_truncation(server, model, monkeypatch):
    opened = GoogleClient._open_sdk

    class PublicOnly:
        def __init__(self, sdk):
            self.aio, self._kept = sdk.aio, sdk

    server.max_tokens_per_text = 40
    texts, settings = ["short", long_text(60)], {"dimensions": 256, "model_info": {"text_tokens": 50}}
    same = vertex(server, model, **settings).embed(texts)
    monkeypatch.setattr(GoogleClient, "_open_sdk", lambda self, tls: PublicOnly(opened(self, tls)))
    given = vertex(server, model, **settings).embed(texts)
    np.testing.assert_array_equal(given.vectors, same.vectors)
    assert (given.usage.tokens, given.truncated) == (same.usage.tokens, same.truncated) == (same.usage.tokens, (1,))
