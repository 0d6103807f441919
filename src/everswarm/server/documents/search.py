"""What is asked of the two full-text searches, as text. No character of a question gets into their syntax."""

from __future__ import annotations

from collections.abc import Sequence

from everswarm.server.documents.words import beginning_of, words_of


def sqlite_match(user: str, words: Sequence[str]) -> str:
    """Return an FTS5 query for passages of `user` with any of `words`, whole or as the beginning of another.

    The user is part of it, so that a search does not walk through what others have; it does not stand in for a filter.
    """
    terms = [f'"{word}"' for word in words]
    terms += [f'"{beginning}"*' for word in words if (beginning := beginning_of(word))]
    owner = user.replace('"', '""')
    return f'user:"{owner}" AND {{title text}}:({" OR ".join(terms)})'


def postgres_query(words: Sequence[str]) -> str:
    """Return a tsquery, in its text form, for any of `words`, whole or as the beginning of another."""
    terms = [f"'{word}'" for word in words]
    terms += [f"'{beginning}':*" for word in words if (beginning := beginning_of(word))]
    return " | ".join(terms)


def postgres_words(title: str, text: str) -> str:
    """Return a tsvector, in its text form: the words of the title with weight A, then those of the text.

    Ours and not `to_tsvector`, whose parser makes one word of `and/or` and keeps accents: both databases find alike.
    """
    titled = [f"'{word}':{position}A" for position, word in enumerate(words_of(title), start=1)]
    texted = [f"'{word}':{position}" for position, word in enumerate(words_of(text), start=len(titled) + 1)]
    return " ".join(titled + texted)
