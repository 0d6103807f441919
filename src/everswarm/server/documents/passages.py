"""Splitting a text into passages, at its own borders. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

PASSAGE_CHARACTERS = 800  # at most, of its own; what it repeats of the one before comes on top
OVERLAP_CHARACTERS = 200  # with the white space behind it; a longer last sentence is not repeated

_PARAGRAPH_END = re.compile(r"\n\s*\n")
_SENTENCE_END = re.compile(r"(?<=[.!?…])\s+|(?<=[。！？])|\n")
_WORD_END = re.compile(r"\s+")
_BORDERS = (_PARAGRAPH_END, _SENTENCE_END, _WORD_END)  # the better ones first


class Passage(NamedTuple):
    """A piece of a text. Without their overlaps the passages are the text, but for white space between them."""

    text: str
    overlap: int  # characters at its start that are the end of the passage before


class _Span(NamedTuple):
    start: int
    end: int


def split_passages(text: str) -> list[Passage]:
    """Return the passages of `text` in order; none of a blank one.

    A passage ends where the next paragraph would not fit, of a long paragraph the next sentence, of a long sentence
    the next word; a word that is too long itself is cut. It begins with the last sentence of the one before.
    """
    passages: list[Passage] = []
    last_sentence = 0
    for own in _packed(text):
        is_repeated = bool(passages) and own.start - last_sentence <= OVERLAP_CHARACTERS
        start = last_sentence if is_repeated else own.start
        passages.append(Passage(text[start : own.end], overlap=own.start - start))
        *_, (last_sentence, _) = _between(text, own, _SENTENCE_END)
    return passages


def _packed(text: str) -> Iterator[_Span]:
    """Yield spans of at most `PASSAGE_CHARACTERS`, each with as many pieces as fit."""
    current: _Span | None = None
    for piece in _pieces(text, _Span(0, len(text)), _BORDERS):
        if current is not None and piece.end - current.start > PASSAGE_CHARACTERS:
            yield current
            current = None
        current = piece if current is None else _Span(current.start, piece.end)
    if current is not None:
        yield current


def _pieces(text: str, span: _Span, borders: tuple[re.Pattern[str], ...]) -> Iterator[_Span]:
    """Yield pieces of at most `PASSAGE_CHARACTERS`, cut at the first of `borders` that makes them small enough."""
    if not borders:
        for start in range(span.start, span.end, PASSAGE_CHARACTERS):
            yield _Span(start, min(start + PASSAGE_CHARACTERS, span.end))
        return
    for piece in _between(text, span, borders[0]):
        if piece.end - piece.start <= PASSAGE_CHARACTERS:
            yield piece
        else:
            yield from _pieces(text, piece, borders[1:])


def _between(text: str, span: _Span, border: re.Pattern[str]) -> Iterator[_Span]:
    """Yield what lies between the borders in `span`, without white space around it, and nothing blank."""
    start = span.start
    for match in border.finditer(text, span.start, span.end):
        yield from _stripped(text, start, match.start())
        start = match.end()
    yield from _stripped(text, start, span.end)


def _stripped(text: str, start: int, end: int) -> Iterator[_Span]:
    piece = text[start:end]
    content = piece.strip()
    if content:
        start += len(piece) - len(piece.lstrip())
        yield _Span(start, start + len(content))
