from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everswarm.server.swarm.comparing import agree, comparable, is_comparable, read_choices, refuses, wants_json

CHOICE = "Which is a mammal?\nA) trout\nB) whale\nC) wasp"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("A: 26", "26"),
        ("8 and 18 make 26.\n#### 26", "26"),
        ("The answer is $1,250.00.", "1250"),
        ("So it is \\boxed{42}.", "42"),
        ("\\boxed{\\frac{3}{4}}", "3/4"),
        ("x = 3/4", "3/4"),
        ("26 litres", "26"),
        ("She had 30, gave 4 away. So 26 litres are left.", "26"),
        ("She needs 1 1/2 cups", "3/2"),
        ("It is 50 %", "50%"),
        ("It grew by 12.50 percent.", "25/2%"),
        ("The loss is -$10", "-10"),
        ("24 - 14", "14"),
        ("24 -14", "14"),
        ("30 / 3 = 10 of the 24 apples", "10"),
        ("We get **12** out of 20.", "12"),
        ("about 1.5 million", "1500000"),
        ("Answer: 5 + 5 = 10", "10"),
        ("**Answer:** 7", "7"),
        ("Answer:\n7", "7"),
        ("Answer: there are 24 apples. She eats 4. So 20 are left.", "20"),
        ("The answer is not easy. I count again.\nThe answer is 9. That was it.", "9"),
        ("3,5 kg", "7/2"),
        ("The train leaves at 5:30 PM.", "5:30p"),
        ("<think>maybe 9</think>It is 8.", "8"),
        ("It is 8. I hope this helps!", "8"),
        ("3/0", None),
        ("A: " + "9" * 200, None),
        ("", None),
        ("I don't know, maybe 5", None),
    ],
)
def test_final_number_of_a_mathematical_answer_is_found(answer, expected):
    assert comparable(answer, kind="mathematics") == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("b", "B"),
        ("The answer is B) whale", "B"),
        ("**B**", "B"),
        ("B) whale, for it has lungs", "B"),
        ("A trout is a fish and a wasp an insect, so the answer is (B).", "B"),
        ("Answer: B", "B"),
        ("A: B", "B"),
        ("A) trout\nB) whale\nC) wasp\n\nThe correct answer is B.", "B"),
        ("A whale", "whale"),
        ("D", "d"),
    ],
)
def test_letter_of_a_choice_is_found(answer, expected):
    assert comparable(answer, kind="other", choices=read_choices(CHOICE)) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes, because it has lungs and does not lay any eggs.", "yes"),
        ("**No**", "no"),
        ("No, it is not.", "no"),
        ("No problem", "no problem"),
        ("The Blue Whale.", "blue whale"),
        ("The answer is the blue whale.", "blue whale"),
        ("1969", "1969"),
        ("$1,000", "1000"),
        ("-7", "-7"),
        (".5", "1/2"),
        ("4 July", "4 july"),
        ("Whales have lungs, they breathe air and they feed their young with milk.", None),
        ("...", None),
    ],
)
def test_short_answer_is_compared_by_its_words(answer, expected):
    assert comparable(answer, kind="other") == expected


def test_yes_and_no_of_a_mathematical_question_differ_though_they_name_the_same_number():
    assert comparable("Yes, 97 is prime", kind="mathematics") != comparable("No, not 97", kind="mathematics")


def test_json_is_the_same_whatever_its_layout_and_order():
    one = comparable('{"b": 1.0, "a": [1, 2]}', kind="other")
    other = comparable('```json\n{"a":[1,2],\n "b":1}\n```', kind="other")
    assert one == other == '{"a":[1,2],"b":1}'
    assert comparable('{"a": ' * 300 + "1" + "}" * 300, kind="other") is None


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("0.5", "1/2", True),
        ("50%", "0.5", False),
        ("50%", "50.0 %", True),
        ("3.33", "10/3", True),
        ("10/3", "3.33", True),
        ("0.33", "1/3", True),
        ("3", "10/3", False),
        ("26", "25.6", False),
        ("0.5", "0.46", False),
        ("1000000", "1000001", False),
        ("0.3333333", "1/3", True),
        ("1,250", "1250.00", True),
        ("-10", "10", False),
        ("1/7", "yes", False),
    ],
)
def test_numbers_agree_when_equal_or_rounded(a, b, same):
    forms = [comparable(text, kind="mathematics") for text in (a, b)]
    assert agree(*forms) is same


