"""What stands around a street in an address: flats, floors, towns and postcodes."""

from __future__ import annotations

import re
from collections.abc import Iterator

from everswarm.server.feedback.scrubbing.found import Found

UPPER = r"[A-ZÀ-ÖØ-ÞŁŚŠŽČ]"
_GAP = r"(?:,? ?\n ?|, ?| - | )"
TOWN = (
    rf"(?:(?:St|Ste|Saint|San|Bad|La|Le|Les|Los|Las|El)\.? )?{UPPER}[\w'’.\-]{{1,24}}"
    rf"(?:(?:[ ](?:de|del|la|am|an der|bei|im|upon|on|sur|les|ob der))?[ ]{UPPER}[\w'’\-]{{1,24}}){{0,3}}"
)
_UNIT = (
    r"(?:(?i:apt|apartment|suite|ste|unit|flat|floor|room|piso|esc(?:alera)?|puerta|pta|planta|bajo|portal"
    r"|int(?:erior)?|depto|dpto|dto"
    r"|departamento|oficina|of|local|étage|b[âa]t(?:iment)?|appt?|appartement|top|stiege|tür|wohnung|whg|torre"
    r"|edificio|edif)"
    r"(?:\.? ?[0-9ºª°]{1,5}(?: ?[\"'“«][A-Z][\"'”»]| ?[A-Za-z]?\b)"
    r"|\.? (?:[A-Z]\b|[\"'“«][A-Z][\"'”»]))|#[0-9A-Z]{1,5}\b|[0-9]{1,2} ?(?:[ºª°]|er|e|ème|th|nd|st"
    r"|rd)(?:[ ]?(?:étage|piso|floor|planta))?(?:[ ]?(?:[A-Z]\b|izda|dcha|izq|der)\.?)?"
    rf"|[0-9]{{1,2}}\. (?:Stock|OG)|(?:Col\.|Colonia|Fracc\.|Barrio|Urb\.|Urbanización|Del\.|Alcaldía) {TOWN}"
    r"|(?i:bajos?|[áa]tico|entresuelo|entlo|principal|pral|s[óo]tano|rez-de-chauss[ée]e)\b(?: [A-Z]\b)?(?=[.,;!?)\n]|$)"
    rf"|[0-9]{{1,2}}[A-Z]\b|Bajos?\b|Hinterhaus)"
)
_POST = r"(?:(?:C\.? ?P\.? ?)?(?:[A-Z]{1,2}-)?[0-9]{4,5}|\([0-9]{4,5}\)|[A-Z][0-9]{4}(?:[A-Z]{3})?|[0-9]{3} ?[0-9]{2})"
_UK = r"[A-Z]{1,2}[0-9][A-Z0-9]? ?[0-9][A-Z]{2}\b"
_CANADA = r"[A-Z][0-9][A-Z] ?[0-9][A-Z][0-9]\b"
_STATE = (
    r"(?:[A-Z]{2,3}|Alabama|Alaska|Arizona|Arkansas|California|Colorado|Connecticut|Delaware|Florida|Georgia|Hawaii"
    r"|Idaho"
    r"|Illinois|Indiana|Iowa|Kansas|Kentucky|Louisiana|Maine|Maryland|Massachusetts|Michigan|Minnesota|Mississippi"
    r"|Missouri"
    r"|Montana|Nebraska|Nevada|New [A-Z][a-z]+|North [A-Z][a-z]+|Ohio|Oklahoma|Oregon|Pennsylvania|Rhode Island"
    r"|South [A-Z][a-z]+"
    r"|Tennessee|Texas|Utah|Vermont|Virginia|Washington|West Virginia|Wisconsin|Wyoming)"
)
END = r"(?=[.,;:!?)\n]|$)"
_LAST_TOWN = rf"{TOWN}(?: [0-9]{{1,2}})?{END}"  # the number is a district, as in Lima 27

