"""Refusals, timeouts, credentials, regions and addresses of Amazon Bedrock, with the real SDK and a local server."""

import asyncio
import logging
import re

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from support.bedrock_server import (
    ACCESS_KEY,
    SECRET_KEY,
    SESSION_TOKEN,
    TITAN_2,
    BedrockServer,
    bedrock,
    request_threads,
)
from support.embedders import error_texts, numbered
from support.openai_replies import Fault
from support.proxy import Relay, certificate

from embedkit_core import (
    AuthenticationError,
    BadReplyError,
    BadRequestError,
    Embedder,
    QuotaError,
    RateLimitError,
    TimedOutError,
    UnavailableError,
)

TEXTS = numbered(5)


@pytest.mark.parametrize(
    ("status", "code", "message", "error", "shown"),
    [
        (
            403,
            "AccessDeniedException",
            "You don't have access to the model",
            AuthenticationError,
            "bedrock:InvokeModel",
        ),
        (403, "ExpiredTokenException", "The security token included is expired", AuthenticationError, "aws sso login"),
        (403, "UnrecognizedClientException", "The security token is invalid", AuthenticationError, "AWS_PROFILE"),
        (400, "IncompleteSignature", "Authorization header requires", AuthenticationError, "IncompleteSignature"),
        (404, "ResourceNotFoundException", "Could not resolve the model", BadRequestError, "AWS_REGION"),
        (400, "ValidationException", "The provided model identifier is invalid.", BadRequestError, "AWS_REGION"),
        (
            400,
            "ValidationException",
            "Invocation of model ID x with on-demand throughput isn\u2019t supported.",
            BadRequestError,
            "bedrock:us",
        ),
        (400, "ValidationException", "Malformed input request: #: extraneous key", BadRequestError, "extraneous"),
        (400, "ServiceQuotaExceededException", "exceeded", QuotaError, "Service Quotas"),
        (429, "ThrottlingException", "Too many requests, please wait", RateLimitError, "HTTP 429"),
        (429, "ModelNotReadyException", "Model is not ready", RateLimitError, "HTTP 429"),
        (408, "ModelTimeoutException", "Model processing timed out", UnavailableError, "HTTP 408"),
        (424, "ModelErrorException", "The model failed", UnavailableError, "HTTP 424"),
        (500, "InternalServerException", "", UnavailableError, "HTTP 500"),
        (503, "ServiceUnavailableException", "Too many connections", UnavailableError, "HTTP 503"),
        (301, "", "", BadRequestError, "redirect"),
    ],
)
def test_each_refusal_becomes_the_right_error(server, status, code, message, error, shown):
    headers = {"x-amzn-errortype": f"{code}:http://internal.amazon.com/coral/com.amazon.bedrock/", "location": "/x"}
    server.fault_for(lambda texts, number: Fault(status=status, body=server.error(message), headers=headers))
    with pytest.raises(error, match=shown) as caught:
        bedrock(server, max_retries=0).embed(["x"])
    assert len(server.requests) == 1
    assert caught.value.request_id == "0f2c4e53-4c9f-4d2c-8d9c-1b8f2a3c4d5e"
    assert "test-key" not in error_texts(caught.value)


def test_throttling_is_retried_by_the_engine_and_not_by_the_sdk(server):
    server.fault_for(lambda texts, number: Fault(status=429, headers={"retry-after-ms": "1"}) if number < 3 else None)
    result = bedrock(server).embed(["x"])
    assert result.usage.retries == len(server.requests) - 1 == 2


def test_a_server_that_does_not_answer_is_a_timeout_for_each_setting_of_its_own(server):
    server.fault_for(lambda texts, number: Fault(hang=True) if texts == ("hanging",) else None)
    patient, hasty = bedrock(server), bedrock(server, timeout=0.1, max_retries=0)
    assert patient.provider.account == hasty.provider.account
    patient.embed(["x"])
    with pytest.raises(TimedOutError, match="timeout="):
        hasty.embed(["hanging"])
    server.wait_in_flight(0)


def test_a_body_that_never_ends_does_not_keep_its_thread():
    class Slow(BedrockServer):
        async def answer(self, request, connection):
            connection.writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            while not connection.client_left:
                connection.writer.write(b"1\r\n \r\n")
                await connection.writer.drain()
                await asyncio.sleep(0.01)

    before = request_threads()
    with Slow() as slow:
        made = bedrock(slow, timeout=0.2, max_retries=0)
        with pytest.raises(TimedOutError):
            made.embed(["x"])
        made.close()
        for thread in request_threads() - before:
            thread.join(5)
            assert not thread.is_alive()