@given(st.fractions(max_denominator=10**6), st.integers(2, 6))
def test_a_number_agrees_with_itself_rounded(number: Fraction, decimals: int):
    rounded = round(number, decimals)
    is_kept = rounded.denominator > 1 and len(str(abs(rounded * 10**decimals))) > 2
    if is_kept and decimals == len(str(float(rounded)).partition(".")[2]):
        assert agree(str(rounded), str(number))


@given(st.text(max_size=300), st.text(max_size=300), st.sampled_from(["mathematics", "other"]))
def test_any_text_is_compared_without_an_error_and_agreement_is_symmetric(a, b, kind):
    one, other = comparable(a, kind=kind, choices=("A", "B")), comparable(b, kind=kind)
    if one and other:
        assert agree(one, one)
        assert agree(one, other) == agree(other, one)


@given(st.text(max_size=60), st.text(max_size=60))
def test_agree_takes_any_text(a, b):
    assert agree(a, b) == agree(b, a)


@given(
    st.integers(-(10**12), 10**12), st.sampled_from(["A: {}", "#### {}", "It is {:,}.", "\\boxed{{{}}}", "x = {}.00"])
)
def test_whole_number_survives_any_layout(number, layout):
    assert comparable(layout.format(number), kind="mathematics") == str(number)


@pytest.mark.parametrize(
    ("question", "letters"),
    [
        (CHOICE, ("A", "B", "C")),
        ("Pick one: (A) red (B) green", ("A", "B")),
        ("Which is true? a) fire is cold b) ice is cold", ("A", "B")),
        ("Is it\nA. red\nB. green", ("A", "B")),
        ("A) What is a whale?\nB) What is a wasp?", ()),
        ("a) draw a circle b) draw a square", ()),
        ("Who was J. R. R. Tolkien?", ()),
        ("Vitamin C) and B) matter", ()),
        ("", ()),
    ],
)
def test_choices_of_a_question_are_read(question, letters):
    assert read_choices(question) == letters


@pytest.mark.parametrize(
    ("question", "kind", "expected"),
    [
        ("How many apples are left?", "mathematics", True),
        (CHOICE, "other", True),
        ("Is a whale a fish?", "other", True),
        ("Here is a text. Does it name a city?", "documents", True),
        ("Is it better to walk or to run?", "other", False),
        ("Can you write a poem?", "other", False),
        ("Are you well?", "conversation", False),
        ("What is the capital of Peru? Answer with one word.", "other", True),
        ("Reply with only a number: how old is the earth?", "other", True),
        ("List three cities as JSON", "other", True),
        ("Write a function that returns valid JSON", "code", False),
        ("Tell me about whales.", "other", False),
        ("Plan my week. Yes or no?", "planning", False),
    ],
)
def test_a_vote_makes_sense_where_answers_can_be_compared(question, kind, expected):
    assert is_comparable(question, kind) is expected


def test_json_is_wanted_only_where_it_is_asked_for():
    assert wants_json("Return a JSON object with the name")
    assert not wants_json("What is JSON?")


def test_a_short_doubt_is_a_refusal_and_a_long_answer_is_none():
    for text in ("I don't know.", "I'm sorry, but I cannot help with that.", "As an AI language model, I cannot"):
        assert refuses(text)
    for text in ("Ich weiß es leider nicht.", "Je ne sais pas.", "Lo siento, no puedo."):
        assert refuses(text)
    assert not refuses("I know this one: 5.")
    assert not refuses("I can't wait to tell you")
    assert not refuses("I'm not sure, but let us count. " + "One apple and one more. " * 20)


@pytest.mark.parametrize(
    "piece",
    ["1", "1,", "1,111", "A: ", "**", "\\boxed{", "answer is ", "- ", "1/", "{", "[", "(A) ", "\n", " ", "I am "],
)
def test_hostile_text_ends(piece):
    text = piece * (100_000 // len(piece))
    assert not (comparable(text, kind="mathematics", choices=("A", "B")) or "").startswith(text[:6000])
    read_choices(text)
    is_comparable(text, "other")


def test_end_of_a_long_answer_counts():
    assert comparable("word " * 30_000 + "\nA: 26", kind="mathematics") == "26"
