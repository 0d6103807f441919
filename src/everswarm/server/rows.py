"""INSERT statements of many rows, prepared once. Knows no table of its own.

Asking SQLAlchemy for each batch costs a third more than the driver's own work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, TypeAlias

from sqlalchemy import Connection, Dialect, Table, insert
from sqlalchemy.exc import ArgumentError

ROWS_TOGETHER = 64  # in one statement; a power of two

Row: TypeAlias = Mapping[str, Any]


class PreparedInsert:
    """One INSERT with the columns `names`. Defaults that a table has in Python are not applied."""

    def __init__(
        self, table: Table, names: Sequence[str], dialect: Dialect, *, ending: str = "", together: int = ROWS_TOGETHER
    ) -> None:
        """Prepare it for the databases of `dialect`.

        Args:
            table: where the rows go.
            names: the columns that each row has.
            dialect: of the engine.
            ending: what follows the values, such as ` ON CONFLICT DO NOTHING`.
            together: the most rows of one statement, a power of two.

        Raises:
            ArgumentError: the table has no such column.
        """
        unknown = sorted(set(names).difference(table.c.keys()))
        if unknown:
            raise ArgumentError(f"{table.name!r} has no column {unknown[0]!r}")
        compiled = insert(table).inline().compile(dialect=dialect, column_keys=list(names))
        self._sql = str(compiled)
        self._ending = ending
        self._together = together
        self._by_length: dict[int, str] = {}
        self._is_positional = compiled.positional
        self._names = tuple(compiled.positiontup or names)  # as the table has them
        self._given = tuple(names)
        processors = [table.c[name].type.dialect_impl(dialect).bind_processor(dialect) for name in self._names]
        self._processors = [(column, to_sql) for column, to_sql in enumerate(processors) if to_sql is not None]

    def execute(self, connection: Connection, rows: Sequence[Row]) -> None:
        """Insert `rows`, which have all `names`."""
        self._execute(connection, [tuple(row[name] for name in self._names) for row in rows])

    def execute_values(self, connection: Connection, rows: Sequence[Sequence[Any]]) -> None:
        """Insert `rows`, each the values of `names` in their order; quickest where that is the table's."""
        if self._given != self._names:
            self.execute(connection, [dict(zip(self._given, row, strict=True)) for row in rows])
        else:
            self._execute(connection, rows)

    def _execute(self, connection: Connection, rows: Sequence[Sequence[Any]]) -> None:
        """Insert `rows`, whose values are in the order of the table.

        Many go into one statement where that is possible: between two statements another thread takes over, and for an
        event loop beside us that is most of the cost.
        """
        if not rows:
            return
        width = len(self._names)
        flat = list(chain.from_iterable(rows))
        for column, to_sql in self._processors:
            flat[column::width] = map(to_sql, flat[column::width])
        if not self._is_positional:
            starts = range(0, len(flat), width)
            named = [dict(zip(self._names, flat[start : start + width], strict=True)) for start in starts]
            connection.exec_driver_sql(self._sql + self._ending, named)
            return
        start, together = 0, self._together
        while start < len(rows):
            while together > len(rows) - start:
                together //= 2  # few lengths, so that the driver knows the statement already
            values = tuple(flat[start * width : (start + together) * width])
            connection.exec_driver_sql(self._sql_for(together), values)
            start += together

    def _sql_for(self, together: int) -> str:
        if together not in self._by_length:
            head, separator, values = self._sql.rpartition("VALUES ")
            self._by_length[together] = f"{head}{separator}{', '.join([values] * together)}{self._ending}"
        return self._by_length[together]
