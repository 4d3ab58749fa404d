"""The arguments `coordination` and `account`: which processes an embedder coordinates with, and as which account."""

import copy
import pickle
from itertools import permutations

import pytest
from support.caches import DictCache
from support.coordinators import LoneCoordinator
from support.embedders import core_embedder, fake_embedder
from support.rows import check_rows

from embedkit_core import ConfigurationError, Embedder
from embedkit_core.coordination.opening import LOCAL_FOLDER
from embedkit_core.coordination.port import ProviderAccount
from embedkit_core.costs.amounts import BudgetLimit
from embedkit_core.providers.secrets import Secret
from embedkit_core.testing import FakeServer

SALT = b"salt" * 8
OPENAI = {"model": "openai:text-embedding-3-small", "api_key": "key"}


def coordination_of(model):
    (found,) = {id(spec.request_spec.coordination) for spec in core_embedder(model)._specs.values()}
    coordination = core_embedder(model)._specs["query"].request_spec.coordination
    assert id(coordination) == found
    return coordination


def test_embedders_with_the_same_folder_share_a_coordinator(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    default = Embedder(**OPENAI)
    folder = default.vector_cache.tiers[0].folder
    others = [Embedder(**OPENAI, cache=cache) for cache in (folder, str(folder), folder.as_uri())]
    handles = {coordination_of(one).handle for one in (default, *others, copy.copy(default), default.without_cache())}
    assert [str(handle) for handle in handles] == [str(folder / LOCAL_FOLDER)]
    assert coordination_of(Embedder(**OPENAI, cache=tmp_path / "other")).handle not in handles


def test_without_a_folder_that_processes_share_there_is_no_coordination(embedder_class, tmp_path):
    for options in ({"cache": False}, {"cache": DictCache()}, {"cache": str(tmp_path), "coordination": False}):
        assert coordination_of(embedder_class(**OPENAI, **options)) is None


def test_an_object_coordinates_with_any_cache_or_none(embedder_class, tmp_path):
    mine = LoneCoordinator()
    models = [embedder_class(**OPENAI, coordination=mine, cache=cache) for cache in (False, DictCache(), str(tmp_path))]
    models += [copy.deepcopy(model) for model in models]
    assert len({coordination_of(model).handle for model in models}) == 1
    assert coordination_of(models[0]).handle.open() is mine
    assert coordination_of(embedder_class(**OPENAI, coordination=LoneCoordinator())).handle.open() is not mine


def test_embedders_with_the_same_key_share_requests(tmp_path):
    one, same, other, named = (
        Embedder(**{**OPENAI, "cache": tmp_path, **options})
        for options in ({}, {}, {"api_key": "other"}, {"account": "team"})
    )
    specs = [embedder._specs["query"].request_spec for embedder in (one, same, other, named)]
    assert specs[0] == specs[1]
    assert hash(specs[0]) == hash(specs[1])
    assert all(a != b for a, b in permutations(specs[1:], 2))


def test_another_value_is_refused_without_being_shown(embedder_class):
    class Coordinator(LoneCoordinator):
        pass

    def check(value):
        with pytest.raises(ConfigurationError, match=r"coordination: must be None \(.*\), False \(off\)") as caught:
            embedder_class(**OPENAI, coordination=value)
        assert "hunter2" not in str(caught.value)

    check_rows([True, "", "memcached://:hunter2@host", "local", 0, object(), DictCache(), Coordinator], check)


def test_an_invalid_address_is_refused_without_being_shown(embedder_class):
    def check(row):
        value, problem = row
        with pytest.raises(ConfigurationError, match=f"^coordination: .*{problem}") as caught:
            embedder_class(**OPENAI, coordination=value)
        assert "hunter2" not in str(caught.value)

    check_rows(
        [
            ("redis://:hunter2@host", "must not contain a user, a password"),
            ("rediss://host/hunter2", "no host or no valid database"),
        ],
        check,
    )


def test_an_invalid_account_is_refused(embedder_class):
    def check(value):
        with pytest.raises(ConfigurationError, match="account: must be a string of 1 to 100 printable characters"):
            embedder_class(**OPENAI, account=value)

    check_rows(["", "a\0b", "x" * 101, 1, b"team"], check)


def test_coordination_changes_no_vector(embedder_class, tmp_path):
    plain = embedder_class(**OPENAI, cache=str(tmp_path), coordination=False)
    shared = embedder_class(
        **OPENAI, cache=str(tmp_path), account="team", coordination=LoneCoordinator(), budget_usd=1, budget_name="b"
    )
    assert core_embedder(plain).identity() == core_embedder(shared).identity()
    if hasattr(plain, "to_dict"):
        assert plain.to_dict() == shared.to_dict()


def test_nothing_is_opened_for_a_call_of_hits(tmp_path):
    embedder = fake_embedder(FakeServer(), cache=tmp_path, budget_tokens=100, budget_name="b")
    embedder.import_vectors(["hit"], [[1.0] * 8], verify=0)
    assert embedder.embed(["hit", "hit"]).usage.cache_hits == 1
    embedder.embed_documents(["hit"])
    embedder.estimate(["miss"])
    assert coordination_of(embedder).handle._coordinator is None
    assert not (tmp_path / LOCAL_FOLDER).exists()


async def test_a_closed_embedder_closes_the_coordination_file(tmp_path):
    embedder = Embedder(**OPENAI, cache=tmp_path)
    coordinator = coordination_of(embedder).handle.open()
    for close in (embedder.close, embedder.aclose):
        coordinator.open_budget("ingest", BudgetLimit(None, 5))
        assert coordinator._resources.connections
        closing = close()
        if closing is not None:
            await closing
        assert not coordinator._resources.connections


def test_a_closed_embedder_leaves_the_users_coordinator_open():
    mine = LoneCoordinator()
    with fake_embedder(FakeServer(), coordination=mine) as embedder:
        embedder.embed(["a"])
    assert not mine.is_closed


def test_coordination_is_pickled_unless_it_is_an_object(embedder_class, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    on = embedder_class(**OPENAI, cache=str(tmp_path), account="team")
    copied = pickle.loads(pickle.dumps(on))
    assert coordination_of(copied).handle is coordination_of(on).handle
    assert coordination_of(copied).account == coordination_of(on).account
    off = embedder_class(**OPENAI, cache=str(tmp_path), coordination=False)
    assert coordination_of(pickle.loads(pickle.dumps(off))) is None
    with pytest.raises(ConfigurationError, match="coordination: an embedder with a coordinator object or"):
        pickle.dumps(embedder_class(**OPENAI, coordination=LoneCoordinator()))


def test_an_account_is_known_by_its_name_else_by_its_key_else_by_its_endpoint():
    def digest(secret=None, name=None, endpoint=""):
        return ProviderAccount("openai", endpoint, secret, name).digest(SALT)

    assert digest(Secret("one"), "team") == digest(Secret("two"), "team") == digest(Secret("", source=str), "team")
    assert digest(Secret("", source=str)) == digest(Secret("", source=repr)) == digest(Secret.lost()) == digest()
    different = [
        digest(),
        digest(endpoint="http://host/v1"),
        digest(Secret("one")),
        digest(Secret("two")),
        digest(name="one"),
        digest(name="team"),
        ProviderAccount("openai", "", Secret("one")).digest(b"another salt" * 3),
        ProviderAccount("voyage", "", Secret("one")).digest(SALT),
    ]
    assert len(set(different)) == len(different)


def test_an_account_never_shows_its_key():
    account = ProviderAccount("openai", "", Secret("hunter2hunter2"))
    assert "hunter2" not in repr(account)
    assert "hunter2" not in account.digest(SALT)
