"""Streets of French and Spanish texts: the kind of street stands before its name."""

from __future__ import annotations

import re
from collections.abc import Iterator

from everswarm.server.feedback.scrubbing.found import Found
from everswarm.server.feedback.scrubbing.places import END, NUMBER_AFTER, POSTCODE, UPPER, whole

_FRENCH_SMALL = r"(?:de|du|des|la|le|les|aux?|et|sur|sous|en)"
_FRENCH_NAME = (
    rf"(?: {_FRENCH_SMALL}){{0,3}}(?: [ld]['’]| )(?:{UPPER}[\w'’.\-]{{0,24}}|[0-9]{{1,2}} [a-zéû]{{3,9}}\b)"
    rf"(?:(?: {_FRENCH_SMALL}){{0,3}}(?: [ld]['’]| ){UPPER}[\w'’.\-]{{0,24}}(?: [0-9]{{4}}(?=,))?){{0,4}}"
)
_FRENCH = re.compile(
    r"[0-9](?<![\w.,$€£/+*=:\-][0-9])[0-9]{0,3}(?:[\-/][0-9]{1,4})?(?: ?(?i:bis|ter|quater|[A-D])\b)?,? "
    r"(?:(?P<sure>(?i:rue|avenue|av\.|boulevard|bd\.?|bld\.?|impasse|all[ée]e|ruelle|faubourg|chauss[ée]e))"
    r"|(?i:chemin|quai|route|square|passage|sentier|r[ée]sidence|mont[ée]e|esplanade|place|cours|villa|cit[ée]|voie"
    r"|clos|hameau))"
    rf"(?:(?P<name>{_FRENCH_NAME})|(?<=ue|se)(?P<article>(?: {_FRENCH_SMALL}){{0,2}})"
    rf" (?!est\b|qui\b|et\b|à\b|pour\b|plus\b"
    rf"|moins\b|sont\b)[a-zéèêç'’\-]{{3,20}}"
    r"(?: [a-zéèêç'’\-]{4,20}(?=[.,;!?\n]|$| [0-9]{5}))?)"
)
_FRENCH_AFTER = re.compile(
    r"[RrAaBbCcQqPpIiSs](?<!\w.)(?:(?<=[Rr])ue|(?<=[Aa])venue|(?<=[Aa])v\.|(?<=[Bb])oulevard|(?<=[Bb])d\.?"
    r"|(?<=[Cc])hemin"
    r"|(?<=[Rr])oute|(?<=[Qq])uai|(?<=[Pp])lace|(?<=[Cc])hauss[ée]e|(?<=[Aa])ll[ée]e|(?<=[Ii])mpasse|(?<=[Ss])quare)"
    rf"{_FRENCH_NAME},? (?:n° ?)?{NUMBER_AFTER}"
)
# Of the types that are also things one counts, a name right behind it, or behind `de la`, `du`.
_FRENCH_NAMED = re.compile(
    rf"(?i:place|chemin|quai|square|passage|route|sentier|villa) (?:(?:de la|de l['’]|du|des) ?)?{UPPER}"
)
_SPANISH_START = re.compile(
    r"calle|avenida|avda|av\.|av |paseo|p\.º|plaza|pza|plza|carrera|carretera|carrer|cra|kra|cl\.|cl |camino|cno"
    r"|ronda|traves|ctra|glorieta"
    r"|rambla|gran v|v[íi]a |bulevar|blvd|calzada|1ª p|2ª p|privada|cerrada|prolonga|pasaje|jir|jr\.|diagonal"
    r"|transversal|c/|c\. "
)
_SPANISH = re.compile(
    r"(?:(?:calle|avenida|avda\.?|av\.?|paseo|p\.º|plaza|pza\.?|plza\.?|carrera|cra\.?|kra\.?|cl\.?|camino|cno\.?"
    r"|ronda|traves[íi]a"
    r"|carretera|ctra\.?|glorieta|rambla|gran v[íi]a|v[íi]a|bulevar|blvd\.?|calzada|(?:1ª |2ª )?privada|cerrada"
    r"|callej[óo]n"
    r"|prolongaci[óo]n|pasaje|carrer|jir[óo]n|jr\.|diagonal|transversal)|c/|c\. ) ?"
    r"(?:[0-9]{1,3}[A-Za-z]?(?: (?:sur|norte|bis))? ?(?:#|no?\.?º?°?|n[úu]m(?:ero"
    r"|\.)?) ?[0-9]{1,3} ?[A-Za-z]? ?-? ?[0-9]{1,3}\b"
    r"|(?:(?:de|del|la|las|los|el|y|d['’]|l['’]|san|santa)[ '’]?){0,3}(?:(?-i:"
    rf"{UPPER})[\w'’.\-]{{0,24}}|[0-9]{{1,2}} de (?-i:{UPPER})?[\w]{{3,12}})"
    rf"(?: (?:(?:de|del|la|las|los|el|y|i) ){{0,3}}(?-i:{UPPER})[\w'’.\-]{{0,24}}){{0,4}}"
    rf"(?:,? ?(?:n\.?[º°o]\.?|n[úu]m(?:ero|\.)?|#|no\.) ?|,? ){NUMBER_AFTER})",
    re.IGNORECASE,
)


