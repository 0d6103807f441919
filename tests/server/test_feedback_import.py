from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from everswarm.errors import BadRequestError
from everswarm.schemas.interaction import FeedbackRequest
from everswarm.schemas.server import Scope
from everswarm.server.auth import Principal
from everswarm.server.database import Database
from everswarm.server.feedback import import_file, judged_interactions, record_feedback, stats
from everswarm.server.feedback.files import unpacking
from everswarm.server.feedback.files.importer import ERRORS_KEPT
from everswarm.server.feedback.reading import LINE_BYTES

REAL_FILE = Path(__file__).parents[3] / "shared" / "data" / "feedback-math.jsonl"
SHAREGPT = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}


def line(number: int, **values: Any) -> bytes:
    fields = {
        "id": f"i-{number:04}",
        "device_id": "dev-1",
        "timestamp": "2026-01-02T03:04:05Z",
        "messages": [{"role": "user", "content": "Wie viele Äpfel?"}],
        "correction": "Vier.",
        "consent": True,
        **values,
    }
    return json.dumps(fields, ensure_ascii=False).encode() + b"\n"


def written(tmp_path: Path, *lines: bytes) -> Path:
    path = tmp_path / "feedback.jsonl"
    path.write_bytes(b"".join(lines))
    return path


def test_file_imported_twice_is_stored_once(database: Database, tmp_path: Path):
    path = written(tmp_path, *[line(number) for number in range(1200)])
    seen: list[int] = []
    first = import_file(database, path, on_progress=seen.append)
    assert first[:5] == (1200, 1200, 0, [], 0)
    assert seen[-1] == path.stat().st_size and len(seen) == 3
    assert import_file(database, path)[:5] == (1200, 0, 1200, [], 0)
    assert stats(database).usable == 1200


def test_mark_blank_lines_windows_ends_and_missing_last_newline_are_fine(database: Database, tmp_path: Path):
    lines = [b"\xef\xbb\xbf" + line(1).strip() + b"\r\n", b"\r\n", b"   \n", line(2).strip()]
    assert import_file(database, written(tmp_path, *lines))[:5] == (2, 2, 0, [], 0)
    with database.read() as connection:
        assert [found.messages[0].content for found in judged_interactions(connection)] == ["Wie viele Äpfel?"] * 2


def test_broken_lines_are_named_and_the_rest_is_imported(database: Database, tmp_path: Path):
    lines = [
        line(1),
        b'{"id": "x", \n',
        b"[1, 2]\n",
        line(2).replace("Ä".encode(), b"\xc4"),
        b"\n",
        line(3, rating=7, consent=None),
        line(4, correction="x" * LINE_BYTES),
        line(5, stars=5),
        b"[" * 100_000 + b"\n",
        line(6),
    ]
    report = import_file(database, written(tmp_path, *lines))
    assert (report.read, report.stored, report.duplicates, report.error_count) == (9, 2, 0, 7)
    messages = dict(report.errors)
    assert messages[2] == "not JSON: Expecting property name enclosed in double quotes at column 13"
    assert messages[3] == 'a JSON object is needed, such as {"id": …}, not a list'
    assert messages[4].startswith("not UTF-8 text at byte ") and "save the file as UTF-8" in messages[4]
    assert messages[6] == (
        "rating: should be a whole number from 1 to 5, not 7; consent: should be a valid boolean, not None"
    )
    assert messages[7].startswith("longer than 2 MB")
    assert messages[8].startswith("stars: is not a field of the format (those are: ")
    assert messages[9].startswith("not JSON that can be read")


def test_only_the_first_errors_are_kept_and_all_are_counted(database: Database, tmp_path: Path):
    report = import_file(database, written(tmp_path, *[b"{}\n"] * 50))
    assert (report.read, len(report.errors), report.error_count) == (50, ERRORS_KEPT, 50)
    assert report.errors[-1].line == ERRORS_KEPT


def test_file_that_is_not_there_is_named(database: Database, tmp_path: Path):
    with pytest.raises(BadRequestError, match=r"nothing\.jsonl cannot be read: No such file"):
        import_file(database, tmp_path / "nothing.jsonl")
    with pytest.raises(BadRequestError, match="cannot be read"):
        import_file(database, tmp_path)


def test_empty_file_is_an_empty_report(database: Database, tmp_path: Path):
    assert import_file(database, written(tmp_path))[:5] == (0, 0, 0, [], 0)


@pytest.mark.skipif(not REAL_FILE.exists(), reason="../shared/data/feedback-math.jsonl is not here")
def test_real_file_is_imported_whole_and_once(database: Database):
    assert import_file(database, REAL_FILE)[:5] == (4000, 4000, 0, [], 0)
    assert import_file(database, REAL_FILE)[:5] == (4000, 0, 4000, [], 0)
    with database.read() as connection:
        ids = [found.id for found in judged_interactions(connection)]
    assert ids == sorted(ids) and len(ids) == 4000
    assert stats(database).usable == 4000


def test_same_id_with_another_content_is_reported_and_the_first_is_kept(database: Database, tmp_path: Path):
    lines = [line(1), line(2), line(1), line(1, correction="Fünf."), line(3)]
    report = import_file(database, written(tmp_path, *lines))
    assert report[:3] == (5, 3, 1)
    assert [(found.line, found.message) for found in report.errors] == [
        (4, "the id 'i-0001' was imported before with another content; the first is kept, so give this one another id")
    ]
    report = import_file(database, written(tmp_path, line(7), line(2, rating=1)))
    assert (report.stored, report.duplicates, [found.line for found in report.errors]) == (1, 0, [2])
    with database.read() as connection:
        assert {found.correction for found in judged_interactions(connection)} == {"Vier."}


