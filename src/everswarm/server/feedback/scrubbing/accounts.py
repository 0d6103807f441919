"""Payment cards and IBANs: numbers with a check, so that a sum is not taken for one."""

from __future__ import annotations

import re
from collections.abc import Iterator

from everswarm.server.feedback.scrubbing.digits import Digits
from everswarm.server.feedback.scrubbing.found import Found

# ISO 13616 registry: characters of an IBAN by country.
_IBANS = """
AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28
EE20 EG29 ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23 IQ23 IS26
IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28
NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24 RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25
SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30
"""
_IBAN_LENGTHS = {entry[:2]: int(entry[2:]) for entry in _IBANS.split()}
_IBAN = re.compile(r"[0-9](?<=\b[A-Za-z]{2}[0-9])[0-9](?:[ \-.]{0,2}[A-Za-z0-9]){11,30}")
_IBAN_WORD = re.compile(r"\bi\.?b\.?a\.?n\b[^0-9]{0,25}$", re.IGNORECASE)
_CARD_WORD = re.compile(
    r"(?:\bcard|\bcb\b|karte|\bcarte|\btarjeta|\bvisa\b|master ?card|maestro|\bamex|american express)[^0-9]{0,30}$",
    re.IGNORECASE,
)
# First digits and lengths of the card networks.
_CARD = re.compile(
    r"(?:4[0-9]{15}|5[1-5][0-9]{14}|2(?:22[1-9]|2[3-9][0-9]|[3-6][0-9]{2}|7[01][0-9]|720)[0-9]{12}|3[47][0-9]{13}"
    r"|3(?:0[0-5]|[689][0-9])[0-9]{11}|6(?:011|5[0-9]{2}|4[4-9][0-9])[0-9]{12}|35[0-9]{14}|62[0-9]{14,17}"
    r"|(?:5[0678]|6[0137])[0-9]{10,17}|4[0-9]{18})"
)


def passes_luhn(digits: str) -> bool:
    """Return whether the last digit is the check digit of ISO/IEC 7812-1."""
    total = sum(map(int, digits[-1::-2])) + sum(sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return total % 10 == 0


def passes_mod97(iban: str) -> bool:
    """Return whether the check digits of an IBAN without spaces are right (ISO 7064)."""
    return int("".join(str(int(character, 36)) for character in iban[4:] + iban[:4])) % 97 == 1


def cards(text: str, run: Digits) -> Iterator[Found]:
    """Yield the cards within one run of digit groups."""
    if len(run.digits) < 12:
        return
    for first in range(len(run.groups)):
        if text[run.groups[first].start() - 1 : run.groups[first].start()] in (".", ","):
            continue  # digits behind a decimal point
        digits = ""
        for last in range(first, len(run.groups)):
            digits += run.groups[last].group()
            if len(digits) > 19:
                break
            if len(digits) >= 12 and _is_card(text, digits, first=run.groups[first], groups=last - first + 1):
                yield Found(run.groups[first].start(), run.groups[last].end(), "card")
                return


def _is_card(text: str, digits: str, *, first: re.Match[str], groups: int) -> bool:
    if (groups > 1 and len(first.group()) != 4) or not _CARD.fullmatch(digits) or len(set(digits)) == 1:
        return False
    named = _CARD_WORD.search(text, max(0, first.start() - 50), first.start()) is not None
    # A number of digits that a sum or an id may have too needs the word; a mistyped card with the word is still one.
    if (digits[0] in "56" and len(digits) != 16) or groups > 4:
        return named and passes_luhn(digits)
    return passes_luhn(digits) or named


def ibans(text: str) -> Iterator[Found]:
    """Yield the IBANs of `text`: the length of the country and the check digits decide."""
    for match in _IBAN.finditer(text):
        start = match.start() - 2
        length = _IBAN_LENGTHS.get(text[start : start + 2].upper())
        if length is None:
            continue
        iban, end = "", start
        while end < match.end() and len(iban) < length:
            iban += text[end] if text[end].isalnum() else ""
            end += 1
        if len(iban) < length or text[end : end + 1].isdigit():
            continue
        if passes_mod97(iban) or _IBAN_WORD.search(text, max(0, start - 40), start):
            yield Found(start, end, "iban")
