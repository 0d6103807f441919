"""The pair of a device's attempt and the swarm's answer, on SQLite and Postgres; the route on the whole server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Row, select
from tests.fakes.upstream import Behaviour, FakeUpstream

from everswarm.errors import ConflictError, QuotaSpentError, UnavailableError
from everswarm.schemas.escalation import Escalation
from everswarm.schemas.interaction import FeedbackRequest, JudgedInteraction
from everswarm.schemas.server import Scope
from everswarm.schemas.sync import DeviceEnrolment, TrainingFeedback
from everswarm.server import app as app_module
from everswarm.server.auth import Principal, create_key
from everswarm.server.database import Database
from everswarm.server.feedback import (
    NewInteraction,
    accept_training_feedback,
    judged_interactions,
    record_feedback,
    record_interaction,
    stats,
)
from everswarm.server.feedback.scrubbing import text_mask
from everswarm.server.feedback.tables import feedback, interactions
from everswarm.server.fleet.service import enrol_device
from everswarm.server.swarm.escalation import AnsweredEscalation, Escalations
from everswarm.server.swarm.recording import Asker
from everswarm.settings import EndpointSettings, FeedbackSettings, Settings

on_both_databases = pytest.mark.parametrize(
    "database", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)], indirect=True
)

PHONE = Principal(key_id="019a0000-0000-7000-8000-00000000000a", scope=Scope.DEVICE, label="phone")
OTHER = Principal(key_id="019a0000-0000-7000-8000-00000000000b", scope=Scope.DEVICE, label="other")
QUESTION = [{"role": "user", "content": "How many metres are 3 km?"}]


def escalation(id_: str = "q1", **values: Any) -> Escalation:
    fields = {"id": id_, "messages": QUESTION, "attempt": "300 m", "model": "tiny@v1", "consent": True, **values}
    return Escalation.model_validate(fields)


class ScriptedSwarm:
    """Answers as told, and stores each answer as an interaction, as the real one does."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.text = "3000 m"
        self.is_whole = True
        self.asked: list[int | None] = []
        self.error: Exception | None = None
        self.looked_up = False
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def __call__(self, messages: Any, max_tokens: int | None) -> AnsweredEscalation:
        self.asked.append(max_tokens)
        await self.may_answer.wait()
        if self.error:
            raise self.error
        new = NewInteraction(
            user=PHONE.user,
            messages=[message.model_dump() for message in messages],
            response=self.text,
            role="specialist",
            model="org/large",
            looked_up=self.looked_up,
            trace={"strategy": "cascade"},
        )
        id_ = record_interaction(self.database, new)
        return AnsweredEscalation(id_, self.text, self.is_whole, "specialist", "cascade", "org/large")


@pytest.fixture
def swarm(database: Database) -> ScriptedSwarm:
    return ScriptedSwarm(database)


@pytest.fixture
def escalate(database: Database, swarm: ScriptedSwarm) -> Callable[..., Any]:
    escalations = Escalations(database)

    def ask(id_: str = "q1", *, asker: Asker | None = None, **values: Any) -> Any:
        return escalations.escalate(escalation(id_, **values), asker=asker or Asker(PHONE.user), answer=swarm)

    return ask


def frozen(database: Database) -> list[JudgedInteraction]:
    with database.read() as connection:
        return list(judged_interactions(connection))


def rows(database: Database, table: Any = feedback) -> list[Row[Any]]:
    with database.read() as connection:
        return list(connection.execute(select(table)))


def upload(database: Database, id_: str = "q1", principal: Principal = PHONE, **values: Any) -> tuple[int, int]:
    item = {"id": id_, "messages": QUESTION, "response": "300 m", "model": "tiny@v1", **values}
    batch = TrainingFeedback(device_id="phone-1", interactions=[item], timestamp="2026-01-02T03:04:05Z")
    accepted = accept_training_feedback(database, principal, batch)
    assert accepted.rejected == []
    assert accepted.stored + accepted.duplicates + len(accepted.conflicts) == 1
    return accepted.stored, accepted.duplicates


def judge(database: Database, id_: str = "q1", **values: Any) -> None:
    record_feedback(database, PHONE, FeedbackRequest(interaction_id=id_, **values))


@on_both_databases
async def test_attempt_and_better_answer_become_a_pair_with_the_consent_that_was_sent(database, escalate):
    answer = await escalate(max_tokens=50)
    assert (answer.id, answer.response, answer.role, answer.strategy) == ("q1", "3000 m", "specialist", "cascade")
    (pair,) = frozen(database)
    assert (pair.id, pair.response, pair.correction) == ("q1", "300 m", "3000 m")
    assert (pair.model, pair.device_id, pair.consent, pair.rating) == ("tiny@v1", PHONE.user, True, None)
    (row,) = rows(database)
    assert (row.author, row.user) == ("swarm", PHONE.user)
    assert {row.source: row.id for row in rows(database, interactions)} == {
        "device": "q1",
        "web": answer.interaction_id,
    }
    assert (stats(database).usable, stats(database).corrections) == (1, 0)


