"""API keys from the environment, for providers that read several variables."""

import pickle
from functools import partial

import pytest
from support.google_server import GoogleServer
from support.openai_server import OpenAIServer

from langchain_embedkit import EmbedKitEmbeddings

KEY = "key-of-the-environment"
PROVIDERS = {
    "google:gemini-embedding-001": (GoogleServer, ("GOOGLE_API_KEY", "GEMINI_API_KEY")),
    "jina:jina-embeddings-v3": (
        partial(OpenAIServer, dimensions=1024),
        ("JINA_API_KEY", "JINAAI_API_KEY", "JINA_AI_API_KEY"),
    ),
}


@pytest.mark.parametrize("model", PROVIDERS)
def test_the_first_variable_that_is_set_has_the_key(framework_class, model, monkeypatch):
    make_server, variables = PROVIDERS[model]
    for name in variables:
        monkeypatch.delenv(name, raising=False)
    with make_server(api_key=KEY) as server:
        for name in reversed(variables):
            monkeypatch.setenv(name, KEY)
            made = framework_class(model=model, base_url=server.base_url, cache=False)
            pickled = pickle.dumps(made)
            assert KEY.encode() not in pickled
            for one in (made, pickle.loads(pickled), made.model_copy(update={"max_retries": 0})):
                one.embedder.embed_query("a")
            if framework_class is EmbedKitEmbeddings and name == variables[0]:
                assert made.api_key.get_secret_value() == KEY
            monkeypatch.setenv(name, "another-key")  # of which the next one is before
        assert {request.status for request in server.requests} == {200}
