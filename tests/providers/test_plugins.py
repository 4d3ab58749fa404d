"""Third-party providers and caches: discovery, name conflicts, cache URLs and broken packages."""

import sys
from pathlib import Path

import numpy as np
import pytest
from support.embedders import error_texts
from support.plugin import run_command, write_package

from embedkit_core import AuthenticationError, ConfigurationError, Embedder
from embedkit_core.cache.opening import open_cache
from embedkit_core.cache.urls import is_built_in_scheme
from embedkit_core.common import plugins
from embedkit_core.providers.base import ProviderSettings
from embedkit_core.providers.registry import provider_class
from embedkit_core.providers.secrets import Secret
from embedkit_core.testing import FakeServer

PROVIDERS, CACHES = plugins.PROVIDERS, plugins.CACHES
FAR = FakeServer()

DOORS = """
import sys
from embedkit_core import Embedder
from langchain_embedkit import EmbedKitEmbeddings
from llamaindex_embedkit import EmbedKitEmbedding

settings = {"model": "acme:small", "cache": sys.argv[1], "dimensions": 5}
core, langchain, llamaindex = (door(**settings) for door in (Embedder, EmbedKitEmbeddings, EmbedKitEmbedding))
rows = core.embed(["one", "two"]).vectors.tolist()
assert langchain.embed_documents(["one", "two"]) == llamaindex.get_text_embedding_batch(["one", "two"]) == rows
assert langchain.embed_query("one") == llamaindex.get_query_embedding("one") == rows[0]
print(core.usage.sent, langchain.usage.sent, llamaindex.usage.sent, langchain.usage.cache_hits)
"""


def kept_at(cache: object) -> Embedder:
    return Embedder("fake:any", base_url=FAR.url, cache=cache)


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder whose packages are installed during a test."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    plugins.registered.cache_clear()
    yield folder
    plugins.registered.cache_clear()
    for file in folder.glob("*.py"):
        sys.modules.pop(file.stem, None)


@pytest.mark.parametrize("cache", ["{}", "file://{}", "acme://{}"])
def test_an_installed_provider_and_cache_work_in_all_three_classes(acme, tmp_path, cache):
    said = run_command(sys.executable, "-W", "error", "-c", DOORS, cache.format(tmp_path / "kept"), path=acme)
    assert said == "2 0 0 3\n"
    assert list((tmp_path / "kept").iterdir())


# Names


def name_what_is_not_there() -> None:
    """Names that are not built in cause a scan of all installed packages."""
    with pytest.raises(ConfigurationError):
        Embedder("nobodys:any")
    with pytest.raises(ConfigurationError):
        Embedder("fake:any", base_url="fake://", cache="nobodys://x")


def test_built_in_providers_and_caches_are_entry_points_too(site):
    for group, ours in plugins.BUILT_IN.items():
        points = [point for claims in plugins.registered(group).values() for point in claims]
        assert {point.name: point.value for point in points if plugins.is_built_in(point)} == ours


def test_a_plugin_with_a_built_in_name_is_ignored_and_logged_once(site, caplog):
    write_package(
        site, "grabby", {PROVIDERS: {"fake": "grabby:Mine"}, CACHES: {"file": "grabby:Mine"}}, "Mine = object"
    )
    server = FakeServer()
    for _ in range(2):
        made = Embedder("fake:any", base_url=server.url, cache=(site / "kept").as_uri())
        assert made.embed(["one"]).vectors.shape == (1, 8)
    assert made.usage.cache_hits == 1
    for _ in range(2):
        name_what_is_not_there()
    said = sorted(record.getMessage() for record in caplog.records)
    assert said == [
        "Plugin ignored: entry point fake = grabby:Mine of the package grabby uses the name of a built-in provider",
        "Plugin ignored: entry point file = grabby:Mine of the package grabby uses the name of a built-in cache",
    ]


def test_a_plugin_with_a_built_in_name_is_ignored_even_if_it_points_into_the_core(site, caplog):
    write_package(site, "grabby", {PROVIDERS: {"openai": "embedkit_core.testing:Fake"}})
    for _ in range(2):
        assert provider_class("openai").name == "openai"
        name_what_is_not_there()
    [said] = [record.getMessage() for record in caplog.records]
    assert said.startswith("Plugin ignored: entry point openai = embedkit_core.testing:Fake of the package grabby ")


