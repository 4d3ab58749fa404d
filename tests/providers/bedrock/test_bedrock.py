"""Amazon Bedrock's wire formats, model names and long texts, with the real SDK and a local server."""

from decimal import Decimal
from urllib.parse import quote

import numpy as np
import pytest
from support.bedrock_server import (
    COHERE_3,
    COHERE_4,
    NOVA,
    TITAN_1,
    TITAN_2,
    BedrockServer,
    bedrock,
    bedrock_vector,
    request_threads,
)
from support.embedders import long_text, numbered, statuses
from support.openai_replies import Fault
from support.voyage_server import to_dtype

from embedkit_core import (
    BadReplyError,
    BudgetError,
    ConfigurationError,
    PartialFailureError,
    TextTooLongError,
)
from embedkit_core.common.vectors import NUMPY_DTYPES
from embedkit_core.testing import ProviderSuite

TEXTS = numbered(5)
PROFILE_ARN = "arn:aws:bedrock:eu-west-1:123456789012:application-inference-profile/k3j5h6g7f8d9"
ROLES = {
    COHERE_4: {"document": "search_document", "query": "search_query"},
    COHERE_3: {"document": "search_document", "query": "search_query"},
    NOVA: {"document": "GENERIC_INDEX", "query": "TEXT_RETRIEVAL"},
}
BODIES = {
    TITAN_1: {"inputText": "x"},
    TITAN_2: {"inputText": "x", "normalize": True},
    NOVA: {
        "taskType": "SINGLE_EMBEDDING",
        "singleEmbeddingParams": {
            "embeddingPurpose": "GENERIC_INDEX",
            "text": {"truncationMode": "NONE", "value": "x"},
        },
    },
    COHERE_3: {
        "texts": ["x"],
        "input_type": "search_document",
        "embedding_types": ["float"],
        "truncate": "NONE",
    },
}
BODIES[COHERE_4] = BODIES[COHERE_3]


def expected(texts, model=TITAN_2, input_type="document", dimensions=None, role=None):
    role = role or ROLES.get(model, {}).get(input_type, "")
    rows = np.stack([bedrock_vector(text, model, role, dimensions) for text in texts])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def body_of(request):
    return {name: value for name, value in request.body.items() if name != "modelId"}


class BedrockSuite(ProviderSuite):
    """The real SDK, with a server that repeats text and token in every refusal."""

    api_key = "bedrock-api-key-of-mine"

    @pytest.fixture(autouse=True)
    def far_end(self):
        with BedrockServer(api_key=self.api_key, echo_input_in_errors=True) as self.server:
            yield

    @property
    def settings(self):
        return {"base_url": self.server.base_url}

    def requests_seen(self):
        return len(self.server.requests)

    def fail(self, kind):
        def fault(texts, number):
            return None if kind is None or (kind == "bad_text" and self.bad_text not in texts) else faults[kind]

        faults = {
            "auth": Fault(status=403, headers={"x-amzn-errortype": "UnrecognizedClientException"}),
            "quota": Fault(status=400, headers={"x-amzn-errortype": "ServiceQuotaExceededException:http://x"}),
            "bad_request": Fault(status=404),
            "bad_text": Fault(status=400, body=self.server.error("The input contains content that is not accepted.")),
            "bad_reply": Fault(transform=lambda reply: reply | {"data": reply["data"][:-1]}),
            "rate_limit": Fault(status=429, headers={"retry-after-ms": "1"}),
            "unavailable": Fault(status=503, headers={"retry-after-ms": "1"}),
        }
        self.server.fault_for(fault)


class TestTitan(BedrockSuite):
    model = f"bedrock:{TITAN_2}"
    other_model = f"bedrock:{TITAN_1}"
    other_dimensions = 256
    wrong_dimensions = 300


class TestNova(BedrockSuite):
    model = f"bedrock:{NOVA}"
    other_model = f"bedrock:{TITAN_1}"
    other_dimensions = 256
    wrong_dimensions = 300
    asymmetric = True

    @property
    def options(self):
        return {"embeddingPurpose": "CLUSTERING"}


class TestCohereOnBedrock(BedrockSuite):
    model = f"bedrock:{COHERE_4}"
    other_model = f"bedrock:{COHERE_3}"
    other_dimensions = 256
    wrong_dimensions = 300
    asymmetric = True

    @property
    def options(self):
        return {"input_type": "clustering"}


# Requests and replies


@pytest.mark.parametrize("model", BODIES)
def test_the_request_of_each_family_is_as_documented(server, model):
    made = bedrock(server, model)
    result = made.embed(["x"])
    [request] = server.requests
    assert body_of(request) == BODIES[model]
    assert server.paths == [f"/model/{quote(model)}/invoke"]
    assert request.headers["authorization"] == "Bearer test-key"
    np.testing.assert_allclose(result.vectors, expected(["x"], model), atol=1e-6)
    assert result.usage.tokens == server.billed_tokens == 1
    np.testing.assert_allclose(made.embed_query("x"), expected(["x"], model, "query")[0], atol=1e-6)


