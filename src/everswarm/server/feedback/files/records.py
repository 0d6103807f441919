"""Cutting a file into its records: one a line, or the items of one JSON list. In bounded memory; parses nothing."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from everswarm.errors import BadRequestError
from everswarm.server.feedback.reading import BYTE_ORDER_MARK, LINE_BYTES, numbered_lines

ITEM_BYTES = 32 * 1024 * 1024  # of a list: one item of an Open WebUI export holds a whole chat, with its pictures
_BETWEEN_ITEMS = re.compile(rb'[",{}\[\]]')
_IN_AN_ITEM = re.compile(rb'["{}\[\]]')
_IN_A_TEXT = re.compile(rb'["\\]')


class RawRecord(NamedTuple):
    """The bytes of one record, and where it is."""

    line: int  # from 1
    item: int | None  # of a list, from 1
    data: bytes
    limit_bytes: int  # more than that: it was cut, and is not to be read


def numbered_records(file: io.BufferedReader[Any]) -> Iterator[RawRecord]:
    """Yield the records of a file that are not blank. One that is too long is cut and stays too long.

    Raises:
        BadRequestError: a list does not end.
    """
    line = 1 + _skip_blank(file)
    if file.peek(1)[:1] == b"[":
        items = _ListItems(file, line)
        yield from items
        line = items.line
    for number, data in numbered_lines(file, first=line):
        yield RawRecord(number, None, data, LINE_BYTES)


def _skip_blank(file: io.BufferedReader[Any]) -> int:
    """Skip a byte order mark and white space; return how many lines that were."""
    if file.peek(3)[:3] == BYTE_ORDER_MARK:
        file.read(3)
    lines = 0
    while (byte := file.peek(1)[:1]) and byte.isspace():
        lines += file.read(1) == b"\n"
    return lines


class _ListItems:
    """The items of a list, which begins here. Afterwards the file stands behind its end, on line `line`."""

    def __init__(self, file: io.BufferedReader[Any], line: int) -> None:
        self.line = line
        self._file = file
        self._depth = 0
        self._quoted = self._escaped = False
        self._item = 0
        self._begin(line)

    def _begin(self, line: int) -> None:
        self._part = bytearray()
        self._part_line = line

    def __iter__(self) -> Iterator[RawRecord]:
        self._file.read(1)  # the bracket
        self._depth = 1
        while chunk := self._file.peek():
            taken = 0
            for start, end, separator in self._cuts(chunk):
                self._add(chunk[start:end])
                taken = end + len(separator)
                if separator:
                    yield from self._finished(optional=separator == b"]")
            self._file.read(taken)
            if not self._depth:
                return
        raise BadRequestError("the list does not end with ]: the file was cut off. What came before is kept")

    def _cuts(self, chunk: bytes) -> Iterator[tuple[int, int, bytes]]:
        """Yield (start, end, separator behind it or nothing) of the pieces of items in `chunk`."""
        start = position = 0
        if self._escaped:
            position, self._escaped = 1, False
        while match := self._pattern.search(chunk, position):
            position = match.end()
            found = match.group()
            if self._quoted:
                position += found == b"\\"
                self._quoted = found != b'"'
                continue
            self._quoted = found == b'"'
            self._depth += (found in b"{[") - (found in b"]}")
            if not self._depth or (self._depth == 1 and found == b","):
                yield start, match.start(), b"]" if not self._depth else b","
                start = position
                if not self._depth:
                    return
        self._escaped = position > len(chunk)
        yield start, len(chunk), b""

    @property
    def _pattern(self) -> re.Pattern[bytes]:
        if self._quoted:
            return _IN_A_TEXT
        return _BETWEEN_ITEMS if self._depth == 1 else _IN_AN_ITEM

    def _add(self, piece: bytes) -> None:
        if not self._part:
            stripped = piece.lstrip()
            self._part_line = self.line + piece.count(b"\n", 0, len(piece) - len(stripped))
            piece, self.line = stripped, self._part_line
        self.line += piece.count(b"\n")
        room = ITEM_BYTES + 1 - len(self._part)
        self._part += piece[:room]

    def _finished(self, *, optional: bool) -> Iterator[RawRecord]:
        data, line = bytes(self._part).rstrip(), self._part_line
        self._begin(self.line)
        if data or not optional:
            self._item += 1
            yield RawRecord(line, self._item, data, ITEM_BYTES)
