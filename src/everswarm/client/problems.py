"""What went wrong on the wire, as the errors that were meant (`everswarm.errors`)."""

from __future__ import annotations

import httpx

from everswarm.errors import UnavailableError, error_for_status

PROXY_ALONE = (502, 504)  # what a proxy answers while the server behind it starts again


def unreachable(base_url: str, error: Exception) -> UnavailableError:
    """Say in words that nobody answers."""
    reason = str(error) or type(error).__name__
    return UnavailableError(
        f"The server at {base_url} does not answer ({reason}). Is it running? Start it with: everswarm serve."
    )


def raise_for_problem(response: httpx.Response) -> None:
    """Raise what a problem document (RFC 9457) or an OpenAI error object stands for."""
    if response.status_code < 400:
        return
    response.read()  # of a stream; else it is here already
    try:
        body = response.json()
        detail = body.get("detail") or (body.get("error") or {}).get("message") or response.text
    except (ValueError, AttributeError):
        detail = response.text[:500] or response.reason_phrase
    retry_after = response.headers.get("Retry-After", "")
    status = UnavailableError.status if response.status_code in PROXY_ALONE else response.status_code
    raise error_for_status(
        status, str(detail), retry_after_seconds=int(retry_after) if retry_after.isdecimal() else None
    )
