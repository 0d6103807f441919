"""The calculator: sums found in a question, claims checked in an answer, and the tool that models call.

Whatever cannot be read for certain is left alone: a sum that is missed costs one call, one misread is a wrong answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from typing import NamedTuple

from everswarm.server.swarm.tools.arithmetic import (
    LONGEST_EXPRESSION,
    evaluate,
    has_operation,
    in_symbols,
    is_shown_exactly,
    read_tokens,
    shown,
)
from everswarm.server.swarm.tools.tool import Arguments, Tool, ToolFailedError

_LONGEST_QUESTION = 300  # characters of a message that may be one sum
_LONGEST_TEXT = 100_000  # characters of an answer that are searched for claims
_MOST_EQUATIONS = 200
_MOST_TRIED = 1000  # claims, readable or not


class Equation(NamedTuple):
    """A claim 'a = b' in a text."""

    text: str
    is_right: bool


def worked_out(expression: str) -> str:
    """Return the sum with its result, such as "37*48+5 = 1781" or "1/3 ≈ 0.3333333333".

    Raises:
        ToolFailedError: as in `evaluate`.
    """
    asked = " ".join(expression.split()).rstrip("=? ")
    value = evaluate(asked)
    return f"{asked} {'=' if is_shown_exactly(value) else '≈'} {shown(value)}"


# A question that is one sum

_INTRODUCTION = re.compile(
    r"""(?:(?P<polite>please|hi|hello|hey|ok|okay|so|now|and|quick|can\ you|could\ you|tell\ me|i\ need|bitte|hallo)
    |(?P<asks>what\ is|what's|whats|what\ does|what\ do|how\ much\ is|how\ much\ are)
    |(?P<orders>calculate|compute|evaluate|work\ out|solve|the\ result\ of|the\ value\ of)
    |(?P<foreign>was\ ist|was\ sind|was\ ergibt|was\ macht|wie\ viel\ ist|wieviel\ ist|berechne|rechne
        |combien\ font|combien\ fait|calcule|calculez|cuánto\ es|cuanto\ es|cuánto\ son|cuanto\ son|calcula)
    )(?![a-z0-9'])[ ,:]*""",
    re.VERBOSE,
)
_ENDINGS = ("?", ".", ",", " please", " bitte", " por favor", " thanks", " thank you", " equal", " equals")
_FOREIGN = {
    r"\bgeteilt durch\b|\bdivisée? par\b|\bdividido (?:por|entre)\b": "/",
    r"\bmal\b|\bfois\b|\bpor\b": "*",
    r"\bmoins\b|\bmenos\b": "-",
    r"\bmás\b": "+",
    r" ?\bprozent\b": "%",
    r"(?<=%) (?:von|de)\b": " of",
}
_FAMOUS = {"9/11", "24/7", "50/50", "80/20", "60/40", "20/20", "120/80", "10-4", "9-5", "2x4", "4x4"}
_NEVER = re.compile(r"(?<![0-9.,])0[0-9]|^\+|^- |\+ ?\+|[0-9]% +[0-9]")  # leading zeros, +49, a bullet, 20% 50
_DATE = re.compile(r"[0-9]{1,2}/[0-9]{1,2}(?:/[0-9]{2,4})?|[0-9]{4}[-/][0-9]{1,2}[-/][0-9]{1,2}")
_RANGE = re.compile(r"[0-9]+(?:\.[0-9]+)?%?(?:-[0-9]+(?:\.[0-9]+)?%?)+")  # a phone number, a score, 2019-2024, 50%-60%
_LISTED = re.compile(r"[0-9.]+(?:[/x][0-9.]+)+")  # a fraction, a size


def read_sum(question: str) -> str | None:
    """Return the expression if the whole message is one sum that `evaluate` can do, else None.

    Anything else that looks like one (a date, a phone number, a size) is None: a sum that is missed costs one call
    of a model, a sum that is none gives a wrong answer.
    """
    if len(question) > _LONGEST_QUESTION or not any(character.isdigit() for character in question):
        return None
    text = " ".join(question.lower().replace("’", "'").replace("¿", "").split())
    kinds: set[str] = set()
    while opening := _INTRODUCTION.match(text):
        kinds.add(str(opening.lastgroup))
        text = text[opening.end() :]
    text, kinds = _without_ending(text, kinds)
    expression = in_symbols(text)
    for words, symbol in _FOREIGN.items():
        expression, count = re.subn(words, symbol, expression)
        kinds |= {"foreign"} if count else set()
    if _is_unclear(text, expression, kinds):
        return None
    try:
        tokens = read_tokens(expression)
        evaluate(expression)
    except ToolFailedError:
        return None
    return expression if has_operation(tokens) else None


def _without_ending(text: str, kinds: set[str]) -> tuple[str, set[str]]:
    while True:
        if text.endswith("="):
            text, kinds = text[:-1].rstrip(), kinds | {"orders"}
        ending = next((ending for ending in _ENDINGS if text.endswith(ending)), None)
        if ending is None:
            return text, kinds
        text = text[: -len(ending)].rstrip()


def _is_unclear(text: str, expression: str, kinds: set[str]) -> bool:
    """Return whether a person may have meant something other than a sum, or another sum."""
    if _NEVER.search(expression) or ("foreign" in kinds and re.search("[.,]", expression)):  # 1.234 or 1,234?
        return True
    if text.endswith("!") and (not kinds or re.search(r"[-+*/^x]", text)) and text.count("!") == 1:
        return True  # 'what is 3+3!' may only be excited
    if "root" in text and re.search(r"[-+*/^x]", expression):  # the root of 16, or of 16 plus 9?
        return True
    return "orders" not in kinds and _is_other_thing(expression, is_asked=bool(kinds & {"asks", "foreign"}))


def _is_other_thing(expression: str, *, is_asked: bool) -> bool:
    """Return whether it is written as a date, a phone number, a range or a size is. Asked for, spaces make it a sum."""
    plain = re.sub("[()]" if is_asked else "[() ]", "", expression)
    if plain in _FAMOUS or _DATE.fullmatch(plain):
        return True
    if not is_asked:
        return bool(_RANGE.fullmatch(plain) or _LISTED.fullmatch(plain))
    return _is_number_with_dashes(plain) or bool(re.fullmatch(r"[0-9]{3,}x[0-9]{3,}", plain))  # 1920x1080


def _is_number_with_dashes(plain: str) -> bool:
    if not _RANGE.fullmatch(plain):
        return False
    left, right, *more = plain.split("-")
    years = len(left) == len(right) == 4 and left[:2] in ("18", "19", "20") and right[:2] in ("18", "19", "20")
    is_phone = (len(left), len(right)) == (3, 4)
    return bool(more) or years or is_phone or float(left.strip("%")) <= float(right.strip("%"))


# Claims in an answer

_CLEANING = (  # in this order; each is linear in the text
    (re.compile(r"\\(?:times|cdot)(?![a-z])"), " * "),
    (re.compile(r"\\div(?![a-z])"), " / "),
    (re.compile(r"\\approx(?![a-z])"), "≈"),
    (re.compile(r"\\d?frac\{([^{}\n]{1,50})\}\{([^{}\n]{1,50})\}"), r"((\1)/(\2))"),
    (re.compile(r"\\boxed\{([^{}\n]{1,50})\}"), r"\1"),
    (re.compile(r"\\[()\[\]]"), "\n"),
    (re.compile(r"\\([$%])"), r"\1"),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"(?<![0-9)])(?<![0-9)] )\*\*|\*\*(?! ?[0-9(\-])"), ""),  # bold, not a power
    (re.compile(r"(?m)^[ \t]*+(?:[-*•]|[0-9]{1,3}[.)])[ \t]++"), ""),  # the mark of a list
    (re.compile(r"(?:(?<=[0-9)%])|(?<=[0-9)%] ))[xX](?= ?[$€£(]?[0-9(])"), "×"),
    (re.compile(r"!="), "\n"),  # 'is not', or 3! = 6 without the space
)
_CLAIMS = re.compile(
    r"(?:(?<=%) of (?=[$€£(]?[0-9])|[0-9+\-*/^()%$€£¥ \t=≈×÷·⋅−–√²³!]|\.(?=[0-9])|(?<=[0-9]),(?=[0-9]{3}(?![0-9])))+"
)
_LEADING_ZERO = re.compile(r"(?<![0-9.,])0[0-9]")  # of a date or a code
_DOTTED_THOUSANDS = re.compile(r"(?<![0-9.])[1-9][0-9]{0,2}\.[0-9]{3}(?![0-9])")  # 1.250 may be 1,250
_PLAIN = re.compile(r"[-−]?[0-9][0-9,]*(?:\.([0-9]+))?(%?)")
_WORD_BEFORE = re.compile(
    r"\b(?:mod|modulo|times|plus|minus|by|of|half|twice|thrice|double|triple|sqrt|root|squared|cubed|over|log|ln|sin"
    r"|cos|tan|to|than|power|step|day|case|question|problem|example|part|line|equation|number|point)$",
    re.IGNORECASE,
)
_WORD_AFTER = re.compile(
    r"(?:[a-z]|hundred|thousand|million|billion|trillion|lakh|crore|dozens?|bn|mn|percent|per|rem|remainder|mod|times"
    r"|plus|minus|divided|multiplied|squared|cubed|hours?|cents?|pence)(?![a-z])"
    r"|(?:with )?(?:a )?remainder|and (?:[0-9]/[0-9](?![0-9])|a (?:half|third|quarter))|[.,:][0-9]|[_\\{]",
    re.IGNORECASE,
)


