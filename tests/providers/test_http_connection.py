"""Connections of all HTTP providers: headers, proxies, certificates, key functions and failures."""

import base64
import itertools
import json
import logging
import pickle
import threading
from urllib.parse import quote

import pytest
from langchain_core.load import dumpd
from support.bedrock_server import BedrockServer
from support.cohere_server import CohereServer
from support.embedders import MINILM, error_texts, needs_local_model, numbered
from support.google_server import GoogleServer
from support.json_servers import NomicServer
from support.openai_server import Fault, OpenAIServer
from support.proxy import Relay
from support.voyage_server import VoyageServer

from embedkit_core import (
    AuthenticationError,
    BadRequestError,
    ConfigurationError,
    Embedder,
    RateLimitError,
    TimedOutError,
    UnavailableError,
)
from llamaindex_embedkit import EmbedKitEmbedding

TEXTS = numbered(3)
SECRET = "swordfish-of-a-gateway"
FAMILIES = {
    "openai:text-embedding-3-small": OpenAIServer,
    "voyage:voyage-4": VoyageServer,
    "cohere:embed-v4.0": CohereServer,
    "nomic:nomic-embed-text-v1.5": NomicServer,
    "bedrock:cohere.embed-v4:0": BedrockServer,
    "google:gemini-embedding-001": GoogleServer,
}
families = pytest.mark.parametrize(("model", "kind"), FAMILIES.items(), ids=[name.split(":")[0] for name in FAMILIES])


def made(model, server, **settings):
    settings = {"base_url": server.base_url, "api_key": "test-key", "cache": False, **settings}
    return Embedder(model, max_retries=0, **settings)


@families
def test_headers_are_sent_with_each_request(model, kind):
    with kind() as server:
        made(model, server, headers={"X-Gateway-Key": SECRET, "x-team": "search"}).embed(TEXTS)
        [request] = server.requests
    assert (request.headers["x-gateway-key"], request.headers["x-team"]) == (SECRET, "search")


@families
def test_a_users_authorization_header_replaces_the_api_key(model, kind):
    with kind(api_key=None) as server:
        made(model, server, headers={"authorization": f"Basic {SECRET}", "User-Agent": "mine"}).embed(TEXTS)
        [request] = server.requests
    assert request.headers["authorization"] == f"Basic {SECRET}"
    assert request.headers["user-agent"] == "mine"


@families
def test_a_redirect_is_not_followed(model, kind):
    """The user's headers would be sent to any host that a server names."""
    with kind() as server, kind(api_key=None) as other:
        moved = {"location": f"{other.origin}{server.path}"}
        server.fault_for(lambda texts, number: Fault(status=307, headers=moved))
        with pytest.raises(BadRequestError, match=r"redirect \(HTTP 307\), which is not followed\. .* base_url="):
            made(model, server, headers={"x-key": SECRET}).embed(TEXTS)
        assert not other.requests


@families
def test_requests_go_through_a_proxy(model, kind):
    with kind(api_key=None) as server, Relay() as proxy:
        result = made(model, server, proxy=proxy.address).embed(TEXTS)
        assert proxy.seen[0].startswith(f"POST {server.base_url}/")
    assert len(result.vectors) == 3


@families
def test_a_proxy_from_the_environment_is_used(model, kind, monkeypatch):
    with kind() as server, Relay() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.address)
        monkeypatch.setenv("http_proxy", proxy.address)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        made(model, server, api_key="test-key").embed(TEXTS)
        assert len(proxy.seen) == 1


@families
def test_certificates_in_ca_bundle_are_trusted(model, kind, tls):
    pem, context = tls
    with kind() as server, Relay(server.origin, context) as front:
        address = server.base_url.replace(server.origin, front.address)
        with pytest.raises(UnavailableError):
            made(model, server, base_url=address).embed(TEXTS)
        assert len(made(model, server, base_url=address, ca_bundle=pem).embed(TEXTS).vectors) == 3


@families
def test_the_key_function_is_called_before_each_request(model, kind):
    keys = (f"key-{n}" for n in itertools.count(1))
    with kind(api_key=None) as server:
        changing = made(model, server, api_key=lambda: next(keys), max_batch_texts=1, max_concurrency=1)
        changing.embed(TEXTS)
        sent = [request.headers["authorization"] for request in server.requests]
    assert sent == ["Bearer key-1", "Bearer key-2", "Bearer key-3"]


