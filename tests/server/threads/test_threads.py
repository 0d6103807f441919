from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from fastapi.testclient import TestClient

from everswarm.errors import NotFoundError, TooLargeError
from everswarm.identifiers import new_id
from everswarm.schemas.interaction import FeedbackRequest
from everswarm.schemas.server import Scope
from everswarm.server.auth import Principal, create_key
from everswarm.server.database import Database
from everswarm.server.edge.problems import install_error_handlers
from everswarm.server.feedback import NewInteraction, record_feedback, record_interaction
from everswarm.server.feedback.service import State
from everswarm.server.feedback.tables import interactions
from everswarm.server.swarm.recording import Asker, Recording
from everswarm.server.threads import (
    NEW,
    History,
    append_turns,
    drop_empty_thread,
    forget_late_answer,
    keep_summary,
    open_thread,
    service,
)
from everswarm.server.threads.routes import router
from everswarm.server.threads.tables import thread_turns

ANN = Principal(key_id="019a0000-0000-7000-8000-00000000000a", scope=Scope.USER, label="ann")
BEN = Principal(key_id="019a0000-0000-7000-8000-00000000000b", scope=Scope.USER, label="ben")


def begun(database: Database, *questions: str, user: str = ANN.user) -> History:
    thread_id = service.create_thread(database, user=user, title=None).id
    for question in questions:
        say(database, thread_id, question, user=user)
    return open_thread(database, user=user, thread_id=thread_id)


def test_new_thread_is_stored_with_its_first_turns_and_not_before(database: Database):
    history = open_thread(database, user=ANN.user, thread_id=NEW)
    assert service.list_threads(database, user=ANN.user, before=None, limit=10) == []
    append_turns(
        database,
        user=ANN.user,
        thread_id=history.thread_id,
        question="who?",
        answer="me",
        interaction_id=new_id(),
        is_new=history.is_new,
    )
    (stored,) = service.list_threads(database, user=ANN.user, before=None, limit=10)
    assert (stored.id, stored.title, stored.turns) == (history.thread_id, "who?", 2)


def say(database: Database, thread_id: str, question: str, *, user: str = ANN.user, id_: str = "") -> None:
    append_turns(
        database,
        user=user,
        thread_id=thread_id,
        question=question,
        answer=f"answer to {question}",
        interaction_id=id_ or new_id(),
    )


def answered(database: Database, thread_id: str, question: str, *, principal: Principal = ANN) -> str:
    id_ = asked(database, thread_id, question, user=principal.user)
    say(database, thread_id, question, user=principal.user, id_=id_)
    return id_


def asked(database: Database, thread_id: str, question: str, *, user: str = ANN.user, state: State = "complete") -> str:
    messages = [{"role": "user", "content": question}]
    asked = NewInteraction(user=user, messages=messages, response="an answer", state=state, thread_id=thread_id)
    return record_interaction(database, asked)


def stored_interactions(database: Database) -> set[str]:
    with database.read() as connection:
        return set(connection.execute(sa.select(interactions.c.id)).scalars())


def contents(history: History) -> list[tuple[int, str, str]]:
    return [tuple(turn) for turn in history.turns]


def test_turns_continue_in_order_with_positions_from_one(database: Database):
    history = begun(database, "one", "two")
    assert contents(history) == [
        (1, "user", "one"),
        (2, "assistant", "answer to one"),
        (3, "user", "two"),
        (4, "assistant", "answer to two"),
    ]
    assert (history.title, history.summary, history.summary_upto) == ("one", None, 0)


@pytest.mark.parametrize(
    ("question", "title"),
    [
        ("What is 2 + 2?", "What is 2 + 2?"),
        ("  two\n words ", "two words"),
        ("word " * 40, ("word " * 12).strip()),
        ("x" * 300, "x" * 60),
        ("a" * 60 + " b", "a" * 60),
        ("nul \x00 and half \ud83d", "nul and half ?"),
        ("", None),
    ],
)
def test_title_is_the_beginning_of_the_first_question_cut_at_a_word(database: Database, question, title):
    assert begun(database, question).title == title


def test_title_that_was_given_stays(database: Database):
    thread = service.create_thread(database, user=ANN.user, title="Mine")
    say(database, thread.id, "a question")
    assert service.get_thread(database, thread.id, user=ANN.user).title == "Mine"


