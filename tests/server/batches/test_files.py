"""`/v1/files` with the official client over real HTTP."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import httpx
import openai
import pytest
from sqlalchemy import func, select

from everswarm.schemas.server import Scope
from everswarm.server import app as app_module
from everswarm.server.batches import files
from everswarm.server.batches.tables import file_pieces
from everswarm.server.batches.tables import files as files_table

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def upload(client, content=b"{}\n", **options):
    return client.files.create(file=("in.jsonl", content), purpose="batch", **options)


def pieces_in(database) -> int:
    with database.read() as connection:
        return connection.execute(select(func.count()).select_from(file_pieces)).scalar_one()


def test_file_goes_in_and_comes_out_as_it_was(client, server):
    content = bytes(range(256)) * 12_000  # over the limit of other bodies, and not a whole number of pieces
    sent = upload(client, content)
    assert (sent.object, sent.bytes, sent.filename, sent.purpose) == ("file", len(content), "in.jsonl", "batch")
    assert sent.expires_at - sent.created_at == 30 * 24 * 3600
    assert client.files.retrieve(sent.id) == sent
    assert client.files.content(sent.id).read() == content
    assert pieces_in(server.app.state.database) == 3


def test_deleted_file_is_gone_with_its_bytes(client, server):
    sent = upload(client)
    assert client.files.delete(sent.id).deleted
    with pytest.raises(openai.NotFoundError, match="There is no file"):
        client.files.content(sent.id)
    assert pieces_in(server.app.state.database) == 0


def test_files_are_listed_in_pages_by_age(client):
    ids = [upload(client).id for _ in range(5)]
    assert [file.id for file in client.files.list(limit=2, order="asc")] == sorted(ids)
    assert [file.id for file in client.files.list(limit=2)] == sorted(ids, reverse=True)
    assert list(client.files.list(purpose="batch_output")) == []


def test_file_of_another_looks_as_if_it_were_not_there(server, client):
    sent = upload(client)
    other = server.client(server.key(label="bob"))
    for look in (other.files.retrieve, other.files.content, other.files.delete):
        with pytest.raises(openai.NotFoundError, match="There is no file"):
            look(sent.id)
    assert list(other.files.list()) == []
    with pytest.raises(openai.NotFoundError):
        other.batches.create(input_file_id=sent.id, endpoint="/v1/chat/completions", completion_window="24h")
    admin = server.client(server.key(Scope.ADMIN, label="root"))
    assert [file.id for file in admin.files.list()] == [sent.id]


def test_file_is_kept_as_long_as_was_asked(client):
    sent = upload(client, expires_after={"anchor": "created_at", "seconds": 3600})
    assert sent.expires_at - sent.created_at == 3600
    with pytest.raises(openai.UnprocessableEntityError, match=r"expires_after\.seconds: .*greater than or equal to 36"):
        upload(client, expires_after={"anchor": "created_at", "seconds": 5})


def test_upload_that_cannot_be_used_says_why_and_leaves_nothing(client, server, monkeypatch):
    with pytest.raises(openai.UnprocessableEntityError, match="The file is empty"):
        upload(client, b"")
    with pytest.raises(openai.UnprocessableEntityError, match="send purpose=batch"):
        client.files.create(file=b"x", purpose="vision")
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 10)
    with pytest.raises(openai.APIStatusError, match="more than 10 bytes") as failure:
        upload(client, b"x" * 11)
    assert failure.value.status_code == 413
    monkeypatch.setattr(files, "OWNER_LIMIT_BYTES", 15)
    upload(client, b"x" * 8)
    with pytest.raises(openai.APIStatusError, match="your files would have more than 15 bytes"):
        upload(client, b"x" * 8)
    with server.app.state.database.read() as connection:
        assert len(connection.execute(select(files_table)).all()) == 1


def test_upload_needs_a_form_and_a_key(server):
    headers = {"Authorization": f"Bearer {server.key()}"}
    answer = httpx.post(f"{server.url}/files", json={"purpose": "batch"}, headers=headers)
    assert (answer.status_code, answer.json()["error"]["message"].split(":")[0]) == (422, "file")
    assert httpx.post(f"{server.url}/files", files={"file": b"x"}, data={"purpose": "batch"}).status_code == 401
    device = {"Authorization": f"Bearer {server.key(Scope.DEVICE, label='phone')}"}
    assert httpx.get(f"{server.url}/files", headers=device).status_code == 403


@pytest.mark.parametrize("chunked", [False, True])
def test_body_over_the_limit_of_uploads_is_refused(serve, monkeypatch, chunked):
    monkeypatch.setattr(app_module, "UPLOAD_BODY_BYTES", 3_000_000)
    server = serve()
    start = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
    body = start + b"x" * 3_000_000
    headers = {"Authorization": f"Bearer {server.key()}", "Content-Type": "multipart/form-data; boundary=b"}
    content = (body[place : place + 65536] for place in range(0, len(body), 65536)) if chunked else body
    answer = httpx.post(f"{server.url}/files", content=content, headers=headers)
    assert answer.status_code == 413
    assert answer.json()["error"]["message"].endswith("Send it in smaller parts.")


def test_old_files_and_abandoned_ones_are_deleted(database):
    options = {"owner": "ann", "filename": "f", "now": NOW, "kept_seconds": files.ABANDONED_SECONDS + 3600}
    whole = files.upload_file(database, [b"x"], **options)
    files.receive_file(database, [b"x"], purpose=files.OUTPUT, **options)  # its server is killed here
    after = NOW + timedelta(seconds=files.ABANDONED_SECONDS)
    assert files.delete_old_files(database, now=after) == 0
    assert files.delete_old_files(database, now=after + timedelta(seconds=1)) == 1
    assert files.get_file(database, whole.id, owner="ann") == whole
    assert files.delete_old_files(database, now=after + timedelta(seconds=3600)) == 1
    assert pieces_in(database) == 0


def test_name_of_a_file_is_made_printable(database):
    row = files.upload_file(database, [b"x"], owner="ann", filename="a\0\nb" + "x" * 300, now=NOW, kept_seconds=3600)
    assert row.filename == "a__b" + "x" * 196
