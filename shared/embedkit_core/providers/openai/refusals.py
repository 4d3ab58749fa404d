"""Map error responses of servers with OpenAI's API to errors. No I/O.

Formats and their sources, read 2026-11-25:
- OpenAI: {"error": {"message", "type", "param", "code"}}; github.com/openai/openai-openapi.
- vLLM: the same, or flat with "object": "error"; vllm/pooling_params.py, vllm-project/vllm#19798 and #20409.
- text-embeddings-inference: {"message", "code", "type"}, type "Validation" (413: too many texts, or a text too long),
  "Tokenizer" (422), "Backend" (424: out of memory, most often), "Overloaded" (429), "Empty" (400); for a body
  over the limit plain text, 413; router/src/http/server.rs at bc0fa32, issues #50, #61 and #356.
- infinity: OpenAI's, and FastAPI's {"detail": [{"loc", "msg", "type"}]} (422); infinity_server.py, issue #130.
- Ollama and LM Studio: OpenAI's, or {"error": "..."}; ollama/ollama, openai/openai.go, lmstudio-bug-tracker#756.
- llama.cpp: 500 "input (600 tokens) is too large to process", 400 "exceed_context_size_error".
- LiteLLM: OpenAI's, with the string "None" for a missing field; 400 "Invalid model name passed in model=...", and
  "No connected db." for an unknown key; BerriAI/litellm#4880, #20837, read 2026-11-29.
- OpenRouter: OpenAI's with an HTTP status as "code", also with HTTP 200 if the model failed;
  openrouter.ai/docs/api/reference/errors-and-debugging, read 2026-11-29.
- MiniMax: {"base_resp": {"status_code", "status_msg"}} with HTTP 200; platform.minimax.io/docs/api-reference/errorcode,
  read 2026-11-29.
- Jina: {"detail": "[AUTHZ_INSUFFICIENT_BALANCE] ..."}; api.jina.ai/openapi.json, read 2026-11-30.
- Mistral: OpenAI's fields without "error"; mistralai/platform-docs-public, error-glossary, read 2026-11-30.
- NVIDIA: {"error": "..."}; elastic/elasticsearch, NvidiaEmbeddingsResponseHandler, read 2026-11-30.
- Zhipu AI: OpenAI's with a number as "code", 429 also without credit; docs.bigmodel.cn/cn/api/api-code, read
  2026-11-30.
- Alibaba Cloud: OpenAI's, with 429 and "insufficient_quota" for a limit on tokens per minute;
  help.aliyun.com/en/model-studio/error-code-start and rate-limit; 400 "Range of input length should be [1, 2048]";
  agentscope-ai/agentscope#1242, read 2026-11-30.
- SiliconFlow: {"code", "message", "data"}, 413 for too many texts; coze-dev/coze-studio#291, 403 also without credit;
  docs.siliconflow.cn/cn/faqs/error-code; "length of prompt_tokens (600) must be less than max_seq_len (512)";
  chatboxai/chatbox#2060, read 2026-11-30.
- Cloudflare: {"errors": [{"code", "message"}], "success": false}; developers.cloudflare.com/fundamentals/api; 429 and
  3036 for the free allocation of a day, 3040 without capacity; workers-ai/platform/errors, read 2026-11-30.
- GitHub's models: 413 "Request body too large for ... Max size: 64000 tokens"; nlweb-ai/NLWeb#164.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from embedkit_core.common.errors import ProviderError, TextTooLongError
from embedkit_core.common.vectors import truncation_hint
from embedkit_core.providers.http.refusals import Refusal

QUOTA_CODES = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}
QUOTA_CODES |= {"1113", "1304", "1308", "1309", "1310"}  # of Zhipu AI
QUOTA_CODES |= {"Arrearage", "AllocationQuota.FreeTierOnly"}  # of Alibaba Cloud
QUOTA_CODES |= {"3036"}  # of Cloudflare
QUOTA_MESSAGE = re.compile(
    r"AUTHZ_INSUFFICIENT_BALANCE|(insufficient|not enough) (account )?balance|balance is insufficient", re.I
)
TOO_LONG_CODES = {"1261"}  # of Zhipu AI
TOO_LONG = re.compile(
    r"maximum context length|max context \d+|too long|(larger|longer) than the max\w{0,9} (context|model)"
    r"|exceeds? .{0,40}(context|max\w{0,9} (input|sequence)) ?(length|size)|exceed n_ctx"
    r"|must have less than \d+ (tokens|characters)|should have at most \d+ characters|too large to process"
    r"|exceeds (the )?(model's )?maximum (of|allowed) (\d+ tokens|token size)|INPUT_TOKEN_LIMIT_EXCEEDED"
    r"|range of input length should be|length of prompt_tokens .{0,20}must be less than",
    re.I,
)
TOO_LARGE = re.compile(
    r"max\w{0,9} .{0,20}tokens per request|body too large|length limit exceeded|too many tokens (overall|in batch)",
    re.I,
)
TOO_MANY_TEXTS = re.compile(r"batch size|array (is )?too long|too many inputs|should have at most \d+ items", re.I)
TOO_LONG_LIST = re.compile(r"array (is )?too long|should have at most \d+ items", re.I)
COUNTS = re.compile(
    r"context length is (?P<limit1>\d+) tokens[.,] however,? you requested (?P<tokens1>\d+)"
    r"|less than (?P<limit2>\d+) tokens. Given: (?P<tokens2>\d+)"
    r"|\((?P<tokens3>\d+) tokens\) is too large .*batch size: (?P<limit3>\d+)"
    r"|\(length (?P<tokens4>\d+)\) is longer than the maximum model length of (?P<limit4>\d+)"
    r"|\((?P<tokens5>\d+) tokens\) exceeds the available context size \((?P<limit5>\d+)"
    r"|length (?P<tokens6>\d+) exceeds maximum allowed token size (?P<limit6>\d+)"
    r"|length of prompt_tokens \((?P<tokens7>\d+)\) must be less than max_seq_len \((?P<limit7>\d+)\)",
    re.I,
)
ABOUT_REQUEST = re.compile(
    r"unrecognized request argument|not support specifying|unknown (field|parameter)|not an embedding model|no model"
    r"|invalid model name|no healthy deployments|no connected db|no such model|model does not exist|model_not_found"
    r"|extra (fields|inputs) (are )?not permitted|unsupportedparamserror|parameter is required",
    re.I,
)
ABOUT_DIMENSIONS = re.compile(r"matryoshka|\bdimensions?\b", re.I)
REQUEST_LIMIT = re.compile(r"(requests|calls) ?(per|/|a) ?(second|sec|s\b|minute|min|m\b|hour|day)|\bRP[SMD]\b", re.I)
TOKEN_LIMIT = re.compile(r"tokens ?(per|/|a) ?(minute|min|m\b|day)|\bTP[MD]\b", re.I)
# HTTP statuses of errors that come with HTTP 200: by type or code of OpenAI's format, and by code of MiniMax.
STATUSES = {
    **dict.fromkeys(("authentication_error", "invalid_api_key", "1004", "2049"), 401),
    **dict.fromkeys(("insufficient_quota", "1008"), 402),
    **dict.fromkeys(("rate_limit_error", "rate_limit_exceeded", "1002", "1039", "1041", "2045"), 429),
    **dict.fromkeys(("api_error", "server_error", "internal_server_error", "1000", "1001", "1024", "1033"), 500),
    **dict.fromkeys(("overloaded_error", "service_unavailable"), 503),
}
NO_SUCH_MODEL = {"model_not_found", "invalid_model", "DeploymentNotFound", "not_found_error"}
NO_SUCH_MODEL |= {"1211"}  # of Zhipu AI


@dataclass(frozen=True, slots=True)
class ErrorDetail:
    """Fields of an error response in any format, "" for missing ones."""

    message: str = ""
    type: str = ""
    param: str = ""
    code: str = ""

    @property
    def is_about_texts(self) -> bool:
        """Return True if the error may be about the texts, judging by the field that it names."""
        return self.param in ("", "input", "$.input")


def read_detail(body: object) -> ErrorDetail:
    """Read an error response in any of the formats of this module's docstring."""
    inner = body.get("error") or body.get("base_resp") or body if isinstance(body, Mapping) else body
    if isinstance(inner, Mapping) and isinstance(errors := inner.get("errors"), list) and errors:
        inner = errors[0]
    if isinstance(inner, Mapping) and isinstance(findings := inner.get("detail"), Sequence):
        return ErrorDetail(findings) if isinstance(findings, str) else _findings(findings)
    if isinstance(inner, Mapping) and isinstance(nested := inner.get("detail"), Mapping):
        return read_detail(nested)
    if not isinstance(inner, Mapping):
        return ErrorDetail(inner if isinstance(inner, str) else "")
    fields = {name: inner.get(name) for name in ("message", "type", "param", "code")}
    fields["type"] = fields["type"] or inner.get("error_type")
    fields["message"] = fields["message"] or inner.get("status_msg")
    fields["code"] = fields["code"] or inner.get("status_code")
    return ErrorDetail(**{name: "" if value == "None" else str(value or "") for name, value in fields.items()})


