"""Requests and replies of the model families on Amazon Bedrock, and what their names tell. No I/O.

Sources, read 2026-11-30: docs.aws.amazon.com/bedrock/latest/userguide/model-parameters-titan-embed-text.html,
model-parameters-embed-v3.html, model-parameters-embed-v4.html; docs.aws.amazon.com/nova/latest/userguide/
embeddings-schema.html. The fields of a request body are flat here, as in `provider_options`; `encode` nests them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from embedkit_core.common.types import InputType
from embedkit_core.common.vectors import DType

Fields = Mapping[str, Any]

# A geographic or global inference profile names the model after its prefix; so do the ARNs of both.
GEO_PREFIX = re.compile(r"[a-z][a-z-]*\.(?=(?:amazon|cohere)\.)")
NAMING_ARN = re.compile(r"arn:[^:]*:bedrock:[^:]*:[^:]*:(?:foundation-model|inference-profile)/(?P<name>.+)")
ARN = re.compile(r"arn:[^:]*:bedrock:(?P<region>[^:]*):")


@dataclass(frozen=True, slots=True)
class Wire:
    """Request and reply of a family of models.

    Attributes:
        texts: Maximum texts of a request.
        encode: Returns the JSON of a request from its fields and texts.
        rows: Returns the rows of a reply, of the requested embedding type.
        fields: Fields that each request has.
        truncating: Fields that make the model truncate long texts at their end, None if it cannot.
        role_field: Field for the input type, None if the family has none.
        roles: Its values.
        type_field: Field for the types of the vectors, None if they are always floats.
        types: Values of that field by dtype.
        dimensions_field: Field for the dimensions, None if the family has none.
        count_field: Field of a reply with the billed tokens, None if only a header has them.
        takes_options: True if there are other fields, for `provider_options`.
    """

    texts: int
    encode: Callable[[Fields, Sequence[str]], dict[str, Any]]
    rows: Callable[[Any, str], Any]
    fields: Fields = field(default_factory=dict)
    truncating: Fields | None = None
    role_field: str | None = None
    roles: Mapping[InputType, str] = field(default_factory=dict)
    type_field: str | None = None
    types: Mapping[DType, str] = field(default_factory=lambda: {"float32": "float"})
    dimensions_field: str | None = None
    count_field: str | None = None
    takes_options: bool = True


def _encode_titan(fields: Fields, texts: Sequence[str]) -> dict[str, Any]:
    [text] = texts
    return {"inputText": text, **fields}


def _encode_nova(fields: Fields, texts: Sequence[str]) -> dict[str, Any]:
    [text] = texts
    outer = {name: value for name, value in fields.items() if name != "truncationMode"}
    parameters = {**outer, "text": {"truncationMode": fields["truncationMode"], "value": text}}
    return {"taskType": "SINGLE_EMBEDDING", "singleEmbeddingParams": parameters}


def _encode_cohere(fields: Fields, texts: Sequence[str]) -> dict[str, Any]:
    return {**fields, "texts": [*texts]}


def _titan_rows(reply: Any, _kind: str) -> Any:
    return [reply["embedding"]]


def _nova_rows(reply: Any, _kind: str) -> Any:
    return [item["embedding"] for item in reply["embeddings"]]


def _cohere_rows(reply: Any, kind: str) -> Any:
    rows = reply["embeddings"]
    return rows if isinstance(rows, list) and kind == "float" else reply["embeddings"][kind]


# Titan has no field for truncation. Its embeddingTypes "binary" is not requested: AWS does not document how the bits
# are packed, so "binary" and "ubinary" are computed here.
TITAN_1 = Wire(1, _encode_titan, _titan_rows, count_field="inputTextTokenCount", takes_options=False)
TITAN_2 = Wire(
    *(1, _encode_titan, _titan_rows, {"normalize": True}),
    dimensions_field="dimensions",
    count_field="inputTextTokenCount",
    takes_options=False,
)
NOVA = Wire(
    *(1, _encode_nova, _nova_rows, {"truncationMode": "NONE"}, {"truncationMode": "END"}),
    role_field="embeddingPurpose",  # of queries, the modality of what is searched
    roles={"document": "GENERIC_INDEX", "query": "TEXT_RETRIEVAL"},
    dimensions_field="embeddingDimension",
)
_COHERE: dict[str, Any] = {
    "role_field": "input_type",
    "roles": {"document": "search_document", "query": "search_query"},
    "type_field": "embedding_types",
    "types": {"float32": "float", "int8": "int8", "uint8": "uint8", "binary": "binary", "ubinary": "ubinary"},
}
# Version 3 refuses texts of more than 2,048 characters also with truncate: "END", which cuts at 512 tokens only
# (github.com/deepset-ai/haystack-core-integrations/issues/912). So the library shortens its texts by either refusal.
COHERE_3 = Wire(96, _encode_cohere, _cohere_rows, {"truncate": "NONE"}, **_COHERE)
COHERE_4 = Wire(
    *(96, _encode_cohere, _cohere_rows, {"truncate": "NONE"}, {"truncate": "RIGHT"}),
    dimensions_field="output_dimension",
    **_COHERE,
)

WIRES: Mapping[str, Wire] = {  # by the beginning of a model's name, the first that fits
    "amazon.titan-embed-text-v1": TITAN_1,
    "amazon.titan-embed-g1-text-": TITAN_1,
    "amazon.titan-embed-text-": TITAN_2,
    "amazon.nova-": NOVA,
    "cohere.embed-english-v3": COHERE_3,
    "cohere.embed-multilingual-v3": COHERE_3,
    "cohere.embed-": COHERE_4,
}


def find_wire(name: str | None) -> Wire | None:
    """Return the wire of a model by its bare name, None if it is unknown."""
    return next((wire for beginning, wire in WIRES.items() if (name or "").startswith(beginning)), None)


def bare_name(name: str) -> str:
    """Return the model's own name: without a geographic prefix, or from the ARN of a model or a system-defined profile.

    The ARN of an application inference profile or of provisioned throughput names no model; it is returned unchanged.
    """
    found = NAMING_ARN.fullmatch(name)
    return GEO_PREFIX.sub("", found["name"] if found else name, count=1)


def arn_region(name: str) -> str | None:
    """Return the region in an ARN, None if there is none."""
    found = ARN.match(name)
    return found["region"] or None if found else None
