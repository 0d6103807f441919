"""What commands print: tables and progress for people, JSON for programs. Knows no room."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from rich.text import Text

PAGE_COLUMNS = 132  # where no terminal says how wide it is
console = Console(highlight=False, width=None if sys.stdout.isatty() else PAGE_COLUMNS)
errors = Console(stderr=True, highlight=False)

JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON, for programs.")]


def print_json(value: Any) -> None:
    """Print records, or lists and dicts of them, as JSON."""
    print(json.dumps(_plain(value), ensure_ascii=False, indent=2, default=str))


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; a column whose name starts with '#' holds numbers and is set to the right."""
    table = Table(title=title, title_justify="left", title_style="bold", header_style="dim")
    for column in columns:
        number = column.startswith("#")
        table.add_column(column.lstrip("#"), justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # as it is: people's words may have brackets in them
    console.print(table)


def size(size_bytes: float) -> str:
    """Return a size for people: 1.85 MB."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.2f} {unit}"
    return f"{size_bytes:.0f} B"


def seconds(duration_seconds: float) -> str:
    """Return a duration for people: 2 min 05 s."""
    if duration_seconds < 60:
        return f"{duration_seconds:.1f} s"
    minutes, rest = divmod(round(duration_seconds), 60)
    return f"{minutes} min {rest:02d} s"
