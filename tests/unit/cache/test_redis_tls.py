"""Redis over TLS, with a certificate of the tests."""

import hashlib
from contextlib import closing

import numpy as np
import pytest
import redis
from support.proxy import key_pair
from support.redis_server import free_port

from embedkit_core.cache.redis.cache import RedisCache, open_address
from embedkit_core.cache.redis.connection import connection_of
from embedkit_core.common.types import Entry

ITEMS = [(hashlib.sha256(b"a text").digest(), Entry(np.arange(4, dtype=np.float32)))]


@pytest.fixture
def encrypted(new_redis, tmp_path):
    """A server that speaks TLS: its port, and the certificate for localhost that it shows."""
    certificate, key = key_pair(tmp_path, "redis")
    port = free_port()
    files = f"--tls-cert-file {certificate} --tls-key-file {key} --tls-ca-cert-file {certificate}"
    new_redis("--tls-port", str(port), *files.split(), "--tls-auth-clients", "no")
    return port, certificate


def is_cached(cache):
    cache.set_many(ITEMS)
    return [key for key, _ in ITEMS] == list(cache.get_many([key for key, _ in ITEMS]))


def test_a_rediss_address_is_used_over_tls(encrypted, monkeypatch, caplog):
    port, certificate = encrypted
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with closing(open_address(f"rediss://localhost:{port}/0")) as cache:
        assert is_cached(cache)
        assert cache.connection.name == f"rediss://localhost:{port}/0"
    assert not caplog.records


def test_a_certificate_of_an_unknown_authority_is_refused(encrypted, caplog):
    port, _ = encrypted
    with closing(open_address(f"rediss://localhost:{port}/0")) as cache:
        assert not is_cached(cache)
    [record] = caplog.records
    assert f"rediss://localhost:{port}/0 cannot be used: its certificate is not trusted (self" in record.getMessage()
    assert "set SSL_CERT_FILE" in record.getMessage()


def test_a_certificate_of_another_host_is_refused(encrypted, monkeypatch, caplog):
    port, certificate = encrypted
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with closing(open_address(f"rediss://127.0.0.1:{port}/0")) as cache:
        assert not is_cached(cache)
    [record] = caplog.records
    assert "its certificate is not trusted (IP address mismatch" in record.getMessage()


def test_a_client_of_the_users_keeps_its_certificates(encrypted):
    port, certificate = encrypted
    with redis.Redis("localhost", port, ssl=True, ssl_ca_certs=str(certificate)) as client:
        connection = connection_of(client, "cache")
        with closing(RedisCache(connection)) as cache:
            assert is_cached(cache)
        assert connection.name == f"rediss://localhost:{port}/0"
