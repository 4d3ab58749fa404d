"""Internals of the SDKs of Voyage and Cohere: used if they are where they were, else the SDKs' public methods."""

import functools
import logging

import numpy as np
import pytest
from support.cohere_server import CohereServer
from support.embedders import error_texts, long_text, numbered
from support.openai_server import Fault
from support.voyage_server import VoyageServer
from voyageai.api_resources.api_requestor import APIRequestor

from embedkit_core import (
    AuthenticationError,
    BadReplyError,
    BadRequestError,
    Embedder,
    PartialFailureError,
    QuotaError,
    RateLimitError,
    TimedOutError,
    UnavailableError,
)
from embedkit_core.providers.cohere import Cohere, CohereClient
from embedkit_core.providers.http.public_sdk import warn_of_public_sdk
from embedkit_core.providers.voyage import VoyageClient

VOYAGE, COHERE = "voyage:voyage-4", "cohere:embed-v4.0"
FAMILIES = {VOYAGE: VoyageServer, COHERE: CohereServer}
families = pytest.mark.parametrize(("model", "kind"), FAMILIES.items(), ids=["voyage", "cohere"])
TEXTS = numbered(5)


class PublicOnly:
    """Cohere's client without its private attributes."""

    def __init__(self, sdk):
        self.embed = sdk.embed


@pytest.fixture
def moved(monkeypatch):
    """Versions of the SDKs whose internals have other names. They still work with their public methods."""
    send, open_sdk = APIRequestor.arequest_raw, Cohere.open_sdk

    def new_name(self, name):
        if name == "arequest_raw":
            return functools.partial(send, self)
        raise AttributeError(name)

    monkeypatch.delattr(APIRequestor, "arequest_raw")
    monkeypatch.setattr(APIRequestor, "__getattr__", new_name, raising=False)
    monkeypatch.setattr(Cohere, "open_sdk", lambda self, transport: PublicOnly(open_sdk(self, transport)))
    warn_of_public_sdk.cache_clear()
    yield
    warn_of_public_sdk.cache_clear()


def at(model, server, **settings):
    settings = {"base_url": server.base_url, "api_key": "test-key", "cache": False, "max_retries": 0, **settings}
    return Embedder(model, **settings)


@families
def test_the_installed_sdk_has_the_internals_that_are_used(model, kind, caplog):
    client_class = VoyageClient if kind is VoyageServer else CohereClient
    with kind() as server:
        client = client_class(at(model, server).provider)
        assert client._send == client._send_bytes
        at(model, server).embed(TEXTS)
    assert "public method" not in caplog.text


@pytest.mark.usefixtures("moved")
@families
@pytest.mark.parametrize("dtype", ["float32", "int8", "uint8", "binary", "ubinary"])
def test_the_public_method_gives_the_same_vectors_and_usage(model, kind, dtype, request):
    settings = {"dtype": dtype, "dimensions": 256}
    with kind() as server:
        public = at(model, server, **settings)
        documents, query = public.embed(TEXTS), public.embed_query("which?")
        public.close()
        request.getfixturevalue("monkeypatch").undo()
        private = at(model, server, **settings)
        expected = private.embed(TEXTS)
        assert documents.vectors.dtype == expected.vectors.dtype
        np.testing.assert_array_equal(documents.vectors, expected.vectors)
        np.testing.assert_array_equal(query, private.embed_query("which?"))
        assert documents.usage.tokens == expected.usage.tokens > 0
        first, _, third, _ = server.requests
        assert first.body == third.body


@pytest.mark.usefixtures("moved")
def test_the_public_method_keeps_the_order_of_the_texts():
    with VoyageServer() as right, VoyageServer(shuffle_index=True) as server:
        rows = at(VOYAGE, server).embed(TEXTS).vectors
        assert server.requests
        np.testing.assert_array_equal(rows, at(VOYAGE, right).embed(TEXTS).vectors)


@pytest.mark.usefixtures("moved")
@families
def test_the_public_method_sends_options_headers_and_the_current_key(model, kind):
    keys = iter(["key-1", "key-2"])
    with kind(api_key=None) as server:
        made = at(model, server, api_key=lambda: next(keys), headers={"x-team": "search"})
        for text in ("a", "b"):
            made.embed_query(text)
        sent = [(r.headers["authorization"], r.headers["x-team"]) for r in server.requests]
        assert sent == [("Bearer key-1", "search"), ("Bearer key-2", "search")]
        at(model, server, headers={"authorization": "Basic mine"}).embed_query("c")
        assert server.requests[-1].headers["authorization"] == "Basic mine"


@pytest.mark.usefixtures("moved")
@families
def test_the_public_method_truncates_long_texts_as_configured(model, kind):
    with kind(max_tokens_per_text=64) as server:
        result = at(model, server).embed(["short", long_text(100)])
        assert result.truncated == (1,)
        with pytest.raises(PartialFailureError, match="1 of 2 texts failed"):
            at(model, server, on_long_text="error").embed(["short too", long_text(90)])


ERRORS = [
    (Fault(status=401), AuthenticationError),
    (Fault(status=402), QuotaError),
    (Fault(status=404), BadRequestError),
    (Fault(status=307, headers={"location": "http://127.0.0.1:9/"}), BadRequestError),
    (Fault(status=429, headers={"retry-after": "7"}), RateLimitError),
    (Fault(status=500), UnavailableError),
    (Fault(status=503), UnavailableError),
    (Fault(cut=True), UnavailableError),
    (Fault(raw=b"<html>"), BadReplyError),
    (Fault(raw=b"{}"), BadReplyError),
    (Fault(hang=True), TimedOutError),
]


@pytest.mark.usefixtures("moved")
@families
@pytest.mark.parametrize(
    ("fault", "error"), ERRORS, ids=[str(fault.status or error.__name__) for fault, error in ERRORS]
)
def test_the_errors_of_the_public_method_are_translated(model, kind, fault, error):
    with kind() as server:
        server.fault_for(lambda texts, number: fault)
        with pytest.raises(error) as caught:
            at(model, server, timeout=0.2 if error is TimedOutError else 60).embed(TEXTS)
    assert type(caught.value) is error
    assert "test-key" not in error_texts(caught.value)
    if error is RateLimitError:
        assert caught.value.retry_after == 7


@pytest.mark.usefixtures("moved")
@families
def test_one_warning_says_that_the_public_method_is_used(model, kind, caplog):
    caplog.set_level(logging.WARNING, "embedkit_core")
    with kind() as server:
        for key in ("test-key", "test-key-2"):
            at(model, server, api_key=key, headers={"authorization": "Bearer test-key"}).embed(TEXTS)
    assert len([record for record in caplog.records if "public method is used" in record.getMessage()]) == 1
