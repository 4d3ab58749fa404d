"""RAG_EMBEDKIT_CACHE names the cache of embedders that are created without one."""

import json
import pickle

import pytest
from support.traceback_locals import SECRET, leaks

from embedkit_core import ConfigurationError, Embedder
from embedkit_core.cache import CacheFolder

MODEL, VARIABLE = "openai:text-embedding-3-small", "RAG_EMBEDKIT_CACHE"


@pytest.fixture
def named(server, tmp_path, monkeypatch):
    """The folder in the variable; the user's own cache folder is a temporary one."""
    monkeypatch.setenv("OPENAI_API_KEY", server.api_key)
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv(VARIABLE, str(tmp_path / "named"))
    return tmp_path / "named"


def test_it_is_read_when_an_embedder_is_created(named, monkeypatch, tmp_path):
    with Embedder(MODEL) as embedder, Embedder(MODEL, cache=tmp_path / "own") as own:
        assert [embedder.jobs_folder, own.jobs_folder] == [named, tmp_path / "own"]
        assert embedder.explain("x").cache == f"{named} ({VARIABLE})"
        assert own.explain("x").cache == str(tmp_path / "own")
        assert Embedder(MODEL, cache=False).explain("x").cache == "none"
        monkeypatch.setenv(VARIABLE, "")
        embedder.embed(["x"])
        assert CacheFolder(named).stats().vectors == 1
        assert Embedder(MODEL).explain("x").cache == str(tmp_path / "home" / "rag-embedkit")
        assert pickle.loads(pickle.dumps(embedder)).jobs_folder == named


def test_the_frameworks_and_the_maintenance_use_it(named, framework_class):
    assert framework_class(model=MODEL).embedder.explain("x").cache == f"{named} ({VARIABLE})"
    assert CacheFolder(None).folder == named


@pytest.mark.parametrize(
    "address", [f"redis://user:{SECRET}@host/0", f"acme://host?token={SECRET}", f"x,redis://:{SECRET}@host"]
)
def test_an_error_names_the_variable_and_shows_no_secret(named, monkeypatch, address):
    monkeypatch.setenv(VARIABLE, address)
    for make in (lambda: Embedder(MODEL), lambda: CacheFolder(None)):
        with pytest.raises(ConfigurationError, match=f"^{VARIABLE}: ") as refused:
            make()
        assert SECRET not in str(refused.value)
        assert not leaks(refused.value)


def test_commands_without_the_option_use_it(named, tmp_path, monkeypatch, capfd):
    from embedkit_core.cli.run import run

    def printed(*arguments):
        code = run(list(arguments))
        return code, *capfd.readouterr()

    assert printed("cache", "stats")[1].startswith(f"{named} ({VARIABLE}): 0 vectors")
    for options, cache in (([], f"{named} ({VARIABLE})"), (["--cache", f"{tmp_path}/own"], f"{tmp_path}/own")):
        assert json.loads(printed("explain", "x", "-m", MODEL, "--json", *options)[1])["cache"] == cache
    assert printed("budget", "list")[0] == 0
    monkeypatch.setenv(VARIABLE, "redis://host")
    code, _, error = printed("cache", "stats")
    assert code == 2
    assert f"{VARIABLE}: a folder is needed (got an address)" in error