def test_the_key_function_runs_on_its_own_thread_and_not_for_a_cache_hit(tmp_path):
    threads = []

    def key():
        threads.append(threading.current_thread().name)
        return "test-key"

    with OpenAIServer() as server:
        changing = made("openai:text-embedding-3-small", server, api_key=key, cache=tmp_path)
        changing.embed(TEXTS)
        changing.embed(TEXTS)
    assert len(threads) == 1
    assert threads[0] not in ("embedkit-engine", "MainThread")


@pytest.mark.parametrize("failure", [ValueError(SECRET), SystemExit(SECRET)], ids=repr)
def test_a_failing_key_function_is_retried_as_an_outage(failure):
    asked = []

    def key():
        asked.append(1)
        raise failure

    with OpenAIServer() as server:
        broken = Embedder(
            "openai:text-embedding-3-small", base_url=server.base_url, api_key=key, cache=False, max_retries=1
        )
        with pytest.raises(UnavailableError, match="api_key: the function failed") as caught:
            broken.embed(TEXTS)
        assert not server.requests
    assert len(asked) == 2
    assert SECRET not in error_texts(caught.value)


@pytest.mark.parametrize("result", [f"{SECRET} with spaces", 5, "", None], ids=repr)
def test_an_invalid_result_of_the_key_function_is_an_authentication_error_without_the_value(result):
    def key():
        return result

    with OpenAIServer() as server:
        with pytest.raises(AuthenticationError, match="api_key: the function returned") as caught:
            made("openai:text-embedding-3-small", server, api_key=key).embed(TEXTS)
        assert not server.requests
    assert SECRET not in error_texts(caught.value)


def test_a_hanging_key_function_times_out_and_does_not_block_other_embedders():
    gate = threading.Event()

    def key():
        gate.wait(10)
        return "test-key"

    with OpenAIServer() as server:
        slow = made("openai:text-embedding-3-small", server, api_key=key, timeout=0.05)
        with pytest.raises(TimedOutError, match=r"api_key: the function did not return within 0\.05 s"):
            slow.embed(TEXTS)
        assert len(made("openai:text-embedding-3-small", server).embed(TEXTS).vectors) == 3
        gate.set()


def test_a_key_function_that_embeds_fails_the_call():
    """It would wait for itself forever."""
    with OpenAIServer() as server:
        other = made("openai:text-embedding-3-small", server)
        reentrant = made("openai:text-embedding-3-small", server, api_key=lambda: str(other.embed_query("x")))
        with pytest.raises(UnavailableError, match="api_key: the function failed with EmbedKitError"):
            reentrant.embed(TEXTS)


def test_the_account_depends_on_the_key_function_headers_and_proxy():
    def key():
        return "k"

    def account(**settings):
        return Embedder("openai:text-embedding-3-small", api_key=key, cache=False, **settings).provider.account

    assert account() == account()
    others = [account(headers={"a": "b"}), account(proxy="http://localhost:1"), account(headers={"a": "c"})]
    assert len({account(), *others}) == 4
    assert SECRET not in repr(account(headers={"a": SECRET}))


def test_headers_and_proxy_are_not_in_the_cache_key():
    def key(**settings):
        return Embedder("voyage:voyage-4", api_key="k", cache=False, **settings).explain("x").key

    assert key() == key(headers={"a": "b"}) == key(proxy="http://localhost:1")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"headers": "a"}, "headers: must be a mapping"),
        ({"headers": {f"{SECRET} b": "c"}}, "a name that HTTP does not allow"),
        ({"headers": {"Content-Length": "5"}}, "set by the client"),
        ({"headers": {"X-A": "5", "x-a": "6"}}, "appears twice"),
        ({"headers": {"a": f"{SECRET}\r\nb: c"}}, "headers: the value of 'a' must be a printable ASCII string"),
        ({"headers": {"a": 5}}, "headers: the value of 'a' must be a printable"),
        ({"proxy": "localhost"}, "proxy: not a valid address. Pass an address such as"),
        ({"proxy": "ftp://x"}, "proxy: not a valid address. Pass an address such as"),
        ({"ca_bundle": "/no/such.pem"}, "ca_bundle: not a file"),
        ({"api_key": 5}, "api_key: must be a string or a callable"),
    ],
    ids=str,
)
def test_an_invalid_connection_setting_is_refused_without_its_value(settings, message):
    with pytest.raises(ConfigurationError, match=message) as caught:
        Embedder("openai:text-embedding-3-small", **{"api_key": "k", "cache": False, **settings})
    assert SECRET not in error_texts(caught.value)


def test_an_async_key_function_is_refused():
    async def key():
        return "k"

    with pytest.raises(ConfigurationError, match="api_key: must be a sync callable"):
        Embedder("openai:text-embedding-3-small", api_key=key, cache=False)