def test_title_comes_from_the_first_question_that_has_text(database: Database):
    assert begun(database, "", "and now words").title == "and now words"


def test_text_that_a_database_cannot_hold_is_stored_nearly_as_it_is(database: Database):
    turn = begun(database, "a\x00b\ud83dc").turns[0]
    assert turn.content == "ab?c"


def test_threads_of_others_look_as_if_they_were_not_there(database: Database):
    thread_id = begun(database, "secret").thread_id
    for call in (
        lambda: open_thread(database, user=BEN.user, thread_id=thread_id),
        lambda: service.get_thread(database, thread_id, user=BEN.user),
        lambda: service.rename_thread(database, thread_id, user=BEN.user, title="x"),
        lambda: service.delete_thread(database, thread_id, user=BEN.user),
        lambda: open_thread(database, user=BEN.user, thread_id="no\x00thing"),
    ):
        with pytest.raises(NotFoundError, match=r"GET /api/threads lists those that are\."):
            call()
    say(database, thread_id, "from ben", user=BEN.user)
    assert len(open_thread(database, user=ANN.user, thread_id=thread_id).turns) == 2
    assert service.list_threads(database, user=BEN.user, before=None, limit=10) == []


def test_answer_to_a_deleted_thread_is_dropped_quietly(database: Database):
    thread_id = begun(database, "one").thread_id
    service.delete_thread(database, thread_id, user=ANN.user)
    say(database, thread_id, "two")
    with database.read() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(thread_turns)).scalar() == 0


def test_exchanges_that_come_at_once_follow_each_other_whole(database: Database):
    thread_id = begun(database).thread_id
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: say(database, thread_id, f"q{number}"), range(24)))
    turns = open_thread(database, user=ANN.user, thread_id=thread_id).turns
    assert [turn.position for turn in turns] == list(range(1, 49))
    assert sorted(turn.content for turn in turns[::2]) == sorted(f"q{number}" for number in range(24))
    assert [turn.content for turn in turns[1::2]] == [f"answer to {turn.content}" for turn in turns[::2]]


def test_summary_only_moves_forward(database: Database):
    thread_id = begun(database, "one", "two", "three").thread_id
    for summary, upto in (("first four", 4), ("late, of two", 2), ("again four", 4)):
        keep_summary(database, thread_id=thread_id, summary=summary, upto=upto)
    history = open_thread(database, user=ANN.user, thread_id=thread_id)
    assert (history.summary, history.summary_upto) == ("first four", 4)
    keep_summary(database, thread_id="gone", summary="x", upto=2)


def test_full_thread_is_refused_before_a_question_is_asked(database: Database, monkeypatch):
    monkeypatch.setattr(service, "MAX_TURNS", 4)
    thread_id = begun(database, "one").thread_id
    assert len(open_thread(database, user=ANN.user, thread_id=thread_id).turns) == 2
    say(database, thread_id, "two")
    with pytest.raises(TooLargeError, match=r"has 4 turns, the most .* Begin a new one: POST /api/threads"):
        open_thread(database, user=ANN.user, thread_id=thread_id)


def test_thread_with_too_much_text_is_refused(database: Database, monkeypatch):
    monkeypatch.setattr(service, "MAX_CHARACTERS", 20)
    thread_id = begun(database).thread_id
    say(database, thread_id, "long enough")
    with pytest.raises(TooLargeError, match="has 20 characters, the most"):
        open_thread(database, user=ANN.user, thread_id=thread_id)


def test_user_has_a_limit_of_threads_also_when_they_come_at_once(database: Database, monkeypatch):
    monkeypatch.setattr(service, "MAX_THREADS", 3)

    def begin(_: int) -> str:
        try:
            return begun(database).thread_id
        except TooLargeError as error:
            return str(error)

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(begin, range(6)))
    assert sum("You have 3 threads, the most" in text for text in found) == 3
    with pytest.raises(TooLargeError, match="You have 3 threads, the most"):
        open_thread(database, user=ANN.user, thread_id=NEW)
    assert open_thread(database, user=BEN.user, thread_id=NEW).turns == []


