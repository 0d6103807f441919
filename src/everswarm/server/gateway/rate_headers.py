"""What an endpoint says of its limits in the headers of an answer. Pure; what cannot be read is ignored.

Read are `x-ratelimit-{limit,remaining,reset}` with `-tokens` or `-requests` (OpenAI, Groq), and `-minute`, `-hour` or
`-day` behind it (Cerebras), the older `ratelimit-{limit,remaining,reset}`, and the IETF draft `RateLimit` with
`RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers).
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from everswarm.server.gateway.quota import Unit

LONGEST_SECONDS = 32 * 86_400.0  # a reset further away is a misreading
LARGEST = 10**15
EPOCH_SECONDS, EPOCH_MILLISECONDS = 1e9, 1e12  # numbers from here on are moments, not durations

_SPANS = {"": None, "-second": 1.0, "-minute": 60.0, "-hour": 3_600.0, "-day": 86_400.0}
_UNITS: dict[str, Unit] = {"-tokens": "tokens", "-requests": "requests", "": "requests"}
# name of the remaining header → (pattern of its two siblings, unit, window)
_TRIPLES: dict[str, tuple[str, Unit, float | None]] = {
    f"x-ratelimit-remaining{unit}{span}": (f"x-ratelimit-%s{unit}{span}", _UNITS[unit], seconds)
    for unit in _UNITS
    for span, seconds in _SPANS.items()
} | {"ratelimit-remaining": ("ratelimit-%s", "requests", None)}
_KNOWN = frozenset({*_TRIPLES, "ratelimit"})

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|us|µs|ns|d|h|m|s)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_ITEM = re.compile(r'"([^"]*)"((?:\s*;\s*[\w*.-]+(?:=(?:"[^"]*"|[^;,\s"]+))?)*)')
_PARAMETER = re.compile(r'([\w*.-]+)\s*=\s*"?([^";,\s]+)"?')


@dataclass(frozen=True, slots=True)
class Correction:
    """The endpoint takes `remaining` more of `unit` until `reset_seconds` from now."""

    unit: Unit
    remaining: int
    reset_seconds: float
    limit: int | None = None  # of the whole window
    window_seconds: float | None = None


def read_corrections(headers: Mapping[str, str], *, now: float | None = None) -> list[Correction]:
    """Return what `headers` (names in lower case) say; most often nothing.

    Args:
        headers: of the answer.
        now: seconds since 1970, for resets that are moments; default: the clock.
    """
    if _KNOWN.isdisjoint(headers):
        return []
    moment = time.time() if now is None else now
    found = list(_read_triples(headers, moment))
    return [*found, *_read_draft(headers, moment)]


def _read_triples(headers: Mapping[str, str], now: float) -> Iterator[Correction]:
    for name in _TRIPLES.keys() & headers.keys():
        pattern, unit, window = _TRIPLES[name]
        limit, _, policy = headers.get(pattern % "limit", "").partition(",")  # older drafts: 100, 100;w=60
        window = window or _duration(dict(_PARAMETER.findall(policy)).get("w"))
        yield from _correction(
            unit,
            remaining=headers[name],
            reset=headers.get(pattern % "reset"),
            limit=limit,
            window=window,
            now=now,
        )


def _read_draft(headers: Mapping[str, str], now: float) -> Iterator[Correction]:
    text = headers.get("ratelimit", "")
    policies = {
        name: dict(_PARAMETER.findall(rest)) for name, rest in _ITEM.findall(headers.get("ratelimit-policy", ""))
    }
    for name, rest in _ITEM.findall(text):
        said, policy = dict(_PARAMETER.findall(rest)), policies.get(name, {})
        unit = _UNITS.get("-" + policy.get("qu", "requests"))
        if unit is not None:
            yield from _correction(
                unit,
                remaining=said.get("r"),
                reset=said.get("t"),
                limit=policy.get("q"),
                window=_duration(policy.get("w")),
                now=now,
            )
    if '"' not in text:  # drafts before the eighth: limit=100, remaining=50, reset=5
        said = dict(_PARAMETER.findall(text))
        yield from _correction(
            "requests", remaining=said.get("remaining"), reset=said.get("reset"), limit=said.get("limit"), now=now
        )


def _correction(
    unit: Unit, *, remaining: str | None, reset: str | None, limit: str | None, now: float, window: float | None = None
) -> Iterator[Correction]:
    left = _count(remaining)
    seconds = _reset(reset, now) if reset is not None else window
    if left is not None and seconds is not None and 0 < seconds <= LONGEST_SECONDS:
        yield Correction(unit, left, seconds, _count(limit) or None, window)


def _count(text: str | None) -> int | None:
    number = _number(text)
    return int(number) if number is not None and number <= LARGEST else None


def _reset(text: str, now: float) -> float | None:
    seconds = _duration(text)
    if seconds is None or seconds < EPOCH_SECONDS:
        return seconds
    return (seconds / 1_000 if seconds >= EPOCH_MILLISECONDS else seconds) - now


def _duration(text: str | None) -> float | None:
    """Return seconds, of '12', '1.5s', '6m0s' or '120ms'."""
    if text is None:
        return None
    stripped = text.strip()
    parts = _DURATION.findall(stripped)
    if parts and "".join(number + unit for number, unit in parts) == stripped:
        return sum(float(number) * _SECONDS[unit] for number, unit in parts)
    return _number(stripped)


def _number(text: str | None) -> float | None:
    try:
        number = float(text) if text else math.nan
    except ValueError:
        return None
    return number if number >= 0 and math.isfinite(number) else None
