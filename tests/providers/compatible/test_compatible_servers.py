"""OpenAI-compatible servers: presets, addresses, model facts, encodings and refusals."""

from decimal import Decimal

import numpy as np
import pytest
from support.compatible_servers import (
    CompatibleServer,
    InfinityServer,
    LMStudioServer,
    OllamaServer,
    TEIServer,
    VLLMServer,
)
from support.embedders import error_texts, long_text, numbered, statuses, texts_sent
from support.openai_server import Fault, OpenAIServer, vector_of

from embedkit_core import (
    AuthenticationError,
    BadReplyError,
    BadRequestError,
    ConfigurationError,
    Embedder,
    PartialFailureError,
    QuotaError,
    RateLimitError,
    RequestTooLargeError,
    TextTooLongError,
    UnavailableError,
)
from embedkit_core.providers.http.refusals import Refusal
from embedkit_core.providers.openai.presets import PRESETS
from embedkit_core.providers.openai.refusals import read_detail, to_provider_error
from embedkit_core.providers.registry import provider_class
from embedkit_core.testing import ProviderSuite
from langchain_embedkit import EmbedKitEmbeddings
from llamaindex_embedkit import EmbedKitEmbedding

E5 = "intfloat/e5-small-v2"
NOMIC = "nomic-ai/nomic-embed-text-v1.5"
QWEN = "Qwen/Qwen3-Embedding-0.6B"
AZURE = "https://my-resource.openai.azure.com"
VARIABLES = {variable for server in PRESETS.values() for variable in (*server.address_variables, *server.key_variables)}
presets = pytest.mark.parametrize("preset", ["azure", "ollama", "vllm", "tei", "infinity", "lmstudio"])


@pytest.fixture(autouse=True)
def _no_settings_of_the_developer(monkeypatch):
    for name in (*VARIABLES, "OPENAI_API_KEY", "OPENAI_API_BASE", "OPENAI_BASE_URL", "OPENAI_ORG_ID"):
        monkeypatch.delenv(name, raising=False)


def at(server, model, **settings):
    return Embedder(model, **{"base_url": server.base_url, "cache": False, "max_retries": 1, **settings})


def expected(texts, server, model, prompt=""):
    return np.stack([vector_of(prompt + text, server.dimensions, server.dimensions, model) for text in texts])


# Presets


@pytest.mark.parametrize(
    ("preset", "address", "texts"),
    [
        ("ollama", "http://localhost:11434/v1", 256),
        ("vllm", "http://localhost:8000/v1", 256),
        ("tei", "http://localhost:8080/v1", 32),
        ("infinity", "http://localhost:7997", 2048),
        ("lmstudio", "http://localhost:1234/v1", 256),
    ],
)
def test_each_preset_has_a_default_address_and_batch_size(preset, address, texts):
    embedder = Embedder(f"{preset}:some-model:latest", cache=False)
    assert embedder.model == f"{preset}:some-model:latest"
    assert (embedder.provider.model, embedder.provider.endpoint) == ("some-model:latest", address)
    assert embedder.provider.limits.texts == texts


def test_a_preset_without_a_default_address_says_what_is_missing(monkeypatch):
    with pytest.raises(ConfigurationError, match=r"address of the Azure .* is missing.* AZURE_OPENAI_ENDPOINT"):
        Embedder("azure:my-deployment", cache=False)
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", f"{AZURE}/")
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "k")
    assert Embedder("azure:my-deployment", cache=False).provider.endpoint == f"{AZURE}/openai/v1"


def test_an_entra_token_of_the_environment_is_used_as_the_key(monkeypatch):
    monkeypatch.setenv("AZURE_OPENAI_AD_TOKEN", "ey.token")
    assert Embedder("azure:x", base_url=AZURE, cache=False).provider.secret.reveal() == "ey.token"
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "key")
    assert Embedder("azure:x", base_url=AZURE, cache=False).provider.secret.reveal() == "key"


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("10.0.0.5", "http://10.0.0.5:11434/v1"),
        ("10.0.0.5:80", "http://10.0.0.5/v1"),
        ("0.0.0.0", "http://127.0.0.1:11434/v1"),
        ("0.0.0.0:9999", "http://127.0.0.1:9999/v1"),
        (":9999", "http://127.0.0.1:9999/v1"),
        ("[::1]", "http://[::1]:11434/v1"),
        ("[::1]:9999", "http://[::1]:9999/v1"),
        ("https://ollama.example/", "https://ollama.example/v1"),
        ("https://gateway.example/ollama", "https://gateway.example/ollama/v1"),
        ("http://localhost:11434/v1", "http://localhost:11434/v1"),
    ],
)
def test_ollama_host_accepts_every_format_that_ollama_reads(host, address, monkeypatch):
    monkeypatch.setenv("OLLAMA_HOST", host)
    assert Embedder("ollama:m", cache=False).provider.endpoint == address
    assert Embedder("ollama:m", base_url="http://other:1/v1", cache=False).provider.endpoint == "http://other:1/v1"


