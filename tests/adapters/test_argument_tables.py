"""The arguments of the replaced classes: each is an alias, ignored, or refused with a fix."""

import inspect
from pathlib import Path
from typing import Union, get_args, get_type_hints

import pytest
from langchain_cohere import CohereEmbeddings
from langchain_openai import AzureOpenAIEmbeddings, OpenAIEmbeddings
from langchain_voyageai import VoyageAIEmbeddings
from llama_index.embeddings.openai import OpenAIEmbedding, OpenAIEmbeddingModelType
from pydantic import SecretStr, field_validator
from support.argument_tables import argument_table
from support.embedders import numbered
from support.openai_server import vector_of
from support.rows import check_rows

import langchain_embedkit.arguments
import llamaindex_embedkit.arguments
from embedkit_core import ConfigurationError, Embedder
from embedkit_core.adapters.arguments import Alias, EmbedderOptions, Ignored, SecretString, Unsupported
from embedkit_core.config.roles import SubmitOptions
from embedkit_core.providers.http.connection import Connection
from embedkit_core.providers.secrets import Hidden, Secret
from embedkit_core.testing import FakeServer
from langchain_embedkit import EmbedKitEmbeddings
from langchain_embedkit.arguments import LangChainOptions
from llamaindex_embedkit import EmbedKitEmbedding
from llamaindex_embedkit.arguments import LlamaIndexOptions