def test_deleting_a_thread_deletes_the_interactions_that_nobody_judged(database: Database):
    thread_id, other = begun(database).thread_id, begun(database).thread_id
    plain, rated, voted, beaten = (answered(database, thread_id, name) for name in ("a", "b", "c", "d"))
    elsewhere = answered(database, other, "e")
    record_feedback(database, ANN, FeedbackRequest(interaction_id=rated, rating=5))
    record_feedback(database, ANN, FeedbackRequest(interaction_id=voted, preferred_over=beaten))
    service.delete_thread(database, thread_id, user=ANN.user)
    assert stored_interactions(database) == {rated, voted, beaten, elsewhere}
    assert plain not in stored_interactions(database)
    assert [thread.id for thread in service.list_threads(database, user=ANN.user, before=None, limit=9)] == [other]


@pytest.mark.parametrize("state", ["cut", "failed"])
def test_deleting_a_thread_deletes_what_was_asked_and_not_answered_there(database: Database, state: State):
    thread_id, other = begun(database, "a").thread_id, begun(database).thread_id
    asked(database, thread_id, "b", state=state)
    rated, elsewhere = (asked(database, name, "c", state=state) for name in (thread_id, other))
    record_feedback(database, ANN, FeedbackRequest(interaction_id=rated, rating=1))
    service.delete_thread(database, thread_id, user=ANN.user)
    assert stored_interactions(database) == {rated, elsewhere}


def test_interactions_of_a_person_whose_name_is_no_identifier_go_too(database: Database):
    name = "Ann Ångström"
    thread_id = begun(database, user=name).thread_id
    asked(database, thread_id, "a", user=name)
    service.delete_thread(database, thread_id, user=name)
    assert stored_interactions(database) == set()


def test_answer_to_a_deleted_thread_leaves_no_interaction_unless_it_was_judged(database: Database):
    thread_id = begun(database, "one").thread_id
    service.delete_thread(database, thread_id, user=ANN.user)
    answered(database, thread_id, "two")
    rated = asked(database, thread_id, "three")
    record_feedback(database, ANN, FeedbackRequest(interaction_id=rated, rating=5))
    say(database, thread_id, "three", id_=rated)
    bens = asked(database, thread_id, "his", user=BEN.user)
    say(database, thread_id, "forged", id_=bens)
    assert stored_interactions(database) == {rated, bens}


def test_stopped_answer_is_forgotten_where_its_thread_was_deleted_meanwhile(database: Database):
    thread_id = begun(database, "one").thread_id
    early = asked(database, thread_id, "two", state="cut")
    assert not forget_late_answer(database, user=ANN.user, thread_id=thread_id, interaction_id=early)
    assert stored_interactions(database) == {early}
    service.delete_thread(database, thread_id, user=ANN.user)
    late = asked(database, thread_id, "three", state="cut")
    assert forget_late_answer(database, user=ANN.user, thread_id=thread_id, interaction_id=late)
    assert stored_interactions(database) == set()


def test_thread_in_which_nothing_was_said_is_dropped_and_what_was_asked_stays(database: Database):
    empty, full = begun(database).thread_id, begun(database, "one").thread_id
    failed = asked(database, empty, "a", state="failed")
    for thread_id, user in ((full, ANN.user), (empty, BEN.user)):
        drop_empty_thread(database, thread_id, user=user)
    assert len(service.list_threads(database, user=ANN.user, before=None, limit=9)) == 2
    drop_empty_thread(database, empty, user=ANN.user)
    assert [thread.id for thread in service.list_threads(database, user=ANN.user, before=None, limit=9)] == [full]
    assert stored_interactions(database) == {failed}


async def recorded(database: Database, thread_id: str, *, is_stored: bool) -> None:
    recording = Recording(database, asker=Asker(ANN.user), messages=[{"role": "user", "content": "q"}])
    recording.thread_id, recording.thread_is_stored = thread_id, is_stored
    recording.store("cut")
    await asyncio.get_running_loop().shutdown_default_executor()


@pytest.mark.parametrize("is_stored", [True, False])
def test_chat_that_is_stopped_after_its_thread_was_deleted_leaves_nothing(database: Database, is_stored: bool):
    thread_id = begun(database).thread_id
    asyncio.run(recorded(database, thread_id, is_stored=is_stored))
    assert len(stored_interactions(database)) == 1
    service.delete_thread(database, thread_id, user=ANN.user)
    assert stored_interactions(database) == set()
    asyncio.run(recorded(database, thread_id, is_stored=is_stored))
    assert len(stored_interactions(database)) == (0 if is_stored else 1), "one that never was is not deleted"