@presets
def test_the_default_path_is_added_only_to_an_address_without_a_path(preset):
    def endpoint(address):
        return Embedder(f"{preset}:m", api_key="k", base_url=address, cache=False).provider.endpoint

    assert endpoint("http://host:9") == f"http://host:9{PRESETS[preset].path}"
    assert endpoint("http://host:9/api/v3") == "http://host:9/api/v3"
    with pytest.raises(ConfigurationError, match="not a valid address"):
        endpoint("host:9/v1")


@presets
def test_a_preset_has_the_cache_keys_of_openai_at_the_same_address(preset):
    address = f"http://host:9{PRESETS[preset].path}"
    for model in ("some-model", E5, "text-embedding-3-small"):
        named = Embedder(f"{preset}:{model}", api_key="k", base_url=address, cache=False)
        plain = Embedder(model, api_key="k", base_url=address, cache=False)
        assert named.explain("x").key == plain.explain("x").key
        assert named.space == plain.space
        assert (named.model, plain.model) == (f"{preset}:{model}", f"openai:{model}")


def test_a_vector_cached_by_address_is_a_hit_by_preset_name(tmp_path):
    with OllamaServer() as server:
        at(server, "nomic-embed-text:latest", cache=tmp_path).embed(["a"])
        by_name = at(server, "ollama:nomic-embed-text:latest", cache=tmp_path)
        assert by_name.embed(["a", "b"]).usage.cache_hits == 1
    assert texts_sent(server) == ["a", "b"]


@pytest.mark.parametrize("host", [EmbedKitEmbeddings, EmbedKitEmbedding])
def test_a_preset_works_in_both_frameworks(host, monkeypatch):
    with OllamaServer(models={"nomic-embed-text"}) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.origin)
        model = host(model="ollama:nomic-embed-text", cache=False)
        rows = model.embed_documents(["a"]) if host is EmbedKitEmbeddings else model.get_text_embedding_batch(["a"])
        assert rows == expected(["a"], server, "nomic-embed-text").tolist()


@pytest.mark.parametrize("name", ["OpenAI-Organization", "openai-organization", "OPENAI-PROJECT"])
def test_a_users_header_replaces_the_header_of_the_environment(name, monkeypatch):
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-the-environment")
    with OpenAIServer(api_key=None) as server:
        for model in ("openai:m", "vllm:m"):
            at(server, model, api_key="k", headers={name: "mine"}).embed(["a"])
            assert server.requests[-1].headers[name.lower()] == "mine"


