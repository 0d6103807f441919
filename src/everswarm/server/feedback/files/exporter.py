"""Writing judged interactions to a file or a folder that others read: scrubbed, and only with consent unless asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import orjson

from everswarm.errors import NotFoundError
from everswarm.schemas.dataset import FrozenInteraction
from everswarm.server.database import Database
from everswarm.server.feedback.files.export_formats import LINES_OF, ExportFormat, Line
from everswarm.server.feedback.files.replacing import written_file, written_folder
from everswarm.server.feedback.freezing import Tally, frozen_interactions
from everswarm.server.feedback.scrubbing import Found, Scrubber
from everswarm.server.sealing import Seal

RECORDS_A_CALL = 500  # of `on_progress`

OnProgress = Callable[[int], None]  # judged interactions looked at so far


class ExportReport(NamedTuple):
    """What was written."""

    read: int  # judged interactions
    without_consent: int  # of these; left out, unless everyone's were asked for
    without_use: int  # nothing in them for this format
    written: int  # lines or rows
    masked: dict[str, int]  # kind of personal data → how often


def export_feedback(
    database: Database,
    target: Path,
    *,
    form: ExportFormat,
    scrubber: Scrubber | None,
    everyone: bool = False,
    force: bool = False,
    on_progress: OnProgress | None = None,
) -> ExportReport:
    """Write the judged interactions to `target`, whole or not at all.

    Args:
        database: where from.
        target: a file; for the form `datasets` a folder.
        form: jsonl is what `import_file` reads; sft, dpo and kto are JSON lines as TRL reads them.
        scrubber: masks personal data, and users get pseudonyms; None: all as it is stored.
        everyone: also those without consent.
        force: replace `target`.
        on_progress: is called now and then.

    Raises:
        BadRequestError: `target` is there, or cannot be written.
        NotFoundError: there is nothing to write; `target` stays as it was.
        MissingExtraError: parquet needs the training extra.
    """
    export = _Export(database, form, scrubber, everyone, on_progress)
    if form == "datasets":
        with written_folder(target, force=force) as folder:
            export.write_folder(folder)
    else:
        with written_file(target, force=force) as file:
            export.write_file(file)
    return export.report


class _Export:
    """One export on its way out."""

    def __init__(
        self,
        database: Database,
        form: ExportFormat,
        scrubber: Scrubber | None,
        everyone: bool,
        on_progress: OnProgress | None,
    ) -> None:
        self._database = database
        self._form = form
        self._seal = _AsStored() if scrubber is None else database.seal
        self._scrubber = _FindsNothing() if scrubber is None else scrubber
        self._raw = scrubber is None
        self._everyone = everyone
        self._on_progress = on_progress
        self._counts: Counter[str] = Counter()
        self._tally = Tally()
        self._languages: Counter[str] = Counter()

    @property
    def report(self) -> ExportReport:
        return ExportReport(
            read=self._tally.judged,
            without_consent=self._tally.without_consent,
            without_use=self._counts["without_use"],
            written=self._counts["written"],
            masked=dict(sorted(self._tally.masked.items())),
        )

    def write_file(self, path: Path) -> None:
        if self._form == "parquet":
            self._write_parquet(path)
            return
        with path.open("wb") as file:
            for line in self._lines():
                file.write(orjson.dumps(line) + b"\n")
        self._require_some()

    def write_folder(self, folder: Path) -> None:
        from everswarm.server.feedback.files.dataset_card import feedback_card

        (folder / "data").mkdir(mode=0o700)
        self._write_parquet(folder / "data" / "train-00000-of-00001.parquet")
        card = feedback_card(self.report, languages=self._languages, raw=self._raw, everyone=self._everyone)
        (folder / "README.md").write_text(card, encoding="utf-8")

    def _write_parquet(self, path: Path) -> None:
        from everswarm.server.feedback.files.parquet import write_interactions

        write_interactions(path, self._lines())
        self._require_some()

    def _lines(self) -> Iterator[Line]:
        lines_of = LINES_OF[self._form]
        for record in self._records():
            lines = lines_of(record)
            self._counts["written"] += len(lines)
            self._counts["without_use"] += not lines
            self._languages.update([record.language] if record.language else [])
            yield from lines

    def _records(self) -> Iterator[FrozenInteraction]:
        with self._database.read() as connection:
            tally = self._tally
            for record in frozen_interactions(
                connection, seal=self._seal, scrubber=self._scrubber, tally=tally, everyone=self._everyone
            ):
                if self._on_progress is not None and tally.judged % RECORDS_A_CALL == 0:
                    self._on_progress(tally.judged)
                yield record

    def _require_some(self) -> None:
        if self._counts["written"]:
            return
        without = self._tally.without_consent
        raise NotFoundError(
            f"There is nothing to export as {self._form}: of {self._tally.judged} judged interactions "
            f"{without} have no consent{'' if self._everyone or not without else ' (--all exports those too)'}, "
            f"and {self._counts['without_use']} hold nothing for it."
        )


class _AsStored(Seal):
    """Gives people no other names."""

    def __init__(self) -> None:
        pass

    def pseudonym(self, name: str) -> str:
        return name


class _FindsNothing:
    """Masks nothing."""

    def find(self, text: str) -> list[Found]:
        return []
