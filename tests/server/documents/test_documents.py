from __future__ import annotations

import json
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from everswarm.errors import BadRequestError, TooLargeError
from everswarm.schemas.document import DocumentCreate
from everswarm.schemas.server import Scope
from everswarm.server.auth import create_key
from everswarm.server.database import Database
from everswarm.server.documents import has_documents, repository, search_text, service
from everswarm.server.documents.routes import router
from everswarm.server.documents.tables import document_passages, documents
from everswarm.server.edge.problems import install_error_handlers

HARVEST = {"title": "Harvest plan", "text": "Apples are picked in September.\n\nPears wait until October."}
IDENTIFIER = r"[A-Za-z0-9][A-Za-z0-9._:@/+-]{0,20}"
HOSTILE = [
    '"', "'", '"unbalanced', "it's", "NEAR(", "NEAR(a b, 2)", "a AND", "OR OR", "NOT", "*", "a*", "-a", "title:apples",
    "user:key", "^a", "a + b", "{title}:x", "(", "))", ":", "\\", "a\\'b", "& | ! <->", "a:*", "%", "_", "?1", "\x00",
    "'; DROP TABLE documents; --", "🦆", "🦆apples🦆", "", "   ", "x" * 100_000, "apples " * 15_000, "\ud800", "²", "ﬁ",
    "हिन्दी", "\u0345", "İ", "你好", "\u202eevil",
]  # fmt: skip


def add(database: Database, user: str, title: str, text: str) -> str:
    document, _ = service.add_document(database, user, DocumentCreate(title=title, text=text))
    return document.id


def titles_found(database: Database, user: str, query: str) -> list[str]:
    return [found.title for found in service.search_documents(database, user, query, limit=10)]


def headers_of(database: Database, scope: Scope = Scope.USER) -> dict[str, str]:
    return {"Authorization": f"Bearer {create_key(database, scope=scope, label='a key').key}"}


def rows_left(database: Database) -> list[int]:
    with database.read() as connection:
        return [
            connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in (documents, document_passages)
        ]


@pytest.fixture
def client(database: Database) -> TestClient:
    app = FastAPI()
    app.state.database = database
    install_error_handlers(app)
    app.include_router(router)
    return TestClient(app, raise_server_exceptions=False)


def test_document_is_kept_listed_read_found_and_deleted(client: TestClient, database: Database):
    headers = headers_of(database)
    made = client.post("/api/documents", json=HARVEST, headers=headers)
    assert made.status_code == 201
    document = made.json()
    assert (document["title"], document["characters"], document["passages"]) == ("Harvest plan", 58, 1)
    assert client.get("/api/documents", headers=headers).json() == [document]
    assert client.get(f"/api/documents/{document['id']}", headers=headers).json() == document | {
        "text": HARVEST["text"]
    }
    (found,) = client.get("/api/documents/search?q=When are pears picked?", headers=headers).json()
    assert found["score"] > 0
    assert found | {"score": 0} == {
        "document_id": document["id"], "title": "Harvest plan", "position": 0, "text": HARVEST["text"], "score": 0,
    }  # fmt: skip
    assert client.delete(f"/api/documents/{document['id']}", headers=headers).status_code == 204
    assert client.get("/api/documents/search?q=pears", headers=headers).json() == []
    assert client.delete(f"/api/documents/{document['id']}", headers=headers).status_code == 404
    assert rows_left(database) == [0, 0]


def test_same_document_again_is_the_one_that_is_there(client: TestClient, database: Database):
    headers = headers_of(database)
    first = client.post("/api/documents", json=HARVEST, headers=headers)
    again = client.post("/api/documents", json=HARVEST, headers=headers)
    assert (again.status_code, again.json()) == (200, first.json())
    other = client.post("/api/documents", json={**HARVEST, "title": "Another"}, headers=headers)
    assert other.status_code == 201
    assert [found["title"] for found in client.get("/api/documents", headers=headers).json()] == [
        "Another",
        "Harvest plan",
    ]
    assert len(client.get("/api/documents?limit=1", headers=headers).json()) == 1


def test_document_that_another_request_stored_meanwhile_is_not_doubled(database: Database, monkeypatch: Any):
    first = add(database, "key-1", **HARVEST)
    monkeypatch.setattr(repository, "find_same", lambda *_, **__: None)  # it came between our look and our write
    assert add(database, "key-1", **HARVEST) == first
    assert rows_left(database) == [1, 1]


