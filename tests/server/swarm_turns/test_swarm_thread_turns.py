"""Threads over HTTP: what is said again, made short, forgotten."""

from __future__ import annotations

import json

import httpx
import pytest
from sqlalchemy import select
from tests.fakes.upstream import Behaviour
from tests.flow.served_gateway import until
from tests.server.swarm_turns.asking import (
    ANSWER,
    MULTIPLY,
    calling,
    chat,
    events_of,
    get,
    leave_when,
    purposes,
    statuses,
    stored,
    thread,
    trace,
    trace_of,
    user_key,
)

from everswarm.schemas.server import Scope
from everswarm.server.auth import create_key
from everswarm.server.database import Database
from everswarm.server.feedback.tables import interactions


def test_thread_goes_on_with_what_was_said_before(server, upstream):
    first = chat(server, "capital of France?", headers=thread("new"))
    name = first.headers["X-Everswarm-Thread"]
    second = chat(server, "And of Spain?", headers=thread(name))
    assert second.headers["X-Everswarm-Thread"] == name
    conversation = [
        {"role": "user", "content": "capital of France?"},
        {"role": "assistant", "content": ANSWER},
        {"role": "user", "content": "And of Spain?"},
    ]
    assert upstream.requests[-1]["messages"] == conversation
    rows = until(lambda: found if len(found := stored(server)) == 2 else None)
    assert {row.id: row.messages for row in rows}[second.headers["X-Interaction-Id"]] == conversation
    shown = get(server, f"/api/threads/{name}").json()
    assert [turn["content"] for turn in shown["messages"]] == ["capital of France?", ANSWER, "And of Spain?", ANSWER]
    assert shown["messages"][1]["interaction_id"] == first.headers["X-Interaction-Id"]
    assert get(server, "/api/threads").json()[0]["title"] == "capital of France?"


def test_streamed_answer_is_in_the_thread_when_its_stream_ends(server, upstream):
    with server.http() as http:
        body = {"messages": [{"role": "user", "content": "capital of France?"}], "stream": True}
        with http.stream("POST", "/v1/chat/completions", json=body, headers=thread("new")) as response:
            name = response.headers["X-Everswarm-Thread"]
            list(response.iter_bytes())
    chat(server, "And of Spain?", headers=thread(name)).raise_for_status()
    assert [message["content"] for message in upstream.requests[-1]["messages"]] == [
        "capital of France?",
        ANSWER,
        "And of Spain?",
    ]


def test_sum_in_a_thread_is_remembered(server, upstream):
    name = chat(server, "What is 37*48+5?", headers=thread("new")).headers["X-Everswarm-Thread"]
    chat(server, "Tell me something about that number", headers=thread(name)).raise_for_status()
    assert [message["content"] for message in upstream.requests[-1]["messages"]][:2] == [
        "What is 37*48+5?",
        "37*48+5 = 1781",
    ]


def test_thread_of_another_user_is_not_found(server, upstream):
    bob, eve = user_key(server, "bob"), user_key(server, "eve")
    name = chat(server, "My secret", key=bob, headers=thread("new")).headers["X-Everswarm-Thread"]
    asked = len(upstream.requests)
    response = chat(server, "What did I say?", key=eve, headers=thread(name))
    assert response.status_code == 404
    assert get(server, f"/api/threads/{name}/export", key=eve).status_code == 404
    assert get(server, "/api/threads", key=eve).json() == []
    assert len(upstream.requests) == asked
    assert chat(server, "Hi there", headers=thread("mine")).status_code == 422


def test_long_thread_is_made_short_by_a_summary_which_the_trace_shows(serve, upstream):
    server = serve(roles={"primary": {"context_tokens": 1024}})
    name = chat(server, "capital of France?", headers=thread("new")).headers["X-Everswarm-Thread"]
    for number in range(3):
        chat(
            server, f"Story {number}: " + "sand and sea " * 70, headers=thread(name), max_tokens=100
        ).raise_for_status()
    before = len(upstream.requests)
    upstream.script.append(Behaviour(answer="They told stories about sand and asked for the capital of France. " * 2))
    options = {"max_tokens": 100, "stream": True}
    response = chat(server, "Story 4: " + "wind and sea " * 70, headers=thread(name), **options)
    told = trace_of(server, response)
    assert purposes(told) == ["compact", "answer"]
    assert statuses(events_of(response)) == ["the conversation is made short"]
    summed, answered = upstream.requests[before:]
    assert "Write the summary" in summed["messages"][-1]["content"]
    assert "They told stories about sand" in answered["messages"][0]["content"]
    assert answered["messages"][-1]["content"].startswith("Story 4:")
    assert any("are in a summary" in note for note in told["notes"])
    assert len(get(server, f"/api/threads/{name}").json()["messages"]) == 10, "nothing is lost"