def test_openai_credentials_are_never_sent_to_another_server(monkeypatch):
    for name, value in {"OPENAI_API_KEY": "sk-mine", "OPENAI_ORG_ID": "org-mine", "OPENAI_PROJECT_ID": "p"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    with OllamaServer() as server, OpenAIServer(api_key="sk-mine") as gateway:
        at(server, "ollama:m").embed(["a"])
        at(gateway, "m").embed(["a"])
    sent = server.requests[0].headers
    assert sent["authorization"] == "Bearer no-key-needed"
    assert not [name for name in sent if name.startswith("openai-")]
    assert gateway.requests[0].headers["openai-organization"] == "org-mine"


@pytest.mark.parametrize(
    ("preset", "variable"), [("azure", "AZURE_OPENAI_API_KEY"), ("ollama", "OLLAMA_API_KEY"), ("vllm", "VLLM_API_KEY")]
)
def test_each_preset_has_its_own_key_variable(preset, variable, monkeypatch):
    assert provider_class(preset).key_variable == variable
    with OpenAIServer(api_key="mine") as server:
        refused = at(server, f"{preset}:m", api_key="wrong")
        with pytest.raises(AuthenticationError, match=f"refused for m .*Check api_key= or {variable}") as caught:
            refused.embed(["a"])
        assert (caught.value.provider, caught.value.model) == (preset, f"{preset}:m")
        monkeypatch.setenv(variable, "mine")
        at(server, f"{preset}:m").embed(["a"])


def test_the_error_of_an_unreachable_preset_names_the_server():
    embedder = Embedder("ollama:m", base_url="http://127.0.0.1:1", cache=False, max_retries=0)
    with pytest.raises(
        UnavailableError, match=r"127\.0\.0\.1:1 could not be reached \(.*\)\. Is Ollama running there\?"
    ):
        embedder.embed(["a"])


def test_the_error_of_a_missing_model_names_the_model():
    with OllamaServer(models={"other"}) as server:
        missing = at(server, "ollama:m")
        with pytest.raises(BadRequestError, match=r"the request .*model \"m\" not found, try pulling it first$"):
            missing.embed(["a"])
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("preset", "path", "advice"),
    [
        ("vllm", "/api", r"\. Should base_url end in /v1\?$"),
        ("openai", "/", r"\. Should base_url end in /v1\?$"),
        ("azure", "/v1", r"\. Should base_url end in /openai/v1\?$"),
        ("infinity", "", r"\. Should base_url end in /v1\?$"),  # started with a prefix
        ("infinity", "/v1", r"\. Should base_url end without /v1\?$"),
        ("vllm", "/else/v1", "Invalid URL [^?]*$"),
    ],
)
def test_an_address_with_an_unusual_path_is_named_if_nothing_is_found(preset, path, advice):
    with OpenAIServer(api_key=None) as server:
        server.path = "/hidden/embeddings"
        with pytest.raises(BadRequestError, match=advice):
            Embedder(f"{preset}:m", base_url=server.origin + path, api_key="k", cache=False).embed(["a"])


# Model facts


def test_a_deployment_with_like_has_the_facts_of_that_model():
    with OpenAIServer(api_key="k") as server:
        like = {"like": "openai:text-embedding-3-small"}
        embedder = at(server, "azure:my-deployment", api_key="k", model_info=like, dimensions=256)
        result = embedder.embed(["a b"])
    assert result.usage.cost_usd == Decimal("0.02") * 2 / 1_000_000
    assert embedder.provider.limits.texts == 2048
    assert server.requests[0].body["dimensions"] == 256
    assert result.vectors.tolist() == [vector_of("a b", 256, model="my-deployment").tolist()]
    with pytest.raises(ConfigurationError, match="offers 1 to 1536"):
        at(server, "azure:my-deployment", api_key="k", model_info=like, dimensions=3072)


def test_an_open_model_uses_its_prompts_at_a_server(tmp_path):
    with TEIServer() as server:
        embedder = at(server, f"tei:{E5}", cache=tmp_path)
        assert embedder.dimensions == 384
        documents, query = embedder.embed(["a"]), embedder.embed_query("a")
        assert texts_sent(server) == ["passage: a", "query: a"]
        assert "prompt" not in server.requests[0].body
        assert query.tolist() == expected(["a"], server, E5, "query: ")[0].tolist()
        without = at(server, f"tei:{E5}", cache=tmp_path, query_prompt="", document_prompt="d: ")
        without.embed_query("a")
        without.embed(["a"])
    assert texts_sent(server)[2:] == ["a", "d: a"]
    assert documents.usage.cost_usd is None


def test_an_open_model_is_known_by_address_too_and_has_the_servers_limits():
    with CompatibleServer() as server:
        embedder = at(server, E5)
    assert embedder.model == f"openai:{E5}"
    assert (embedder.provider.limits.texts, embedder.provider.limits.text_tokens) == (256, 512)
    given = at(server, f"tei:{E5}", model_info={"request_texts": 128, "usd_per_million": "0.01"})
    assert (given.provider.limits.texts, given.provider.usd_per_million) == (128, Decimal("0.01"))


def test_an_open_model_is_unknown_at_openais_own_host():
    embedder = Embedder(f"openai:{E5}", api_key="k", cache=False)
    assert (embedder.dimensions, embedder.explain("a").request_body) == (None, {"model": E5})


