"""Connections to Voyage AI: keys, hosts, prices, sessions and proxies."""

import asyncio
import subprocess
import sys
from decimal import Decimal

import pytest
from support.embedders import error_texts, numbered
from support.voyage_server import VoyageServer

from embedkit_core import AuthenticationError, BadRequestError, ConfigurationError, Embedder, ProviderError
from embedkit_core.common.types import Batch
from embedkit_core.providers import Secret
from embedkit_core.providers.base import ProviderSettings
from embedkit_core.providers.http.connection import Connection
from embedkit_core.providers.voyage import Voyage

MODEL = "voyage:voyage-4"
TEXTS = numbered(5)
ELSEWHERE = "http://voyage.example/v1"


@pytest.fixture(autouse=True)
def nothing_from_outside(monkeypatch):
    for name in ("VOYAGE_API_KEY", "VOYAGE_API_KEY_PATH", "http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server():
    with VoyageServer() as started:
        yield started


def voyage(server, **settings):
    return Embedder(MODEL, **{"base_url": server.base_url, "api_key": server.api_key, "cache": False, **settings})


# Keys, hosts and prices


@pytest.mark.parametrize("address", [None, "https://ai.mongodb.com/v1", "https://eu.ai.mongodb.com/v1/"])
def test_voyages_own_hosts_require_a_key(address):
    with pytest.raises(ConfigurationError, match="VOYAGE_API_KEY"):
        Embedder(MODEL, base_url=address, cache=False)


def test_another_server_requires_no_key(server):
    server.api_key = None
    assert len(voyage(server).embed(TEXTS).vectors) == 5


def test_the_key_file_has_priority_over_the_variable(server, monkeypatch, tmp_path):
    (tmp_path / "key").write_text("  from-the-file \n")
    monkeypatch.setenv("VOYAGE_API_KEY", "from-the-variable")
    monkeypatch.setenv("VOYAGE_API_KEY_PATH", str(tmp_path / "key"))
    server.api_key = "from-the-file"
    assert len(voyage(server, api_key=None).embed(TEXTS).vectors) == 5


def test_the_argument_has_priority_over_the_key_file(server, monkeypatch, tmp_path):
    monkeypatch.setenv("VOYAGE_API_KEY_PATH", str(tmp_path / "nothing"))
    assert len(voyage(server).embed(TEXTS).vectors) == 5
    with pytest.raises(ConfigurationError, match="cannot be read"):
        voyage(server, api_key=None)


def test_all_voyage_hosts_share_cache_entries_and_a_regional_host_costs_more():
    addresses = [None, "https://api.voyageai.com/v1/", "https://ai.mongodb.com/v1", "https://EU.ai.mongodb.com/v1"]
    made = [Embedder(MODEL, api_key="k", base_url=address, cache=False) for address in addresses]
    assert len({one.explain("x").key for one in made}) == 1
    assert [one.provider.endpoint for one in made] == [""] * 4
    prices = [one.explain("x").usd_per_million for one in made]
    assert prices == [Decimal("0.06")] * 3 + [Decimal("0.066")]


def test_a_host_that_resembles_voyages_is_another_endpoint():
    for address in ("https://ai.mongodb.com.example/v1", "http://eu.ai.mongodb.com/v1", "https://ai.mongodb.com/v2"):
        made = Embedder(MODEL, api_key="k", base_url=address, cache=False)
        assert made.provider.endpoint == address
        assert made.explain("x").usd_per_million == Decimal("0.06")


def provider(key, base_url=None):
    return Voyage(ProviderSettings("voyage-4", api_key=key, base_url=base_url))


def test_the_prefix_of_a_key_selects_the_voyage_host():
    assert provider(Secret("al-1")).address == "https://ai.mongodb.com/v1"
    assert provider(Secret("pa-1")).address == "https://api.voyageai.com/v1"
    assert provider(Secret("al-1"), "https://us.ai.mongodb.com/v1/").address == "https://us.ai.mongodb.com/v1"


def test_a_changing_key_selects_the_host_of_each_request():
    made = provider(Secret("", source=lambda: "pa-1"))
    assert made.address is None
    assert [made.address_for(key) for key in ("al-1", "pa-1")] == [
        "https://ai.mongodb.com/v1",
        "https://api.voyageai.com/v1",
    ]


def test_a_named_host_and_the_host_of_the_key_share_one_account():
    mongodb, voyage_ai = "https://ai.mongodb.com/v1", "https://API.voyageai.com/v1/"
    assert provider(Secret("pa-1")).account == provider(Secret("pa-1"), voyage_ai).account
    assert provider(Secret("al-1")).account == provider(Secret("al-1"), mongodb).account
    assert provider(Secret("al-1")).account != provider(Secret("al-1"), "https://eu.ai.mongodb.com/v1").account
    assert provider(Secret("pa-1")).account != provider(Secret("pa-2")).account


def test_a_base_url_without_its_path_is_an_error_that_says_so(server):
    with pytest.raises(BadRequestError, match="Should base_url end in /v1"):
        voyage(server, base_url=server.origin).embed(TEXTS)


# Sessions


def test_one_session_serves_all_requests(server):
    made = voyage(server, max_batch_texts=1, max_concurrency=1)
    made.embed(TEXTS)
    assert (len(server.requests), server.connections) == (5, 1)


async def test_many_loops_share_one_session(server):
    made = voyage(server, max_concurrency=1)
    await made.aembed(TEXTS[:1])
    await asyncio.to_thread(lambda: asyncio.run(made.aembed(TEXTS[1:2])))
    assert server.connections == 1


def test_no_cookie_is_kept(server):
    server.headers = {"set-cookie": "who=you; Path=/"}
    by_name = server.base_url.replace("127.0.0.1", "localhost")  # aiohttp ignores cookies of IP addresses
    voyage(server, base_url=by_name, max_batch_texts=1, max_concurrency=1).embed(TEXTS)
    assert len(server.requests) == 5
    assert not any("cookie" in request.headers for request in server.requests)


async def test_a_client_opens_and_closes_one_session(server, monkeypatch):
    import aiohttp

    opened = []

    def watched(**arguments):
        opened.append(session(**arguments))
        return opened[-1]

    session = aiohttp.ClientSession
    monkeypatch.setattr(aiohttp, "ClientSession", watched)
    provider = Voyage(ProviderSettings("voyage-4", api_key=Secret("test-key"), base_url=server.base_url))
    client = provider.connect()
    for text in TEXTS:
        await client.embed(Batch([text], provider.request_body("document"), 60.0))
    assert [one.closed for one in opened] == [False]
    await client.aclose()
    assert [one.closed for one in opened] == [True]


ENDS = {
    "left open": "",
    "closed": "embedder.close()",
    "dropped": "del embedder; import gc; gc.collect()",
    "forked": """
import os
child = os.fork()
if not child:
    embedder.embed(["c"])
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
embedder.embed(["d"])
""",
}
PROGRAM = """
import sys
from embedkit_core import Embedder
embedder = Embedder("voyage:voyage-4", base_url=sys.argv[1], api_key="test-key", cache=False)
assert "voyageai" not in sys.modules and "aiohttp" not in sys.modules
embedder.embed(["a", "b"])
assert "voyageai" in sys.modules
"""


@pytest.mark.parametrize("end", ENDS)
def test_a_program_imports_the_sdk_at_its_first_request_and_leaves_no_session_behind(server, end):
    command = [sys.executable, "-W", "error", "-c", PROGRAM + ENDS[end], server.base_url]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")  # neither a warning nor "Unclosed client session"


# Proxies and other settings that aiohttp reads from the environment


@pytest.mark.parametrize("scheme", ["http://", "http://somebody:hush@", ""])
def test_the_proxy_of_the_environment_is_used(server, monkeypatch, scheme):
    monkeypatch.setenv("HTTP_PROXY", scheme + server.origin.removeprefix("http://"))
    made = Embedder(MODEL, api_key=f"key-{len(scheme)}", base_url=ELSEWHERE, cache=False, max_retries=0)
    with pytest.raises(BadRequestError):
        made.embed(TEXTS)
    assert server.unknown_paths == [f"POST {ELSEWHERE}/embeddings"]


def test_hosts_that_need_no_proxy_are_asked_directly(server, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert len(voyage(server).embed(TEXTS).vectors) == 5


def test_a_proxy_that_cannot_be_used_is_not_gone_past(server, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "socks5://somebody:hush@127.0.0.1:9")
    with pytest.raises(ProviderError, match="HTTP_PROXY is not a proxy address") as caught:
        voyage(server, max_retries=0).embed(TEXTS)
    assert "hush" not in error_texts(caught.value)
    assert not server.requests


async def test_the_users_proxy_has_priority_and_the_users_headers_are_sent(server, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")

    async def embed(base_url, **connection):
        settings = ProviderSettings("voyage-4", Secret("test-key"), base_url, connection=Connection(**connection))
        client = Voyage(settings).connect()
        try:
            return await client.embed(Batch(TEXTS, Voyage(settings).request_body("document"), 60.0))
        finally:
            await client.aclose()

    with pytest.raises(BadRequestError):
        await embed(ELSEWHERE, proxy=server.origin)
    assert server.unknown_paths == [f"POST {ELSEWHERE}/embeddings"]
    monkeypatch.delenv("HTTP_PROXY")
    await embed(server.base_url, headers={"x-team": "search"})
    assert server.requests[0].headers["x-team"] == "search"
    assert server.requests[0].headers["authorization"] == "Bearer test-key"


def test_netrc_is_not_read(server, monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text("default login somebody password hush\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    voyage(server).embed(TEXTS)
    assert server.requests[0].headers["authorization"] == "Bearer test-key"


def test_a_key_that_was_not_pickled_is_an_error_at_connect(server):
    settings = ProviderSettings("voyage-4", api_key=Secret.lost(), base_url=server.base_url)
    with pytest.raises(AuthenticationError, match="not pickled"):
        Voyage(settings).connect()
