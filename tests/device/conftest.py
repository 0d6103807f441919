from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.fakes.device_server import KEY, DeviceServer

from everswarm.device.journal import Interaction, now, open_journal, remember
from everswarm.device.state import DeviceHome
from everswarm.device.sync import enroll
from everswarm.identifiers import new_id
from everswarm.schemas.interaction import Message


@pytest.fixture
def server() -> Iterator[DeviceServer]:
    with DeviceServer() as running:
        yield running


@pytest.fixture
def home(server: DeviceServer, tmp_path: Path) -> Path:
    """A device that was enrolled just now."""
    path = tmp_path / "device"
    enroll(path, server.url, key=KEY, name="phone")
    return path


@pytest.fixture
def answered(home: Path) -> Callable[..., str]:
    """Remember one interaction as `chat` does; gives its id."""

    def remember_one(question: str = "How many metres are 3 km?", response: str = "3000 m.") -> str:
        interaction = Interaction(
            id=new_id(),
            created_at=now(),
            model="org/tiny@v1.0",
            messages=[Message(role="user", content=question)],
            response=response,
        )
        with open_journal(DeviceHome(home).journal_path) as connection:
            remember(connection, interaction)
        return interaction.id

    return remember_one