def error_status(reply: Mapping[str, Any]) -> int | None:
    """Return the HTTP status of the error that a reply with HTTP 200 has instead of vectors, None without an error.

    It is 200 if the error does not state one.
    """
    outcome = reply.get("base_resp")
    has_failed = isinstance(outcome, Mapping) and outcome.get("status_code") not in (None, 0)
    if reply.get("data") or not (reply.get("error") or reply.get("object") == "error" or has_failed):
        return None
    detail = read_detail(reply)
    if detail.code.isdecimal() and 400 <= int(detail.code) < 600:
        return int(detail.code)
    return next((STATUSES[name] for name in (detail.code, detail.type.lower()) if name in STATUSES), 200)


def _findings(findings: Sequence[object]) -> ErrorDetail:
    """Read FastAPI's validation errors; `param` is the first part of a location that is a field of the request."""
    entries = [entry for entry in findings if isinstance(entry, Mapping)]
    parts = [str(part) for entry in entries if isinstance(loc := entry.get("loc"), Sequence) for part in loc]
    param = next((part for part in parts if part in ("dimensions", "encoding_format", "model", "input")), "")
    return ErrorDetail("; ".join(str(entry.get("msg") or "") for entry in entries), "validation", param)


def to_provider_error(
    refusal: Refusal,
    detail: ErrorDetail,
    variable: str | None,
    *,
    dimensions: int | None,
    fix: str,
    rate_limit_codes: Set[str] = frozenset(),
) -> ProviderError:
    """Return the error for an error response, by status, code and message.

    Args:
        refusal: The response.
        detail: Its fields.
        variable: Environment variable of the API key.
        dimensions: Dimensions requested from a compatible server, None for OpenAI or the default dimensions.
        fix: Advice about the address for a request that is refused, "" if there is none.
        rate_limit_codes: Codes that mean a limit per minute, though with other servers they mean no credit.
    """
    is_long_text = "too large to process" in detail.message  # llama.cpp refuses a long text with 500
    error = _limit_error(refusal, detail, rate_limit_codes) or (
        None if is_long_text else refusal.common_error(variable)
    )
    if error is not None:
        return error
    if dimensions is not None and (detail.param == "dimensions" or ABOUT_DIMENSIONS.search(detail.message)):
        return refusal.bad_request(
            "For a model in the catalogue, embed the texts once without dimensions= into the same cache; "
            f"{truncation_hint(dimensions)}."
        )
    return _input_error(refusal, detail, fix)


