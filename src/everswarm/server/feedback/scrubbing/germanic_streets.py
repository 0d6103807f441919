"""Streets of English and German texts: the kind of street stands before the number, or the number first."""

from __future__ import annotations

import re
from collections.abc import Iterator

from everswarm.server.feedback.scrubbing.found import Found
from everswarm.server.feedback.scrubbing.places import END, NUMBER_AFTER, POSTCODE, TOWN, UPPER, WORD, whole

_ENGLISH = re.compile(
    rf"[0-9](?<![\w.,$€£/+*=:\-][0-9])[0-9]{{0,4}}[A-Za-z]?(?:[\-–][0-9]{{1,4}})?,? (?:Broadway\b|"
    rf"(?:(?:{WORD}|[0-9]{{1,3}}(?:st|nd|rd|th)|of|the|and|de|la) ){{1,4}}?"
    r"(?:(?P<sure>Street|St|Road|Rd|Avenue|Ave|Boulevard|Blvd|Lane|Ln|Drive|Dr|Terrace|Ter|Crescent|Cres|Mews|Parkway"
    r"|Pkwy"
    r"|Circle|Cir|Highway|Hwy|Grove|Close|Turnpike|Pike)"
    r"|Court|Ct|Place|Pl|Square|Sq|Way|Gardens|Trail|Row|Hill|Walk|Quay|Wharf|Green|Park|View|Rise|Alley|Plaza)\b\.?"
    r"(?: (?:[NSEW]|NE|NW|SE|SW|North|South|East|West)\b)?)(?! Journal)"
)
_THINGS = re.compile(r" (?!is\b|was\b|has\b|this\b|across\b|always\b)[a-z]{2,}s\b")
_ENGLISH_CASUAL = re.compile(
    r"[0-9](?<=[ :][0-9])[0-9]{0,4}[a-z]? (?!(?:\w+ )?(?:small|busy|main|different|more|of)\b)(?:[\w'’]{1,20} ){1,3}?"
    r"(?:street|st|road|rd|avenue|ave|boulevard|blvd|lane|ln|drive|terrace|crescent|court)\b\.?",
    re.IGNORECASE,
)
_LIVES_AT = re.compile(
    r"(?:\b(?:live[sd]?|living|stay(?:ing)?|ship|deliver|send|moved?|located|home|house|address"
    r"|addr)\b[^.\n0-9]{0,20}|\bat |^)[: ]?$",
    re.IGNORECASE,
)
_YEAR = re.compile(r"\b(?:in|since|by|until|from|of|during|before|after|around|early|late|and|to)\s$", re.IGNORECASE)

_NO_STREET = (
    r"(?!(?:Die|Der|Das|Den|Dem|Eine?r?|Auf|Jede[rs]?|Diese[rs]?|Welche[rs]?|Bundes|Staats|Kreis|Landes|Milch|Sesam"
    r"|Einbahn"
    r"|Schnell|Seiden|Haupts?verkehrs|Park|Sitz|Arbeits|Stell|Start|Tabellen|Medaillen|Ausbildungs|Studien|Camping"
    r"|Lager"
    r"|Steh|Spiel|Fußball|Tennis|Golf|Flug|Bau|Rast|Listen|Podest|Heim|Rück|Hin|Um|Aus|Flucht|Rad|Wander|Schul|Arbeits"
    r"|Lebens|Her|Sp|Dicht|Ehe|Str|Bahnsteig|An|Auf|Ein|Ab)(?:straße|strasse|str|platz|weg|steig|ring|stieg|hof"
    r"|ufer)?\b)"
    r"(?!(?:Bundes|Staats|Kreis|Landes|Sesam|Milch|Park|Sitz|Arbeits|Stell|Start|Tabellen|Steh|Spiel|Fu(?:ß|ss)ball"
    r"|Flug|Rück|Heim|Hin|Um|Wander|Rad|Schul)(?:str|platz|weg))"
)
_SUFFIXES = (
    *("straße", "strasse", "str.", "str", "allee", "gasse", "chaussee", "promenade", "weg", "platz", "ring", "ufer"),
    *("damm", "markt", "steig", "graben", "wall", "hof", "kai", "berg", "gürtel", "zeile", "pfad"),
)
STREET_ENDS = tuple(form for suffix in _SUFFIXES for form in (suffix, suffix.capitalize(), suffix.upper()))
_GERMAN = re.compile(
    rf"\b{_NO_STREET}{UPPER}(?:[\w.'\-]{{0,30}}?(?P<sure>(?i:straße|strasse|str\.|str|allee|gasse|chaussee|promenade))"
    r"|[\w.'\-]{2,30}?(?i:weg|platz|ring|ufer|damm|markt|steig|graben|wall|hof|kai|berg|gürtel|zeile|pfad)"
    rf"|[\w.'\-]{{1,24}}(?: {WORD}){{0,2}} (?P<apart>Straße|Strasse|Str\.|Allee|Gasse|Weg|Platz|Ring|Ufer|Damm|Markt"
    rf"|Chaussee))"
    rf" ?{NUMBER_AFTER}"
)
_GERMAN_AT = re.compile(
    rf"[AIUZHVB](?<!\w.)(?:(?<=A)m|(?<=A)n der|(?<=A)n den|(?<=I)m|(?<=I)n de[rn]|(?<=A)uf de[mr]|(?<=Z)u[mr]"
    rf"|(?<=U)nter den"
    r"|(?<=H)inter de[rm]|(?<=V)or dem|(?<=B)eim)"
    rf"(?: {WORD}){{1,3}}? {NUMBER_AFTER}"
)
_GERMAN_OF = re.compile(
    r"(?:Straße|Strasse|Str\.|Platz|Allee|Ring|Weg|Ufer) (?:des|der|am|zum|zur|an der|im|unter den) (?:[0-9]{1,2}\. )?"
    rf"{WORD}(?: {WORD})?,? {NUMBER_AFTER}"
)
_GERMAN_SMALL = re.compile(
    r"\b(?!(?:bundes|landes|staats|kreis|einbahn|schnell|milch|sack|neben|seiten|spiel)(?:str|gasse))"
    r"(?:[a-zß-öø-ÿ\-]{3,24}(?:straße|strasse|str\.|gasse|allee)"
    r"|(?!(?:d|jed|dies|jen|ein|kein|welch|uns|ihr|mein|dein|sein|eur|and)(?:er)?er\b)(?P<apart>[a-zß-öø-ÿ\-]{3,24}er) "
    rf"(?:straße|strasse|str\.|gasse|allee|platz)) ?{NUMBER_AFTER}"
)
_TOWN_FIRST = re.compile(
    rf"[0-9](?<![\w.,][0-9])(?P<postcode>[0-9]{{3,4}}) {TOWN}, {WORD}(?: {WORD}){{0,2}} {NUMBER_AFTER}{END}"
)
_COUNTRY = re.compile(r"(?<!\w)(?:(?:D|DE|F|E|FR|ES)-(?=[0-9]{5})|(?:A|AT|CH|B|BE|L|LU)-(?=[0-9]{4} ))")
_LIVES = re.compile(
    r"(?:wohn\w*|adresse|anschrift|lebe\w*|sitz|ziehe\w*|zieht|gezogen|lieferung|liefer\w*|vive\w*|vivo"
    r"|domicilio)[^.\n]{0,20}$",
    re.IGNORECASE,
)