def test_interaction_of_somebody_else_is_not_deleted_with_a_thread(database: Database):
    bens = answered(database, begun(database, user=BEN.user).thread_id, "his", principal=BEN)
    thread_id = begun(database).thread_id
    say(database, thread_id, "forged", id_=bens)
    service.delete_thread(database, thread_id, user=ANN.user)
    assert stored_interactions(database) == {bens}


def test_failed_deletion_changes_nothing(database: Database, monkeypatch):
    thread_id = begun(database).thread_id
    kept = answered(database, thread_id, "a")

    def fail(*_: Any) -> None:
        raise RuntimeError("broken in the middle")

    monkeypatch.setattr(service.repository, "delete_thread", fail)
    with pytest.raises(RuntimeError):
        service.delete_thread(database, thread_id, user=ANN.user)
    assert stored_interactions(database) == {kept}
    assert len(open_thread(database, user=ANN.user, thread_id=thread_id).turns) == 2


def test_list_has_the_newest_activity_first_and_goes_on_behind_a_page(database: Database):
    first, second, third = (begun(database, name).thread_id for name in ("1", "2", "3"))
    say(database, first, "again")
    listed = service.list_threads(database, user=ANN.user, before=None, limit=2)
    assert [(thread.id, thread.turns) for thread in listed] == [(first, 4), (third, 2)]
    rest = service.list_threads(database, user=ANN.user, before=listed[-1].updated_at, limit=2)
    assert [thread.id for thread in rest] == [second]


# --- over HTTP


@pytest.fixture
def http(database: Database):
    app = FastAPI()
    app.state.database = database
    install_error_handlers(app)
    app.include_router(router)
    with TestClient(app) as client:
        client.headers["Authorization"] = f"Bearer {create_key(database, scope=Scope.USER, label='ann').key}"
        yield client


def talk(database: Database, http: TestClient, title: str | None = None) -> str:
    created = http.post("/api/threads", json={"title": title} if title else {})
    assert created.status_code == 201
    with database.read() as connection:
        user = connection.execute(sa.text('SELECT "user" FROM threads WHERE id = :id'), {"id": created.json()["id"]})
        name = user.scalar_one()
    say(database, created.json()["id"], "What is 2 + 2?", user=name, id_="i1")
    return str(created.json()["id"])


def test_thread_is_made_listed_read_renamed_and_deleted_over_http(database: Database, http: TestClient):
    assert http.post("/api/threads").json()["title"] is None
    id_ = talk(database, http)
    listed = http.get("/api/threads", params={"limit": 1}).json()
    assert [(thread["id"], thread["title"], thread["turns"]) for thread in listed] == [(id_, "What is 2 + 2?", 2)]
    assert [t["turns"] for t in http.get("/api/threads", params={"before": listed[0]["updated_at"]}).json()] == [0]
    shown = http.get(f"/api/threads/{id_}").json()
    told = [(turn["position"], turn["role"], turn["interaction_id"]) for turn in shown["messages"]]
    assert told == [(1, "user", None), (2, "assistant", "i1")]
    assert (
        http.patch(f"/api/threads/{id_}", json={"title": " Sums \n for school "}).json()["title"] == "Sums for school"
    )
    assert http.delete(f"/api/threads/{id_}").status_code == 204
    gone = http.get(f"/api/threads/{id_}")
    assert gone.status_code == 404
    assert "GET /api/threads lists those that are" in gone.json()["detail"]


@pytest.mark.parametrize("title", ["", "  \x00 ", "x" * 201, None, 3])
def test_title_that_is_none_is_refused(database: Database, http: TestClient, title):
    assert http.patch(f"/api/threads/{talk(database, http)}", json={"title": title}).status_code == 422


def test_key_of_another_user_sees_nothing(database: Database, http: TestClient):
    id_ = talk(database, http)
    for scope in (Scope.USER, Scope.DEVICE, Scope.ADMIN):
        key = create_key(database, scope=scope, label="other").key
        other = {"Authorization": f"Bearer {key}"}
        assert http.get("/api/threads", headers=other).json() == []
        for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/export")):
            assert http.request(method, f"/api/threads/{id_}{path}", headers=other).status_code == 404
    worker = {"Authorization": f"Bearer {create_key(database, scope=Scope.WORKER, label='w').key}"}
    assert http.get("/api/threads", headers=worker).status_code == 403


