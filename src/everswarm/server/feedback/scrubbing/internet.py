"""E-mail and IP addresses."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from everswarm.server.feedback.scrubbing.found import Found

_LOCAL_LENGTH = 64  # characters, RFC 5321
_LOCAL_BACKWARDS = re.compile(r"[\w.+%&'’*~!#$^{}|-]{1,64}")
_DOMAIN = re.compile(r"(?:\w(?:[\w-]{0,61}\w)?\.){1,8}(?:xn--[a-z0-9-]{2,59}|[^\W\d_]{2,24})(?![\w(])")
_FILE = re.compile(r"\.(?:png|jpe?g|gif|svg|webp|css|js|ts|py|json)$", re.IGNORECASE)
# "tom (at) example (dot) net", "paul arobase example point fr": the words of one language, or brackets.
_SPELT_AT = re.compile(
    r" ?[\[({<] ?(?:at|ät|arroba|arobase?|a|@) ?[\])}>] ?| (?:at|ät|arroba|arobase?) ", re.IGNORECASE
)
_SPELT_DOT = r"(?:\.| ?[\[({<] ?(?:dot|punkt|point|punto|\.) ?[\])}>] ?| (?:dot|punkt|point|punto) )"
_SPELT_LOCAL = re.compile(r"(?:\b[\w-]{1,30} (?:dot|punkt|point|punto|underscore) ){1,2}$", re.IGNORECASE)
_SPELT_DOMAIN = re.compile(rf"[\w-]{{1,63}}(?:{_SPELT_DOT}[\w-]{{1,63}}){{1,4}}", re.IGNORECASE)
_WORD_DOT = {
    "at": re.compile(r" (?:dot|punkt) |[\[({] ?(?:dot|punkt)", re.IGNORECASE),
    "ät": re.compile(r" punkt |[\[({] ?punkt", re.IGNORECASE),
    "arobase": re.compile(r" point |\.", re.IGNORECASE),
    "arobas": re.compile(r" point |\.", re.IGNORECASE),
    "arroba": re.compile(r" punto |\.", re.IGNORECASE),
}
SPELT_WORDS = frozenset(
    form for word in ("dot", "punkt", "arroba", "arobase", "arobas") for form in (word, word.capitalize(), word.upper())
)
_BRACKETED_AT = re.compile(r"[\[({<] ?(?:at|ät|a|@|arobase?|arroba) ?[\])}>]", re.IGNORECASE)
_TOP_LEVEL = re.compile(
    r"[ .\])}>](?:com|org|net|info|edu|gov|io|eu|example|test|invalid|de|at|ch|fr|be|es|mx|ar|co|cl|pe|uk|us|it|nl"
    r"|pt|pl|ca|au)$",
    re.IGNORECASE,
)
_URL_LOGIN = re.compile(r"://[^\s/@:]{0,64}:[^\s/@]*$")
_ANY_LOGIN = re.compile(r"(?<![\w:/])(?!(?i:e-?mail|mail|mailto|to|cc|bcc|from|correo):)[\w.\-]{1,40}:$")
_HOST_GOES_ON = re.compile(r":[0-9]{2,5}\b|/\w")
_TOKEN = re.compile(r"\S{5,320}")
_POINTS = re.compile(r"\.[0-9]{1,3}\.[0-9]")
_COLONS = re.compile(r":[0-9A-Fa-f]{0,4}:")
_IPV4 = re.compile(r"[0-9](?<![\w.][0-9])[0-9]{0,2}(?:\.[0-9]{1,3}){3}(?![\w]|\.[0-9])")
_IPV6 = re.compile(r"[0-9A-Fa-f:](?<![\w:.][0-9A-Fa-f:])[0-9A-Fa-f:]{2,38}(?:(?<=:)[0-9]{1,3}(?:\.[0-9]{1,3}){3})?")
_NUMBERED = re.compile(
    r"(?:\bv[ .]?$|(?:(?:versi[oó]n\w*|firmware|release|build|driver|treiber)"
    r"(?: (?:is|ist|est|es|to|auf|now|jetzt|the|die|la|el|n[ro°º])\b\.?){1,2}|versi[oó]n\w*|patch|revision|release"
    r"|build|firmware|driver|treiber|section|abschnitt|kapitel|chapter"
    r"|chapitre"
    r"|cap[ií]tulo|secci[oó]n|apartado|paragra\w*|artikel|article|clause|absatz|update|upgrade|§|==|>=|<=|~=)"
    r"(?: n[ro°º]?\.?| number| nummer| num[eé]ro)?[ .:=(\"']{0,3}$)",
    re.IGNORECASE,
)
_EDITION = re.compile(r"[\-+](?:rc|beta|alpha|dev|snapshot|post|pre|build|final|hotfix)(?![a-zA-Z])", re.IGNORECASE)
_MACHINE = re.compile(
    r"(?:\bips?\b|server\w*|servidor|serveur|host\w*|ad+ress\w*|direcci[oó]n|machine|rechner|\bping|\bssh|@|//|router|client"
    r"|\bdns|gateway|subnet|proxy)[^\n0-9]{0,20}$",
    re.IGNORECASE,
)


def emails(text: str) -> Iterator[Found]:
    """Yield e-mail addresses: each `@` with the characters on both sides of it."""
    position = text.find("@")
    while position >= 0:
        found = _around(text, position, _DOMAIN.match(text, position + 1))
        if found is not None:
            yield found
        position = text.find("@", position + 1)


def _is_login(text: str, name: str, start: int, end: int) -> bool:
    """Whether `name@host` is the end of `${NAME}@host` or of `user:secret@host`, and so no address of a person."""
    before = text[max(0, start - 100) : start]
    if name.startswith("$") or "}" in name or before.endswith(("}", "$", "%")) or _URL_LOGIN.search(before):
        return True
    return _ANY_LOGIN.search(before) is not None and _HOST_GOES_ON.match(text, end) is not None


def _around(text: str, position: int, domain: re.Match[str] | None) -> Found | None:
    if domain is None or _FILE.search(domain.group()):
        return None
    local = _LOCAL_BACKWARDS.match(text[max(0, position - _LOCAL_LENGTH) : position][::-1])
    if local is None or (text.endswith("git", 0, position) and text[domain.end() : domain.end() + 1] == ":"):
        return None
    written = local.group()[::-1]
    name = written.lstrip(".'’-*~#!|$^&{}")
    if not name or _is_login(text, written.lstrip(".'’-*~#!|^&"), position - len(name), domain.end()):
        return None
    return Found(position - len(name), domain.end(), "email")


def emails_by_datafog(text: str) -> Iterator[Found]:
    """Yield what datafog takes for an e-mail address; only short words with an `@` are shown to it."""
    from datafog.engine import scan

    for match in _TOKEN.finditer(text):
        if "@" not in match.group():
            continue
        for entity in scan(match.group(), engine="regex", entity_types=["EMAIL"]).entities:
            if _FILE.search(entity.text) or entity.text.startswith("git@"):
                continue
            start, end = match.start() + entity.start, match.start() + entity.end
            if not _is_login(text, entity.text.partition("@")[0], start, end):
                yield Found(start, end, "email")


def spells_at(text: str) -> bool:
    """Return whether `text` has a sign such as `(at)` or `[arroba]`."""
    return any(map(text.__contains__, "([{<")) and _BRACKETED_AT.search(text) is not None


def spelt_emails(text: str) -> Iterator[Found]:
    """Yield addresses with the signs written as words, in four languages."""
    for at in _SPELT_AT.finditer(text):
        domain = _SPELT_DOMAIN.match(text, at.end())
        local = _LOCAL_BACKWARDS.match(text[max(0, at.start() - _LOCAL_LENGTH) : at.start()][::-1])
        if domain is None or local is None or not _TOP_LEVEL.search(domain.group()):
            continue
        dot = _WORD_DOT.get(at.group().strip().lower())
        if dot is None or dot.search(domain.group()):  # "look at example.com" names a site
            start = at.start() - len(local.group())
            more = _SPELT_LOCAL.search(text, max(0, start - 80), start)
            yield Found(more.start() if more else start, domain.end(), "email")


def may_hold_ip(text: str) -> bool:
    """Return whether `text` has two points or two colons as near as an IP address has them."""
    return (text.count(".") >= 3 and _POINTS.search(text) is not None) or (
        text.count(":") >= 2 and _COLONS.search(text) is not None
    )


def ips(text: str) -> Iterator[Found]:
    """Yield IP addresses of machines; loopback and unspecified ones are nobody's."""
    numbers: list[tuple[re.Match[str], bool]] = []
    for match in _IPV4.finditer(text):
        if _is_address(match.group()):
            numbers.append((match, _is_version(text, match)))
    majors = {match.group().partition(".")[0] for match, is_version in numbers if is_version}
    for match, is_version in numbers:
        # "Version 7.2.1.4, before 7.1.9.9": what begins as a version of the same text is one, unless a word says else.
        alike = match.group().partition(".")[0] in majors
        before = text[max(0, match.start() - 40) : match.start()]
        if not is_version and (not alike or _MACHINE.search(before)):
            yield Found(match.start(), match.end(), "ip")
    for match in _IPV6.finditer(text):
        value = match.group() if match.group().endswith("::") else match.group().rstrip(":")
        if _is_written_out(value) and not text[match.end() : match.end() + 1].isalpha() and _is_address(value):
            yield Found(match.start(), match.start() + len(value), "ip")


def _is_version(text: str, number: re.Match[str]) -> bool:
    """Whether a word before the four numbers, or `-rc1` behind them, makes them a version or a section."""
    if number.group().startswith("192.168."):
        return False
    before = text[max(0, number.start() - 40) : number.start()]
    return _NUMBERED.search(before) is not None or _EDITION.match(text, number.end()) is not None


def _is_written_out(value: str) -> bool:
    """Whether this may be an IPv6 address, and not a slice `a[::2]` or a time."""
    colons = value.count(":")
    if "::" not in value:
        return colons == 7 or (colons == 6 and "." in value)
    return colons >= 3 or (colons == 2 and len(value.split(":", maxsplit=1)[0]) >= 3)


def _is_address(value: str) -> bool:
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_unspecified)