def test_a_plugin_that_repeats_a_built_in_entry_point_is_ignored(site, caplog):
    ours = "embedkit_core.providers.openai.provider:OpenAI"
    write_package(site, "grabby", {PROVIDERS: {"openai": ours, "mine": ours}})
    assert provider_class("openai").name == "openai"
    name_what_is_not_there()
    assert [record.getMessage().count("of the package grabby uses") for record in caplog.records] == [1]
    assert not plugins.is_built_in(plugins.registered(PROVIDERS)["mine"][0])


def test_a_plugin_cache_that_points_into_the_core_is_not_built_in(site, tmp_path):
    write_package(site, "grabby", {CACHES: {"mine": "embedkit_core.cache.urls:open_file_url"}})
    assert is_built_in_scheme("file")
    assert not is_built_in_scheme("mine")


def test_a_name_that_two_packages_register_is_refused(site):
    for package in ("one_acme", "other_acme"):
        write_package(site, package, {PROVIDERS: {"acme": f"{package}:Acme"}})
    with pytest.raises(ConfigurationError, match=r"Two packages register .* 'acme'.*one_acme.*other_acme.*Remove one"):
        Embedder("acme:small", cache=False)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import nothing_of_that_name", "cannot be loaded .ModuleNotFoundError: .*nothing_of_that_name"),
        ("1 / 0", "cannot be loaded .ZeroDivisionError"),
        ("def (", "cannot be loaded .SyntaxError"),
        ("", "cannot be loaded .AttributeError"),
        ("Acme = object", "is not a subclass of embedkit_core.providers.base.Provider"),
        ("Acme = 5", "is not a subclass of embedkit_core.providers.base.Provider"),
        ("from embedkit_core.testing import Fake as Acme", "must have the attribute name='acme' .got 'fake'."),
    ],
)
def test_a_broken_provider_is_one_error_that_names_its_package(site, code, words):
    write_package(site, "broken_acme", {PROVIDERS: {"acme": "broken_acme:Acme"}}, code)
    with pytest.raises(ConfigurationError, match=words) as refused:
        Embedder("acme:small", cache=False)
    assert "acme = broken_acme:Acme of the package broken_acme" in str(refused.value)
    assert type(refused.value) is ConfigurationError


def test_a_broken_package_does_not_affect_other_providers(site):
    write_package(site, "broken_acme", {PROVIDERS: {"acme": "broken_acme:Acme"}}, "1 / 0")
    assert Embedder("fake:any", base_url=(server := FakeServer()).url, cache=False).embed(["x"]).vectors.any()
    with pytest.raises(ConfigurationError, match="did you mean 'acme:small'"):
        Embedder("acne:small", cache=False)
    assert len(server.received) == 1


# Cache URLs


def test_the_built_in_cache_has_a_url(tmp_path):
    folder = tmp_path / "with space & ü"
    for address in (folder.as_uri(), folder.as_uri().replace("file:///", "FILE://localhost/")):
        assert kept_at(address).vector_cache.backend is open_cache(folder)


@pytest.mark.parametrize(
    "address", ["file://", "file:///", "file://relative/folder", "file:///folder?size=5", "file:///folder#part"]
)
def test_a_url_without_a_folder_is_refused_with_an_example(address):
    with pytest.raises(ConfigurationError, match="file:///absolute/path"):
        kept_at(address)


def test_a_url_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="is a file"):
        kept_at((tmp_path / "file" / "cache").as_uri())


def test_an_unknown_url_scheme_is_refused_with_the_known_ones(site):
    write_package(site, "acme_caches", {CACHES: {"acme": "acme_caches:Acme"}})
    with pytest.raises(
        ConfigurationError,
        match=r"no package provides acne:// \(available: acme://, file://, redis://, rediss://\); did you mean "
        ".*acme.* Pass a folder",
    ):
        kept_at("acne://host/0")


