from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.exceptions import HTTPException

from everswarm.errors import TooLargeError
from everswarm.schemas.interaction import JudgedInteraction
from everswarm.schemas.server import Scope
from everswarm.schemas.sync import TrainingFeedback
from everswarm.server import app as app_module
from everswarm.server.auth import create_key
from everswarm.server.feedback.batches import upload_of
from everswarm.server.feedback.drafting import Submission
from everswarm.server.feedback.ingest import Ingest
from everswarm.server.feedback.rate import RecordLimit
from everswarm.server.feedback.upload import FEEDBACK_PATH, _Item, read_upload, unpacked
from everswarm.settings import EngineSettings, FeedbackSettings, Settings

QUESTION = [{"role": "user", "content": "What is 2 + 2?"}]
MOMENT = "2026-01-02T03:04:05Z"
LIMIT_BYTES = 64 * 1024


def item(number: int, **values: Any) -> dict[str, Any]:
    return {"id": f"item-{number}", "messages": QUESTION, "response": "5", "correction": "4", **values}


def batch(*items: Any, **values: Any) -> dict[str, Any]:
    return {"device_id": "dev-1", "interactions": list(items), "timestamp": MOMENT, **values}


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    monkeypatch.setattr(app_module, "LISTEN_FIRST_SECONDS", 3600)  # the cycles are not launched
    return app_module.create_app(
        Settings(
            home=tmp_path,
            engine=EngineSettings(enabled=False),
            max_body_bytes=LIMIT_BYTES,
            feedback=FeedbackSettings(records_per_hour=1000),
        )
    )


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, raise_server_exceptions=False) as opened:
        opened.headers["Authorization"] = f"Bearer {create_key(app.state.database, scope=Scope.DEVICE, label='p').key}"
        yield opened


def admin(client: TestClient, app: FastAPI) -> dict[str, str]:
    return {"Authorization": f"Bearer {create_key(app.state.database, scope=Scope.ADMIN, label='a').key}"}


def stored(client: TestClient) -> dict[str, Any]:
    return {view["id"]: view for view in client.get("/api/interactions?limit=500").json()}


# --- what is packed


def test_gzip_batch_is_stored_as_the_plain_one_would_be(client: TestClient):
    body = gzip.compress(json.dumps(batch(item(1), item(2))).encode())
    answer = client.post(FEEDBACK_PATH, content=body, headers={"Content-Encoding": "gzip"})
    assert (answer.status_code, answer.json()["stored"]) == (200, 2)
    assert client.post(FEEDBACK_PATH, json=batch(item(1), item(2))).json()["duplicates"] == 2


def test_zip_bomb_is_refused_and_never_unpacked_whole(client: TestClient):
    bomb = gzip.compress(b" " * (200 * LIMIT_BYTES))
    assert len(bomb) < LIMIT_BYTES
    answer = client.post(FEEDBACK_PATH, content=bomb, headers={"Content-Encoding": "gzip"})
    assert answer.status_code == 413
    assert "unpacks to more than 65,536 bytes" in answer.json()["detail"]
    many = gzip.compress(b" " * LIMIT_BYTES) * 2  # the same in two members
    assert client.post(FEEDBACK_PATH, content=many, headers={"Content-Encoding": "gzip"}).status_code == 413


def test_body_of_many_bytes_is_refused_before_it_is_read(client: TestClient):
    assert client.post(FEEDBACK_PATH, content=b" " * (LIMIT_BYTES + 1)).status_code == 413


@pytest.mark.parametrize("body", [b"", b"not gzip", gzip.compress(b"{}" * 99)[:-20], zlib.compress(b"{}")])
def test_broken_gzip_is_a_400_that_says_so(client: TestClient, body: bytes):
    answer = client.post(FEEDBACK_PATH, content=body, headers={"Content-Encoding": "gzip"})
    assert answer.status_code == 400
    assert "cannot be unpacked as gzip" in answer.json()["detail"]


def test_other_encodings_are_a_415_that_names_gzip(client: TestClient):
    answer = client.post(FEEDBACK_PATH, content=b"x", headers={"Content-Encoding": "br"})
    assert (answer.status_code, answer.headers["Accept-Encoding"]) == (415, "gzip")
    assert "'br'" in answer.json()["detail"]


def test_gzip_of_very_many_members_is_a_400_that_says_so(client: TestClient):
    plain = json.dumps(batch(item(1))).encode()
    empty, whole = gzip.compress(b""), gzip.compress(plain)
    assert unpacked(whole + empty * 99, limit_bytes=LIMIT_BYTES) == plain
    answer = client.post(FEEDBACK_PATH, content=whole + empty * 100, headers={"Content-Encoding": "gzip"})
    assert answer.status_code == 400
    assert "more than 100 gzip members" in answer.json()["detail"]
    assert stored(client) == {}