@on_both_databases
async def test_without_consent_the_pair_is_stored_and_not_usable(database, escalate):
    await escalate(consent=False)
    assert [pair.consent for pair in frozen(database)] == [False]
    assert stats(database).usable == 0


async def test_device_that_could_not_answer_has_no_attempt(database, escalate):
    await escalate(attempt=None)
    (pair,) = frozen(database)
    assert (pair.response, pair.correction) == (None, "3000 m")


async def test_same_answer_is_nothing_to_learn(database, escalate):
    answer = await escalate(attempt=" 3000 m\n")
    assert (answer.response, frozen(database), len(rows(database, interactions))) == ("3000 m", [], 2)


async def test_answer_that_was_cut_is_shown_and_not_learnt(database, escalate, swarm):
    swarm.is_whole = False
    assert (await escalate()).response == "3000 m"
    assert rows(database) == []


async def test_answer_that_rests_on_what_a_tool_found_is_shown_and_not_learnt(database, escalate, swarm):
    swarm.looked_up = True
    assert (await escalate()).response == "3000 m"
    assert rows(database) == []


@on_both_databases
async def test_same_id_again_returns_the_stored_answer_and_asks_no_model(database, escalate, swarm):
    first = await escalate()
    swarm.text = "something else"
    assert await escalate() == first
    assert len(swarm.asked) == len(rows(database)) == 1


async def test_asking_again_takes_consent_back_and_never_gives_it(database, escalate):
    await escalate("given")
    await escalate("given", consent=False)
    await escalate("given", consent=False)
    await escalate("refused", consent=False)
    await escalate("refused")
    assert [pair.consent for pair in frozen(database)] == [False, False]
    assert len(rows(database)) == 3


@pytest.mark.parametrize(
    "change", [{"attempt": "3 m"}, {"attempt": None}, {"model": "tiny"}, {"messages": QUESTION * 2}]
)
async def test_same_id_with_other_content_is_a_conflict(escalate, swarm, change):
    await escalate()
    with pytest.raises(ConflictError, match="with a new id"):
        await escalate(**change)
    assert len(swarm.asked) == 1


async def test_id_of_somebody_else_looks_like_one_with_other_content(database, escalate, swarm):
    await escalate()
    with pytest.raises(ConflictError) as foreign:
        await escalate(asker=Asker(OTHER.user))
    with pytest.raises(ConflictError) as changed:
        await escalate(attempt="3 m")
    assert str(foreign.value) == str(changed.value)
    web = record_interaction(database, NewInteraction(user=PHONE.user, messages=QUESTION, response="300 m"))
    with pytest.raises(ConflictError):
        await escalate(web, model="tiny")
    assert len(swarm.asked) == 1


