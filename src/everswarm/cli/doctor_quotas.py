"""What is left of the quotas of the endpoints here, over all processes, and what is odd about them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from everswarm.errors import EverswarmError
from everswarm.schemas.gateway import LimitView
from everswarm.settings import EndpointSettings, Settings

if TYPE_CHECKING:
    from everswarm.server.gateway.quota import Quota, QuotaState


async def read_quotas(settings: Settings, quotas: Sequence[Quota | None]) -> list[QuotaState | str | None]:
    """Return for each what is used of it, None where there is none, or why it cannot be read."""
    try:
        return list(await _read(settings, quotas))
    except EverswarmError as error:
        return [None if quota is None else str(error) for quota in quotas]


def answer_too_long(entry: EndpointSettings, quota: Quota | None) -> str:
    """Return what to know of a quota that has no room for two answers; empty where it has."""
    amounts = [limit.amount for limit in (quota.limits if quota else ()) if limit.unit == "tokens"]
    if not amounts or min(amounts) >= 2 * entry.answer_tokens:
        return ""
    most = max(1, min(amounts) // 2)  # as the server does it
    return (
        f"Its smallest token limit, {min(amounts):,}, is less than twice its answer_tokens, {entry.answer_tokens:,}. "
        f"So an answer ends after {most:,} tokens where a request sets no max_tokens. Raise the limit, or set "
        f"answer_tokens to {most} or less."
    )


async def _read(settings: Settings, quotas: Sequence[Quota | None]) -> Sequence[QuotaState | None]:
    from everswarm.server.gateway.quota_sqlite import FILE_NAME
    from everswarm.server.gateway.quota_store import open_quota_store

    is_shared = settings.database_url is not None and settings.database_url.startswith("postgres")
    if not is_shared and not (settings.home / FILE_NAME).exists():  # nothing was used yet, and we leave no trace
        return [_untouched(quota) for quota in quotas]
    store = open_quota_store(home=settings.home, database_url=settings.database_url)
    try:
        return [None if quota is None else await store.view(quota) for quota in quotas]
    finally:
        await store.close()


def _untouched(quota: Quota | None) -> QuotaState | None:
    from everswarm.server.gateway.quota import QuotaState

    if quota is None:
        return None
    limits = tuple(
        LimitView(
            unit=limit.unit,
            window_seconds=limit.window_seconds,
            amount=limit.amount,
            used=0,
            held=0,
            left=limit.amount,
            source=limit.source,
        )
        for limit in quota.limits
    )
    return QuotaState(limits, None, None)
