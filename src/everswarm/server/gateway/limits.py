"""What an endpoint allows: its configured quota, or else the row of the dated table `limits.toml` for its address."""

from __future__ import annotations

import hashlib
import tomllib
from datetime import UTC, date, datetime, timedelta
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from typing import Literal
from urllib.parse import urlsplit

from everswarm.server.gateway.quota import CONFIGURATION, Limit, Quota, Unit
from everswarm.settings import EndpointSettings, QuotaSettings, Section

UNITS: tuple[Unit, ...] = ("tokens", "requests")
WINDOW_SECONDS = {"second": 1.0, "minute": 60.0, "hour": 3600.0, "day": 86_400.0}
UNKNOWN_CREDIT_RESET = timedelta(hours=1)  # after a 402, where nobody says when: one request an hour finds out


class LimitRow(Section):
    """One row of the dated table."""

    host: str
    models: str = "*"  # pattern of names
    limits: QuotaSettings = QuotaSettings()
    per: Literal["model", "credential"]
    credit_reset: Literal["day", "month"] | None = None
    as_of: date
    source: str
    note: str = ""


@cache
def limit_table() -> tuple[LimitRow, ...]:
    """Return the table of the package."""
    text = files(__package__).joinpath("limits.toml").read_text(encoding="utf-8")
    return tuple(LimitRow.model_validate(row) for row in tomllib.loads(text)["row"])


def default_limits(base_url: str, model: str = "") -> LimitRow | None:
    """Return the first row of the table for `model` at `base_url`, if there is one."""
    host = urlsplit(base_url).hostname
    return next((row for row in limit_table() if row.host == host and fnmatchcase(model, row.models)), None)


def quota_of(endpoint: EndpointSettings, credential: str | None, *, interactive_share: float) -> Quota | None:
    """Return the quota of `endpoint`; configuration wins over the table.

    One without limits is for an endpoint that may close itself (402, 429): all processes heed that. None is for the
    embedded engine, which has no address and costs nothing to ask.

    Args:
        endpoint: a complete entry of the table.
        credential: what it is asked with; another credential has a quota of its own.
        interactive_share: of each limit, that is kept for interactive use.
    """
    row = default_limits(endpoint.base_url, endpoint.model)
    key = endpoint.name
    limits: tuple[Limit, ...] = ()
    if endpoint.quota is not None:
        key = endpoint.quota.shared or key
        limits = _limits(endpoint.quota, source=CONFIGURATION)
    elif row is not None:
        key = row.host if row.per == "credential" else f"{row.host}/{endpoint.model}"
        limits = _limits(row.limits, source=f"default of {row.as_of}, {row.source}")
    if not limits and not endpoint.base_url:
        return None
    return Quota(f"{key}:{_fingerprint(credential)}", limits, interactive_share)


def next_credit_reset(base_url: str, model: str = "", *, now: datetime) -> datetime:
    """Return when an endpoint that answered 402 at `now` (UTC) may be asked again."""
    row = default_limits(base_url, model)
    midnight = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    match row.credit_reset if row else None:
        case "day":
            return midnight + timedelta(days=1)
        case "month":
            return (midnight.replace(day=1) + timedelta(days=32)).replace(day=1)
        case _:
            return now + UNKNOWN_CREDIT_RESET


def _limits(quota: QuotaSettings, *, source: str) -> tuple[Limit, ...]:
    return tuple(
        Limit(unit, amount, seconds, source)
        for unit in UNITS
        for window, seconds in WINDOW_SECONDS.items()
        if (amount := getattr(quota, f"{unit}_per_{window}")) is not None
    )


def _fingerprint(credential: str | None) -> str:
    """Return what tells credentials apart and does not give them away."""
    return hashlib.sha256(credential.encode()).hexdigest()[:12] if credential else "none"
