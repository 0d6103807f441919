"""What all settings share: a misspelt name is an error, and the error says which name was meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticCustomError

SECRET_INSIDE = "secret_inside"  # kind of an error whose input is never shown
NAME_CHARACTERS = 40  # of a role or a tool server


class Section(BaseModel):
    """A part of the settings; a misspelt name is an error."""

    model_config = ConfigDict(extra="forbid")


def checked_base_url(base_url: str) -> str:
    """Return an address without the slash at its end.

    Raises:
        PydanticCustomError: it holds a credential; the text does not repeat it.
        ValueError: it is no http(s) address.
    """
    try:
        parts = urlsplit(base_url)
        host, _port = parts.hostname, parts.port
    except ValueError:
        parts, host = urlsplit(""), None
    if "@" in parts.netloc or parts.query or "@" in base_url:
        raise PydanticCustomError(
            SECRET_INSIDE,
            "should have no credential and no query in it; name the variable that holds the credential in api_key_env",
        )
    if parts.scheme not in {"http", "https"} or not host or re.search(r"\s", base_url):
        raise ValueError("should be an http:// or https:// address, such as http://127.0.0.1:11434/v1")
    return base_url.rstrip("/")


def broken_rule(name: str) -> str:
    """Return which rule for the names of roles and tool servers `name` breaks, or nothing."""
    strange = re.search(r"[^a-z0-9_-]", name)
    if not name:
        return "it is empty"
    if len(name) > NAME_CHARACTERS:
        return f"it has {len(name)} characters, and {NAME_CHARACTERS} are the most"
    if strange:
        return f"it has {strange.group()!r}, and only small letters, digits, - and _ may be in it"
    return "" if name[0].isalpha() else f"it begins with {name[0]!r}, and a small letter should be first"


def meant(word: str, known: Iterable[str]) -> str:
    """Return ` (did you mean 'ollama'?)` for `word`, or nothing where none of the `known` is close."""
    close = closest(word, known)
    return f" (did you mean '{close}'?)" if close else ""


def closest(word: str, known: Iterable[str]) -> str | None:
    """Return the name among `known` that `word` is a misspelling of."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1)), None)
