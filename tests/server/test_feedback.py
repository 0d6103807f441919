from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient

from everswarm.errors import BadRequestError, NotFoundError
from everswarm.schemas.interaction import FeedbackRequest, JudgedInteraction
from everswarm.schemas.server import Scope
from everswarm.server.auth import Principal, create_key
from everswarm.server.database import Database
from everswarm.server.edge.express import ExpressApp
from everswarm.server.edge.problems import install_error_handlers
from everswarm.server.feedback import (
    NewInteraction,
    judged_interactions,
    record_feedback,
    record_interaction,
    stats,
    store_batch,
)
from everswarm.server.feedback.ingest import Ingest
from everswarm.server.feedback.rate import RecordLimit
from everswarm.server.feedback.routes import router
from everswarm.server.feedback.upload import FEEDBACK_PATH, upload_training_feedback
from everswarm.settings import Settings

ANN = Principal(key_id="019a0000-0000-7000-8000-00000000000a", scope=Scope.USER, label="ann")
BEN = Principal(key_id="019a0000-0000-7000-8000-00000000000b", scope=Scope.USER, label="ben")
ADMIN = Principal(key_id="019a0000-0000-7000-8000-00000000000c", scope=Scope.ADMIN, label="admin")
QUESTION = [{"role": "user", "content": "What is 2 + 2?"}]


def asked(database: Database, principal: Principal = ANN, **values: Any) -> str:
    fields = {"user": principal.user, "messages": QUESTION, "response": "5", "model": "tiny", **values}
    return record_interaction(database, NewInteraction(**fields))


def judge(database: Database, interaction_id: str, principal: Principal = ANN, **values: Any) -> str:
    return record_feedback(database, principal, FeedbackRequest(interaction_id=interaction_id, **values))


def frozen(database: Database) -> list[JudgedInteraction]:
    with database.read() as connection:
        return list(judged_interactions(connection))


def item(number: int, **values: Any) -> dict[str, Any]:
    return {"id": f"item-{number}", "messages": QUESTION, "response": "5", "rating": 1, "correction": "4", **values}


def record(number: int, **values: Any) -> JudgedInteraction:
    return JudgedInteraction.model_validate(
        {"device_id": "dev-1", "timestamp": "2026-01-02T03:04:05Z", **item(number), **values}
    )


def test_interaction_without_judgement_is_not_frozen(database: Database):
    asked(database)
    assert frozen(database) == []


def test_judgements_of_one_interaction_are_folded_to_the_latest_of_each_kind(database: Database):
    id_ = asked(database)
    judge(database, id_, rating=2, comment="no", consent=True)
    judge(database, id_, correction="4", consent=True)
    judge(database, id_, rating=1, consent=True)
    (found,) = frozen(database)
    assert (found.rating, found.correction, found.comment, found.consent) == (1, "4", "no", True)
    assert (found.id, found.device_id, found.response, found.model) == (id_, ANN.user, "5", "tiny")


def test_consent_of_the_latest_judgement_counts_so_that_it_can_be_withdrawn(database: Database):
    id_ = asked(database)
    judge(database, id_, correction="4", consent=True)
    assert stats(database).usable == 1
    judge(database, id_, comment="please do not use it", consent=False)
    assert frozen(database)[0].consent is False
    assert stats(database).usable == 0


def test_an_admin_neither_grants_nor_withdraws_the_consent_of_others(database: Database):
    mine, other = asked(database), asked(database)
    judge(database, mine, correction="4", consent=True)
    judge(database, mine, ADMIN, comment="good find")
    judge(database, other, ADMIN, correction="4", consent=True)
    assert {found.id: found.consent for found in frozen(database)} == {mine: True, other: False}
    assert (stats(database).usable, stats(database).people) == (1, 1)


def test_the_application_that_asked_for_a_person_says_whether_they_consent(database: Database):
    id_ = asked(database, user="bob", sender=ADMIN.user)
    judge(database, id_, ADMIN, correction="4", consent=True)
    assert (frozen(database)[0].consent, stats(database).usable) == (True, 1)


def test_device_clock_that_is_ahead_does_not_outrank_a_withdrawal(database: Database):
    ahead = datetime.now(UTC) + timedelta(days=400)
    store_batch(database, [record(1, timestamp=ahead, consent=True)], source="device", sender=ANN.user)
    judge(database, "item-1", comment="withdrawn")
    assert frozen(database)[0].consent is False


def test_interaction_of_another_user_looks_like_one_that_does_not_exist(database: Database):
    id_ = asked(database)
    with pytest.raises(NotFoundError) as foreign:
        judge(database, id_, BEN, rating=5)
    with pytest.raises(NotFoundError) as unknown:
        judge(database, "nothing", BEN, rating=5)
    assert str(foreign.value).replace(id_, "nothing") == str(unknown.value)
    assert "GET /api/interactions" in str(unknown.value)
    judge(database, id_, ADMIN, rating=5)
    assert stats(database).ratings == 1


