"""Azure: each form of address, the header of the key, tokens of Entra ID, and Cohere's models."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
from support.azure_server import KEY, TOKEN, AzureServer, IdentityServer
from support.embedders import error_texts
from support.openai_server import vector_of

from embedkit_core import AuthenticationError, BadRequestError, ConfigurationError, Embedder, MissingExtraError
from embedkit_core.providers.openai import azure, entra
from embedkit_core.providers.openai.azure import parse_address
from langchain_embedkit import EmbedKitEmbeddings
from llamaindex_embedkit import EmbedKitEmbedding

NAME = "https://name.openai.azure.com"
VERSION = "?api-version=2024-10-21"
V1 = "/openai/v1/embeddings"
OLDER = f"/openai/deployments/dep/embeddings{VERSION}"
IN_PROJECT = "/api/projects/proj"
FORMS = {  # the address after the origin, and the path of its requests
    "": V1,
    "/": V1,
    "/openai/": V1,
    "/openai/v1": V1,
    "/openai/v1/embeddings/": V1,
    IN_PROJECT: IN_PROJECT + V1,
    f"{IN_PROJECT}/openai/v1/": IN_PROJECT + V1,
    f"/openai/deployments/dep{VERSION}": OLDER,
    f"/openai/deployments/dep/embeddings{VERSION}": OLDER,
    f"/openai/deployments/{VERSION}": OLDER,
    f"/openai{VERSION}": OLDER,
    VERSION: OLDER,
}
VARIABLES = ("AZURE_OPENAI_ENDPOINT", "AZURE_OPENAI_API_KEY", "AZURE_OPENAI_AD_TOKEN", "OPENAI_API_VERSION")
OF_IDENTITY = ("AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_TOKEN_CREDENTIALS", "AZURE_FEDERATED_TOKEN_FILE")


@pytest.fixture(autouse=True)
def _no_settings_of_the_developer(monkeypatch, tmp_path):
    for name in (*VARIABLES, *OF_IDENTITY):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))  # without the command az
    entra._token_provider.cache_clear()
    yield
    entra._token_provider.cache_clear()


@pytest.fixture
def server():
    with AzureServer(api_key=None) as server:
        yield server


@pytest.fixture
def identity(monkeypatch):
    with IdentityServer() as identity:
        monkeypatch.setenv("IDENTITY_ENDPOINT", f"{identity.origin}/msi/token")
        monkeypatch.setenv("IDENTITY_HEADER", identity.header)
        yield identity


def at(server, form="", **settings):
    defaults = {"api_key": KEY, "cache": False, "max_retries": 0}
    return Embedder("azure:dep", base_url=f"{server.origin}{form}", **{**defaults, **settings})


def expected(text):
    return vector_of(text, model="dep")


@pytest.mark.parametrize("key", [KEY, TOKEN], ids=["key", "token"])
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form or "resource")
def test_each_form_of_address_sends_what_is_documented(server, form, key):
    embedder = at(server, form, api_key=key)
    np.testing.assert_array_equal(embedder.embed_query("a text"), expected("a text"))
    [request] = server.requests
    assert server.routes == [FORMS[form]]
    assert request.body == {"model": "dep", "input": ["a text"], "encoding_format": "base64"}
    is_bearer = FORMS[form] != OLDER or key == TOKEN
    assert request.headers.get("authorization") == (f"Bearer {key}" if is_bearer else None)
    assert request.headers.get("api-key") == (None if is_bearer else key)


def test_a_deployment_has_one_identity_in_all_forms(server):
    made = [at(server, form) for form in FORMS]
    assert {one.provider.endpoint for one in made} == {f"{server.origin}/openai/v1"}
    assert len({one.explain("a text").key for one in made}) == len({one.fingerprint for one in made}) == 1
    assert len({one.space for one in made}) == 1


@pytest.mark.parametrize(
    "origin", [NAME, "https://NAME.openai.azure.com:443", "https://name.cognitiveservices.azure.com",
               "https://name.services.ai.azure.com"],
)  # fmt: skip
def test_a_resource_has_one_identity_in_all_domains(origin):
    for form in FORMS:
        address = parse_address(f" {origin}{form} ", "dep")
        assert address.endpoint == f"{NAME}/openai/v1"
        assert address.base.startswith(origin.lower().removesuffix(":443"))


def test_a_cache_of_the_older_route_is_used_by_the_v1_endpoint(server, tmp_path):
    first = at(server, f"/openai/deployments/dep{VERSION}", cache=tmp_path).embed(["a", "b"])
    then = at(server, "", cache=tmp_path).embed(["a", "b"])
    assert (first.usage.requests, then.usage.requests, then.usage.cache_hits) == (1, 0, 2)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (f"{NAME}/openai/deployments/other{VERSION}", r"'azure:dep' is not the deployment 'other'.*'azure:other'"),
        (f"{NAME}/openai/deployments/dep", r"API version .* is missing.*'https://name.openai.azure.com/openai/v1'"),
        (f"{NAME}/openai/v1{VERSION}", "the v1 endpoint takes no API version"),
        ("https://r.services.ai.azure.com/models", r"retired .* base_url='https://r.services.ai.azure.com'"),
        (f"{NAME}{VERSION}&code=SECRET", "contains a query"),
        (f"{NAME}?api-version=SECRET", "contains a query"),
        (f"{NAME}?code=SECRET&api-version=2024-10-21", "contains a query"),
        (f"{NAME}{VERSION}#SECRET", "contains a query"),
        (f"https://user:SECRET@name.openai.azure.com{VERSION}", "user name or password"),
    ],
    ids=["deployment", "version", "v1", "models", "more", "no-date", "before", "fragment", "login"],
)
def test_an_address_that_cannot_be_used_is_refused_with_the_fix(address, message):
    for make in (Embedder, EmbedKitEmbeddings, EmbedKitEmbedding):
        with pytest.raises(ConfigurationError, match=message) as refused:
            make("azure:dep", base_url=address, api_key=KEY, cache=False)
        assert "SECRET" not in error_texts(refused.value)


def test_another_provider_refuses_an_api_version():
    with pytest.raises(ConfigurationError, match=r"one of Azure\. Use model="):
        Embedder("openai:m", base_url=f"http://localhost:1/v1{VERSION}", api_key="k", cache=False)


def test_the_version_and_the_address_may_be_in_the_environment(server, monkeypatch):
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", f"{server.origin}/openai/deployments/dep")
    monkeypatch.setenv("OPENAI_API_VERSION", "2024-10-21")
    embedder = Embedder("azure:dep", api_key=KEY, cache=False, pickle_api_key=True)
    pickled = pickle.dumps(embedder)
    monkeypatch.delenv("AZURE_OPENAI_ENDPOINT")
    monkeypatch.delenv("OPENAI_API_VERSION")
    for one in (embedder, pickle.loads(pickled)):
        one.embed_query("a text")
    assert server.routes == [OLDER, OLDER]


@pytest.mark.parametrize("given", ["name.openai.azure.com", f"{NAME}/", f"{NAME}/openai/v1"])
def test_the_address_of_the_environment_may_be_that_of_the_resource(given, monkeypatch):
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", given)
    assert Embedder("azure:dep", api_key=KEY, cache=False).provider.url == f"{NAME}/openai/v1"
    assert Embedder("azure:dep", api_key=KEY, cache=False, base_url="https://other.example").provider.url != given


def test_both_frameworks_send_to_the_older_route_of_a_gateway(monkeypatch):
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", KEY)
    with AzureServer(api_key=None, has_v1=False) as server:
        address = f"{server.origin}{VERSION}"
        one = EmbedKitEmbeddings(model="azure:dep", azure_endpoint=address, cache=False)
        other = EmbedKitEmbedding(model="azure:dep", azure_endpoint=address, cache=False)
        assert "api-version=2024-10-21" in repr(one)
        rows = [one.embed_query("a"), pickle.loads(pickle.dumps(one)).embed_query("a")]
        rows += [other.get_query_embedding("a"), pickle.loads(pickle.dumps(other)).get_query_embedding("a")]
        copied = EmbedKitEmbedding.from_dict({**other.to_dict(), "cache": False})
        assert copied.to_dict() == other.to_dict()
        rows.append(copied.get_query_embedding("a"))
        np.testing.assert_allclose(rows, [expected("a")] * 5, atol=1e-6)
        assert server.routes == [OLDER] * 5


def test_deployments_at_older_routes_do_not_share_a_client(server):
    server.deployments = ("dep", "other")
    for name in ("dep", "other"):
        with Embedder(f"azure:{name}", base_url=f"{server.origin}{VERSION}", api_key=KEY, cache=False) as embedder:
            embedder.embed_query("a text")
    assert server.routes == [OLDER, OLDER.replace("/dep/", "/other/")]


def test_a_missing_deployment_or_version_is_named(server):
    server.deployments, server.versions = (), ("2024-10-21",)
    for form in (VERSION, "?api-version=2020-01-01", ""):
        with pytest.raises(BadRequestError) as refused:
            at(server, form).embed_query("a text")
        assert ("Has the resource a deployment 'dep', and this API version?" in str(refused.value)) is bool(form)


def test_a_header_of_the_user_replaces_the_key(server):
    embedder = at(server, VERSION, api_key="another", headers={"Api-Key": KEY})
    assert embedder.embed_query("a text").shape == (1536,)
    embedder = at(server, VERSION, api_key="another", headers={"authorization": f"Bearer {TOKEN}"})
    assert embedder.embed_query("a text").shape == (1536,)


# Entra ID


@pytest.mark.parametrize(
    ("form", "resource"),
    [("", "https://cognitiveservices.azure.com"), (VERSION, "https://cognitiveservices.azure.com"),
     (IN_PROJECT, "https://ai.azure.com")],
    ids=["v1", "older", "project"],
)  # fmt: skip
def test_without_a_key_azure_identity_signs_in(server, identity, form, resource):
    one, other = at(server, form, api_key=None), at(server, form, api_key=None)
    assert one.provider.account == other.provider.account
    assert identity.resources == []
    copied = pickle.loads(pickle.dumps(one))
    copied.check_can_be_sent()
    for embedder in (one, other, copied):
        embedder.embed_query("a text")
    assert {request.headers["authorization"] for request in server.requests} == {f"Bearer {TOKEN}"}
    assert identity.resources == [resource]  # the token is kept


def test_azure_identity_by_name_precedes_the_key_of_the_environment(server, identity, monkeypatch):
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "another")
    embedder = at(server, api_key="azure-identity")
    copied = pickle.loads(pickle.dumps(embedder))
    copied.check_can_be_sent()
    named = EmbedKitEmbedding("azure:dep", azure_endpoint=server.origin, use_azure_ad=True, cache=False)
    for one in (embedder, copied, named.embedder):
        one.embed_query("a text")
    assert {request.headers["authorization"] for request in server.requests} == {f"Bearer {TOKEN}"}


def test_a_failed_sign_in_says_what_to_do(server, identity):
    identity.refuses = True
    with pytest.raises(AuthenticationError, match=r"could not sign in.* AZURE_OPENAI_API_KEY.* `az login`") as refused:
        at(server, api_key=None, max_retries=2).embed_query("a text")
    assert identity.header not in error_texts(refused.value)
    assert server.requests == []
    identity.refuses = False
    assert at(server, api_key=None).embed_query("a text").shape == (1536,)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(azure, "is_installed", lambda package: False)
    with pytest.raises(MissingExtraError, match=r'sign-in with Entra ID .*pip install "rag-embedkit\[azure\]"'):
        Embedder("azure:dep", base_url=NAME, api_key="azure-identity", cache=False)
    with pytest.raises(ConfigurationError, match=r'No API key for azure:dep\. .* AZURE_OPENAI_API_KEY.*\[azure\]"'):
        Embedder("azure:dep", base_url=NAME, cache=False)


def test_the_package_is_not_imported_by_the_constructor():
    code = (
        "import sys; from embedkit_core import Embedder; Embedder('azure:dep', base_url='https://n.example', "
        "cache=False); sys.exit('azure.identity' in sys.modules or 'azure.core' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Cohere's models


def test_a_model_of_cohere_receives_the_input_type_and_dimensions(server):
    server.dimensions = 1536
    embedder = at(server, model_info={"like": "cohere:embed-v4.0"}, dimensions=256)
    embedder.embed_documents(["a text"])
    embedder.embed_query("a text")
    sent = {"model": "dep", "dimensions": 256, "input": ["a text"]}
    bodies = [{k: v for k, v in one.body.items() if k != "encoding_format"} for one in server.requests]
    assert bodies == [{**sent, "input_type": "document"}, {**sent, "input_type": "query"}]
    assert server.requests[0].body["encoding_format"] == "float"  # base64 of these models is not documented
    assert embedder.explain("a text", input_type="query").key != embedder.explain("a text").key


def test_the_input_type_of_another_model_is_an_option(server):
    at(server, provider_options={"input_type": "query"}).embed_query("a text")
    at(server).embed_query("a text")
    assert [one.body.get("input_type") for one in server.requests] == ["query", None]


@pytest.mark.parametrize("setting", [{"dtype": "int8"}, {"task": "clustering"}, {"dimensions": 300}], ids=str)
def test_what_azure_does_not_offer_for_a_model_of_cohere_is_refused(setting):
    with pytest.raises(ConfigurationError, match="does not offer"):
        Embedder(
            "azure:dep", base_url=NAME, api_key=KEY, cache=False, model_info={"like": "cohere:embed-v4.0"}, **setting
        )