@pytest.mark.parametrize("scope", [Scope.USER, Scope.DEVICE, Scope.ADMIN])
def test_key_sees_only_its_own_documents(client: TestClient, database: Database, scope: Scope):
    mine, theirs = headers_of(database), headers_of(database, scope)
    document_id = client.post("/api/documents", json=HARVEST, headers=mine).json()["id"]
    assert client.get("/api/documents", headers=theirs).json() == []
    assert client.get("/api/documents/search?q=apples", headers=theirs).json() == []
    for method in ("GET", "DELETE"):
        refused = client.request(method, f"/api/documents/{document_id}", headers=theirs)
        assert refused.status_code == 404 and "of yours" in refused.json()["detail"]
    assert client.post("/api/documents", json=HARVEST, headers=theirs).json()["id"] != document_id
    assert rows_left(database) == [2, 2]


def test_admin_acts_for_the_person_of_its_chats(client: TestClient, database: Database):
    admin, ann = headers_of(database, Scope.ADMIN), {"user": 'ann "a" b'}
    id_ = client.post("/api/documents", json=HARVEST, headers=admin, params=ann).json()["id"]
    assert client.get("/api/documents", headers=admin).json() == []
    assert titles_found(database, ann["user"], "apples") == ["Harvest plan"]
    for path in ("", f"/{id_}", "/search"):
        sent = client.get(f"/api/documents{path}", headers=admin, params={**ann, "q": "apples"})
        assert sent.status_code == 200
        assert "Harvest plan" in sent.text
    assert client.delete(f"/api/documents/{id_}", headers=admin).status_code == 404
    assert client.delete(f"/api/documents/{id_}", headers=admin, params=ann).status_code == 204


@pytest.mark.parametrize("scope", [Scope.USER, Scope.DEVICE])
def test_nobody_else_acts_for_another(client: TestClient, database: Database, scope: Scope):
    headers, id_ = headers_of(database, scope), add(database, "ann", **HARVEST)
    for method, path in (("GET", ""), ("POST", ""), ("GET", "/search"), ("GET", f"/{id_}"), ("DELETE", f"/{id_}")):
        options = {"json": HARVEST} if method == "POST" else {}
        params = {"user": "ann", "q": "apples"}
        refused = client.request(method, f"/api/documents{path}", headers=headers, params=params, **options)
        assert refused.status_code == 403
        assert "only one with the scope admin may act for others" in refused.json()["detail"]
    assert rows_left(database) == [1, 1]


def test_key_of_a_worker_and_no_key_are_refused(client: TestClient, database: Database):
    assert client.get("/api/documents", headers=headers_of(database, Scope.WORKER)).status_code == 403
    assert client.get("/api/documents").status_code == 401


@pytest.mark.parametrize(
    "sent",
    [{}, {"title": "", "text": "x"}, {"title": "x", "text": ""}, {"title": " ", "text": "x"},
     {"title": "x", "text": "\n \t"}, {"title": "x" * 201, "text": "x"}, {"title": "x", "text": "x" * 1_000_001},
     {"title": "x", "text": "\x00"}, {"title": "x", "text": "\ud800"},
     {"title": 1, "text": []}, {**HARVEST, "other": 1}, []],
)  # fmt: skip
def test_document_that_is_none_is_refused(client: TestClient, database: Database, sent: Any):
    refused = client.post("/api/documents", content=json.dumps(sent), headers=headers_of(database))
    assert refused.status_code == 422 and refused.json()["detail"]
    assert rows_left(database) == [0, 0]


def test_character_that_postgres_cannot_hold_is_left_out(database: Database):
    document_id = add(database, "key-1", title="a\x00 \n b", text="one\x00two")
    stored = service.get_document(database, "key-1", document_id)
    assert (stored.title, stored.text) == ("a b", "onetwo")


def test_number_of_documents_is_limited(database: Database, monkeypatch: Any):
    monkeypatch.setattr(service, "MAX_DOCUMENTS", 2)
    add(database, "key-1", title="1", text="one")
    add(database, "key-1", title="2", text="two")
    with pytest.raises(BadRequestError, match=r"have 2 documents, and one key may keep 2\. Delete some: GET"):
        add(database, "key-1", title="3", text="three")
    add(database, "key-1", title="2", text="two")  # is there already
    add(database, "key-2", title="3", text="three")


def test_size_of_all_texts_is_limited(database: Database, monkeypatch: Any):
    monkeypatch.setattr(service, "MAX_KEPT_BYTES", 10)
    add(database, "key-1", title="1", text="äöü")
    with pytest.raises(TooLargeError, match=r"has 5 bytes; .* more than 10, .* Delete some: GET"):
        add(database, "key-1", title="2", text="three")
    add(database, "key-1", title="2", text="four")


@pytest.mark.parametrize("query", HOSTILE)
def test_any_text_is_a_query(database: Database, query: str):
    add(database, "key-1", **HARVEST)
    assert len(titles_found(database, "key-1", query)) == ("apples" in query)