@pytest.mark.parametrize(("model", "width", "centered"), [(QWEN, 1024, False), (NOMIC, 768, True)])
def test_vectors_of_an_open_model_are_truncated_locally(model, width, centered):
    with VLLMServer(dimensions=width) as server:
        rows = at(server, f"vllm:{model}", dimensions=256).embed(["a"]).vectors
        whole = expected(["a"], server, model, "search_document: " if centered else "").astype(np.float64)
        if centered:
            whole -= whole.mean()
        cut = whole[:, :256]
        np.testing.assert_allclose(rows, cut / np.linalg.norm(cut), atol=1e-7)
        assert "dimensions" not in server.requests[0].body
        with pytest.raises(ConfigurationError, match="does not offer 5000 dimensions"):
            at(server, f"vllm:{model}", dimensions=5000)


def test_fewer_dimensions_of_an_unknown_model_are_requested_from_the_server():
    with OpenAIServer(api_key=None) as server:
        assert at(server, "vllm:new-model", dimensions=64).embed(["a"]).vectors.shape == (1, 64)
    assert server.requests[0].body["dimensions"] == 64


UNKNOWN = {"allowed_dimensions": [64, 384], "cut": "prefix"}


def test_a_server_that_ignores_dimensions_is_an_error_with_the_fix():
    with LMStudioServer() as server:
        with pytest.raises(
            BadReplyError, match="384 dimensions instead of 64; if the model supports shorter"
        ) as refused:
            at(server, "lmstudio:new-model", dimensions=64).embed(["a"])
        assert "model_info={'allowed_dimensions': [64], 'cut': 'prefix'}" in str(refused.value)
        rows = at(server, "lmstudio:new-model", dimensions=64, model_info=UNKNOWN).embed(["a"]).vectors
    np.testing.assert_allclose(rows[0], vector_of("a", 64, 384, "new-model"), atol=1e-7)
    assert "dimensions" not in server.requests[-1].body


def test_a_server_that_refuses_dimensions_is_an_error_with_the_fix():
    with VLLMServer() as server:
        with pytest.raises(
            BadRequestError, match=r"does not support matryoshka .*; if the model supports shorter .*\[64\]"
        ):
            at(server, "vllm:new-model", dimensions=64).embed(numbered(9))
        assert len(server.requests) == 1
        rows = at(server, "vllm:new-model", dimensions=64, model_info=UNKNOWN).embed(["a"]).vectors
    np.testing.assert_allclose(rows[0], vector_of("a", 64, 384, "new-model"), atol=1e-7)


def test_a_gateway_that_refuses_dimensions_of_openai_models_is_an_error_with_the_fix(tmp_path):
    with VLLMServer(dimensions=1536) as server:
        small = {"model": "text-embedding-3-small", "api_key": "k", "cache": tmp_path}
        with pytest.raises(BadRequestError, match=r"in the catalogue, embed the texts once without dimensions="):
            at(server, dimensions=256, **small).embed(["a"])
        at(server, **small).embed(["a"])
        rows = at(server, dimensions=256, **small).embed(["a"]).vectors
    np.testing.assert_allclose(rows[0], vector_of("a", 256), atol=1e-7)
    assert "dimensions" not in server.requests[-1].body


def test_a_wrong_width_without_dimensions_set_gets_no_advice():
    with OpenAIServer(dimensions=1024, ignores_dimensions=True, api_key=None) as server:
        for model, settings in ((E5, {}), ("text-embedding-ada-002", {"api_key": "k"})):
            with pytest.raises(BadReplyError, match="1024 dimensions instead of") as refused:
                at(server, model, **settings).embed(["a"])
            assert "model_info" not in str(refused.value)


def test_vectors_of_a_gateway_that_ignores_dimensions_of_openai_models_are_truncated():
    with OpenAIServer(ignores_dimensions=True) as server:
        rows = at(server, "text-embedding-3-small", api_key="test-key", dimensions=256).embed(["a"]).vectors
    assert server.requests[0].body["dimensions"] == 256
    np.testing.assert_allclose(rows[0], vector_of("a", 256), atol=1e-7)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_vectors_that_a_server_truncated_without_normalization_are_normalized(dtype, tmp_path):
    def shortened(reply):
        for row in reply["data"]:
            row["embedding"] *= np.float32(0.547)

    with OpenAIServer() as server:
        settings = {"api_key": "test-key", "dimensions": 256, "dtype": dtype, "cache": tmp_path}
        embedder = at(server, "text-embedding-3-small", **settings)
        key = embedder.explain("a").key
        normalized = embedder.embed(["a"]).vectors
        assert normalized.tolist() == [vector_of("a", 256).astype(dtype).tolist()]  # not changed in any bit
        server.fault_for(lambda texts, number: Fault(transform=shortened))
        np.testing.assert_allclose(embedder.embed(["b"]).vectors[0], vector_of("b", 256), atol=1e-3)
        assert at(server, "text-embedding-3-small", **settings).embed(["a", "b"]).usage.cache_hits == 2
        assert embedder.explain("a").key == key
        unknown = at(server, "new-model", dimensions=256, api_key="test-key").embed(["a"]).vectors
        assert np.linalg.norm(unknown) == pytest.approx(0.547, abs=1e-3)  # nothing says what length it must have


