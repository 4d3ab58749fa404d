"""Each row of `PRESETS` sends what its server documents; the requests are written from the documentation."""

import base64
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.http import Exchange
from support.openai_replies import Fault, Json, as_json, error, vector_of
from support.openai_server import OpenAIServer
from support.rows import check_rows

from embedkit_core import AuthenticationError, BadReplyError, ConfigurationError, Embedder, models
from embedkit_core.common.plugins import COMPATIBLE
from embedkit_core.providers.openai.presets import PRESETS
from langchain_embedkit import EmbedKitEmbeddings
from llamaindex_embedkit import EmbedKitEmbedding

REQUESTS = json.loads((Path(__file__).parents[2] / "fixtures" / "compatible_requests.json").read_text("utf-8"))
LONG = "a long text"
SERVICES = [name for name, server in PRESETS.items() if server.is_service]


@dataclass(kw_only=True, eq=False, repr=False)
class RowServer(OpenAIServer):
    """A server that accepts the documented requests only, and refuses a long text unless the request truncates."""

    row: Json = field(default_factory=dict)

    def refusal(self, exchange: Exchange) -> tuple[int, Json] | None:
        if exchange.headers.get("authorization") != f"Bearer {self.api_key}":
            return 401, error("Incorrect API key provided.")
        sent = exchange.body | {"input": [text.replace(LONG, "a text") for text in exchange.texts]}
        if sent not in [self.row.get(name) for name in ("document", "query", "truncated")]:
            fields = json.dumps({name: value for name, value in sent.items() if name != "input"})
            return 422, {"detail": [{"loc": ["body"], "msg": f"Extra inputs are not permitted: {fields}"}]}
        if LONG in exchange.texts[0] and sent != self.row.get("truncated"):
            return 400, error("Input length 515 exceeds maximum allowed token size 512")
        return None

    async def reply(self, exchange: Exchange) -> Json:
        rows = [vector_of(text, self.row["width"], self.row["width"], "m") for text in exchange.texts]
        return {"data": [{"index": n, "embedding": row} for n, row in enumerate(rows)], "usage": {"total_tokens": 3}}

    async def encoded(self, reply: Json, exchange: Exchange) -> bytes:
        def plain(vector: Any) -> Any:
            scaled = np.round(vector * 127).astype(np.int8)
            return {
                "float": vector.tolist(),
                "ints": scaled.tolist(),
                "bits": np.packbits(vector > 0).tolist(),
                "base64": base64.b64encode(vector.tobytes()).decode(),
                "base64_int8": base64.b64encode(scaled.tobytes()).decode(),
            }[self.row["reply"]]

        return await as_json(reply, plain)


@pytest.fixture(autouse=True)
def _no_settings_of_the_developer(monkeypatch):
    for server in PRESETS.values():
        for name in (*server.address_variables, *server.key_variables):
            monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CLOUDFLARE_ACCOUNT_ID", "my-account")


def expected(row: Json, text: str) -> Any:
    vector = vector_of(text, row["width"], row["width"], "m")
    scaled = np.round(vector * 127).astype(np.int8)
    as_floats = scaled / np.linalg.norm(scaled.astype(np.float64))
    known = {"float": vector, "base64": vector, "ints": scaled, "base64_int8": as_floats}
    return np.packbits(vector > 0) if row["reply"] == "bits" else known[row["reply"]]


@pytest.mark.parametrize("name", REQUESTS)
def test_a_server_receives_the_documented_request(name, monkeypatch):
    row = REQUESTS[name]
    settings = {"cache": False, "max_retries": 0} | row["settings"] | {"model": f"{name}:{row['settings']['model']}"}
    if row["key"]:
        monkeypatch.setenv(row["key"], "key-of-the-user")
    else:
        settings["api_key"] = "key-of-the-user"
    if row["url"]:
        assert f"{Embedder(**settings).provider.url}/embeddings" == row["url"]
    with RowServer(api_key="key-of-the-user", row=row) as server:
        embedder = Embedder(**settings, base_url=server.base_url)
        document, query = row["document"]["input"][0], row.get("query", row["document"])["input"][0]
        np.testing.assert_allclose(embedder.embed(["a text"]).vectors[0], expected(row, document), atol=1e-6)
        np.testing.assert_allclose(embedder.embed_query("a text"), expected(row, query), atol=1e-6)
        assert [request.status for request in server.requests] == [200] * len(server.requests)
        if "truncated" in row:
            result = embedder.embed([LONG])
            assert ([*result.truncated], [request.status for request in server.requests[-2:]]) == ([0], [400, 200])


def test_every_row_is_registered_and_has_a_documented_request():
    assert set(REQUESTS) == set(PRESETS) == {*COMPATIBLE, "azure"}