def test_any_text_is_a_query_of_any_user_and_any_document(database: Database):
    @settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        text=st.text(min_size=1, max_size=200),
        query=st.text(max_size=100),
        user=st.from_regex(IDENTIFIER, fullmatch=True),
    )
    def check(text: str, query: str, user: str) -> None:
        try:
            add(database, user, "A title", f"zebra {text}")
        except BadRequestError:
            return
        service.search_documents(database, user, query, limit=3)
        assert titles_found(database, user, f"zebra {query}")

    check()


@pytest.mark.parametrize(
    ("query", "text"),
    [("CAFÉ", "the cafe"), ("cafe", "a Café\u0301"), ("invoice", "two invoices"), ("invoices", "an invoice"),
     ("bar", "foo/bar"), ("हिन्दी", "यह हिन्दी है"), ("한국", "한국 서울"), ("3.14", "pi is 3.14"),
     ("x_1", "call x_1()"),
     ("example.org", "see https://example.org/a?b=c"), ("e-mail", "my email or e-mail")],
)  # fmt: skip
def test_word_is_found_in_all_its_forms(database: Database, query: str, text: str):
    add(database, "key-1", title="a title", text=text)
    add(database, "key-1", title="no hit", text="nothing of that kind")
    assert titles_found(database, "key-1", query) == ["a title"]


def test_title_counts_more_than_text_and_more_words_more_than_fewer(database: Database):
    add(database, "key-1", title="Notes", text="The boiler is old.")
    add(database, "key-1", title="Boiler", text="The engine is old.")
    add(database, "key-1", title="Diary", text="Nothing happened today.")
    assert titles_found(database, "key-1", "boiler") == ["Boiler", "Notes"]
    add(database, "key-1", title="Manual", text="Drain the boiler before you change the valve of the boiler.")
    assert titles_found(database, "key-1", "how do I change the valve of the boiler?")[0] == "Manual"


def test_search_of_one_user_is_not_crowded_out_by_others(database: Database):
    for number in range(30):
        add(database, "key-2", title=f"Boiler {number}", text="boiler boiler boiler")
    add(database, "key-1", title="Mine", text="A long text in which the word boiler occurs once, and late.")
    assert titles_found(database, "key-1", "boiler") == ["Mine"]


def test_long_document_is_found_where_it_fits(database: Database):
    sentences = [f"Room {number} holds item{number}." for number in range(300)]
    add(database, "key-1", title="Inventory", text=" ".join(sentences))
    found = service.search_documents(database, "key-1", "item250", limit=1)
    assert "item250." in found[0].text and found[0].position > 0


def test_deleted_document_is_found_no_more_and_the_index_stays_whole(database: Database):
    gone = add(database, "key-1", title="Old", text="zebra " * 500)
    add(database, "key-1", title="New", text="zebra and quagga")
    service.delete_document(database, "key-1", gone)
    assert titles_found(database, "key-1", "zebra") == ["New"]
    with database.transaction() as connection:  # as erasing a whole account would do it
        connection.execute(documents.delete())
    assert titles_found(database, "key-1", "zebra") == []
    assert rows_left(database) == [0, 0]
    if database.engine.dialect.name == "sqlite":
        with database.transaction() as connection:
            connection.exec_driver_sql("INSERT INTO passage_words (passage_words) VALUES ('integrity-check')")


def test_failure_half_way_leaves_nothing(database: Database, monkeypatch: Any):
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    document_id = add(database, "key-1", **HARVEST)
    monkeypatch.setattr(repository, "insert_passages", fail)
    with pytest.raises(ZeroDivisionError):
        add(database, "key-1", title="Another", text="zebra")
    assert rows_left(database) == [1, 1]
    with pytest.raises(ZeroDivisionError), database.transaction() as connection:
        repository.delete_document(connection, document_id, user="key-1")
        raise ZeroDivisionError
    assert rows_left(database) == [1, 1]
    assert titles_found(database, "key-1", "apples") == ["Harvest plan"]


def test_text_for_a_model_names_the_documents(database: Database):
    assert not has_documents(database, "key-1")
    add(database, "key-1", **HARVEST)
    assert has_documents(database, "key-1") and not has_documents(database, "key-2")
    assert search_text(database, "key-1", "apples") == f"[Harvest plan]\n{HARVEST['text']}"
    assert search_text(database, "key-2", "apples\n?") == "Nothing found in your documents for: apples ?"
    assert search_text(database, "key-2", "\ud800").endswith("for: ?")
    assert len(search_text(database, "key-2", "x" * 100_000)) < 300


def test_document_of_a_million_characters_is_found_to_its_end(database: Database):
    add(database, "key-1", title="Long", text="A sentence of words. " * 47_600 + "A needle.")
    (found,) = service.search_documents(database, "key-1", "needle", limit=10)
    assert found.text.endswith("A needle.")