def error_without_texts(
    refusal: Refusal, detail: ErrorDetail, variable: str | None, *, fix: str, rate_limit_codes: Set[str] = frozenset()
) -> ProviderError:
    """Return the error for an error response to a request that has no texts; arguments as for `to_provider_error`."""
    error = _limit_error(refusal, detail, rate_limit_codes) or refusal.common_error(variable)
    return error or refusal.bad_request(fix, field=detail.param)


def _limit_error(refusal: Refusal, detail: ErrorDetail, rate_limit_codes: Set[str]) -> ProviderError | None:
    """Return the error for an account without credit, or for a limit per minute."""
    if {detail.code, detail.type} & (QUOTA_CODES - rate_limit_codes) or QUOTA_MESSAGE.search(detail.message):
        return refusal.quota()
    if refusal.status != 429:
        return None
    limited = refusal.rate_limit()
    limited.counts_requests = bool(REQUEST_LIMIT.search(detail.message) and not TOKEN_LIMIT.search(detail.message))
    return limited


def _input_error(refusal: Refusal, detail: ErrorDetail, fix: str) -> ProviderError:
    message, status = detail.message, refusal.status
    is_too_long = TOO_LONG.search(message) or detail.code in TOO_LONG_CODES
    if detail.is_about_texts and is_too_long and not TOO_LONG_LIST.search(message):
        counts = COUNTS.search(message)
        values = {name.rstrip("1234567"): int(n) for name, n in counts.groupdict().items() if n} if counts else {}
        return TextTooLongError(tokens=values.get("tokens"), limit=values.get("limit"), **refusal.error_fields)
    about_request = ABOUT_REQUEST.search(message) or detail.code in NO_SUCH_MODEL or detail.type in NO_SUCH_MODEL
    out_of_memory, too_many = status == 424 and not about_request, TOO_MANY_TEXTS.search(message)
    if (
        out_of_memory
        or too_many
        or status == 413
        or detail.code == "max_tokens_per_request"
        or TOO_LARGE.search(message)
    ):
        if out_of_memory:
            reason = "Server could not process the request, which may be too large for it"
            return refusal.too_large(reason, counts_texts=too_many is not None)
        return refusal.too_large(counts_texts=too_many is not None)
    if detail.is_about_texts and status in (400, 422) and not about_request:
        return refusal.bad_text()
    return refusal.bad_request(fix, field=detail.param)
