"""Lines of batch files in the format of OpenAI, Voyage and Mistral, and the fields that their batches share. No I/O.

A result is {"custom_id", "response": {"status_code", "body"}, "error"}. A failed line has one of, or both:
- a response with another status, and an error in its body or, at Voyage, a message beside the status;
- an error {"code", "message"} without a response, if it was not sent to the model. At Mistral, it may be a string.
Sources, read 2026-11-30: developers.openai.com/api/docs/guides/batch; docs.voyageai.com/docs/batch-inference;
mistralai/platform-docs-public, studio-api/batch-processing.md, and mistralai 3.7.0, extra/batch/client.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from embedkit_core.common.errors import BadReplyError
from embedkit_core.providers.batch_endpoint import LineResult
from embedkit_core.providers.http.decoding import ReplyReader

NONCE_FIELD = "embedkit_nonce"  # in the metadata of a batch
MAX_NAMED_ERRORS = 5
CODE = re.compile(r"[A-Za-z0-9_]{1,64}")
TRANSIENT_STATUSES = frozenset({408, 409, 429})
# Codes of lines that were not sent to the model, and can be sent as they are in another batch.
TRANSIENT_CODES = frozenset({"batch_expired", "batch_cancelled", "batch_canceled", "rate_limit_exceeded"})
TRANSIENT_CODES |= {"server_error", "internal_error", "timeout", "request_timeout", ""}
# Python's str.splitlines, with which a server may read a file, ends a line at these characters too.
LINE_BREAKS = {character.encode(): f"\\u{ord(character):04x}".encode() for character in "\x85\u2028\u2029"}


def dump_line(reader: ReplyReader, fields: Mapping[str, Any]) -> bytes:
    """Return fields as one line of JSON, without its line break and without other characters that may end a line."""
    line = reader.dump(fields)
    for character, escaped in LINE_BREAKS.items():
        line = line.replace(character, escaped)
    return line


def parse_line(reader: ReplyReader, line: bytes) -> LineResult:
    """Return the result of a line.

    Raises:
        ValueError: It is not a line of a result file.
    """
    result = reader.load(line)
    if not isinstance(result, dict) or not result.keys() & {"response", "error"}:
        raise ValueError("not a line of a result file")
    custom_id = result.get("custom_id") if isinstance(result.get("custom_id"), str) else None
    response = result["response"] if isinstance(result.get("response"), dict) else {}
    status, body = response.get("status_code", 0), response.get("body")
    if type(status) is not int:
        raise ValueError("the status of a line is not a number")
    if status == 200:
        model = body.get("model") if isinstance(body, dict) else None
        return LineResult(custom_id, status, body, model if isinstance(model, str) else None)
    code = read_code(result.get("error")) or read_code(body)
    can_repeat = code in TRANSIENT_CODES if status == 0 else is_transient(status)
    return LineResult(custom_id, status, code=code, is_transient=can_repeat)


def is_transient(status: int) -> bool:
    """Return True if a line that failed with this status can be sent again as it is."""
    return status in TRANSIENT_STATUSES or status >= 500


def read_code(error: object) -> str:
    """Return the code of an error, which may be in its field `error`; "" if it has none of letters and digits."""
    if not isinstance(error, Mapping):
        return ""
    inner = error.get("error")
    fields = inner if isinstance(inner, Mapping) else error
    code = str(fields.get("code") or fields.get("error_code") or "")
    return code if CODE.fullmatch(code) else ""


def read_id(fields: object) -> str:
    """Return the ID of a file or batch.

    Raises:
        BadReplyError: It has none.
    """
    name = fields.get("id") if isinstance(fields, Mapping) else None
    if not isinstance(name, str) or not name:
        raise BadReplyError("Server response has no ID")
    return name


def read_errors(errors: object) -> list[Mapping[str, Any]]:
    """Return the errors of a batch that was refused as a whole: {"data": [...]}, or the list alone."""
    return read_list(errors.get("data") if isinstance(errors, dict) else errors)


def describe_errors(errors: Sequence[Mapping[str, Any]]) -> str:
    """Return the codes of errors and the lines that they are about. Their messages may repeat texts."""
    parts: dict[str, None] = {}
    for error in errors:
        line = error.get("line")
        place = f" in line {line}" if type(line) is int else ""
        parts[f"{read_code(error) or 'an error without a code'}{place}"] = None
    return ", ".join(list(parts)[:MAX_NAMED_ERRORS]) + ", ..." * (len(parts) > MAX_NAMED_ERRORS)


def has_nonce(batch: Mapping[str, Any], nonce: str) -> bool:
    """Return True if the metadata of a batch has a nonce."""
    metadata = batch.get("metadata")
    return isinstance(metadata, Mapping) and metadata.get(NONCE_FIELD) == nonce


def read_time(value: object) -> float | None:
    """Return a time, in seconds since 1970 or in ISO 8601, in seconds since 1970. None if it is neither."""
    try:
        if type(value) in (int, float):
            return float(value)  # type: ignore[arg-type]
        time = datetime.fromisoformat(value)  # type: ignore[arg-type]
    except (ValueError, TypeError, OverflowError):
        return None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def read_count(value: object) -> int:
    """Return a count, 0 if it is not one."""
    return value if type(value) is int and value > 0 else 0


def read_list(value: object) -> list[Mapping[str, Any]]:
    """Return the JSON objects of a list, none if it is not one."""
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def read_outputs(*files: object) -> tuple[str, ...]:
    """Return the IDs of result files that exist: without one, a server sends null or an empty string."""
    return tuple(file for file in files if isinstance(file, str) and file)
