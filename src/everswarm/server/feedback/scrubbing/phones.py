"""Telephone numbers: by international prefix, by national shape, or by the word before them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

from everswarm.server.feedback.scrubbing.digits import Digits, part
from everswarm.server.feedback.scrubbing.found import Found

# ITU-T E.164 country codes.
_COUNTRY = re.compile(
    r"1|7|20|2[17]|3[0-469]|35[0-9]|37[0-9]|38[0-9]|4[013-9]|42[0-9]|5[1-8]|5[09][0-9]|6[0-6]|6[789][0-9]|8[1246]"
    r"|8[058][0-9]|9[0-58]|9[679][0-9]|2[2-689][0-9]"
)
_NAMED = re.compile(
    r"(?:\btel|t[eé]l[eé]?\b|phon|\bfon\b|mobil|m[oó]vil|\bcell?(?:ular|ulaire)?\b|handy|natel|\bfax|\bcall\w*"
    r"|\brings?\b"
    r"|\btext(?:ing)? (?:me|us|him|her|them|to|at)?|\bdial|\bsms\b|whats ?app|\bsignal\b|telegram|hotline|rufnummer"
    r"|\bruf\w*|\banruf\w*|erreich\w*"
    r"|durchwahl|zur[üu]ckrufen|ll[aá]m\w*|\bmarca\w*|\bfijo|festnetz|landline|portable|appel\w*|joindre|joignable"
    r"|\bgsm\b|\bfixe\b|standard|num[eé]ro vert|contact\w*|reach (?:me|us|him|her|them)|t[eé]l[eé]fono|\bwa\b|pager"
    r"|\b(?:my|his|her|our|your|their|meine|deine|ihre|seine|unsere|mi|su|tu|mon|son|ton|notre|votre|nuestro)"
    r" (?:new |neue |nouveau |nuevo )?(?:number|nummer|n[uú]mero|num[eé]ro))[^0-9\n]{0,28}$",
    re.IGNORECASE,
)
_OTHER_NUMBER = re.compile(
    r"(?:order|bestell|rechnung|kunden|artikel|serie|invoice|customer|\bref|isbn|issn|\bean\b|\bsku\b|tracking|sendung"
    r"|ticket|commande|facture|pedido|factura|expediente|\bid\b|\bcase\b|police|policy|version|account|konto|vorgang"
    r"|akten|dossier|contrat|vertrag|member|mitglied|steuer|passport|parcel|paket|colis|barcode|timestamp|patent"
    r"|\bdoi\b|pmid|siret|siren|\bnif\b|\bcif\b|\bdni\b|\bssn\b|\bvat\b)[^0-9\n]{0,18}$",
    re.IGNORECASE,
)
_AMOUNT = re.compile(
    r" ?(?:[€$£¥%°=*^]|(?:eur|euros?|usd|dollars?|pounds?|chf|pesos|km|kg|cm|mm|m²|people|habitants?|einwohner|personas"
    r"|habitantes|times|mal|veces|fois|st[üu]ck|units|bytes|tokens|pts|points|punkte)\b)",
    re.IGNORECASE,
)
_DATE = re.compile(
    r"(?:[0-3]?[0-9]([./\-])[01]?[0-9]\1(?:1[5-9]|20)?[0-9]{2}|[01]?[0-9]([/\-])[0-3]?[0-9]\2(?:1[5-9]|20)?[0-9]{2}"
    r"|(?:1[5-9]|20)[0-9]{2}([./\-])[01]?[0-9]\3[0-3]?[0-9])(?:[ \-/]{1,3}[0-9]{1,8}(?:[./\-][0-9]{1,4}){0,2})?"
)
_PARTS = re.compile(r" [\-/] ?|/ ")
_BOOK = re.compile(r"97[89]")
_MOBILE = re.compile(r"01[5-7][0-9]{8,9}|0[67][0-9]{8}|07[0-9]{9}|0800[0-9]{6,8}")
_NANP = re.compile(r"1?[2-9][0-9]{2}[2-9][0-9]{6}")


def phones(text: str, run: Digits) -> Iterator[Found]:
    """Yield the phone numbers within one run of digit groups; two may stand side by side with a slash between."""
    if _is_phone(text, run):
        yield _with_brackets(text, run)
        return
    start = run.start
    cuts = list(_PARTS.finditer(text, run.start, run.end))
    for end, following in [*((cut.start(), cut.end()) for cut in cuts), (run.end, run.end)] if cuts else []:
        piece = part(text, start, end)
        if len(piece.digits) >= 7 and _is_phone(text, piece):
            yield _with_brackets(text, piece)
        start = following


def _with_brackets(text: str, run: Digits) -> Found:
    start = run.start
    for opening in ("(+", "+", "("):
        if text.startswith(opening, start - len(opening)) and ("(" not in opening or ")" in text[run.start : run.end]):
            start -= len(opening)
            break
    return Found(start, run.end, "phone")


def _is_phone(text: str, run: Digits) -> bool:
    if len(run.digits) > 17 or _is_something_else(text, run):
        return False
    before = text[max(0, run.start - 48) : run.start]
    named = _NAMED.search(before) is not None
    if not named and _OTHER_NUMBER.search(before):
        return False
    if before.endswith("+"):
        return _is_international(before[:-1], run.digits)
    if before.endswith(("-", "/", "*", "=", "$", "€", "£", "#")) or (_BOOK.match(run.digits) and len(run.digits) == 13):
        return False
    if run.digits.startswith("00"):
        return _is_international(before, run.digits[2:])
    return _is_number_of_digits(text, run) if named else _has_national_shape(text, run)


def _is_something_else(text: str, run: Digits) -> bool:
    """Whether what the run is, or what follows it, makes it an amount, a date, or a part of a longer number."""
    if _AMOUNT.match(text, run.end) or _DATE.fullmatch(text, run.start, run.end):
        return True
    sign, after = text[run.end : run.end + 1], text[run.end + 1 : run.end + 2]
    return (sign in ("-", "/", "+") and after.isalnum()) or (sign in (":", ".") and after.isdigit())


def _is_number_of_digits(text: str, run: Digits) -> bool:
    """Whether a run behind `Tel.` or its like may be a number to call, in whatever shape."""
    is_round = len(run.groups) == 1 and run.digits.endswith("000")
    return len(run.digits) <= 15 and not is_round and not _is_thousands(text, run)


def _is_international(before: str, digits: str) -> bool:
    adds = before[-1:].isalnum() or (before.rstrip()[-1:] in (")", "]") and before[-1:] != " ")
    return not adds and 8 <= len(digits) <= 15 and _COUNTRY.match(digits) is not None


def _is_thousands(text: str, run: Digits) -> bool:
    """Whether the run reads as one amount, such as 1.234.567."""
    points = text[run.start : run.end].count(".")
    return points > 0 and points == len(run.groups) - 1 and set(run.lengths[1:]) == {3} and run.digits[0] != "0"


def _has_national_shape(text: str, run: Digits) -> bool:
    written, lengths = text[run.start : run.end], run.lengths
    if len(lengths) == 1:
        return _MOBILE.fullmatch(run.digits) is not None
    if lengths in ((3, 3, 4), (1, 3, 3, 4)):
        return _NANP.fullmatch(run.digits) is not None
    if run.digits[0] == "0":
        return _has_trunk_zero(written, run)
    if lengths == (2, 4, 4):  # Mexico, Argentina
        return "." not in written and "/" not in written
    return run.digits[0] in "6789" and lengths in ((3, 2, 2, 2), (2, 3, 2, 2))  # Spain


def _has_trunk_zero(written: str, run: Digits) -> bool:
    """Whether a run with a leading zero has the shape of a number in Germany, France, the United Kingdom or near."""
    lengths = run.lengths
    if not 9 <= len(run.digits) <= 12 or run.digits[1] == "0" or min(lengths[1:]) < 2:
        return False
    if written[1] == ")":
        return min(lengths[1:3]) >= 2
    if lengths[0] == 1:
        return written[1] == " " and lengths[1] == 3 and run.digits[1] in "89"
    if lengths[0] > 5 or ("." in written and set(lengths) != {2}):
        return False
    values = [int(group.group()) for group in run.groups]
    counts_up = len(values) > 3 and len({after - value for value, after in pairwise(values)}) == 1
    return not counts_up
