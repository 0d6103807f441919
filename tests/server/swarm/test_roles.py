"""What a role adds to a request."""

from __future__ import annotations

from typing import Any

import pytest

from everswarm.server.swarm.roles import with_role, with_system
from everswarm.settings import RoleSettings

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}]}


def test_request_for_no_role_or_a_plain_one_stays_the_same_object() -> None:
    assert with_role(ASK, None) is ASK
    assert with_role(ASK, RoleSettings()) is ASK


def test_sampling_of_the_role_is_used_where_the_request_has_none() -> None:
    role = RoleSettings(temperature=0.2, top_p=0.9)
    assert with_role(ASK, role) == {**ASK, "temperature": 0.2, "top_p": 0.9}
    asked = {**ASK, "temperature": 0, "top_p": 1}
    assert with_role(asked, role) == asked


def test_system_prompt_of_the_role_stands_before_that_of_the_request_in_one_message() -> None:
    asked = {"messages": [{"role": "system", "content": "Be short."}, *ASK["messages"]]}
    shown = with_role(asked, RoleSettings(system_prompt="You are kind."))["messages"]
    assert shown == [{"role": "system", "content": "You are kind.\n\nBe short."}, *ASK["messages"]]
    assert asked["messages"][0]["content"] == "Be short."


@pytest.mark.parametrize(
    ("first", "shown"),
    [
        ({"role": "user", "content": "x"}, {"role": "system", "content": "s"}),
        ({"role": "system", "content": ""}, {"role": "system", "content": "s"}),
        ({"role": "system", "content": None}, {"role": "system", "content": "s"}),
        ({"role": "developer", "content": "d"}, {"role": "developer", "content": "s\n\nd"}),
        (
            {"role": "system", "content": [{"type": "text", "text": "d"}]},
            {"role": "system", "content": [{"type": "text", "text": "s"}, {"type": "text", "text": "d"}]},
        ),
    ],
)
def test_every_shape_of_a_system_prompt_is_kept(first: dict[str, Any], shown: dict[str, Any]) -> None:
    assert with_system([first], "s")[0] == shown
