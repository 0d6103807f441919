"""Reading a file of judged interactions. A broken record is reported with its line; the rest is imported, once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from everswarm.errors import BadRequestError
from everswarm.schemas.interaction import JudgedInteraction
from everswarm.server.database import Database
from everswarm.server.feedback.batches import store_batch
from everswarm.server.feedback.files.conversations import Defaults
from everswarm.server.feedback.files.formats import Format, format_of, read_record
from everswarm.server.feedback.files.judging_again import judge_again
from everswarm.server.feedback.files.records import RawRecord, numbered_records
from everswarm.server.feedback.files.strict_json import read_object
from everswarm.server.feedback.files.unpacking import Opened, open_unpacked

RECORDS_A_TRANSACTION = 500
BYTES_A_TRANSACTION = 8 * 1024 * 1024  # of the file; so that long records do not fill the memory
ERRORS_KEPT = 20  # with their text; all are counted
EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
AHEAD_NOTED = timedelta(days=1)  # a clock that is ahead by more is told
AHEAD_REFUSED = timedelta(days=366)  # further ahead it is no clock, but a wrong unit or a wrong field

OnProgress = Callable[[int], None]  # bytes read so far, of the file as it lies on the disk


class LineError(NamedTuple):
    """Why a record was not imported."""

    line: int  # from 1
    message: str


class ImportReport(NamedTuple):
    """What became of a file."""

    read: int  # records that are not blank: lines, or items of a list
    stored: int  # interactions; one record of ShareGPT may hold several
    duplicates: int  # interactions that were there already
    errors: list[LineError]  # the first ones
    error_count: int  # records that could not be used, and interactions whose ids are taken or erased
    format: Format | None = None  # None: no record showed it
    judged_again: int = 0  # of the duplicates: consent or liking was added
    without_consent: int = 0  # interactions of the file that will not be learnt from
    unjudged: int = 0  # interactions of the file that carry no judgement
    cleaned: int = 0  # records from which control characters were taken out
    ahead: int = 0  # interactions whose clock is ahead of ours by more than a day


def import_file(
    database: Database,
    path: Path,
    *,
    form: Format | None = None,
    device: str = "import",
    consent: bool = False,
    liked: bool = False,
    on_progress: OnProgress | None = None,
) -> ImportReport:
    """Import `path`; doing it again adds nothing.

    Args:
        database: where to.
        path: JSON lines or one JSON list, plain or gzip.
        form: the format; None: as the first record shows that any shows.
        device: whose the interactions are, where a format of others does not say.
        consent: their people have agreed to training; formats of others cannot say that. Our own says it itself.
        liked: the answers are good ones, where a format of others carries no judgement.
        on_progress: is called after each transaction.

    Raises:
        BadRequestError: the file cannot be opened, or holds no lines.
    """
    with open_unpacked(path) as opened:
        written = datetime.fromtimestamp(path.stat().st_mtime, tz=UTC)
        moment = min(max(written, EARLIEST), datetime.now(UTC))
        defaults = Defaults(device, moment, consent=consent, liked=liked or None)
        return _Import(database, opened, form, defaults, on_progress).run()


class _Import:
    """One file on its way in."""

    def __init__(
        self,
        database: Database,
        opened: Opened,
        form: Format | None,
        defaults: Defaults,
        on_progress: OnProgress | None,
    ) -> None:
        self._database = database
        self._opened = opened
        self._form = form
        self._defaults = defaults
        self._on_progress = on_progress
        self._batch: list[tuple[int, JudgedInteraction]] = []  # with their lines
        self._batch_bytes = 0
        self._counts: Counter[str] = Counter()
        self._errors: list[LineError] = []
        self._latest = datetime.now(UTC) + AHEAD_NOTED

    def run(self) -> ImportReport:
        line = 0
        try:
            for record in numbered_records(self._opened.file):
                line = record.line
                self._take(record)
                if len(self._batch) >= RECORDS_A_TRANSACTION or self._batch_bytes >= BYTES_A_TRANSACTION:
                    self._store()
        except BadRequestError as error:  # of the file itself: what is behind cannot be read
            self._refuse(line + 1, str(error))
        self._store()
        named = ("judged_again", "without_consent", "unjudged", "cleaned", "ahead")
        return ImportReport(
            read=self._counts["read"],
            stored=self._counts["stored"],
            duplicates=self._counts["duplicates"],
            errors=self._errors,
            error_count=self._counts["errors"],
            format=self._form,
            **{name: self._counts[name] for name in named},
        )

    def _take(self, record: RawRecord) -> None:
        self._counts["read"] += 1
        try:
            found = self._read(record)
        except BadRequestError as error:
            where = "" if record.item is None else f"item {record.item} of the list: "
            self._refuse(record.line, f"{where}{error}")
            return
        self._batch += [(record.line, interaction) for interaction in found]
        self._batch_bytes += len(record.data)
        self._counts["without_consent"] += sum(not interaction.consent for interaction in found)
        self._counts["unjudged"] += sum(not _is_judged(interaction) for interaction in found)
        self._counts["ahead"] += sum(interaction.timestamp > self._latest for interaction in found)

    def _read(self, record: RawRecord) -> list[JudgedInteraction]:
        if len(record.data) > record.limit_bytes:
            limit = f"{record.limit_bytes // 1024 // 1024} MB"
            raise BadRequestError(f"longer than {limit}; one interaction a line, each line below that")
        item, controls = read_object(record.data)
        own = format_of(item)
        shown = self._form or own
        try:
            found = read_record(item, shown or "everswarm", self._defaults)
        except BadRequestError as error:
            if own in (None, shown):
                raise
            raise BadRequestError(
                f"looks like the format {own}, and this file is read as {shown}; put it into a file of its own"
            ) from error
        for interaction in found:
            _check_moment(interaction.timestamp)
        self._form = shown
        self._counts["cleaned"] += controls > 0
        return found

    def _store(self) -> None:
        records = [record for _, record in self._batch]
        result = store_batch(self._database, records, source="import")
        lines: dict[str, list[int]] = {}
        for line, record in self._batch:
            lines.setdefault(record.id, []).append(line)
        again = self._judge_again(lines) if result.stored < len(records) else set()
        refused = self._refuse_each(result.refused, lines, "was erased here and does not come back")
        taken = [known for known in result.conflicts if known not in again and not self._comes_from_content]
        refused += self._refuse_each(
            taken, lines, "was imported before with another content; the first is kept, so give this one another id"
        )
        self._counts["stored"] += result.stored
        self._counts["duplicates"] += len(records) - result.stored - refused
        self._counts["judged_again"] += len(again)
        self._batch.clear()
        self._batch_bytes = 0
        if self._on_progress is not None:
            self._on_progress(self._opened.done_bytes())

    @property
    def _comes_from_content(self) -> bool:
        """Whether ids are made of the content, so that another content can only be another default."""
        return self._form in ("openai", "sharegpt")

    def _judge_again(self, lines: dict[str, list[int]]) -> set[str]:
        if self._form in (None, "everswarm"):
            return set()
        liked = self._defaults.liked if self._comes_from_content else None
        with self._database.transaction() as connection:
            return judge_again(connection, lines, consent=self._defaults.consent, liked=liked)

    def _refuse_each(self, ids: list[str], lines: dict[str, list[int]], why: str) -> int:
        """Report the records of `ids`, of each id the last in the file first; return how many."""
        found = [(lines[known].pop(), known) for known in ids if lines.get(known)]
        for line, known in sorted(found):
            self._refuse(line, f"the id {known!r} {why}")
        return len(found)

    def _refuse(self, line: int, message: str) -> None:
        self._counts["errors"] += 1
        if len(self._errors) < ERRORS_KEPT:
            self._errors.append(LineError(line, message))


def _check_moment(moment: datetime) -> None:
    now = datetime.now(UTC)
    if moment < EARLIEST:
        raise BadRequestError(
            f"timestamp: {moment:%Y-%m-%d} is before the year {EARLIEST.year}; write ISO 8601 text or Unix milliseconds"
        )
    if moment > now + AHEAD_REFUSED:
        raise BadRequestError(
            f"timestamp: {moment:%Y-%m-%d} is more than a year ahead of now, {now:%Y-%m-%d}; correct it"
        )


def _is_judged(record: JudgedInteraction) -> bool:
    said = (record.rating, record.liked, record.correction, record.comment, record.judge_score)
    return any(value is not None for value in said) or bool(record.better_than)
