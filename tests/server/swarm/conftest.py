"""Swarms of scripted models."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.gullible_model import FORBIDDEN, GullibleModel, Sent
from tests.fakes.skilled_models import FakeSwarm
from tests.server.swarm.injection_lab import ALLOWED, PROMPTS, STEPS, Lab, LabServers
from tests.server.swarm.told_models import ROLES, Open

from everswarm.llm.protocol import ChatModel, Payload
from everswarm.server.database import Database
from everswarm.server.gateway import Gateway
from everswarm.server.gateway.endpoints import Endpoint
from everswarm.server.gateway.quota_store import open_quota_store
from everswarm.server.swarm import service
from everswarm.server.swarm.service import Swarm
from everswarm.settings import RoleSettings, Settings, SwarmSettings, ToolServerSettings


@pytest.fixture
def open_swarm(tmp_path: Path, database: Database) -> Open:
    def opened(
        models: Mapping[str, ChatModel], *, roles: Mapping[str, RoleSettings] = ROLES, **options: Any
    ) -> FakeSwarm:
        return FakeSwarm(tmp_path, database, models, roles=roles, **options)

    return opened


@pytest.fixture
def make_lab(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Lab]]:
    """Return a function that makes a lab; `draft` is what a role says instead of obeying."""
    gateways: list[Gateway] = []

    def make(*, draft: Callable[[Payload], str | None] | None = None, context_tokens: int = 4096) -> Lab:
        sent: list[Sent] = []
        models = {role: GullibleModel(role, sent, draft=draft) for role in PROMPTS}
        endpoints = [Endpoint(role, model=f"org/{role}", roles=[role], client=model) for role, model in models.items()]
        gateway = Gateway(endpoints, store=open_quota_store(home=tmp_path, database_url=None))
        gateways.append(gateway)
        good_at = {"coordinator": ["planning", "parts"], "specialist": ["code", "mathematics"]}
        roles = {
            role: RoleSettings(
                system_prompt=prompt,
                tools=ALLOWED,
                good_at=good_at.get(role, []),
                escalates_to="specialist" if role == "primary" else None,
                context_tokens=context_tokens,
            )
            for role, prompt in PROMPTS.items()
        }
        tools = {name: ToolServerSettings(command=["true"]) for name in ("lab", "vault")}
        settings = Settings(home=tmp_path, roles=roles, tools=tools, swarm=SwarmSettings(tool_steps=STEPS))
        lab = Lab(database, settings, gateway, models, sent)
        lab.servers = LabServers(
            {
                "lab": [lab.notes(), lab.forbidden(f"lab__{FORBIDDEN}", f"lab.{FORBIDDEN}")],
                "vault": [lab.forbidden(f"vault__{FORBIDDEN}", f"vault.{FORBIDDEN}")],
            }
        )
        monkeypatch.setattr(service, "ToolServers", lambda *_args, **_options: lab.servers)
        built_in = lab.forbidden(FORBIDDEN, FORBIDDEN)  # and on no list of these roles
        monkeypatch.setattr(service, "CALCULATOR", built_in)
        lab.swarm = Swarm(gateway, database, settings)
        return lab

    yield make
    for gateway in gateways:
        asyncio.run(gateway.close())
