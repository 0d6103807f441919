"""The endpoint table, live: who answers, whether the model is served, how quickly, and what is left of the quota."""

from __future__ import annotations

import asyncio
import importlib.util
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

import httpx

from everswarm.cli.doctor_quotas import answer_too_long, read_quotas
from everswarm.cli.doctor_server import ANSWER_SECONDS, RunningServer, is_same
from everswarm.client.loopback import is_loopback
from everswarm.errors import ConfigurationError, EverswarmError
from everswarm.schemas.gateway import LimitView, QuotaView
from everswarm.settings import EndpointSettings, Settings

if TYPE_CHECKING:
    from everswarm.server.gateway.quota import Quota, QuotaState

OPERATIONAL = "operational"
UNVERIFIED = "unverified"  # it answers, and does not say what it serves
NO_CREDENTIAL = "no credential"
WITH_SERVER = "not started"  # the embedded engine, while no server runs


@dataclass(frozen=True)
class EndpointRow:
    """One endpoint, as the doctor found it; where a server runs, as that one uses it."""

    name: str
    profile: str | None
    roles: tuple[str, ...]
    model: str
    base_url: str | None  # None: the embedded engine, or known to the running server alone
    state: str  # a few words; the rest is in `problem`
    problem: str  # empty: it can answer
    reachable: bool | None  # None: not asked
    model_served: bool | None  # None: not known
    latency_ms: float | None  # of the probe, connecting included
    limits: tuple[LimitView, ...] = ()
    closed_until: str | None = None
    quota_problem: str = ""  # why its quota cannot be read
    warnings: tuple[str, ...] = ()  # worth knowing, and it can answer

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
    unreadable: str = ""  # what stands in the place of the list of models


def inspect_endpoints(settings: Settings, running: RunningServer | None) -> list[EndpointRow]:
    """Probe the endpoints, side by side, and read the quotas; costs no tokens.

    Args:
        settings: of this machine.
        running: the server on this home. Its endpoints are shown, and only those of them that these settings have too
            are probed: of the others it does not tell the address.

    Raises:
        ConfigurationError: the table cannot be used.
    """
    from everswarm.server.gateway.profiles import expand

    entries = expand(settings)
    if running is None:
        return asyncio.run(_inspect(settings, [_subject(entry) for entry in entries]))
    used = [entry for entry in entries if any(is_same(entry, view) for view in running.endpoints)]
    rows = {row.name: row for row in asyncio.run(_inspect(settings, [_subject(entry) for entry in used]))}
    return [_as_server_says(rows.get(view.endpoint), view) for view in running.endpoints]


async def _inspect(settings: Settings, subjects: Sequence[Subject]) -> list[EndpointRow]:
    asked = {subject.address: subject for subject in subjects if subject.may_be_asked}  # each address once
    quotas = [_quota_of(subject, settings) for subject in subjects]
    found, states = await asyncio.gather(asyncio.gather(*map(_probe, asked.values())), read_quotas(settings, quotas))
    by_address = dict(zip(asked, found, strict=True))
    rows = []
    for subject, quota, state in zip(subjects, quotas, states, strict=True):
        entry = subject.entry
        if not entry.base_url:
            row = _engine_row(entry)
        elif subject.problem:
            row = _row(entry, state=NO_CREDENTIAL, problem=subject.problem)
        else:
            row = _remote_row(entry, by_address[subject.address])
        if warning := answer_too_long(entry, quota):
            row = replace(row, warnings=(*row.warnings, warning))
        rows.append(_with_quota(row, state))
    return rows


def _subject(entry: EndpointSettings) -> Subject:
    from everswarm.server.gateway.endpoints import credential_of

    try:
        return Subject(entry, credential_of(entry), "")
    except ConfigurationError as error:
        return Subject(entry, None, _sentence(_without_name(str(error), entry.name)))


def _quota_of(subject: Subject, settings: Settings) -> Quota | None:
    from everswarm.server.gateway.limits import quota_of

    if subject.problem:  # each credential has a quota of its own
        return None
    return quota_of(subject.entry, subject.credential, interactive_share=settings.gateway.interactive_share)


async def _probe(subject: Subject) -> Found:
    from everswarm.server.gateway.endpoints import remote_client

    client = remote_client(subject.entry, subject.credential)
    began = time.perf_counter()
    try:
        served = await client.probe()
        latency_ms = round((time.perf_counter() - began) * 1000, 1)
        return Found(served, "", latency_ms, "" if served else await _unreadable(subject))
    except EverswarmError as error:
        return Found((), _without_name(str(error), subject.entry.name))
    finally:
        await client.close()


