"""The README.md of a folder that `datasets.load_dataset` and the Hub's viewer read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from everswarm.schemas.dataset import SPLITS, Dataset

if TYPE_CHECKING:
    from everswarm.server.feedback.files.exporter import ExportReport

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_LARGEST = "1M<n<10M"


def feedback_card(report: ExportReport, *, languages: Iterable[str], raw: bool, everyone: bool) -> str:
    """Return the card of exported feedback."""
    masked = ", ".join(f"{count} × {kind}" for kind, count in report.masked.items()) or "nothing was found"
    lines = [
        front_matter(report.written, languages=languages, configs={"default": {"train": "data/train-*.parquet"}}),
        "# Feedback from an everswarm server",
        "",
        f"{report.written:,} interactions with a language model, and what people thought of each.",
        "",
        f"- Consent: {_consent(report, everyone)}",
        f"- Personal data: {'as stored, nothing is masked' if raw else f'masked by pattern ({masked})'}",
        f"- Users: {'by the names they have on the server' if raw else 'by pseudonym'}",
        "- Licence: the contributors'; none is granted by this card",
        "",
        "| column | what |",
        "|---|---|",
        "| messages, response | the conversation up to the question, and the model's answer |",
        "| rating, liked | 1 to 5; a thumb |",
        "| correction, written_by | a better answer, and whether a person or the swarm wrote it |",
        "| better_than | other answers that lost a vote against this one |",
        "| regenerated, copied | weak signals; not meant to be learnt from |",
        "| review | what reviewers decided, where there was a doubt |",
        "",
    ]
    return "\n".join(lines)


def version_card(dataset: Dataset, *, configs: Mapping[str, Mapping[str, str]]) -> str:
    """Return the card of a curated dataset version."""
    card = dataset.card
    known = [code for code in card.languages if code != "und"]
    lines = [
        front_matter(sum(card.examples.values()), languages=known, configs=configs),
        f"# everswarm dataset {dataset.data.sha256[:12]}",
        "",
        f"{card.read:,} records were read, {sum(card.examples.values()):,} became examples. No user is in two splits.",
        "",
        *_table(["split", "examples", "users", "preferences", "desirabilities"], _split_rows(dataset)),
        "",
        f"- Consent: {card.consent}",
        f"- Licence: {card.licence}",
        f"- Digest of the examples: `{dataset.data.sha256}`",
        *(f"- Parent: `{parent}`" for parent in card.parents),
        "",
        "## What curation took out",
        "",
        *_table(["step", "reason", "records"], [[one.step, one.reason, one.count] for one in card.dropped]),
        "",
    ]
    return "\n".join(lines)


def front_matter(rows: int, *, languages: Iterable[str], configs: Mapping[str, Mapping[str, str]]) -> str:
    """Return the YAML head of a card.

    Args:
        rows: of all splits.
        languages: codes; those of the Hub have two or three letters.
        configs: name → split → pattern of its files; the first is what is loaded by default.
    """
    codes = sorted({code.split("-")[0] for code in languages})
    lines = ["---", "license: other", "task_categories:", "- text-generation", "tags:", "- everswarm", "- feedback"]
    lines += ["language:", *(f'- "{code}"' for code in codes)] if codes else []  # quoted: `no` is a word of YAML
    lines += ["size_categories:", f"- {next((name for limit, name in _SIZES if rows < limit), _LARGEST)}", "configs:"]
    for index, (name, files) in enumerate(configs.items()):
        lines += [f"- config_name: {name}", *(["  default: true"] if index == 0 else []), "  data_files:"]
        for split, pattern in files.items():
            lines += [f"  - split: {split}", f"    path: {pattern}"]
    return "\n".join([*lines, "---", ""])


def _consent(report: ExportReport, everyone: bool) -> str:
    if everyone and report.without_consent:
        return f"{report.without_consent:,} of these have NOT agreed to training; see the column consent"
    return "all contributors have agreed to training, and may withdraw"


def _split_rows(dataset: Dataset) -> list[list[object]]:
    card = dataset.card
    of_split = (card.examples, card.users, card.preferences, card.desirabilities)
    return [[split, *(counts.get(split, 0) for counts in of_split)] for split in SPLITS]


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    marks = ["---"] * len(columns)
    return [f"| {' | '.join(str(cell).replace('|', '/') for cell in row)} |" for row in (columns, marks, *rows)]
