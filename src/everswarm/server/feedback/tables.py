"""Interactions, and what people thought of them."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Float, ForeignKey, Index, Integer, LargeBinary, String, Table, false, text

from everswarm.server.database import UtcDateTime, metadata
from everswarm.server.sealing import SealedJson, SealedText

_IN_A_THREAD = text("thread_id IS NOT NULL")  # most are in none, and cost no entry
_IS_A_VOTE = text("preferred_over IS NOT NULL")
_EXPIRES = text("expires_at IS NOT NULL")
_SORTABLE = String(200).with_variant(String(200, collation="C"), "postgresql")  # one order on every database

interactions = Table(
    "interactions",
    metadata,
    Column("id", _SORTABLE, primary_key=True),
    Column("user", String(200), nullable=False),  # who asked: a key, or a device
    Column("sender", String(200)),  # the key that brought it, where that is not the user
    Column("source", String(10), nullable=False),  # web, device, import
    Column("created_at", UtcDateTime, nullable=False),
    Column("role", String(200)),
    Column("model", String(200)),
    Column("endpoint", String(200)),
    Column("language", String(10)),  # as the device or the file says
    Column("messages", SealedJson, nullable=False),
    Column("response", SealedText),
    Column("state", String(10), nullable=False),  # complete, cut (the reader left, or the limit came), failed
    Column("prompt_tokens", Integer),
    Column("completion_tokens", Integer),
    Column("latency_seconds", Float),
    Column("strategy", String(40)),  # of the swarm
    Column("looked_up", Boolean),  # the answer rests on what a tool found, which a student will not have
    Column("trace", SealedJson),  # what more is to be told of how the answer came; see `swarm/trace.py`
    Column("escalated_to", String(200)),  # the swarm's interaction that answers it again; asked for by its device
    Column("thread_id", String(36)),  # deleted with it, unless judged; no foreign key: it may come later
    Column("expires_at", UtcDateTime),  # then it is erased: as who asked wishes
    Column("fingerprint", LargeBinary(16)),  # of what a device or a file said; None: asked and answered here
    Index(None, "thread_id", sqlite_where=_IN_A_THREAD, postgresql_where=_IN_A_THREAD),
    Index(None, "expires_at", sqlite_where=_EXPIRES, postgresql_where=_EXPIRES),
    Index(None, "user", "created_at"),
    Index(None, "sender", "source"),
    Index(None, "created_at"),
)

feedback = Table(
    "feedback",
    metadata,
    Column("interaction_id", _SORTABLE, ForeignKey("interactions.id"), primary_key=True),
    Column("id", String(36), primary_key=True),
    Column("user", String(200), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),  # when it was judged, and never later than when we heard of it
    Column("rating", Integer),
    Column("liked", Boolean),  # a thumb, up or down
    Column("correction", SealedText),
    Column("comment", SealedText),
    Column("preferred_over", String(200)),
    Column("better_than", SealedJson),  # answers that were not stored here, and found worse
    Column("regenerated", Boolean, nullable=False, server_default=false()),  # weak signals, never learnt from
    Column("copied", Boolean, nullable=False, server_default=false()),
    Column("judge_score", Float),  # of a model that judged, 0 to 1
    Column("consent", Boolean, nullable=False),
    Column("author", String(10), nullable=False, server_default="person"),  # of the words: a person, or the swarm
    Index(None, "preferred_over", sqlite_where=_IS_A_VOTE, postgresql_where=_IS_A_VOTE),
    sqlite_with_rowid=False,  # lies in the order of its key: one tree to write instead of three
)

reviews = Table(
    "reviews",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("interaction_id", String(200), ForeignKey("interactions.id"), nullable=False, unique=True),
    Column("reason", String(40), nullable=False),  # doubt, or the suspicion; see `schemas.review`
    Column("score", Float, nullable=False),  # how doubtful or suspicious, 0 to 1
    Column("campaign", String(64)),  # the same for all that seem to belong together
    Column("detail", SealedText),  # what was found, for the reviewer
    Column("dataset", String(64)),  # sha256 of the one that it was kept out of
    Column("state", String(10), nullable=False),  # open, accepted, rejected, disputed
    Column("created_at", UtcDateTime, nullable=False),
    Column("decided_at", UtcDateTime),
    Index(None, "state", "score"),
)

review_decisions = Table(
    "review_decisions",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("review_id", String(36), ForeignKey("reviews.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("reviewer", String(200), nullable=False),
    Column("verdict", String(10), nullable=False),  # accept, reject; the latest of a reviewer counts, all are kept
    Column("comment", SealedText),
    Column("created_at", UtcDateTime, nullable=False),
)

key_check = Table(
    "key_check",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),  # 1
    Column("sealed", LargeBinary, nullable=False),  # a known text; which key opens it is the key of this database
)

erased = Table(
    "erased",
    metadata,
    Column("fingerprint", LargeBinary(16), primary_key=True),  # of an id that must not come back, or of what else went
    Column("erased_at", UtcDateTime, nullable=False),
)