def test_admin_acts_for_the_person_of_its_chats(database: Database, http: TestClient):
    id_ = begun(database, "one", user="ann").thread_id
    admin = {"Authorization": f"Bearer {create_key(database, scope=Scope.ADMIN, label='app').key}"}
    own = http.post("/api/threads", headers=admin).json()["id"]
    made = http.post("/api/threads", headers=admin, params={"user": "ann"}).json()["id"]
    listed = http.get("/api/threads", headers=admin, params={"user": "ann"}).json()
    assert [thread["id"] for thread in listed] == [made, id_]
    assert [thread["id"] for thread in http.get("/api/threads?user=", headers=admin).json()] == [own]
    path = f"/api/threads/{id_}"
    for method, end, body in (("GET", "", None), ("PATCH", "", {"title": "x"}), ("GET", "/export", None)):
        assert http.request(method, path + end, headers=admin, json=body).status_code == 404
        sent = http.request(method, path + end, headers=admin, json=body, params={"user": "ann"})
        assert sent.status_code == 200
    assert http.delete(path, headers=admin, params={"user": "ben"}).status_code == 404
    assert http.delete(path, headers=admin, params={"user": "ann"}).status_code == 204


@pytest.mark.parametrize("scope", [Scope.USER, Scope.DEVICE])
def test_nobody_else_acts_for_another(database: Database, http: TestClient, scope: Scope):
    id_ = begun(database, "one", user="ann").thread_id
    key = create_key(database, scope=scope, label="other")
    headers = {"Authorization": f"Bearer {key.key}"}
    for method, path in (
        ("GET", ""),
        ("POST", ""),
        ("GET", f"/{id_}"),
        ("DELETE", f"/{id_}"),
        ("GET", f"/{id_}/export"),
    ):
        refused = http.request(method, f"/api/threads{path}", headers=headers, params={"user": "ann"})
        assert refused.status_code == 403
        assert "only one with the scope admin may act for others. Leave `user` out." in refused.json()["detail"]
    myself = Principal(key_id=key.id, scope=scope, label="other").user
    assert http.get("/api/threads", headers=headers, params={"user": myself}).status_code == 200
    for wrong in ("x" * 201, "a\x00b"):
        assert http.get("/api/threads", headers=headers, params={"user": wrong}).status_code == 422


@pytest.mark.parametrize(
    ("form", "media_type", "ending"),
    [
        ("json", "application/json", "json"),
        ("jsonl", "application/jsonl", "jsonl"),
        ("markdown", "text/markdown", "md"),
    ],
)
def test_export_is_a_file_in_the_asked_form(database: Database, http: TestClient, form, media_type, ending):
    id_ = talk(database, http, 'Größe "x"\r\n; y')
    sent = http.get(f"/api/threads/{id_}/export", params={"format": form})
    assert sent.headers["content-type"].startswith(media_type)
    assert sent.headers["content-disposition"] == f'attachment; filename="gr-e-x-y.{ending}"'
    messages = [
        {"role": "user", "content": "What is 2 + 2?"},
        {"role": "assistant", "content": "answer to What is 2 + 2?"},
    ]
    if form == "json":
        assert sent.json() == {"id": id_, "title": 'Größe "x" ; y', "messages": messages}
    elif form == "jsonl":
        assert [json.loads(line) for line in sent.text.splitlines()] == [{"messages": messages}]
    else:
        assert sent.text.startswith('# Größe "x" ; y\n')
        assert sent.text.endswith("## You\n\nWhat is 2 + 2?\n\n## everswarm\n\nanswer to What is 2 + 2?\n")


def test_empty_thread_exports_no_training_line(http: TestClient):
    id_ = http.post("/api/threads", json={}).json()["id"]
    sent = http.get(f"/api/threads/{id_}/export", params={"format": "jsonl"})
    assert (sent.status_code, sent.text) == (200, "")
    assert sent.headers["content-disposition"] == f'attachment; filename="thread-{id_}.jsonl"'
    assert http.get(f"/api/threads/{id_}/export", params={"format": "pdf"}).status_code == 422