def test_reader_who_leaves_while_a_thread_is_summed_up_leaves_a_trace(serve, upstream):
    server = serve(roles={"primary": {"context_tokens": 1024}})
    name = chat(server, "capital of France?", headers=thread("new")).headers["X-Everswarm-Thread"]
    for number in range(3):
        chat(
            server, f"Story {number}: " + "sand and sea " * 70, headers=thread(name), max_tokens=100
        ).raise_for_status()
    before = len(upstream.requests)
    upstream.behaviour = Behaviour(first_byte_seconds=600)
    leave_when(
        server,
        lambda: len(upstream.requests) > before,
        "Story 4: " + "wind and sea " * 70,
        headers=thread(name),
        max_tokens=100,
    )
    (cut,) = until(lambda: [row for row in stored(server) if row.state == "cut"], what="the interaction")
    assert [(step["purpose"], step["outcome"]) for step in trace(server, cut.id)["steps"]] == [("compact", "cut")]


def test_prompt_of_the_role_leaves_less_room_for_a_thread(serve, upstream):
    server = serve(roles={"primary": {"context_tokens": 1024, "system_prompt": "Be very kind. " * 100}})
    name = chat(server, "capital of France?", headers=thread("new")).headers["X-Everswarm-Thread"]
    upstream.behaviour = Behaviour(answer="Sand and more sand. " * 20)
    story = "Tell a story about " + "sand and sea " * 50
    told = [trace_of(server, chat(server, story, headers=thread(name), max_tokens=100)) for _ in range(2)]
    assert [purposes(one) for one in told] == [["answer"], ["compact", "answer"]]


def test_question_that_is_too_long_for_any_thread_says_so(serve, upstream):
    server = serve(roles={"primary": {"context_tokens": 1024}})
    response = chat(server, "word " * 3000, headers=thread("new"))
    assert response.status_code == 422
    assert "Shorten the question" in response.text
    assert upstream.requests == []


def test_new_thread_whose_first_answer_is_stopped_goes_on(server, upstream):
    upstream.behaviour = Behaviour(repeat_forever=True, delay_seconds=0.01)
    body = {"messages": [{"role": "user", "content": "capital of France?"}], "stream": True}
    with server.http() as http, http.stream("POST", "/v1/chat/completions", json=body, headers=thread("new")) as answer:
        name = answer.headers["X-Everswarm-Thread"]
        next(answer.iter_text())
    assert upstream.reader_left.wait(30)
    upstream.behaviour = Behaviour()
    chat(server, "And of Spain?", headers=thread(name)).raise_for_status()
    assert len(get(server, f"/api/threads/{name}").json()["messages"]) == 2


@pytest.mark.parametrize("stream", [False, True])
def test_failed_question_leaves_no_empty_thread(server, upstream, stream):
    upstream.behaviour = Behaviour(status=400)
    assert chat(server, "capital of France?", headers=thread("new"), stream=stream).status_code == 422
    assert get(server, "/api/threads").json() == []


@pytest.mark.parametrize("stream", [False, True])
def test_failed_answer_adds_nothing_to_its_thread(server, upstream, stream):
    name = chat(server, "capital of France?", headers=thread("new")).headers["X-Everswarm-Thread"]
    upstream.behaviour = Behaviour(cut_after_pieces=2) if stream else Behaviour(status=400)
    chat(server, "And of Spain?", headers=thread(name), stream=stream)
    upstream.behaviour = Behaviour()
    assert len(get(server, f"/api/threads/{name}").json()["messages"]) == 2
    chat(server, "And of Italy?", headers=thread(name)).raise_for_status()
    assert [message["content"] for message in upstream.requests[-1]["messages"]][2:] == ["And of Italy?"]


def test_call_of_the_clients_own_tool_is_no_turn_until_it_is_answered(server, upstream):
    upstream.script.append(calling("multiply", {}))
    first = chat(server, "How much is it?", headers=thread("new"), tools=[MULTIPLY])
    turn = first.raise_for_status().json()["choices"][0]["message"]
    assert "X-Everswarm-Thread" not in first.headers, "nothing was said in it yet"
    messages = [
        {"role": "user", "content": "How much is it?"},
        turn,
        {"role": "tool", "tool_call_id": "call_1", "content": "42"},
    ]
    second = chat(server, "", headers=thread("new"), tools=[MULTIPLY], messages=messages)
    assert upstream.requests[-1]["messages"] == messages
    shown = get(server, f"/api/threads/{second.headers['X-Everswarm-Thread']}").json()["messages"]
    assert [turn["content"] for turn in shown] == ["How much is it?", ANSWER]