@given(st.binary(max_size=3000), st.integers(0, 3000), st.integers(1, 3))
def test_unpacking_gives_what_was_packed_or_refuses(data: bytes, limit: int, members: int):
    size = max(1, -(-len(data) // members))
    packed = b"".join(gzip.compress(data[start : start + size]) for start in range(0, max(len(data), 1), size))
    if len(data) > limit:
        with pytest.raises(TooLargeError):
            unpacked(packed, limit_bytes=limit)
    else:
        assert unpacked(packed, limit_bytes=limit) == data


@given(st.binary(max_size=300))
def test_any_bytes_unpack_or_are_broken(data: bytes):
    try:
        unpacked(b"\x1f\x8b\x08" + data, limit_bytes=1000)
    except (HTTPException, TooLargeError) as error:
        assert str(error)


# --- how it is read


def test_quick_and_slow_reading_know_the_same_fields():
    assert _Item.model_fields.keys() == JudgedInteraction.model_fields.keys()


VALUES = st.one_of(st.none(), st.booleans(), st.integers(-1, 6), st.text(max_size=5), st.just(MOMENT), st.just([]))
ITEMS = st.dictionaries(st.sampled_from(sorted(JudgedInteraction.model_fields)), VALUES, max_size=4).map(
    lambda values: {**item(1), **values}
)


@settings(max_examples=200)
@given(st.lists(ITEMS, max_size=3), st.booleans())
def test_quick_and_slow_reading_give_the_same(items: list[dict[str, Any]], others_allowed: bool):
    sent = batch(*items)
    quick = read_upload(json.dumps(sent).encode(), others_allowed=others_allowed)
    slow = upload_of(TrainingFeedback.model_validate(sent), others_allowed=others_allowed)
    assert (quick.data_id, list(quick.positions), quick.rejected) == (slow.data_id, slow.positions, slow.rejected)
    for one, other in zip(quick.items, slow.items, strict=True):
        assert (one.user, one.at) == (other.user, other.at)
        either = {"device_id", "timestamp"}
        assert one.record.model_dump(exclude=either) == other.record.model_dump(exclude=either)


@settings(max_examples=100)
@given(
    st.one_of(st.binary(max_size=60), st.text(max_size=60).map(str.encode), st.sampled_from([b"[" * 9999, b"1" * 9999]))
)
def test_what_is_no_batch_is_a_validation_error(body: bytes):
    with pytest.raises(RequestValidationError):
        read_upload(body, others_allowed=True)


def test_no_json_is_a_422_that_says_where(client: TestClient):
    answer = client.post(FEEDBACK_PATH, content=b'{"device_id": }')
    assert answer.status_code == 422
    assert "character 14" in answer.json()["detail"] and "not JSON" in answer.json()["detail"]


def test_more_than_500_records_are_a_422(client: TestClient):
    short = {"messages": QUESTION}
    assert (
        client.post(FEEDBACK_PATH, json=batch(*[{"id": f"i{n}", **short} for n in range(500)])).json()["stored"] == 500
    )
    answer = client.post(FEEDBACK_PATH, json=batch(*[{"id": f"j{n}", **short} for n in range(501)]))
    assert answer.status_code == 422
    assert "500" in answer.json()["detail"]
    assert not [id_ for id_ in stored(client) if id_.startswith("j")]


def test_long_body_is_read_aside_with_the_same_result(client: TestClient, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("everswarm.server.feedback.upload.READ_ASIDE_BYTES", 10)
    assert client.post(FEEDBACK_PATH, json=batch(item(1))).json()["stored"] == 1


def test_control_characters_are_stored_and_nul_is_left_out(client: TestClient):
    odd = [{"role": "user", "content": "a\x00b\x07c\u202e"}]
    values = {"messages": odd, "response": "x\x00\x1b[0m", "correction": "y\x00", "model": "m\x00"}
    assert client.post(FEEDBACK_PATH, json=batch(item(1, **values))).json()["stored"] == 1
    view = stored(client)["item-1"]
    assert (view["messages"][0]["content"], view["response"]) == ("ab\x07c\u202e", "x\x1b[0m")


@pytest.mark.parametrize(
    "strange",
    [datetime.now(UTC) + timedelta(days=2), datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)],
)
def test_time_of_a_clock_that_was_never_set_is_that_of_the_arrival(client: TestClient, strange: datetime):
    before = datetime.now(UTC)
    sent = batch(item(1, timestamp=strange.isoformat(), keep_days=36_500), item(2, timestamp=MOMENT))
    assert client.post(FEEDBACK_PATH, json=sent).json()["stored"] == 2
    found = stored(client)
    assert before <= datetime.fromisoformat(found["item-1"]["created_at"]) <= datetime.now(UTC)
    assert datetime.fromisoformat(found["item-2"]["created_at"]) == datetime.fromisoformat(MOMENT)


# --- what is answered


def test_resending_a_batch_gives_the_same_answer_id_and_duplicates_only(client: TestClient):
    first = client.post(FEEDBACK_PATH, json=batch(item(1), item(2))).json()
    again = client.post(FEEDBACK_PATH, json=batch(item(1), item(2))).json()
    assert again == {**first, "stored": 0, "duplicates": 2}


def test_the_same_record_at_another_time_is_a_duplicate(client: TestClient):
    client.post(FEEDBACK_PATH, json=batch(item(1, timestamp=MOMENT)))
    mended = client.post(FEEDBACK_PATH, json=batch(item(1, timestamp="2026-05-05T00:00:00Z"))).json()
    assert (mended["duplicates"], mended["conflicts"]) == (1, [])


def test_known_id_with_another_content_is_a_conflict_and_the_first_stays(client: TestClient):
    client.post(FEEDBACK_PATH, json=batch(item(1)))
    answer = client.post(FEEDBACK_PATH, json=batch(item(2), {}, item(1, response="six"), item(2, rating=3))).json()
    assert (answer["stored"], answer["duplicates"], [one["index"] for one in answer["rejected"]]) == (1, 0, [1])
    assert [(one["index"], one["id"]) for one in answer["conflicts"]] == [(2, "item-1"), (3, "item-2")]
    assert "another content" in answer["conflicts"][0]["error"]
    assert stored(client)["item-1"]["response"] == "5"


def test_device_over_its_limit_is_told_when_to_come_back(client: TestClient, app: FastAPI):
    big = batch(*[{"id": f"i{n}", "messages": QUESTION} for n in range(500)])
    assert [client.post(FEEDBACK_PATH, json=big).status_code for _ in range(3)] == [200, 200, 429]
    answer = client.post(FEEDBACK_PATH, json=batch(item(1)))
    assert answer.status_code == 429
    assert 1 <= int(answer.headers["Retry-After"]) <= 4
    assert "1,000 records an hour" in answer.json()["detail"]
    headers = admin(client, app)
    assert [client.post(FEEDBACK_PATH, json=big, headers=headers).status_code for _ in range(4)] == [200] * 4


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"[", {}, 422),
        (b"not gzip", {"Content-Encoding": "gzip"}, 400),
        (gzip.compress(b" " * 2 * LIMIT_BYTES), {"Content-Encoding": "gzip"}, 413),
        (b"x", {"Content-Encoding": "br"}, 415),
    ],
)
def test_body_that_cannot_be_read_costs_a_record(
    client: TestClient, app: FastAPI, body: bytes, headers: dict[str, str], status: int
):
    app.state.record_limit = RecordLimit(3, clock=lambda: 0.0)
    answers = [client.post(FEEDBACK_PATH, content=body, headers=headers).status_code for _ in range(4)]
    assert answers == [status] * 3 + [429]
    headers = {**headers, **admin(client, app)}
    assert {client.post(FEEDBACK_PATH, content=body, headers=headers).status_code for _ in range(4)} == {status}