@pytest.mark.parametrize("host", [EmbedKitEmbeddings, EmbedKitEmbedding])
def test_a_row_with_roles_works_in_both_frameworks(host):
    row = REQUESTS["nvidia"]
    with RowServer(api_key="k", row=row) as server:
        settings = row["settings"] | {"model": f"nvidia:{row['settings']['model']}", "base_url": server.base_url}
        model = host(**settings, api_key="k", cache=False)
        if host is EmbedKitEmbeddings:
            rows = [*model.embed_documents(["a text"]), model.embed_query("a text")]
        else:
            rows = [*model.get_text_embedding_batch(["a text"]), model.get_query_embedding("a text")]
    np.testing.assert_allclose(rows, [expected(row, "a text")] * 2, atol=1e-6)


def test_the_name_of_a_service_identifies_its_models_and_not_its_address():
    def check(name):
        settings = {"model": f"{name}:m", "api_key": "k", "cache": False, "provider_options": {}}
        if PRESETS[name].host_options:
            settings["provider_options"] = {**PRESETS[name].host_options}
        embedder = Embedder(**settings)
        assert (embedder.provider.endpoint, embedder.space.partition(":")[0]) == ("", name)
        assert Embedder(**settings, base_url=embedder.provider.url).explain("x").key == embedder.explain("x").key
        other = Embedder(**settings, base_url="https://gateway.example/v1")
        assert other.explain("x").key != embedder.explain("x").key

    check_rows(SERVICES, check)


def test_a_service_without_a_key_names_its_variable():
    def check(name):
        with pytest.raises(ConfigurationError, match=rf"No API key for {name}:m\. .*{PRESETS[name].key_variables[0]}"):
            Embedder(f"{name}:m", cache=False, provider_options=PRESETS[name].host_options or {"user": "x"})

    check_rows(SERVICES, check)


def test_the_host_of_a_model_at_a_gateway_must_be_selected_unless_only_its_maker_serves_it():
    with pytest.raises(ConfigurationError, match=r"several hosts at OpenRouter.*\{'provider': \{'only': \['HOST"):
        Embedder("openrouter:qwen/qwen3-embedding-8b", api_key="k", cache=False)
    assert Embedder("openrouter:openai/text-embedding-3-small", api_key="k", cache=False).dimensions == 1536


def test_facts_from_the_user_keep_the_role_and_the_choice_of_a_host(monkeypatch, tmp_path):
    def body(model, **settings):
        return Embedder(model, api_key="k", cache=False, **settings).provider.request_body("query")

    facts = {"text_tokens": 9}
    assert body("nvidia:m", model_info=facts) == body("nvidia:m") | {"input_type": "query"}
    assert "task" not in body("jina:m", model_info={"asymmetric": False})
    tasks = {"asymmetric": False, "tasks": {"clustering": "separation"}}
    assert body("jina:m", model_info=tasks, task="clustering")["task"] == "separation"
    like = body("nvidia:m", model_info={"like": "local:intfloat/e5-base-v2"})
    assert ("input_type" in like, like["prompt"]) == (False, "query: ")
    with pytest.raises(ConfigurationError, match="several hosts at OpenRouter"):
        body("openrouter:qwen/qwen3-embedding-8b", model_info=facts)
    (tmp_path / "models.json").write_text(
        json.dumps({"models": [{"provider": name, "name": "m", **facts} for name in ("nvidia", "perplexity")]})
    )
    monkeypatch.setenv("RAG_EMBEDKIT_MODELS", str(tmp_path / "models.json"))
    described = Embedder("perplexity:m", api_key="k", cache=False).provider
    assert (described.dtype, described.limits.texts, described.limits.text_tokens) == ("int8", 512, 9)
    assert body("nvidia:m")["input_type"] == "query"


def test_a_model_name_with_another_address_is_not_that_of_a_service():
    for name in ("mistral-embed", "qwen3-embedding-8b"):
        embedder = Embedder(name, base_url="http://localhost:1234/v1", api_key="k", cache=False)
        assert embedder.model == f"openai:{name}"
    assert Embedder("mistral-embed", api_key="k", cache=False).model == "mistral:mistral-embed"


def test_another_host_of_a_service_gets_its_path():
    embedder = Embedder("dashscope:m", base_url="https://dashscope.aliyuncs.com", api_key="k", cache=False)
    assert embedder.provider.endpoint == "https://dashscope.aliyuncs.com/compatible-mode/v1"
    embedder = Embedder("cloudflare:m", base_url="https://api.cloudflare.com/", api_key="k", cache=False)
    assert (embedder.provider.endpoint, "/my-account/" in embedder.provider.url) == ("", True)