def test_a_ca_bundle_without_certificates_is_one_clear_error(tmp_path):
    (tmp_path / "empty.pem").write_text("nothing")
    with OpenAIServer() as server:
        broken = made("openai:text-embedding-3-small", server, ca_bundle=tmp_path / "empty.pem")
        with pytest.raises(Exception, match="the file has no readable certificates"):
            broken.embed(TEXTS)


@needs_local_model
@pytest.mark.parametrize("settings", [{"headers": {"a": "b"}}, {"proxy": "http://localhost:1"}], ids=str)
def test_a_local_model_takes_no_connection_settings(settings):
    with pytest.raises(ConfigurationError, match=f"{next(iter(settings))}: not supported by the model"):
        Embedder(MINILM, cache=False, **settings)


# Pickles and representations


def test_headers_are_pickled_only_with_pickle_api_key():
    with OpenAIServer() as server:
        settings = {"headers": {"x-key": SECRET}, "api_key": "test-key"}
        stays = pickle.dumps(made("openai:text-embedding-3-small", server, **settings))
        assert SECRET.encode() not in stays
        with pytest.raises(AuthenticationError, match="headers and proxy were not pickled"):
            pickle.loads(stays).embed(TEXTS)
        travels = pickle.dumps(made("openai:text-embedding-3-small", server, pickle_api_key=True, **settings))
        pickle.loads(travels).embed(TEXTS)
        assert server.requests[-1].headers["x-key"] == SECRET


def test_an_embedder_without_its_headers_does_not_use_the_client_of_one_that_had_none(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "test-key")
    with OpenAIServer() as server:
        model = "openai:text-embedding-3-small"
        plain = made(model, server, api_key=None)
        plain.embed(TEXTS)
        lost = pickle.loads(pickle.dumps(made(model, server, api_key=None, headers={"x-key": SECRET})))
        with pytest.raises(AuthenticationError, match="headers and proxy were not pickled"):
            lost.embed(["another text"])


def constant_key():
    return "test-key"


def test_a_key_function_is_pickled_only_with_pickle_api_key_and_if_picklable():
    with OpenAIServer() as server:
        model = "openai:text-embedding-3-small"
        travels = pickle.loads(pickle.dumps(made(model, server, api_key=constant_key, pickle_api_key=True)))
        assert len(travels.embed(TEXTS).vectors) == 3
        for settings in ({"api_key": lambda: "test-key", "pickle_api_key": True}, {"api_key": constant_key}):
            with pytest.raises(AuthenticationError, match="not pickled"):
                pickle.loads(pickle.dumps(made(model, server, **settings))).embed(TEXTS)


def test_a_framework_class_shows_no_header_and_no_proxy(framework_class):
    proxy = f"http://user:{SECRET}@localhost:1"
    model = framework_class(
        model="openai:text-embedding-3-small", api_key="k", headers={"x-key": SECRET}, proxy=proxy, cache=False
    )
    shown = [repr(model), str(model), repr(model.embedder), repr(model.model_dump())]
    if framework_class is EmbedKitEmbedding:
        shown += [json.dumps(model.to_dict(), default=str), repr(model.to_payload())]
    else:
        shown.append(repr(dumpd(model)))
    assert not [one for one in shown if SECRET in one]
    assert SECRET.encode() not in pickle.dumps(model)


def test_a_framework_object_without_its_headers_cannot_be_copied(framework_class):
    model = framework_class(model="openai:text-embedding-3-small", api_key="k", headers={"x-key": SECRET}, cache=False)
    assert model.model_copy(update={"dimensions": 256}).headers == {"x-key": SECRET}
    with pytest.raises(AuthenticationError, match="headers and proxy were not pickled"):
        pickle.loads(pickle.dumps(model)).model_copy(update={"dimensions": 256})


def test_a_framework_class_accepts_a_key_function_and_headers(framework_class):
    with OpenAIServer() as server:
        model = framework_class(
            model="text-embedding-3-small",
            base_url=server.base_url,
            api_key=constant_key,
            default_headers={"x-team": "search"},
            cache=False,
        )
        model.embedder.embed(TEXTS)
        assert server.requests[0].headers["x-team"] == "search"
        again = pickle.loads(pickle.dumps(model))
        with pytest.raises(AuthenticationError):
            again.embedder.embed(TEXTS)


