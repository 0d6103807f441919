"""Sums are exact or said to be rounded, bounded, and found only where they surely are."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everswarm.server.swarm.tools.arithmetic import Value, evaluate, is_shown_exactly, shown
from everswarm.server.swarm.tools.calculator import CALCULATOR, find_equations, read_sum, worked_out
from everswarm.server.swarm.tools.tool import ToolFailedError

SUMS = {
    "37*48+5": "37*48+5 = 1781",
    "0.1 + 0.2": "0.1 + 0.2 = 0.3",
    "1/3": "1/3 ≈ 0.3333333333",
    "-2^2": "-2^2 = -4",
    "2^3^2": "2^3^2 = 512",
    "2**-1": "2**-1 = 0.5",
    "12 x 9": "12 x 9 = 108",
    "6 ÷ 4 × 2 − 1 · 3": "6 ÷ 4 × 2 − 1 · 3 = 0",
    "1,234.5 * 2": "1,234.5 * 2 = 2469",
    "15% of 80": "15% of 80 = 12",
    "15 percent of 80": "15 percent of 80 = 12",
    "10% of 10% of 50": "10% of 10% of 50 = 0.5",
    "5% + 3%": "5% + 3% = 0.08",
    "17 % 5": "17 % 5 = 2",
    "17 mod 5": "17 mod 5 = 2",
    "5!/3!": "5!/3! = 20",
    "(3!)!": "(3!)! = 720",
    "2(3+4)": "2(3+4) = 14",
    "sqrt(16)": "sqrt(16) = 4",
    "√16": "√16 = 4",
    "8^(1/3)": "8^(1/3) = 2",
    "(4/9)^-0.5": "(4/9)^-0.5 = 1.5",
    "sqrt(2)": "sqrt(2) ≈ 1.414213562",
    "sqrt(2)^2 - 2": "sqrt(2)^2 - 2 ≈ 0",
    "2 pi": "2 pi ≈ 6.283185307",
    "3²+4²": "3²+4² = 25",
    "2²³": "2²³ = 8388608",
    "5 plus 7 minus 2": "5 plus 7 minus 2 = 10",
    "3 squared times 2 cubed": "3 squared times 2 cubed = 72",
    "12 divided by 4": "12 divided by 4 = 3",
    "2 to the power of 10": "2 to the power of 10 = 1024",
    "１２×３": "１２×３ = 36",
    "1/7*10^30": "1/7*10^30 ≈ 1.428571429 * 10^29",
    "1^(10^900)": "1^(10^900) = 1",
    "3 + 4 = ?": "3 + 4 = 7",
}


@pytest.mark.parametrize(("expression", "result"), SUMS.items())
def test_sum_is_worked_out(expression: str, result: str) -> None:
    assert worked_out(expression) == result


REFUSED = {
    "5/0": "division by zero has no value",
    "5 mod 0": "division by zero",
    "0^-1": "division by zero",
    "50 + 10%": "can mean two things",
    "7 % -5": "can mean two things",
    "6/2(1+2)": "can mean two things",
    "5!!": "can mean two things",
    "2x + 3": "'x' is read as times",
    "0x10": "hexadecimal",
    "(1+2": "closing parenthesis is missing",
    "1+2)": "cannot stand there",
    "1 2": "cannot stand there",
    "1 +": "a number should stand at the end",
    "": "a number should stand at the end",
    "1.2.3": "is no arithmetic",
    "1,23": "is no arithmetic",
    "__import__('os')": "is no arithmetic",
    "sqrt(-1)": "no real number",
    "(-8)^(1/3)": "no real number",
    "0.5!": "a whole number",
    "450!": "up to 449!",
    "10^1000": "more than 1000 digits",
    "9**9**9": "more than 1000 digits",
    "1e9999": "more than 1000 digits",
    "pi^-3000": "more than 1000 digits",
    "2.1^(10^12+.5)": "more than 1000 digits",
    "(" * 60 + "1" + ")" * 60: "more than 50",
    "-" * 60 + "1": "more than 50",
    "1+" * 300 + "1": "601 characters; the limit is 500",
}


@pytest.mark.parametrize(("expression", "reason"), REFUSED.items())
def test_what_has_no_clear_value_is_refused_with_the_reason(expression: str, reason: str) -> None:
    with pytest.raises(ToolFailedError, match=reason.replace("(", r"\(")):
        evaluate(expression)


@given(st.fractions(max_denominator=10**6), st.fractions(max_denominator=10**6), st.sampled_from("+-*/"))
def test_operations_agree_with_fractions(left: Fraction, right: Fraction, operator: str) -> None:
    expression = f"({left}) {operator} ({right})"
    if operator == "/" and right == 0:
        with pytest.raises(ToolFailedError):
            evaluate(expression)
        return
    expected = {"+": left + right, "-": left - right, "*": left * right, "/": left / right if right else None}[operator]
    assert evaluate(expression) == Value(expected, is_exact=True)  # type: ignore[arg-type]


@given(st.fractions())
def test_what_is_shown_as_exact_reads_back_the_same(number: Fraction) -> None:
    value = Value(number)
    read = evaluate(shown(value)).number
    assert read == number if is_shown_exactly(value) else abs(read - number) <= abs(number) / 10**9


@given(st.text(alphabet="0123456789.+-*/^%()!x, sqrtpieof", max_size=60))
@settings(max_examples=300)
def test_any_text_has_a_bounded_value_or_is_refused(text: str) -> None:
    try:
        number = evaluate(text).number
    except ToolFailedError:
        return
    assert max(abs(number.numerator), number.denominator) < 10**1000


QUESTIONS = {
    "What is 37*48+5?": "37*48+5",
    "calculate (3+4)^2": "(3+4)^2",
    "how much is 15% of 80": "15% of 80",
    "12 x 9 =": "12 x 9",
    "2 + 2 = ?": "2 + 2",
    "2+2": "2+2",
    "what's 5 plus 7 please": "5 + 7",
    "Hi, what’s 2 + 2": "2 + 2",
    "What is the square root of 144?": "sqrt 144",
    "what is 5!": "5!",
    "compute 9/11": "9/11",
    "what is 144/12": "144/12",
    "What is 10 - 4?": "10 - 4",
    "what is 50-20?": "50-20",
    "what is 2-1.5?": "2-1.5",
    "What is 1,234 * 2?": "1,234 * 2",
    "Please calculate 12 divided by 4.": "12 / 4",
    "Was ist 3 mal 4?": "3 * 4",
    "Wie viel ist 15% von 80?": "15% of 80",
    "Combien font 3 fois 4 ?": "3 * 4",
    "¿Cuánto es 3 por 4?": "3 * 4",
}


@pytest.mark.parametrize(("question", "expression"), QUESTIONS.items())
def test_question_that_is_one_sum_is_read(question: str, expression: str) -> None:
    assert read_sum(question) == expression


OTHER = """What is 3*4 and why?|2024-05-01|call 555-1234|version 1.2.3|10 apples times 3|37|1/2 cup|555-1234|192.168.1.1
What is 9/11?|what is 555-1234|+1 555 123 4567|+1-555-123-4567|(555) 123-4567|(555)-123-4567|1-800-555-1234
what is 24/7|50/50|1920x1080|12 x 9|what is 1920x1080|2019-2024|what is 2019-2024?|2+2=4|is 2+2=4?|3+3!|what is 3+3!|5!
I have 3+4 apples|what is 2x+3|x+3|50%|50%-60%|100 + 20%|what is 20% 50|C++|- 5 + 3|978-3-16-148410-0|120/80|10-4
01/05|what is 007-1|1+1 2+2|3 in 4|Was ist 1.234 mal 2?|Was ist 3,5 mal 2?|what is 5/0|9**9**9|2(3)|what is pi|3/4|-5
40.7128, -74.0060|12:30 - 11:15|what is 4x4?|5 * |*5*|what is 3 x 3 grid|what is square root of 16 plus 9||?|1.|٣+٤
what is 2 + 2 in binary|10 - 5|what is 1-2?|0.1.2+3|1e5|what is 12+|5/1/2024|what is 3 plus|hello there|calculate"""


@pytest.mark.parametrize("message", [message for line in OTHER.split("\n") for message in line.split("|")])
def test_message_that_only_looks_like_a_sum_is_none(message: str) -> None:
    assert read_sum(message) is None


@pytest.mark.parametrize("piece", ["1", "1+", "(", "- ", "please ", "2^", "what is ", "%", ", ", "= ", "1/", "a", "!"])
def test_long_message_is_no_sum(piece: str) -> None:
    assert read_sum(piece * (100_000 // len(piece))) is None


@given(st.text(max_size=400) | st.text(alphabet="what is 12+-*/x%!().,=?", max_size=400))
@settings(max_examples=300)
def test_a_sum_that_is_read_can_be_worked_out(question: str) -> None:
    expression = read_sum(question)
    if expression is not None:
        assert worked_out(expression)


CLAIMS = {
    "24 x 1/6 = 4": {"24 × 1/6 = 4": True},
    "$5 * 3 = $15": {"5 * 3 = 15": True},
    "48/2 = <<48/2=24>>24 and <<3*4=12>>12": {"48/2 = 24": True, "3*4 = 12": True},
    "1,200 + 50 = 1250": {"1,200 + 50 = 1250": True},
    "10% of 50 = 5": {"10% of 50 = 5": True},
    "2+3 = 5 * 4 = 20": {"2+3 = 5 * 4": False, "5 * 4 = 20": True},
    "y = 2 + 3 = 5": {"2 + 3 = 5": True},
    "37 * 48 = 1775.": {"37 * 48 = 1775": False},
    "10/3 = 3.33, 10/3 = 3.34": {"10/3 = 3.33": True, "10/3 = 3.34": False},
    "1/3 = 0": {"1/3 = 0": False},
    "22/7 ≈ 3.14; 2,987 + 45 ≈ 3,000; 22/7 ≈ 4": {
        "22/7 ≈ 3.14": True,
        "2,987 + 45 ≈ 3,000": True,
        "22/7 ≈ 4": False,
    },
    "50/200 * 100 = 25% and 50/200 = 25%": {"50/200 * 100 = 25%": True, "50/200 = 25%": True},
    "**3 + 4 = 7**, 3 * 4 = **13**, 2**3 = 8": {"3 + 4 = 7": True, "3 * 4 = 13": False, "2**3 = 8": True},
    "- 3 + 4 = 7\n* 3 + 5 = 8\n1. 3 + 6 = 9\n2) 3 + 7 = 11": {
        "3 + 4 = 7": True,
        "3 + 5 = 8": True,
        "3 + 6 = 9": True,
        "3 + 7 = 11": False,
    },
    r"\( 3 \times 4 = 12 \) $3 + 4 = 8$": {"3 * 4 = 12": True, "3 + 4 = 8": False},
    "(3 + 4 = 7) (since 2*(3+4) = 14)": {"3 + 4 = 7": True, "2*(3+4) = 14": True},
    "√2 = 1.414 and 3² + 4² = 5²": {"√2 = 1.414": True, "3² + 4² = 5²": True},
    "The answer is -3 + 5 = 2": {"-3 + 5 = 2": True},
    "10 – 3 = 7, 5! = 120": {"10 – 3 = 7": True, "5! = 120": True},
    "3 + 4 = 7. 8 + 2 = 10": {"3 + 4 = 7": True, "8 + 2 = 10": True},
}


@pytest.mark.parametrize(("text", "claims"), CLAIMS.items())
def test_claims_of_an_answer_are_judged(text: str, claims: dict[str, bool]) -> None:
    assert dict(find_equations(text)) == claims


UNCLEAR = [
    *("x = 3", "2x = 6", "a + 3 = 8", "a - 3 = 4", "n(3+4) = 21", "f(3+1) = 16", "y (3 + 4) = 14", "2x + 3 = 7"),
    *("5 = 5", "3 mod 2 = 2", "7 mod 4 + 1 = 4", "half of 10 + 2 = 7", "5 apples + 3 + 2 = 10", "x_1 + 3 = 5"),
    *("17 / 5 = 3 remainder 2", "17/5 = 4 R2", "7/2 = 3 1/2", "7/2 = 3 and 1/2", "9 / 2 = 3 with a remainder of 1"),
    *("3 != 4", "3 + 4 >= 8", "if 3 + 4 == 8:", "500 * 3,000 = 1.5 million", "90 / 60 = 1 hour 30 minutes"),
    *("2 * 3,5 + 1 = 8", "7/4 = 1,75", "1.200 + 50 = 1.250", "3 + 4 = 2 (mod 5)", "2 + 3 = 5x", "3 + 4 = 7y + 2"),
    *("Step 1 - 3 + 4 = 7", "log2(8) + 1 = 4", "sin(30) + 1 = 1.5", "12:30 + 1 = 2", "date=2024-05-01 = 3"),
    *("GMT+3 = 5 + 1", "1/0 = 5", "2 + 2 =", "= = 3 + 4 = = 8", "1 + 2 +\n3 + 4 = 10", "1 + 2\n+ 3 + 4 = 10", ""),
]


@pytest.mark.parametrize("text", UNCLEAR)
def test_what_may_be_right_in_its_context_is_left_out(text: str) -> None:
    assert find_equations(text) == []


@pytest.mark.parametrize(
    "piece", ["3+4=7 ", "(", "1", "1+", "=", "**", "1,", "% of ", "\\frac{", " \t", "- ", "1 x ", "2^.5=", "((1)!=1;"]
)
def test_long_text_of_any_piece_is_searched(piece: str) -> None:
    assert len(find_equations(piece * (100_000 // len(piece)) + "= 3")) <= 200


def test_claims_are_at_most_two_hundred() -> None:
    assert len(find_equations("3 + 4 = 7\n" * 500)) == 200


@given(st.integers(-999, 999), st.integers(1, 999), st.integers(-5, 5), st.sampled_from("+-*"))
def test_claim_is_right_just_when_its_number_is(left: int, right: int, off_by: int, operator: str) -> None:
    claimed = {"+": left + right, "-": left - right, "*": left * right}[operator] + off_by
    [equation] = find_equations(f"We know that {left} {operator} {right} = {claimed} in all.")
    assert equation.is_right == (off_by == 0)


@given(st.text(max_size=300) | st.text(alphabet="0123456789+-*/=().,% x$\n", max_size=300))
@settings(max_examples=300)
def test_any_answer_can_be_searched(text: str) -> None:
    find_equations(text)


async def test_tool_says_the_sum_with_its_result() -> None:
    assert await CALCULATOR.run({"expression": "(3+4)^2"}, "user") == "(3+4)^2 = 49"


@pytest.mark.parametrize("arguments", [{}, {"expression": 5}, {"expression": " "}, {"expression": ["1"]}])
async def test_tool_without_expression_says_what_it_needs(arguments: dict[str, object]) -> None:
    with pytest.raises(ToolFailedError, match="needs"):
        await CALCULATOR.run(arguments, "user")
