"""Nomic's API for its text embeddings. Its SDK is not used: it brings pandas and PIL, and its requests are synchronous.

Wire format: POST {base_url}/v1/embedding/text; sources, read 2026-11-30: docs.nomic.ai/reference/endpoints/
nomic-embed-text, docs.nomic.ai/api/getting-started/rate-limits, and Nomic's clients, github.com/nomic-ai/nomic
(nomic/embed.py) and github.com/nomic-ai/gpt4all (LLamaModel::embedInternal, which is compatible with the API). Tested
against a local server that follows them, not against the live service.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from embedkit_core.common.errors import ProviderError, TextTooLongError
from embedkit_core.common.types import InputType, Limits, Reply
from embedkit_core.providers.base import ProviderSettings
from embedkit_core.providers.http.address import canonical_url
from embedkit_core.providers.http.decoding import NUMPY_FLOAT32, ReplyReader, not_a_list, read_model, read_tokens
from embedkit_core.providers.http.json_provider import JSONProvider
from embedkit_core.providers.http.refusals import Refusal

HOST = "https://api-atlas.nomic.ai"
PATH = re.compile(r"/v1(/embedding(/text)?)?$")
KEY_VARIABLE = "NOMIC_API_KEY"
INPUT_TYPES: Mapping[InputType, str] = {"document": "search_document", "query": "search_query"}
TASK_PREFIX_TOKENS = 8  # "search_document: " and the like, which Nomic adds

# HTTP 400 {"detail": "You have exceeded your 10000000 free tokens of Nomic Embedding API usage."}, as several users
# have logged it in 2026.
FREE_TOKENS = re.compile(r"exceeded .{0,40}free tokens", re.I)
TOO_LONG = re.compile(r"text at index (\d+) is (\d+) tokens,? which exceeds (?:the )?limit of (\d+)", re.I)
TOO_MANY_TEXTS = re.compile(r"body\.texts:.{0,80}at most \d+ items", re.I)
ABOUT_TEXTS = re.compile(r"\bbody\.texts\b|\btexts?\b", re.I)
ABOUT_REQUEST = re.compile(r"\bbody\.(?!texts)|\bmodel\b|task_type|dimensionality|long_text_mode", re.I)


class Nomic(JSONProvider):
    """A model of Nomic, or of a server at `base_url` with the same API."""

    name: ClassVar[str] = "nomic"
    extra: ClassVar[str | None] = "nomic"
    key_variable: ClassVar[str | None] = KEY_VARIABLE
    default_limits: ClassVar[Limits] = Limits(texts=50, tokens=409_600, text_tokens=8192)  # those of the catalogue
    returns_normalized: ClassVar[bool] = False  # not documented
    reserved_fields: ClassVar[frozenset[str]] = JSONProvider.reserved_fields | {
        *("texts", "dimensionality", "long_text_mode", "max_tokens_per_text")
    }
    takes_roles: ClassVar[bool] = True
    dimensions_field: ClassVar[str] = "dimensionality"
    may_truncate_silently = True  # `long_text_mode` has no value that refuses

    def __init__(self, settings: ProviderSettings) -> None:
        self.address: str = _address(settings.base_url)
        canonical, secret = canonical_url(self.address), settings.find_key(KEY_VARIABLE)
        super().__init__(settings, canonical, secret, needs_key=False)
        self._roles = settings.role_values(INPUT_TYPES)

    @classmethod
    def is_own_host(cls, base_url: str | None) -> bool:
        """Return True if `base_url` is Nomic's own."""
        return canonical_url(_address(base_url)) == HOST

    def request_body(self, input_type: InputType) -> dict[str, Any]:
        """Return the request body without texts; the client adds `prompt` before each text and does not send it."""
        return self.request_fields(input_type, task_type=self._roles[input_type], long_text_mode="truncate")

    def overhead_tokens(self, input_type: InputType) -> int:
        """Include the prefix of the task."""
        return super().overhead_tokens(input_type) + TASK_PREFIX_TOKENS

    def request(self, fields: Mapping[str, Any], texts: list[str]) -> tuple[str, dict[str, Any]]:
        """Return the address and the body of a request."""
        return f"{self.address}/v1/embedding/text", {**fields, "texts": texts}

    def read_reply(self, reader: ReplyReader, reply: Any, n_texts: int) -> Reply:
        """Read `{"embeddings": [[...]], "usage": {...}, "model": ...}`."""
        rows = reply.get("embeddings") if isinstance(reply, dict) else None
        if not isinstance(rows, list):
            raise not_a_list()
        tokens = read_tokens(reply.get("usage"), "total_tokens", "prompt_tokens")
        return replace(reader.read_rows(rows, n_texts, NUMPY_FLOAT32, tokens), model=read_model(reply))

    def read_message(self, body: Any) -> str:
        """Return the message of {"detail": ...}, which is a string, or findings with the location in `loc`."""
        detail = body.get("detail") if isinstance(body, dict) else None
        findings = detail if isinstance(detail, list) else [detail or ""]
        return "; ".join(map(_finding, findings))

    def to_error(self, refusal: Refusal, body: Any) -> ProviderError:  # noqa: ARG002 - the message says it all
        """Return the error for an error response, by status and message."""
        status, message = refusal.status, refusal.message
        if FREE_TOKENS.search(message):
            return refusal.quota()
        if status == 429:  # the limit is on requests: 1,200 in 5 minutes per IP address
            limited = refusal.rate_limit()
            limited.counts_requests = True
            return limited
        if (error := refusal.common_error(KEY_VARIABLE)) is not None:
            return error
        if match := TOO_LONG.search(message):
            index, tokens, limit = map(int, match.groups())
            positions = {index: tokens}
            return TextTooLongError(tokens=tokens, limit=limit, positions=positions, **refusal.error_fields)
        too_many_texts = TOO_MANY_TEXTS.search(message) is not None
        if status == 413 or too_many_texts:
            return refusal.too_large(counts_texts=too_many_texts)
        about_texts = not message or (ABOUT_TEXTS.search(message) and not ABOUT_REQUEST.search(message))
        return refusal.bad_text() if status in (400, 422) and about_texts else refusal.bad_request()


def _address(base_url: str | None) -> str:
    address = HOST if base_url is None else base_url
    return PATH.sub("", address.strip().rstrip("/")) if isinstance(address, str) else address


def _finding(finding: object) -> str:
    if not isinstance(finding, dict):
        return str(finding)
    location, message = finding.get("loc"), str(finding.get("msg") or "")
    return f"{'.'.join(map(str, location))}: {message}" if isinstance(location, list) else message
