"""The statements that erase, over the tables of all rooms. Decides nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Table,
    and_,
    delete,
    exists,
    func,
    literal,
    or_,
    select,
    true,
    update,
)

from everswarm.schemas.artifact import ArtifactKind
from everswarm.schemas.job import Stage
from everswarm.server.batches.tables import batches
from everswarm.server.batches.tables import files as batch_files
from everswarm.server.cycles.repository import erased_since
from everswarm.server.cycles.tables import stages
from everswarm.server.database import insert_ignore
from everswarm.server.documents.tables import PASSAGE_INDEX, document_passages, documents
from everswarm.server.erasure.subject import in_portions
from everswarm.server.feedback.repository import erased_among
from everswarm.server.feedback.tables import erased, feedback, interactions, review_decisions, reviews
from everswarm.server.fleet.tables import devices
from everswarm.server.gateway.tables import usage
from everswarm.server.registry.datasets import NAME_PREFIX
from everswarm.server.registry.service import ERASED_PREFIX
from everswarm.server.registry.tables import artifacts
from everswarm.server.sealing import Seal, seal_of
from everswarm.server.threads.tables import thread_turns, threads

NAME_CHARACTERS = 200  # of an artifact
TOUCHED = b"touched\0"  # no id begins so: these marks refuse no upload


def delete_interactions(connection: Connection, ids: Sequence[str], *, now: datetime) -> Counter[str]:
    """Delete interactions with all that hangs on them, and remember their ids by fingerprint; return the counts.

    Their threads go with them. They are held first: a judgement that is given now is either seen, or comes too late.
    """
    counts: Counter[str] = Counter()
    seal = seal_of(connection.dialect)
    for some in in_portions(sorted(ids)):
        held = select(interactions.c.id, interactions.c.thread_id, interactions.c.source)
        rows = connection.execute(held.where(interactions.c.id.in_(some)).order_by(interactions.c.id).with_for_update())
        found = rows.all()
        counts += _delete_judgements(connection, some)
        answered_here = [row.id for row in found if row.source == "web"]
        unlinked = update(usage).where(usage.c.interaction_id.in_(answered_here)).values(interaction_id=None)
        counts["usage"] += connection.execute(unlinked).rowcount if answered_here else 0
        counts += delete_threads(connection, threads.c.id.in_({row.thread_id for row in found if row.thread_id}))
        counts["interactions"] += _delete(connection, interactions, interactions.c.id.in_(some))
        marks = [{"fingerprint": seal.fingerprint(name.encode()), "erased_at": now} for name in some]
        insert_ignore(connection, erased, marks)
    return counts


def delete_of_people(connection: Connection, names: Collection[str], *, key_ids: Collection[str]) -> Counter[str]:
    """Delete what lies under `names` beside interactions; a reviewer's decisions stay, under a pseudonym, unsaid.

    A device's enrolment goes, so that nothing names it; if it comes back it enrols anew.
    """
    counts: Counter[str] = Counter()
    counts["judgements"] = _delete(connection, feedback, feedback.c.user.in_(names))
    counts += delete_threads(connection, threads.c.user.in_(names))
    _delete(connection, document_passages, document_passages.c.user.in_(names))
    counts["documents"] = _delete(connection, documents, documents.c.user.in_(names))
    if counts["documents"] and connection.dialect.name == "sqlite":  # else its words stay in the index for a while
        connection.exec_driver_sql(f"INSERT INTO {PASSAGE_INDEX} ({PASSAGE_INDEX}) VALUES ('optimize')")
    counts["batches"] = _delete(connection, batches, batches.c.owner.in_(names))
    counts["batch_files"] = _delete(connection, batch_files, batch_files.c.owner.in_(names))
    counts["devices"] = _delete(connection, devices, or_(devices.c.device_id.in_(names), devices.c.key_id.in_(key_ids)))
    _rename_reviewers(connection, names, seal_of(connection.dialect))
    return counts


def delete_threads(connection: Connection, which: ColumnElement[bool]) -> Counter[str]:
    """Delete threads with their turns."""
    turns = thread_turns.c.thread_id.in_(select(threads.c.id).where(which))
    counted = _delete(connection, thread_turns, turns)
    return Counter({"turns": counted, "threads": _delete(connection, threads, which)})


def delete_quotations(connection: Connection, ids: Iterable[str]) -> int:
    """Take out of the results of evaluations what quotes `ids`, or what was erased before; return how many those were.

    The scores stay.
    """
    count, named = 0, set(ids)
    evaluations = and_(stages.c.stage == Stage.EVALUATE.value, stages.c.result.is_not(None))
    for stage_id, result in connection.execute(select(stages.c.id, stages.c.result).where(evaluations)).all():
        answers = (result or {}).get("answers") or []
        quoted = {str(answer["id"]) for answer in answers}
        gone = (quoted & named) | erased_among(connection, quoted)
        if gone:
            kept = {**result, "answers": [answer for answer in answers if answer["id"] not in gone]}
            connection.execute(update(stages).where(stages.c.id == stage_id).values(result=kept))
            count += len(answers) - len(kept["answers"])
    return count


def mark_touched(connection: Connection, ids: Iterable[str], *, now: datetime) -> None:
    """Remember that something was taken from what was said of `ids`, which stay: what was frozen before is stale."""
    for some in in_portions(sorted(ids)):
        marks = _touched(connection, some)
        connection.execute(delete(erased).where(erased.c.fingerprint.in_(marks)))
        insert_ignore(connection, erased, [{"fingerprint": mark, "erased_at": now} for mark in marks])


def touched_among(connection: Connection, ids: Sequence[str], *, since: datetime) -> int:
    """Return of how many of `ids` something was taken at `since` or later, as `mark_touched` remembers."""
    if not erased_since(connection, since):
        return 0
    recent = select(func.count()).select_from(erased).where(erased.c.erased_at >= since)
    count = 0
    for some in in_portions(ids):
        count += connection.execute(recent.where(erased.c.fingerprint.in_(_touched(connection, some)))).scalar_one()
    return count


def frozen_so_far(connection: Connection) -> set[str]:
    """Return what names all that was ever frozen: snapshots of cycles, and records of datasets without one."""
    snapshots = and_(stages.c.stage == Stage.SNAPSHOT.value, stages.c.state == "done")
    found = connection.execute(select(stages.c.id, stages.c.finished_at).where(snapshots))
    records = select(artifacts.c.sha256).where(artifacts.c.kind == ArtifactKind.RECORD.value)
    kept = connection.execute(records.where(artifacts.c.name.like(f"{NAME_PREFIX}%"))).scalars()
    return {f"{row.id} {row.finished_at}" for row in found} | set(kept)


def due_by_wish(connection: Connection, now: datetime, *, limit: int) -> list[str]:
    """Return interactions that who asked wanted kept until now, and no longer."""
    wanted = select(interactions.c.id).where(interactions.c.expires_at <= now)
    return list(connection.execute(wanted.order_by(interactions.c.expires_at).limit(limit)).scalars())


def due_by_age(connection: Connection, before: datetime, *, limit: int) -> list[str]:
    """Return interactions from `before` a moment; those of a conversation only when its last turn is as old."""
    goes_on = exists().where(threads.c.id == interactions.c.thread_id, threads.c.updated_at >= before)
    wanted = select(interactions.c.id).where(interactions.c.created_at < before, ~goes_on)
    return list(connection.execute(wanted.order_by(interactions.c.created_at).limit(limit)).scalars())


def mark_erased(connection: Connection, digests: Collection[str]) -> None:
    """Name artifacts as erased; their digests and sizes stay. `erased_artifacts` is then the list of what to delete."""
    named = literal(ERASED_PREFIX) + func.substr(artifacts.c.name, 1, NAME_CHARACTERS - len(ERASED_PREFIX))
    wanted = and_(artifacts.c.sha256.in_(digests), artifacts.c.name.not_like(f"{ERASED_PREFIX}%"))
    connection.execute(update(artifacts).where(wanted).values(name=named))


def erased_artifacts(connection: Connection) -> list[str]:
    """Return the digests of the artifacts that `mark_erased` named."""
    wanted = select(artifacts.c.sha256).where(artifacts.c.name.like(f"{ERASED_PREFIX}%"))
    return list(connection.execute(wanted).scalars())


def sizes_of(connection: Connection, digests: Collection[str]) -> dict[str, int]:
    """Return the sizes in bytes of the artifacts that are known and not named as erased."""
    wanted = select(artifacts.c.sha256, artifacts.c.size_bytes).where(artifacts.c.sha256.in_(digests))
    known = wanted.where(artifacts.c.name.not_like(f"{ERASED_PREFIX}%"))
    return {row.sha256: row.size_bytes for row in connection.execute(known)}


def find_artifact_named(connection: Connection, name: str) -> str | None:
    """Return the digest of the artifact with this name, erased or not."""
    wanted = select(artifacts.c.sha256).where(artifacts.c.name.in_([name, ERASED_PREFIX + name]))
    return connection.execute(wanted.limit(1)).scalar_one_or_none()


def was_erased(connection: Connection, interaction_id: str) -> bool:
    """Say whether this interaction was erased before."""
    return bool(erased_among(connection, [interaction_id]))


def has_other_batch_files(connection: Connection, names: Collection[str]) -> bool:
    """Say whether files of chats belong to keys other than `names`."""
    others = batch_files.c.owner.not_in(names) if names else true()
    return connection.execute(select(batch_files.c.id).where(others).limit(1)).first() is not None


def _delete_judgements(connection: Connection, ids: Sequence[str]) -> Counter[str]:
    of_reviews = select(reviews.c.id).where(reviews.c.interaction_id.in_(ids))
    _delete(connection, review_decisions, review_decisions.c.review_id.in_(of_reviews))
    names_one = or_(feedback.c.interaction_id.in_(ids), feedback.c.preferred_over.in_(ids))
    return Counter(
        {
            "reviews": _delete(connection, reviews, reviews.c.interaction_id.in_(ids)),
            "judgements": _delete(connection, feedback, names_one),
        }
    )


def _touched(connection: Connection, ids: Iterable[str]) -> list[bytes]:
    seal = seal_of(connection.dialect)
    return [seal.fingerprint(TOUCHED + name.encode()) for name in ids]


def _rename_reviewers(connection: Connection, names: Collection[str], seal: Seal) -> None:
    """Keep what they decided, because others' records rest on it; not who they are, nor what they wrote."""
    for name in names:
        unsaid: dict[str, Any] = {"reviewer": seal.pseudonym(name), "comment": None}
        connection.execute(update(review_decisions).where(review_decisions.c.reviewer == name).values(**unsaid))


def _delete(connection: Connection, table: Table, which: ColumnElement[bool]) -> int:
    return connection.execute(delete(table).where(which)).rowcount
