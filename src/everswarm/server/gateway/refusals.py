"""The errors of a gateway whose endpoints do not answer. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from everswarm.errors import QuotaSpentError, UnavailableError
from everswarm.server.gateway.endpoints import Endpoint


def empty(endpoint: Endpoint) -> UnavailableError:
    """Return the error of an endpoint that says nothing."""
    return UnavailableError(f"'{endpoint.name}' gave an empty answer.")


def resting(endpoint: Endpoint) -> UnavailableError:
    """Return the error of an endpoint that is left alone for now."""
    seconds = max(1, math.ceil(endpoint.breaker.seconds_until_probe))
    reason = f"'{endpoint.name}' has failed and is asked again in {seconds} s: {endpoint.state}"
    return UnavailableError(reason, retry_after_seconds=seconds)


def nobody_answers(target: str, failures: Sequence[UnavailableError]) -> UnavailableError:
    """Return one error for all failures: a spent quota only where every endpoint's is spent."""
    seconds = min((failure.retry_after_seconds or 1 for failure in failures), default=1)
    kind = QuotaSpentError if all(isinstance(failure, QuotaSpentError) for failure in failures) else UnavailableError
    reasons = " ".join(dict.fromkeys(_sentence(str(failure)) for failure in failures))
    return kind(
        f"No endpoint can answer for '{target}' now. {reasons} Try again in {seconds} s.", retry_after_seconds=seconds
    )


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}".rstrip(". ") + "."
