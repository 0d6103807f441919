"""Secrets of a login without a sign before them: `-u user:secret`, `user:secret@host:22`, `password secret`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from everswarm.server.feedback.scrubbing.found import Found
from everswarm.server.feedback.scrubbing.passwords import looks_chosen

_TOLD = re.compile(
    r"(?:passwor[dt]|passwd|(?<=mot de )passe|pwd|mdp|kennwort|contrase[ñn]a|clave)[\"'`)]{0,2}[ ]"
    r"[\"'`„“«]?(?P<value>[^\s\"'`„“”«»]{6,64})",
    re.IGNORECASE,
)
_SHORT_OPTION = re.compile(r"-p(?<=\s-p)[\"']?(?P<value>[^\s\"']{6,64})")
_USER_OPTION = re.compile(r"-u(?:(?<=\s-u)|ser(?<=\s--user))[ =][\"']?[\w.@\-]{1,64}:(?P<value>[^\s\"']{4,64})")
_AT_HOST = re.compile(
    r"(?<![\w/:])[\w.\-]{1,40}:(?P<value>[^\s/:@]{4,80})@(?=[\w\-]{1,63}(?:\.[\w\-]{1,63}){0,6}[:/]\w)"
)
_CALL = re.compile(r"(?:mysqli\w{0,9}|connect|getConnection|PDO|login|auth\w{0,10})\((?P<arguments>[^()\n]{8,300})\)")
_ARGUMENT = re.compile(r"\"([^\s\"'/:;=,<>{}]{6,64})\"|'([^\s\"'/:;=,<>{}]{6,64})'")
_STOPPED = re.compile(r"[.,;:?)\]}]+$")
_CODE = re.compile(r"[()\[\]{}<>/\\;=%]|[$-][A-Za-z_]+")
_SYMBOL = re.compile(r"[!@#$%^&*?+~]")
_CHANGE = re.compile(r"[A-Za-z][0-9]|[0-9][A-Za-z]")


def told(text: str, cue_spans: list[tuple[int, int]]) -> Iterator[Found]:
    """Yield what stands right behind `password`, `mot de passe` and their like and looks like one."""
    for start, _ in cue_spans:
        match = _TOLD.match(text, start)
        if match is not None:
            yield from _mixed_value(match)


def of_users(text: str) -> Iterator[Found]:
    """Yield the secrets of `-u user:SECRET` and `user:SECRET@host`."""
    if "-u" in text:
        yield from _chosen_values(_USER_OPTION, text)
    if "@" in text:
        yield from _chosen_values(_AT_HOST, text)


def in_commands(text: str) -> Iterator[Found]:
    """Yield the secrets of `-pSECRET` and `connect("host", "user", "SECRET")`, which have a digit."""
    if "-p" in text:
        for match in _SHORT_OPTION.finditer(text):
            yield from _mixed_value(match)
    if "(" in text and ("('" in text or '("' in text):
        for call in _CALL.finditer(text):
            for argument in _ARGUMENT.finditer(text, call.start("arguments"), call.end("arguments")):
                value = argument[argument.lastindex or 0]
                if _SYMBOL.search(value.strip("!?*")) and "@" not in value and is_mixed(value):
                    yield Found(argument.start() + 1, argument.end() - 1, "key")


def _mixed_value(match: re.Match[str]) -> Iterator[Found]:
    value = _STOPPED.sub("", match["value"])
    if is_mixed(value):
        yield Found(match.start("value"), match.start("value") + len(value), "key")


def _chosen_values(pattern: re.Pattern[str], text: str) -> Iterator[Found]:
    for match in pattern.finditer(text):
        value = match["value"]
        if looks_chosen(value, sure=True) and not value.isdigit():
            yield Found(match.start("value"), match.end("value"), "key")


def is_mixed(value: str) -> bool:
    """Return whether letters, digits and more are mixed as in a password, and not as in Base64 or `field_2`."""
    if len(value) < 6 or _CODE.search(value):
        return False
    tests = (str.islower, str.isupper, str.isdigit)
    lower, upper, digit = (any(map(test, value)) for test in tests)
    symbol = _SYMBOL.search(value) is not None
    if not digit or not lower or not (upper or symbol):
        return False
    return symbol or len(_CHANGE.findall(value)) >= 3
