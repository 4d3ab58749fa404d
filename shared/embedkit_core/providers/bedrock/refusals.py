"""Error responses of Amazon Bedrock.

Sources, read 2026-11-30: docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_InvokeModel.html (errors),
docs.aws.amazon.com/bedrock/latest/userguide/troubleshooting-api-error-codes.html, and quoted messages:
github.com/aws-samples/amazon-bedrock-workshop/issues/136 (tokens), ScrapeGraphAI/Scrapegraph-ai/issues/400
(characters), run-llama/llama_index/issues/14118 ("Input is too long").
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from embedkit_core.common.errors import AuthenticationError, ProviderError, QuotaError, TextTooLongError
from embedkit_core.providers.http.refusals import Refusal

TOO_MANY_TOKENS = re.compile(r"Max input tokens: (?P<limit>\d+), request input token count: (?P<tokens>\d+)", re.I)
TOO_MANY_CHARACTERS = re.compile(
    r"(?:#/texts/(?P<position>\d+): )?expected maxLength: (?P<limit>\d+), actual: (?P<tokens>\d+)", re.I
)
TOO_LONG = re.compile(
    r"too many (input )?tokens|too long|exceeds? the (maximum|max)\b.{0,40}(token|length|character)", re.I
)
TOO_MANY_TEXTS = re.compile(
    r"#/texts: expected maximum item count|total number of texts must be|at most \d+ (texts|inputs)", re.I
)
NEEDS_PROFILE = re.compile(r"on-demand throughput", re.I)
UNKNOWN_MODEL = re.compile(r"model identifier is invalid|model id", re.I)
ABOUT_REQUEST = re.compile(
    r"malformed (input )?request|input_type|embedding_types?|dimension|embeddingPurpose|truncat|operation not allowed",
    re.I,
)

CHECK_MODEL = "Check the model's ID, that its region (AWS_REGION) offers it, and that the account has access to it."
USE_PROFILE = (
    "Use the ID of an inference profile, which is the model's ID with a prefix: 'bedrock:us.…', 'eu.', 'apac.' or "
    "'global.'."
)
QUOTA = "Request an increase in the AWS console under Service Quotas, Amazon Bedrock."
CREDENTIALS = (
    "Check AWS_BEARER_TOKEN_BEDROCK or api_key=, or else AWS_PROFILE, AWS_ACCESS_KEY_ID and AWS_SESSION_TOKEN."
)

RATE_LIMITS = frozenset({"ThrottlingException", "TooManyRequestsException", "ModelNotReadyException"})
FAILURES = frozenset({"ModelTimeoutException", "ModelErrorException", "InternalServerException"})
FAILURES |= {"ServiceUnavailableException", "InternalFailure", "ServiceUnavailable"}
# Of credentials: all are refused by the front end, some with status 400.
EXPIRED = frozenset({"ExpiredTokenException", "ExpiredToken", "RequestExpired"})
REFUSED = frozenset({"UnrecognizedClientException", "InvalidSignatureException", "SignatureDoesNotMatch"})
REFUSED |= {"InvalidClientTokenId", "MissingAuthenticationToken", "MissingAuthenticationTokenException"}
REFUSED |= {"IncompleteSignature", "IncompleteSignatureException", "NotAuthorized", "OptInRequired"}


def error_code(headers: Mapping[str, str], reply: Mapping[str, Any]) -> str:
    """Return the code of an error response, "" if it has none: "ValidationException:http://…" in a header or body."""
    code = headers.get("x-amzn-errortype") or reply.get("__type") or reply.get("code") or ""
    return str(code).partition(":")[0].rpartition("#")[2]


def to_provider_error(refusal: Refusal, code: str) -> ProviderError:
    """Return the error for an error response, by code, status and message."""
    if code in RATE_LIMITS:
        return refusal.rate_limit()
    if code == "ServiceQuotaExceededException":
        message = f"A quota of the AWS account is exceeded (HTTP {refusal.status}){refusal.server_message}".rstrip(".")
        return QuotaError(f"{message}. {QUOTA}", **refusal.error_fields)
    if code in FAILURES:
        return refusal.unavailable()
    if code in EXPIRED | REFUSED or code == "AccessDeniedException" or refusal.status in (401, 403):
        return _authentication(refusal, code)
    if code == "ResourceNotFoundException" or refusal.status == 404:
        return refusal.bad_request(CHECK_MODEL)
    if (error := refusal.common_error(None)) is not None:
        return error
    return _validation(refusal)


def _authentication(refusal: Refusal, code: str) -> AuthenticationError:
    problem, advice = "AWS refused the credentials", CREDENTIALS
    if code in EXPIRED:
        problem, advice = "The AWS credentials have expired", "Renew them (aws sso login, or a new token)."
    elif code == "AccessDeniedException":
        problem = f"Access to {refusal.model} was denied"
        advice = f"The identity needs bedrock:InvokeModel for the model and its inference profile. {CREDENTIALS}"
    reason = f", {code}" if code else ""
    message = f"{problem} (HTTP {refusal.status}{reason}){refusal.server_message}".rstrip(".")
    return AuthenticationError(f"{message}. {advice}", **refusal.error_fields)


def _validation(refusal: Refusal) -> ProviderError:
    message = refusal.message
    if found := TOO_MANY_TOKENS.search(message):
        return TextTooLongError(tokens=int(found["tokens"]), limit=int(found["limit"]), **refusal.error_fields)
    if found := TOO_MANY_CHARACTERS.search(message):
        length, limit = int(found["tokens"]), int(found["limit"])
        positions = {int(found["position"]): length} if found["position"] else {}
        return TextTooLongError(
            tokens=length, limit=limit, positions=positions, unit="characters", **refusal.error_fields
        )
    if TOO_MANY_TEXTS.search(message):
        return refusal.too_large(counts_texts=True)
    if refusal.status == 413:
        return refusal.too_large()
    if TOO_LONG.search(message):
        return TextTooLongError(**refusal.error_fields)
    if NEEDS_PROFILE.search(message):
        return refusal.bad_request(USE_PROFILE)
    if UNKNOWN_MODEL.search(message):
        return refusal.bad_request(CHECK_MODEL)
    if ABOUT_REQUEST.search(message):
        return refusal.bad_request()
    return refusal.bad_text()
