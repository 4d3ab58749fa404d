"""Embedders from a mapping or a file, and back: `from_config` and `to_config`."""

import json
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.caches import DictCache

from embedkit_core import ConfigurationError, Embedder
from embedkit_core.config.base import parameter_defaults

MODEL = "openai:text-embedding-3-small"
KEY = "sk-hunter2"
SETTINGS = {
    "dimensions": st.integers(1, 1536),
    "dtype": st.sampled_from(["float32", "float16", "binary", "ubinary"]),
    "model_info": st.sampled_from([{"usd_per_million": 0.5}, {"allowed_dimensions": range(1, 1537)}]),
    "cache": st.sampled_from([False, "vectors", ["a", "b"], "file:///tmp/x"]),
    "coordination": st.just(False),
    "account": st.text("abc", min_size=1),
    "query_prompt": st.text("abc: é"),
    "on_long_text": st.just("error"),
    "max_retries": st.integers(0, 9),
    "timeout": st.none() | st.floats(0.1, 99),
    "provider_options": st.dictionaries(st.just("user"), st.text("abc")),
    "budget_usd": st.decimals(0, 9, places=2) | st.floats(0, 9),
    "prices": st.just({MODEL: Decimal("0.5")}),
    "on_error": st.just("return"),
    "pickle_api_key": st.booleans(),
}


@given(st.fixed_dictionaries({}, optional=SETTINGS).filter(lambda given: given.get("dimensions", 8) % 8 == 0))
@settings(deadline=None, max_examples=25)
def test_a_configuration_makes_an_embedder_with_the_same_arguments(arguments):
    embedder = Embedder(MODEL, api_key=KEY, **arguments)
    config = embedder.to_config()
    assert json.loads(json.dumps(config)) == config
    assert {"model", *config} <= {"model", *arguments}
    again = Embedder.from_config(config, api_key="other")
    assert again.to_config() == config
    assert (again.identity(), again.settings, again.space) == (embedder.identity(), embedder.settings, embedder.space)
    assert (again.budget is None) == (embedder.budget is None)


def test_secrets_and_progress_are_left_out_and_objects_refused():
    secrets = {"api_key": KEY, "headers": {"X-Key": KEY}, "proxy": f"http://user:{KEY}@proxy:3128"}
    assert Embedder(MODEL, cache=False, progress=print, **secrets).to_config() == {"model": MODEL, "cache": False}
    azure = {"model": "azure:mine", "base_url": "https://mine.openai.azure.com", "api_key": "azure-identity"}
    config = Embedder(**azure, cache=False).to_config()
    assert config == {**azure, "cache": False}
    assert Embedder.from_config(config).to_config() == config
    limiter = type("Limiter", (), {"acquire": lambda self: None})()
    for argument in ({"cache": DictCache()}, {"rate_limiter": limiter}):
        with pytest.raises(
            ConfigurationError, match=f"^{next(iter(argument))}: an embedder with a .* cannot have a conf"
        ):
            Embedder(MODEL, api_key=KEY, **argument).to_config()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.toml", f'model = "{MODEL}"\ncache = false\ntimeout = 5'),
        ("b.toml", f'title = "x"\n[rag-embedkit]\nmodel = "{MODEL}"\ncache = false\ntimeout = 5'),
        ("c.json", f'{{"model": "{MODEL}", "cache": false, "timeout": 5, "deadline": null}}'),
        ("bom.toml", f'\ufeffmodel = "{MODEL}"\ncache = false\ntimeout = 5'),
        ("d.JSON", f'{{"rag-embedkit": {{"model": "{MODEL}", "cache": false, "timeout": 5}}}}'),
    ],
)
def test_a_file_has_the_arguments_and_others_replace_them(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    embedder = Embedder.from_config(tmp_path / name, api_key=KEY, max_retries=1)
    assert embedder.to_config() == {"model": MODEL, "cache": False, "timeout": 5, "max_retries": 1}
    assert Embedder.from_config(str(tmp_path / name), api_key=KEY, timeout=7).to_config()["timeout"] == 7


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f'model = "{MODEL}"\ndimension = 5', "a.toml takes no argument 'dimension'; did you mean 'dimensions'"),
        (f'model = "{MODEL}"\ndimensions = "5"', "dimensions: must be an integer"),
        (
            f'model = "{MODEL}"\napi_key = "{KEY}"',
            "api_key: must not be .* environment variable OPENAI_API_KEY, or pass",
        ),
        (f'model = "{MODEL}"\nheaders = {{a = "{KEY}"}}', "headers: must not be in a configuration"),
        (f"api_key = {KEY}", "cannot be used: it is not valid TOML"),
        ("rag-embedkit = 1", "cannot be used: it has no table"),
        (None, "cannot be used: FileNotFoundError"),
    ],
)
def test_an_error_names_the_key_and_shows_no_secret(tmp_path, content, message):
    if content is not None:
        (tmp_path / "a.toml").write_text(content)
    with pytest.raises(ConfigurationError, match=message) as refused:
        Embedder.from_config(tmp_path / "a.toml")
    assert "hunter2" not in str(refused.value)


def test_other_configurations_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"must end in .toml or .json .* pass the mapping"):
        Embedder.from_config(tmp_path / "settings.yaml")
    with pytest.raises(ConfigurationError, match=r"the file ~no-such-user/a.toml cannot be used: RuntimeError"):
        Embedder.from_config("~no-such-user/a.toml")
    with pytest.raises(ConfigurationError, match=r"must be a mapping, or the path of a TOML or JSON file \(got int\)"):
        Embedder.from_config(5)
    with pytest.raises(ConfigurationError, match="config takes no argument 'modle'; did you mean 'model'"):
        Embedder.from_config({"modle": MODEL})
    assert {"api_key", "headers", "proxy", "client_cert", "progress", "rate_limiter"} < {*parameter_defaults()}


def test_the_classes_of_the_frameworks_take_a_configuration(framework_class):
    arguments = {"dimensions": 8, "budget_usd": Decimal("0.5"), "cache": ["a", "b"], "prices": {MODEL: 0.5}}
    embedder = Embedder(MODEL, api_key=KEY, **arguments)
    adapter = framework_class(**embedder.to_config(), api_key=KEY)
    assert adapter.embedder.to_config() == embedder.to_config()
    assert adapter.embedder.fingerprint == embedder.fingerprint
