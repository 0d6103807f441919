"""Erasing in one transaction, then the caches and the files. What is cut off after it is finished by the next one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from datetime import UTC, datetime
from typing import NamedTuple

from sqlalchemy import Connection, select

from everswarm.errors import BadRequestError, ConflictError, NotFoundError
from everswarm.schemas.erasure import ErasedCounts, Erasure
from everswarm.server.auth.principal import Principal
from everswarm.server.cycles.tables import cycles
from everswarm.server.database import Database, take_turns
from everswarm.server.erasure import repository
from everswarm.server.erasure.lineage import Lineage, Traces, needed_by_running, trace
from everswarm.server.erasure.next_steps import next_steps
from everswarm.server.erasure.overwriting import empty_log, overwriting
from everswarm.server.erasure.subject import (
    Subject,
    askers_of,
    ids_of,
    of_device,
    of_interactions,
    of_key,
    of_user,
    touched_by,
)
from everswarm.server.gateway.cache import AnswerCache
from everswarm.server.registry.storage import Storage

LOOKS_LIMIT = 5  # at all files, in one erasure


def erase(
    database: Database,
    storage: Storage,
    *,
    user: str | None = None,
    device: str | None = None,
    interaction: str | None = None,
    key: Principal | None = None,
    files: bool = False,
    dry_run: bool = False,
    cache: AnswerCache | None = None,
) -> Erasure:
    """Erase what is stored of one user, device or interaction, and say what had seen it. Done twice it is the same.

    Args:
        database: all of its rows go in one transaction.
        storage: where the files of artifacts lie.
        user: a person, as an application names them, or a key (`key-…`).
        device: a device, with what was sent by its key.
        interaction: its id; the conversation that it is a part of goes, too, because later turns repeat it.
        key: a key that is no administrator's: what it asked and sent.
        files: delete the files of ended cycles that hold any of it, too; what is known of them stays.
        dry_run: change nothing, and say what would go.
        cache: of answers, in this process or beside it.

    Raises:
        BadRequestError: not exactly one of `user`, `device`, `interaction` and `key`.
        ConflictError: each time that all files were read, another snapshot or dataset had been made.
        NotFoundError: nothing is known of it.
    """
    named = _only_one(user=user, device=device, interaction=interaction, key=key)
    for _ in range(LOOKS_LIMIT):
        with database.read() as connection:
            subject = _find(connection, named)
            found = _traces(connection, database, subject)
            frozen = repository.frozen_so_far(connection)
        lineage = trace(database, storage, found)
        try:
            with database.transaction() as connection, overwriting(connection):
                done = _erase_rows(connection, named, lineage, files=files, frozen=frozen)
                if dry_run:
                    raise _OnlyTried(done)
                _forget_answers(cache, done.askers)  # before it is final, so that nothing cuts it off
        except _FrozenMeanwhile:
            continue
        except _OnlyTried as tried:
            return _told(tried.done, lineage, files=files, dry_run=True)
        except NotFoundError:  # perhaps it is an erasure that was cut off
            if not dry_run:
                _finish(database, storage, cache, subject.names)
            raise
        _finish(database, storage, cache, done.askers)
        return _told(done, lineage, files=files, dry_run=False)
    raise ConflictError(
        f"Snapshots or datasets were made all the while, {LOOKS_LIMIT} times running, and may have it too. Nothing was "
        "erased; erase again when they are there."
    )


def begin_erasing(connection: Connection) -> datetime:
    """Take the turns that uploads and snapshots take, and return the moment as which all that is erased counts.

    Who shares "erasures", or has "cycles", sees an erasure whole or is seen by it.
    """
    take_turns(connection, "erasures")
    take_turns(connection, "cycles")
    return datetime.now(UTC)


def _finish(database: Database, storage: Storage, cache: AnswerCache | None, askers: Collection[str] | None) -> None:
    """Erase what is not in the database; done again it changes nothing."""
    _forget_answers(cache, askers)
    empty_log(database)
    delete_erased_files(database, storage)


def _told(done: _Done, lineage: Lineage, *, files: bool, dry_run: bool) -> Erasure:
    return Erasure(
        dry_run=dry_run,
        erased=ErasedCounts(**done.counts),
        seen=lineage.seen,
        files=len(done.sizes),
        files_bytes=sum(done.sizes.values()),
        files_deleted=files and not dry_run,
        next_steps=next_steps(
            lineage,
            device_keys=done.senders,
            files_left=0 if files else len(done.sizes),
            unread=done.unread,
            other_batch_files=done.other_batch_files,
        ),
    )


def delete_erased_files(database: Database, storage: Storage) -> int:
    """Delete the files of artifacts that are named as erased, but those that a running cycle needs; return how many."""
    with database.read() as connection:
        digests = set(repository.erased_artifacts(connection))
    there = [sha256 for sha256 in sorted(digests) if storage.exists(sha256)]
    needed = needed_by_running(database) if there else set()
    for sha256 in there:
        if sha256 not in needed:
            storage.delete(sha256)
    return len(set(there) - needed)


class _Named(NamedTuple):
    what: str  # user, device, interaction, key
    name: str
    key: Principal | None = None


class _Done(NamedTuple):
    counts: Counter[str]
    askers: Collection[str] | None  # None: not known
    sizes: dict[str, int]  # in bytes, of the files that are to go
    unread: Collection[str]  # cycles
    other_batch_files: bool  # there are some
    senders: Collection[str]


class _OnlyTried(Exception):  # noqa: N818 - no error: it rolls a dry run back
    def __init__(self, done: _Done) -> None:
        self.done = done


class _FrozenMeanwhile(Exception):  # noqa: N818 - no error: the files are read again
    pass


def _erase_rows(
    connection: Connection, named: _Named, lineage: Lineage, *, files: bool, frozen: Collection[str]
) -> _Done:
    """Erase, as things are by now; `frozen` is what was when the files were read."""
    now = begin_erasing(connection)
    if repository.frozen_so_far(connection) - set(frozen):
        raise _FrozenMeanwhile
    subject = _find(connection, named)
    ids = sorted({*ids_of(connection, subject), *subject.ids})
    touched = touched_by(connection, subject, ids)
    was_erased = any(repository.was_erased(connection, one) for one in subject.ids)
    askers = subject.names or (None if was_erased else askers_of(connection, ids))
    counts = repository.delete_interactions(connection, ids, now=now)
    repository.mark_touched(connection, touched - set(ids), now=now)
    if subject.names:
        counts += repository.delete_of_people(connection, subject.names, key_ids=subject.key_ids)
    counts["evaluation_answers"] = repository.delete_quotations(connection, {*ids, *touched})
    if not (any(counts.values()) or lineage.seen or was_erased):
        raise NotFoundError(f"Nothing is known of the {named.what} {named.name!r}; there is nothing to erase.")
    sizes = repository.sizes_of(connection, lineage.files)
    if files:
        repository.mark_erased(connection, lineage.files)
    return _Done(
        counts=counts,
        askers=askers,
        sizes=sizes,
        unread=set(connection.execute(select(cycles.c.id)).scalars()) - lineage.read,
        other_batch_files=repository.has_other_batch_files(connection, subject.names),
        senders=subject.senders,
    )


def _find(connection: Connection, named: _Named) -> Subject:
    if named.key is not None:
        return of_key(named.key)
    if named.what == "user":
        return of_user(named.name)
    if named.what == "device":
        return of_device(connection, named.name)
    return of_interactions(connection, [named.name], whole_threads=True)


def _traces(connection: Connection, database: Database, subject: Subject) -> Traces:
    ids = {*ids_of(connection, subject), *subject.ids}
    pseudonyms = {database.seal.pseudonym(name) for name in subject.names}
    touched = touched_by(connection, subject, sorted(ids))
    return Traces(frozenset(ids | touched), frozenset(subject.names | pseudonyms))


def _forget_answers(cache: AnswerCache | None, names: Collection[str] | None) -> None:
    """Erase kept answers; all of them where the person's name is not known, which costs some calls."""
    if cache is None:
        return
    if names is None:
        cache.clear()
    for name in names or ():
        cache.forget_user(name)


def _only_one(*, key: Principal | None, **names: str | None) -> _Named:
    given = [_Named(what, name) for what, name in names.items() if name]
    if key is not None:
        given.append(_Named("key", key.user, key))
    if len(given) != 1:
        raise BadRequestError(f"Name exactly one of {', '.join(names)} to erase; {len(given)} were named.")
    return given[0]
