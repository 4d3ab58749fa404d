"""Failed connections: one error of ours, with the cause that the operating system or TLS states."""

import os

import pytest
from support.bedrock_server import BedrockServer
from support.cohere_server import CohereServer
from support.google_server import GoogleServer
from support.json_servers import NomicServer
from support.openai_server import OpenAIServer
from support.proxy import Relay, certificate
from support.voyage_server import VoyageServer

from embedkit_core import Embedder, UnavailableError

FAMILIES = {
    "openai:m": OpenAIServer,
    "voyage:voyage-4": VoyageServer,
    "cohere:embed-v4.0": CohereServer,
    "nomic:nomic-embed-text-v1.5": NomicServer,
    "bedrock:cohere.embed-v4:0": BedrockServer,
    "google:gemini-embedding-001": GoogleServer,
}
families = pytest.mark.parametrize(("model", "kind"), FAMILIES.items(), ids=[name.split(":")[0] for name in FAMILIES])


class BrokenTLS(Relay):
    """Answers with bytes that are not TLS, after a handshake that succeeded."""

    async def _pass_on(self, reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        os.write(writer.get_extra_info("socket").fileno(), b"not a record of TLS")
        self._writers.add(writer)


def embed(model, server, origin, **settings):
    address = server.base_url.replace(server.origin, origin)
    Embedder(model, base_url=address, api_key="test-key", cache=False, max_retries=0, **settings).embed(["a"])


@families
def test_an_error_of_tls_while_a_reply_is_read_is_a_failed_connection(model, kind, tmp_path):
    pem, context = certificate(tmp_path)
    with (
        kind() as server,
        BrokenTLS(server.origin, context) as front,
        pytest.raises(UnavailableError, match=r"localhost:\d+ could not be reached \(TLS: WRONG_VERSION_NUMBER\)"),
    ):
        embed(model, server, front.address, ca_bundle=pem)


@families
def test_a_refused_connection_has_the_message_of_the_system(model, kind):
    with kind() as server, pytest.raises(UnavailableError, match=r"127\.0\.0\.1:9 could not be reached \(.*refused\)"):
        embed(model, server, "http://127.0.0.1:9")
