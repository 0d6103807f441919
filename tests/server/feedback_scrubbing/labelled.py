"""Scores a scrubber on labelled sentences: `python tests/server/feedback_scrubbing/labelled.py FILE…`.

A line is `{"language": "en", "text": "Write to ⟦email:a@b.example⟧."}`. Keys and tokens are stored reversed, because
secret scanners read repositories.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from everswarm.server.feedback.scrubbing import KINDS, Found, Kind, Scrubber, pattern_scrubber

MARK = re.compile(rf"⟦({'|'.join(KINDS)}):([^⟦⟧]*)⟧")
REVERSED = ("key", "token")
COVERED = 0.9  # share of a labelled value's characters, without spaces, that must be masked
OVERLAP = 0.5  # share of a found span that must lie in labelled values


class Sentence(NamedTuple):
    language: str
    text: str
    labels: list[Found]


@dataclass
class Score:
    labelled: int = 0
    masked: int = 0  # labelled values that were masked, whatever their kind
    same_kind: int = 0
    found: int = 0
    right: int = 0

    @property
    def recall(self) -> float:
        return self.masked / self.labelled if self.labelled else 1.0

    @property
    def recall_of_kind(self) -> float:
        return self.same_kind / self.labelled if self.labelled else 1.0

    @property
    def precision(self) -> float:
        return self.right / self.found if self.found else 1.0


@dataclass
class Report:
    overall: Score = field(default_factory=Score)
    by_group: dict[str, Score] = field(default_factory=dict)
    misses: list[str] = field(default_factory=list)

    def scores(self, *groups: str) -> list[Score]:
        return [self.overall, *(self.by_group.setdefault(group, Score()) for group in groups)]


def read(path: Path) -> list[Sentence]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [sentence(row["text"], row["language"]) for row in rows]


def sentence(marked: str, language: str) -> Sentence:
    parts: list[str] = []
    labels: list[Found] = []
    end = length = 0
    for match in MARK.finditer(marked):
        kind = next(kind for kind in KINDS if kind == match[1])
        value = match[2][::-1] if kind in REVERSED else match[2]
        parts += (marked[end : match.start()], value)
        length += match.start() - end
        labels.append(Found(length, length + len(value), kind))
        length += len(value)
        end = match.end()
    return Sentence(language, "".join([*parts, marked[end:]]), labels)


def score(sentences: Iterable[Sentence], scrubber: Scrubber) -> Report:
    report = Report()
    for one in sentences:
        found = scrubber.find(one.text)
        for label in one.labels:
            _score_label(report, one, label, found)
        for span in found:
            right = _inside(one.text, span, one.labels) >= OVERLAP
            if not right:
                report.misses.append(f"{one.language} wrong {span.kind}: {one.text[span.start : span.end]!r}")
            for part in report.scores(one.language, span.kind):
                part.found += 1
                part.right += right
    return report


def _score_label(report: Report, one: Sentence, label: Found, found: list[Found]) -> None:
    masked = _inside(one.text, label, found) >= COVERED
    same = masked and any(
        span.start < label.end and label.start < span.end and _merged(span.kind) == _merged(label.kind)
        for span in found
    )
    if not masked:
        report.misses.append(f"{one.language} missed {label.kind}: {one.text[label.start : label.end]!r}")
    for part in report.scores(one.language, label.kind):
        part.labelled += 1
        part.masked += masked
        part.same_kind += same


def _merged(kind: Kind) -> Kind:
    return "key" if kind == "token" else kind


def _inside(text: str, span: Found, others: list[Found]) -> float:
    places = [place for place in range(span.start, span.end) if not text[place].isspace()]
    inside = sum(any(other.start <= place < other.end for other in others) for place in places)
    return inside / len(places) if places else 0.0


def table(report: Report) -> str:
    lines = [f"{'':10}{'labelled':>9}{'recall':>8}{'of kind':>9}{'found':>7}{'precision':>11}"]
    for name, one in [("all", report.overall), *sorted(report.by_group.items())]:
        lines.append(
            f"{name:10}{one.labelled:>9}{one.recall:>8.3f}{one.recall_of_kind:>9.3f}{one.found:>7}{one.precision:>11.3f}"
        )
    return "\n".join(lines)


def main(paths: list[str]) -> None:
    for path in paths:
        report = score(read(Path(path)), pattern_scrubber())
        print(path, table(report), *report.misses, sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
