"""The server that runs on this home: where it is, how it is, and which endpoints it uses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import TypeAdapter

from everswarm.client import EverswarmClient
from everswarm.errors import EverswarmError
from everswarm.schemas.gateway import QuotaView
from everswarm.schemas.server import Health
from everswarm.settings import EndpointSettings, Settings

ANSWER_SECONDS = 3.0


@dataclass(frozen=True)
class RunningServer:
    """Our server on this home."""

    url: str
    health: Health
    endpoints: tuple[QuotaView, ...]  # where there is a problem: with their names and states alone
    problem: str = ""  # why it does not tell more of its endpoints


def running_server(settings: Settings) -> RunningServer | None:
    """Return the server that runs on this home, if one answers."""
    try:
        url = str(json.loads((settings.home / "server.json").read_text(encoding="utf-8"))["url"])
        with EverswarmClient(url, timeout_seconds=ANSWER_SECONDS) as client:
            health = client.health()
    except (OSError, ValueError, KeyError, TypeError, EverswarmError):
        return None
    try:
        return _known_with_key(settings, url)
    except (OSError, ValueError, EverswarmError) as error:
        views = tuple(_known_by_name(name, state) for name, state in health.endpoints.items())
        return RunningServer(url, health, views, problem=str(error))


def is_same(entry: EndpointSettings, view: QuotaView) -> bool:
    """Whether a complete entry of the table here is the endpoint that the server has, as far as that can be told."""
    if entry.name != view.endpoint or not view.model:
        return entry.name == view.endpoint
    return set(entry.roles) == set(view.roles) and entry.model in ("", view.model)


def uses_others(running: RunningServer, entries: Sequence[EndpointSettings]) -> bool:
    """Whether the server has other endpoints than the complete table here."""
    views = {view.endpoint: view for view in running.endpoints}
    return len(views) != len(entries) or not all(
        entry.name in views and is_same(entry, views[entry.name]) for entry in entries
    )


def _known_with_key(settings: Settings, url: str) -> RunningServer:
    key = (settings.home / "cli.key").read_text(encoding="utf-8").strip()
    with EverswarmClient(url, key, timeout_seconds=ANSWER_SECONDS) as client:
        views = TypeAdapter(list[QuotaView]).validate_python(client.request("GET", "/api/quotas"))
        return RunningServer(url, client.health(), tuple(views))


def _known_by_name(name: str, state: str) -> QuotaView:
    return QuotaView(
        endpoint=name,
        model="",
        roles=[],
        state=state,
        limits=[],
        closed_until=None,
        closed_reason=None,
        latency_seconds=None,
        running=0,
    )
