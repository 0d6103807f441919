from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.fakes.device_server import DeviceServer

from everswarm.device import outbox
from everswarm.device.journal import Interaction, now, open_journal, recall, remember
from everswarm.device.state import DeviceHome
from everswarm.device.sync import sync
from everswarm.errors import BadRequestError, ConfigurationError, ConflictError, NotFoundError
from everswarm.schemas.interaction import JudgedInteraction, Message


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


def test_thumb_language_and_retention_are_sent(
    server: DeviceServer, home: Path, answered: Answered, judge: Judge
) -> None:
    interaction_id = answered()
    judge(liked=False, language="pt-BR")
    judge(keep_days=30)
    sync(home)
    stored = server.feedback[interaction_id]
    assert (stored["liked"], stored["language"], stored["keep_days"]) == (False, "pt-BR", 30)
    assert stored.keys().isdisjoint({"rating", "regenerated", "copied", "better_than"})


def test_signals_stay_on_the_device_until_the_answer_is_judged(
    server: DeviceServer, home: Path, answered: Answered, judge: Judge
) -> None:
    copied, again, unjudged = answered("1?"), answered("2?"), answered("3?")
    journal = DeviceHome(home).journal_path
    outbox.signal(journal, copied, copied=True)
    outbox.signal(journal, copied)  # says nothing, takes nothing back
    outbox.signal(journal, unjudged, copied=True)
    judge(interaction_id=copied, rating=4)
    judge(interaction_id=again, rating=2)
    outbox.signal(journal, again, regenerated=True)  # after the judgement, before the sync
    assert sync(home).feedback_sent == 2
    signals = {id_: (item.get("regenerated"), item.get("copied")) for id_, item in server.feedback.items()}
    assert signals == {copied: (None, True), again: (True, None)}
    outbox.signal(journal, again, copied=True)  # too late, and no error
    assert sync(home).feedback_sent == 0


def test_a_signal_needs_an_answer(home: Path) -> None:
    with pytest.raises(NotFoundError, match="everswarm device chat"):
        outbox.signal(DeviceHome(home).journal_path, copied=True)


def test_asking_the_same_again_says_that_the_first_answer_did_not_do(home: Path, answered: Answered) -> None:
    first, second, other = answered("1?"), answered("1?"), answered("2?")
    with open_journal(DeviceHome(home).journal_path) as connection:
        assert [recall(connection, id_).regenerated for id_ in (first, second, other)] == [True, False, False]


def test_a_clock_that_was_set_back_loses_nothing(
    server: DeviceServer, home: Path, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("everswarm.device.journal.KEPT_INTERACTIONS", 2)
    moments = [datetime(2031, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC), datetime(1970, 1, 2, tzinfo=UTC)]
    ids = [f"0{number}aaaaaa-0000-7000-8000-000000000000" for number in (9, 5, 0)]
    question = [Message(role="user", content="?")]
    with open_journal(DeviceHome(home).journal_path) as connection:
        for id_, moment in zip(ids, moments, strict=True):
            remember(connection, Interaction(id=id_, created_at=moment, model="m", messages=question, response="!"))
        with pytest.raises(NotFoundError):
            recall(connection, ids[0])  # the oldest by order, not by the clock
    assert judge(rating=3).id == ids[2]
    judge(interaction_id=ids[1], rating=4)
    assert sync(home).feedback_sent == 2
    assert server.feedback[ids[2]]["timestamp"] == "1970-01-02T00:00:00Z"


def test_a_journal_of_an_older_version_opens_with_what_is_in_it(home: Path, judge: Judge) -> None:
    path = DeviceHome(home).journal_path
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "CREATE TABLE interactions (id TEXT PRIMARY KEY, created_at TEXT NOT NULL, model TEXT NOT NULL, "
            "messages TEXT NOT NULL, response TEXT NOT NULL)"
        )
        row = ("old", now().isoformat(), "m", '[{"role": "user", "content": "?"}]', "!")
        connection.execute("INSERT INTO interactions VALUES (?, ?, ?, ?, ?)", row)
        connection.commit()
    outbox.signal(path, copied=True)
    judged = judge(liked=True)
    assert (judged.id, judged.copied, judged.regenerated) == ("old", True, False)


def test_a_language_that_is_none_is_refused_in_words(answered: Answered, judge: Judge) -> None:
    answered()
    with pytest.raises(BadRequestError, match="language: write a code such as en, de or pt-BR"):
        judge(rating=3, language="German")


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"rating": 6},
        {"rating": 0},
        {"correction": ""},
        {"comment": "x" * 100_001},
        {"language": "en"},
        {"keep_days": 30},
        {"rating": 3, "keep_days": 0},
    ],
)
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
