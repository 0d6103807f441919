from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.fakes.device_server import DeviceServer

from everswarm.device import outbox
from everswarm.device.journal import open_journal
from everswarm.device.state import DeviceHome
from everswarm.device.sync import sync
from everswarm.errors import BadRequestError, ConfigurationError, ConflictError, NotFoundError, UnavailableError
from everswarm.schemas.interaction import JudgedInteraction


@pytest.fixture
def judge(home: Path) -> Callable[..., JudgedInteraction]:
    place = DeviceHome(home)
    device_id = place.load().device_id

    def judge_one(**said: object) -> JudgedInteraction:
        return outbox.judge(place.journal_path, device_id, **said)  # type: ignore[arg-type]

    return judge_one


Judge = Callable[..., JudgedInteraction]
Answered = Callable[..., str]


def counts(home: Path) -> tuple[int, int, int]:
    return tuple(outbox.count(DeviceHome(home).journal_path))  # type: ignore[return-value]


def test_a_judgement_waits_offline_and_is_sent_once(
    server: DeviceServer, home: Path, answered: Answered, judge: Judge
) -> None:
    interaction_id = answered()
    judge(rating=2, correction="3 km are 3000 m.", consent=True)
    assert counts(home) == (1, 0, 0)
    assert sync(home).feedback_sent == 1
    assert sync(home).feedback_sent == 0
    assert server.batches == [1]
    stored = server.feedback[interaction_id]
    assert (stored["rating"], stored["correction"], stored["consent"]) == (2, "3 km are 3000 m.", True)
    assert (stored["response"], stored["device_id"]) == ("3000 m.", DeviceHome(home).load().device_id)
    assert counts(home) == (0, 1, 0)


def test_what_was_sent_leaves_no_text_in_the_outbox(home: Path, answered: Answered, judge: Judge) -> None:
    answered()
    judge(rating=5)
    sync(home)
    with open_journal(DeviceHome(home).journal_path) as connection:
        assert connection.execute("SELECT payload FROM feedback").fetchall() == [(None,)]


def test_a_second_judgement_before_the_sync_adds_to_the_first(home: Path, answered: Answered, judge: Judge) -> None:
    answered()
    judge(rating=2, consent=True)
    judged = judge(correction="3000 m")
    assert (judged.rating, judged.correction, judged.consent) == (2, "3000 m", True)
    assert judge(consent=False).consent is False
    assert counts(home) == (1, 0, 0)


def test_a_judgement_that_was_sent_is_not_changed_in_silence(home: Path, answered: Answered, judge: Judge) -> None:
    answered()
    judge(rating=2)
    sync(home)
    with pytest.raises(ConflictError, match=r"each counts once. Ask again and judge the new answer"):
        judge(rating=5)


def test_an_answer_lost_on_the_way_does_not_store_twice(
    server: DeviceServer, home: Path, answered: Answered, judge: Judge
) -> None:
    answered()
    judge(rating=4)
    server.lose_answers = 1
    with pytest.raises(UnavailableError, match="1 judgements wait"):
        sync(home)
    assert counts(home) == (1, 0, 0)
    assert sync(home).feedback_sent == 1
    assert len(server.feedback) == 1


def test_what_the_server_turns_down_is_kept_with_its_reason_and_can_be_mended(
    server: DeviceServer, home: Path, answered: Answered, judge: Judge
) -> None:
    place = DeviceHome(home)
    bad, good = answered(), answered("What is 1 + 1?")
    judge(interaction_id=bad, rating=1)
    judge(interaction_id=good, rating=5)
    with open_journal(place.journal_path) as connection:
        payload = json.loads(
            connection.execute("SELECT payload FROM feedback WHERE interaction_id=?", (bad,)).fetchone()[0]
        )
        broken = json.dumps({**payload, "rating": 9})
        connection.execute("UPDATE feedback SET payload=? WHERE interaction_id=?", (broken, bad))
    report = sync(home)
    assert (report.feedback_sent, report.feedback_rejected) == (1, 1)
    assert outbox.rejections(place.journal_path) == [(bad, "Input should be less than or equal to 5")]
    judge(interaction_id=bad, rating=2)
    assert sync(home).feedback_sent == 1
    assert outbox.rejections(place.journal_path) == []


def test_batches_hold_at_most_500(server: DeviceServer, home: Path, judge: Judge) -> None:
    place = DeviceHome(home)
    with open_journal(place.journal_path) as connection:
        for number in range(1201):
            item = {
                "id": f"i{number}",
                "device_id": "d",
                "timestamp": "2026-01-01T00:00:00Z",
                "messages": [{"role": "user", "content": "?"}],
                "rating": 3,
            }
            connection.execute(
                "INSERT INTO feedback (interaction_id, state, payload, changed_at) VALUES (?, 'queued', ?, '')",
                (item["id"], json.dumps(item)),
            )
    assert sync(home).feedback_sent == 1201
    assert server.batches == [500, 500, 201]


def test_an_item_too_large_for_the_server_does_not_sink_the_rest(
    server: DeviceServer, home: Path, answered: Answered, judge: Judge
) -> None:
    server.max_body_bytes = 20_000
    long, short = answered("x" * 30_000), answered()
    judge(interaction_id=long, rating=1)
    judge(interaction_id=short, rating=5)
    report = sync(home)
    assert (report.feedback_sent, report.feedback_rejected) == (1, 1)
    assert "the limit is 20000" in outbox.rejections(DeviceHome(home).journal_path)[0].reason


@pytest.mark.parametrize("said", [{}, {"rating": 6}, {"rating": 0}, {"correction": ""}, {"comment": "x" * 100_001}])
def test_a_judgement_that_cannot_be_used_is_refused(
    said: dict[str, object], home: Path, answered: Answered, judge: Judge
) -> None:
    answered()
    with pytest.raises(BadRequestError):
        judge(**said)
    assert counts(home) == (0, 0, 0)


def test_without_an_answer_there_is_nothing_to_judge(judge: Judge) -> None:
    with pytest.raises(NotFoundError, match="everswarm device chat"):
        judge(rating=3)
    with pytest.raises(NotFoundError, match="nowhere"):
        judge(rating=3, interaction_id="nowhere")


def test_a_file_that_is_no_journal_is_said(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    path.write_bytes(b"something else" * 100)
    with pytest.raises(ConfigurationError, match="Move it away"):
        outbox.count(path)
