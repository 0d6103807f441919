"""`/v1/batches` with the official client over real HTTP: answered, parked, cut off, taken up again."""

from __future__ import annotations

import openai
import pytest
from sqlalchemy import func, select
from tests.server.batches.serving import json_lines, request_line, wait_until

from everswarm.schemas.server import Scope
from everswarm.server.batches import service
from everswarm.server.batches.tables import batch_items

ANSWER = "The capital of France is Paris."
TOO_MANY = {"status": 429, "body": b'{"error": {"message": "slow down"}}', "headers": {"Retry-After": "1"}}


def items_in(server) -> int:
    with server.app.state.database.read() as connection:
        return connection.execute(select(func.count()).select_from(batch_items)).scalar_one()


def asked_of(upstream) -> list[str]:
    return [request["messages"][0]["content"] for request in upstream.requests]


def test_batch_answers_each_request_in_the_order_of_the_lines(client, server, upstream, batch_of):
    lines = [request_line(f"r{number}", max_tokens=50 + number) for number in range(20)]
    begun = batch_of.begin(client, *lines, metadata={"for": "labels"})
    assert (begun.object, begun.status, begun.metadata) == ("batch", "validating", {"for": "labels"})
    assert begun.expires_at - begun.created_at == 24 * 3600
    batch = batch_of.ended(client, begun.id)
    assert (batch.status, batch.error_file_id, batch.errors) == ("completed", None, None)
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (20, 20, 0)
    assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at
    output = batch_of.lines(client, batch.output_file_id)
    assert [line["custom_id"] for line in output] == [f"r{number}" for number in range(20)]
    first = output[0]
    assert first["id"].startswith("batch_req_")
    assert first["error"] is None
    assert first["response"]["status_code"] == 200
    assert first["response"]["body"]["choices"][0]["message"]["content"] == ANSWER
    assert first["response"]["body"]["object"] == "chat.completion"
    assert sorted(request["max_tokens"] for request in upstream.requests) == list(range(50, 70))
    made = client.files.retrieve(batch.output_file_id)
    assert (made.purpose, made.filename) == ("batch_output", f"{batch.id}_output.jsonl")
    assert items_in(server) == 0, "the requests are not kept beside the files"


def test_request_that_is_wrong_is_in_the_error_file_and_stops_no_other(client, batch_of):
    lines = [
        request_line("good"),
        request_line("hot", temperature=9),
        request_line("unknown", model="no/such"),
        request_line("stream", stream=True),
    ]
    batch = batch_of.ended(client, batch_of.begin(client, *lines).id)
    assert batch.status == "completed"
    assert (batch.request_counts.completed, batch.request_counts.failed) == (1, 3)
    wrong = {line["custom_id"]: line["response"] for line in batch_of.lines(client, batch.error_file_id)}
    assert {name: response["status_code"] for name, response in wrong.items()} == {
        "hot": 422,
        "unknown": 404,
        "stream": 422,
    }
    assert wrong["hot"]["body"]["error"]["message"] == "temperature: Input should be less than or equal to 2"
    assert wrong["unknown"]["body"]["error"]["code"] == "not_found"
    assert [line["custom_id"] for line in batch_of.lines(client, batch.output_file_id)] == ["good"]


def test_batch_with_wrong_lines_fails_and_asks_nothing(client, server, upstream, batch_of):
    lines = [request_line("a"), b"{nonsense\n", request_line("a"), {**request_line("b"), "url": "/v1/embeddings"}]
    batch = batch_of.ended(client, batch_of.begin(client, *lines).id)
    assert batch.status == "failed"
    assert batch.failed_at
    assert [(error.line, error.code) for error in batch.errors.data] == [
        (2, "invalid_json_line"),
        (3, "duplicate_custom_id"),
        (4, "mismatched_url"),
    ]
    assert all(error.message for error in batch.errors.data)
    assert (batch.request_counts.total, batch.output_file_id, upstream.requests) == (0, None, [])
    assert items_in(server) == 0


def test_spent_quota_parks_the_batch_and_all_complete_after_the_refill(client, upstream, batch_of):
    for name, value in TOO_MANY.items():
        setattr(upstream.behaviour, name, value)
    begun = batch_of.begin(client, *[request_line(f"r{number}") for number in range(10)])
    waiting = wait_until(lambda: client.batches.retrieve(begun.id).everswarm["waiting_for"])
    assert "up" in waiting
    assert client.batches.retrieve(begun.id).status == "in_progress"
    upstream.behaviour.status, upstream.behaviour.body, upstream.behaviour.headers = 200, None, {}
    batch = batch_of.ended(client, begun.id)
    assert (batch.status, batch.request_counts.completed, batch.request_counts.failed) == ("completed", 10, 0)


