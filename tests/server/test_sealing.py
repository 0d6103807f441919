"""Texts cannot be read without the key, and nobody loses it unawares."""

from __future__ import annotations

import base64
import multiprocessing
import os
import sqlite3
import stat
import threading
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from everswarm.errors import ConfigurationError
from everswarm.schemas.server import Scope
from everswarm.server.app import create_app
from everswarm.server.auth.principal import Principal
from everswarm.server.database import Database
from everswarm.server.feedback import NewInteraction, record_interaction
from everswarm.server.feedback.scrubbing import text_mask
from everswarm.server.feedback.service import check_key, recent_interactions
from everswarm.server.sealing import KEY_VARIABLE, Seal, SealSource
from everswarm.settings import FeedbackSettings, Settings

ADMIN = Principal("k", Scope.ADMIN, "admin")


@given(st.binary())
def test_what_is_sealed_opens_again_and_says_nothing(data: bytes):
    seal = Seal(bytes(32))
    assert seal.open(seal.close(data)) == data
    if data:
        assert seal.close(data) != seal.close(data)


def test_nothing_is_sealed_twice_with_one_nonce_in_threads_and_after_a_fork():
    seal = Seal(bytes(32))
    sealed: list[bytes] = []
    threads = [threading.Thread(target=lambda: sealed.extend(seal.close(b"x") for _ in range(2_000))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reader, writer = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=lambda: writer.send(seal.close(b"x")))
    child.start()
    sealed += [reader.recv(), seal.close(b"x")]
    child.join()
    assert len({item[1:13] for item in sealed}) == len(sealed)


def test_changed_text_and_another_key_are_refused_with_what_to_do():
    seal = Seal(bytes(32))
    sealed = seal.close(b"what was said")
    for wrong in (sealed[:-1] + bytes([sealed[-1] ^ 1]), b"\x07" + sealed[1:], b"short"):
        with pytest.raises(ConfigurationError, match=r"Put back the text\.key that belongs to this database"):
            seal.open(wrong)
    with pytest.raises(ConfigurationError, match="another key sealed it"):
        Seal(b"1" * 32).open(sealed)


def test_pseudonym_is_the_same_for_one_key_and_another_for_another():
    assert Seal(bytes(32)).pseudonym("ann") == Seal(bytes(32)).pseudonym("ann")
    assert len({Seal(bytes([n]) * 32).pseudonym(name) for n in (0, 1) for name in ("ann", "bob")}) == 4


def test_key_is_made_once_by_many_at_the_same_time_and_is_private(tmp_path: Path):
    file = tmp_path / "home" / "text.key"
    names: list[str] = []
    threads = [threading.Thread(target=lambda: names.append(SealSource(file).seal.pseudonym("ann"))) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(names)) == 1
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["text.key"]


@pytest.mark.parametrize("content", ["", "not base64 !", base64.b64encode(b"short").decode()])
def test_damaged_key_is_an_error_and_stays_as_it_is(tmp_path: Path, content: str):
    file = tmp_path / "text.key"
    file.write_text(content)
    with pytest.raises(ConfigurationError, match="should hold 32 bytes in base64"):
        _ = SealSource(file).seal
    assert file.read_text() == content


def test_variable_wins_and_where_there_is_neither_the_error_names_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    with pytest.raises(ConfigurationError, match=f"Set {KEY_VARIABLE} to 32 bytes in base64"):
        _ = SealSource(None).seal
    monkeypatch.setenv(KEY_VARIABLE, base64.b64encode(b"2" * 32).decode())
    source = SealSource(tmp_path / "text.key")
    assert source.seal.pseudonym("ann") == Seal(b"2" * 32).pseudonym("ann")
    assert not (tmp_path / "text.key").exists()


def test_database_file_has_nothing_of_what_was_said(database: Database, tmp_path: Path):
    asked = [{"role": "user", "content": "my secret question"}]
    trace = {"strategy": "vote", "steps": [{"detail": "a secret detail"}]}
    record_interaction(database, NewInteraction("ann", asked, "a secret answer", trace=trace))
    (shown,) = recent_interactions(database, ADMIN, limit=1)
    assert (shown.messages[0].content, shown.response) == ("my secret question", "a secret answer")
    sqlite3.connect(tmp_path / "everswarm.sqlite").execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert b"secret" not in (tmp_path / "everswarm.sqlite").read_bytes()


def test_nothing_personal_is_stored_where_raw_text_is_none(tmp_path: Path):
    Database(f"sqlite:///{tmp_path / 'x.sqlite'}").migrate()
    mask = text_mask(FeedbackSettings(raw_text="none"))
    opened = Database(f"sqlite:///{tmp_path / 'x.sqlite'}", mask=mask)
    asked = [{"role": "user", "content": "Write to ann.lee@mail.example now"}]
    trace = {"strategy": "vote", "steps": [{"detail": "ann.lee@mail.example"}]}
    record_interaction(opened, NewInteraction("ann", asked, "Sent to ann.lee@mail.example", trace=trace))
    (shown,) = recent_interactions(opened, ADMIN, limit=1)
    assert shown.messages[0].content == "Write to [EMAIL_1] now"
    assert shown.response == "Sent to [EMAIL_1]"
    opened.close()


def test_server_refuses_a_database_that_another_key_sealed(tmp_path: Path):
    settings = Settings(home=tmp_path / "home", engine={"enabled": False})
    with TestClient(create_app(settings)) as client:
        record_interaction(client.app.state.database, NewInteraction("ann", [{"role": "user", "content": "q"}], "a"))
    (tmp_path / "home" / "text.key").write_bytes(base64.b64encode(os.urandom(32)))
    with pytest.raises(ConfigurationError, match="another key sealed it"), TestClient(create_app(settings)):
        pass


def test_key_that_is_gone_is_not_made_anew(tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'x.sqlite'}"
    first = Database(url)
    first.migrate()
    check_key(first)
    first.close()
    (tmp_path / "text.key").unlink()
    second = Database(url)
    with pytest.raises(ConfigurationError, match=r"The key of this database is gone: text\.key is not there"):
        check_key(second)
    assert not (tmp_path / "text.key").exists()
    second.close()


@pytest.mark.postgres
def test_second_server_with_a_key_of_its_own_is_refused(postgres_server, postgres_template, tmp_path: Path):
    url = postgres_server.create_database(postgres_template)
    first, second = (Database(url, key_file=tmp_path / name / "text.key") for name in ("one", "two"))
    check_key(first)
    second.seal.close(b"has a key by now")
    with pytest.raises(ConfigurationError, match="another key sealed it"):
        check_key(second)
    first.close()
    second.close()
    postgres_server.drop_database(url)
