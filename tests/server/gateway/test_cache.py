"""Answers are found again for the same request only, and the cache never makes a request fail."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
import sqlite3
import stat
import threading

import pytest

from everswarm.errors import UnavailableError
from everswarm.server.gateway import cache as cache_module
from everswarm.server.gateway.cache import AnswerCache

ASK = {
    "model": "everswarm",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "temperature": 0,
}
DAY = 86_400


class Clock:
    """A clock that stands until it is told."""

    def __init__(self):
        self.now = 1_700_000_000.0

    def __call__(self):
        return self.now


def completion(text="Paris.", *, finish_reason="stop"):
    return {
        "id": "chatcmpl-secret",
        "object": "chat.completion",
        "created": 5,
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }


def key_of(number):
    return number.to_bytes(32, "big")


def text_of(remembered):
    return None if remembered is None else remembered.completion["choices"][0]["message"]["content"]


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache.sqlite"


@pytest.fixture
def open_cache(path, clock):
    opened = []

    def open_one(**changed):
        given = {"ttl_seconds": DAY, "size_bytes": 1024 * 1024, "clock": clock, **changed}
        opened.append(AnswerCache(path, **given))
        return opened[-1]

    yield open_one
    for cache in opened:
        cache.close()


@pytest.fixture
def cache(open_cache):
    return open_cache()


def test_answer_is_found_at_once_and_after_it_was_written(cache, open_cache, path, clock):
    clock.now += 7
    cache.put(key_of(1), user="anna", completion=completion(), about={"endpoint": "hf", "role": None})
    for reader in (cache, open_cache()):
        found = reader.get(key_of(1))
        assert found.completion == {**completion(), "id": "", "created": int(clock.now)}
        assert found.about == {"endpoint": "hf", "role": None}
        assert reader.get(key_of(2)) is None
        cache.stats()  # writes


def test_identity_of_the_first_asker_is_not_kept(cache, path):
    cache.put(key_of(1), user="anna", completion=completion())
    cache.close()
    assert b"chatcmpl-secret" not in path.read_bytes()
    assert b"Paris." in path.read_bytes()


async def test_answers_are_written_together_and_soon(cache, open_cache):
    cache.put(key_of(1), user="anna", completion=completion())
    assert text_of(cache.get(key_of(1))) == "Paris."
    assert open_cache().get(key_of(1)) is None
    await asyncio.sleep(cache_module.GATHER_SECONDS * 1.5)
    assert text_of(open_cache().get(key_of(1))) == "Paris."
    for number in range(cache_module.GATHER_ENTRIES):
        cache.put(key_of(number), user="anna", completion=completion("many"))
    assert text_of(open_cache().get(key_of(0))) == "many"


def test_answer_may_be_replaced(cache):
    cache.put(key_of(1), user="anna", completion=completion("old"))
    cache.put(key_of(1), user="anna", completion=completion("new"))
    assert text_of(cache.get(key_of(1))) == "new"
    assert cache.stats().entries == 1


async def test_expired_answer_is_not_found_held_or_written(cache, clock):
    cache.put(key_of(1), user="anna", completion=completion())
    clock.now += DAY - 1
    assert cache.get(key_of(1)) is not None
    clock.now += 1
    assert cache.get(key_of(1)) is None
    cache.stats()
    assert cache.get(key_of(1)) is None


def test_expired_answers_leave_the_file(cache, clock):
    for number in range(10):
        cache.put(key_of(number), user="anna", completion=completion())
    assert cache.stats().entries == 10
    clock.now += DAY + 61
    cache.get(key_of(99))
    assert cache.stats().entries == 0


def test_truncated_answer_is_kept_and_cut_one_is_not(cache):
    cache.put(key_of(1), user="anna", completion=completion(finish_reason="length"))
    cache.put(key_of(2), user="anna", completion=completion(finish_reason=None))
    cache.put(key_of(3), user="anna", completion={**completion(), "choices": []})
    assert [cache.get(key_of(number)) is not None for number in (1, 2, 3)] == [True, False, False]


def test_answer_larger_than_a_tenth_is_not_kept(cache):
    cache.put(key_of(1), user="anna", completion=completion("x" * 104_000))
    cache.put(key_of(2), user="anna", completion=completion("x" * 106_000))
    assert cache.get(key_of(1)) is not None
    assert cache.get(key_of(2)) is None


@pytest.mark.parametrize("text", ["\ud800", "fine"])
def test_what_cannot_be_written_is_not_kept(cache, text):
    cache.put(key_of(1), user="an\ud800na" if text == "fine" else "anna", completion=completion(text))
    assert cache.get(key_of(1)) is None
    assert cache.stats().entries == 0


def test_size_is_limited_and_answers_in_use_stay(open_cache, path, clock):
    limit = 1024 * 1024
    cache = open_cache(size_bytes=limit)
    cache.put(key_of(0), user="anna", completion=completion("in use"))
    for number in range(1, 3000):
        clock.now += 1
        cache.put(key_of(number), user="anna", completion=completion("x" * 1000))
        if number % 70 == 0:
            assert text_of(cache.get(key_of(0))) == "in use"
    stats = cache.stats()
    assert stats.size_bytes <= limit
    assert stats.entries > 500
    assert path.stat().st_size <= limit * 1.5
    assert cache.get(key_of(1)) is None
    assert cache.get(key_of(2999)) is not None
    assert text_of(cache.get(key_of(0))) == "in use"


def test_scattered_use_does_not_spoil_the_room(open_cache, clock):
    """Answers in use among those that are not would pin half-empty pages, were they not moved together."""
    cache = open_cache()
    for number in range(4000):
        clock.now += 0.5
        cache.put(key_of(number), user="anna", completion=completion("x" * 300))
        if number % 10 == 0 and number:
            cache.get(key_of(number - number % 1000 + 10 * (number // 10 % 40)))
    assert cache.stats().entries > 1100


def test_smaller_limit_begins_anew(open_cache, path):
    cache = open_cache(size_bytes=4 * 1024 * 1024)
    for number in range(1000):
        cache.put(key_of(number), user="anna", completion=completion("x" * 2000))
    cache.close()
    smaller = open_cache(size_bytes=500_000)
    assert smaller.stats().entries == 0
    assert path.stat().st_size < 500_000


def test_file_is_its_owners_alone(cache, path):
    cache.put(key_of(1), user="anna", completion=completion())
    cache.stats()
    for name in ("cache.sqlite", "cache.sqlite-wal", "cache.sqlite-shm"):
        assert stat.S_IMODE(path.with_name(name).stat().st_mode) == 0o600


def test_forgotten_user_leaves_no_trace(cache, open_cache, path):
    for number in range(40):
        cache.put(key_of(number), user="anna" if number % 2 else "berta", completion=completion(f"secret-{number}."))
    cache.forget_user("anna")
    for reader in (cache, open_cache()):
        assert reader.get(key_of(1)) is None  # was written
        assert reader.get(key_of(39)) is None  # was held
        assert text_of(reader.get(key_of(0))) == "secret-0."
    assert text_of(cache.get(key_of(38))) == "secret-38."
    stored = path.read_bytes() + path.with_name("cache.sqlite-wal").read_bytes()
    assert b"secret-0." in stored
    assert b"secret-1." not in stored
    assert b"secret-39." not in stored


def test_forgetting_works_from_another_thread(cache):
    for number in range(40):
        cache.put(key_of(number), user="anna", completion=completion())
    thread = threading.Thread(target=cache.forget_user, args=("anna",))
    thread.start()
    thread.join()
    assert cache.get(key_of(0)) is None
    assert cache.get(key_of(39)) is None
    assert cache.stats().entries == 0


def test_clear_takes_all(cache):
    for number in range(40):
        cache.put(key_of(number), user=f"user{number}", completion=completion())
    cache.clear()
    assert cache.stats().entries == 0
    assert cache.get(key_of(39)) is None


def test_forgetting_in_a_damaged_file_takes_all(cache, path, clock):
    cache.put(key_of(1), user="anna", completion=completion("secret"))
    cache.stats()
    path.with_name("cache.sqlite-wal").write_bytes(b"")
    path.write_bytes(b"no database" * 1000)
    cache.forget_user("anna")
    assert not path.exists() or b"secret" not in path.read_bytes()
    assert cache.get(key_of(1)) is None
    cache.put(key_of(2), user="anna", completion=completion())
    assert cache.stats().entries == 1


def test_forgetting_that_is_impossible_is_an_error(cache, path):
    cache.put(key_of(1), user="anna", completion=completion())
    cache.stats()
    path.unlink()
    path.mkdir()
    with pytest.raises(UnavailableError, match=r"could not be erased: .* Stop the server, remove that file"):
        cache.forget_user("anna")


def test_erasure_waits_for_another_writer(cache, path):
    cache.put(key_of(1), user="anna", completion=completion())
    cache.stats()
    writer = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    writer.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(0.1, writer.execute, ["COMMIT"])
    timer.start()
    cache.forget_user("anna")
    timer.join()
    writer.close()
    assert cache.get(key_of(1)) is None


@pytest.mark.parametrize("content", [b"not a database at all" * 500, b"SQLite format 3\0" + b"\xff" * 8000, b"short"])
def test_damaged_file_is_begun_anew(open_cache, path, content):
    path.write_bytes(content)
    cache = open_cache()
    cache.put(key_of(1), user="anna", completion=completion())
    assert cache.stats().entries == 1
    assert text_of(cache.get(key_of(1))) == "Paris."


def test_file_damaged_while_in_use_is_begun_anew(cache, path):
    for number in range(300):
        cache.put(key_of(number), user="anna", completion=completion("x" * 500))
    cache.stats()
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    other.close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(size - 4096))
    for number in range(300):
        cache.get(key_of(number))
        cache.put(key_of(1000 + number), user="anna", completion=completion())
    cache.stats()
    cache.put(key_of(1), user="anna", completion=completion("again"))
    assert cache.stats().entries >= 1
    assert text_of(cache.get(key_of(1))) == "again"


@pytest.mark.parametrize("version", [0, 99])
def test_table_of_another_version_is_begun_anew(open_cache, path, version):
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE answers (something TEXT)")
        other.execute(f"PRAGMA user_version={version}")
    other.close()
    cache = open_cache()
    cache.put(key_of(1), user="anna", completion=completion())
    assert cache.stats().entries == 1


def test_answer_damaged_within_its_row_is_not_found(cache, path):
    cache.put(key_of(1), user="anna", completion=completion())
    cache.stats()
    with sqlite3.connect(path) as other:
        other.execute("UPDATE answers SET completion = ?", (b'{"half',))
    other.close()
    assert cache.get(key_of(1)) is None
    cache.put(key_of(1), user="anna", completion=completion())
    assert cache.get(key_of(1)) is not None


def test_removed_file_is_made_again(cache, path, clock):
    cache.put(key_of(1), user="anna", completion=completion())
    cache.stats()
    for name in ("cache.sqlite", "cache.sqlite-wal", "cache.sqlite-shm"):
        path.with_name(name).unlink()
    clock.now += cache_module.LOOK_SECONDS
    assert cache.get(key_of(1)) is None
    cache.put(key_of(2), user="anna", completion=completion())
    assert cache.stats().entries == 1
    assert path.exists()


def test_place_that_cannot_be_used_keeps_nothing(tmp_path, clock, caplog):
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        cache = AnswerCache(tmp_path / "file" / "cache.sqlite", ttl_seconds=DAY, size_bytes=1024 * 1024, clock=clock)
        for _ in range(5):
            clock.now += 61
            cache.put(key_of(1), user="anna", completion=completion())
            assert cache.get(key_of(1)) is None
    assert cache.stats() == (0, 0)
    cache.close()
    assert len(caplog.records) == 1
    assert "answers are not kept in" in caplog.text


def test_full_disk_keeps_nothing_and_harms_nobody(cache, path, caplog):
    cache.put(key_of(1), user="anna", completion=completion())
    cache.stats()
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = path.with_name("cache.sqlite-wal").stat().st_size
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        for number in range(2, 200):
            cache.put(key_of(number), user="anna", completion=completion("x" * 500))
        assert text_of(cache.get(key_of(1))) == "Paris."
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert cache.get(key_of(2)) is None
    assert len([record for record in caplog.records if "not kept" in record.message]) == 1
    cache.put(key_of(500), user="anna", completion=completion())
    cache.stats()
    assert cache.get(key_of(500)) is not None


async def test_locked_file_delays_and_then_drops_without_waiting(cache, path):
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    cache.put(key_of(1), user="anna", completion=completion())
    cache.stats()
    assert cache.get(key_of(1)) is not None  # held
    writer.execute("COMMIT")
    await asyncio.sleep(cache_module.GATHER_SECONDS * 1.5)
    assert writer.execute("SELECT count(*) FROM answers").fetchone() == (1,)
    writer.execute("BEGIN IMMEDIATE")
    held = cache_module.GATHER_ENTRIES * cache_module.HELD_TIMES
    for number in range(10 * held):
        cache.put(key_of(number + 10), user="anna", completion=completion())
    writer.execute("COMMIT")
    found = sum(cache.get(key_of(number + 10)) is not None for number in range(10 * held))
    assert found < held
    assert cache.stats().entries <= held
    writer.close()


def test_closed_cache_finds_and_keeps_nothing(cache):
    cache.put(key_of(1), user="anna", completion=completion())
    cache.close()
    cache.put(key_of(2), user="anna", completion=completion())
    assert cache.get(key_of(1)) is None
    assert cache.get(key_of(2)) is None
    assert cache.stats() == (0, 0)
    cache.close()


def _put_many(path, start, together):
    together.wait(60)
    cache = AnswerCache(path, ttl_seconds=DAY, size_bytes=4 * 1024 * 1024)
    for number in range(start, start + 500):
        cache.put(key_of(number), user="anna", completion=completion(f"answer {number}"))
        assert text_of(cache.get(key_of(number))) == f"answer {number}"
        assert text_of(cache.get(key_of((number + 500) % 1000))) in {None, f"answer {(number + 500) % 1000}"}
    cache.close()


def test_two_processes_use_one_file(path, open_cache):
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(2)  # both make the file at the same moment
    processes = [context.Process(target=_put_many, args=(path, start, together)) for start in (0, 500)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    cache = open_cache(size_bytes=4 * 1024 * 1024)
    found = [number for number in range(1000) if text_of(cache.get(key_of(number))) == f"answer {number}"]
    assert len(found) > 500  # what met a lock at its very end may be lost
