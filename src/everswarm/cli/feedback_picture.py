"""The picture that `everswarm feedback stats` draws: bars of text, as wide as the terminal, ASCII where it must be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from everswarm.server.feedback.repository import FeedbackStats
    from everswarm.server.feedback.statistics import FeedbackPicture

LABEL_COLUMNS = 14
NUMBER_COLUMNS = 18
WIDEST_BAR = 60  # columns; wider bars do not say more
EIGHTHS = "▏▎▍▌▋▊▉█"


def draw(console: Console, stats: FeedbackStats, picture: FeedbackPicture) -> None:
    """Print how much there is, and how it is spread."""
    ascii_only = not console.is_terminal or not (console.encoding or "").lower().startswith("utf")
    for line in picture_lines(stats, picture, width=console.width, ascii_only=ascii_only):
        console.print(Text(line, style="bold" if line and not line.startswith(" ") else ""), soft_wrap=True)


def picture_lines(stats: FeedbackStats, picture: FeedbackPicture, *, width: int, ascii_only: bool) -> list[str]:
    """Return the lines of the picture.

    Args:
        stats: the numbers above it.
        picture: what the bars show.
        width: columns of the terminal; no line is longer, from 40 on.
        ascii_only: bars of `#`, as for a pipe.
    """
    bars = _Bars(max(4, min(WIDEST_BAR, width - LABEL_COLUMNS - NUMBER_COLUMNS)), ascii_only)
    lines = ["Feedback", *_numbers(stats)]
    if picture.shares is None:
        return [*lines, "", "Nothing was judged yet. Bring judgements in with: everswarm feedback import FILE"]
    shares = picture.shares.model_dump()
    stars = {f"{count} star{'s' if count > 1 else ''}": number for count, number in reversed(picture.ratings.items())}
    weeks = {f"{monday:%Y-%m-%d}": number for monday, number in picture.weeks.items()}
    if stats.ratings:
        lines += ["", f"Ratings (mean {stats.mean_rating:.2f})", *bars.of_counts(stars)]
    lines += ["", "Of those judged", *bars.of_shares(shares)]
    lines += ["", "Judgements a week (from Monday, UTC)", *bars.of_counts(_without_empty_start(weeks))]
    lines += ["", "Where interactions come from", *bars.of_counts(picture.sources)]
    lines += ["", "Languages", *bars.of_counts(picture.languages)]
    return lines


def _numbers(stats: FeedbackStats) -> Iterable[str]:
    for name, value in stats.model_dump().items():
        shown = "none" if value is None else f"{value:,}"
        yield f"  {name.replace('_', ' '):<{LABEL_COLUMNS}}{shown:>10}"


def _without_empty_start(counts: Mapping[str, int]) -> dict[str, int]:
    """Leave out what lies before the first week in which somebody judged."""
    names = list(counts)
    first = next((index for index, name in enumerate(names) if counts[name]), len(names))
    return {name: counts[name] for name in names[first:]}


class _Bars:
    """Bars of one width."""

    def __init__(self, columns: int, ascii_only: bool) -> None:
        self._columns = columns
        self._ascii_only = ascii_only

    def of_counts(self, counts: Mapping[str, int]) -> list[str]:
        """Return a line a count; the longest bar is as wide as there is room."""
        total, largest = sum(counts.values()), max(counts.values(), default=0)
        return [
            self._line(name, count / largest if largest else 0.0, f"{count:>10,} {_percent(count / (total or 1))}")
            for name, count in counts.items()
        ]

    def of_shares(self, shares: Mapping[str, float]) -> list[str]:
        """Return a line a share; a full bar is all."""
        return [self._line(name, share, f"{'':>10} {_percent(share)}") for name, share in shares.items()]

    def _line(self, name: str, share: float, number: str) -> str:
        label = name[: LABEL_COLUMNS - 1].ljust(LABEL_COLUMNS)
        return f"  {label}{self._bar(share).ljust(self._columns)} {number}"

    def _bar(self, share: float) -> str:
        if self._ascii_only:
            return "#" * max(round(share * self._columns), int(share > 0))
        eighths = max(round(share * self._columns * 8), int(share > 0))
        return EIGHTHS[7] * (eighths // 8) + (EIGHTHS[eighths % 8 - 1] if eighths % 8 else "")


def _percent(share: float) -> str:
    return f"{share:>4.0%}"