def test_times_that_no_clock_shows_are_refused_and_a_clock_that_is_ahead_is_told(database: Database, tmp_path: Path):
    now = datetime.now(UTC)
    report = import_file(
        database,
        written(
            tmp_path,
            line(1, timestamp=1770000000),
            line(2, timestamp="1999-12-31T00:00:00Z"),
            line(3, timestamp=(now + timedelta(days=400)).isoformat()),
            line(4, timestamp=(now + timedelta(days=5)).isoformat()),
            line(5, rating=-3),
        ),
    )
    assert (report.stored, report.ahead, report.error_count) == (1, 1, 4)
    messages = dict(report.errors)
    assert messages[1].startswith("timestamp: 1970-01-21 is before the year 2000; write ISO 8601 text or Unix milli")
    assert "is before the year 2000" in messages[2]
    assert "is more than a year ahead of now" in messages[3]
    assert messages[5] == "rating: should be a whole number from 1 to 5, not -3"


def test_control_characters_are_taken_out_and_counted(database: Database, tmp_path: Path):
    report = import_file(database, written(tmp_path, line(1, correction="a\x00\x1b[31mb\tc"), line(2)))
    assert (report.stored, report.cleaned) == (2, 1)
    with database.read() as connection:
        assert {found.correction for found in judged_interactions(connection)} == {"a[31mb\tc", "Vier."}


def test_list_in_a_file_is_read_item_by_item(database: Database, tmp_path: Path):
    path = tmp_path / "list.json"
    records = [json.loads(line(1)), {"stars": 5}, json.loads(line(2)), SHAREGPT]
    path.write_text(json.dumps(records, indent=2), encoding="utf-8")
    report = import_file(database, path)
    assert report[:3] == (4, 2, 0)
    assert report.format == "everswarm"  # of the first record that shows one
    assert report.errors[0].message.startswith("item 2 of the list: id: is missing; device_id: is missing")
    assert report.errors[1].message == (
        "item 4 of the list: looks like the format sharegpt, and this file is read as everswarm; "
        "put it into a file of its own"
    )
    assert path.read_text(encoding="utf-8").splitlines()[report.errors[0].line - 1].strip() == "{"


def test_packed_file_is_unpacked_on_the_way(database: Database, tmp_path: Path):
    path = tmp_path / "feedback.jsonl.gz"
    path.write_bytes(gzip.compress(b"".join(line(number) for number in range(700))))
    seen: list[int] = []
    assert import_file(database, path, on_progress=seen.append)[:5] == (700, 700, 0, [], 0)
    assert seen[-1] == path.stat().st_size


def test_packed_file_that_was_cut_off_keeps_what_came_before(database: Database, tmp_path: Path):
    path = tmp_path / "feedback.jsonl.gz"
    whole = gzip.compress(b"".join(line(number, comment=f"{number**7}") for number in range(20_000)))
    path.write_bytes(whole[: len(whole) // 2])
    report = import_file(database, path)
    assert 0 < report.stored == report.read < 20_000
    assert report.errors[0].line == report.read + 1
    assert report.errors[0].message.startswith("the gzip file ends too early")


def test_zip_bomb_is_not_unpacked(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(unpacking, "HARMLESS_BYTES", 1_000_000)
    path = tmp_path / "bomb.jsonl.gz"
    path.write_bytes(gzip.compress(line(1) + b"x" * 30_000_000))
    report = import_file(database, path)
    assert (report.stored, report.error_count) == (1, 1)
    assert "unpacks to more than 200 times its size" in report.errors[0].message


@pytest.mark.parametrize("head", [b"PK\x03\x04", b"PAR1", "[1]".encode("utf-16")])
def test_file_that_holds_no_lines_is_refused_at_once(database: Database, tmp_path: Path, head: bytes):
    with pytest.raises(BadRequestError, match=r"is a zip archive|is a parquet file|is UTF-16 text"):
        import_file(database, written(tmp_path, head))


def test_consent_and_liking_of_a_second_import_are_added_once(database: Database, tmp_path: Path):
    path = written(tmp_path, json.dumps(SHAREGPT).encode())
    first = import_file(database, path)
    assert (first.stored, first.without_consent, first.unjudged, first.format) == (1, 1, 1, "sharegpt")
    again = import_file(database, path, consent=True, liked=True)
    assert (again.stored, again.duplicates, again.judged_again, again.error_count) == (0, 1, 1, 0)
    assert import_file(database, path, consent=True, liked=True).judged_again == 0
    with database.read() as connection:
        (found,) = judged_interactions(connection)
    assert (found.consent, found.liked, found.device_id) == (True, True, "import")


def test_withdrawn_consent_does_not_come_back_with_the_file(database: Database, tmp_path: Path):
    path = written(tmp_path, json.dumps(SHAREGPT).encode())
    person = Principal(key_id="0123456789ab", label="ann", scope=Scope.ADMIN)
    import_file(database, path, device=person.user, consent=True, liked=True)
    with database.read() as connection:
        (found,) = judged_interactions(connection)
    assert found.consent
    record_feedback(database, person, FeedbackRequest(interaction_id=found.id, comment="no", consent=False))
    assert import_file(database, path, device=person.user, consent=True, liked=True).judged_again == 0
    with database.read() as connection:
        assert [found.consent for found in judged_interactions(connection)] == [False]
