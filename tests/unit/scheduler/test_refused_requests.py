"""Refusals that any text would get: a wrong model or key that a gateway answers with HTTP 400."""

import pytest
from support.embedders import numbered, openai_embedder
from support.openai_replies import error
from support.openai_server import Fault, OpenAIServer

from embedkit_core import BadRequestError, BadTextError, PartialFailureError

LITELLM = [
    error("/embeddings: Invalid model name passed in model=nope.", kind="None", param="None", code="400"),
    error("No connected db.", kind="no_db_connection", param="None", code="400"),
]
UNKNOWN = "The tenant is not provisioned."


def refuse_everything(server, body):
    server.fault_for(lambda texts, number: Fault(status=400, body=body))


@pytest.mark.parametrize("body", LITELLM, ids=["model", "key"])
def test_a_gateways_refusal_of_the_model_or_key_costs_one_request(server, body):
    refuse_everything(server, body)
    with pytest.raises(BadRequestError) as caught:
        openai_embedder(server).embed(numbered(1000))
    assert type(caught.value) is BadRequestError
    message = body["error"]["message"].rstrip(".")
    assert f"Server refused the request (HTTP 400): {message}" in str(caught.value)
    assert len(server.requests) == 1


@pytest.mark.parametrize(("n", "requests"), [(2, 3), (3, 5), (40, 8), (1000, 8)])
def test_a_refusal_of_every_text_is_about_the_request(server, n, requests):
    refuse_everything(server, error(UNKNOWN))
    for on_error in ("raise", "return"):
        before = len(server.requests)
        embedder = openai_embedder(server, on_error=on_error)
        if on_error == "raise":
            with pytest.raises(BadRequestError, match=f"{UNKNOWN} Different texts .* check the model") as caught:
                embedder.embed(numbered(n))
            errors = [caught.value]
        else:
            errors = embedder.embed(numbered(n)).failed.values()
        assert {type(each) for each in errors} == {BadRequestError}
        assert len(server.requests) - before <= requests


def test_a_refusal_of_the_only_text_blames_neither_the_text_nor_the_request(server):
    refuse_everything(server, error(UNKNOWN))
    embedder = openai_embedder(server)
    for _ in range(10):
        with pytest.raises(BadTextError) as caught:
            embedder.embed_query("the same question")
        assert str(caught.value) == f"Server refused the request (HTTP 400): {UNKNOWN}"
        assert not caught.value.text_is_cause
    with pytest.raises(BadTextError) as caught:
        embedder.embed(["the same text"] * 3)
    assert not caught.value.text_is_cause


def test_a_refused_text_is_the_cause_if_another_was_accepted(server):
    server.rejected_texts |= {"bad", "worse"}
    with pytest.raises(PartialFailureError) as caught:
        openai_embedder(server).embed(["bad", "good", "worse"])
    assert {p: (type(e), e.text_is_cause) for p, e in caught.value.failed.items()} == {
        0: (BadTextError, True),
        2: (BadTextError, True),
    }
    with OpenAIServer(rejected_texts={"bad", "worse"}) as other:
        embedder = openai_embedder(other)
        embedder.embed_documents(["good"])
        with pytest.raises(BadTextError) as alone:
            embedder.embed_documents(["bad", "worse"])
        assert alone.value.text_is_cause