# Refusals


def test_a_lower_batch_limit_of_a_server_is_remembered():
    with TEIServer(max_inputs=8) as server:
        embedder = at(server, "new-model")
        first, second = numbered(40), [f"more {text}" for text in numbered(40)]
        assert embedder.embed(first).vectors.tolist() == expected(first, server, "new-model").tolist()
        refusals = statuses(server).count(413)
        embedder.embed(second)
        assert statuses(server).count(413) == refusals > 0
    assert sorted(texts_sent(server)[-40:]) == sorted(second)


def test_a_preset_knows_the_batch_limit_of_its_server():
    with TEIServer() as server:
        at(server, "tei:new-model").embed(numbered(100))
    assert set(statuses(server)) == {200}
    assert max(len(request.texts) for request in server.requests) <= 32


@pytest.mark.parametrize(
    ("kind", "model"),
    [(TEIServer, "tei:m"), (VLLMServer, "vllm:m"), (OllamaServer, "ollama:m")],
    ids=["tei", "vllm", "ollama"],
)
def test_a_long_text_is_truncated_or_refused_as_configured(kind, model):
    with kind(max_tokens_per_text=64) as server:
        texts = ["short", long_text(100), "short too"]
        result = at(server, model).embed(texts)
        assert result.truncated == (1,)
        assert max(len(text.split()) for text in server.billed_texts) <= 64
        with pytest.raises(PartialFailureError) as failed:
            at(server, model, on_long_text="error").embed(["fine", long_text(90)])
        [error] = failed.value.failed.values()
        assert isinstance(error, TextTooLongError)
        assert (error.tokens, error.limit) == ((None, None) if kind is OllamaServer else (90, 64))


def test_a_text_of_too_many_characters_is_too_long():
    with InfinityServer(max_characters=1000) as server:
        texts = ["short", "x" * 1500]
        assert at(server, "infinity:m").embed(texts).truncated == (1,)


def test_a_batch_of_too_many_texts_is_split():
    with InfinityServer(max_inputs=5) as server:
        assert at(server, "infinity:m").embed(numbered(23)).vectors.shape == (23, 384)
    assert 422 in statuses(server)


def test_a_body_that_is_too_large_is_split_by_size():
    with TEIServer(payload_limit=3000, max_tokens_per_text=10_000) as server:
        texts = numbered(30, tokens=60)
        assert at(server, "tei:m").embed(texts).vectors.tolist() == expected(texts, server, "m").tolist()
    assert set(statuses(server)) == {200, 413}


def test_a_batch_too_large_for_the_servers_memory_is_split_and_a_single_text_is_named():
    with TEIServer(out_of_memory=50) as server:
        texts = numbered(32, tokens=10)
        assert at(server, "tei:m").embed(texts).vectors.tolist() == expected(texts, server, "m").tolist()
        assert set(statuses(server)) == {200, 424}
        with pytest.raises(PartialFailureError) as failed:
            at(server, "tei:m").embed(["fine", numbered(1, tokens=51)[0]])
    [error] = failed.value.failed.values()
    assert isinstance(error, RequestTooLargeError)
    assert "could not process the request, which may be too large for it (HTTP 424)" in str(error)
    assert "CUDA_ERROR_OUT_OF_MEMORY" in str(error)


def test_a_text_that_cannot_be_tokenized_is_found():
    with TEIServer() as server:
        texts = [*numbered(20), "odd \ufffe one"]
        with pytest.raises(PartialFailureError) as failed:
            at(server, "tei:m").embed(texts)
    assert list(failed.value.failed) == [20]


def test_an_overloaded_server_is_retried():
    overloaded = {"message": "Model is overloaded", "code": 429, "type": "Overloaded"}
    with TEIServer(faults=[Fault(status=429, body=overloaded, headers={"retry-after-ms": "1"})]) as server:
        assert at(server, "tei:m").embed(["a"]).usage.retries == 1
        server.faults += [Fault(status=429, body=overloaded, headers={"retry-after-ms": "1"})] * 2
        with pytest.raises(RateLimitError):
            at(server, "tei:m").embed(["b"])