def test_a_body_over_its_limit_is_not_read_to_its_end(server):
    server.fault_for(lambda texts, number: Fault(raw=b" " * (20 << 20), status=200 if texts == ("x",) else 500))
    with pytest.raises(BadReplyError, match="larger than"):
        bedrock(server, max_retries=0).embed(["x"])
    with pytest.raises(UnavailableError, match="HTTP 500"):
        bedrock(server, max_retries=0).embed(["y"])


# Credentials, regions and addresses


def test_the_keys_of_the_environment_sign_requests_and_are_shown_nowhere(server, keys, caplog):
    caplog.set_level(logging.INFO)
    made = bedrock(server, api_key=None, headers={"x-user": "me"})
    made.embed(TEXTS)
    sent = server.requests[0].headers
    assert sent["authorization"].startswith(f"AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/")
    assert "x-user" in sent["authorization"]
    assert (sent["x-amz-security-token"], sent["x-user"]) == (SESSION_TOKEN, "me")
    server.fault_for(
        lambda texts, number: Fault(status=403, body=server.error(f"x-amz-security-token:{SESSION_TOKEN} {SECRET_KEY}"))
    )
    with pytest.raises(AuthenticationError) as caught:
        made.embed(["refused"])
    shown = [error_texts(caught.value), repr(made.provider.account), repr(vars(made.provider)), caplog.text]
    assert not any(secret in text for secret in (SECRET_KEY, SESSION_TOKEN) for text in shown)


def signature(url, body, headers):
    """Return the signature of a request, as a service computes it from what it has received."""
    names = re.search("SignedHeaders=([^,]*)", headers["authorization"])[1].split(";")
    auth = SigV4Auth(Credentials(ACCESS_KEY, SECRET_KEY, SESSION_TOKEN), "bedrock", "us-east-1")
    request = AWSRequest("POST", url, data=body, headers={name: headers[name] for name in names})
    request.context["timestamp"] = headers["x-amz-date"]
    return auth.signature(auth.string_to_sign(request, auth.canonical_request(request)), request)


@pytest.mark.parametrize(
    "model", [TITAN_2, f"arn:aws:bedrock:us-east-1::foundation-model/{TITAN_2}"], ids=["id", "arn"]
)
def test_a_signature_is_that_of_what_is_received(server, keys, model):
    headers = {"X-User": "a  b", "Accept-Encoding": "identity", "User-Agent": "mine"}
    bedrock(server, model, api_key=None, headers=headers).embed(["x\u00e9"])
    sent = server.requests[0].headers
    expected_signature = signature(server.origin + server.paths[0], server.bodies[0], sent)
    assert sent["authorization"].endswith(f"Signature={expected_signature}")
    assert (sent["user-agent"], sent["accept-encoding"]) == ("mine", "identity")


def test_accounts_are_apart_by_credentials_and_made_without_a_look_at_them(server, keys, monkeypatch):
    one = bedrock(server, api_key=None).provider.account
    assert bedrock(server, api_key=None).provider.account == one
    assert bedrock(server, api_key=None).provider.secret.reveal() == ACCESS_KEY  # limits of all processes
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    assert bedrock(server, api_key=None).provider.account != one
    monkeypatch.setenv("AWS_PROFILE", "no-such-profile")
    assert bedrock(server).provider.account != one


def test_the_keys_of_the_profile_of_the_constructor_are_used(server, aws, monkeypatch):
    (aws / "credentials").write_text(f"[mine]\naws_access_key_id={ACCESS_KEY}\naws_secret_access_key=x\n")
    (aws / "config").write_text("[profile mine]\nregion=ca-central-1\n")
    monkeypatch.setenv("AWS_PROFILE", "mine")
    made = bedrock(server, api_key=None)
    monkeypatch.setenv("AWS_PROFILE", "no-such-profile")
    made.embed(["x"])
    assert "/ca-central-1/bedrock/" in server.requests[0].headers["authorization"]
    with pytest.raises(AuthenticationError, match=r"ProfileNotFound.*AWS_PROFILE"):
        bedrock(server, api_key=None).embed(["x"])