def test_upload_tells_how_long_its_body_was_unpacked(client: TestClient, monkeypatch: pytest.MonkeyPatch):
    sizes: list[int] = []
    store = Ingest.store

    async def noted(self: Ingest, submission: Submission) -> Any:
        sizes.append(submission.size_bytes)
        return await store(self, submission)

    monkeypatch.setattr(Ingest, "store", noted)
    plain = json.dumps(batch(item(1), {})).encode()  # one that is read item by item
    client.post(FEEDBACK_PATH, content=plain)
    client.post(FEEDBACK_PATH, content=gzip.compress(plain), headers={"Content-Encoding": "gzip"})
    short = json.dumps(batch(item(2))).encode()
    client.post(FEEDBACK_PATH, content=short)
    assert sizes == [len(plain), len(plain), len(short)]


def test_admin_may_send_for_the_device_of_a_key(client: TestClient, app: FastAPI):
    assert client.post(FEEDBACK_PATH, json=batch(item(1))).json()["stored"] == 1
    assert client.post(FEEDBACK_PATH, json=batch(item(2)), headers=admin(client, app)).json()["stored"] == 1
    assert client.post(FEEDBACK_PATH, json=batch(item(3))).json()["stored"] == 1
    other = {"Authorization": f"Bearer {create_key(app.state.database, scope=Scope.DEVICE, label='other').key}"}
    assert client.post(FEEDBACK_PATH, json=batch(item(4)), headers=other).status_code == 403


def test_route_is_documented_and_needs_a_device_key(client: TestClient, app: FastAPI):
    assert FEEDBACK_PATH in client.get("/openapi.json").json()["paths"]
    assert client.post(FEEDBACK_PATH, json=batch(), headers={"Authorization": ""}).status_code == 401
    user = {"Authorization": f"Bearer {create_key(app.state.database, scope=Scope.USER, label='u').key}"}
    assert client.post(FEEDBACK_PATH, json=batch(), headers=user).status_code == 403
    assert client.get(FEEDBACK_PATH).status_code == 405
