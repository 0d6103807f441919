"""Arithmetic, exact or said to be rounded.

Takes a sum as text; gives a fraction, and text. Nothing is run as code, and every step is bounded, so that text from
anywhere may be worked out. Knows nothing about units, unknowns or equations to solve.
"""

from __future__ import annotations

import math
import re
from decimal import Context, Decimal, DecimalException, localcontext
from fractions import Fraction
from typing import NamedTuple

from everswarm.server.swarm.tools.tool import ToolFailedError

LONGEST_EXPRESSION = 500  # characters
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


def evaluate(expression: str) -> Value:
    """Return what `expression` comes to, such as "37*48+5", "15% of 80" or "5 plus sqrt(2)".

    Raises:
        ToolFailedError: it is no arithmetic, has no value or more than one reading, or is over a limit.
    """
    if len(expression) > LONGEST_EXPRESSION:
        raise ToolFailedError(
            f"the expression has {len(expression)} characters; the limit is {LONGEST_EXPRESSION}. Do it in parts."
        )
    return _Parser(read_tokens(in_symbols(expression))).all()


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


def in_symbols(text: str) -> str:
    """Return the text in small letters, with one space between words and symbols for words."""
    text = re.sub("[⁰¹²³⁴-⁹]+", lambda raised: f"^({raised[0].translate(_RAISED)})", text)
    text = " ".join(text.translate(_SIGNS).lower().replace(" – ", " - ").split())
    text = _INFIX_WORDS.sub(lambda word: _INFIX[word[0]], text)
    return _POSTFIX_WORDS.sub(lambda word: _POSTFIX[word[1]], text)


def read_tokens(text: str) -> list[str]:
    """Return the numbers and symbols of a text in symbols.

    Raises:
        ToolFailedError: there is something else in it.
    """
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


def has_operation(tokens: list[str]) -> bool:
    """Return whether there is anything to work out; a number with a sign has nothing."""
    return any(
        token in _OPERATIONS or (index and token in ("+", "-")) or (token == "%" and _starts_operand(following))
        for index, (token, following) in enumerate(zip(tokens, [*tokens[1:], ""], strict=True))
    )


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