@pytest.mark.parametrize("dimensions", [None, 256])
def test_vectors_from_cached_int8_are_those_from_a_reply(dimensions, tmp_path):
    row = {"document": {"model": "pplx-embed-v1-0.6b", "input": ["a text"], "encoding_format": "base64_int8"}}
    row |= {"reply": "base64_int8", "width": dimensions or 1024}
    row["document"] |= {"dimensions": dimensions} if dimensions else {}
    with RowServer(api_key="k", row=row) as server:
        settings = {"api_key": "k", "base_url": server.base_url, "dimensions": dimensions}
        settings["model"] = "perplexity:pplx-embed-v1-0.6b"
        for dtype in ("int8", "float32"):
            from_cache = Embedder(**settings, dtype=dtype, cache=tmp_path).embed(["a text"])
        assert (len(server.requests), from_cache.usage.cache_hits) == (1, 1)
        np.testing.assert_array_equal(from_cache.vectors, Embedder(**settings, cache=False).embed(["a text"]).vectors)


def test_base64_of_float32_is_not_read_as_int8():
    row = {"document": {"model": "pplx-embed-v1-0.6b", "input": ["a text"], "encoding_format": "base64_int8"}}
    row["document"] |= {"dimensions": 256}
    row |= {"reply": "base64", "width": 256}  # as many bytes as int8 of the model's 1024 dimensions
    with RowServer(api_key="k", row=row) as server:
        settings = {"api_key": "k", "base_url": server.base_url, "dimensions": 256, "cache": False}
        with pytest.raises(BadReplyError, match="base64 of an unknown type"):
            Embedder("perplexity:pplx-embed-v1-0.6b", **settings).embed(["a text"])


def test_floats_are_normalized_without_a_row_and_int8_never():
    def is_normalized(model, **settings):
        return Embedder(model, api_key="k", cache=False, **settings).is_normalized

    assert is_normalized("perplexity:m")
    assert is_normalized("perplexity:pplx-embed-v1-4b")
    assert not is_normalized("perplexity:pplx-embed-v1-4b", dtype="int8")
    assert not is_normalized("ollama:m")


def test_a_limit_per_minute_of_alibaba_cloud_is_not_a_missing_credit():
    body = error("You exceeded your current quota, please check your plan.", code="insufficient_quota")
    with RowServer(api_key="k", row=REQUESTS["dashscope"]) as server:
        server.faults = [Fault(status=429, body=body, headers={"retry-after-ms": "1"})]
        settings = REQUESTS["dashscope"]["settings"] | {"model": "dashscope:text-embedding-v4"}
        result = Embedder(**settings, api_key="k", base_url=server.base_url, cache=False).embed(["a text"])
    assert result.usage.retries == 1


def test_an_address_with_a_variable_needs_it(monkeypatch):
    monkeypatch.delenv("CLOUDFLARE_ACCOUNT_ID")
    with pytest.raises(ConfigurationError, match="environment variable CLOUDFLARE_ACCOUNT_ID"):
        Embedder("cloudflare:@cf/baai/bge-m3", api_key="k", cache=False)
    monkeypatch.setenv("CLOUDFLARE_ACCOUNT_ID", "../x")
    with pytest.raises(ConfigurationError, match="not a part of an address"):
        Embedder("cloudflare:@cf/baai/bge-m3", api_key="k", cache=False)


def test_dimensions_without_a_field_are_truncated_locally_or_refused():
    with pytest.raises(ConfigurationError, match="dimensions: Together has no field for it"):
        Embedder("together:some/model", api_key="k", cache=False, dimensions=256)
    row = REQUESTS["nebius"]
    with RowServer(api_key="k", row=row) as server:
        info = {"dimensions": 4096, "allowed_dimensions": [256, 4096], "cut": "prefix"}
        settings = {"api_key": "k", "base_url": server.base_url, "cache": False, "model_info": info, "dimensions": 256}
        with pytest.raises(Exception, match="Extra inputs"):  # the model's name differs
            Embedder("together:m", **settings).embed(["a text"])
        assert "dimensions" not in server.requests[0].body


def test_a_field_of_the_row_cannot_be_set_as_an_option():
    with pytest.raises(ConfigurationError, match=r"must not contain input_type; the library sets"):
        Embedder("nvidia:m", api_key="k", cache=False, provider_options={"input_type": "query"})


def test_no_row_of_the_catalogue_exceeds_the_limits_of_its_server():
    for info in models():
        if info.provider in PRESETS:
            assert info.limits.texts <= (PRESETS[info.provider].texts or 256), info.name


def test_a_refused_request_without_a_key_says_that_no_key_was_sent():
    with RowServer(api_key="k", row=REQUESTS["vllm"]) as server:
        embedder = Embedder("vllm:m", base_url=server.base_url, cache=False, max_retries=0)
        with pytest.raises(AuthenticationError, match=r"no API key was sent.*Pass api_key= or set .*VLLM_API_KEY"):
            embedder.embed(["a text"])


def test_an_option_that_makes_a_vector_depend_on_other_texts_is_refused():
    with pytest.raises(ConfigurationError, match="must not contain late_chunking"):
        Embedder("jina:jina-embeddings-v3", api_key="k", cache=False, provider_options={"late_chunking": True})
