"""Erasing a user, a device, an interaction: what goes, what stays, what had seen it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select
from tests.server.erasure.world import NOW, World

from everswarm.errors import BadRequestError, NotFoundError
from everswarm.identifiers import new_id
from everswarm.schemas.artifact import ArtifactKind
from everswarm.schemas.document import DocumentCreate
from everswarm.schemas.interaction import JudgedInteraction
from everswarm.schemas.server import Scope
from everswarm.server.auth.service import create_key, principal_of
from everswarm.server.batches.tables import batches
from everswarm.server.batches.tables import files as batch_files
from everswarm.server.cycles.repository import results_of, update_cycle
from everswarm.server.database import Database
from everswarm.server.documents.repository import search
from everswarm.server.documents.service import add_document
from everswarm.server.erasure import erase
from everswarm.server.erasure.repository import mark_erased
from everswarm.server.erasure.service import delete_erased_files
from everswarm.server.feedback.batches import store_batch
from everswarm.server.feedback.repository import erased_among
from everswarm.server.feedback.tables import erased, feedback, interactions, review_decisions, reviews
from everswarm.server.fleet.tables import devices, releases
from everswarm.server.gateway.cache import AnswerCache
from everswarm.server.gateway.tables import usage
from everswarm.server.registry.tables import artifacts
from everswarm.server.threads.service import append_turns
from everswarm.server.threads.tables import thread_turns, threads


def reviewed(world: World, name: str, *, reviewer: str) -> None:
    review = new_id()
    world.insert(reviews, id=review, interaction_id=name, reason="doubt", score=0.5, state="open", created_at=NOW)
    world.insert(
        review_decisions,
        id=new_id(),
        review_id=review,
        reviewer=reviewer,
        verdict="accept",
        comment="hm",
        created_at=NOW,
    )


def used(world: World, name: str) -> None:
    numbers = {"latency_seconds": 1.0, "queue_seconds": 0.0, "price_usd": 0.5}
    texts = {"endpoint": "e", "model": "m", "priority": "interactive", "outcome": "answered"}
    world.insert(usage, id=new_id(), interaction_id=name, created_at=NOW, **texts, **numbers)


def uploaded(world: World, owner: str) -> None:
    about = {"filename": "f", "purpose": "batch", "state": "processed", "size_bytes": 1}
    name = f"file-{owner}"
    world.insert(batch_files, id=name, owner=owner, created_at=NOW, expires_at=NOW, **about)
    counted = {"total": 0, "completed": 0, "failed": 0, "output_seconds": 1, "completion_window": "24h"}
    asked = {"status": "completed", "endpoint": "/v1/chat/completions", "input_file_id": name}
    world.insert(batches, id=f"batch-{owner}", owner=owner, created_at=NOW, expires_at=NOW, **asked, **counted)


def said(world: World, user: str, thread_id: str, name: str, *, is_new: bool) -> None:
    append_turns(
        world.database,
        user=user,
        thread_id=thread_id,
        question="q",
        answer="a",
        interaction_id=name,
        is_new=is_new,
    )


def test_everything_of_a_user_goes_and_nothing_of_others(database: Database, world: World) -> None:
    for user in ("anna", "bert"):
        thread_id = new_id()
        world.asks(user, f"{user}-1", thread_id=thread_id)
        said(world, user, thread_id, f"{user}-1", is_new=True)
        reviewed(world, f"{user}-1", reviewer="key-r")
        used(world, f"{user}-1")
        uploaded(world, user)
        add_document(database, user, DocumentCreate(title="t", text=f"{user} collects stamps"))
    done = erase(database, world.storage, user="anna")
    assert {name: count for name, count in done.erased.model_dump().items() if count} == {
        "interactions": 1,
        "judgements": 1,
        "reviews": 1,
        "threads": 1,
        "turns": 2,
        "documents": 1,
        "batches": 1,
        "batch_files": 1,
        "usage": 1,
    }
    for table in (interactions, feedback, reviews, review_decisions, threads, batches, batch_files):
        assert world.count(table) == 1, table.name
    assert world.count(thread_turns) == 2
    assert world.count(interactions, interactions.c.user == "bert") == 1
    assert world.count(usage) == 2  # what it cost stays
    assert world.count(usage, usage.c.interaction_id.is_not(None)) == 1
    with database.read() as connection:
        assert not search(connection, user="anna", query="stamps", limit=5)
        assert search(connection, user="bert", query="stamps", limit=5)


def test_an_erased_record_that_is_sent_again_is_refused(database: Database, world: World) -> None:
    world.asks("anna", "anna-1")
    erase(database, world.storage, user="anna")
    record: dict[str, Any] = {"device_id": "anna", "timestamp": NOW, "messages": [{"role": "user", "content": "q"}]}
    again = [JudgedInteraction(id=name, rating=5, **record) for name in ("anna-1", "anna-2")]
    store_batch(database, again, source="import")
    with database.read() as connection:
        assert connection.execute(select(interactions.c.id)).scalars().all() == ["anna-2"]


def test_only_erased_ids_are_refused(database: Database, world: World) -> None:
    with database.read() as connection:
        assert erased_among(connection, ["anna-1"]) == set()
    ids = [world.asks("anna", f"anna-{number}") for number in range(3)]
    erase(database, world.storage, user="anna")
    with database.read() as connection:
        assert erased_among(connection, [*ids, "bert-1"]) == set(ids)
        assert b"anna-1" not in b"".join(connection.execute(select(erased.c.fingerprint)).scalars())


def test_what_a_user_said_of_others_and_votes_against_theirs_go(database: Database, world: World) -> None:
    world.asks("anna", "anna-1")
    world.asks("bert", "bert-1")
    world.judges("anna", "bert-1", correction="anna knows better")
    world.judges("bert", "bert-1", rating=None, preferred_over="anna-1")
    done = erase(database, world.storage, user="anna")
    assert done.erased.judgements == 3
    with database.read() as connection:
        assert connection.execute(select(feedback.c.user)).scalars().all() == ["bert"]


def test_a_reviewer_who_is_erased_decided_all_the_same(database: Database, world: World) -> None:
    world.asks("bert", "bert-1")
    reviewed(world, "bert-1", reviewer="anna")
    world.asks("anna", "anna-1")
    erase(database, world.storage, user="anna")
    with database.read() as connection:
        row = connection.execute(select(review_decisions)).one()
    assert (row.reviewer, row.verdict, row.comment) == (database.seal.pseudonym("anna"), "accept", None)


def test_a_device_goes_with_its_key_and_its_enrolment(database: Database, world: World) -> None:
    made = create_key(database, scope=Scope.DEVICE, label="phone")
    key = principal_of(database, made.key).user
    world.enrols("phone", key_id=made.id)
    world.asks("phone", "sent", sender=key, source="device", escalated_to="answered")
    world.asks(key, "answered")
    world.asks("tablet", "of-another")
    done = erase(database, world.storage, device="phone")
    assert (done.erased.interactions, done.erased.devices) == (2, 1)
    assert world.count(interactions) == 1
    assert world.count(devices) == 0
    assert any(key in sentence and "keys revoke" in sentence for sentence in done.next_steps)


def test_an_admin_who_sent_for_a_device_keeps_what_is_theirs(database: Database, world: World) -> None:
    admin = principal_of(database, create_key(database, scope=Scope.ADMIN, label="a").key).user
    world.asks("phone", "sent", sender=admin, source="device")
    world.asks("tablet", "sent-for-another", sender=admin, source="device")
    world.asks(admin, "own")
    assert erase(database, world.storage, device="phone").erased.interactions == 1
    assert world.count(interactions) == 2


def test_a_person_is_found_by_the_name_that_the_application_uses(database: Database, world: World) -> None:
    world.asks("Anna-M-ller", "anna-1", sender="key-app")
    said(world, "Anna Müller", new_id(), "other", is_new=True)
    done = erase(database, world.storage, user="Anna Müller")
    assert (done.erased.interactions, done.erased.threads) == (1, 1)


def test_an_interaction_goes_with_its_conversation_and_its_better_answer(database: Database, world: World) -> None:
    thread_id = new_id()
    for number in range(3):
        world.asks("anna", f"anna-{number}", thread_id=thread_id)
        said(world, "anna", thread_id, f"anna-{number}", is_new=number == 0)
    world.asks("phone", "attempt", sender="key-p", source="device", escalated_to="better")
    world.asks("key-p", "better")
    world.asks("anna", "alone")
    assert erase(database, world.storage, interaction="anna-1").erased.interactions == 3
    assert world.count(threads) == 0
    assert erase(database, world.storage, interaction="better").erased.interactions == 2
    with database.read() as connection:
        assert connection.execute(select(interactions.c.id)).scalars().all() == ["alone"]


def test_who_is_not_known_is_said_so_and_no_names_are_listed(database: Database, world: World) -> None:
    world.asks("anna", "anna-1")
    for named in ({"user": "ann"}, {"device": "ann"}, {"interaction": "anna-2"}):
        with pytest.raises(NotFoundError, match="Nothing is known of the") as error:
            erase(database, world.storage, **named)
        assert "anna-1" not in str(error.value)
    assert world.count(erased) == 0


@pytest.mark.parametrize("named", [{}, {"user": "anna", "device": "phone"}])
def test_exactly_one_is_named(database: Database, world: World, named: dict[str, str]) -> None:
    with pytest.raises(BadRequestError, match="exactly one of user, device, interaction"):
        erase(database, world.storage, **named)


def test_a_dry_run_counts_and_changes_nothing(database: Database, world: World) -> None:
    world.asks("anna", "anna-1")
    made = world.runs_cycle("c1", {"anna-1": "anna"})
    done = erase(database, world.storage, user="anna", files=True, dry_run=True)
    assert done.dry_run
    assert (done.erased.interactions, done.erased.evaluation_answers) == (1, 1)
    assert done.files > 0
    assert not done.files_deleted
    assert world.count(interactions) == 1
    assert world.count(erased) == 0
    assert world.count(artifacts, artifacts.c.name.like("erased: %")) == 0
    assert world.has_file(made["dataset"])
    real = erase(database, world.storage, user="anna", files=True)
    assert (real.erased, real.files, real.files_bytes) == (done.erased, done.files, done.files_bytes)


def test_what_saw_a_device_is_named_down_to_the_devices_that_run_it(database: Database, world: World) -> None:
    world.asks("phone", "p-1")
    made = world.runs_cycle("c1", {"p-1": "phone", "p-2": "phone", "b-1": "bert"})
    world.runs_cycle("c2", {"b-1": "bert"})
    with database.read() as connection:
        first = connection.execute(select(releases).where(releases.c.cycle_id == "c1")).one()
    world.enrols("tablet", release_id=first.id)
    done = erase(database, world.storage, device="phone")
    [seen] = done.seen
    assert seen.model_dump(exclude={"made_at", "evaluation"}) == {
        "cycle_id": "c1",
        "cycle_state": "released",
        "snapshot": made["snapshot"]["sha256"],
        "dataset": made["dataset"]["sha256"],
        "examples": 2,
        "adapter": made["weights"]["sha256"],
        "release": "v1.0",
        "role": "ultralight",
        "release_state": "superseded",
        "device_count": 1,
        "devices": ["tablet"],
    }
    assert seen.evaluation == first.evaluation


def test_the_release_in_use_is_named_with_what_to_do(database: Database, world: World) -> None:
    world.asks("phone", "p-1")
    world.runs_cycle("c1", {"p-1": "phone"})
    done = erase(database, world.storage, device="phone")
    assert done.seen[0].release_state == "in use"
    assert any("Release v1.0 (ultralight) was trained with it and is in use" in step for step in done.next_steps)
    assert any("everswarm cycle run" in step for step in done.next_steps)


def test_files_of_ended_cycles_go_and_their_records_stay(database: Database, world: World) -> None:
    world.asks("anna", "anna-1")
    made = world.runs_cycle("c1", {"anna-1": "anna"})
    clean = world.runs_cycle("c2", {"b-1": "bert"})
    done = erase(database, world.storage, user="anna", files=True)
    gone = ("snapshot", "dataset", "shard", "review")
    assert not any(world.has_file(made[name]) for name in gone)
    assert world.has_file(made["weights"])  # what devices run is no copy of a text
    assert all(world.has_file(one) for one in clean.values())
    assert done.files == len(gone) + 1  # and the record of the evaluation
    assert done.files_deleted
    with pytest.raises(NotFoundError, match="was erased with what a person wanted forgotten"):
        world.artifacts.open(made["snapshot"]["sha256"])
    assert world.artifacts.get(made["dataset"]["sha256"]).size_bytes == made["dataset"]["size_bytes"]


def test_without_files_they_are_counted_and_left(database: Database, world: World) -> None:
    world.asks("anna", "anna-1")
    made = world.runs_cycle("c1", {"anna-1": "anna"})
    done = erase(database, world.storage, user="anna")
    assert world.has_file(made["dataset"])
    assert any(f"{done.files} files of ended cycles still hold it" in step for step in done.next_steps)


def test_a_running_cycle_keeps_its_files_until_it_has_ended(database: Database, world: World) -> None:
    world.asks("anna", "anna-1")
    made = world.runs_cycle("c1", {"anna-1": "anna"}, state="running")
    done = erase(database, world.storage, user="anna", files=True)
    assert done.files == 0
    assert any("Still running" in step and "c1" in step for step in done.next_steps)
    assert world.has_file(made["snapshot"])
    with database.transaction() as connection:
        update_cycle(connection, "c1", state="failed")
    again = erase(database, world.storage, user="anna", files=True)
    assert again.erased.interactions == 0
    assert again.files == 4
    assert not world.has_file(made["snapshot"])


def test_a_snapshot_that_a_running_cycle_shares_stays(database: Database, world: World) -> None:
    world.asks("anna", "anna-1")
    ended = world.runs_cycle("c1", {"anna-1": "anna"})
    running = world.runs_cycle("c2", {"anna-1": "anna"}, state="running")
    assert ended["snapshot"] == running["snapshot"]
    erase(database, world.storage, user="anna", files=True)
    assert world.has_file(running["snapshot"])
    assert not world.has_file(ended["dataset"])


def test_who_is_only_in_a_snapshot_costs_no_dataset(database: Database, world: World) -> None:
    world.asks("anna", "anna-1")
    made = world.runs_cycle("c1", {"b-1": "bert"}, frozen={"anna-1": "anna", "b-1": "bert"})
    done = erase(database, world.storage, user="anna", files=True)
    assert (done.seen[0].dataset, done.seen[0].adapter, done.seen[0].release) == (None, None, None)
    assert not world.has_file(made["snapshot"])
    assert world.has_file(made["dataset"])


def test_an_old_dataset_without_members_is_known_by_its_split(database: Database, world: World) -> None:
    world.asks("anna", "anna-1")
    made = world.runs_cycle("c1", {"anna-1": "anna"}, with_members=False)
    world.storage.delete(made["snapshot"]["sha256"])
    [seen] = erase(database, world.storage, user="anna").seen
    assert (seen.dataset, seen.examples, seen.snapshot) == (made["dataset"]["sha256"], None, None)


def test_records_that_others_asked_and_the_user_corrected_are_traced(database: Database, world: World) -> None:
    world.asks("bert", "b-1", judged_by="anna")
    world.runs_cycle("c1", {"b-1": "bert"})
    done = erase(database, world.storage, user="anna")
    assert done.seen[0].examples == 1
    assert done.erased.evaluation_answers == 1
    assert world.count(interactions) == 1


def test_results_of_evaluations_no_longer_quote_them(database: Database, world: World) -> None:
    world.asks("anna", "anna-1")
    world.runs_cycle("c1", {"anna-1": "anna", "b-1": "bert"})
    erase(database, world.storage, user="anna")
    with database.read() as connection:
        kept = results_of(connection, "c1")["evaluate"]
    assert [answer["id"] for answer in kept["answers"]] == ["b-1"]
    assert kept["comparisons"]


def test_erasing_twice_is_the_same(database: Database, world: World) -> None:
    world.asks("anna", "anna-1")
    world.runs_cycle("c1", {"anna-1": "anna"})
    first = erase(database, world.storage, user="anna", files=True)
    second = erase(database, world.storage, user="anna", files=True)
    assert second.erased.model_dump() == dict.fromkeys(second.erased.model_dump(), 0)
    assert [seen.dataset for seen in second.seen] == [seen.dataset for seen in first.seen]
    assert erase(database, world.storage, interaction="anna-1").erased.interactions == 0


def test_cut_off_within_the_transaction_nothing_is_erased(
    database: Database, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.asks("anna", "anna-1")
    made = world.runs_cycle("c1", {"anna-1": "anna"})

    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("everswarm.server.erasure.repository.mark_erased", die)
    with pytest.raises(KeyboardInterrupt):
        erase(database, world.storage, user="anna", files=True)
    assert (world.count(interactions), world.count(feedback), world.count(erased)) == (1, 1, 0)
    assert world.has_file(made["dataset"])


def test_cut_off_before_the_files_these_go_later(
    database: Database, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.asks("anna", "anna-1")
    made = world.runs_cycle("c1", {"anna-1": "anna"})

    def die(_sha256: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(world.storage, "delete", die)
        with pytest.raises(KeyboardInterrupt):
            erase(database, world.storage, user="anna", files=True)
    assert world.count(interactions) == 0
    assert world.has_file(made["dataset"])
    assert delete_erased_files(database, world.storage) == 5
    assert not world.has_file(made["dataset"])
    assert delete_erased_files(database, world.storage) == 0


def kept_answers(tmp_path: Path, *users: str) -> AnswerCache:
    cache = AnswerCache(tmp_path / "cache.sqlite", ttl_seconds=3600, size_bytes=10**6)
    for user in users:
        completion = {"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}]}
        cache.put(user.encode() * 8, user=user, completion=completion)
    return cache


def die(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_cut_off_after_the_commit_the_answers_are_forgotten(
    database: Database, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = kept_answers(tmp_path, "anna", "bert")
    world.asks("anna", "anna-1")
    monkeypatch.setattr("everswarm.server.erasure.service._finish", die)
    with pytest.raises(KeyboardInterrupt):
        erase(database, world.storage, user="anna", cache=cache)
    assert world.count(interactions) == 0
    assert cache.get(b"anna" * 8) is None
    assert cache.get(b"bert" * 8) is not None
    cache.close()


def test_what_was_cut_off_is_finished_by_the_next_though_nothing_is_there(
    database: Database, world: World, tmp_path: Path
) -> None:
    cache = kept_answers(tmp_path, "anna", "bert")
    kept = world.keeps(b"texts", ArtifactKind.SNAPSHOT, "snapshot.jsonl")
    with database.transaction() as connection:
        mark_erased(connection, [kept["sha256"]])
    with pytest.raises(NotFoundError):
        erase(database, world.storage, user="anna", cache=cache, dry_run=True)
    assert world.has_file(kept)
    assert cache.get(b"anna" * 8) is not None
    with pytest.raises(NotFoundError, match="Nothing is known of the user 'anna'"):
        erase(database, world.storage, user="anna", cache=cache)
    assert not world.has_file(kept)
    assert cache.get(b"anna" * 8) is None
    assert cache.get(b"bert" * 8) is not None
    cache.close()


def test_an_interaction_that_was_erased_before_no_longer_says_whose_answers_to_forget(
    database: Database, world: World, tmp_path: Path
) -> None:
    world.asks("anna", "anna-1")
    erase(database, world.storage, interaction="anna-1")
    cache = kept_answers(tmp_path, "anna")
    erase(database, world.storage, interaction="anna-1", cache=cache)
    assert cache.get(b"anna" * 8) is None
    cache.close()


def test_answers_that_were_kept_for_them_are_forgotten(database: Database, world: World, tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path / "cache.sqlite", ttl_seconds=3600, size_bytes=10**6)
    completion = {"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}]}
    for user in ("anna", "bert"):
        world.asks(user, f"{user}-1")
        cache.put(user.encode() * 8, user=user, completion=completion)
    erase(database, world.storage, interaction="anna-1", cache=cache)
    assert cache.get(b"anna" * 8) is None
    assert cache.get(b"bert" * 8) is not None
    cache.close()


def test_an_applications_person_is_not_known_by_name_so_all_answers_go(
    database: Database, world: World, tmp_path: Path
) -> None:
    cache = AnswerCache(tmp_path / "cache.sqlite", ttl_seconds=3600, size_bytes=10**6)
    world.asks("Anna-M-ller", "anna-1", sender="key-app")
    choice = {"message": {"content": "a"}, "finish_reason": "stop"}
    cache.put(b"k" * 32, user="Anna Müller", completion={"choices": [choice]})
    erase(database, world.storage, interaction="anna-1", cache=cache)
    assert cache.get(b"k" * 32) is None
    cache.close()


def test_many_interactions_go_in_one_transaction(database: Database, world: World, monkeypatch: Any) -> None:
    monkeypatch.setattr("everswarm.server.erasure.subject.IDS_A_STATEMENT", 7)
    for number in range(30):
        world.asks("anna", f"anna-{number}", created_at=NOW + timedelta(seconds=number))
    assert erase(database, world.storage, user="anna").erased.interactions == 30
    with database.read() as connection:
        assert connection.execute(select(func.count()).select_from(erased)).scalar_one() == 30