async def _unreadable(subject: Subject) -> str:
    """Look again where no model was listed: an empty list is one, and a web page is none."""
    from everswarm.server.gateway.serving import unreadable

    base_url, credential = subject.address
    async with httpx.AsyncClient(
        headers={"Authorization": f"Bearer {credential}"} if credential else {},
        timeout=ANSWER_SECONDS,
        follow_redirects=True,
        trust_env=not is_loopback(base_url),
    ) as http:
        try:
            response = await http.get(f"{base_url}/models")
        except httpx.HTTPError as error:
            return f"/models cannot be read ({type(error).__name__})"
    return unreadable(response.status_code, response.content)


def _remote_row(entry: EndpointSettings, found: Found) -> EndpointRow:
    from everswarm.server.gateway.serving import serving

    if found.error:
        is_refused = "credential" in found.error
        hint = "" if is_refused else f" Start it, or mend its base_url, {entry.base_url}."
        problem = _sentence(found.error) + hint
        return _row(entry, state=_label(found.error), problem=problem, reachable=is_refused)
    judged = serving(entry, found.served)
    row = _row(
        entry,
        model=judged.model,
        state=OPERATIONAL if judged.is_served else "lacks the model",
        problem="" if judged.is_served else _sentence(judged.problem),
        reachable=True,
        model_served=judged.is_served,
        latency_ms=found.latency_ms,
    )
    if not found.unreadable:
        return row
    said = f"Unverified: {found.unreadable}"
    if judged.is_served:
        return replace(row, state=UNVERIFIED, model_served=None, warnings=(said,))
    return replace(row, state=UNVERIFIED, model_served=None, problem=said if entry.model else f"{said} {row.problem}")


def _engine_row(entry: EndpointSettings) -> EndpointRow:
    from everswarm.llm.pull import KNOWN_MODELS

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


def _with_quota(row: EndpointRow, state: QuotaState | str | None) -> EndpointRow:
    if state is None:
        return row
    if isinstance(state, str):
        return replace(row, quota_problem=state)
    row = replace(row, limits=state.limits)
    return row if state.closed_until is None else _closed(row, state.closed_until, state.closed_reason)


def _closed(row: EndpointRow, closed_until: datetime, reason: str | None) -> EndpointRow:
    until = f"{closed_until:%Y-%m-%d %H:%M} UTC"
    if row.problem:
        return replace(row, closed_until=until)
    said = f"Closed until {until}. {_sentence(_without_name(reason or '', row.name))}"
    return replace(row, closed_until=until, state="closed", problem=said)


def _as_server_says(row: EndpointRow | None, view: QuotaView) -> EndpointRow:
    """Return what is true of an endpoint for the running server.

    Args:
        row: as it was found from here; None where these settings do not have it.
        view: as the server has it.
    """
    if row is None or row.base_url is None or row.state == NO_CREDENTIAL:  # the server alone has asked it
        return _known_from_server(row, view)
    if view.model:
        row = replace(row, limits=tuple(view.limits), quota_problem="")
    if view.closed_until is not None:
        return _closed(row, view.closed_until, view.closed_reason)
    if view.state == OPERATIONAL or row.problem:  # what was found just now says more
        return row
    return replace(row, state=_label(view.state), problem=_said_by_server(view))


def _known_from_server(row: EndpointRow | None, view: QuotaView) -> EndpointRow:
    is_up = view.state == OPERATIONAL
    told = EndpointRow(
        name=view.endpoint,
        profile=row.profile if row else None,
        roles=tuple(view.roles) or (row.roles if row else ()),
        model=view.model or (row.model if row else ""),
        base_url=row.base_url if row else None,
        state=_label(view.state),
        problem="",
        reachable=is_up,
        model_served=is_up or None,
        latency_ms=None,
        limits=tuple(view.limits),
        warnings=row.warnings if row else (),
    )
    if view.closed_until is not None:
        return _closed(told, view.closed_until, view.closed_reason)
    return told if is_up else replace(told, problem=_said_by_server(view))


def _said_by_server(view: QuotaView) -> str:
    return f"The server says: {_without_name(view.state, view.endpoint).rstrip('.')}."


def _label(state: str) -> str:
    """Return a state in the few words that a table has room for."""
    first = state.partition(" ")[0].rstrip(":")
    if first in (OPERATIONAL, "starting", "closed"):
        return first
    if "credential" in state:
        return "refuses us"
    return "lacks the model" if state.startswith(("does not serve", "does not say")) else "does not answer"


def _without_name(text: str, name: str) -> str:
    """Return `text` without the endpoint's name at its beginning: the row has it."""
    return text.removeprefix(f"The endpoint '{name}' ").removeprefix(f"the endpoint '{name}' ")


def _sentence(text: str) -> str:
    """Return `text` as a sentence of its own."""
    return text[:1].upper() + text[1:].rstrip(".") + "."
