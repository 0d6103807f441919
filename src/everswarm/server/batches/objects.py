"""Files and batches in OpenAI's shape, from their rows; and what a new batch is asked for with."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Row

ENDPOINT = "/v1/chat/completions"  # the only one that batches can ask
KEPT_SECONDS = 30 * 24 * 3600  # a file, unless it was asked otherwise; that is the longest, too
SHORTEST_KEPT_SECONDS = 3600
MAX_LABELS = 16  # entries of `metadata`

_MOMENTS = (
    "created_at", "in_progress_at", "expires_at", "finalizing_at", "completed_at", "failed_at", "expired_at",
    "cancelling_at", "cancelled_at",
)  # fmt: skip
_Seconds = Annotated[int, Field(ge=SHORTEST_KEPT_SECONDS, le=KEPT_SECONDS)]
_Name = Annotated[str, Field(min_length=1, max_length=64)]
_Value = Annotated[str, Field(max_length=512)]


class ExpiresAfter(BaseModel):
    """How long a file is kept."""

    model_config = ConfigDict(extra="forbid")

    anchor: Literal["created_at"]
    seconds: _Seconds


class BatchCreate(BaseModel):
    """The body of `POST /v1/batches`."""

    model_config = ConfigDict(extra="forbid")

    input_file_id: Annotated[str, Field(min_length=1, max_length=64)]
    endpoint: Literal["/v1/chat/completions"]
    completion_window: Literal["24h"]
    metadata: Annotated[dict[_Name, _Value], Field(max_length=MAX_LABELS)] | None = None
    output_expires_after: ExpiresAfter | None = None


def file_object(row: Row[Any]) -> dict[str, Any]:
    """Return a `file`."""
    return {
        "id": row.id,
        "object": "file",
        "bytes": row.size_bytes,
        "created_at": _seconds(row.created_at),
        "expires_at": _seconds(row.expires_at),
        "filename": row.filename,
        "purpose": row.purpose,
        "status": row.state,
    }


def batch_object(row: Row[Any], *, now: datetime) -> dict[str, Any]:
    """Return a `batch`; its field `everswarm` is ours: what it waits for, and when it may be done."""
    told = row._mapping
    return {
        "id": row.id,
        "object": "batch",
        "endpoint": row.endpoint,
        "errors": None if row.errors is None else {"object": "list", "data": row.errors},
        "input_file_id": row.input_file_id,
        "completion_window": row.completion_window,
        "status": row.status,
        "output_file_id": row.output_file_id,
        "error_file_id": row.error_file_id,
        **{name: _seconds(told[name]) for name in _MOMENTS},
        "request_counts": {"total": row.total, "completed": row.completed, "failed": row.failed},
        "metadata": told["metadata"],
        "everswarm": {"eta_seconds": _eta_seconds(row, now), "waiting_for": _waiting_for(row, now)},
    }


def list_object(data: list[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    """Return one page."""
    ends = {"first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}
    return {"object": "list", "data": data, **ends, "has_more": has_more}


def error_object(message: str, *, status: int) -> Mapping[str, Any]:
    """Return the body that `/v1/chat/completions` would answer an error with."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    code = {404: "not_found", 422: "invalid_request"}.get(status, "error")
    return {"error": {"message": message, "type": kind, "code": code, "param": None}}


def _seconds(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp())


def _eta_seconds(row: Row[Any], now: datetime) -> int | None:
    """As fast as until now; None where there is nothing to judge by."""
    done: int = row.completed + row.failed
    if row.status != "in_progress" or not done:
        return None
    seconds: float = (now - row.in_progress_at).total_seconds()
    left: int = row.total - done
    return round(seconds * left / done)


def _waiting_for(row: Row[Any], now: datetime) -> str | None:
    waits = row.status == "in_progress" and row.waiting_until is not None and row.waiting_until > now
    return row.waiting_for if waits else None