@pytest.mark.parametrize(("model", "field"), {TITAN_2: "dimensions", COHERE_4: "output_dimension"}.items())
def test_other_dimensions_are_requested_by_the_field_of_the_family(server, model, field):
    np.testing.assert_allclose(
        bedrock(server, model, dimensions=256).embed(TEXTS).vectors, expected(TEXTS, model, dimensions=256), atol=1e-6
    )
    assert {request.body[field] for request in server.requests} == {256}


def test_the_parameters_of_nova_are_nested(server):
    bedrock(server, NOVA, dimensions=384, provider_options={"embeddingPurpose": "GENERIC_RETRIEVAL"}).embed(["x"])
    assert server.requests[0].body["singleEmbeddingParams"] == {
        "embeddingPurpose": "GENERIC_RETRIEVAL",
        "embeddingDimension": 384,
        "text": {"truncationMode": "NONE", "value": "x"},
    }


@pytest.mark.parametrize("task", ["classification", "clustering"])
@pytest.mark.parametrize("model", [NOVA, COHERE_4, COHERE_3])
def test_a_task_is_sent_for_queries_and_documents_alike(server, model, task):
    made = bedrock(server, model, task=task)
    role = task.upper() if model == NOVA else task
    np.testing.assert_allclose(made.embed_query("x"), expected(["x"], model, role=role)[0], atol=1e-6)
    assert made.explain("x").key == made.explain("x", input_type="query").key
    with pytest.raises(ConfigurationError, match="does not offer 'code'"):
        bedrock(server, model, task="code")


@pytest.mark.parametrize("dtype", ["int8", "uint8", "binary", "ubinary"])
def test_quantized_dtypes_of_cohere_come_from_the_service(server, dtype):
    vectors = bedrock(server, COHERE_4, dtype=dtype).embed(TEXTS).vectors
    assert server.requests[0].body["embedding_types"] == [dtype]
    assert vectors.dtype == NUMPY_DTYPES[dtype]
    rows = [bedrock_vector(text, COHERE_4, "search_document") for text in TEXTS]
    assert np.array_equal(vectors, np.stack([to_dtype(row, dtype) for row in rows]))


def test_bits_of_titan_are_computed_here(server):
    vectors = bedrock(server, dtype="ubinary").embed(TEXTS).vectors
    assert np.array_equal(vectors, np.packbits(expected(TEXTS) > 0, axis=1))
    with pytest.raises(ConfigurationError, match="does not offer 'int8'"):
        bedrock(server, dtype="int8")
    with pytest.raises(ConfigurationError, match="does not offer 'int8'"):
        bedrock(server, "amazon.titan-embed-text-v9", dtype="int8")


def test_tokens_are_counted_by_the_body_if_the_header_is_missing(server):
    server.headers = {"x-amzn-bedrock-input-token-count": "none"}
    assert bedrock(server).embed(["two words"]).usage.tokens == 2


@pytest.mark.parametrize(
    "body", [b"<html>", b"[1]", b'{"embedding": "x"}', b'{"embedding": [NaN]}', b'{"embeddings": {"int8": [[1]]}}']
)
@pytest.mark.parametrize("model", [TITAN_2, NOVA, COHERE_4])
def test_a_reply_of_another_shape_is_refused(server, model, body):
    server.fault_for(lambda texts, number: Fault(raw=body))
    with pytest.raises(BadReplyError):
        bedrock(server, model).embed(["x"])


# One text per request


def test_many_texts_are_sent_at_the_same_time_one_in_each_request(server):
    server.latency = 0.02
    texts = numbered(200)
    result = bedrock(server, max_concurrency=64).embed(texts)
    np.testing.assert_allclose(result.vectors, expected(texts), atol=1e-6)
    assert result.usage.requests == 200
    assert 16 < server.peak_in_flight <= 64
    assert request_threads()
    assert all(thread.daemon for thread in request_threads())


def test_a_closed_embedder_ends_its_threads(server):
    before = request_threads()
    made = bedrock(server)
    made.embed(TEXTS)
    made.close()
    for thread in request_threads() - before:
        thread.join(5)
        assert not thread.is_alive()


# Names


@pytest.mark.parametrize(
    "name",
    [
        f"us.{COHERE_4}",
        f"eu.{COHERE_4}",
        f"apac.{COHERE_4}",
        f"us-gov.{COHERE_4}",
        f"global.{COHERE_4}",
        f"arn:aws:bedrock:us-east-1::foundation-model/{COHERE_4}",
        f"arn:aws:bedrock:us-east-1:123456789012:inference-profile/global.{COHERE_4}",
    ],
)
def test_a_name_of_the_same_model_is_sent_as_it_is_and_has_the_same_key(server, name):
    plain, made = bedrock(server, COHERE_4), bedrock(server, name)
    assert made.explain("x").key == plain.explain("x").key
    assert made.space == plain.space
    assert made.dimensions == 1536
    assert made.provider.account != plain.provider.account
    server.profiles = {name: COHERE_4}
    made.embed(["x"])
    assert server.requests[0].body["modelId"] == name


