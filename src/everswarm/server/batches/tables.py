"""Files in pieces, batches, and one row for each request of a batch that has not ended."""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Column, ForeignKey, Index, Integer, LargeBinary, String, Table, Text

from everswarm.server.database import UtcDateTime, metadata

files = Table(
    "files",
    metadata,
    Column("id", String(64), primary_key=True),  # sorts by time
    Column("owner", String(200), nullable=False),
    Column("filename", String(200), nullable=False),
    Column("purpose", String(20), nullable=False),  # batch, batch_output
    Column("state", String(16), nullable=False),  # incoming, processed; only the second is seen
    Column("size_bytes", BigInteger, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False, index=True),
    Index("ix_files_owner", "owner", "id"),
)

# Not in the artifact store: that shares equal bytes between owners, shows them to every worker and deletes none alone.
file_pieces = Table(
    "file_pieces",
    metadata,
    Column("file_id", String(64), ForeignKey("files.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),  # from 0
    Column("content", LargeBinary, nullable=False),
)

batches = Table(
    "batches",
    metadata,
    Column("id", String(64), primary_key=True),  # sorts by time
    Column("owner", String(200), nullable=False),
    Column("status", String(16), nullable=False),
    Column("endpoint", String(100), nullable=False),
    Column("input_file_id", String(64), nullable=False),
    Column("completion_window", String(10), nullable=False),
    Column("metadata", JSON(none_as_null=True)),
    Column("errors", JSON(none_as_null=True)),  # of the input, line by line
    Column("total", Integer, nullable=False),
    Column("completed", Integer, nullable=False),
    Column("failed", Integer, nullable=False),
    Column("output_file_id", String(64)),
    Column("error_file_id", String(64)),
    Column("output_seconds", Integer, nullable=False),  # how long the files that it makes are kept
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    Column("in_progress_at", UtcDateTime),
    Column("finalizing_at", UtcDateTime),
    Column("completed_at", UtcDateTime),
    Column("failed_at", UtcDateTime),
    Column("expired_at", UtcDateTime),
    Column("cancelling_at", UtcDateTime),
    Column("cancelled_at", UtcDateTime),
    Column("waiting_for", Text),  # why the last request that went back did
    Column("waiting_until", UtcDateTime),
    Column("lease_token", String(64)),
    Column("leased_until", UtcDateTime),
    Index("ix_batches_owner", "owner", "id"),
    Index("ix_batches_status", "status", "id"),
)

batch_items = Table(
    "batch_items",
    metadata,
    Column("batch_id", String(64), ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),  # its line in the input, from 1
    Column("state", String(16), nullable=False),  # waiting, completed, failed
    Column("custom_id", String(200), nullable=False),
    Column("status_code", Integer),
    Column("request", Text, nullable=False),  # JSON
    Column("response", Text),  # JSON: a chat.completion, or an error object
)
