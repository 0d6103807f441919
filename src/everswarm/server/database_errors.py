"""What SQLite and Postgres say when they cannot do their work, in our words. Never shows a password."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import URL
from sqlalchemy.exc import DataError, DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from everswarm.errors import BadRequestError, ConfigurationError, EverswarmError, NoSpaceError, UnavailableError

DISK_FULL = ("53100",)  # codes of Postgres: its manual, appendix A
BUSY = ("55P03",)  # a lock did not come in time
IN_THE_WAY = ("40001", "40P01")  # a conflict of two writers, a deadlock
OVERLOADED = ("53", "57", "58")  # no connection or memory left; shutting down or starting up; the disk does not answer
MISCONFIGURED = (
    "authentication failed",
    "does not exist",
    "no password supplied",
    "no pg_hba.conf entry",
    "not permitted to log in",
    "permission denied",
    "invalid",
    "SSL",
)


@contextmanager
def errors_explained(url: URL, *, patience_milliseconds: int) -> Iterator[None]:
    """Turn the driver's words for a full disk, and for a busy or absent database, into ours.

    Raises:
        NoSpaceError: the disk is full.
        UnavailableError: the database is busy, or does not answer.
        ConfigurationError: it does not let us in.
    """
    try:
        yield
    except PoolTimeout as error:
        raise UnavailableError(
            "All connections to the database are in use; nothing of this request was written. Send it again."
        ) from error
    except DBAPIError as error:
        explained = _explain(error, url, patience_seconds=patience_milliseconds // 1000)
        if explained is None:
            raise
        raise explained from error


@contextmanager
def values_explained() -> Iterator[None]:
    """Turn the driver's words for a value that its column cannot hold into ours; SQLite holds everything.

    Raises:
        BadRequestError: a value does not fit into its column.
    """
    try:
        yield
    except DataError as error:
        raise BadRequestError(
            f"The database cannot hold a value of this request: {_first_line(error)}. Nothing of it was written."
        ) from error


def cannot_be_used(url: URL, why: str) -> ConfigurationError:
    """Return the error for a database that cannot be used as it is named."""
    return ConfigurationError(f"The database {_place(url)} cannot be used: {why}. Check EVERSWARM_DATABASE_URL.")


def _explain(error: DBAPIError, url: URL, *, patience_seconds: int) -> EverswarmError | None:
    if url.get_backend_name() != "sqlite" and error.statement is None:  # it was the connecting that failed
        return _explain_no_connection(error, url)
    name = getattr(error.orig, "sqlite_errorname", "")
    code = getattr(error.orig, "sqlstate", None) or ""
    text = str(error.orig)
    if name in {"SQLITE_FULL", "SQLITE_IOERR_SHMSIZE"} or "database or disk is full" in text or code in DISK_FULL:
        return NoSpaceError(
            "The disk that holds the database is full; nothing of this request was written. Free some space and send "
            "it again."
        )
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")) or "database is locked" in text or code in BUSY:
        return UnavailableError(
            f"The database was busy for {patience_seconds} s; nothing of this request was written. Send it again."
        )
    if code in IN_THE_WAY:
        return UnavailableError(
            "Two requests stood in each other's way; nothing of this one was written. Send it again.",
            retry_after_seconds=1,
        )
    if isinstance(error, OperationalError) and (error.connection_invalidated or code.startswith(OVERLOADED)):
        return UnavailableError(
            f"The database {_place(url)} ended the connection: {_reason(error, url)}. Whether this request was written "
            "is not known; look before you send it again."
        )
    return None


def _explain_no_connection(error: DBAPIError, url: URL) -> EverswarmError:
    reason = _reason(error, url)
    if not isinstance(error, OperationalError) or any(sign in reason for sign in MISCONFIGURED):
        return cannot_be_used(url, reason)
    return UnavailableError(
        f"The database {_place(url)} does not answer: {reason}. Start it, or check EVERSWARM_DATABASE_URL."
    )


def _first_line(error: DBAPIError) -> str:
    """Return what the driver said, without the values, which Postgres adds in further lines."""
    return str(error.orig).strip().split("\n")[0].rstrip(".")


def _reason(error: DBAPIError, url: URL) -> str:
    """Return what the server said; it names no password, and if it ever does, it is hidden."""
    reason = _first_line(error).rsplit("FATAL:", 1)[-1].strip()
    return reason.replace(url.password, "***") if url.password else reason


def _place(url: URL) -> str:
    """Return who asks for which database where, without the password."""
    if url.get_backend_name() == "sqlite":
        return f"{url.database}"
    host = url.host or url.query.get("host") or "this machine"
    port = f":{url.port}" if url.port else ""
    user = f" as {url.username}" if url.username else ""
    return f"'{url.database or ''}' on {host}{port}{user}"
