"""From an upstream's refusal to ours: who must act, and what the upstream said."""

from __future__ import annotations

import email.utils
import json
import time
from collections.abc import Mapping
from typing import Any

from everswarm.errors import (
    BadRequestError,
    CreditSpentError,
    EverswarmError,
    QuotaSpentError,
    TooLargeError,
    UnavailableError,
)

PAYMENT_REQUIRED = 402
SHOWN_CHARACTERS = 500  # of what the upstream said
DEFAULT_RETRY_SECONDS = 5
DIGITS_READ = 15
UNIX_TIME = 1e9  # a larger number is a moment, not a time to wait
LONGEST_SECONDS = 32 * 86_400.0  # a month's credit
QUOTA_RETRY_SECONDS = 60  # where a 429 does not say


def refusal(status: int, body: bytes, headers: Mapping[str, str], *, endpoint: str) -> EverswarmError:
    """Return the error that an HTTP answer with `status` of `endpoint` means for our caller.

    400, 413 and 422 are the caller's to mend. Everything else is not: another endpoint may do better.
    """
    error = _error_object(body)
    said = _readable(str(error.get("message") or body.decode(errors="replace")))
    if _is_over_context(error):
        limit = f" The conversation has {error['n_prompt_tokens']} tokens, the model reads {error.get('n_ctx')}." \
            if error.get("n_prompt_tokens") else ""  # fmt: skip
        return BadRequestError(
            f"The conversation is longer than the model of {endpoint} can read: {said}.{limit} Shorten it."
        )
    if status in {400, 422} or (status >= 500 and "not supported" in said):  # such as a picture, of llama.cpp
        return BadRequestError(f"{endpoint} cannot use this request: {said}")
    if status == TooLargeError.status:
        return TooLargeError(f"The request is too large for {endpoint}: {said}")
    if status in {PAYMENT_REQUIRED, 429}:
        seconds = retry_after_seconds(headers) or QUOTA_RETRY_SECONDS
        kind = CreditSpentError if status == PAYMENT_REQUIRED else QuotaSpentError
        return kind(f"{endpoint} takes no more requests now ({status}: {said}).", retry_after_seconds=seconds)
    if status in {401, 403}:
        return UnavailableError(f"{endpoint} refuses our credential ({status}: {said}). The operator must set another.")
    return UnavailableError(
        f"{endpoint} answered with {status}: {said}",
        retry_after_seconds=retry_after_seconds(headers) or DEFAULT_RETRY_SECONDS,
    )


def retry_after_seconds(headers: Mapping[str, str]) -> int | None:
    """Return the seconds of a `Retry-After` header: a number or a date (RFC 9110, section 10.2.3), or a Unix time.

    At least 1 and at most 32 days, whatever was sent; None where it cannot be read.
    """
    text = (headers.get("Retry-After") or headers.get("retry-after") or "").strip()
    try:
        if text.isascii() and text.isdigit():
            seconds = float(text[:DIGITS_READ])
            seconds -= time.time() if seconds >= UNIX_TIME else 0
        else:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, OverflowError, TypeError, OSError):
        return None
    return round(min(max(1.0, seconds), LONGEST_SECONDS))


def _readable(text: str) -> str:
    """Return the beginning of what was said; a page for browsers says nothing to a person who reads an error."""
    text = text.strip()
    if text[:1] == "<":
        return "a web page, not the OpenAI protocol; does base_url end in /v1?"
    return text[:SHOWN_CHARACTERS] or "no explanation"


def _error_object(body: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(body)
    except ValueError:
        return {}
    error = answer.get("error", answer) if isinstance(answer, dict) else {}
    return error if isinstance(error, dict) else {"message": str(error)}


def _is_over_context(error: dict[str, Any]) -> bool:
    return error.get("type") == "exceed_context_size_error" or error.get("code") == "context_length_exceeded"