POSTCODE = re.compile(rf"(?:^|[ ,\n(]){_POST}\b|{_UK}|{_CANADA}")
BEFORE_STREET = re.compile(
    r"(?:(?i:flat|apt\.?|apartment|unit|suite|room)[ ]?#?[0-9]{0,4}[A-Za-z]?,?[ ]"
    r"|c/o [A-Z][\w.\-]{1,20}(?: [A-Z][\w.\-]{1,20})?, |(?<!\w)[A-Z]{1,2}-[0-9]{4,5} [A-ZÄÖÜ][\w.\-]{1,24}, )$"
)
AFTER_STREET = re.compile(
    rf"(?:{_GAP}{_UNIT}){{0,4}}"
    rf"(?:(?:{_GAP}{TOWN}(?: \([\w .\-]{{2,24}}\))?){{0,3}}{_GAP}(?:{_UK}|{_CANADA}"
    rf"|{_STATE},?[ ][0-9]{{4,5}}(?:-[0-9]{{4}})?\b)"
    rf"|(?:,[ ]{TOWN}){{0,2}}{_GAP}{_POST}\b(?:,?[ ]{TOWN}(?:[ ](?i:cedex))?(?:(?<=[cC](?:edex|EDEX))[ ][0-9]{{1,2}})?"
    rf"(?:[ ]?\([\w .]{{2,24}}\)|,[ ]{_LAST_TOWN}){{0,2}})?"
    rf"|(?:,[ ]{TOWN})?,[ ]{_STATE}{END}"
    rf"|(?:,[ ]?\n?{_LAST_TOWN}){{1,3}})?"
)

_SMALL_TOWN = re.compile(r"(?<=[0-9]{4}) [a-zß-öø-ÿ]{3,24}")  # who writes the street so, writes the town so
WORD = rf"{UPPER}[\w'’.\-]{{0,24}}"
_UNITS = (
    r"(?! ?(?:km|m|cm|Meter|Kilometer|Minuten|Stunden|Jahre|Tage|Uhr|Prozent|Mal|mal|Leute|Personen|Euro|EUR|Grad"
    r"|Punkte|veces"
    r"|vez|horas|minutos|años|días|euros|metros|personas|kilómetros|pesos|tiendas|farmacias|bares|fois|ans"
    r"|jours)\b)(?! ?[€%$°])"
)
NUMBER_AFTER = (
    rf"[0-9]{{1,5}}(?: ?[a-zA-Z](?![\w'’]))?(?: ?[\-/+] ?[0-9]{{1,4}}[a-z]?){{0,3}}(?![\w]|[.,:][0-9]){_UNITS}"
)

_BOX = re.compile(
    r"\b(?:p\.? ?o\.? ?box|post office box|postfach|b\.p\.|bo[îi]te postale|case postale|apartado(?: de correos"
    r"| postal)?|apdo\.?"
    r"(?: de correos| postal)?|casilla(?: de correos?)?|(?P<short>(?-i:BP|CP|CS(?= ?[0-9]{5})))) ?(?:n[º°o]?\.? ?"
    r"|:? ?)?[0-9]{1,6}(?: [0-9]{2}){0,3}(?![0-9]|[.,/][0-9])",
    re.IGNORECASE,
)
_POST_WORD = re.compile(r"(?:adress|[ée]cri|envo|courrier|post)[^\n]{0,30}$", re.IGNORECASE)


def boxes(text: str) -> Iterator[Found]:
    """Yield PO boxes with their towns."""
    for match in _BOX.finditer(text):
        found = whole(text, match.start(), match.end())
        # BP is blood pressure too, and CP much else: they need their town, or a word before them.
        if (
            match["short"] is None
            or found.end > match.end()
            or _POST_WORD.search(text[max(0, match.start() - 40) : match.start()])
        ):
            yield found


def whole(text: str, start: int, end: int) -> Found:
    """Return the address around `text[start:end]`: flat before it; flat, town and postcode behind it."""
    before = BEFORE_STREET.search(text, max(0, start - 40), start)
    after = AFTER_STREET.match(text, end)
    last = after.end() if after else end
    if last > end and text[last - 1] == ".":
        last -= 1  # the full stop of the sentence
    if text[start:end].islower() and (town := _SMALL_TOWN.match(text, last)) is not None:
        last = town.end()
    return Found(before.start() if before else start, last, "address")
