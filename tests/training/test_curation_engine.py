"""Where lines are read: whole ones, each once, in order, in this process or in others that leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.training.curation_frames import (
    content_of,
    crowd,
    curated,
    curated_file,
    numbered,
    numbered_unless_bad,
    record,
    write_snapshot,
)

from everswarm.errors import BadRequestError, NotEnoughFeedbackError
from everswarm.settings import CurationSettings
from everswarm.training.curation import LocalEngine, engine_of
from everswarm.training.curation.engine import FileRows, lines_of, pieces, quietly

GONE_SECONDS = 60  # more than enough on a busy machine


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where engines put their folders."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@given(st.binary(max_size=200) | st.lists(st.sampled_from([b"\n", b"ab", b"\r\n", b"c"]), max_size=80).map(b"".join))
@example(b"")
@example(b"\n\n\n")
@example(b"no end")
@settings(max_examples=100, deadline=None)
def test_pieces_cover_the_file_in_whole_lines(content: bytes):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lines"
        path.write_bytes(content)
        for piece_bytes in (1, 2, 3, 7, 1_000):
            found = pieces(path, piece_bytes)
            assert [piece.start for piece in found] == [0, *(piece.end for piece in found[:-1])]
            assert found[-1].end == len(content)
            assert all(content[piece.end - 1 : piece.end] == b"\n" for piece in found[:-1])
            numbers = {
                number: line
                for piece in found
                for number, line in enumerate(lines_of(path, piece), start=piece.first_number)
                if line
            }
            assert numbers == {number: line for number, line in enumerate(content.split(b"\n"), start=1) if line}


@pytest.mark.parametrize("piece_bytes", [1, 4, 5, 6, 10, 100])
def test_lines_keep_their_order_and_numbers_wherever_the_file_is_cut(tmp_path: Path, piece_bytes: int):
    path = tmp_path / "lines"
    path.write_bytes(b"1111\n\n3333\n4\n\n\n777")
    with LocalEngine(piece_bytes=piece_bytes) as engine:
        rows = engine.apply(numbered, path, on_progress=quietly)
        assert rows.columns(["number", "text"]).rows() == [(1, "1111"), (3, "3333"), (4, "4"), (7, "777")]


def test_batches_are_the_rows_in_order_with_the_wanted_columns(tmp_path: Path):
    path = tmp_path / "lines"
    path.write_bytes(b"a\nb\nc\n")
    with LocalEngine(piece_bytes=1) as engine:
        rows = engine.apply(numbered, path, on_progress=quietly)
        assert [batch.rows() for batch in rows.batches(["text"])] == [[("a",)], [("b",)], [("c",)]]


def test_progress_is_told_piece_by_piece(tmp_path: Path):
    path, told = tmp_path / "lines", []
    path.write_bytes(b"a\nb\nc\n")
    with LocalEngine(piece_bytes=1) as engine:
        engine.apply(numbered, path, on_progress=lambda done, total: told.append((done, total)))
    assert told == [(2, 6), (4, 6), (6, 6)]


def test_other_processes_read_and_the_rows_stay_in_order(tmp_path: Path):
    path = tmp_path / "lines"
    path.write_bytes(b"".join(b"%d\n" % number for number in range(1, 41)))
    with LocalEngine(processes=2, piece_bytes=10) as engine:
        rows = engine.apply(numbered, path, on_progress=quietly).columns(["number", "process"])

    assert rows["number"].to_list() == list(range(1, 41))
    assert os.getpid() not in rows["process"].to_list()


def test_short_file_is_worth_no_process(tmp_path: Path):
    path = tmp_path / "lines"
    path.write_bytes(b"a\nb\n")
    with LocalEngine(processes=2) as engine:
        assert engine.apply(numbered, path, on_progress=quietly).columns(["process"]).rows() == [(os.getpid(),)] * 2


@pytest.mark.parametrize("piece_bytes", [1, 1_000, 1_000_000])
def test_one_line_at_a_time_or_all_at_once_give_the_same_bytes(tmp_path: Path, piece_bytes: int):
    records = [one.model_copy(update={"response": "no", "rating": 1}) for one in crowd()]
    usual = curated(tmp_path, records)
    other = curated_file(tmp_path / "snapshot.jsonl", tmp_path / "other", engine=LocalEngine(piece_bytes=piece_bytes))

    assert content_of(other.files) == content_of(usual.files)
    assert other.card == usual.card


def test_two_processes_and_small_pieces_give_the_bytes_of_one(tmp_path: Path):
    records = [
        *crowd(300),
        *(record(number, user=f"user-{number % 9}", rating=1, response="no") for number in (900, 901)),
    ]
    one = curated(tmp_path, records)
    engine = LocalEngine(processes=2, piece_bytes=10_000)
    two = curated_file(tmp_path / "snapshot.jsonl", tmp_path / "two", engine=engine)

    assert content_of(two.files) == content_of(one.files)
    assert two.card == one.card


@pytest.mark.parametrize("processes", [1, 2])
def test_error_in_a_line_is_the_first_one_whoever_read_it(tmp_path: Path, processes: int):
    path = tmp_path / "lines"
    path.write_bytes(b"good\n" * 10 + b"bad\n" + b"good\n" * 10 + b"bad\n")
    with (
        pytest.raises(BadRequestError) as caught,
        LocalEngine(processes=processes, piece_bytes=20) as engine,
    ):
        engine.apply(numbered_unless_bad, path, on_progress=quietly)

    assert str(caught.value) == "snapshot.jsonl, line 11: bad"


def test_folder_is_gone_after_success(tmp_path: Path, temporary: Path):
    curated(tmp_path, crowd())
    assert list(temporary.iterdir()) == []


def test_folder_is_gone_after_too_little_feedback(tmp_path: Path, temporary: Path):
    with pytest.raises(NotEnoughFeedbackError):
        curated(tmp_path, [])
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("processes", [1, 2])
def test_folder_is_gone_after_a_broken_line(tmp_path: Path, temporary: Path, processes: int):
    path = write_snapshot(tmp_path / "snapshot.jsonl", crowd(10))
    path.write_bytes(path.read_bytes() + b"broken\n")
    with pytest.raises(BadRequestError, match=r"snapshot\.jsonl, line 11: "):
        curated_file(path, tmp_path / "out", engine=LocalEngine(processes=processes, piece_bytes=1_000))
    assert list(temporary.iterdir()) == []


def test_error_of_whoever_is_told_the_progress_is_not_lost(tmp_path: Path, temporary: Path):
    def lease_lost(done: int, total: int) -> None:
        raise RuntimeError(f"lease lost at {done} of {total}")

    with pytest.raises(RuntimeError, match="lease lost"):
        curated(tmp_path, crowd(), on_progress=lease_lost)
    assert list(temporary.iterdir()) == []


def test_settings_name_the_engine():
    with engine_of(CurationSettings(processes=1)) as engine:
        assert isinstance(engine, LocalEngine)


def test_columns_of_files_without_rows_are_empty(tmp_path: Path):
    numbered([], 1).write_ipc(tmp_path / "0.arrow")
    assert FileRows([tmp_path / "0.arrow"]).columns(["text"]).shape == (0, 1)


PARENT = """
import sys
from functools import partial
from pathlib import Path
from tests.training.curation_frames import never_done
from everswarm.training.curation.engine import LocalEngine, quietly
with LocalEngine(processes=2, piece_bytes=1) as engine:
    engine.apply(partial(never_done, Path(sys.argv[1])), Path(sys.argv[2]), on_progress=quietly)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_processes_are_gone_soon_after_their_parent_was_killed(tmp_path: Path):
    path, started = tmp_path / "lines", tmp_path / "started"
    path.write_bytes(b"a\nb\n")
    started.mkdir()
    (tmp_path / "temporary").mkdir()
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(folder for folder in sys.path if folder),
        "TMPDIR": str(tmp_path / "temporary"),  # a killed process leaves its folder behind
    }
    with subprocess.Popen([sys.executable, "-c", PARENT, str(started), str(path)], env=environment) as parent:
        try:
            assert wait_until(lambda: len(list(started.iterdir())) == 2), "the processes did not start"
        finally:
            parent.send_signal(signal.SIGKILL)
    children = [int(child.name) for child in started.iterdir()]

    assert wait_until(lambda: not any(is_alive(child) for child in children)), "processes outlived their parent"


def wait_until(holds) -> bool:
    deadline = time.monotonic() + GONE_SECONDS
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def is_alive(process: int) -> bool:
    """A zombie that nobody waits for is no longer alive."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{process}/stat")
    return not status.exists() or status.read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