def test_vote_needs_two_answers_of_ones_own(database: Database):
    mine, other, foreign = asked(database), asked(database), asked(database, BEN)
    judge(database, mine, preferred_over=other)
    with pytest.raises(BadRequestError, match="needs two answers"):
        judge(database, mine, preferred_over=mine)
    with pytest.raises(NotFoundError):
        judge(database, mine, preferred_over=foreign)
    assert stats(database).votes == 1


def test_conversation_with_parts_and_tools_is_stored_as_its_text(database: Database):
    parts = [{"type": "text", "text": "What is"}, {"type": "image_url"}, {"type": "text", "text": "this?"}]
    messages = [
        {"role": "developer", "content": "Be short."},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "tool", "content": "42"},
        {"role": "user", "content": parts},
    ]
    judge(database, asked(database, messages=messages), rating=5, consent=True)
    (found,) = frozen(database)
    assert [(turn.role, turn.content) for turn in found.messages] == [
        ("system", "Be short."),
        ("user", "What is\nthis?"),
    ]


@pytest.mark.parametrize(
    ("name", "stored"), [("Zoë Smith", "Zo-Smith"), ("a@b.org", "a@b.org"), ("", "u"), ("é", "u-")]
)
def test_person_of_an_application_is_stored_as_an_identifier(database: Database, name: str, stored: str):
    id_ = asked(database, user=name, sender=ANN.user)
    judge(database, id_, rating=5)
    assert [found.device_id for found in frozen(database)] == [stored]
    with pytest.raises(NotFoundError):
        judge(database, id_, BEN, rating=5)


def test_interaction_that_does_not_end_with_a_question_is_left_out_of_the_snapshot(database: Database):
    judge(database, asked(database, messages=[*QUESTION, {"role": "assistant", "content": "4"}]), rating=5)
    judge(database, asked(database), rating=5)
    assert len(frozen(database)) == 1


def test_batch_sent_again_adds_nothing_and_the_first_stays(database: Database):
    assert store_batch(database, [record(1), record(2), record(1)], source="import") == (2, 1, [], [])
    assert store_batch(database, [record(1), record(3)], source="import") == (1, 1, [], [])
    assert [(found.id, found.rating, found.correction) for found in frozen(database)] == [
        ("item-1", 1, "4"),
        ("item-2", 1, "4"),
        ("item-3", 1, "4"),
    ]
    assert frozen(database)[0] == record(1)


def test_batch_cannot_judge_an_interaction_that_is_there_already(database: Database):
    id_ = asked(database)
    assert store_batch(database, [record(1, id=id_)], source="device") == (0, 1, [], [])
    assert store_batch(database, [record(1, id=id_, response="6")], source="device") == (0, 0, [id_], [])
    assert frozen(database) == []


def test_usable_counts_what_a_cycle_can_learn_from(database: Database):
    records = [
        record(1, consent=True),  # corrected
        record(2, consent=False),
        record(3, consent=True, correction=None, rating=4),  # liked
        record(4, consent=True, correction=None, rating=3),
        record(5, consent=True, correction=None, rating=5, response=None),
        record(6, consent=True, correction=None, rating=None),  # not judged at all
    ]
    store_batch(database, records, source="import")
    found = stats(database)
    assert (found.interactions, found.judged, found.usable, found.users) == (6, 5, 2, 1)
    assert (found.ratings, found.corrections, found.mean_rating) == (5, 2, 2.8)


def test_counts_of_an_empty_server_are_zero(database: Database):
    found = stats(database).model_dump()
    assert found.pop("mean_rating") is None
    assert set(found.values()) == {0}


@pytest.fixture
def client(database: Database) -> Iterator[TestClient]:
    app = ExpressApp()
    app.state.database, app.state.settings = database, Settings()
    app.state.ingest, app.state.record_limit = Ingest(database), RecordLimit(20_000)
    app.express, app.express_body_bytes = {FEEDBACK_PATH: upload_training_feedback}, 2 * 1024 * 1024
    install_error_handlers(app)
    app.include_router(router)
    with TestClient(app, raise_server_exceptions=False) as opened:
        yield opened
        assert opened.portal is not None
        opened.portal.call(app.state.ingest.stop)


def key(database: Database, scope: Scope) -> dict[str, str]:
    return {"Authorization": f"Bearer {create_key(database, scope=scope, label=scope.value).key}"}


def send(client: TestClient, headers: dict[str, str], *items: Any, **values: Any) -> Any:
    body = {"device_id": "dev-1", "interactions": list(items), "timestamp": "2026-01-02T03:04:05Z", **values}
    return client.post("/api/training/feedback", json=body, headers=headers)


def test_device_batch_has_the_shape_of_the_plan_and_the_same_id_when_sent_again(client: TestClient, database: Database):
    device = key(database, Scope.DEVICE)
    first = send(client, device, item(1), item(2)).json()
    assert first == {
        "status": "accepted",
        "data_id": first["data_id"],
        "stored": 2,
        "duplicates": 0,
        "conflicts": [],
        "rejected": [],
    }
    again = send(client, device, item(1), item(2)).json()
    assert again == {**first, "stored": 0, "duplicates": 2}
    assert send(client, device, item(3)).json()["data_id"] != first["data_id"]


