"""The statements about interactions and judgements. Decides nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import orjson
from sqlalchemy import Connection, Row, Select, and_, distinct, func, literal, not_, or_, select, true, update

from everswarm.schemas.base import Record
from everswarm.schemas.server import Scope
from everswarm.server.auth.tables import keys
from everswarm.server.database import insert_ignore, insert_new
from everswarm.server.feedback.tables import erased, feedback, interactions, key_check
from everswarm.server.sealing import seal_of

LIKED_RATING = 4  # an answer rated so or better may itself be learnt from
BEST_RATING = 5  # an answer rated so by a person needs no better one from the swarm
PERSON, SWARM = "person", "swarm"  # whose words a judgement holds
ROWS_A_FETCH = 500  # of a long result, so that it never lies in memory whole


class FeedbackStats(Record):
    """How much there is, over all users."""

    interactions: int
    judged: int  # interactions with at least one judgement
    usable: int  # corrected, or answered and rated 4 or 5, or with a thumb up; with the latest consent of who asked
    people: int  # of whom these usable ones are
    ratings: int
    corrections: int  # by people
    comments: int
    votes: int
    users: int  # who were answered
    mean_rating: float | None


def insert_interactions(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> set[str]:
    """Store the interactions whose ids are new; return these ids."""
    return insert_new(connection, interactions.c.id, rows)


def insert_feedback(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> int:
    """Store the judgements whose ids are new; return how many that were."""
    return insert_ignore(connection, feedback, rows)


def known_ids(connection: Connection, ids: Iterable[str]) -> set[str]:
    """Return those of `ids` that interactions have already."""
    return _held(connection, select(interactions.c.id).where(interactions.c.id.in_(list(ids))))


def owned_ids(connection: Connection, ids: Iterable[str], *, user: str) -> set[str]:
    """Return those of `ids` that are interactions of `user`, asked or sent."""
    return _held(connection, select(interactions.c.id).where(interactions.c.id.in_(list(ids)), _owned_by(user)))


def _held(connection: Connection, wanted: Select[Any]) -> set[str]:
    """Return ids that nobody deletes before this transaction ends, so that a judgement can name them."""
    return set(connection.execute(wanted.with_for_update(read=True, key_share=True)).scalars())


def recent_interactions(connection: Connection, limit: int, *, user: str | None) -> list[Row[Any]]:
    """Return the newest interactions, newest first; those of one `user`, or of all."""
    wanted = select(interactions)
    if user is not None:
        wanted = wanted.where(_owned_by(user))
    return list(connection.execute(wanted.order_by(interactions.c.created_at.desc(), interactions.c.id).limit(limit)))


def answered_interaction(connection: Connection, interaction_id: str, *, user: str | None) -> Row[Any] | None:
    """Return the row of one interaction that has a trace; of `user`, or of anybody."""
    wanted = select(interactions).where(interactions.c.id == interaction_id, interactions.c.trace.is_not(None))
    if user is not None:
        wanted = wanted.where(_owned_by(user))
    return connection.execute(wanted).one_or_none()


def find_interaction(connection: Connection, interaction_id: str) -> Row[Any] | None:
    """Return the row of one interaction."""
    return connection.execute(select(interactions).where(interactions.c.id == interaction_id)).one_or_none()


def mark_escalated(connection: Connection, interaction_id: str, *, answer_id: str) -> bool:
    """Note which interaction answers this one again; False where another one does already."""
    unmarked = and_(interactions.c.id == interaction_id, interactions.c.escalated_to.is_(None))
    statement = update(interactions).where(unmarked).values(escalated_to=answer_id).returning(interactions.c.id)
    return connection.execute(statement).one_or_none() is not None


def latest_consent(connection: Connection, interaction_id: str) -> bool:
    """Return what who asked said last of the use of one interaction; False where they never did."""
    wanted = (
        select(feedback.c.consent)
        .join(interactions, interactions.c.id == feedback.c.interaction_id)
        .where(feedback.c.interaction_id == interaction_id, may_consent())
        .order_by(feedback.c.created_at.desc(), feedback.c.id.desc())
    )
    return bool(connection.execute(wanted.limit(1)).scalar_one_or_none())


def judgements(connection: Connection) -> Iterable[Row[Any]]:
    """Return each judgement beside its interaction, by interaction id, the oldest judgement first."""
    other = interactions.alias("other")
    wanted = (
        select(
            interactions.c.id,
            interactions.c.user,
            interactions.c.created_at,
            interactions.c.language,
            interactions.c.messages,
            interactions.c.response,
            interactions.c.model,
            interactions.c.looked_up,
            feedback.c.rating,
            feedback.c.liked,
            feedback.c.correction,
            feedback.c.comment,
            feedback.c.better_than,
            feedback.c.regenerated,
            feedback.c.copied,
            feedback.c.judge_score,
            feedback.c.consent,
            feedback.c.author,
            may_consent().label("may_consent"),
            other.c.messages.label("other_messages"),
            other.c.response.label("other_response"),
        )
        .join(feedback, feedback.c.interaction_id == interactions.c.id)
        .outerjoin(other, other.c.id == feedback.c.preferred_over)
        .order_by(interactions.c.id, feedback.c.created_at, feedback.c.id)
    )
    found: Iterable[Row[Any]] = connection.execute(wanted.execution_options(yield_per=ROWS_A_FETCH))
    return found


def checked_text(connection: Connection) -> bytes | None:
    """Return the sealed text that the right key opens; None where nothing was ever sealed."""
    found: bytes | None = connection.execute(select(key_check.c.sealed)).scalar_one_or_none()
    return found


def keep_checked_text(connection: Connection, sealed: bytes) -> None:
    """Store the text that says which key is the right one, unless there is one."""
    insert_ignore(connection, key_check, [{"id": 1, "sealed": sealed}])


def keep_at_most(connection: Connection, interaction_id: str, *, days: int) -> None:
    """Let an interaction be erased `days` after it happened; an earlier wish stands."""
    created = connection.execute(
        select(interactions.c.created_at).where(interactions.c.id == interaction_id)
    ).scalar_one()
    expires_at = created + timedelta(days=days)
    is_sooner = or_(interactions.c.expires_at.is_(None), interactions.c.expires_at > expires_at)
    connection.execute(
        update(interactions).where(interactions.c.id == interaction_id, is_sooner).values(expires_at=expires_at)
    )


def count_all(connection: Connection) -> FeedbackStats:
    """Count interactions and judgements."""
    asked = connection.execute(
        select(func.count().label("interactions"), func.count(distinct(interactions.c.user)).label("users"))
    ).one()
    given = connection.execute(
        select(
            func.count(distinct(feedback.c.interaction_id)).label("judged"),
            func.count(feedback.c.rating).label("ratings"),
            func.count(feedback.c.correction).filter(feedback.c.author != SWARM).label("corrections"),
            func.count(feedback.c.comment).label("comments"),
            (func.count(feedback.c.preferred_over) + func.count(feedback.c.better_than)).label("votes"),
            func.avg(feedback.c.rating).label("mean_rating"),
        )
    ).one()
    usable = connection.execute(_count_usable()).one()
    return FeedbackStats(
        interactions=asked.interactions,
        judged=given.judged,
        usable=usable.interactions,
        people=usable.people,
        ratings=given.ratings,
        corrections=given.corrections,
        comments=given.comments,
        votes=given.votes,
        users=asked.users,
        mean_rating=None if given.mean_rating is None else round(float(given.mean_rating), 3),
    )


def _owned_by(user: str) -> Any:
    return or_(interactions.c.user == user, interactions.c.sender == user)


def may_consent() -> Any:
    """Say whether a judgement is of who asked, or of the application that asked for them: nobody else's is consent."""
    return feedback.c.user.in_([interactions.c.user, func.coalesce(interactions.c.sender, interactions.c.user)])


