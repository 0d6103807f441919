"""Reading a file of judged interactions, one JSON object a line. A broken line is reported; the rest is imported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

from everswarm.errors import BadRequestError
from everswarm.schemas.interaction import JudgedInteraction
from everswarm.server.database import Database
from everswarm.server.feedback.batches import store_batch
from everswarm.server.feedback.reading import LINE_BYTES, numbered_lines, read_judged_interaction

LINES_A_TRANSACTION = 500
ERRORS_KEPT = 20  # with their text; all are counted

OnProgress = Callable[[int], None]  # bytes read so far


class LineError(NamedTuple):
    """Why a line was not imported."""

    line: int  # from 1
    message: str


class ImportReport(NamedTuple):
    """What became of a file. `read` = `stored` + `duplicates` + `error_count`."""

    read: int  # lines that are not blank
    stored: int
    duplicates: int  # ids that were there already
    errors: list[LineError]  # the first ones
    error_count: int


def import_file(database: Database, path: Path, *, on_progress: OnProgress | None = None) -> ImportReport:
    """Import `path`; doing it again adds nothing.

    Raises:
        BadRequestError: the file cannot be opened.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise BadRequestError(
            f"The file {path} cannot be read: {error.strerror}. Check its name and its rights."
        ) from error
    with file:
        return _import_lines(database, file, lambda: on_progress and on_progress(file.tell()))


def _import_lines(database: Database, file: BinaryIO, after_batch: Callable[[], object]) -> ImportReport:
    read = stored = duplicates = error_count = 0
    errors: list[LineError] = []
    batch: list[JudgedInteraction] = []

    def store() -> None:
        nonlocal stored, duplicates
        result = store_batch(database, batch, source="import")
        stored += result.stored
        duplicates += result.duplicates
        batch.clear()
        after_batch()

    for number, line in numbered_lines(file):
        read += 1
        try:
            batch.append(_record(line))
        except BadRequestError as error:
            error_count += 1
            if len(errors) < ERRORS_KEPT:
                errors.append(LineError(number, str(error)))
        if len(batch) >= LINES_A_TRANSACTION:
            store()
    store()
    return ImportReport(read=read, stored=stored, duplicates=duplicates, errors=errors, error_count=error_count)


def _record(line: bytes) -> JudgedInteraction:
    if len(line) > LINE_BYTES:
        raise BadRequestError(
            f"longer than {LINE_BYTES // 1024 // 1024} MB; one interaction a line, each line below that"
        )
    try:
        item = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadRequestError(
            f"not UTF-8 text at byte {error.start + 1} of the line; save the file as UTF-8"
        ) from error
    except json.JSONDecodeError as error:
        raise BadRequestError(f"not JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets in brackets in …
        raise BadRequestError("not JSON that can be read: nested too deeply, or a number is too long") from error
    if not isinstance(item, dict):
        raise BadRequestError(f'a JSON object is needed, such as {{"id": …}}, not {_kind(item)}')
    return read_judged_interaction(item)


def _kind(item: object) -> str:
    names = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(item), "a number")
