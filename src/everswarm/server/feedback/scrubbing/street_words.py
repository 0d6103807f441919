"""Words, as `split` gives them, without which the costlier street patterns need not look."""

from __future__ import annotations


def _with_marks(
    words: str, *, before: tuple[str, ...] = ("",), after: tuple[str, ...] = ("",), small: bool = True
) -> frozenset[str]:
    """Return `words` capitalised, in capitals and, where `small`, as they are, with the marks that may touch them."""
    forms = {form for word in words.split() for form in (word.capitalize(), word.upper(), *([word] if small else []))}
    return frozenset(left + form + right for form in forms for left in before for right in after)


_ENDS = ("", ".", ",", ";", "!", "?", ".,", ")")
ENGLISH_WORDS = _with_marks(
    "street st road rd avenue ave boulevard blvd lane ln drive terrace crescent court", after=_ENDS
) | _with_marks(
    "dr ct place pl ter square sq way close cres gardens grove mews parkway pkwy highway hwy circle cir trail "
    "broadway hill row walk pike quay wharf green park view rise alley plaza turnpike",
    after=_ENDS,
    small=False,  # too common as words; behind a number, small letters are no street
)
GERMAN_WORDS = _with_marks(
    "wohne wohnt wohnen wohnte wohnhaft wohnst wohnung adresse anschrift lebe lebt sitz lieferung liefern "
    "lieferadresse zieht ziehe gezogen",
    after=("", ":", ","),
)
FRENCH_WORDS = _with_marks(
    "rue avenue av. boulevard bd bd. bld bld. chemin route quai place chaussée chaussee allée allee impasse square "
    "passage sentier "
    "faubourg ruelle résidence cours villa cité montée esplanade voie clos hameau",
    before=("", "(", "l'", "l’", "d'", "adresse:"),
)
SPANISH_WORDS = _with_marks(
    "calle c/ c. avenida av. avda avda. av paseo p.º plaza plaza pza pza. plza plza. carrera cra cra. kra kra. cl cl. "
    "camino cno cno. "
    "ronda travesía travesia carretera ctra ctra. glorieta rambla vía via bulevar blvd blvd. calzada cerrada "
    "callejón callejon "
    "prolongación prolongacion pasaje carrer jirón jiron jr. privada diagonal transversal",
    before=("", "(", ":", '"'),
)
BOX_WORDS = _with_marks(
    "box pobox postfach bp b.p. postale apartado apdo apdo. casilla cp cs",
    before=("", "(", "p.o.", "po-"),
    after=("", ":"),
)
