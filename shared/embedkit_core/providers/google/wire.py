"""Requests and replies of the Gemini API's and Vertex AI's embedding methods. No I/O.

Sources, read 2026-11-30: ai.google.dev/gemini-api/docs/embeddings (batchEmbedContents),
docs.cloud.google.com/vertex-ai/generative-ai/docs/embeddings/get-text-embeddings and
.../docs/reference/rest/Shared.Types/TextEmbeddingPredictionParams (predict),
docs.cloud.google.com/gemini-enterprise-agent-platform/reference/rest/v1beta1/projects.locations.publishers.models/embedContent,
and the converters of google-genai 2.0 to 3.6.1 (google/genai/models.py).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from embedkit_core.providers.http.decoding import read_tokens

# Models that take a task type. Later Gemini models are multimodal and take their task as a prefix of the text; the
# SDK's `t_is_multimodal_embedding_model` distinguishes them by the same names.
WITH_TASK_TYPE = ("gemini-embedding-001", "gemini-embedding-exp")
# In the order of `predict`'s names, fields of one text; the other fields are the request's.
TEXT_FIELDS = {"taskType": "task_type", "title": "title", "mimeType": "mimeType"}


class Rows(NamedTuple):
    """What a reply says: the vectors as lists, the billed tokens, and the positions of truncated texts."""

    vectors: list[Any]
    tokens: int | None
    truncated: list[int]


class Wire(ABC):
    """One embedding method. `fields` are those of a provider's body, without model and prompt."""

    method: ClassVar[str]

    @staticmethod
    @abstractmethod
    def body(model: str, fields: Mapping[str, Any], texts: Sequence[str]) -> dict[str, Any]:
        """Return the body of a request."""

    @staticmethod
    @abstractmethod
    def read(reply: Mapping[str, Any]) -> Rows:
        """Return the content of a reply.

        Raises:
            KeyError, TypeError or AttributeError: The reply has another shape.
        """


class BatchEmbedContents(Wire):
    """The Gemini API: each text is the content of its own request, so that each gets its own vector."""

    method = "batchEmbedContents"

    @staticmethod
    def body(model: str, fields: Mapping[str, Any], texts: Sequence[str]) -> dict[str, Any]:
        """Return the body of a request."""
        return {"requests": [{"model": f"models/{model}", "content": _content(text), **fields} for text in texts]}

    @staticmethod
    def read(reply: Mapping[str, Any]) -> Rows:
        """Return the content of a reply. Only gemini-embedding-2 and later models report tokens."""
        vectors = [embedding["values"] for embedding in reply["embeddings"]]
        return Rows(vectors, read_tokens(reply.get("usageMetadata"), "promptTokenCount"), [])


class EmbedContent(Wire):
    """Vertex AI, Gemini models from gemini-embedding-2 and open models: one text per request.

    Since version 3.4, the SDK sends several texts with `batchEmbedContents`. Its number of texts is not documented, and
    its reply does not say which texts were truncated.
    """

    method = "embedContent"

    @staticmethod
    def body(model: str, fields: Mapping[str, Any], texts: Sequence[str]) -> dict[str, Any]:  # noqa: ARG004
        """Return the body of a request."""
        [text] = texts
        return {"content": _content(text), "embedContentConfig": dict(fields)}

    @staticmethod
    def read(reply: Mapping[str, Any]) -> Rows:
        """Return the content of a reply."""
        tokens = read_tokens(reply.get("usageMetadata"), "promptTokenCount")
        return Rows([reply["embedding"]["values"]], tokens, [0] if reply.get("truncated") is True else [])


class Predict(Wire):
    """Vertex AI, text-embedding models and gemini-embedding-001."""

    method = "predict"

    @staticmethod
    def body(model: str, fields: Mapping[str, Any], texts: Sequence[str]) -> dict[str, Any]:  # noqa: ARG004
        """Return the body of a request."""
        of_text = {name: fields[key] for key, name in TEXT_FIELDS.items() if key in fields}
        parameters = {key: value for key, value in fields.items() if key not in TEXT_FIELDS}
        return {"instances": [{"content": text, **of_text} for text in texts], "parameters": parameters}

    @staticmethod
    def read(reply: Mapping[str, Any]) -> Rows:
        """Return the content of a reply."""
        embeddings = [prediction["embeddings"] for prediction in reply["predictions"]]
        statistics = [embedding.get("statistics") or {} for embedding in embeddings]
        counts = [_whole(one.get("token_count")) for one in statistics]
        tokens = None if None in counts else sum(count for count in counts if count is not None)
        truncated = [place for place, one in enumerate(statistics) if one.get("truncated") is True]
        return Rows([embedding["values"] for embedding in embeddings], tokens, truncated)


def takes_task_type(model: str) -> bool:
    """Return True if the role of a text is a field of the request, False if it is a prefix of the text."""
    name = model.rpartition("/")[2]
    return "gemini" not in name or name.startswith(WITH_TASK_TYPE)


def vertex_wire(model: str) -> type[Wire]:
    """Return the method of Vertex AI that serves a model, as the SDK's `t_is_vertex_embed_content_model` chooses it.

    gemini-embedding-001 uses `predict`, as documented and up to version 3.3 of the SDK.
    """
    return EmbedContent if "maas" in model or not takes_task_type(model) else Predict


def _content(text: str) -> dict[str, Any]:
    return {"parts": [{"text": text}]}


def _whole(count: object) -> int | None:
    """Return a count, which the service declares as a float."""
    if isinstance(count, bool) or not isinstance(count, int | float) or count != count or count < 0:
        return None
    return int(count)
