from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from everswarm.errors import BadRequestError
from everswarm.server.database import Database
from everswarm.server.feedback import import_file, judged_interactions, stats
from everswarm.server.feedback.importer import ERRORS_KEPT
from everswarm.server.feedback.reading import LINE_BYTES

REAL_FILE = Path(__file__).parents[3] / "shared" / "data" / "feedback-math.jsonl"


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
    assert first == (1200, 1200, 0, [], 0)
    assert seen[-1] == path.stat().st_size and len(seen) == 3
    assert import_file(database, path) == (1200, 0, 1200, [], 0)
    assert stats(database).usable == 1200


def test_mark_blank_lines_windows_ends_and_missing_last_newline_are_fine(database: Database, tmp_path: Path):
    lines = [b"\xef\xbb\xbf" + line(1).strip() + b"\r\n", b"\r\n", b"   \n", line(2).strip()]
    assert import_file(database, written(tmp_path, *lines)) == (2, 2, 0, [], 0)
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
    assert import_file(database, written(tmp_path)) == (0, 0, 0, [], 0)


@pytest.mark.skipif(not REAL_FILE.exists(), reason="../shared/data/feedback-math.jsonl is not here")
def test_real_file_is_imported_whole_and_once(database: Database):
    assert import_file(database, REAL_FILE) == (4000, 4000, 0, [], 0)
    assert import_file(database, REAL_FILE) == (4000, 0, 4000, [], 0)
    with database.read() as connection:
        ids = [found.id for found in judged_interactions(connection)]
    assert ids == sorted(ids) and len(ids) == 4000
    assert stats(database).usable == 4000
