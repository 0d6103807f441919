"""The words of a text and of a question, told apart in one way. Pure."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

QUERY_CHARACTERS = 4_000  # that are looked at
QUERY_WORDS = 32  # that are searched for
WORD_CHARACTERS = 400  # that count; a lexeme of Postgres has at most 2,046 bytes
PLURAL_CHARACTERS = 5  # from which a word is also found as the beginning of another
_LATIN_MARKS = re.compile("[\u0300-\u036f]")  # those that SQLite's tokenizer leaves out

# what nearly every question has; in a search it would find everything
_STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a about all also am an and any are as at be been but by can could did do does for from give had has have "
        "he her his how i if in into is it its just know like me my no not of on or our please say says she should "
        "so some tell than that the their them then there these they this to us was we were what when where which "
        "who whom why will with would you your",
    )
)


def words_of(text: str) -> Iterator[str]:
    """Yield the words of `text`: runs of letters, digits and marks, in small letters, without accents."""
    folded = unicodedata.normalize("NFD", text.lower())
    folded = unicodedata.normalize("NFC", _LATIN_MARKS.sub("", folded))
    spaced = "".join(letter if letter.isalnum() or _is_mark(letter) else " " for letter in folded)
    for word in spaced.split():
        yield word[:WORD_CHARACTERS]


def words_of_query(query: str) -> list[str]:
    """Return what to search for: distinct words, without the small ones where there are others."""
    words = list(dict.fromkeys(words_of(query[:QUERY_CHARACTERS])))
    return ([word for word in words if word not in _STOP_WORDS] or words)[:QUERY_WORDS]


def beginning_of(word: str) -> str | None:
    """Return the beginning that also finds `word`'s plural, or its singular; None for words too short for that."""
    return word.removesuffix("s") if len(word) >= PLURAL_CHARACTERS and word.isalpha() else None


def _is_mark(letter: str) -> bool:
    return unicodedata.category(letter)[0] == "M"