ROOT = Path(__file__).parents[2]
MODEL = "text-embedding-3-small"
LANGCHAIN, LLAMAINDEX = langchain_embedkit.arguments.RULES, llamaindex_embedkit.arguments.RULES
TABLES = {EmbedKitEmbeddings: LANGCHAIN, EmbedKitEmbedding: LLAMAINDEX}
SAMPLES = {
    "chunk_size": 7, "batch_size": 7, "output_dimension": 256, "request_timeout": 5, "truncation": False,
    "truncate": "NONE", "model_kwargs": {"user": "u"}, "additional_kwargs": {"user": "u"},
    "query_instruction": "q: ", "text_instruction": "d: ", "openai_api_base": "http://localhost:1/v1",
    "embed_instruction": "d: ", "show_progress": True, "show_progress_bar": True,
    "openai_proxy": "http://localhost:1", "default_headers": {"a": "b"}, "azure_ad_token": "k",
    "azure_ad_token_provider": "k", "embedding_types": ["binary"], "embedding_type": "binary", "output_dtype": "binary",
    "api_base": "http://localhost:1/v1", "openai_api_key": "k", "voyage_api_key": "k", "cohere_api_key": "k",
    **dict.fromkeys(("google_api_key", "mistral_api_key", "nvidia_api_key", "nomic_api_key", "jina_api_key"), "k"),
    **dict.fromkeys(("fireworks_api_key", "together_api_key", "dashscope_api_key", "deepinfra_api_token"), "k"),
    **dict.fromkeys(("huggingfacehub_api_token", "token", "api_token"), "k"),
    **dict.fromkeys(("endpoint", "endpoint_url", "together_api_base"), "http://localhost:1/v1"),
    "output_dimensionality": 256, "dimensionality": 256, "max_batch_size": 7, "max_concurrent_requests": 7,
    "retries": 7, "additional_headers": {"a": "b"}, "query_prefix": "q: ", "text_prefix": "d: ", "repo_id": MODEL,
    "azure_endpoint": "http://localhost:1/v1", "use_azure_ad": True,
}  # fmt: skip
MEANT = {
    "max_batch_texts": 7, "dimensions": 256, "timeout": 5.0, "on_long_text": "error", "provider_options": {"user": "u"},
    "query_prompt": "q: ", "document_prompt": "d: ", "base_url": "http://localhost:1/v1", "api_key": SecretStr("k"),
    "proxy": "http://localhost:1", "headers": {"a": "b"}, "dtype": "binary", "progress": True, "model": MODEL,
    "max_concurrency": 7, "max_retries": 7,
    "use_azure_ad": SecretStr("azure-identity"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _a_key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k")


def made(host, **arguments):
    return host(**{"model": MODEL, "cache": False, **arguments})


def rules_of(kind):
    """Return class, name and rule of every argument with a kind of rule."""
    rows = [(h, n, rule) for h, rules in TABLES.items() for n, rule in rules.items() if type(rule) is kind]
    assert len(rows) > 5
    return rows


def names_of(peer):
    """Return every argument name of a class."""
    fields = peer.model_fields
    given = {
        p.name
        for p in inspect.signature(peer.__init__).parameters.values()
        if p.kind is p.KEYWORD_ONLY or p.default is not p.empty
    }
    return {*fields, *(field.alias for field in fields.values() if field.alias), *given}


@pytest.mark.parametrize(
    ("host", "peer"),
    [
        (EmbedKitEmbeddings, OpenAIEmbeddings),
        (EmbedKitEmbeddings, AzureOpenAIEmbeddings),
        (EmbedKitEmbeddings, VoyageAIEmbeddings),
        (EmbedKitEmbeddings, CohereEmbeddings),
        (EmbedKitEmbedding, OpenAIEmbedding),
    ],
)
def test_every_argument_of_the_replaced_class_is_known(host, peer):
    assert len(names_of(peer)) > 5
    assert not names_of(peer) - {*host.model_fields, *TABLES[host]}


def without_types_of_the_core(hint):
    """Return a union without the types that only the core passes."""
    of_the_core = (Connection, Hidden, Secret)
    if not set(of_the_core) & set(get_args(hint)):
        return hint
    return Union[tuple(kind for kind in get_args(hint) if kind not in of_the_core)]  # noqa: UP007


def test_the_options_are_the_keyword_arguments_of_the_embedder():
    signature = inspect.signature(Embedder).parameters.values()
    names = [p.name for p in signature if p.kind is p.KEYWORD_ONLY and p.name != "on_error"]
    meant, options = get_type_hints(Embedder.__init__), get_type_hints(EmbedderOptions)
    assert list(options) == names
    assert options.pop("api_key") == Union[without_types_of_the_core(meant["api_key"]), SecretString]  # noqa: UP007
    assert options == {name: without_types_of_the_core(meant[name]) for name in options}


def test_the_typed_options_of_submit_are_its_arguments(framework_class):
    arguments = [p for p in inspect.signature(Embedder.submit).parameters.values() if p.kind is p.KEYWORD_ONLY]
    typed = {name: annotation.__forward_arg__ for name, annotation in SubmitOptions.__annotations__.items()}
    assert typed == {argument.name: argument.annotation for argument in arguments}
    for method in (Embedder.asubmit, framework_class.submit, framework_class.asubmit):
        assert method.__annotations__["options"] == "Unpack[SubmitOptions]"


@pytest.mark.parametrize(
    ("host", "options"), [(EmbedKitEmbeddings, LangChainOptions), (EmbedKitEmbedding, LlamaIndexOptions)]
)
def test_the_typed_options_are_the_accepted_arguments(host, options):
    accepted = {name for name, rule in TABLES[host].items() if not isinstance(rule, Unsupported)}
    assert options.__annotations__.keys() | {"model"} == {*accepted, *host.model_fields, "model"}


def test_a_field_has_the_default_of_the_embedders_argument(framework_class):
    defaults = {p.name: p.default for p in inspect.signature(Embedder).parameters.values()}
    names = EmbedderOptions.__annotations__
    assert {name: framework_class.model_fields[name].default for name in names} == {
        name: defaults[name] for name in names
    }


@pytest.mark.parametrize(("document", "rules"), [("langchain.md", LANGCHAIN), ("llamaindex.md", LLAMAINDEX)])
def test_the_documentation_shows_the_table(document, rules):
    """Written by `python tests/support/argument_tables.py`."""
    assert argument_table(rules) in (ROOT / "docs" / document).read_text(encoding="utf-8")


def check_alias(row):
    host, name, rule = row
    of_azure = {"model": "azure:m", "base_url": None if rule.to == "base_url" else "http://localhost:1/v1"}
    model = made(host, **{name: SAMPLES[name], **(of_azure if rule.only else {})})
    assert getattr(model, rule.to) == MEANT.get(name, MEANT[rule.to])
    if rule.only:
        with pytest.raises(ConfigurationError, match=f": {name}= is not supported. Use Azure's v1 endpoint"):
            made(host, **{name: SAMPLES[name]})
    assert made(host, **{name: None}).model_dump() == made(host).model_dump()
    if rule.to in ("max_batch_texts", "dimensions"):
        with pytest.raises(ConfigurationError, match=f"{rule.to}= and {name}= are the same argument"):
            made(host, **{rule.to: 3, name: SAMPLES[name]})


def test_an_alias_sets_the_argument_that_it_stands_for():
    check_rows(((host, name, rule) for host, name, rule in rules_of(Alias) if not rule.required), check_alias)


@pytest.mark.parametrize("alias", ["model_name", "model_id"])
@pytest.mark.parametrize("host", [EmbedKitEmbeddings, EmbedKitEmbedding])
def test_the_model_may_be_passed_as_model_name_or_first_argument(host, alias):
    assert host(**{alias: MODEL}, api_key="k", cache=False).embedder.model == f"openai:{MODEL}"
    assert host(MODEL, api_key="k", cache=False).embedder.model == f"openai:{MODEL}"
    with pytest.raises(ConfigurationError, match="same argument"):
        host(model=MODEL, api_key="k", **{alias: "text-embedding-3-large"})
    with pytest.raises(ConfigurationError, match="model"):
        host(**{alias: None}, api_key="k")


def check_ignored(row):
    host, name, rule = row
    assert len(rule.reason) > 15
    assert made(host, **{name: 5}).embedder.fingerprint == made(host).embedder.fingerprint


def test_an_argument_without_effect_is_accepted():
    check_rows(rules_of(Ignored), check_ignored)


def check_refused(row):
    host, name, rule = row
    with pytest.raises(ConfigurationError) as refused:
        made(host, **{name: object()})
    assert f": {name}= is not supported. {rule.fix}" in str(refused.value)
    for harmless in (None, *rule.allowed):
        made(host, **{name: harmless})


def test_an_unsupported_argument_is_refused_with_the_fix():
    check_rows(rules_of(Unsupported), check_refused)


@pytest.mark.parametrize(
    ("host", "peer"),
    [
        (EmbedKitEmbeddings, OpenAIEmbeddings),
        (EmbedKitEmbeddings, VoyageAIEmbeddings),
        (EmbedKitEmbedding, OpenAIEmbedding),
    ],
)
def test_the_defaults_of_the_replaced_class_are_accepted(host, peer):
    """A configuration file that sets an argument to its default needs no change."""
    defaults = {n: f.default for n, f in peer.model_fields.items() if f.default_factory is None and not f.is_required()}
    defaults = {
        n: v for n, v in defaults.items() if n not in ("model", "model_name", "rate_limiter", "callback_manager")
    }
    model = made(host, **defaults)
    assert model.embedder.dimensions == 1536


@pytest.mark.parametrize(
    ("host", "written", "space"),
    [
        (
            EmbedKitEmbeddings,
            {"model": "google:models/gemini-embedding-001", "google_api_key": "k", "output_dimensionality": 768},
            "google:gemini-embedding-001/768/float32",
        ),
        (
            EmbedKitEmbeddings,
            {"model_id": "amazon.titan-embed-text-v2:0", "endpoint_url": "https://bedrock-runtime.eu-west-1.api.aws"},
            "bedrock:amazon.titan-embed-text-v2:0/1024/float32",
        ),
        (EmbedKitEmbeddings, {"model": "mistral-embed", "mistral_api_key": "k"}, "mistral:mistral-embed/1024/float32"),
        (
            EmbedKitEmbeddings,
            {"model": "nomic-embed-text-v1.5", "nomic_api_key": "k", "dimensionality": 256, "inference_mode": "remote"},
            "nomic:nomic-embed-text-v1.5/256/float32/9daf6ac0",  # with its prompts
        ),
        (EmbedKitEmbedding, {"model_name": "mistral-embed", "api_key": "k"}, "mistral:mistral-embed/1024/float32"),
        (
            EmbedKitEmbedding,
            {"model_name": "hf-inference:BAAI/bge-m3", "token": "k", "query_instruction": "q: "},
            "hf-inference:BAAI/bge-m3/1024/float32",
        ),
        (
            EmbedKitEmbedding,
            {"model": "jina-embeddings-v3", "api_key": "k", "late_chunking": False},
            "jina:jina-embeddings-v3/1024/float32",
        ),
    ],
)
def test_the_arguments_of_other_providers_classes_need_little_change(host, written, space):
    """As in the examples of their documentation; most models need no prefix."""
    assert host(**written, cache=False).embedder.space == space


@pytest.mark.parametrize(
    ("host", "typo", "meant"),
    [
        (EmbedKitEmbeddings, "dimension", "dimensions"),
        (EmbedKitEmbeddings, "chunksize", "chunk_size"),
        (EmbedKitEmbeddings, "openai_apikey", "openai_api_key"),
        (EmbedKitEmbedding, "api_bas", "api_base"),
        (EmbedKitEmbedding, "embed_batchsize", "embed_batch_size"),
        (EmbedKitEmbedding, "modle", "model"),
        (EmbedKitEmbeddings, "modle", "model"),
    ],
)
def test_a_mistyped_argument_is_refused_with_the_nearest_name(host, typo, meant):
    with pytest.raises(ConfigurationError, match=f"no argument '{typo}'; did you mean '{meant}'"):
        made(host, **{typo: 1})


@pytest.mark.parametrize(
    ("argument", "fix"),
    [
        ({"budget_tokens": "100"}, "budget_tokens: must be an integer of at least 0 (got '100')"),
        ({"prices": 5}, "Example: {'openai:my-model': 0.02}"),
        ({"dtype": "flaot32"}, "did you mean 'float32'?"),
        ({"on_long_text": "trunc"}, "did you mean 'truncate'?"),
        ({"model_info": {"dimension": 5}}, "did you mean 'dimensions'?"),
        ({"progress": "yes"}, "must be True for a bar, False, or a callable that takes a Progress"),
        ({"pickle_api_key": "yes"}, "pickle_api_key: must be True or False (got 'yes')"),
        ({"max_concurrency": object()}, "max_concurrency: must be an integer"),
    ],
)
def test_an_invalid_value_has_the_error_of_the_core(framework_class, argument, fix):
    with pytest.raises(ConfigurationError) as refused:
        made(framework_class, **argument)
    assert fix in str(refused.value)
    assert refused.value.__cause__ is None
    assert "Input should be" not in str(refused.value)


def test_an_invalid_framework_field_has_the_error_of_the_framework():
    with pytest.raises(ConfigurationError, match="EmbedKitEmbedding: embed_batch_size: Input should be") as refused:
        made(EmbedKitEmbedding, embed_batch_size=0)
    assert refused.value.__context__ is None


def test_a_validator_of_a_subclass_changes_the_embedders_argument(framework_class):
    class Halved(framework_class):
        @field_validator("dimensions")
        @classmethod
        def half(cls, value):
            return value // 2

    model = made(Halved, dimensions=512)
    assert (model.dimensions, model.embedder.dimensions) == (256, 256)


def test_a_timeout_object_is_refused_with_the_number_to_give():
    with pytest.raises(ConfigurationError, match="request_timeout: must be a number of seconds"):
        made(EmbedKitEmbeddings, request_timeout=(1.0, 5.0))


@pytest.mark.parametrize("given", [["int8"], "int8", ("int8",)], ids=repr)
def test_embedding_types_sets_the_dtype(framework_class, given):
    voyage = made(framework_class, model="voyage:voyage-4", api_key="k", embedding_types=given)
    assert (voyage.dtype, voyage.embedder.space) == ("int8", "voyage:voyage-4/1024/int8")
    assert made(framework_class, embedding_types=["float"]).dtype == "float32"
    with pytest.raises(ConfigurationError, match="an embedder has one dtype"):
        made(framework_class, embedding_types=["float", "int8"])


def test_encoding_format_in_model_kwargs_is_dropped():
    """LangChain's documentation recommends encoding_format='float' for compatible servers."""
    assert made(EmbedKitEmbeddings, model_kwargs={"encoding_format": "float"}).provider_options is None


def test_the_model_may_be_an_enumeration_of_llamaindex(server):
    model = EmbedKitEmbedding(
        model=OpenAIEmbeddingModelType.TEXT_EMBED_3_SMALL,
        embed_batch_size=100,
        api_base=server.base_url,
        api_key="test-key",
        cache=False,
    )
    assert model.get_text_embedding("a") == vector_of("a").tolist()


@pytest.mark.parametrize(
    ("host", "replaced"), [(EmbedKitEmbeddings, OpenAIEmbeddings), (EmbedKitEmbedding, OpenAIEmbedding)]
)
def test_without_a_model_the_default_of_the_replaced_class_is_used_with_a_warning(host, replaced):
    default = (
        replaced.model_fields["model"].default
        if "model" in replaced.model_fields
        else OpenAIEmbedding(api_key="k").model_name
    )
    with pytest.warns(UserWarning, match="without model= uses 'text-embedding-ada-002'") as said:
        model = host(api_key="k", cache=False)
    assert model.embedder.model == f"openai:{default}"
    assert said[0].filename == __file__
    with pytest.raises(ConfigurationError, match="model"):
        host(model=None, api_key="k")  # for example an unset variable


async def test_chunk_size_limits_the_texts_of_a_request(server):
    options = {"base_url": server.base_url, "api_key": "test-key", "cache": False}
    embeddings = EmbedKitEmbeddings(model=MODEL, **options)
    embeddings.embed_documents(numbered(25), chunk_size=10)
    assert max(len(request.texts) for request in server.requests) == 10
    assert sum(len(request.texts) for request in server.requests) == 25
    with pytest.raises(ConfigurationError, match=r"^chunk_size \(max_batch_texts\): .*\(got -1\)"):
        embeddings.embed_documents(["a"], chunk_size=-1)
    seen = len(server.requests)
    embeddings = EmbedKitEmbeddings(model=MODEL, chunk_size=20, **options)
    texts = [f"async {text}" for text in numbered(25)]
    rows = await embeddings.aembed_documents(texts, chunk_size=10)
    assert rows == [vector_of(text).tolist() for text in texts]
    assert max(len(request.texts) for request in server.requests[seen:]) == 10
    await embeddings.aembed_documents([f"later {text}" for text in numbered(45)])
    assert max(len(request.texts) for request in server.requests[seen:]) == 20


def test_the_frameworks_base_url_variable_has_priority(framework_class, server, monkeypatch):
    """A user of OpenAIEmbeddings behind a gateway must not send texts and key to another host."""
    monkeypatch.setenv("OPENAI_API_BASE", server.base_url)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:1/v1")
    framework_class(model=MODEL, api_key="test-key", cache=False).embedder.embed_query("a")
    assert len(server.requests) == 1


def test_a_copy_may_be_updated_by_an_alias():
    embeddings = made(EmbedKitEmbeddings, chunk_size=7)
    assert embeddings.model_copy(update={"chunk_size": 9}).max_batch_texts == 9
    model = made(EmbedKitEmbedding, dimensions=64)
    assert model.model_copy(update={"api_base": "http://localhost:1/v1"}).base_url == "http://localhost:1/v1"


def test_llamaindex_prompt_arguments_are_sent():
    server = FakeServer()
    model = EmbedKitEmbedding(
        model="fake:any", base_url=server.url, cache=False, query_instruction="q: ", text_instruction="d: "
    )
    model.get_query_embedding("x")
    model.get_text_embedding("x")
    assert [seen.body["prompt"] for seen in server.received] == ["q: ", "d: "]