_SPANISH_SMALL = re.compile(
    r"(?:(?:(?P<short>c/)|calle|avda\.?|avenida|av\.|plaza|paseo) ?)(?:(?:de|del|la|las|los|el) ){0,3}[a-zß-öø-ÿ]{3,20}"
    r"(?: (?:(?:de|del|la|las|los|el|y) ){0,2}[a-zß-öø-ÿ]{3,20}){0,3}(?P<link>,? ?(?:n[º°]|n[úu]m\.?|#) ?|, ?| )"
    rf"{NUMBER_AFTER}"
)
_ENDS = re.compile(END)
_SPANISH_LIVES = re.compile(r"(?:\bviv\w*|domicilio|direcci[óo]n|entreg\w*|env[íi]\w*)[^.\n]{0,20}$", re.IGNORECASE)
_NAME_BEFORE = re.compile(rf"{UPPER}[\w'’\-]{{1,24}} $")


def french_streets(text: str) -> Iterator[Found]:
    """Yield `12 bis, rue des Lilas, 69003 Lyon` and the Swiss and Belgian order `Rue du Rhône 12, 1204 Genève`."""
    for match in _FRENCH.finditer(text):
        found = whole(text, match.start(), match.end())
        # "In 1998, rue and place": small letters right behind a comma and a street word are seldom a name.
        if found.end == match.end() and match["article"] in ("", " et") and "," in match.group():
            continue
        if match["sure"] or POSTCODE.search(text, match.end(), found.end) or _FRENCH_NAMED.search(match.group()):
            yield found
    for match in _FRENCH_AFTER.finditer(text):
        yield whole(text, match.start(), match.end())


def spanish_streets(text: str, lower: str) -> Iterator[Found]:
    """Yield `Calle de Alcalá 123, 3º B, 28009 Madrid`, `Carrera 7 # 71-21` and their like.

    Args:
        text: what is looked through.
        lower: the same in small letters and as long, in which the kinds of street are looked for.
    """
    for start in _SPANISH_START.finditer(lower):
        if text[start.start() - 1 : start.start()].isalnum():
            continue
        match = _SPANISH.match(text, start.start())
        if match is not None:
            found = whole(text, match.start(), match.end())
            junior = start.group() == "jr." and _NAME_BEFORE.search(text[max(0, start.start() - 26) : start.start()])
            if found.end > match.end() or not junior:
                yield found
        else:
            yield from _small_spanish_street(text, start.start())


def _small_spanish_street(text: str, start: int) -> Iterator[Found]:
    """Yield a street in small letters that a postcode, a comma after `c/`, or a word before it makes one."""
    match = _SPANISH_SMALL.match(text, start)
    if match is None:
        return
    found = whole(text, start, match.end())
    named = (match["short"] and match["link"] != " ") or _SPANISH_LIVES.search(text[max(0, start - 40) : start])
    if POSTCODE.search(text, match.end(), found.end) or (named and _ENDS.match(text, match.end())):
        yield found
