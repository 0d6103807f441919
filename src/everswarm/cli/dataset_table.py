"""A dataset version as people read it: what became of every record, and what is in the dataset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich.table import Table
from rich.text import Text

from everswarm.cli.screen import console, print_table, size
from everswarm.schemas.dataset import SPLITS, Dataset, DatasetCard

BAR_COLUMNS = 32
DIGEST_CHARACTERS = 12  # of a sha256; --json has all
EIGHTHS = "▏▎▍▌▋▊▉█"
KEPT_STYLE, DROPPED_STYLE = "green", "yellow"


def print_dataset(dataset: Dataset) -> None:
    """Print the card: the account with its bars, the splits, and the rest line by line."""
    card = dataset.card
    _print_account(card)
    _print_splits(card)
    for name, value in _facts(dataset):
        if value:
            console.print(f"{name + ':':<20}{value}", markup=False)


def _print_account(card: DatasetCard) -> None:
    table = Table(
        title=f"What became of {card.read:,} judged interactions",
        title_justify="left",
        title_style="bold",
        header_style="dim",
    )
    table.add_column("step")
    table.add_column("what", overflow="fold")
    table.add_column("records", justify="right")
    table.add_column("share", justify="right")
    table.add_column("", width=BAR_COLUMNS)
    kept = [("kept", split, card.examples.get(split, 0), KEPT_STYLE) for split in SPLITS]
    dropped = [(one.step, one.reason, one.count, DROPPED_STYLE) for one in card.dropped]
    for step, what, count, style in [*kept, *dropped]:
        share = count / max(card.read, 1)
        table.add_row(Text(step), Text(what), f"{count:,}", f"{share:.1%}", Text(bar(share, BAR_COLUMNS), style=style))
    console.print(table)


def _print_splits(card: DatasetCard) -> None:
    rows = [
        (
            split,
            f"{card.examples.get(split, 0):,}",
            f"{card.shares.get(split, 0.0):.1%}",
            f"{card.users.get(split, 0):,}",
            f"{card.preferences.get(split, 0):,}",
            f"{card.desirabilities.get(split, 0):,}",
        )
        for split in SPLITS
    ]
    print_table("The dataset", ["split", "#examples", "#share", "#users", "#preferences", "#desirabilities"], rows)


def _facts(dataset: Dataset) -> Iterator[tuple[str, str]]:
    card = dataset.card
    yield "sources", _counts(card.sources)
    yield "tasks", _counts(card.tasks)
    yield "languages", _counts(card.languages)
    yield "masked", _counts(card.masked)
    yield "for review", _counts(card.for_review)
    limit = f"the limit is {card.rules.max_user_share:.0%}, or two even shares where few train"
    yield "largest user", f"{card.largest_user_share:.1%} of training; {limit}"
    yield "seed", str(card.seed)
    yield "digest", f"{dataset.data.sha256} ({size(dataset.data.size_bytes)})"
    yield "made of", ", ".join(parent[:DIGEST_CHARACTERS] for parent in card.parents)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(
        f"{count:,} {name}" for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    )


def bar(share: float, columns: int) -> str:
    """Return a bar of which `columns` is all; something is shown of whatever is not nothing."""
    if not console.is_terminal or not (console.encoding or "").lower().startswith("utf"):
        return "#" * max(round(share * columns), int(share > 0))
    eighths = max(round(share * columns * 8), int(share > 0))
    return EIGHTHS[7] * (eighths // 8) + (EIGHTHS[eighths % 8 - 1] if eighths % 8 else "")
