"""What servers that speak OpenAI's API say when they refuse, and which of our errors it is. Pure.

Bodies as they were found in, read 2026-11-25:
- OpenAI: {"error": {"message", "type", "param", "code"}}; github.com/openai/openai-openapi.
- vLLM: the same, or flat with "object": "error"; vllm/pooling_params.py, vllm-project/vllm#19798 and #20409.
- text-embeddings-inference: {"message", "code", "type"}, type "Validation" (413: too many texts, or a text too long),
  "Tokenizer" (422), "Backend" (424: out of memory, most often), "Overloaded" (429), "Empty" (400); a body over its
  limit is plain text, 413; router/src/http/server.rs at bc0fa32, issues #50, #61 and #356.
- infinity: OpenAI's, and FastAPI's {"detail": [{"loc", "msg", "type"}]} (422); infinity_server.py, issue #130.
- Ollama and LM Studio: OpenAI's, or {"error": "..."}; ollama/ollama, openai/openai.go, lmstudio-bug-tracker#756.
- llama.cpp: 500 "input (600 tokens) is too large to process", 400 "exceed_context_size_error".
- GitHub's models: 413 "Request body too large for ... Max size: 64000 tokens"; nlweb-ai/NLWeb#164.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from embedkit_core.common.errors import BadRequestError, BadTextError, ProviderError, TextTooLongError
from embedkit_core.common.vectors import truncation_hint
from embedkit_core.providers.http.refusals import Refusal

QUOTA_CODES = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}
TOO_LONG = re.compile(
    r"maximum context length|max context \d+|too long|(larger|longer) than the max\w* (context|model)"
    r"|exceeds? .{0,40}(context|max\w* (input|sequence)) ?(length|size)|exceed n_ctx"
    r"|must have less than \d+ (tokens|characters)|should have at most \d+ characters|too large to process",
    re.I,
)
TOO_LARGE = re.compile(r"max\w* .{0,20}tokens per request|body too large|length limit exceeded", re.I)
TOO_MANY = re.compile(r"batch size|array (is )?too long|too many inputs|should have at most \d+ items", re.I)
TOO_LONG_A_LIST = re.compile(r"array (is )?too long|should have at most \d+ items", re.I)
COUNTS = re.compile(
    r"context length is (?P<limit1>\d+) tokens[.,] however,? you requested (?P<tokens1>\d+)"
    r"|less than (?P<limit2>\d+) tokens. Given: (?P<tokens2>\d+)"
    r"|\((?P<tokens3>\d+) tokens\) is too large .*batch size: (?P<limit3>\d+)"
    r"|\(length (?P<tokens4>\d+)\) is longer than the maximum model length of (?P<limit4>\d+)"
    r"|\((?P<tokens5>\d+) tokens\) exceeds the available context size \((?P<limit5>\d+)",
    re.I,
)
ABOUT_REQUEST = re.compile(
    r"unrecognized request argument|not support specifying|unknown (field|parameter)|not an embedding model|no model",
    re.I,
)
ABOUT_DIMENSIONS = re.compile(r"matryoshka|\bdimensions?\b", re.I)
ABOUT_REQUESTS = re.compile(r"(requests|calls) ?(per|/|a) ?(second|sec|s\b|minute|min|m\b|hour|day)|\bRP[SMD]\b", re.I)
ABOUT_TOKENS = re.compile(r"tokens ?(per|/|a) ?(minute|min|m\b|day)|\bTP[MD]\b", re.I)
NO_SUCH_MODEL = {"model_not_found", "invalid_model", "DeploymentNotFound", "not_found_error"}


@dataclass(frozen=True, slots=True)
class ErrorDetail:
    """What a refusal's body says, however it is shaped; "" for what it does not."""

    message: str = ""
    kind: str = ""
    param: str = ""
    code: str = ""

    @property
    def is_about_texts(self) -> bool:
        """Tell whether it may be about the texts, as far as the field that it names goes."""
        return self.param in ("", "input", "$.input")


def read_detail(body: object) -> ErrorDetail:
    """Read what a body says, in any of the shapes above."""
    inner = body.get("error", body) if isinstance(body, Mapping) else body
    if isinstance(inner, Mapping) and isinstance(findings := inner.get("detail"), Sequence):
        return ErrorDetail(findings) if isinstance(findings, str) else _findings(findings)
    if not isinstance(inner, Mapping):
        return ErrorDetail(inner if isinstance(inner, str) else "")
    kind = inner.get("type") or inner.get("error_type")
    given = {"message": inner.get("message"), "kind": kind, "param": inner.get("param"), "code": inner.get("code")}
    return ErrorDetail(**{name: str(value or "") for name, value in given.items()})


def _findings(findings: Sequence[object]) -> ErrorDetail:
    """Read FastAPI's findings; what they are about is the field of the request, not one of ours in a union."""
    found = [one for one in findings if isinstance(one, Mapping)]
    places = [str(part) for one in found if isinstance(place := one.get("loc"), Sequence) for part in place]
    param = next((place for place in places if place in ("dimensions", "encoding_format", "model", "input")), "")
    return ErrorDetail("; ".join(str(one.get("msg") or "") for one in found), "validation", param)


def to_provider_error(
    refusal: Refusal, detail: ErrorDetail, variable: str | None, *, asked: int | None, hint: str
) -> ProviderError:
    """Turn a refusal into one of our errors, by status, code and message.

    `variable` is the one that has the key, `asked` the dimensions asked for, `hint` what may be wrong with an address.
    """
    if detail.code in QUOTA_CODES or detail.kind in QUOTA_CODES:
        return refusal.quota()
    if refusal.status == 429:
        limited = refusal.rate_limit()
        limited.counts_requests = bool(
            ABOUT_REQUESTS.search(detail.message) and not ABOUT_TOKENS.search(detail.message)
        )
        return limited
    if "too large to process" not in detail.message:  # llama.cpp says 500 to a long text
        error = refusal.common_error(variable)
        if error is not None:
            return error
    if asked is not None and (detail.param == "dimensions" or ABOUT_DIMENSIONS.search(detail.message)):
        stored = "for a model in the catalog, embed the texts once without dimensions=, into the same cache"
        return refusal.bad_request(f"; {truncation_hint(asked)}; {stored}")
    return _about_input(refusal, detail, hint)


def _about_input(refusal: Refusal, detail: ErrorDetail, hint: str) -> ProviderError:
    message, status = detail.message, refusal.status
    if detail.is_about_texts and TOO_LONG.search(message) and not TOO_LONG_A_LIST.search(message):
        counts = COUNTS.search(message)
        found = {name.rstrip("12345"): int(n) for name, n in counts.groupdict().items() if n} if counts else {}
        return TextTooLongError(tokens=found.get("tokens"), limit=found.get("limit"), **refusal.where)
    about_request = ABOUT_REQUEST.search(message) or detail.code in NO_SUCH_MODEL or detail.kind in NO_SUCH_MODEL
    failed, too_many = status == 424 and not about_request, TOO_MANY.search(message)
    if failed or too_many or status == 413 or detail.code == "max_tokens_per_request" or TOO_LARGE.search(message):
        why = "the server could not process the request, which may be too large for it" if failed else None
        return refusal.too_large(why, counts_texts=too_many is not None)
    if detail.is_about_texts and status in (400, 422) and not about_request:
        return BadTextError(f"the server refuses a text (HTTP {status}){refusal.server_message}", **refusal.where)
    about = refusal.excerpt(detail.param).replace(": ", " for its ", 1)
    return BadRequestError(
        f"the server refuses the request{about} (HTTP {status}){refusal.server_message}{hint}", **refusal.where
    )