@pytest.mark.parametrize(("value", "secret"), [(SECRET, SECRET), ("Basic hunter2", "hunter2")])
def test_an_error_that_repeats_a_header_value_is_redacted(server, value, secret):
    server.fault_for(lambda texts, number: Fault(status=404, body={"error": {"message": f"no route for {secret}"}}))
    with pytest.raises(Exception, match="404") as caught:
        made("openai:text-embedding-3-small", server, headers={"x-key": value}).embed(TEXTS)
    assert secret not in error_texts(caught.value)


def test_a_rate_limit_error_of_the_key_function_is_a_failure_of_that_function(server):
    def key():
        raise RateLimitError("of another provider", retry_after=60.0)

    with pytest.raises(Exception, match="failed with RateLimitError"):
        made("openai:text-embedding-3-small", server, api_key=key).embed(TEXTS)


def test_an_error_that_repeats_the_previous_key_is_redacted():
    keys = iter(["alpha-9f8e7d6c5b4a", *["beta-1a2b3c4d5e6f"] * 9])
    with CohereServer(api_key=None) as server:
        made = Embedder("cohere:embed-v4.0", base_url=server.base_url, api_key=lambda: next(keys), cache=False)

        def fault(texts, number):
            seen = server.requests[number - 1].headers["authorization"]
            return Fault(status=404, body=server.error(f"model not found for {seen}"))

        server.fault_for(fault)
        with pytest.raises(Exception, match="HTTP 404") as caught:
            made.embed(TEXTS)
    assert "alpha" not in str(caught.value)


# Failures of a request


@families
@pytest.mark.parametrize("echo", [quote(SECRET[:10]), base64.b64encode(f"user:{SECRET}".encode()).decode()])
def test_an_error_has_no_terminal_escape_and_no_encoded_key_of_the_server(model, kind, echo, caplog):
    caplog.set_level(logging.DEBUG, "embedkit_core")
    with kind(api_key=None) as server:

        def fault(texts, number):
            said = "\x1b[31mthe field `size` is unknown\x1b[0m\x07" if number == 1 else f"wrong key {echo}"
            return Fault(status=404, body=server.error(said), headers={"x-request-id": f"req-{echo}\x1b[2J"})

        server.fault_for(fault)
        for shown in ("the field `size` is unknown", "HTTP 404"):
            with pytest.raises(BadRequestError, match=shown) as caught:
                made(model, server, api_key=SECRET).embed(TEXTS)
            texts = error_texts(caught.value) + caplog.text
            assert "\x1b" not in texts
            assert r"\x1b" not in texts
            assert echo not in texts
            if kind not in (CohereServer, BedrockServer):  # have an id of their own
                assert caught.value.request_id is None


@families
@pytest.mark.parametrize("headers", [{"retry-after": "7"}, {"retry-after-ms": "7000"}])
def test_a_rate_limit_error_has_the_retry_after_of_the_server(model, kind, headers):
    with kind() as server:
        server.fault_for(lambda texts, number: Fault(status=429, headers=headers))
        with pytest.raises(RateLimitError) as caught:
            made(model, server).embed(TEXTS)
    assert caught.value.retry_after == 7


@families
def test_a_request_without_an_answer_times_out(model, kind):
    with kind() as server:
        server.fault_for(lambda texts, number: Fault(hang=True))
        with pytest.raises(TimedOutError):
            made(model, server, timeout=0.05).embed(TEXTS)


@pytest.mark.parametrize("model", FAMILIES)
def test_a_server_that_cannot_be_reached_is_named(model):
    embedder = Embedder(model, base_url="http://127.0.0.1:9/v1", api_key="k", cache=False, max_retries=0)
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:9 could not be reached"):
        embedder.embed(TEXTS)


@families
def test_a_body_that_cannot_be_decompressed_is_a_connection_failure(model, kind):
    with kind() as server:
        server.fault_for(lambda texts, number: Fault(raw=b"not gzip", headers={"content-encoding": "gzip"}))
        with pytest.raises(UnavailableError, match="cannot be decompressed"):
            made(model, server).embed(TEXTS)


@families
def test_connections_are_reused(model, kind):
    with kind() as server:
        made(model, server, max_batch_texts=1, max_concurrency=1).embed(numbered(5))
        assert (len(server.requests), server.connections) == (5, 1)


@families
def test_a_refused_request_writes_no_text_and_no_key_to_the_log(model, kind, caplog):
    caplog.set_level(logging.INFO)
    with kind(echo_input_in_errors=True) as server:
        server.fault_for(lambda texts, number: Fault(status=400))
        with pytest.raises(BadRequestError):
            made(model, server).embed(["quillwort"])
    assert "quillwort" not in caplog.text
    assert "test-key" not in caplog.text
