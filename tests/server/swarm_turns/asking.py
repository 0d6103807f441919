"""Questions, and how they are asked and looked at over HTTP."""

from __future__ import annotations

import http.client
import json
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from sqlalchemy import select
from tests.fakes.upstream import Behaviour, FakeUpstream
from tests.flow.served_gateway import until

from everswarm.schemas.server import Scope
from everswarm.server.auth import create_key
from everswarm.server.feedback.tables import interactions
from everswarm.settings import EndpointSettings

ANSWER = "The capital of France is Paris."
APPLES = "Tom has 3 apples and buys 4 more. How many apples does he have?"
ODD = "Напиши, пожалуйста, длинное стихотворение о море"  # the rules cannot read it
LISTED = "Please do all of this:\n1. Name a river of France.\n2. Name a river of Spain."
WEATHER = "What is the current weather and temperature in the city of Oslo?"
TOOL_SERVER = Path(__file__).parents[2] / "fakes" / "mcp_server.py"
MULTIPLY = {"type": "function", "function": {"name": "multiply", "parameters": {"type": "object", "properties": {}}}}


def endpoint(upstream: FakeUpstream, name: str, **options) -> EndpointSettings:
    options = {"model": "org/model", "timeout_seconds": 30, **options}
    return EndpointSettings(name=name, base_url=upstream.base_url, **options)


def chat(server, text: str, *, key: str | None = None, headers: dict | None = None, **fields) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": text}], **fields}
    headers = {"Authorization": f"Bearer {key or server.key}", **(headers or {})}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=headers, timeout=60)


def said(response: httpx.Response) -> str:
    return response.raise_for_status().json()["choices"][0]["message"]["content"]


def events_of(response: httpx.Response) -> list[str]:
    """Return the events and comments of a stream, as they came."""
    return [event for event in response.raise_for_status().text.split("\n\n") if event]


def statuses(events: list[str]) -> list[str]:
    start = ": everswarm "
    return [json.loads(event.removeprefix(start))["status"] for event in events if event.startswith(start)]


def strategy(name: str) -> dict[str, str]:
    return {"X-Everswarm-Strategy": name}


def thread(name: str) -> dict[str, str]:
    return {"X-Everswarm-Thread": name}


def user_key(server, label: str = "bob") -> str:
    return create_key(server.app.state.database, scope=Scope.USER, label=label).key


def get(server, path: str, *, key: str | None = None) -> httpx.Response:
    return httpx.get(f"{server.url}{path}", headers={"Authorization": f"Bearer {key or server.key}"}, timeout=30)


def trace_of(server, response: httpx.Response) -> dict:
    return trace(server, response.headers["X-Interaction-Id"])


def trace(server, interaction_id: str) -> dict:
    path = f"/api/interactions/{interaction_id}/trace"
    found = until(lambda: answer if (answer := get(server, path)).status_code == 200 else None, what="the trace")
    return found.json()


def stored(server, table=interactions):
    with server.app.state.database.read() as connection:
        return connection.execute(select(table)).all()


def purposes(told: dict) -> list[str]:
    return [step["purpose"] for step in told["steps"]]


def leave_when(server, condition, text: str, *, headers: dict | None = None, **fields) -> None:
    """Ask, and close the connection once `condition` is true."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
    body = json.dumps({"messages": [{"role": "user", "content": text}], **fields})
    headers = {"Authorization": f"Bearer {server.key}", "Content-Type": "application/json", **(headers or {})}
    connection.request("POST", "/v1/chat/completions", body=body, headers=headers)
    until(condition, what="the call upstream")
    connection.close()


def calling(name: str, arguments: dict) -> Behaviour:
    """Answer with a call of a tool."""
    call = {"id": "call_1", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    answer = {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "org/model",
        "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    }
    return Behaviour(body=json.dumps(answer).encode(), headers={"Content-Type": "application/json"})
