"""The Gemini API: requests, limits, keys and addresses, with the real SDK and a local server."""

import logging

import numpy as np
import pytest
from support.embedders import error_texts, long_text, numbered, statuses
from support.google_server import GoogleServer, google_vector
from support.openai_replies import Fault
from support.provider_suites import ServedSuite

from embedkit_core import (
    AuthenticationError,
    BadReplyError,
    BadRequestError,
    ConfigurationError,
    Embedder,
    QuotaError,
    RateLimitError,
    TimedOutError,
    UnavailableError,
)
from embedkit_core.providers.google.client import GoogleClient

MODEL, NEWER = "google:gemini-embedding-001", "google:gemini-embedding-2"
QUERY, DOCUMENT = "task: search result | query: ", "title: none | text: "
TEXTS = numbered(3)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("GOOGLE_API_KEY", "GEMINI_API_KEY", "GOOGLE_GEMINI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server():
    with GoogleServer() as started:
        yield started


def google(server, model=MODEL, **settings):
    return Embedder(model, **{"base_url": server.base_url, "api_key": "test-key", "cache": False, **settings})


def expected(texts, task="RETRIEVAL_DOCUMENT", dimensions=None, model="gemini-embedding-001"):
    rows = np.stack([google_vector(text, task, dimensions, model) for text in texts])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class TestGoogle(ServedSuite):
    """The real SDK, with a server that repeats text and key in every refusal."""

    server_class = GoogleServer
    model = MODEL
    api_key = "AIza-test-key-of-mine"
    other_model = NEWER
    other_dimensions = 256
    wrong_dimensions = 100
    asymmetric = True

    @property
    def options(self):
        return {"taskType": "CLUSTERING"}

    def faults(self):
        refused = self.server.error
        return {
            "auth": Fault(status=400, body=refused("API key not valid. Please pass a valid API key.")),
            "bad_request": Fault(status=404, body=refused("models/x is not found", 404, "NOT_FOUND")),
            "bad_text": Fault(status=400, body=refused("EmbedContentRequest.content contains an empty Part.")),
        }


def test_each_text_is_a_content_of_its_own_and_gets_its_own_vector(server):
    """One content with several parts would get one vector."""
    result = google(server, NEWER).embed(TEXTS)
    [request] = server.requests
    assert [one["content"] for one in request.body["requests"]] == [{"parts": [{"text": DOCUMENT + t}]} for t in TEXTS]
    np.testing.assert_allclose(
        result.vectors, expected([DOCUMENT + text for text in TEXTS], None, model="gemini-embedding-2"), atol=1e-6
    )
    assert result.usage.tokens == server.billed_tokens


def test_the_task_is_a_field_of_001_and_a_prefix_of_the_text_for_later_models(server):
    google(server).embed_query("a")
    google(server, NEWER).embed_query("a")
    google(server, "google:gemini-embedding-9").embed_query("a")
    bodies = [request.body["requests"][0] for request in server.requests]
    assert [body.get("taskType") for body in bodies] == ["RETRIEVAL_QUERY", None, None]
    assert [body["content"]["parts"][0]["text"] for body in bodies] == ["a", f"{QUERY}a", "a"]


@pytest.mark.parametrize(
    ("task", "field", "prompt"),
    [
        ("classification", "CLASSIFICATION", "task: classification | query: "),
        ("clustering", "CLUSTERING", "task: clustering | query: "),
        ("similarity", "SEMANTIC_SIMILARITY", "task: sentence similarity | query: "),
        ("code", "CODE_RETRIEVAL_QUERY", "task: code retrieval | query: "),
    ],
)
def test_a_task_is_sent_as_documented_for_each_model(server, task, field, prompt):
    older, newer = (google(server, model, task=task).provider for model in (MODEL, NEWER))
    assert older.request_body("query")["taskType"] == field
    assert newer.request_body("query")["prompt"] == prompt
    of_documents = ("RETRIEVAL_DOCUMENT", DOCUMENT) if task == "code" else (field, prompt)
    assert (older.request_body("document")["taskType"], newer.request_body("document")["prompt"]) == of_documents


def test_fewer_dimensions_of_001_are_normalized_here_and_cut_from_cached_vectors(server, tmp_path):
    rows = google(server, dimensions=256).embed(TEXTS).vectors
    assert server.requests[0].body["requests"][0]["outputDimensionality"] == 256
    assert np.linalg.norm(google_vector(TEXTS[0], "RETRIEVAL_DOCUMENT", 256)) < 0.5
    np.testing.assert_allclose(rows, expected(TEXTS, dimensions=256), atol=1e-6)
    google(server, cache=tmp_path).embed(TEXTS)
    cut = google(server, cache=tmp_path, dimensions=256).embed(TEXTS)
    assert cut.usage.cache_hits == 3
    np.testing.assert_allclose(cut.vectors, rows, atol=1e-6)


def test_a_reply_without_usage_counts_as_possibly_billed(server):
    usage = google(server).embed(TEXTS).usage
    assert (usage.tokens, usage.cost_usd) == (0, 0)
    assert usage.possibly_billed_tokens >= server.billed_tokens


def test_a_body_over_the_limit_of_bytes_is_split(server):
    server.max_bytes = 2_000
    texts = numbered(40)
    np.testing.assert_allclose(google(server).embed(texts).vectors, expected(texts), atol=1e-6)
    assert 400 in statuses(server)


def test_a_text_that_the_api_would_truncate_silently_is_truncated_here_or_refused(server):
    server.truncates_silently, server.max_tokens_per_text = True, 40
    texts = ["short", long_text(60)]
    settings = {"model_info": {"text_tokens": 40}}
    assert google(server, **settings).embed(texts).truncated == (1,)
    refused = google(server, **settings, on_long_text="error", on_error="return").embed(texts)
    assert list(refused.failed) == [1]


def test_the_server_gets_no_deadline_that_it_refuses(server):
    """The Gemini API refuses less than 10 seconds."""
    for timeout in (2.0, 30.5, None):
        google(server, timeout=timeout).embed_query("a")
    assert [r.headers.get("x-server-timeout") for r in server.requests] == ["10", "31", None]


def test_the_sdk_does_not_retry(server):
    server.fault_for(lambda texts, number: Fault(status=503))
    with pytest.raises(UnavailableError):
        google(server, max_retries=0).embed(TEXTS)
    assert len(server.requests) == 1


# Keys, headers and addresses


def test_the_key_is_found_in_the_environment_as_in_the_sdk(server, monkeypatch):
    with pytest.raises(ConfigurationError, match="GOOGLE_API_KEY"):
        Embedder(MODEL, cache=False)
    monkeypatch.setenv("GEMINI_API_KEY", "gemini")
    google(server, api_key=None, cache=False)
    server.api_key = None
    google(server, api_key=None).embed_query("a")
    monkeypatch.setenv("GOOGLE_API_KEY", "google")
    google(server, api_key=None).embed_query("a")
    assert [request.headers["x-goog-api-key"] for request in server.requests] == ["gemini", "google"]


def test_headers_of_the_user_replace_those_of_the_sdk(server):
    server.api_key = "mine"
    google(server, headers={"X-Goog-Api-Key": "mine", "x-team": "search", "User-Agent": "us"}).embed_query("a")
    [request] = server.requests
    assert (request.headers["x-team"], request.headers["x-goog-api-key"]) == ("search", "mine")
    assert request.headers["user-agent"] == "us"


@pytest.mark.parametrize(("end", "path"), [("", "/v1beta"), ("/", "/v1beta"), ("/v1beta/", "/v1beta"), ("/v1", "/v1")])
def test_a_base_url_may_have_a_version_or_not(server, end, path):
    google(server, base_url=f"{server.origin}{end}").embed_query("a")
    assert server.paths == [f"{path}/models/gemini-embedding-001:batchEmbedContents"]


def test_the_key_of_a_vector_does_not_depend_on_how_model_and_host_are_written(server, monkeypatch):
    def key(model=MODEL, **settings):
        return Embedder(model, api_key="k", cache=False, **settings).explain("x").key

    own = "https://generativelanguage.googleapis.com"
    assert {key("google:models/gemini-embedding-001"), key(base_url=own), key(base_url=f"{own}/v1/")} == {key()}
    assert key(base_url=server.base_url) != key()
    assert key("vertex:gemini-embedding-001") != key()
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", server.origin)
    assert key() == key(base_url=server.base_url)


@pytest.mark.parametrize("name", ["gemini/gemini-embedding-2", "google_genai:gemini-embedding-2"])
def test_the_names_of_other_libraries_are_recognized(name):
    with pytest.raises(ConfigurationError, match="did you mean 'google:gemini-embedding-2'"):
        Embedder(name, cache=False)


# The SDK's public method


@pytest.fixture
def public(monkeypatch):
    opened = GoogleClient._open_sdk

    class PublicOnly:
        """The SDK's client without its private attributes."""

        def __init__(self, sdk):
            self.aio, self._kept = sdk.aio, sdk

    monkeypatch.setattr(GoogleClient, "_open_sdk", lambda self, tls: PublicOnly(opened(self, tls)))


@pytest.mark.usefixtures("public")
@pytest.mark.parametrize("model", [MODEL, NEWER])
def test_the_public_method_gives_the_same_vectors_and_usage(server, model, request, caplog):
    caplog.set_level(logging.WARNING, "embedkit_core")
    given = google(server, model, dimensions=256).embed(TEXTS)
    request.getfixturevalue("monkeypatch").undo()
    same = google(server, model, dimensions=256).embed(TEXTS)
    np.testing.assert_array_equal(given.vectors, same.vectors)
    assert given.usage.tokens == same.usage.tokens
    first, second = server.requests
    assert first.body == second.body


@pytest.mark.usefixtures("public")
@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault(status=401), AuthenticationError),
        (Fault(status=402), QuotaError),
        (Fault(status=404), BadRequestError),
        (Fault(status=307, headers={"location": "http://127.0.0.1:9/"}), BadRequestError),
        (Fault(status=429), RateLimitError),
        (Fault(status=500), UnavailableError),
        (Fault(cut=True), UnavailableError),
        (Fault(raw=b"<html>"), BadReplyError),
        (Fault(raw=b"{}"), BadReplyError),
        (Fault(hang=True), TimedOutError),
    ],
    ids=["401", "402", "404", "307", "429", "500", "cut", "html", "empty", "hang"],
)
def test_the_errors_of_the_public_method_are_translated(server, fault, error):
    server.fault_for(lambda texts, number: fault)
    with pytest.raises(error) as caught:
        google(server, max_retries=0, timeout=0.2 if error is TimedOutError else 60).embed(TEXTS)
    assert "test-key" not in error_texts(caught.value)
