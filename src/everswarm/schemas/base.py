"""What every record shares."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field


class Record(BaseModel):
    """A value that crosses a wall. Immutable; an unknown field is an error, so a misspelling never passes."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _from_epoch_milliseconds(value: Any) -> Any:
    """Phones send `System.currentTimeMillis()`, servers send ISO 8601 text; both mean the same moment."""
    if isinstance(value, bool):
        raise ValueError("a timestamp is ISO 8601 text or Unix milliseconds, not true or false")
    if isinstance(value, int | float):
        try:
            return datetime.fromtimestamp(value / 1000, tz=UTC)
        except (OverflowError, OSError, ValueError) as error:
            raise ValueError(f"{value} is not Unix milliseconds within the years 1 to 9999") from error
    return value


def _in_utc(value: datetime) -> datetime:
    try:
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("a timestamp lies within the years 1 to 9999 in UTC") from error


Timestamp = Annotated[datetime, BeforeValidator(_from_epoch_milliseconds), AfterValidator(_in_utc)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Identifier = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@/+-]*$")]
