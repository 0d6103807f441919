"""The endpoint table, live: who answers, whether the model is served, how quickly, and what is left of the quota."""

from __future__ import annotations

import asyncio
import importlib.util
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from everswarm.errors import ConfigurationError, EverswarmError
from everswarm.schemas.gateway import LimitView
from everswarm.settings import EndpointSettings, Settings

if TYPE_CHECKING:
    from everswarm.server.gateway.quota import Quota, QuotaState

OPERATIONAL = "operational"
WITH_SERVER = "not started"  # the embedded engine, while no server runs


@dataclass(frozen=True)
class EndpointRow:
    """One endpoint, as the doctor found it."""

    name: str
    profile: str | None
    roles: tuple[str, ...]
    model: str
    base_url: str | None  # None: the embedded engine
    state: str  # a few words; the rest is in `problem`
    problem: str  # empty: it can answer
    reachable: bool | None  # None: not asked
    model_served: bool | None
    latency_ms: float | None  # of the probe, connecting included
    limits: tuple[LimitView, ...] = ()
    closed_until: str | None = None
    quota_problem: str = ""  # why its quota cannot be read

    @property
    def can_answer(self) -> bool:
        """Whether a request now has a chance."""
        return not self.problem


class Subject(NamedTuple):
    """An entry of the table, and what to ask it with."""

    entry: EndpointSettings
    credential: str | None
    problem: str  # why there is no credential

    @property
    def address(self) -> tuple[str, str | None]:
        """What is asked; several entries may have one."""
        return self.entry.base_url, self.credential

    @property
    def may_be_asked(self) -> bool:
        """Whether a probe makes sense."""
        return bool(self.entry.base_url) and not self.problem


class Found(NamedTuple):
    """What a probe brought."""

    served: Sequence[str] = ()
    error: str = ""
    latency_ms: float = 0.0


def inspect_endpoints(settings: Settings, engine_states: Mapping[str, str]) -> list[EndpointRow]:
    """Probe every endpoint of the table, side by side, and read the quotas; costs no tokens.

    Args:
        settings: of this machine.
        engine_states: by name, what the running server says of its endpoints; empty where none runs.

    Raises:
        ConfigurationError: the table cannot be used.
    """
    from everswarm.server.gateway.profiles import expand

    subjects = [_subject(entry) for entry in expand(settings)]
    return asyncio.run(_inspect(settings, subjects, engine_states))


async def _inspect(
    settings: Settings, subjects: Sequence[Subject], engine_states: Mapping[str, str]
) -> list[EndpointRow]:
    asked = {subject.address: subject for subject in subjects if subject.may_be_asked}  # each address once
    found, quotas = await asyncio.gather(asyncio.gather(*map(_probe, asked.values())), _quotas(settings, subjects))
    by_address = dict(zip(asked, found, strict=True))
    rows = []
    for subject, quota in zip(subjects, quotas, strict=True):
        entry = subject.entry
        if not entry.base_url:
            row = _engine_row(entry, engine_states.get(entry.name))
        elif subject.problem:
            row = _row(entry, state="no credential", problem=subject.problem)
        else:
            row = _remote_row(entry, by_address[subject.address])
        rows.append(_with_quota(row, quota))
    return rows


def _subject(entry: EndpointSettings) -> Subject:
    from everswarm.server.gateway.endpoints import credential_of

    try:
        return Subject(entry, credential_of(entry), "")
    except ConfigurationError as error:
        said = str(error).removeprefix(f"The endpoint '{entry.name}' ")  # the row names it
        return Subject(entry, None, _sentence(said))


async def _probe(subject: Subject) -> Found:
    from everswarm.server.gateway.endpoints import remote_client

    client = remote_client(subject.entry, subject.credential)
    began = time.perf_counter()
    try:
        served = await client.probe()
        return Found(served, "", round((time.perf_counter() - began) * 1000, 1))
    except EverswarmError as error:
        return Found((), str(error).removeprefix(f"the endpoint '{subject.entry.name}' "))
    finally:
        await client.close()


def _remote_row(entry: EndpointSettings, found: Found) -> EndpointRow:
    from everswarm.server.gateway.serving import serving

    if found.error:
        is_refused = "credential" in found.error
        hint = "" if is_refused else f" Start it, or mend its base_url, {entry.base_url}."
        state = "refuses us" if is_refused else "does not answer"
        return _row(entry, state=state, problem=_sentence(found.error) + hint, reachable=is_refused)
    judged = serving(entry, found.served)
    return _row(
        entry,
        model=judged.model,
        state=OPERATIONAL if judged.is_served else "lacks the model",
        problem="" if judged.is_served else _sentence(judged.problem),
        reachable=True,
        model_served=judged.is_served,
        latency_ms=found.latency_ms,
    )


def _engine_row(entry: EndpointSettings, running: str | None) -> EndpointRow:
    from everswarm.llm.pull import KNOWN_MODELS

    if running is not None:
        is_up = running == OPERATIONAL
        state = OPERATIONAL if is_up else "starting" if running.startswith("starting") else "does not answer"
        return _row(
            entry, state=state, problem="" if is_up else _sentence(running), reachable=is_up, model_served=is_up
        )
    if importlib.util.find_spec("xllamacpp") is None:
        problem = "The engine is not installed. Run: pip install 'everswarm[engine]', or set an endpoint elsewhere."
        return _row(entry, state="not installed", problem=problem)
    if entry.model not in KNOWN_MODELS:
        known = ", ".join(KNOWN_MODELS)
        return _row(entry, state="no such model", problem=f"The engine has no '{entry.model}'. Set model to {known}.")
    return _row(entry, state=WITH_SERVER, problem="")


def _row(
    entry: EndpointSettings,
    *,
    state: str,
    problem: str,
    model: str = "",
    reachable: bool | None = None,
    model_served: bool | None = None,
    latency_ms: float | None = None,
) -> EndpointRow:
    return EndpointRow(
        name=entry.name,
        profile=entry.profile,
        roles=tuple(entry.roles),
        model=model or entry.model,
        base_url=entry.base_url or None,
        state=state,
        problem=problem,
        reachable=reachable,
        model_served=model_served,
        latency_ms=latency_ms,
    )


async def _quotas(settings: Settings, subjects: Sequence[Subject]) -> list[QuotaState | str | None]:
    """Return for each what is used of its quota, None where it has none, or why it cannot be read."""
    from everswarm.server.gateway.limits import quota_of

    share = settings.gateway.interactive_share
    quotas = [quota_of(subject.entry, subject.credential, interactive_share=share) for subject in subjects]
    try:
        return list(await _read(settings, quotas))
    except EverswarmError as error:
        return [None if quota is None else str(error) for quota in quotas]


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


def _with_quota(row: EndpointRow, state: QuotaState | str | None) -> EndpointRow:
    if state is None:
        return row
    if isinstance(state, str):
        return replace(row, quota_problem=state)
    if state.closed_until is None:
        return replace(row, limits=state.limits)
    until = f"{state.closed_until:%Y-%m-%d %H:%M} UTC"
    closed = replace(row, limits=state.limits, closed_until=until)
    if row.problem:
        return closed
    return replace(closed, state="closed", problem=f"Closed until {until}. {state.closed_reason}")


def _sentence(text: str) -> str:
    """Return `text` as a sentence of its own."""
    return text[:1].upper() + text[1:].rstrip(".") + "."
