"""A server that answers a request twice: the second answer is never taken for that of the next request."""

import asyncio
import threading
from dataclasses import dataclass

import httpx
import httpx2
import pytest
from support.bedrock_server import BedrockServer
from support.cohere_server import CohereServer
from support.embedders import numbered
from support.google_server import GoogleServer
from support.http import Response
from support.json_servers import NomicServer
from support.openai_server import OpenAIServer
from support.proxy import Relay
from support.voyage_server import VoyageServer

from embedkit_core import Embedder
from embedkit_core.providers.http.surplus import find_connection

FAMILIES = {
    "openai:text-embedding-3-small": OpenAIServer,
    "voyage:voyage-4": VoyageServer,
    "cohere:embed-v4.0": CohereServer,
    "nomic:nomic-embed-text-v1.5": NomicServer,
    "bedrock:cohere.embed-v4:0": BedrockServer,
    "google:gemini-embedding-001": GoogleServer,
}


@dataclass(frozen=True, slots=True)
class Body(Response):
    """The rest of a response whose head was written before."""

    def head(self):
        return b""


def chunked(response):
    """Return a response with a body of unknown length, in one chunk."""
    lines = response.head().decode("latin-1").split("\r\n")[:-2]
    lines = [line for line in lines if not line.startswith("content-length")]
    head = "\r\n".join([*lines, "transfer-encoding: chunked", "", ""]).encode("latin-1")
    return head + f"{len(response.body):x}\r\n".encode() + response.body + b"\r\n0\r\n\r\n"


def twice(kind, how):
    """Return a server class that sends each successful response twice."""

    class Server(kind):
        async def answer(self, request, connection):
            response = await super().answer(request, connection)
            if response is None or response.status != 200:
                return response
            whole = chunked(response) if how == "chunked" else response.head() + response.body
            first, rest = {
                "together": (whole + whole, b""),
                "chunked": (whole + whole, b""),
                "head together": (whole + response.head(), response.body),
                "partly": (whole + whole[:20], b""),
                "later": (whole, b""),
            }[how]
            connection.writer.write(first)
            if how == "later":
                asyncio.get_running_loop().call_later(0.001, self.write_again, connection, whole)
            return Body(200, rest)

        def write_again(self, connection, whole):
            connection.writer.write(whole)
            self.has_written_again.set()

    return Server


def check_rows(embedder, reference):
    texts = numbered(12)
    assert embedder.embed(texts).vectors.tolist() == reference.embed(texts).vectors.tolist()


HOW = ["together", "chunked", "head together", "partly"]
families = pytest.mark.parametrize(("model", "kind"), FAMILIES.items(), ids=[name.split(":")[0] for name in FAMILIES])


def embedder(model, server, **settings):
    settings = {"base_url": server.base_url, "api_key": "test-key", "cache": False, "max_concurrency": 1, **settings}
    return Embedder(model, max_batch_texts=1, **settings)


@families
@pytest.mark.parametrize("how", HOW)
def test_each_text_gets_its_own_vector_if_a_server_answers_twice(model, kind, how):
    with kind() as right, twice(kind, how)() as server:
        check_rows(embedder(model, server), embedder(model, right))


@families
def test_an_answer_that_arrives_between_two_requests_is_not_taken_for_the_second(model, kind):
    with kind() as right, twice(kind, "later")() as server:
        one, reference = embedder(model, server), embedder(model, right)
        for text in numbered(4):
            server.has_written_again = threading.Event()
            assert one.embed_query(text).tolist() == reference.embed_query(text).tolist()
            assert server.has_written_again.wait(5)


@families
@pytest.mark.parametrize("how", HOW)
def test_each_text_gets_its_own_vector_over_tls(model, kind, how, tls):
    pem, context = tls
    with kind() as right, twice(kind, how)() as server, Relay(server.origin, context) as front:
        address = server.base_url.replace(server.origin, front.address)
        check_rows(embedder(model, server, base_url=address, ca_bundle=pem), embedder(model, right))


@families
def test_a_connection_over_tls_is_reused(model, kind, tls):
    pem, context = tls
    with kind() as server, Relay(server.origin, context) as front:
        address = server.base_url.replace(server.origin, front.address)
        embedder(model, server, base_url=address, ca_bundle=pem).embed(numbered(6))
        assert (len(server.requests), server.connections) == (6, 1)


@pytest.mark.parametrize("package", [httpx, httpx2], ids=lambda package: package.__name__)
async def test_the_connection_of_a_response_is_found_in_the_installed_version(package, server):
    async with package.AsyncClient() as client, client.stream("GET", server.base_url) as response:
        connection = find_connection(response.stream)
        assert connection._h11_state.trailing_data[1] is False
        assert hasattr(connection, "_keepalive_expiry")
        assert hasattr(connection._network_stream._stream._protocol, "read_queue")
