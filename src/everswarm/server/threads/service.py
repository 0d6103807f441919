"""Conversations: begun, continued, listed, renamed, deleted. Each belongs to one user, and nobody else sees it."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from sqlalchemy import Connection, Row

from everswarm.errors import NotFoundError, TooLargeError
from everswarm.identifiers import new_id
from everswarm.schemas.interaction import MAX_TEXT_CHARACTERS
from everswarm.schemas.thread import ThreadDetail, ThreadTurn, ThreadView
from everswarm.server.database import Database, take_turns
from everswarm.server.feedback.reading import identifier_of, printable
from everswarm.server.threads import repository
from everswarm.server.threads.history import History, Turn

NEW = "new"  # the name under which a thread is begun
MAX_THREADS = 1000  # of one user
MAX_TURNS = 2000  # of one thread
MAX_CHARACTERS = 4_000_000  # of all turns of one thread, because each question reads them
TITLE_CHARACTERS = 60  # of a title that comes from a question

_log = logging.getLogger(__name__)


def create_thread(database: Database, *, user: str, title: str | None) -> ThreadView:
    """Begin a conversation.

    Raises:
        TooLargeError: this user has as many as one may have.
    """
    thread_id, now = new_id(), datetime.now(UTC)
    with database.transaction() as connection:
        take_turns(connection, "threads", user)
        _check_room(connection, user)
        _begin(connection, thread_id, user=user, title=title, now=now)
    return ThreadView(id=thread_id, title=title, created_at=now, updated_at=now, turns=0)


def list_threads(database: Database, *, user: str, before: datetime | None, limit: int) -> list[ThreadView]:
    """Return the threads of `user`, the one with the newest turn first."""
    with database.read() as connection:
        rows = repository.page_of_threads(connection, user=user, before=before, limit=limit)
    return [_view(row) for row in rows]


def get_thread(database: Database, thread_id: str, *, user: str) -> ThreadDetail:
    """Return a thread with all its turns.

    Raises:
        NotFoundError: it is not there, or another's.
    """
    with database.read() as connection:
        view = _view(_existing(connection, thread_id, user=user))
        rows = repository.turns_of(connection, thread_id)
    messages = [ThreadTurn(**{name: row._mapping[name] for name in ThreadTurn.model_fields}) for row in rows]
    return ThreadDetail(**view.model_dump(), messages=messages)


def rename_thread(database: Database, thread_id: str, *, user: str, title: str) -> ThreadView:
    """Set the title of a thread; its place in the list stays.

    Raises:
        NotFoundError: it is not there, or another's.
    """
    with database.transaction() as connection:
        repository.rename_thread(connection, thread_id, user=user, title=title)
        return _view(_existing(connection, thread_id, user=user))


def delete_thread(database: Database, thread_id: str, *, user: str) -> None:
    """Delete a thread, its turns, and those of its interactions that nobody has judged.

    What was judged stays as feedback; its consent says whether it may be learnt from.

    Raises:
        NotFoundError: it is not there, or another's.
    """
    with database.transaction() as connection:
        _existing(connection, thread_id, user=user, hold=True)
        repository.delete_unjudged_interactions(connection, thread_id, asker=identifier_of(user))
        repository.delete_thread(connection, thread_id)


def drop_empty_thread(database: Database, thread_id: str, *, user: str) -> None:
    """Delete a thread in which nothing was said; what was asked there stays, because nobody wanted it deleted."""
    with database.transaction() as connection:
        repository.delete_empty_thread(connection, thread_id, user=user)


def forget_late_answer(database: Database, *, user: str, thread_id: str, interaction_id: str) -> bool:
    """Delete an unjudged interaction whose thread was deleted before it was stored; say whether that was so.

    Its user asked for the deletion of all that was said there. The thread must have been stored.
    """
    with database.transaction() as connection:
        if repository.find_thread(connection, thread_id, user=user, hold=True) is not None:
            return False
        _forget(connection, thread_id, interaction_id, user=user)
    return True


def open_thread(database: Database, *, user: str, thread_id: str) -> History:
    """Return what was said in a thread before the next question; `NEW` is stored with its first turns, not before.

    Raises:
        NotFoundError: it is not there, or another's.
        TooLargeError: it takes no more turns, or this user no more threads.
    """
    if thread_id == NEW:
        with database.read() as connection:
            _check_room(connection, user)
        return History(new_id(), None, [], None, 0, is_new=True)
    with database.read() as connection:
        thread = _existing(connection, thread_id, user=user)
        if thread.turns + 2 > MAX_TURNS:
            raise _full(thread_id, f"{MAX_TURNS:,} turns")
        turns = [Turn(row.position, row.role, row.content) for row in repository.turns_of(connection, thread_id)]
    if sum(len(turn.content) for turn in turns) >= MAX_CHARACTERS:
        raise _full(thread_id, f"{MAX_CHARACTERS:,} characters")
    return History(thread.id, thread.title, turns, thread.summary, thread.summary_upto)


def append_turns(
    database: Database,
    *,
    user: str,
    thread_id: str,
    question: str,
    answer: str,
    interaction_id: str,
    is_new: bool = False,
) -> None:
    """Add a question and its answer, both or neither, behind what others have added meanwhile.

    Each keeps its first 100,000 characters, as in its interaction. The limits were checked when the thread was opened,
    so that no answer is lost. Of a thread that was deleted meanwhile nothing is stored, and the interaction is deleted
    too, unless it was judged.
    """
    now = datetime.now(UTC)
    said = [("user", _kept(question), None), ("assistant", _kept(answer), interaction_id)]
    with database.transaction() as connection:
        if is_new:
            _begin(connection, thread_id, user=user, title=None, now=now)
        if not repository.touch_thread(connection, thread_id, user=user, title=_title_of(question), now=now):
            _forget(connection, thread_id, interaction_id, user=user)
            return
        last = repository.last_position(connection, thread_id)
        rows = [
            {
                "thread_id": thread_id,
                "position": position,
                "role": role,
                "content": content,
                "interaction_id": named,
                "created_at": now,
            }
            for position, (role, content, named) in enumerate(said, start=last + 1)
        ]
        repository.insert_turns(connection, rows)


def _forget(connection: Connection, thread_id: str, interaction_id: str, *, user: str) -> None:
    _log.info("the thread %s was deleted before the answer %s came", thread_id, interaction_id)
    asker = identifier_of(user)
    repository.delete_unjudged_interactions(connection, thread_id, asker=asker, only=interaction_id)


def keep_summary(database: Database, *, thread_id: str, summary: str, upto: int) -> None:
    """Store the summary of the turns up to the position `upto`, unless a stored one reaches as far."""
    with database.transaction() as connection:
        repository.keep_summary(connection, thread_id, summary=_kept(summary), upto=upto)


def _check_room(connection: Connection, user: str) -> None:
    if repository.count_threads(connection, user) >= MAX_THREADS:
        raise TooLargeError(
            f"You have {MAX_THREADS:,} threads, the most that one user may have. Delete some: GET /api/threads "
            "lists them, DELETE /api/threads/{id} deletes one."
        )


def _begin(connection: Connection, thread_id: str, *, user: str, title: str | None, now: datetime) -> None:
    row = {"id": thread_id, "user": user, "title": title, "created_at": now, "updated_at": now}
    repository.insert_thread(connection, row)


def _existing(connection: Connection, thread_id: str, *, user: str, hold: bool = False) -> Row[tuple[object, ...]]:
    row = repository.find_thread(connection, thread_id, user=user, hold=hold) if thread_id.isprintable() else None
    if row is None:
        shown = "".join(letter if letter.isprintable() else "_" for letter in thread_id[:100])
        raise NotFoundError(f"There is no thread {shown!r} of yours. GET /api/threads lists those that are.")
    return row


def _full(thread_id: str, limit: str) -> TooLargeError:
    return TooLargeError(
        f"The thread {thread_id} has {limit}, the most that one may have. Begin a new one: POST /api/threads."
    )


def _view(row: Row[tuple[object, ...]]) -> ThreadView:
    return ThreadView(**{name: row._mapping[name] for name in ThreadView.model_fields})


def _kept(text: str) -> str:
    return printable(text[:MAX_TEXT_CHARACTERS].replace("\x00", ""))


def _title_of(question: str) -> str | None:
    """Return the beginning of a question, cut at a word; None where it has no text."""
    words = _kept(question[: 20 * TITLE_CHARACTERS]).split()
    text = " ".join(words)
    if len(text) <= TITLE_CHARACTERS:
        return text or None
    cut = text[: TITLE_CHARACTERS + 1]
    return cut[: cut.rfind(" ")] if " " in cut else text[:TITLE_CHARACTERS]