def newest_first(says_nothing: Any) -> Any:
    """Rank the judgements of an interaction, the newest first; last those for which `says_nothing` holds."""
    return func.row_number().over(
        partition_by=feedback.c.interaction_id,
        order_by=(says_nothing, feedback.c.created_at.desc(), feedback.c.id.desc()),
    )


def _count_usable() -> Select[int, int]:
    """Fold as `judged_interactions` does, in SQL, because a page that refreshes asks for it."""
    ranked = (
        select(
            feedback.c.interaction_id,
            and_(feedback.c.consent, may_consent()).label("consent"),
            feedback.c.rating,
            feedback.c.liked,
            feedback.c.correction,
            feedback.c.author,
            newest_first(not_(may_consent())).label("consent_rank"),
            newest_first(feedback.c.rating.is_(None)).label("rating_rank"),
            newest_first(feedback.c.liked.is_(None)).label("thumb_rank"),
        )
        .join(interactions, interactions.c.id == feedback.c.interaction_id)
        .subquery()
    )
    folded = (
        select(
            ranked.c.interaction_id,
            func.count().filter(and_(ranked.c.consent_rank == 1, ranked.c.consent)).label("consents"),
            func.count(ranked.c.correction).filter(ranked.c.author != SWARM).label("corrections"),
            func.count(ranked.c.correction).filter(ranked.c.author == SWARM).label("better_answers"),
            func.count().filter(and_(ranked.c.rating_rank == 1, ranked.c.rating >= LIKED_RATING)).label("likes"),
            func.count().filter(and_(ranked.c.rating_rank == 1, ranked.c.rating == BEST_RATING)).label("praises"),
            func.count(ranked.c.rating).label("ratings"),
            func.count().filter(and_(ranked.c.thumb_rank == 1, ranked.c.liked)).label("thumbs"),
        )
        .group_by(ranked.c.interaction_id)
        .subquery()
    )
    is_answer = and_(func.length(interactions.c.response) > 0, interactions.c.looked_up.is_not(true()))
    liked = and_(is_answer, or_(folded.c.likes == 1, and_(folded.c.ratings == 0, folded.c.thumbs == 1)))
    bettered = and_(folded.c.better_answers > 0, folded.c.praises == 0)
    return (
        select(func.count().label("interactions"), func.count(distinct(interactions.c.user)).label("people"))
        .select_from(folded.join(interactions, interactions.c.id == folded.c.interaction_id))
        .where(folded.c.consents == 1, or_(folded.c.corrections > 0, bettered, liked))
    )


