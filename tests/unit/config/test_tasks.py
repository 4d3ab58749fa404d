"""Tasks replace the input types query and document, in the role field or as prompts."""

import pytest
from support.cohere_server import CohereServer

from embedkit_core import ConfigurationError, Embedder, models

COHERE = "cohere:embed-v4.0"
E5 = "intfloat/e5-base-v2"


def embedder(model=COHERE, **settings):
    return Embedder(model, **{"api_key": "k", "base_url": "http://localhost:1", "cache": False, **settings})


def bodies(one):
    return {input_type: one.provider.request_body(input_type) for input_type in ("query", "document")}


def test_a_symmetric_task_is_sent_for_queries_and_documents_and_shares_their_vectors():
    with CohereServer(api_key="k") as server:
        one = embedder(base_url=server.base_url, task="clustering")
        one.embed(["a text"])
        one.embed_query("a text")
    assert [request.body["input_type"] for request in server.requests] == ["clustering", "clustering"]
    assert one.explain("x").key == one.explain("x", input_type="query").key
    assert one.fingerprint != embedder(base_url=server.base_url).fingerprint


def test_the_task_of_a_model_with_prompts_replaces_its_prompts():
    both = bodies(embedder(f"vllm:{E5}", task="similarity"))
    assert [body["prompt"] for body in both.values()] == ["query: ", "query: "]
    assert bodies(embedder(f"vllm:{E5}"))["document"]["prompt"] == "passage: "


def test_the_task_code_keeps_two_values():
    info = {"tasks": {"code": {"query": "code.query", "document": "code.passage"}}}
    both = bodies(embedder(model_info=info, task="code"))
    assert [both[name]["input_type"] for name in both] == ["code.query", "code.passage"]


def test_vectors_of_different_tasks_are_in_different_spaces():
    spaces = {embedder(task=task).space for task in (None, "clustering", "classification")}
    assert len(spaces) == 3
    assert embedder().space == "cohere:embed-v4.0@http://localhost:1/1536/float32"


def test_no_task_changes_no_key():
    assert embedder(task=None).explain("x").key == embedder().explain("x").key


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "summarize"}, "task: must be one of"),
        ({"task": "CLUSTERING"}, r"did you mean 'clustering'\? Omit it"),
        ({"task": "retrieval"}, r"\(got 'retrieval'\)\. Omit it for retrieval\."),
        ({"task": "code", "model": "jina:jina-embeddings-v3"}, "models that do: 'jina:jina-embeddings-v4', 'jina:jina"),
        ({"task": "code"}, "does not offer 'code'; it offers 'classification', 'clustering'"),
        ({"task": "clustering", "query_prompt": "q: "}, "contradicts query_prompt"),
        ({"task": "clustering", "model": f"vllm:{E5}", "document_prompt": ""}, "contradicts document_prompt"),
        ({"task": "code", "model": "openai:text-embedding-3-small"}, "no tasks of it are known"),
        (
            {"task": "code", "model": "openai:m", "model_info": {"tasks": {"code": "code"}}},
            "no tasks of it are known",
        ),
        ({"model_info": {"tasks": {"code": {"query": "q"}}}}, "tasks must be a mapping from tasks"),
        ({"model_info": {"tasks": {"coding": "code"}}}, "tasks must be a mapping from tasks"),
    ],
)
def test_a_task_that_cannot_be_sent_is_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        embedder(**settings)


def test_every_task_of_the_catalogue_has_a_value_per_input_type():
    for row in models():
        for values in row.tasks.values():
            assert set(values) == {"query", "document"}, row.name
