"""Limits on the size of response bodies, with compressed bodies from local servers."""

import gzip
import json
import subprocess
import sys

import pytest
from support.bedrock_server import BedrockServer
from support.cohere_server import CohereServer
from support.embedders import numbered
from support.google_server import GoogleServer
from support.json_servers import NomicServer
from support.openai_replies import Fault
from support.openai_server import OpenAIServer
from support.voyage_server import VoyageServer

from embedkit_core import BadReplyError, BadRequestError, Embedder, UnavailableError
from embedkit_core.common.types import Batch
from embedkit_core.providers.http.bodies import BodyLimits

FAMILIES = {
    "openai:new-model": OpenAIServer,
    "voyage:new-model": VoyageServer,
    "cohere:new-model": CohereServer,
    "nomic:new-model": NomicServer,
    "bedrock:cohere.embed-new": BedrockServer,
    "google:new-model": GoogleServer,
}
families = pytest.mark.parametrize(("model", "kind"), FAMILIES.items(), ids=[name.split(":")[0] for name in FAMILIES])
MIB = 1 << 20
BOMB_MIB = 512
GZIP = {"content-encoding": "gzip"}

MEASURE = """
import json, resource, sys
from embedkit_core import Embedder, EmbedKitError

def peak():  # MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

model, url = json.loads(sys.argv[1])
embedder = Embedder(model, base_url=url, api_key="test-key", cache=False, max_retries=0)
embedder.embed(["warm"])
before, errors = peak(), []
for text in ("a reply", "a refusal"):
    try:
        embedder.embed([text])
    except EmbedKitError as error:
        errors.append([type(error).__name__, str(error), error.usage.possibly_billed_tokens])
print(json.dumps([peak() - before, errors]))
"""


def made(model, server, **settings):
    return Embedder(model, base_url=server.base_url, api_key="test-key", cache=False, max_retries=0, **settings)


@pytest.fixture(scope="module")
def bomb():
    return gzip.compress(bytes(BOMB_MIB * MIB), compresslevel=6)


@families
def test_a_body_that_grows_on_decompression_takes_no_more_memory_than_a_reply(model, kind, bomb):
    with kind() as server:
        server.faults = [
            None,
            Fault(raw=bomb, headers=GZIP),
            Fault(raw=bomb, headers=GZIP, status=503),
        ]
        run = subprocess.run(
            [sys.executable, "-c", MEASURE, json.dumps([model, server.base_url])],
            capture_output=True, text=True, check=True, timeout=100,
        )  # fmt: skip
    grown, [reply, refusal] = json.loads(run.stdout)
    assert grown < BOMB_MIB // 8, f"{grown} MiB"
    assert (reply[0], refusal[0]) == ("BadReplyError", "UnavailableError")
    assert "larger than" in reply[1]
    assert "HTTP 503" in refusal[1]
    assert reply[2] > 0  # it may have been billed


@families
def test_an_oversized_reply_is_final_and_ends_the_call(model, kind):
    with kind() as server:
        server.fault_for(lambda texts, number: Fault(raw=b" " * (64 * MIB)))
        with pytest.raises(BadReplyError, match="larger than"):
            made(model, server, max_batch_texts=1).embed(numbered(5))
        assert len(server.requests) == 1


@families
def test_a_compressed_reply_and_a_compressed_refusal_are_read(model, kind):
    with kind() as server:
        rows = {NomicServer: b"[[0.5, 0.5]]", GoogleServer: b'[{"values": [0.5, 0.5]}]'}.get(
            kind, b'{"base64": ["AAAAPwAAAD8="], "float": [[0.5, 0.5]]}'
        )
        plain = b'{"data": [{"embedding": [0.5, 0.5]}], "embeddings": ' + rows + b"}"
        server.faults = [Fault(raw=gzip.compress(plain), headers=GZIP)]
        assert made(model, server).embed(["a"]).vectors.shape == (1, 2)
        assert server.requests[0].headers["accept-encoding"] == "gzip"
        body = gzip.compress(json.dumps(server.error("This model is not served here.")).encode())
        server.faults = [Fault(raw=body, headers=GZIP, status=404)]
        with pytest.raises(BadRequestError, match="This model is not served here"):
            made(model, server).embed(["a"])


@families
def test_a_compression_that_was_not_requested_is_named(model, kind):
    with kind() as server:
        server.faults = [Fault(raw=b"...", headers={"content-encoding": "zstd"})]
        with pytest.raises(BadReplyError, match="'zstd'"):
            made(model, server).embed(["a"])
        server.faults = [Fault(raw=b"...", headers={"content-encoding": "zstd"}, status=500)]
        with pytest.raises(UnavailableError, match="HTTP 500"):
            made(model, server).embed(["a"])


@families
def test_a_users_accept_encoding_replaces_the_default(model, kind):
    with kind() as server:
        made(model, server, headers={"Accept-Encoding": "identity"}).embed(["a"])
        assert server.requests[0].headers["accept-encoding"] == "identity"


def test_the_limits_leave_room_for_every_encoding_of_a_reply():
    batch = Batch(["ü" * 1000] * 256, {"prompt": "query: "}, widths=(1536,))
    reply, refusal = BodyLimits.of(batch)
    indented = json.dumps([[-1.2345678901234567e-05] * 1536] * 256, indent=8)
    echoed = json.dumps(list(batch.texts_with_prompt()))
    assert len(indented) + len(echoed) < reply
    assert 4 * len(echoed) < refusal < reply