def test_an_arn_that_names_no_model_needs_like_and_keeps_its_key(server):
    with pytest.raises(ConfigurationError, match=r"model_info=\{'like': 'bedrock:"):
        bedrock(server, PROFILE_ARN)
    server.profiles = {PROFILE_ARN: NOVA}
    made = bedrock(server, PROFILE_ARN, model_info={"like": f"bedrock:{NOVA}"})
    np.testing.assert_allclose(made.embed(TEXTS).vectors, expected(TEXTS, NOVA), atol=1e-6)
    assert made.provider.region == "eu-west-1"
    assert made.provider.limits.texts == 1
    assert made.space == bedrock(server, NOVA).space
    assert made.explain("x").key != bedrock(server, NOVA).explain("x").key


def test_unknown_models_have_the_requests_of_their_family(server):
    assert bedrock(server, "amazon.titan-embed-text-v9:0").provider.limits.texts == 1
    assert bedrock(server, "cohere.embed-v9").provider.limits.texts == 96
    assert bedrock(server, "amazon.titan-embed-text-v9:0", model_info={"request_texts": 9}).provider.limits.texts == 1
    with pytest.raises(ConfigurationError, match=r"requests of 'twelvelabs.marengo' are unknown"):
        bedrock(server, "twelvelabs.marengo")
    with pytest.raises(ConfigurationError, match="no other fields"):
        bedrock(server, provider_options={"user": "me"})
    with pytest.raises(ConfigurationError, match="must not contain normalize"):
        bedrock(server, provider_options={"normalize": False})


def test_a_price_from_another_source_is_refused_for_a_budget(server):
    assert bedrock(server).embed(["x"]).usage.cost_usd == Decimal("0.02") / 1_000_000
    with pytest.raises(BudgetError, match="prices="):
        bedrock(server, budget_usd=1).embed(["x"])


# Long texts


@pytest.mark.parametrize("model", [TITAN_2, TITAN_1])
def test_titan_cannot_truncate_so_a_long_text_is_shortened_by_the_counts_of_its_refusal(server, model):
    server.max_tokens_per_text = 40
    result = bedrock(server, model, model_info={"text_tokens": 100}).embed(["short", long_text(60)])
    assert result.truncated == (1,)
    assert statuses(server).count(400) == 1
    with pytest.raises(PartialFailureError) as caught:
        bedrock(server, model, on_long_text="error", model_info={"text_tokens": 100}).embed(["short", long_text(60)])
    error = caught.value.failed[1]
    assert isinstance(error, TextTooLongError)
    assert (error.tokens, error.limit, error.unit) == (60, 40, "tokens")


@pytest.mark.parametrize(("model", "kept"), {NOVA: "END", COHERE_4: "RIGHT"}.items())
def test_a_long_text_is_refused_and_then_truncated_by_the_model(server, model, kept):
    server.max_tokens_per_text = 40
    texts = [*numbered(10), long_text(60), *numbered(20)[10:]]
    result = bedrock(server, model, model_info={"text_tokens": 100}).embed(texts)
    assert result.truncated == (10,)
    cut = " ".join(texts[10].split()[:40])
    np.testing.assert_allclose(result.vectors, expected([*texts[:10], cut, *texts[11:]], model), atol=1e-6)
    assert [kept in str(r.body) for r in server.requests if r.status == 200 and texts[10] in r.texts] == [True]


def test_a_text_over_the_characters_of_cohere_3_is_shortened_once_without_its_neighbors(server):
    texts = [*numbered(10), "word " * 1000, *numbered(20)[10:]]
    result = bedrock(server, COHERE_3).embed(texts)
    assert result.truncated == (10,)
    assert statuses(server).count(400) == 1
    [kept] = [
        text
        for request in server.requests
        for text in request.texts
        if text.startswith("word") and request.status == 200
    ]
    assert 1900 < len(kept) <= 2048
    with pytest.raises(PartialFailureError) as caught:
        bedrock(server, COHERE_3, on_long_text="error").embed(texts)
    assert "5000 characters, over the limit of 2048" in str(caught.value.failed[10])


def test_a_text_over_the_characters_of_a_model_that_truncates_is_shortened_first(server):
    text = "word " * 11_000
    result = bedrock(server, NOVA).embed([text])
    assert ([*result.truncated], set(statuses(server)[:-1]), statuses(server)[-1]) == ([0], {400}, 200)
    assert len(server.requests[-1].texts[0]) <= 50_000


def test_a_batch_over_the_limit_of_texts_is_split(server):
    server.max_inputs = 10
    np.testing.assert_allclose(
        bedrock(server, COHERE_4).embed(numbered(40)).vectors, expected(numbered(40), COHERE_4), atol=1e-6
    )
