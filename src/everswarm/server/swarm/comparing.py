"""Which answers can be compared, and are two of them the same? Pure: decided over the text, without a token.

A vote makes sense only where it says yes: a number, a letter of a choice, yes or no, JSON, a few words.
Questions in other languages than English are compared where their answer is a number, a letter or JSON.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

import orjson

from everswarm.server.swarm.kinds import Kind

FIRST_CHARACTERS, LAST_CHARACTERS = 1000, 4000  # of a text, that are read
SHORT_WORDS = 5  # most words of an answer that is compared word by word
MARKED_WORDS = 12  # most words after "Answer:" that are still an answer, not a story
NUMBER_DIGITS = 40  # a longer number is a model that runs away
CANONICAL_CHARACTERS = 2 * NUMBER_DIGITS + 40  # of a number
TOLERANCE = Fraction(1, 10**6)  # relative, of numbers that are not both whole
REFUSAL_WORDS = 60  # a longer answer that begins with doubt still answers
_NUMERIC_KINDS = ("mathematics", "arithmetic")

_NUMBER = re.compile(
    r"(?<![\w.])(?:[$€£¥]\s?)?(?P<sign>[-−])?(?:[$€£¥]\s?)?"
    r"(?:(?P<clock>\d{1,3}:\d{1,2})(?![\d:])(?:\s?(?P<half>[ap])\.?m\b)?"
    r"|(?P<whole>\d{1,9}\s)?(?P<over>\d{1,40})\s?/\s?(?P<under>\d{1,40})(?![\d/]|[.,]\d)"
    r"|(?P<plain>\d{1,3}(?:,\d{3}){1,12}(?:\.\d+)?(?![\d,]*\d)|\d+,\d{1,2}(?![\d,]*\d)|\d+(?:\.\d+)?|\.\d+)"
    r"(?P<power>e[+-]?\d{1,2}\b)?)"
    r"(?:\s?(?P<percent>\\?%|per\s?cent\b)|\s(?P<scale>thousand|million|billion|trillion)\b)?",
    re.IGNORECASE,
)
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_LABEL = r"^[^\w\n]{0,6}(?:(?:the |my )?final )?(?:answer|ans|a|antwort|réponse|respuesta)[*_ ]{0,4}:[*_ \t]{0,4}"
_MARK = re.compile(
    rf"(?P<label>{_LABEL})|(?P<said>####|\\boxed\{{|\banswer (?:is|was|would be|=)(?=[\s:*(\\$]))"
    r"[\s:*]{0,6}",
    re.IGNORECASE | re.MULTILINE,
)
_SENTENCE_END = re.compile(r"(?<=[.!?])[*_)]{0,3}\s+|\n+")
_BOLD = re.compile(r"\*\*([^*\n]{1,60})\*\*")
_FRACTION = re.compile(r"\\[dt]?frac\{(\d{1,40})\}\{(\d{1,40})\}")
_FENCED_JSON = re.compile(r"\A\s{0,9}```(?:json)?[ \t]*\n(.*)\n```\s*\Z", re.DOTALL | re.IGNORECASE)
_YES_NO = re.compile(
    r"\A\W{0,6}(yes|no)(?:\W{0,4}\Z|[*_]{0,3}[,.!;:\n]|[*_]{0,3}\s+[—–-]|\s+(?:it|he|she|they|you|we|i|that|this|there)\b)",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"\A\W{0,6}(?:(?:i['’]?m |i am )?(?:very )?(?:sorry|afraid)\b[,.]?(?: but| that)? ?"
    r"|i apologi[sz]e,? ?(?:but )?|unfortunately,? )?"
    r"(?:i (?:(?:do not|don['’]?t)(?: really)? (?:know|have (?:enough|access|any (?:info|data|way)))"
    r"|(?:cannot|can['’]?t|can not) (?:answer|help|assist|provide|tell|say|give|access|determine|find|do|see|verify))"
    r"|i(?:['’]?m| am) (?:not able|unable|not sure|not certain|just an ai|only an ai)"
    r"|(?:i am |i['’]m )?as an ai\b|no idea\b"
    r"|it(?: is|['’]s) (?:impossible|not possible) to (?:say|tell|know|answer|determine)"
    r"|ich (?:weiß|weiss) (?:es |das |leider )*nicht\b|ich kann (?:leider |das |diese |dir |ihnen |frage )*nicht\b"
    r"|als ki\b|je ne (?:sais|peux|suis) pas|désolée?\b|lo siento\b|no (?:lo )?sé\b|no puedo\b|como (?:una )?ia\b)",
    re.IGNORECASE,
)
_OPTION_LINE = re.compile(r"^[ \t*]{0,8}\(?(?P<letter>[A-Ha-h])[).:][*]{0,2}[ \t]+(?=\S)", re.MULTILINE)
_OPTION_INLINE = re.compile(r"(?:^|(?<=\s))\(?(?P<letter>[A-Ha-h])\)[ \t]{0,4}(?=\S)", re.MULTILINE)
_CHOOSE = re.compile(r"\b(?:which|choose|select|pick|correct|true|false|option)\b", re.IGNORECASE)
_ONE_WORD = re.compile(
    r"\b(?:(?:answer|reply|respond)(?: \w+){0,2} (?:with|in|by) (?:just |only |exactly )?"
    r"(?:a |one |the |1 )?(?:single )?(?:word|number|letter|name|digit|date|year|yes)\b"
    r"|(?:one|a single)[- ](?:word|number) (?:answer|only)"
    r"|(?:just|only) (?:the|one|a) (?:number|word|name|letter|result|year)\b|\byes or no\b|true or false\b)",
    re.IGNORECASE,
)
_WANTS_JSON = re.compile(
    r"\b(?:(?:in|as|into|to|return|output|valid|only|pure|raw)(?: \w{1,12}){0,2} json\b"
    r"|json (?:only|object|array|format)\b)",
    re.IGNORECASE,
)
_YES_NO_QUESTION = re.compile(
    r"\A(?:is|are|was|were|do|does|did|has|have|had|can|could|should|would|will|must|may)\b(?! (?:you|we|i)\b)"
    r"[^?\n]{3,240}\?\s{0,9}\Z",
    re.IGNORECASE,
)
_OPEN_QUESTION = re.compile(r"\b(?:or|why|how|explain|what|which|describe|better|best)\b", re.IGNORECASE)
_ARTICLES = frozenset(["a", "an", "the"])
_PUNCTUATION = str.maketrans("", "", string.punctuation + "“”‘’„«»…¿¡—–")
_CANONICAL = re.compile(r"-?\d+(?:/\d+)?%?", re.ASCII)


def comparable(answer: str, *, kind: Kind, choices: Sequence[str] = ()) -> str | None:
    """Return the final answer in a form that is the same for the same answer, or None where there is none.

    A number is an exact fraction ("26", "3/4", "50%"), a choice its letter, JSON a dump with sorted keys, a few words
    are in lower case without punctuation and articles.

    Args:
        answer: what a model said.
        kind: of the question; where it is mathematics, the last number of the last sentence is the answer.
        choices: the letters that the question offers, see `read_choices`.
    """
    text = _cut(answer.rpartition("</think>")[2]).strip()
    if not text or refuses(text):
        return None
    found = _letter(text, choices) or _json(text)
    if found:
        return found
    is_numeric = kind in _NUMERIC_KINDS
    text = _FRACTION.sub(r"\1/\2", text).replace("{,}", ",").replace("\\,", "").replace("\\$", "$")
    marked = _marked(text, is_numeric=is_numeric)
    if marked is not None:
        return marked
    said = _YES_NO.match(text)
    if said:
        return said[1].lower()
    if is_numeric and _NUMBER.search(text):
        return _last_number(text)
    return _short(text)


def read_choices(question: str) -> tuple[str, ...]:
    """Return the letters that a multiple-choice question offers, ("A", "B", ...), or () for any other question."""
    text = _cut(question)
    for options in (_OPTION_LINE, _OPTION_INLINE):
        found = list(options.finditer(text))
        letters = [option["letter"] for option in found]
        count = next((i for i, letter in enumerate(letters) if letter.upper() != chr(ord("A") + i)), len(letters))
        if count < 2 or (letters[0].islower() and not _CHOOSE.search(text)):
            continue
        if "?" in text[found[0].end() : found[count - 1].start()]:
            return ()  # parts of a question, not answers to choose from
        return tuple(letter.upper() for letter in letters[:count])
    return ()


def is_comparable(question: str, kind: Kind) -> bool:
    """Say whether a vote makes sense for `question`, before there is an answer."""
    if kind in _NUMERIC_KINDS:
        return True
    if kind in ("planning", "parts", "time", "conversation"):
        return False
    text = _cut(question)
    if read_choices(text) or _ONE_WORD.search(text):
        return True
    return kind != "code" and (wants_json(text) or _is_yes_no(text))


def wants_json(question: str) -> bool:
    """Say whether `question` wants its answer as JSON."""
    return _WANTS_JSON.search(_cut(question)) is not None


def agree(a: str, b: str) -> bool:
    """Say whether two results of `comparable` are the same answer.

    Whole numbers are the same when equal; others also within 1e-6 of each other, or when one is the other rounded to
    its digits (3.33 and 10/3; at least one decimal and two digits, for 3 is not 3.4).
    """
    if a == b:
        return True
    x, y = _value(a), _value(b)
    if x is None or y is None or a.endswith("%") != b.endswith("%") or (x.denominator == 1 and y.denominator == 1):
        return False
    return abs(x - y) <= TOLERANCE * max(abs(x), abs(y)) or _is_rounded(x, y) or _is_rounded(y, x)


def refuses(answer: str) -> bool:
    """Say whether a short `answer` begins by saying that there is none: "I don't know", "I'm not able to ..."."""
    return _REFUSAL.match(answer) is not None and len(answer[:FIRST_CHARACTERS].split()) <= REFUSAL_WORDS


class _Number(NamedTuple):
    text: str | None  # canonical; None: one that cannot be compared
    start: int


def _cut(text: str) -> str:
    if len(text) <= FIRST_CHARACTERS + LAST_CHARACTERS:
        return text
    return f"{text[:FIRST_CHARACTERS]}\n{text[-LAST_CHARACTERS:]}"


def _letter(text: str, choices: Sequence[str]) -> str | None:
    offered = "".join(choice for choice in choices if len(choice) == 1 and choice.isalpha())
    if not offered:
        return None
    letter = rf"[\s:*(\\$]{{0,6}}([{offered}])(?![\w'’])"
    said = re.findall(rf"(?i:answer(?: is|:)|\ba:|option is|choose|boxed\{{|####)(?:\*\*)?{letter}", text)
    if said:
        return str(said[-1])
    alone = re.fullmatch(rf"\W{{0,6}}([{offered}{offered.lower()}])\W{{0,6}}", text)
    begins = re.findall(rf"^[ \t*]{{0,4}}\(?([{offered}])(?:[).:]|\*\*)", text, re.MULTILINE)
    bold = re.findall(rf"\*\*\(?([{offered}])[).:]?(?:\*\*|\s)", text)
    for found in ([alone[1].upper()] if alone else [], begins, bold):
        if len(set(found)) == 1:  # several are the choices, said again
            return str(found[0])
    return None


def _json(text: str) -> str | None:
    fenced = _FENCED_JSON.match(text)
    text = (fenced[1] if fenced else text).strip()
    if text[:1] not in ("{", "["):
        return None
    try:
        return orjson.dumps(_plain(orjson.loads(text), depth=0), option=orjson.OPT_SORT_KEYS).decode()
    except (ValueError, TypeError, RecursionError):
        return None


def _plain(value: object, *, depth: int) -> object:
    """Return `value` with whole floats as integers: 1.0 is 1."""
    if depth > 100:
        raise RecursionError("too deep to compare")
    if isinstance(value, dict):
        return {name: _plain(inner, depth=depth + 1) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner, depth=depth + 1) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def _marked(text: str, *, is_numeric: bool) -> str | None:
    """Return what stands after the last "Answer:", "####", "boxed{" or "the answer is"."""
    marks = list(_MARK.finditer(text))
    if not marks:
        return None
    mark = marks[-1]
    rest = text[mark.end() :].lstrip()
    if "boxed" in mark[0]:
        rest = rest.partition("}")[0]
    sentences = [sentence for sentence in _SENTENCE_END.split(rest.partition("\n")[0]) if sentence]
    if not sentences or len(sentences[0].split()) > MARKED_WORDS or (mark["label"] and len(sentences) > 1):
        return None
    said = _YES_NO.match(sentences[0])
    if said:
        return said[1].lower()
    if is_numeric:
        found = _first_number(sentences[0])
        if found:
            return found.text
    return _short(sentences[0])


def _last_number(text: str) -> str | None:
    """Return the number of the last sentence that has one; the last three are looked at."""
    for sentence in [sentence for sentence in _SENTENCE_END.split(text) if sentence.strip()][:-4:-1]:
        for bold in reversed(_BOLD.findall(sentence)):
            found = _first_number(bold)
            if found:
                return found.text
        if "=" in sentence:
            found = _first_number(sentence)
        else:
            numbers = list(_numbers(sentence.replace("**", "")))
            found = numbers[-1] if numbers else None
        if found:
            return found.text
    return None


def _first_number(sentence: str) -> _Number | None:
    """Return the first number after the last equals sign."""
    return next(_numbers(sentence.replace("**", "").rpartition("=")[2]), None)


def _numbers(text: str) -> Iterator[_Number]:
    for match in _NUMBER.finditer(text):
        yield _Number(_canonical(match, is_negative=_is_negative(match, text)), match.start())


def _is_negative(match: re.Match[str], text: str) -> bool:
    """A minus after a number, a bracket or within a word is no sign: 24 -14, covid-19."""
    if not match["sign"]:
        return False
    before = text[max(0, match.start() - 3) : match.start()]
    last = before.rstrip()[-1:]
    return not (last.isdigit() or (last and last in ")%]") or before[-1:].isalpha())


def _canonical(match: re.Match[str], *, is_negative: bool) -> str | None:
    if match["clock"]:
        return f"{match['clock']}{(match['half'] or '').lower()}"
    if match["over"]:
        if int(match["under"]) == 0:
            return None
        value = int(match["whole"] or 0) + Fraction(int(match["over"]), int(match["under"]))
    else:
        plain = match["plain"]
        if len(plain) > NUMBER_DIGITS:
            return None
        is_decimal_comma = plain.count(",") == 1 and len(plain) - plain.index(",") in (2, 3) and "." not in plain
        plain = plain.replace(",", "." if is_decimal_comma else "")
        value = Fraction(plain + (match["power"] or ""))
    value *= _SCALES.get((match["scale"] or "").lower(), 1)
    return f"{-value if is_negative else value}{'%' if match['percent'] else ''}"


def _short(text: str) -> str | None:
    number = _NUMBER.fullmatch(text.lstrip(" *_`$\\([").rstrip(" .,;!*_`$\\)]"))
    if number:
        return _canonical(number, is_negative=bool(number["sign"]))
    if len(text.split(maxsplit=SHORT_WORDS)) > SHORT_WORDS:
        return None
    words = unicodedata.normalize("NFKC", text).casefold().translate(_PUNCTUATION).split()
    return " ".join(word for word in words if word not in _ARTICLES)[:200] or None


def _is_yes_no(question: str) -> bool:
    last = _SENTENCE_END.split(question.strip())[-1].strip()
    return bool(_YES_NO_QUESTION.match(last)) and not _OPEN_QUESTION.search(last)


def _value(canonical: str) -> Fraction | None:
    if len(canonical) > CANONICAL_CHARACTERS or not _CANONICAL.fullmatch(canonical):
        return None
    top, _, under = canonical.rstrip("%").partition("/")
    return Fraction(int(top), int(under)) if under != "0" * len(under) else Fraction(int(top)) if not under else None


def _is_rounded(short: Fraction, exact: Fraction) -> bool:
    """Say whether `short` is `exact` rounded to the decimals that `short` has."""
    decimals = next((count for count in range(1, 13) if 10**count % short.denominator == 0), None)
    if short.denominator == 1 or decimals is None:
        return False
    digits = len(str(abs(short * 10**decimals)))
    return digits >= 2 and abs(short - exact) * 2 * 10**decimals <= 1