def refused(status, body):
    """Return the error of a refusal with this body."""
    detail = read_detail(body)
    refusal = Refusal("vllm", "m", status, detail.message, {}, ["some text"], ["key"])
    return to_provider_error(refusal, detail, "VLLM_API_KEY", dimensions=None, fix="")


@pytest.mark.parametrize(
    ("status", "body", "kind", "counts"),
    [
        (413, {"message": "batch size 64 > maximum allowed batch size 32", "code": 413, "type": "Validation"},
         RequestTooLargeError, True),
        (413, "Failed to buffer the request body: length limit exceeded", RequestTooLargeError, False),
        (413, {"error": {"code": "tokens_limit_reached", "message": "Request body too large for text-embedding-3-small "
         "model. Max size: 64000 tokens."}}, RequestTooLargeError, False),
        (422, {"message": "Input validation error: `inputs` must have less than 512 tokens. Given: 600",
         "error_type": "Validation"}, TextTooLongError, (600, 512)),
        (413, {"error": "Input validation error: `inputs` must have less than 32000 characters. Given: 67337",
         "error_type": "Validation"}, TextTooLongError, (None, None)),
        (400, {"object": "error", "message": "This model's maximum context length is 512 tokens. However, you "
         "requested 1451 tokens in the input for embedding generation. Please reduce the length of the input.",
         "type": "BadRequestError", "param": None, "code": 400}, TextTooLongError, (1451, 512)),
        (400, {"object": "error", "message": "The decoder prompt (length 8193) is longer than the maximum model length "
         "of 8192. Make sure that `max_model_len` is no smaller than the number of text tokens."},
         TextTooLongError, (8193, 8192)),
        (400, {"error": {"message": "max context 8192 tokens, the prompt had at least 8193"}}, TextTooLongError,
         (None, None)),
        (400, {"error": {"code": 400, "type": "exceed_context_size_error", "message": "request (2622 tokens) exceeds "
         "the available context size (512 tokens), try increasing it"}}, TextTooLongError, (2622, 512)),
        (500, {"error": {"code": 500, "message": "input (600 tokens) is too large to process. increase the physical "
         "batch size (current batch size: 512)", "type": "server_error"}}, TextTooLongError, (600, 512)),
        (400, {"error": "input length exceeds maximum context length"}, TextTooLongError, (None, None)),
        (400, {"error": {"code": 400, "message": "Illegal param: prefill 744 tokens exceed n_ctx_per_seq, try "
         "increasing total context size", "type": "invalid_request_error"}}, TextTooLongError, (None, None)),
        (400, {"error": {"message": "<400> InternalError.Algo.InvalidParameter: Range of input length should be "
         "[1, 8192]", "type": "InvalidParameter", "code": "InvalidParameter"}}, TextTooLongError, (None, None)),
        (400, {"code": 20015, "message": "length of prompt_tokens (600) must be less than max_seq_len (512).",
         "data": None}, TextTooLongError, (600, 512)),
        (400, {"error": {"code": "1261", "message": "Prompt \u8d85\u957f"}}, TextTooLongError, (None, None)),
        (403, {"code": 30001, "message": "Sorry, your account balance is insufficient", "data": None}, QuotaError,
         None),
        (429, {"errors": [{"code": 3036, "message": "You have used up your daily free allocation of 10,000 neurons."}]},
         QuotaError, None),
        (429, {"errors": [{"code": 3040, "message": "Capacity temporarily exceeded"}]}, RateLimitError, None),
        (400, {"errors": [{"code": 5007, "message": "No such model x or task"}]}, BadRequestError, None),
        (400, {"code": 20012, "message": "Model does not exist. Please check it carefully.", "data": None},
         BadRequestError, None),
        (400, {"detail": {"error": "extra fields not permitted: ['encoding_format']"}}, BadRequestError, None),
        (424, {"message": "Backend error: model is not an embedding model", "type": "Backend"}, BadRequestError, None),
        (404, {"error": {"code": "DeploymentNotFound", "message": "The API deployment for this resource does not "
         "exist."}}, BadRequestError, None),
        (422, {"detail": [{"loc": ["body", "model"], "msg": "Field required", "type": "missing"}]}, BadRequestError,
         None),
        (401, {"detail": "Unauthorized"}, AuthenticationError, None),
        (401, {"error": {"code": "401", "message": "Access denied due to invalid subscription key"}},
         AuthenticationError, None),
        (502, "<html>Bad Gateway</html>", UnavailableError, None),
    ],
)  # fmt: skip
def test_each_documented_refusal_becomes_the_right_error(status, body, kind, counts):
    error = refused(status, body)
    assert type(error) is kind
    if kind is RequestTooLargeError:
        assert error.counts_texts is counts
    if kind is TextTooLongError:
        assert (error.tokens, error.limit) == counts