@pytest.mark.parametrize(
    "address",
    [
        "acme://me:hunter2@host/0",
        "acme://:hunter2@host/0",
        "acme://me:hunter/2@host/0",
        "acme://me:hunter#2@host/0",
        "acme://me:hunter?2@host/0",
        "acme://me:hunt[er2@host/0",
        "acme://host/0?password=hunter2",
        "acme://host/0?db=1&Token=hunter2",
        "acme://hunter2@host/0",
        "acme://me%40hunter2:hunter2%40host",
        "acme://host/0@hunter2",
        "acme:///folder/me:hunter2@host",
        "acme://host/0?next=me@hunter2",
        "acme://host/0;password=hunter2",
        "acme://host/0%3Bpassword=hunter2",
        "acme://host/0#access_token=hunter2",
        "acme://host/0?a=1#b=2&session-key=hunter2",
        "acme://host/0?X-Amz-Signature=hunter2",
        "acme://host/0?x%2Dauth=hunter2",
        "acme://host/0?sig=hunter2",
        "acme://host/0?aws_credentials=hunter2",
        "acme://host/0?client_secret=hunter2",
        "acme://host/0?passphrase=hunter2",
        "acme://host/0?db=1;pass=hunter2",
        "file://hunter2@localhost/folder",
        "file:///folder;password=hunter2",
        "file:/folder?token=hunter2",
    ],
)
def test_a_password_in_a_cache_url_is_refused_and_not_shown(site, address):
    write_package(
        site, "acme_caches", {CACHES: {"acme": "acme_caches:Acme"}}, "def Acme(url): raise AssertionError(url)"
    )
    with pytest.raises(ConfigurationError, match="password") as refused:
        kept_at(address)
    assert "hunt" not in error_texts(refused.value)


def test_a_url_without_a_secret_is_passed_to_the_cache_and_a_folder_may_have_any_name(site, tmp_path):
    write_package(site, "acme_caches", {CACHES: {"acme": "acme_caches:Acme"}}, CLOSING)
    kept_at("acme://host:6379/0?db=1&size=5#part")
    assert sys.modules["acme_caches"].made[0].url == "acme://host:6379/0?db=1&size=5#part"
    for name in ("me@home", "a;b&c=d", "password=none"):
        assert kept_at((tmp_path / name).as_uri()).vector_cache.backend is open_cache(tmp_path / name)


@pytest.mark.parametrize("address", ["file:/abs/folder", "file:folder", "FILE:/abs/folder", "file:"])
def test_a_file_url_without_slashes_is_refused_and_creates_no_folder(address, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match="Use cache='file:///absolute/path'"):
        kept_at(address)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("1 / 0", "cannot be loaded"),
        ("Acme = 5", "cannot be called with an address"),
        ("Acme = str", "lacks one of get_many, set_many, close"),
        ("def Acme(url): raise ValueError(url)", r"cannot be opened \(ValueError\)"),
        ("def Acme(url): import nothing_of_that_name", r"opened \(ModuleNotFoundError: nothing_of_that_name\)"),
        ("def Acme(url):\n from embedkit_core import ConfigurationError\n raise ConfigurationError('no db')", "no db"),
    ],
)
def test_a_broken_cache_is_one_error(site, code, words):
    write_package(site, "acme_caches", {CACHES: {"acme": "acme_caches:Acme"}}, code)
    with pytest.raises(ConfigurationError, match=words) as refused:
        kept_at("acme://host/0")
    assert type(refused.value) is ConfigurationError


SECRETIVE = """
from embedkit_core import ConfigurationError
def fail(error):
    try:
        raise OSError("auth failed for SEKRET")
    except OSError as first:
        raise error from first
"""


@pytest.mark.parametrize(
    "error",
    [
        "OSError('auth failed for SEKRET')",
        "ImportError('no SEKRET')",
        "ImportError('no', name='SEKRET in it')",
        "ConfigurationError('set ACME_URL')",
    ],
)
def test_the_message_of_a_plugins_exception_is_not_shown_or_chained(site, error):
    points = {PROVIDERS: {"acme": "broken_acme:Acme"}, CACHES: {"acme": "broken_acme:Acme"}}
    write_package(site, "broken_acme", points, f"{SECRETIVE}\nfail({error})")
    write_package(
        site, "acme_caches", {CACHES: {"beside": "acme_caches:Acme"}}, f"{SECRETIVE}\ndef Acme(_): fail({error})"
    )
    for make in (lambda: Embedder("acme:small"), lambda: kept_at("acme://host/0"), lambda: kept_at("beside://host/0")):
        with pytest.raises(ConfigurationError) as refused:
            make()
        assert "SEKRET" not in error_texts(refused.value)
        assert refused.value.__cause__ is refused.value.__context__ is None