def find_equations(text: str) -> list[Equation]:
    """Return the claims 'a = b' of a text that can be judged, in order, at most 200.

    A chain 'a = b = c' is two claims. A claim is right if it holds to a millionth, or if one side is a number and
    the other comes to it when rounded to the digits that it shows; 'a ≈ b' holds to a twentieth. What cannot be
    read for certain is left out.
    """
    text = text[:_LONGEST_TEXT]
    for pattern, replacement in _CLEANING:
        text = pattern.sub(replacement, text)
    equations: list[Equation] = []
    for left, sign, right in islice(_claims(text), _MOST_TRIED):
        equation = _judged(_side(left), sign, _side(right))
        if equation is not None:
            equations.append(equation)
        if len(equations) == _MOST_EQUATIONS:
            break
    return equations


def _claims(text: str) -> Iterator[tuple[str, str, str]]:
    """Yield what stands before an equals sign, the sign, and what stands after it; empty where a part is missing."""
    for run in _CLAIMS.finditer(text):
        sides = re.split("([=≈])", run[0])
        if len(sides) == 1:
            continue
        if not _may_begin(text[max(0, run.start() - 20) : run.start()], run[0]):
            sides[0] = ""
        if _WORD_AFTER.match(text, run.end()):
            sides[-1] = ""
        elif sides[-1].endswith(" ("):  # a remark follows
            sides[-1] = sides[-1][:-2]
        yield from ((sides[at], sides[at + 1], sides[at + 2]) for at in range(0, len(sides) - 2, 2))