ODD = [
    *(None, 5, [], "", {}, {"error": None}, {"error": [1]}, {"detail": [1]}, {"detail": {}}),
    {"error": {"message": ["a"], "code": {}}},
    {"detail": [{"loc": 5, "msg": None}]},
]


@pytest.mark.parametrize("body", ODD, ids=repr)
def test_a_refusal_of_any_shape_is_a_library_error(body):
    assert isinstance(refused(400, body), BadRequestError)
    assert isinstance(refused(404, body), BadRequestError)


# Conformance


class ServerSuite(ProviderSuite):
    """The real SDK, with a server that repeats text and key in its refusals."""

    api_key = "key-of-a-gateway"
    dtype = "float32"

    @pytest.fixture(autouse=True)
    def far_end(self):
        with self.kind(api_key=self.api_key, echo_input_in_errors=True) as self.server:
            yield

    @property
    def settings(self):
        return {"base_url": self.server.base_url}

    @property
    def options(self):
        return {"user": "somebody"}

    def requests_seen(self):
        return len(self.server.requests)

    def fail(self, kind):
        def fault(texts, number):
            is_fine = kind == "bad_text" and not any(self.bad_text in text for text in texts)
            return None if kind is None or is_fine else faults[kind]

        faults = {
            "auth": Fault(status=401),
            "quota": Fault(status=402),
            "bad_request": Fault(status=404),
            "bad_text": Fault(status=422, body={"message": "Tokenization error", "code": 422, "type": "Tokenizer"}),
            "bad_reply": Fault(transform=lambda reply: reply | {"data": reply["data"][:-1]}),
            "rate_limit": Fault(status=429, headers={"retry-after-ms": "1"}),
            "unavailable": Fault(status=503, headers={"retry-after-ms": "1"}),
        }
        self.server.fault_for(fault)


class TestTEI(ServerSuite):
    """An open model: prompts from the catalogue, vectors truncated locally."""

    kind = TEIServer
    model = f"tei:{NOMIC}"
    other_model = "tei:nomic-ai/nomic-embed-text-v1"
    asymmetric = True
    other_dimensions = 256
    wrong_dimensions = 300

    @pytest.fixture(autouse=True)
    def width(self, far_end):
        self.server.dimensions = 768


class TestOllama(ServerSuite):
    """An unknown model."""

    kind = OllamaServer
    model = "ollama:nomic-embed-text:latest"
    other_model = "ollama:mxbai-embed-large"
    other_dimensions = 64


def test_no_refusal_shows_a_text_or_a_key():
    with TEIServer(api_key="key-of-a-gateway", echo_input_in_errors=True, max_tokens_per_text=5) as server:
        for key, texts in (("wrong-key-of-mine", ["a private text"]), ("key-of-a-gateway", [long_text(9, "private")])):
            with pytest.raises((AuthenticationError, TextTooLongError)) as failed:
                at(server, "tei:m", api_key=key, on_long_text="error").embed(texts)
            assert not [piece for piece in ("private", key) if piece in error_texts(failed.value)]


def test_a_refused_request_field_is_not_treated_as_a_bad_text(embedder_class, server):
    body = {"error": {"message": "Unrecognized request argument supplied: foo", "param": None}}
    server.fault_for(lambda texts, number: Fault(status=400, body=body))
    settings = {"base_url": server.base_url, "api_key": "test-key", "cache": False, "provider_options": {"foo": 1}}
    made = embedder_class(model="text-embedding-3-small", **settings)
    with pytest.raises(BadRequestError, match=r"refused the request .*Unrecognized request argument") as refused:
        getattr(made, "embedder", made).embed(["a", "b"])
    assert type(refused.value) is BadRequestError
    assert len(server.requests) == 1
