"""Redis as `cache=` and `coordination=`: addresses, clients, and lists of caches. No server is needed."""

import pickle

import pytest
from support.caches import DictCache
from support.rows import check_rows

from embedkit_core import ConfigurationError, Embedder
from embedkit_core.cache.redis.address import parse
from embedkit_core.coordination.opening import LOCAL_FOLDER

redis = pytest.importorskip("redis")
asyncio_redis = pytest.importorskip("redis.asyncio")

OPENAI = {"model": "openai:text-embedding-3-small", "api_key": "key"}
ADDRESS = "redis://127.0.0.1:9/3"


def coordination_of(embedder):
    return embedder._specs["document"].request_spec.coordination


def test_the_processes_that_share_a_redis_cache_coordinate_through_it(tmp_path):
    def check(cache):
        embedder = Embedder(**OPENAI, cache=cache)
        assert str(coordination_of(embedder).handle) == ADDRESS
        assert coordination_of(embedder).has_claims

    client = redis.Redis("127.0.0.1", 9, 3)
    check_rows([ADDRESS, [tmp_path, ADDRESS], (tmp_path, DictCache(), ADDRESS), client, [str(tmp_path), client]], check)
    embedder = Embedder(**OPENAI, cache=[tmp_path / "1", tmp_path / "2"])
    assert str(coordination_of(embedder).handle) == str(tmp_path / "1" / LOCAL_FOLDER)
    assert coordination_of(Embedder(**OPENAI, cache=[tmp_path, ADDRESS], coordination=False)) is None


def test_embedders_with_the_same_address_share_a_coordinator(tmp_path):
    embedders = [
        Embedder(**OPENAI, **options)
        for options in (
            {"cache": ADDRESS},
            {"cache": [tmp_path, ADDRESS]},
            {"cache": f"{ADDRESS}?ttl_days=3"},
            {"cache": False, "coordination": ADDRESS},
            {"cache": DictCache(), "coordination": ADDRESS.replace("redis", "REDIS")},
        )
    ]
    assert len({coordination_of(embedder).handle for embedder in embedders}) == 1
    client = redis.Redis("127.0.0.1", 9, 3)
    shared = [Embedder(**OPENAI, cache=client), Embedder(**OPENAI, cache=False, coordination=client)]
    assert len({coordination_of(embedder).handle for embedder in shared}) == 1


def test_embedders_with_the_same_address_or_client_share_a_cache(tmp_path):
    client = redis.Redis("127.0.0.1", 9, 3)
    for cache in (ADDRESS, client, [tmp_path, ADDRESS], [tmp_path, client]):
        one, two = (Embedder(**OPENAI, cache=cache).vector_cache for _ in range(2))
        assert one.backend is two.backend
    other = Embedder(**OPENAI, cache=f"{ADDRESS}?ttl_days=3").vector_cache
    assert other.backend is not Embedder(**OPENAI, cache=ADDRESS).vector_cache.backend


def test_machines_without_a_common_cache_claim_no_texts_and_one_warning_says_so(tmp_path, caplog):
    embedders = [
        Embedder(**OPENAI, cache=cache, coordination="redis://127.0.0.1:9/4")
        for cache in (tmp_path, [tmp_path, tmp_path / "2"], tmp_path.as_uri())
    ]
    assert [coordination_of(embedder).has_claims for embedder in embedders] == [False] * 3
    assert [record.getMessage() for record in caplog.records] == [
        "Machines that coordinate through redis://127.0.0.1:9/4 share no cache, so each pays for its texts. Pass a "
        "cache that they share, such as cache=['folder', 'redis://host:6379/0']."
    ]


def test_machines_that_may_share_a_cache_claim_texts(tmp_path, caplog):
    def check(cache):
        assert coordination_of(Embedder(**OPENAI, cache=cache, coordination="redis://127.0.0.1:9/5")).has_claims

    check_rows([False, DictCache(), [tmp_path, DictCache()], ADDRESS, [tmp_path, ADDRESS]], check)
    assert not caplog.records


@pytest.mark.parametrize("argument", ["cache", "coordination"])
def test_a_client_that_cannot_be_used_is_refused(argument, embedder_class):
    def check(row):
        client, problem = row
        with pytest.raises(ConfigurationError, match=f"^{argument}: .*{problem}"):
            embedder_class(**OPENAI, **{argument: client})

    cluster, asyncio_cluster = (kind.__new__(kind) for kind in (redis.RedisCluster, asyncio_redis.RedisCluster))
    sentinel = redis.sentinel.Sentinel([("127.0.0.1", 9)]).master_for("main")
    check_rows(
        [
            (asyncio_redis.Redis(), "an asyncio client cannot be used"),
            (asyncio_cluster, "an asyncio client cannot be used"),
            (cluster, "a Redis Cluster is not supported"),
            (sentinel, "only a redis.Redis with plain, TLS or Unix socket connections is supported"),
        ],
        check,
    )