def test_thread_that_is_deleted_in_the_middle_of_an_answer_stays_deleted(server, upstream):
    name = chat(server, "capital of France?", headers=thread("new")).headers["X-Everswarm-Thread"]
    upstream.behaviour = Behaviour(delay_seconds=0.05)
    with server.http() as http:
        body = {"messages": [{"role": "user", "content": "And of Spain?"}], "stream": True}
        with http.stream("POST", "/v1/chat/completions", json=body, headers=thread(name)) as response:
            parts = response.iter_text()
            text = next(parts)
            assert http.delete(f"/api/threads/{name}").status_code == 204
            text += "".join(parts)
        assert text.endswith("data: [DONE]\n\n")
        assert http.get(f"/api/threads/{name}").status_code == 404
    assert chat(server, "And of Italy?", headers=thread(name)).status_code == 404


def test_thread_is_exported_as_it_was_said(server):
    name = chat(server, "capital of France?", headers=thread("new")).headers["X-Everswarm-Thread"]
    lines = get(server, f"/api/threads/{name}/export?format=jsonl").raise_for_status().text
    said_there = json.loads(lines.splitlines()[0])["messages"]
    assert [turn["content"] for turn in said_there] == ["capital of France?", ANSWER]
    assert ANSWER in get(server, f"/api/threads/{name}/export?format=markdown").raise_for_status().text


def delete(server, name: str, *, key: str | None = None, **params: str) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key or server.key}"}
    return httpx.delete(f"{server.url}/api/threads/{name}", headers=headers, params=params, timeout=30)


@pytest.mark.parametrize("state", ["cut", "failed"])
def test_deleted_thread_leaves_nothing_of_what_was_asked_and_not_answered(server, upstream, state):
    name = chat(server, "My secret is xyzzy", headers=thread("new")).headers["X-Everswarm-Thread"]
    before = len(upstream.requests)
    if state == "cut":
        upstream.behaviour = Behaviour(first_byte_seconds=600)
        leave_when(server, lambda: len(upstream.requests) > before, "And now?", headers=thread(name))
    else:
        upstream.behaviour = Behaviour(status=400)
        chat(server, "And now?", headers=thread(name))
    until(lambda: sorted(row.state for row in stored(server)) == sorted(["complete", state]), what="the interactions")
    assert delete(server, name).status_code == 204
    assert stored(server) == []


def test_answer_that_comes_after_its_thread_was_deleted_leaves_nothing(server, upstream):
    name = chat(server, "My secret is xyzzy", headers=thread("new")).headers["X-Everswarm-Thread"]
    upstream.behaviour = Behaviour(delay_seconds=0.05)
    body = {"messages": [{"role": "user", "content": "And now?"}], "stream": True}
    with server.http() as http, http.stream("POST", "/v1/chat/completions", json=body, headers=thread(name)) as answer:
        parts = answer.iter_text()
        next(parts)
        assert delete(server, name).status_code == 204
        list(parts)
    assert stored(server) == []


def test_reader_who_leaves_after_the_thread_was_deleted_leaves_nothing(server, upstream):
    name = chat(server, "My secret is xyzzy", headers=thread("new")).headers["X-Everswarm-Thread"]
    upstream.behaviour = Behaviour(repeat_forever=True, delay_seconds=0.01)
    body = {"messages": [{"role": "user", "content": "And now?"}], "stream": True}
    with server.http() as http, http.stream("POST", "/v1/chat/completions", json=body, headers=thread(name)) as answer:
        next(answer.iter_text())
        assert delete(server, name).status_code == 204
        assert stored(server) == []
    assert upstream.reader_left.wait(30)
    server.stop()  # which waits for what is still to be stored and forgotten
    opened = Database(server.app.state.database.url)
    with opened.read() as connection:
        assert connection.execute(select(interactions)).all() == []
    opened.close()


def test_failed_first_question_of_a_stream_keeps_its_trace_though_not_its_thread(server, upstream):
    upstream.behaviour = Behaviour(status=400)
    chat(server, "capital of France?", headers=thread("new"), stream=True)
    (failed,) = until(lambda: stored(server), what="the interaction")
    assert failed.state == "failed"
    assert get(server, "/api/threads").json() == []


def test_application_shows_and_deletes_the_threads_of_its_people(server, upstream):
    key = create_key(server.app.state.database, scope=Scope.ADMIN, label="app").key
    name = chat(server, "My secret", key=key, user="Ann Å", headers=thread("new")).headers["X-Everswarm-Thread"]
    assert get(server, "/api/threads", key=key).json() == []
    assert [found["id"] for found in get(server, "/api/threads?user=Ann%20%C3%85", key=key).json()] == [name]
    assert delete(server, name, key=key).status_code == 404
    assert delete(server, name, key=key, user="Ann Å").status_code == 204
    assert stored(server) == []