def erased_among(connection: Connection, ids: Iterable[str]) -> set[str]:
    """Return those of `ids` that were erased and must not come back. Cheap where nothing ever was."""
    if connection.execute(select(erased.c.fingerprint).limit(1)).first() is None:
        return set()
    seal = seal_of(connection.dialect)
    by_fingerprint = {seal.fingerprint(identifier.encode()): identifier for identifier in ids}
    found: set[str] = set()
    fingerprints = list(by_fingerprint)
    for start in range(0, len(fingerprints), ROWS_A_FETCH):
        some = fingerprints[start : start + ROWS_A_FETCH]
        wanted = select(erased.c.fingerprint).where(erased.c.fingerprint.in_(some))
        found |= {by_fingerprint[bytes(fingerprint)] for fingerprint in connection.execute(wanted).scalars()}
    return found


class KnownInteraction(NamedTuple):
    """What is held of an interaction, as far as one that comes with its id is compared with it."""

    fingerprint: bytes | None  # None: asked and answered here
    is_escalated: bool  # its device has asked the swarm again


def known_among(connection: Connection, ids: Sequence[str]) -> dict[str, KnownInteraction]:
    """Return those of `ids` that interactions have already."""
    if not ids:
        return {}
    # one parameter, however many ids: to expand a list costs more than to look its entries up
    is_sqlite = connection.dialect.name == "sqlite"
    parameter: Any = orjson.dumps(ids).decode() if is_sqlite else list(ids)
    rows = connection.exec_driver_sql(_KNOWN_SQLITE if is_sqlite else _KNOWN_POSTGRES, (parameter,))
    return {row[0]: KnownInteraction(row[1], bool(row[2])) for row in rows}


_KNOWN = "SELECT id, fingerprint, escalated_to IS NOT NULL FROM interactions WHERE id"
_KNOWN_SQLITE = f"{_KNOWN} IN (SELECT value FROM json_each(?))"
_KNOWN_POSTGRES = f"{_KNOWN} = ANY(%s)"


def held_among(connection: Connection, ids: Iterable[str], *, user: str | None) -> list[Row[Any]]:
    """Return those of `ids` that are interactions of `user`, asked or sent; None: of anybody."""
    wanted = select(interactions).where(interactions.c.id.in_(list(ids)))
    if user is not None:
        wanted = wanted.where(_owned_by(user))
    return list(connection.execute(wanted.order_by(interactions.c.id)))


def device_of(connection: Connection, sender: str) -> str | None:
    """Return the device that `sender` has sent interactions for; one of them, where they are several."""
    wanted = select(interactions.c.user).where(interactions.c.sender == sender, interactions.c.source == "device")
    return connection.execute(wanted.limit(1)).scalar_one_or_none()


def has_valid_sender(connection: Connection, device: str, *, other_than: str) -> bool:
    """Say whether a device's key that is not revoked has sent for `device`, other than the sender `other_than`."""
    named = literal("key-").concat(func.substr(keys.c.id, func.length(keys.c.id) - 11))  # as `Principal.user`
    valid = select(named).where(keys.c.revoked_at.is_(None), keys.c.scope == Scope.DEVICE.value)
    others = interactions.c.sender.in_(valid) & (interactions.c.sender != other_than)
    sent = select(interactions.c.id).where(interactions.c.user == device, interactions.c.source == "device", others)
    # the newest first: who sends now is found at once, however much there is
    return connection.execute(sent.order_by(interactions.c.created_at.desc()).limit(1)).first() is not None