def test_restart_in_the_middle_loses_nothing_and_repeats_only_what_was_in_flight(serve, upstream, batch_of):
    server = serve()
    key = server.key()
    upstream.behaviour.delay_seconds = 0.1
    begun = batch_of.begin(server.client(key), *[request_line(f"r{number}") for number in range(40)])
    wait_until(lambda: server.client(key).batches.retrieve(begun.id).request_counts.completed >= 10)
    server.stop()
    upstream.behaviour.delay_seconds = 0
    client = serve().client(key)
    assert client.batches.retrieve(begun.id).request_counts.completed >= 10
    batch = batch_of.ended(client, begun.id)
    assert (batch.status, batch.request_counts.completed, batch.request_counts.failed) == ("completed", 40, 0)
    output = batch_of.lines(client, batch.output_file_id)
    assert [line["custom_id"] for line in output] == [f"r{number}" for number in range(40)]
    assert set(asked_of(upstream)) == {f"question r{number}" for number in range(40)}
    assert len(upstream.requests) <= 40 + 8


def test_cancelled_batch_keeps_what_is_done(client, upstream, batch_of):
    upstream.behaviour.delay_seconds = 0.1
    begun = batch_of.begin(client, *[request_line(f"r{number}") for number in range(60)])
    wait_until(lambda: client.batches.retrieve(begun.id).request_counts.completed >= 8)
    cancelled = client.batches.cancel(begun.id)
    assert cancelled.status == "cancelling"
    assert client.batches.cancel(begun.id).status in ("cancelling", "cancelled")
    batch = batch_of.ended(client, begun.id)
    assert batch.status == "cancelled"
    assert batch.cancelled_at >= batch.cancelling_at
    done = [line["custom_id"] for line in batch_of.lines(client, batch.output_file_id)]
    not_run = batch_of.lines(client, batch.error_file_id)
    assert {line["error"]["code"] for line in not_run} == {"batch_cancelled"}
    assert done + [line["custom_id"] for line in not_run] == [f"r{number}" for number in range(60)]
    assert (len(done), len(not_run)) == (batch.request_counts.completed, batch.request_counts.failed)
    assert len(upstream.requests) == len(done), "what was in flight has ended and is in the output"
    assert client.batches.cancel(begun.id).status == "cancelled"


def test_batch_that_has_ended_cannot_be_cancelled(client, batch_of):
    begun = batch_of.ended(client, batch_of.begin(client, request_line("a")).id)
    with pytest.raises(openai.ConflictError, match="is completed; there is nothing left to cancel"):
        client.batches.cancel(begun.id)


def test_parked_batch_is_cancelled_at_once(client, upstream, batch_of):
    for name, value in {**TOO_MANY, "headers": {"Retry-After": "3000"}}.items():
        setattr(upstream.behaviour, name, value)
    begun = batch_of.begin(client, request_line("a"))
    wait_until(lambda: client.batches.retrieve(begun.id).everswarm["waiting_for"])
    client.batches.cancel(begun.id)
    batch = batch_of.ended(client, begun.id)
    assert (batch.status, batch.output_file_id, batch.request_counts.failed) == ("cancelled", None, 1)


def test_batch_of_another_looks_as_if_it_were_not_there(server, client, batch_of):
    begun = batch_of.begin(client, request_line("a"))
    other = server.client(server.key(label="bob"))
    for look in (other.batches.retrieve, other.batches.cancel):
        with pytest.raises(openai.NotFoundError, match="There is no batch"):
            look(begun.id)
    assert list(other.batches.list()) == []
    admin = server.client(server.key(Scope.ADMIN, label="root"))
    assert admin.batches.retrieve(begun.id).id == begun.id
    made = batch_of.ended(client, begun.id).output_file_id
    with pytest.raises(openai.NotFoundError):
        other.files.content(made)


def test_batches_are_listed_in_pages_the_newest_first(client, batch_of):
    ids = [batch_of.begin(client, request_line("a")).id for _ in range(5)]
    assert [batch.id for batch in client.batches.list(limit=2)] == sorted(ids, reverse=True)


def test_batch_that_cannot_begin_says_why(client, batch_of, monkeypatch):
    given = client.files.create(file=("in.jsonl", json_lines(request_line("a"))), purpose="batch")
    wanted = {"input_file_id": given.id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    with pytest.raises(openai.NotFoundError, match="There is no file 'file-none'"):
        client.batches.create(**{**wanted, "input_file_id": "file-none"})
    for wrong in ({"endpoint": "/v1/embeddings"}, {"completion_window": "1h"}, {"metadata": {"x" * 65: ""}}):
        with pytest.raises(openai.UnprocessableEntityError, match=next(iter(wrong))):
            client.batches.create(**{**wanted, **wrong})
    output = batch_of.ended(client, client.batches.create(**wanted).id).output_file_id
    with pytest.raises(openai.UnprocessableEntityError, match="has the purpose 'batch_output'"):
        client.batches.create(**{**wanted, "input_file_id": output})
    monkeypatch.setattr(service, "UNFINISHED_LIMIT", 0)
    with pytest.raises(openai.RateLimitError, match="batches of this key have not ended"):
        client.batches.create(**wanted)


def test_files_that_a_batch_makes_are_kept_as_long_as_was_asked(client, batch_of):
    kept = {"output_expires_after": {"anchor": "created_at", "seconds": 7200}}
    batch = batch_of.ended(client, batch_of.begin(client, request_line("a"), **kept).id)
    made = client.files.retrieve(batch.output_file_id)
    assert made.expires_at - made.created_at == 7200