def test_item_takes_device_and_time_from_the_batch_and_epoch_milliseconds_are_read(
    client: TestClient, database: Database
):
    device = key(database, Scope.DEVICE)
    assert send(client, device, item(1), timestamp=1767323045000).json()["stored"] == 1
    (found,) = frozen(database)
    assert (found.device_id, found.timestamp) == ("dev-1", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))


def test_bad_items_are_named_and_the_good_ones_stored(client: TestClient, database: Database):
    answer = send(
        client,
        key(database, Scope.DEVICE),
        item(1),
        item(2, rating=9),
        {},
        item(4, device_id="dev-2"),
        item(5, messages=[{"role": "assistant", "content": "hi"}]),
        item(6, timestamp="0001-01-01T00:00:00+14:00"),
        item(7),
    )
    assert answer.status_code == 200
    assert answer.json()["stored"] == 2
    assert {wrong["index"]: wrong["error"] for wrong in answer.json()["rejected"]} == {
        1: "rating: should be a whole number from 1 to 5, not 9",
        2: "id: is missing; messages: is missing",
        3: "device_id: is 'dev-2', and the batch is of 'dev-1'; a device sends its own only",
        4: "the last message must be the user's: the answer goes into 'response'",
        5: "timestamp: a timestamp lies within the years 1 to 9999 in UTC",
    }


def test_half_a_surrogate_pair_is_rejected_and_never_an_internal_error(client: TestClient, database: Database):
    text = '{"device_id":"dev-1","timestamp":0,"interactions":[{"id":"\\ud800","messages":[{"\\ud800":1}]},7]}'
    headers = {**key(database, Scope.DEVICE), "Content-Type": "application/json"}
    assert client.post("/api/training/feedback", content=text, headers=headers).status_code == 422
    answer = client.post("/api/training/feedback", content=text.replace(",7]", "]"), headers=headers)
    assert (answer.status_code, answer.json()["rejected"][0]["id"]) == (200, "?")


@pytest.mark.parametrize("timestamp", ["0001-01-01T00:00:00+14:00", 1e300, "soon", True, None])
def test_batch_with_an_impossible_time_is_a_422(client: TestClient, database: Database, timestamp: Any):
    assert send(client, key(database, Scope.DEVICE), item(1), timestamp=timestamp).status_code == 422
    assert stats(database).interactions == 0


def test_device_key_sends_for_one_device_only(client: TestClient, database: Database):
    device = key(database, Scope.DEVICE)
    assert send(client, device, item(1)).status_code == 200
    refused = send(client, device, item(2), device_id="dev-2")
    assert refused.status_code == 403
    assert "'dev-1'" in refused.json()["detail"] and "keys create" in refused.json()["detail"]
    assert send(client, key(database, Scope.ADMIN), item(2, device_id="dev-9"), device_id="dev-2").json()["stored"] == 1


def test_device_may_judge_again_what_it_sent(client: TestClient, database: Database):
    device = key(database, Scope.DEVICE)
    send(client, device, item(1))
    sent = {"interaction_id": "item-1", "rating": 5, "consent": True}
    assert client.post("/api/feedback", json=sent, headers=device).json()["status"] == "accepted"
    assert client.post("/api/feedback", json=sent, headers=key(database, Scope.DEVICE)).status_code == 404
    assert [view["id"] for view in client.get("/api/interactions", headers=device).json()] == ["item-1"]


def test_feedback_route_answers_and_refuses(client: TestClient, database: Database):
    user = create_key(database, scope=Scope.USER, label="ann")
    principal = Principal(key_id=user.id, scope=Scope.USER, label="ann")
    headers = {"Authorization": f"Bearer {user.key}"}
    id_ = asked(database, principal)
    accepted = client.post("/api/feedback", json={"interaction_id": id_, "correction": "4"}, headers=headers)
    assert accepted.json() == {"status": "accepted", "feedback_id": accepted.json()["feedback_id"]}
    assert client.post("/api/feedback", json={"interaction_id": id_}, headers=headers).status_code == 422
    assert client.post("/api/feedback", json={"interaction_id": id_, "rating": 5}).status_code == 401
    assert send(client, headers, item(1)).status_code == 403


def test_interactions_are_listed_newest_first_and_only_ones_own(client: TestClient, database: Database):
    user = create_key(database, scope=Scope.USER, label="ann")
    principal = Principal(key_id=user.id, scope=Scope.USER, label="ann")
    headers = {"Authorization": f"Bearer {user.key}"}
    mine = [asked(database, principal, state="cut") for _ in range(3)]
    asked(database, BEN)
    found = client.get("/api/interactions?limit=2", headers=headers).json()
    assert [view["id"] for view in found] == mine[:0:-1]
    assert found[0]["state"] == "cut"
    assert len(client.get("/api/interactions", headers=key(database, Scope.ADMIN)).json()) == 4
    assert client.get("/api/interactions?limit=0", headers=headers).status_code == 422
    assert client.get("/api/feedback/stats", headers=headers).json()["interactions"] == 4
