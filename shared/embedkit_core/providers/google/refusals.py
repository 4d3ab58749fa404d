"""Error responses of Google's APIs: {"error": {"code", "message", "status", "details"}}. No I/O.

Source of the shape: google.rpc.Status and google/rpc/error_details.proto. The messages are quoted from issue threads
that tests/fixtures/recorded/google names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from embedkit_core.common.errors import AuthenticationError, ProviderError, TextTooLongError
from embedkit_core.providers.http.headers import parse_duration
from embedkit_core.providers.http.refusals import Refusal

TOO_MANY_TEXTS = re.compile(r"at most \d+ requests can be in one batch|instance\(s\) (is|are) allowed per", re.I)
TOO_MANY_BYTES = re.compile(r"payload size exceeds|payload is too large|request too large", re.I)
COUNTS = re.compile(
    r"input token count (?:is |\()(?P<tokens>\d+)\)?.{0,60}?(?:supports up to |allowed \()(?P<limit>\d+)", re.I | re.S
)
TOO_LONG = re.compile(r"(exceeds|over|longer than).{0,40}(token|length|limit)|too (long|many tokens)", re.I)
KEY_REFUSED = re.compile(r"API key (not valid|expired|not found)|API_KEY_(INVALID|EXPIRED)", re.I)
REQUEST_TOKENS = 20_000  # the limit of a request; no model takes texts of so many tokens
PER_DAY = re.compile(r"per_?day", re.I)
NO_QUOTA = re.compile(r"\blimit: 0(?![\d.])")
RETRY_IN = re.compile(r"retry in ((?:\d+(?:\.\d+)?(?:ms|h|m|s))+)", re.I)
# Google sends "Request contains an invalid argument." for many kinds of errors.
ABOUT_TEXT = re.compile(
    r"\bcontents?\b(?!_)|\binstances?\[|\bparts?\b|\btexts?\b(?!-)|empty|contains an invalid argument", re.I
)
ABOUT_REQUEST = re.compile(r"task_?type|output_?dimensionality|auto_?truncate|\bmodels?/|\bmodel\b|unknown name", re.I)


def read_error(reply: object) -> dict[str, Any]:
    """Return the `error` of a response's JSON, which may be in a list; empty if there is none."""
    if isinstance(reply, list) and len(reply) == 1:
        [reply] = reply
    error = reply.get("error") if isinstance(reply, Mapping) else None
    return dict(error) if isinstance(error, Mapping) else {}


def details_of(error: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the details of an error."""
    details = error.get("details")
    return [one for one in details if isinstance(one, Mapping)] if isinstance(details, list) else []


def with_retry_info(headers: Mapping[str, str], error: Mapping[str, Any], message: str) -> dict[str, str]:
    """Return the headers with the delay in the error's `RetryInfo` or message: Google sends no Retry-After."""
    given = next((one["retryDelay"] for one in details_of(error) if "retryDelay" in one), None)
    seconds = parse_duration(given) if isinstance(given, str) else None
    if seconds is None and (match := RETRY_IN.search(message)):
        seconds = parse_duration(match[1])
    return {**({} if seconds is None else {"retry-after": str(seconds)}), **headers}


def to_provider_error(refusal: Refusal, error: Mapping[str, Any], *, variable: str, credentials: str) -> ProviderError:
    """Return the error for an error response, by status, details and message.

    Args:
        refusal: The response.
        error: Its `error`.
        variable: Environment variable of the API key.
        credentials: What to check if the credentials are refused, as a sentence.
    """
    message, details = refusal.message, details_of(error)
    reasons = " ".join(str(one.get("reason") or "") for one in details)
    if KEY_REFUSED.search(f"{message} {reasons}"):  # with HTTP 400
        return AuthenticationError(
            f"API key was refused for {refusal.model} (HTTP {refusal.status}). Check api_key= or {variable}.",
            **refusal.error_fields,
        )
    if refusal.status in (401, 403):
        said = refusal.server_message.removesuffix(".")
        return AuthenticationError(
            f"Access to {refusal.model} was refused (HTTP {refusal.status}){said}. {credentials}",
            **refusal.error_fields,
        )
    if refusal.status == 429 and (PER_DAY.search(_quotas(details)) or NO_QUOTA.search(message)):
        return refusal.quota()  # a day's requests are used up, or the free tier does not include the model
    if (common := refusal.common_error(variable)) is not None:
        return common
    if TOO_MANY_TEXTS.search(message):
        return refusal.too_large(counts_texts=True)
    if refusal.status == 413 or TOO_MANY_BYTES.search(message):
        return refusal.too_large()
    if counts := COUNTS.search(message):
        limit = int(counts["limit"])
        if len(refusal.texts) > 1 and limit >= REQUEST_TOKENS:
            return refusal.too_large()
        return TextTooLongError(tokens=int(counts["tokens"]), limit=limit, **refusal.error_fields)
    if TOO_LONG.search(message):
        return TextTooLongError(**refusal.error_fields)
    if refusal.status == 404:
        return refusal.bad_request("Check the model, and the location of a model on Vertex AI.")
    about_text = ABOUT_TEXT.search(message) and not ABOUT_REQUEST.search(message)
    if refusal.status == 400 and (about_text or not message):
        return refusal.bad_text()
    return refusal.bad_request()


def _quotas(details: list[Mapping[str, Any]]) -> str:
    """Return the names of the quotas that were exceeded, in a `QuotaFailure` or an `ErrorInfo`."""
    violations = [one.get("violations") for one in details]
    named = [part for one in violations if isinstance(one, list) for part in one if isinstance(part, Mapping)]
    named += [metadata for one in details if isinstance(metadata := one.get("metadata"), Mapping)]
    return " ".join(str(part.get("quotaId") or part.get("quota_limit") or "") for part in named)
