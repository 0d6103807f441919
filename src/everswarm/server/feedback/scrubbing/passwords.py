"""Passwords and short secrets that a sentence or a file gives as such: `password=…`, `das Passwort ist …`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from everswarm.server.feedback.scrubbing.found import Found

# The words that lead to a secret, in small letters, and what may link one to its value.
_CUE = re.compile(
    r"p(?:ass|wd|hrase|(?<!\wp)(?:w|in)\b)|k(?:ey|ennwort)|c(?:ontrase|l(?:ave|[eé] )|ode )|s(?:ecret|chl)|token|jeton"
    r"|m(?<!\wm)dp"
)
_LINK = re.compile(r"[^\n:=]{0,100}?(?:[:=]| (?:is|ist|c['’]?est|est|es|lautet|heißt|heisst|was|war) )")
_BEFORE = 24  # characters of a name before its telling word
_AFTER = 150  # characters of a value and its quotes
_NAME = (
    r"(?P<name>pass(?:wor[dt]|phrase|wd|code|e)[s]?|pwd|\bpw|kennwort|\bmdp|contrase[ñn]a|\bclave|\bpin"
    r"|(?:api|access|auth|secret|private|client|app|encryption|signing|db)[ _\-]?(?:key|secret|token|pass)|\bsecret"
    r"|\bcode (?:wi-?fi|d'acc[èe]s|secret|de acceso)|seed phrase"
    r"|(?:api|zugangs|zugriffs)[ \-]?schl[üu]e?ssel|\bcl[ée] (?:api|d'acc[èe]s|secr[èe]te)|\btoken|\bjeton)"
)
# At most five words between the name and what links it to the value: "password for the router is".
_ASSIGNED = re.compile(
    _NAME + r"(?![\w\-]{0,3}=?\()[\w\-]{0,20}[\"'`*]{0,3}"
    r"(?:[ ](?!is\b|ist\b|est\b|c'est\b|es\b|lautet\b|hei[ßs]+t\b|was\b|war\b)[\w.@'/\-]{1,24}){0,5}?"
    r"[ ]?(?P<link>:=|=>|==?|:|[ ](?:is|ist|est|c['’]est|es|lautet|hei(?:ß|ss)t|was|war)[ ]?:?)[ ]?\*{0,2}[ ]?"
    r"(?:\"(?P<double>[^\"\n]{3,128})\"|'(?P<single>[^'\n]{3,128})'|`(?P<tick>[^`\n]{3,128})`"
    r"|[„“«][ ]?(?P<round>[^”“»\n]{3,128}?)[ ]?[”“»]|(?P<bare>[^\s\"'`„“«<>]{3,128}))",
    re.IGNORECASE,
)
_STOPPED = re.compile(r"[.,;:?)\]}*]+$")
_CODE = re.compile(
    r"[A-Za-z_][\w.]*[(\[]|[\[({$%<]|\.{2,}|\*{3,}|https?:|os\.|self\.|process\.|None|null|true|false", re.IGNORECASE
)
_DESCRIPTION = re.compile(
    r"(?:pass|pwd|secret|token|key|user|input|string|str|text|required|none|null|value|hidden|example|changeme|optional"
    r"|incorrect|invalid|wrong|missing|empty|bytes|char|your|dein|ihr|votre|tu_|obligato|erforder|falsch|weak|strong)",
    re.IGNORECASE,
)
_SYMBOL = re.compile(r"[!@#$%^&*_+~?|\\=]")
_AMOUNT = re.compile(r"[0-9]{1,4}(?:[.,:/\-][0-9]{1,4}){0,3}(?:%|€|\$|[a-z]{1,2})?")
_DATE = re.compile(r"[0-9]{1,4}[./\-][0-9]{1,2}[./\-][0-9]{1,4}")
_PHRASES = ("passphrase", "seed phrase")
_TOKENS = ("token", "jeton")
_OF_MACHINES = ("key", "secret", "token", "jeton", "schl", "cl")


def cues(lower: str) -> list[tuple[int, int]]:
    """Return where a text in small letters has the words that a password, a key or a token is called by."""
    return [match.span() for match in _CUE.finditer(lower)]


def passwords(text: str, lower: str, cue_spans: list[tuple[int, int]]) -> Iterator[Found]:
    """Yield the values that are given as a password, a key or a token.

    Args:
        text: what is looked through.
        lower: the same in small letters, as long as `text`.
        cue_spans: what `cues` found, in characters.
    """
    for start, end in _regions(lower, cue_spans):
        for match in _ASSIGNED.finditer(text, start, end):
            found = _secret_of(text, match)
            if found is not None:
                yield found


def _regions(lower: str, cue_spans: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield where a word is followed by what may link it to a secret."""
    linked = 0
    for start, end in cue_spans:
        link = _LINK.match(lower, end) if start >= linked else None
        if link is not None:
            linked = link.end()
            yield max(0, start - _BEFORE), linked + _AFTER


def _secret_of(text: str, match: re.Match[str]) -> Found | None:
    group = match.lastgroup or "bare"
    value = match[group]
    quoted = group != "bare"
    if not quoted:
        value = _STOPPED.sub("", value)
    name = match["name"].lower()
    sure = match["link"].strip() in ("=", ":", ":=", "=>", "lautet", "is:", "ist:", "est:", "es:", "lautet:")
    machine = name.startswith(_OF_MACHINES) or name.endswith(("key", "secret", "token")) or "schl" in name
    if machine and len(value) < 8:
        return None
    end = match.start(group) + len(value)
    ends = text[end : end + 1] != " " or not text[end + 1 : end + 2].isalnum()
    if quoted and " " in value:
        good = name in _PHRASES and len(value) <= 100
    elif quoted and (sure or not machine):
        good = looks_chosen(value, sure=True)
    else:
        good = looks_chosen(value, sure=sure and ends and not machine)
    if not good:
        return None
    start = match.start(group)
    return Found(start, start + len(value), "token" if name.endswith(_TOKENS) else "key")


def looks_chosen(value: str, *, sure: bool) -> bool:
    """Return whether someone may have chosen `value` as a secret.

    Args:
        value: without quotes and without the full stop of its sentence.
        sure: a form such as `password=…` announces a value, so that a plain word is one too.
    """
    if len(value) < 4 or _CODE.match(value) or value.startswith("[") or _DATE.fullmatch(value):
        return False
    letters, digits = any(map(str.isalpha, value)), any(map(str.isdigit, value))
    symbols = _SYMBOL.search(value.strip("*_!?")) is not None
    if letters and digits:
        return _AMOUNT.fullmatch(value) is None
    if letters and symbols:
        return not _DESCRIPTION.search(value)
    if letters:
        words = value.split("-")  # one word, or a passphrase of three
        return sure and "".join(words).isalnum() and len(words) != 2 and not _DESCRIPTION.match(value)
    return digits and len(value) >= (4 if sure else 6) and value.isdigit()