async def test_two_at_once_share_one_answer(escalate, swarm):
    swarm.may_answer.clear()
    both = [asyncio.create_task(escalate()) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(ConflictError, match="right now") as refused:
        await escalate(attempt="3 m")
    assert refused.value.retry_after_seconds == 5
    swarm.may_answer.set()
    first, second = await asyncio.gather(*both)
    assert first == second
    assert len(swarm.asked) == 1


async def test_reader_who_leaves_finds_the_answer_when_asking_again(escalate, swarm):
    swarm.may_answer.clear()
    left = asyncio.create_task(escalate())
    await asyncio.sleep(0)
    left.cancel()
    with pytest.raises(asyncio.CancelledError):
        await left
    swarm.may_answer.set()
    assert (await escalate()).response == "3000 m"
    assert len(swarm.asked) == 1


@on_both_databases
async def test_two_processes_at_once_keep_the_first_answer(database):
    one, two = ScriptedSwarm(database), ScriptedSwarm(database)
    two.text = "3,000 metres"
    two.may_answer.clear()
    asker = Asker(PHONE.user)
    slow = asyncio.create_task(Escalations(database).escalate(escalation(), asker=asker, answer=two))
    while not two.asked:
        await asyncio.sleep(0.001)
    first = await Escalations(database).escalate(escalation(), asker=asker, answer=one)
    two.may_answer.set()
    assert await slow == first
    assert [pair.correction for pair in frozen(database)] == ["3000 m"]


@pytest.mark.parametrize("error", [QuotaSpentError("spent", retry_after_seconds=60), UnavailableError("down")])
async def test_failure_stores_nothing_and_can_be_tried_again(database, escalate, swarm, error):
    swarm.error = error
    with pytest.raises(type(error)):
        await escalate()
    assert rows(database, interactions) == []
    swarm.error = None
    assert (await escalate()).response == "3000 m"


async def test_empty_answer_is_none(database, escalate, swarm):
    swarm.text = " \n"
    with pytest.raises(UnavailableError, match="ask again"):
        await escalate()
    assert rows(database) == []


@on_both_databases
async def test_word_of_a_person_wins_over_the_swarm_whenever_it_comes(database, escalate):
    await escalate()
    judge(database, correction="3 km are 3000 m", consent=True)
    assert frozen(database)[0].correction == "3 km are 3000 m"
    upload(database, "q2", rating=2, correction="a person's", consent=True)
    await escalate("q2")
    found = frozen(database)[1]
    assert (found.rating, found.correction, found.consent) == (2, "a person's", True)
    assert (stats(database).usable, stats(database).corrections) == (2, 2)


@on_both_databases
@pytest.mark.parametrize(("rating", "correction"), [(4, "3000 m"), (5, None)])
async def test_attempt_that_a_person_rated_5_needs_no_better_answer(database, escalate, rating, correction):
    await escalate()
    judge(database, rating=rating, consent=True)
    assert frozen(database)[0].correction == correction
    assert stats(database).usable == 1


@on_both_databases
async def test_unanswered_question_with_a_rating_of_5_is_not_counted_as_usable(database, escalate):
    await escalate(attempt=None)
    judge(database, rating=5, consent=True)
    (found,) = frozen(database)
    assert (found.correction, found.response, stats(database).usable) == (None, None, 0)


@on_both_databases
async def test_upload_after_an_escalation_adds_the_persons_judgement_once(database, escalate):
    await escalate()
    assert upload(database, rating=2, comment="too short", consent=True) == (0, 1)
    assert upload(database, rating=2, comment="too short", consent=True) == (0, 1)
    (found,) = frozen(database)
    assert (found.rating, found.comment, found.correction, found.consent) == (2, "too short", "3000 m", True)
    assert sorted(row.author for row in rows(database)) == ["person", "swarm"]
    assert (stats(database).usable, stats(database).ratings) == (1, 1)


async def test_upload_takes_consent_back(database, escalate):
    await escalate()
    upload(database, consent=False)
    assert frozen(database)[0].consent is False


async def test_upload_that_says_nothing_changes_nothing(database, escalate):
    await escalate()
    assert upload(database) == (0, 1)
    assert frozen(database)[0].consent is True


async def test_upload_that_names_no_model_is_of_the_same_interaction(database, escalate):
    await escalate()
    assert upload(database, rating=2, model=None, consent=True) == (0, 1)
    assert frozen(database)[0].rating == 2


@on_both_databases
async def test_upload_by_another_key_or_with_other_words_judges_nothing_and_is_a_conflict(database, escalate):
    await escalate()
    assert upload(database, principal=OTHER, rating=1) == (0, 0)
    assert upload(database, response="other words", rating=1) == (0, 0)
    assert upload(database, messages=QUESTION * 2, rating=1) == (0, 0)
    assert frozen(database)[0].rating is None
    assert upload(database, rating=1) == (0, 1)


@on_both_databases
async def test_upload_that_was_escalated_later_is_a_duplicate_and_with_other_words_a_conflict(database, escalate):
    upload(database, rating=2, consent=True)
    await escalate()
    assert upload(database, rating=2, consent=True) == (0, 1)
    assert upload(database, response="other words", rating=2, consent=True) == (0, 0)
    assert upload(database, principal=OTHER, rating=2, consent=True) == (0, 1)  # word for word, so nothing is lost


async def test_upload_of_an_empty_answer_is_of_the_escalation_that_had_none(database, escalate):
    await escalate(attempt=None)
    assert upload(database, response="", rating=1) == (0, 1)
    assert frozen(database)[0].rating == 1


async def test_upload_under_the_id_of_an_answer_of_this_server_is_a_conflict_unless_it_says_the_same(
    database, escalate
):
    answer = await escalate()
    said = {"id_": answer.interaction_id, "response": "3000 m", "model": None}
    assert upload(database, **said, rating=1) == (0, 1)
    assert upload(database, **{**said, "response": "300 m"}, rating=1) == (0, 0)
    assert upload(database, **{**said, "model": "tiny@v1"}, rating=1) == (0, 0)
    assert upload(database, **said, principal=OTHER, rating=1) == (0, 0)


@on_both_databases
async def test_masked_escalation_is_known_again_and_takes_its_judgement(database, tmp_path):
    masked = Database(
        database.engine.url.render_as_string(hide_password=False),
        key_file=tmp_path / "another.key",
        mask=text_mask(FeedbackSettings(raw_text="none")),
    )
    swarm = ScriptedSwarm(masked)
    private = {"messages": [{"role": "user", "content": "Write to ann@example.org"}], "attempt": "To ann@example.org?"}

    def escalate(**values: Any) -> Any:
        return Escalations(masked).escalate(escalation(**values), asker=Asker(PHONE.user), answer=swarm)

    first = await escalate(**private)
    assert await escalate(**private) == first
    with pytest.raises(ConflictError):
        await escalate(**{**private, "attempt": "300 m"})
    said = {"messages": private["messages"], "response": private["attempt"]}
    assert upload(masked, **said, rating=2, consent=True) == (0, 1)
    assert upload(masked, **{**said, "response": "300 m"}, rating=2) == (0, 0)
    (found,) = frozen(masked)
    assert (found.messages[0].content, found.response, found.rating) == ("Write to [EMAIL_1]", "To [EMAIL_1]?", 2)
    masked.close()


@on_both_databases
async def test_escalation_after_the_upload_adds_the_swarms_answer(database, escalate, swarm):
    upload(database, rating=1, consent=True)
    first = await escalate()
    assert await escalate() == first
    (found,) = frozen(database)
    assert (found.device_id, found.rating, found.correction, found.consent) == ("phone-1", 1, "3000 m", True)
    assert len(swarm.asked) == 1
    assert stats(database).usable == 1


def test_record_names_each_wrong_field():
    with pytest.raises(ValueError, match=r"messages\n.*the last message must be the user's"):
        escalation(messages=[*QUESTION, {"role": "assistant", "content": "3"}])


@pytest.fixture
def upstream() -> Iterator[FakeUpstream]:
    with FakeUpstream() as running:
        yield running


@pytest.fixture
def client(upstream: FakeUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    monkeypatch.setattr(app_module, "LISTEN_FIRST_SECONDS", 3600)  # the workflow engine has tests of its own
    endpoint = EndpointSettings(name="up", base_url=upstream.base_url, model="org/model", timeout_seconds=5)
    app = app_module.create_app(Settings(home=tmp_path / "home", endpoints=[endpoint]))
    with TestClient(app, raise_server_exceptions=False) as running:
        yield running


def post(client: TestClient, key: str, **values: Any) -> Any:
    body = {**escalation().model_dump(), **values}
    return client.post("/api/escalations", json=body, headers={"Authorization": f"Bearer {key}"})


@pytest.mark.parametrize("scope", [Scope.USER, Scope.DEVICE])
def test_route_answers_as_the_swarm_does_and_both_interactions_are_the_callers(client, upstream, scope):
    key = create_key(client.app.state.database, scope=scope, label="phone").key
    answer = post(client, key).json()
    assert answer["response"] == "The capital of France is Paris."
    assert (answer["id"], answer["model"], answer["role"]) == ("q1", "org/model", "primary")
    assert answer["strategy"]
    assert post(client, key).json() == answer
    assert len(upstream.requests) == 1
    listed = client.get("/api/interactions", headers={"Authorization": f"Bearer {key}"}).json()
    assert {view["id"]: view["response"] for view in listed} == {
        "q1": "300 m",
        answer["interaction_id"]: answer["response"],
    }


def test_enrolled_device_escalates_under_the_name_that_it_uploads_under(client):
    database = client.app.state.database
    created = create_key(database, scope=Scope.DEVICE, label="phone")
    phone = Principal(key_id=created.id, scope=Scope.DEVICE, label="phone")
    enrol_device(database, phone, DeviceEnrolment(device_id="phone-1", name="phone", client_version="1"))
    assert post(client, created.key).status_code == 200
    assert upload(database, rating=2, principal=phone) == (0, 1)
    assert upload(database, "q2", rating=2, principal=phone) == (1, 0)
    assert {found.device_id for found in frozen(database)} == {"phone-1"}
    assert {row.user for row in rows(database, interactions) if row.source == "web"} == {phone.user}


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"attempt": ""}, "attempt"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "assistant", "content": "3"}]}, "messages"),
        ({"id": "no spaces"}, "id"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"more": 1}, "more"),
    ],
)
def test_wrong_field_is_a_422_that_names_it(client, wrong, field):
    answer = post(client, create_key(client.app.state.database, scope=Scope.DEVICE, label="phone").key, **wrong)
    assert answer.status_code == 422
    assert [item["field"] for item in answer.json()["errors"]] == [field]


def test_key_of_a_worker_may_not_escalate(client):
    assert post(client, create_key(client.app.state.database, scope=Scope.WORKER, label="w").key).status_code == 403


def test_swarm_that_is_down_says_when_to_ask_again(client, upstream):
    upstream.behaviour = Behaviour(status=500)
    answer = post(client, create_key(client.app.state.database, scope=Scope.DEVICE, label="phone").key)
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) >= 1