CLOSING = """
from embedkit_core.cache import Entry
import numpy as np
made = []
class Acme:
    def __init__(self, url): self.url, self.closed = url, 0; made.append(self)
    def get_many(self, keys): return {key: Entry(np.array([np.nan] * 8, np.float32)) for key in keys}
    def set_many(self, items): pass
    def close(self): self.closed += 1
"""


def test_a_url_cache_is_closed_with_its_embedder_and_its_vectors_are_checked(site):
    write_package(site, "acme_caches", {CACHES: {"acme": "acme_caches:Acme"}}, CLOSING)
    server = FakeServer()
    embedder = Embedder("fake:any", base_url=server.url, cache="acme://host/0")
    [cache] = sys.modules["acme_caches"].made
    assert cache.url == "acme://host/0"
    assert np.isfinite(embedder.embed(["one"]).vectors).all()
    embedder.close()
    assert cache.closed == 1


@pytest.mark.parametrize("name", [r"C:\vectors", "C:/vectors", "c://vectors", "kept:away", "a:/b"])
def test_a_drive_letter_or_a_colon_is_not_a_scheme(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    embedder = Embedder("fake:any", base_url=(server := FakeServer()).url, cache=name)
    embedder.embed(["one"])
    assert (tmp_path / Path(name)).is_dir()
    assert len(server.received) == 1


# Settings of a provider


def test_a_provider_refuses_the_settings_it_does_not_use():
    everything = {
        "api_key": Secret("sk-mine"),
        "base_url": "http://localhost",
        "dimensions": 5,
        "query_prompt": "q: ",
        "document_prompt": "d: ",
        "options": {"user": "me"},
    }
    names = ["provider_options" if name == "options" else name for name in everything]
    ProviderSettings("small", **everything).check_only_used(*names)
    for name, value in everything.items():
        user_name = "provider_options" if name == "options" else name
        others = [other for other in names if other != user_name]
        with pytest.raises(
            ConfigurationError,
            match=f"{user_name}: not supported by the model 'small'. Supported settings: {', '.join(others)}",
        ) as no:
            ProviderSettings("small", **{name: value}).check_only_used(*others)
        assert "sk-mine" not in str(no.value)
    with pytest.raises(ConfigurationError, match="It supports no settings"):
        ProviderSettings("small", dimensions=5).check_only_used()


def test_settings_that_are_not_set_are_not_refused():
    ProviderSettings("small", query_prompt="", document_prompt="", options={}).check_only_used()


def test_an_unknown_setting_name_is_a_type_error():
    with pytest.raises(TypeError, match="dimension"):
        ProviderSettings("small").check_only_used("dimension")


def test_a_key_comes_from_the_argument_then_from_the_environment(monkeypatch):
    given, lost = ProviderSettings("small", api_key=Secret("given")), ProviderSettings("small", api_key=Secret.lost())
    monkeypatch.delenv("ACME_API_KEY", raising=False)
    assert ProviderSettings("small").find_key("ACME_API_KEY") is None
    with pytest.raises(AuthenticationError, match="not pickled"):
        lost.find_key("ACME_API_KEY").reveal()
    monkeypatch.setenv("ACME_API_KEY", " found\n")
    found = [settings.find_key("ACME_API_KEY").reveal() for settings in (given, lost, ProviderSettings("small"))]
    assert found == ["given", "found", "found"]
    monkeypatch.setenv("ACME_API_KEY", "two words")
    with pytest.raises(ConfigurationError, match="environment variable ACME_API_KEY"):
        lost.find_key("ACME_API_KEY")


def test_the_providers_package_exports_what_plugins_need():
    from embedkit_core import providers

    assert {"Batch", "Client", "Limits", "Provider", "ProviderSettings", "Reply"} <= set(providers.__all__)
    assert all(hasattr(providers, name) for name in providers.__all__)
    assert provider_class("fake").name == "fake"