def _may_begin(before: str, run: str) -> bool:
    """Return whether the first side of `run` is whole, and no part of what stands before it."""
    if before.rstrip()[-1:] in tuple("+-−*/×÷^"):  # the line before goes on
        return False
    if not run.startswith((" ", "\t")):
        return not before or before[-1] in "<>[{|\"'“”‘`~\n"
    is_factor = run.lstrip().startswith(("-", "−", "(")) and re.search(r"(?<![A-Za-z])[A-Za-z]$|[\])}|]$", before)
    return not is_factor and not _WORD_BEFORE.search(before)


def _judged(left: str, sign: str, right: str) -> Equation | None:
    text = f"{left} {sign} {right}"
    if not left or not right or _LEADING_ZERO.search(text):
        return None
    try:
        if not (has_operation(read_tokens(in_symbols(left))) or has_operation(read_tokens(in_symbols(right)))):
            return None
        numbers = evaluate(left).number, evaluate(right).number
    except ToolFailedError:
        return None
    is_right = _agree(*numbers, tolerance=Fraction(1, 20 if sign == "≈" else 10**6))
    for claim, (claimed, value) in ((right, numbers[::-1]), (left, numbers)):
        is_right = is_right or _rounds_to(claim, claimed, value, percentages="%" not in left)
    return Equation(text, is_right) if is_right or not _DOTTED_THOUSANDS.search(text) else None


def _side(text: str) -> str:
    """Return one side of a claim without currencies and the parentheses around the whole claim; empty if unclear."""
    text = " ".join(re.sub("[$€£¥]", "", text).split())
    while text.startswith("(") and text.count("(") > text.count(")"):
        text = text[1:].lstrip()
    while text.endswith(")") and text.count(")") > text.count("("):
        text = text[:-1].rstrip()
    return "" if len(text) > LONGEST_EXPRESSION or text.startswith(("+", "- ", "− ", "–")) else text


def _agree(one: Fraction, other: Fraction, *, tolerance: Fraction) -> bool:
    return abs(one - other) <= tolerance * max(abs(one), abs(other))


def _rounds_to(claim: str, claimed: Fraction, value: Fraction, *, percentages: bool) -> bool:
    plain = _PLAIN.fullmatch(claim)
    if plain is None or claimed == 0:  # nearly nothing is not nothing
        return False
    half = Fraction(1, 2 * 10 ** len(plain[1] or "")) / (100 if plain[2] else 1)
    if abs(value - claimed) <= half:
        return True
    return bool(plain[2]) and percentages and abs(value - claimed * 100) <= half * 100  # 50/200 * 100 = 25%


# The tool


async def _calculate(arguments: Arguments, user: str) -> str:
    expression = arguments.get("expression")
    if not isinstance(expression, str) or not expression.strip():
        raise ToolFailedError('the calculator needs {"expression": "..."} with the sum as text, such as "37*48+5".')
    return worked_out(expression)


CALCULATOR = Tool(
    name="calculator",
    description=(
        "Works out one arithmetic expression exactly. Knows + - * / ^ % (modulo; '15% of 80' is a percentage), "
        "parentheses, sqrt(), factorial (5!), pi and e. No letters, no units."
    ),
    parameters={
        "type": "object",
        "properties": {"expression": {"type": "string", "description": "the sum, such as (37*48+5)/2"}},
        "required": ["expression"],
        "additionalProperties": False,
    },
    run=_calculate,
    allow_name="calculator",
)