def english_streets(text: str) -> Iterator[Found]:
    """Yield `742 Evergreen Terrace, Springfield, IL 62704` and its like."""
    for match in _ENGLISH.finditer(text):
        found = whole(text, match.start(), match.end())
        written = text[match.start() : match.start() + 4]
        is_year = (
            written.isdigit()
            and 1500 <= int(written) <= 2100
            and not text[match.start() + 4 : match.start() + 5].isdigit()
        )
        if is_year and _YEAR.search(text, max(0, match.start() - 12), match.start()) and found.end == match.end():
            continue
        counts = _THINGS.match(text, match.end()) and not _LIVES_AT.search(
            text[max(0, match.start() - 32) : match.start()]
        )
        if not counts and (match["sure"] or match.group().endswith("Broadway") or found.end > match.end()):
            yield found
    for match in _ENGLISH_CASUAL.finditer(text):
        if _LIVES_AT.search(text[max(0, match.start() - 32) : match.start()]):
            yield whole(text, match.start(), match.end())


def german_streets(text: str, numbers: list[int]) -> Iterator[Found]:
    """Yield `Gartenstraße 12a, 70563 Stuttgart` and its like, also of Austria and Switzerland.

    Args:
        text: what is looked through.
        numbers: where the numbers begin behind which a street may stand, in characters.
    """
    for start in numbers:
        if text.startswith("str.", start - 4) or text.endswith(STREET_ENDS, 0, max(0, start - 1)):
            yield from _german_street(text, start)


def german_places(text: str) -> Iterator[Found]:
    """Yield `Am Alten Markt 5, 50667 Köln` and its like: no street word, so the postcode or `wohnt` must say it."""
    for match in _TOWN_FIRST.finditer(text):
        country = _COUNTRY.search(text, max(0, match.start() - 3), match.start() + 6)
        if country is not None and country.end() == match.start():
            yield Found(country.start(), whole(text, match.start(), match.end()).end, "address")
        elif _LIVES.search(text[max(0, match.start() - 40) : match.start()]):
            yield whole(text, match.start(), match.end())
    for match in (*_GERMAN_AT.finditer(text), *_GERMAN_OF.finditer(text)):
        found = whole(text, match.start(), match.end())
        has_postcode = POSTCODE.search(text, match.end(), found.end) is not None
        if has_postcode or _LIVES.search(text[max(0, match.start() - 40) : match.start()]):
            yield found


def _german_street(text: str, number: int) -> Iterator[Found]:
    for match in _GERMAN.finditer(text, max(0, number - 70), number + 24):
        found = whole(text, match.start(), match.end())
        if match["sure"] or match["apart"] or found.end > match.end() or _ends(text, match.end()):
            yield found
    for match in _GERMAN_SMALL.finditer(text, max(0, number - 50), number + 24):
        found = whole(text, match.start(), match.end())
        has_postcode = POSTCODE.search(text, match.end(), found.end) is not None
        lives = _LIVES.search(text[max(0, match.start() - 40) : match.start()])
        if has_postcode or ((lives or not match["apart"]) and _ends(text, match.end())):
            yield found


def _ends(text: str, position: int) -> bool:
    """Whether a sentence or a part of it ends here, as it does after an address and seldom after a count."""
    rest = text[position : position + 5]
    return not rest.strip() or rest[0] in ",.;:!?)\n/" or rest.startswith((" in ", " und ", " an ", " bei", " ist "))
