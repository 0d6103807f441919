"""What `POST /api/cycles` says of teachers that cannot be used, and who may name any."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tests.fakes.local_server import LocalServer

from everswarm.client import EverswarmClient
from everswarm.errors import BadRequestError, ForbiddenError
from everswarm.schemas.server import Scope
from everswarm.server.app import create_app
from everswarm.server.auth import create_key


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    made = LocalServer(tmp_path_factory.mktemp("server"))
    made.start()
    yield made
    made.close()


@pytest.mark.parametrize(
    ("teachers", "told"),
    [
        ([], "teachers: List should have at least 1 item"),
        ("student", "teachers: Input should be a valid list"),
        ([{"source": "gguf"}], "teachers.0: Value error, a teacher of source 'gguf' needs a model"),
        ([{"source": "oracle"}], "teachers.0.source: Input should be 'student', 'weights', 'gguf', 'vllm' or"),
        ([{}, {"weigth": 2}], "teachers.1.weigth: Extra inputs are not permitted"),
        ([{"weight": 0}], "teachers.0.weight: Input should be greater than 0"),
        (
            [{"source": "vllm", "model": "org/m", "url": "http://ada:secret@127.0.0.1/v1"}],
            "teachers.0.url: should have no credential and no query in it",
        ),
    ],
)
def test_wrong_teacher_is_a_bad_request_that_names_its_place(server: LocalServer, teachers: Any, told: str) -> None:
    with server.client() as client, pytest.raises(BadRequestError) as caught:
        client.start_cycle({"teachers": teachers})
    assert told in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("scope", [Scope.USER, Scope.WORKER, Scope.DEVICE])
def test_only_an_administrator_names_files_and_servers_for_the_worker(server: LocalServer, scope: Scope) -> None:
    key = create_key(server.database, scope=scope, label="test").key
    with EverswarmClient(server.url, key) as client, pytest.raises(ForbiddenError):
        client.start_cycle({"teachers": [{"source": "weights", "model": "/etc"}]})


def test_api_docs_describe_teachers(server: LocalServer) -> None:
    schemas = create_app(server.settings).openapi()["components"]["schemas"]
    [teachers] = [part for name, part in schemas.items() if name.startswith("TeacherSettings")]
    assert set(teachers["properties"]["source"]["enum"]) == {"student", "weights", "gguf", "vllm", "endpoint"}
    parameters = next(part for name, part in schemas.items() if name.startswith("CycleParameters"))
    assert "TeacherSettings" in str(parameters["properties"]["teachers"])