def test_the_bearer_token_of_the_environment_is_used(server, keys, monkeypatch):
    monkeypatch.setenv("AWS_BEARER_TOKEN_BEDROCK", "test-key")
    bedrock(server, api_key=None).embed(["x"])
    bedrock(server, api_key=lambda: "test-key").embed(["y"])
    assert {request.headers["authorization"] for request in server.requests} == {"Bearer test-key"}
    bedrock(
        server, headers={"Authorization": "Bearer of-a-gateway"}, api_key=None, max_retries=0, on_error="return"
    ).embed(["z"])
    assert server.requests[-1].headers["authorization"] == "Bearer of-a-gateway"


def test_missing_credentials_are_named(server):
    with pytest.raises(AuthenticationError, match="No AWS credentials were found"):
        bedrock(server, api_key=None).embed(["x"])
    assert not server.requests


def test_a_missing_region_is_named():
    with pytest.raises(BadRequestError, match="AWS_REGION"):
        Embedder(f"bedrock:{TITAN_2}", api_key="k", cache=False).embed(["x"])


@pytest.mark.parametrize(
    ("settings", "variables", "region"),
    [
        ({}, {"AWS_REGION": "eu-west-3", "AWS_DEFAULT_REGION": "us-west-2"}, "eu-west-3"),
        ({}, {"AWS_DEFAULT_REGION": "us-west-2"}, "us-west-2"),
        ({"base_url": "https://bedrock-runtime.eu-north-1.amazonaws.com"}, {"AWS_REGION": "eu-west-3"}, "eu-north-1"),
        ({"base_url": "https://vpce-1.bedrock-runtime.us-east-1.vpce.amazonaws.com"}, {}, "us-east-1"),
    ],
)
def test_regions_of_aws_share_their_keys_and_not_their_accounts(monkeypatch, settings, variables, region):
    plain = Embedder(f"bedrock:{TITAN_2}", api_key="k", cache=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    made = Embedder(f"bedrock:{TITAN_2}", api_key="k", cache=False, **settings)
    assert (made.provider.region, made.provider.endpoint) == (region, "")
    assert made.explain("x").key == plain.explain("x").key
    assert made.provider.account != plain.provider.account


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL_BEDROCK_RUNTIME", "AWS_ENDPOINT_URL"])
def test_the_address_of_the_environment_is_used_and_is_part_of_the_key(server, monkeypatch, name):
    monkeypatch.setenv(name, server.origin)
    made = Embedder(f"bedrock:{TITAN_2}", api_key=server.api_key, cache=False)
    assert made.embed(["x"]).vectors.shape == (1, 1024)
    assert made.explain("x").key == bedrock(server).explain("x").key
    monkeypatch.setenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")
    assert Embedder(f"bedrock:{TITAN_2}", api_key="k", cache=False).explain("x").key != made.explain("x").key


def test_an_address_of_the_profile_is_refused_because_its_keys_would_be_those_of_aws(server, aws, monkeypatch):
    (aws / "config").write_text(f"[default]\nregion=us-east-1\nendpoint_url={server.origin}\n")
    with pytest.raises(BadRequestError, match="base_url="):
        Embedder(f"bedrock:{TITAN_2}", api_key="k", cache=False).embed(["x"])
    assert not server.requests


@pytest.mark.parametrize("login", ["", "user:p%40ss@"])
def test_requests_go_through_the_proxy_of_the_user(server, login):
    with Relay(server.origin) as relay:
        proxy = relay.address.replace("://", f"://{login}")
        bedrock(server, base_url="http://bedrock.example:8080", proxy=proxy).embed(["x"])
    assert len(server.requests) == 1
    assert ("proxy-authorization" in server.requests[0].headers) == bool(login)


def test_a_server_with_a_certificate_of_the_user_is_trusted(server, tmp_path, monkeypatch):
    pem, context = certificate(tmp_path)
    with Relay(server.origin, context) as front:
        with pytest.raises(UnavailableError, match="certificate is not trusted"):
            bedrock(server, base_url=front.address, max_retries=0).embed(["x"])
        bedrock(server, base_url=front.address, ca_bundle=pem).embed(["x"])
        monkeypatch.setenv("AWS_CA_BUNDLE", str(pem))
        bedrock(server, base_url=front.address, headers={"x": "y"}).embed(["x"])