def test_an_address_that_names_no_database_is_refused_without_showing_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def check(row):
        address, problem = row
        for argument in ("cache", "coordination"):
            with pytest.raises(ConfigurationError, match=rf"^{argument}: .*{problem}") as refused:
                Embedder(**OPENAI, **{argument: address})
            assert "hunter2" not in str(refused.value)

    form = r"Use redis://host:6379/0, or rediss://host:6379/0 for TLS\."
    check_rows(
        [
            ("redis://", form),
            ("redis:///0", form),
            ("redis://host/vectors", form),
            ("redis://host/0#1", form),
            ("redis:host", form),
            ("rediss:/host/0", form),
            ("redis://host:hunter2/0", "cannot be parsed"),
            ("redis://:hunter2@host/0", "set RAG_EMBEDKIT_REDIS_USERNAME and RAG_EMBEDKIT_REDIS_PASSWORD"),
            ("rediss://host/0?password=hunter2", "set RAG_EMBEDKIT_REDIS_USERNAME and RAG_EMBEDKIT_REDIS_PASSWORD"),
            ("redis://host/0?ttl=7", r"The only one is ttl_days, .*: redis://host:6379/0\?ttl_days=30"),
            ("redis://host/0?ttl_days=week", r"must be a positive number of days \(got 'week'\)"),
            ("redis://host/0?ttl_days=-1", r"must be a positive number of days \(got '-1'\)"),
        ],
        check,
    )
    assert not list(tmp_path.iterdir())


def test_several_caches_in_one_text_are_refused_without_showing_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for cache in ("folder,redis://:hunter2@host/0", " redis://:hunter2@host/0"):
        with pytest.raises(ConfigurationError, match=r"^cache: a folder must not have an address .* as a list\.$"):
            Embedder(**OPENAI, cache=cache)


def test_a_list_must_not_name_a_database_twice(tmp_path):
    def check(caches):
        with pytest.raises(ConfigurationError, match=r"^cache: a list must not contain the same cache twice"):
            Embedder(**OPENAI, cache=caches)

    check_rows([[ADDRESS, ADDRESS], [ADDRESS, tmp_path, f"{ADDRESS}?ttl_days=3"]], check)


def test_addresses_and_lists_are_pickled_and_folders_are_absolute(embedder_class, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    monkeypatch.chdir(tmp_path)
    embedder = embedder_class(**OPENAI, cache=["folder", ADDRESS], coordination=ADDRESS)
    data = pickle.dumps(embedder)
    monkeypatch.chdir("/")
    copied = pickle.loads(data)
    core = getattr(copied, "embedder", copied)
    folder, database = core.vector_cache.tiers
    assert folder.folder == tmp_path / "folder"
    assert str(database.redis_connection) == ADDRESS
    assert str(coordination_of(core).handle) == ADDRESS


def test_a_client_is_not_pickled(embedder_class, tmp_path):
    client = redis.Redis("127.0.0.1", 9, 3)
    for cache in (client, [tmp_path, client]):
        with pytest.raises(ConfigurationError, match=r"^cache: an embedder with a cache object or a client cannot"):
            pickle.dumps(embedder_class(**OPENAI, cache=cache))
    with pytest.raises(ConfigurationError, match=r"^coordination: an embedder with a coordinator object or a client"):
        pickle.dumps(embedder_class(**OPENAI, cache=tmp_path, coordination=client))


class ShowsPassword(redis.Redis):
    """A client as of the package redis 5.1 to 7, whose repr has its password."""

    def __repr__(self):
        return f"<{self.get_connection_kwargs()['password']}>"


def test_the_password_of_a_client_is_not_in_reprs_and_errors(framework_class, tmp_path):
    client = ShowsPassword("127.0.0.1", 9, password="hunter2-Z9")
    for cache in (client, [tmp_path, client]):
        assert "Z9" not in repr(framework_class(**OPENAI, cache=cache, coordination=client))
    for argument, value in (("cache", {client}), ("cache", [tmp_path, {client}]), ("coordination", {client})):
        with pytest.raises(ConfigurationError) as caught:
            framework_class(**OPENAI, **{argument: value})
        assert "Z9" not in str(caught.value)


def test_port_0_is_no_default():
    assert str(parse("redis://127.0.0.1:0/0", "cache")[0]) == "redis://127.0.0.1:0/0"


def test_a_later_change_of_the_list_changes_no_embedder(tmp_path):
    caches = [tmp_path / "1", tmp_path / "2"]
    embedder = Embedder(**OPENAI, cache=caches)
    caches.append(tmp_path / "3")
    assert len(pickle.loads(pickle.dumps(embedder)).vector_cache.tiers) == 2
