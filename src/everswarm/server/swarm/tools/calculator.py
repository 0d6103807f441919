"""Arithmetic: sums worked out exactly, sums found in a question, claims checked in an answer.

Takes text; gives fractions and text. Nothing is run as code, and every step is bounded, so that text from anywhere may
be read. Knows nothing about units, letters or equations to solve.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from decimal import Context, Decimal, DecimalException, localcontext
from fractions import Fraction
from itertools import islice
from typing import NamedTuple

from everswarm.server.swarm.tools.tool import Arguments, Tool, ToolFailedError

_LONGEST_EXPRESSION = 500  # characters
_LONGEST_QUESTION = 300  # characters of a message that may be one sum
_LONGEST_TEXT = 100_000  # characters of an answer that are searched for claims
_MOST_EQUATIONS = 200
_MOST_TRIED = 1000  # claims, readable or not
_DEEPEST = 50  # parentheses, signs and powers inside one another
_MOST_DIGITS = 1000
_TOO_LARGE = 10**_MOST_DIGITS
_LARGEST_FACTORIAL = 449  # 450! has 1,001 digits
_PLACES = 12  # decimal places that are shown of an exact number
_CONTEXT = Context(prec=60, Emax=10_000, Emin=-10_000)  # digits of what has no exact value, such as sqrt(2)
_NEGLIGIBLE = Fraction(1, 10**50)  # a difference this small beside its terms is only lost digits
_CONSTANTS = {
    "pi": Fraction("3.14159265358979323846264338327950288419716939937510582097494"),
    "e": Fraction("2.71828182845904523536028747135266249775724709369995957496697"),
}

_SIGNS = str.maketrans(
    {"×": "*", "·": "*", "⋅": "*", "∙": "*", "÷": "/", "⁄": "/", "∕": "/", "−": "-", "√": " sqrt ", "π": " pi "}
    | {chr(0xFF01 + i): chr(0x21 + i) for i in range(94)}  # full width
)
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")
_INFIX = {
    "raised to the power of": "^",
    "to the power of": "^",
    "multiplied by": "*",
    "divided by": "/",
    "the square root of": "sqrt",
    "square root of": "sqrt",
    "times": "*",
    "plus": "+",
    "minus": "-",
    "modulo": "mod",
}
_POSTFIX = {"per cent": "%", "percent": "%", "squared": "^2", "cubed": "^3", "factorial": "!"}
_INFIX_WORDS = re.compile(rf"\b(?:{'|'.join(_INFIX)})\b")
_POSTFIX_WORDS = re.compile(rf" ?\b({'|'.join(_POSTFIX)})\b")
_TOKEN = re.compile(
    r"""\s*(?:
    (?P<number>(?:[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)
        (?:e[-+]?[0-9]{1,4})?(?![0-9]|[.,][0-9]))
    |(?P<symbol>\*\*|[-+*/^%()!]|(?:x|sqrt|mod|of|pi|e)(?![a-z])))""",
    re.VERBOSE,
)
_OPERATIONS = {"*", "/", "^", "mod", "of", "sqrt", "!"}


class Value(NamedTuple):
    """What an expression comes to."""

    number: Fraction
    is_exact: bool = True  # False after a root, a constant or a broken power: right to about 50 digits


class Equation(NamedTuple):
    """A claim 'a = b' in a text."""

    text: str
    is_right: bool


def evaluate(expression: str) -> Value:
    """Return what `expression` comes to, such as "37*48+5", "15% of 80" or "5 plus sqrt(2)".

    Raises:
        ToolFailedError: it is no arithmetic, has no value or more than one reading, or is over a limit.
    """
    if len(expression) > _LONGEST_EXPRESSION:
        raise ToolFailedError(
            f"the expression has {len(expression)} characters; the limit is {_LONGEST_EXPRESSION}. Do it in parts."
        )
    return _Parser(_tokens(_in_symbols(expression))).all()


def is_shown_exactly(value: Value) -> bool:
    """Return whether `shown` leaves nothing out: '=' may stand before it, and '≈' must if not."""
    return value.is_exact and _places(value.number) is not None


def shown(value: Value) -> str:
    """Return the number as text: exact up to 12 decimal places, else rounded to 10 significant digits."""
    places = _places(value.number)
    if value.is_exact and places is not None:
        digits = str(abs(value.number.numerator) * 10**places // value.number.denominator).rjust(places + 1, "0")
        sign = "-" if value.number < 0 else ""
        return f"{sign}{digits[:-places]}.{digits[-places:]}" if places else sign + digits
    rounded = round_to(value.number, significant=10)
    exponent = rounded.adjusted()
    if rounded == 0 or -8 < exponent < 20:
        return f"{rounded:f}"
    mantissa = rounded.scaleb(-exponent, context=_CONTEXT).normalize(_CONTEXT)
    return f"{mantissa:f} * 10^{exponent}"


def round_to(number: Fraction, *, significant: int) -> Decimal:
    """Return `number` rounded to so many significant digits, without zeros at the end."""
    with localcontext(Context(prec=significant, Emax=10_000, Emin=-10_000)) as context:
        with localcontext(_CONTEXT):
            precise = _as_decimal(number)
        return context.plus(precise).normalize(context)


def worked_out(expression: str) -> str:
    """Return the sum with its result, such as "37*48+5 = 1781" or "1/3 ≈ 0.3333333333".

    Raises:
        ToolFailedError: as in `evaluate`.
    """
    asked = " ".join(expression.split()).rstrip("=? ")
    value = evaluate(asked)
    return f"{asked} {'=' if is_shown_exactly(value) else '≈'} {shown(value)}"


def _in_symbols(text: str) -> str:
    """Return the text in small letters, with one space between words and symbols for words."""
    text = re.sub("[⁰¹²³⁴-⁹]+", lambda raised: f"^({raised[0].translate(_RAISED)})", text)
    text = " ".join(text.translate(_SIGNS).lower().replace(" – ", " - ").split())
    text = _INFIX_WORDS.sub(lambda word: _INFIX[word[0]], text)
    return _POSTFIX_WORDS.sub(lambda word: _POSTFIX[word[1]], text)


def _tokens(text: str) -> list[str]:
    if re.search(r"(?<![0-9.,])0x[0-9a-f]", text):
        raise ToolFailedError("hexadecimal numbers are not read; write them in base ten.")
    tokens: list[str] = []
    at = 0
    while at < len(text.rstrip()):
        found = _TOKEN.match(text, at)
        if found is None:
            raise ToolFailedError(
                f"'{text[at : at + 20].strip()}' is no arithmetic. Use numbers, + - * / ^ % ! ( ), sqrt, pi and e."
            )
        tokens.append(found["number"] or {"**": "^"}.get(found["symbol"], found["symbol"]))
        at = found.end()
    for index, token in enumerate(tokens):
        if token == "x":  # times; in '2x + 3' it is a letter
            if not _starts_operand(tokens[index + 1] if index + 1 < len(tokens) else ""):
                raise ToolFailedError("'x' is read as times, between two numbers only; there are no unknowns here.")
            tokens[index] = "*"
    return tokens


def _starts_operand(token: str) -> bool:
    return token[:1].isdigit() or token[:1] == "." or token in ("(", "sqrt", "pi", "e")


class _Parser:
    """Recursive descent: sum, product, sign, percentage, power, postfix, atom."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = [*tokens, ""]
        self.at = 0
        self.depth = 0

    def all(self) -> Value:
        value = self.sum()
        if self.next():
            raise ToolFailedError(f"'{self.next()}' cannot stand there. Is an operator or a parenthesis missing?")
        return value

    def next(self) -> str:
        return self.tokens[self.at]

    def take(self) -> str:
        self.at += 1
        return self.tokens[self.at - 1]

    def sum(self) -> Value:
        left = self.product()
        while self.next() in ("+", "-"):
            follows_percentage = self.tokens[self.at - 1] == "%"
            operator = self.take()
            right = self.product()
            if (self.tokens[self.at - 1] == "%") != follows_percentage:
                raise ToolFailedError(
                    "a percentage and a number in one sum can mean two things; write 50 + 10% of 50, or 50 + 0.1."
                )
            left = _applied(operator, left, right)
        return left

    def product(self) -> Value:
        left = self.sign()
        operator = ""
        while True:
            if self.next() in ("*", "/", "mod", "%"):
                operator = self.take()
            elif _starts_operand(self.next()) and not self.next()[0].isdigit() and self.next()[0] != ".":
                if operator == "/":  # 6/2(1+2)
                    raise ToolFailedError("a/b(c) can mean two things; write the * and parentheses.")
                operator = "*"
            else:
                return left
            left = _applied(operator, left, self.sign())

    def sign(self) -> Value:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise ToolFailedError(f"more than {_DEEPEST} parentheses, signs or powers inside one another; simplify it.")
        if self.next() in ("+", "-"):
            negative = self.take() == "-"
            value = self.sign()
            value = Value(-value.number, value.is_exact) if negative else value
        else:
            value = self.percentage()
        self.depth -= 1
        return value

    def percentage(self) -> Value:
        value = self.power()
        if self.next() != "%" or _starts_operand(self.tokens[self.at + 1]):  # before an operand it is modulo
            return value
        self.take()
        hundredth = _applied("/", value, Value(Fraction(100)))
        if self.next() != "of":
            return hundredth
        self.take()
        return _applied("*", hundredth, self.sign())

    def power(self) -> Value:
        value = self.atom()
        while self.next() == "!":
            self.take()
            if self.next() == "!":
                raise ToolFailedError("'!!' can mean two things; write (5!)! for a factorial of a factorial.")
            value = _factorial(value)
        if self.next() != "^":
            return value
        self.take()
        return _power(value, self.sign())

    def atom(self) -> Value:
        token = self.take()
        if token[:1].isdigit() or token[:1] == ".":
            return _bounded(Value(Fraction(token.replace(",", ""))))
        if token in _CONSTANTS:
            return Value(_CONSTANTS[token], is_exact=False)
        if token == "sqrt":
            return _power(self.atom(), Value(Fraction(1, 2)))
        if token != "(":
            where = f"before '{token}'" if token else "at the end"
            raise ToolFailedError(f"a number should stand {where}.")
        value = self.sum()
        if self.take() != ")":
            raise ToolFailedError("a closing parenthesis is missing.")
        return value


def _applied(operator: str, left: Value, right: Value) -> Value:
    number = left.number
    if operator in ("+", "-"):
        number = number + right.number if operator == "+" else number - right.number
        if not (left.is_exact and right.is_exact) and abs(number) < _NEGLIGIBLE * abs(left.number):
            number = Fraction(0)
    elif operator == "*":
        number *= right.number
    elif right.number == 0:
        raise ToolFailedError("division by zero has no value.")
    else:
        number = number / right.number if operator == "/" else number % right.number
    return _bounded(Value(number, left.is_exact and right.is_exact))


def _bounded(value: Value) -> Value:
    number, is_exact = value
    if not is_exact:
        with localcontext(_CONTEXT):
            number = Fraction(_as_decimal(number))
    if max(abs(number.numerator), number.denominator) >= _TOO_LARGE:
        raise _too_long()
    return Value(number, is_exact)


def _too_long() -> ToolFailedError:
    return ToolFailedError(f"a number on the way has more than {_MOST_DIGITS} digits, which is the limit.")


def _as_decimal(number: Fraction) -> Decimal:
    return Decimal(number.numerator) / Decimal(number.denominator)


def _factorial(value: Value) -> Value:
    number = value.number
    if number.denominator != 1 or number < 0 or not value.is_exact:
        raise ToolFailedError("a factorial needs a whole number that is not negative.")
    if number > _LARGEST_FACTORIAL:
        raise ToolFailedError(f"a factorial is worked out up to {_LARGEST_FACTORIAL}!, not beyond.")
    return Value(Fraction(math.factorial(number.numerator)))


def _power(base: Value, exponent: Value) -> Value:
    number, power = base.number, exponent.number
    if number == 0 and power < 0:
        raise ToolFailedError("division by zero has no value.")
    if base.is_exact and exponent.is_exact:
        root = number if power.denominator == 1 else _exact_root(number, power.denominator)
        if root is not None:
            if (max(abs(root.numerator), root.denominator).bit_length() - 1) * abs(power.numerator) > 4 * _MOST_DIGITS:
                raise _too_long()
            if abs(root) in (0, 1):  # the exponent may have a thousand digits; only its parity counts
                power = Fraction(power.numerator % 2 + 2 * (power != 0))
            return _bounded(Value(Fraction(root**power.numerator)))
    if number < 0 and power.denominator != 1:
        raise ToolFailedError("a root or broken power of a negative number is no real number.")
    try:
        with localcontext(_CONTEXT):
            precise = _as_decimal(number)
            precise = precise.sqrt() if power == Fraction(1, 2) else precise ** _as_decimal(power)
            return _bounded(Value(Fraction(precise), is_exact=False))
    except DecimalException:
        raise _too_long() from None


def _exact_root(number: Fraction, degree: int) -> Fraction | None:
    """Return the root if it is a fraction, such as 2/3 of 8/27 with degree 3."""
    roots = []
    for part in (number.numerator, number.denominator):
        if part < 0 or degree > 64 or (degree > 2 and part.bit_length() > 1000):  # beyond what a float holds
            return None
        roots.append(math.isqrt(part) if degree == 2 else round(part ** (1 / degree)))
        if roots[-1] ** degree != part:
            return None
    return Fraction(*roots)


def _places(number: Fraction) -> int | None:
    """Return how many decimal places the number has, or None if they are more than 12."""
    return next((places for places in range(_PLACES + 1) if 10**places % number.denominator == 0), None)


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
    expression = _in_symbols(text)
    for words, symbol in _FOREIGN.items():
        expression, count = re.subn(words, symbol, expression)
        kinds |= {"foreign"} if count else set()
    if _is_unclear(text, expression, kinds):
        return None
    try:
        tokens = _tokens(expression)
        evaluate(expression)
    except ToolFailedError:
        return None
    return expression if _has_operation(tokens) else None


def _without_ending(text: str, kinds: set[str]) -> tuple[str, set[str]]:
    while True:
        if text.endswith("="):
            text, kinds = text[:-1].rstrip(), kinds | {"orders"}
        ending = next((ending for ending in _ENDINGS if text.endswith(ending)), None)
        if ending is None:
            return text, kinds
        text = text[: -len(ending)].rstrip()


def _has_operation(tokens: list[str]) -> bool:
    return any(
        token in _OPERATIONS or (index and token in ("+", "-")) or (token == "%" and _starts_operand(following))
        for index, (token, following) in enumerate(zip(tokens, [*tokens[1:], ""], strict=True))
    )


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
        if not (_has_operation(_tokens(_in_symbols(left))) or _has_operation(_tokens(_in_symbols(right)))):
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
    return "" if len(text) > _LONGEST_EXPRESSION or text.startswith(("+", "- ", "− ", "–")) else text


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
