import pytest

from everswarm.cli.demo_rules import (
    CENTIMETRE,
    METRE,
    check_date,
    check_quantity,
    check_words,
    count_sentences,
    spell_number,
)
from everswarm.cli.demo_scenario import HELD_OUT, SHOWN, judge, rule_report, scripted_people
from everswarm.cli.demo_tasks import FAMILIES, Task

ASKED = tuple(task for person in scripted_people() for task in person.tasks)


def task_of(subject: str) -> Task:
    return next(task for task in (*ASKED, *HELD_OUT) if task.subject == subject)


def test_twenty_people_ask_six_questions_each():
    people = scripted_people()
    assert len({person.name for person in people}) == 20
    assert {len(person.tasks) for person in people} == {6}


@pytest.mark.parametrize("seed", range(20))
def test_no_two_questions_share_words_or_subject_and_none_is_held_out(seed: int):
    tasks = [task for person in scripted_people(seed) for task in person.tasks] + list(HELD_OUT)
    assert len({task.question for task in tasks}) == len(tasks) == 136
    assert len({task.subject for task in tasks}) == len(tasks)


@pytest.mark.parametrize("seed", range(5))
def test_every_correction_passes_its_own_rule(seed: int):
    tasks = [task for person in scripted_people(seed) for task in person.tasks] + list(HELD_OUT)
    assert [(task.question, task.check(task.correction)) for task in tasks if not task.check(task.correction).ok] == []


def test_a_correction_answers_no_other_question_of_a_number_or_a_date():
    tasks = [task for task in (*ASKED, *HELD_OUT) if task.family in ("units", "dates")]
    crossed = [(a.subject, b.subject) for a in tasks for b in tasks if a is not b and a.check(b.correction).right]
    assert crossed == []


def test_scenario_is_the_same_for_the_same_seed_only():
    asked = [[task.question for person in scripted_people(seed) for task in person.tasks] for seed in (3, 3, 4)]
    assert asked[0] == asked[1] != asked[2]


def test_everyone_asks_something_of_at_least_three_families():
    for person in scripted_people():
        assert len({task.family for task in person.tasks}) >= 3


def test_held_out_questions_cover_each_family_and_three_families_are_shown():
    assert [row.total for row in rule_report(HELD_OUT, [""] * len(HELD_OUT))] == [4, 4, 4, 4, 16]
    assert len({task.family for task in SHOWN}) == len(SHOWN) == 3


@pytest.mark.parametrize(
    "answer",
    [
        "7000 m",
        "7 km is 7,000 m.",
        "That makes 7000 metres.",
        "7 km = 7 000 m.",
        "1 km is 1000 m, so 7 km is 7000 m.",
        "There are seven thousand meters in 7 kilometres.",
        "It is 7000.0 m.",
        "**7000** m",
    ],
)
def test_right_quantity_passes_however_worded(answer: str):
    assert check_quantity(asked=7, expected=7000, unit=METRE)(answer).ok


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "700 m",
        "70000 m",
        "17000 m",
        "7000.5 m",
        "7.000 m",
        "7000 cm",
        "7000 km",
        "7000 m or 700 m",
        "7 km = 1000 m.",
        "The number after the conversion.",
    ],
)
def test_wrong_quantity_fails(answer: str):
    assert not check_quantity(asked=7, expected=7000, unit=METRE)(answer).right


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("800cm", "a space between number and unit, please"),
        ("It is 800.", "the unit is missing: 800 cm"),
        ("It is 800 cm!", "no exclamation marks, please"),
        ("It is 800 cm. Ask me more.", "one sentence, please"),
        ("As an AI, I say 800 cm.", "start with the answer, not with yourself"),
        ("To find out how many centimetres that is you multiply 8 by 100: 800 cm.", "too long: 14 words at most"),
    ],
)
def test_right_quantity_in_bad_style_is_right_but_not_ok(answer: str, why: str):
    assert check_quantity(asked=8, expected=800, unit=CENTIMETRE)(answer) == (False, why, True)


@pytest.mark.parametrize("answer", ["2024-03-05", "The date is 2024-03-05.", "5 March 2024 is 2024\u201103\u201105."])
def test_right_date_passes_however_worded(answer: str):
    assert check_date("2024-03-05")(answer).ok


@pytest.mark.parametrize(
    "answer", ["", "5 March 2024", "2024-05-03", "2024-3-5", "12024-03-05", "2024-03-05 or 2024-03-06"]
)
def test_wrong_date_fails(answer: str):
    assert not check_date("2024-03-05")(answer).right


def test_date_without_hyphens_is_right_in_bad_style():
    assert check_date("2024-03-05")("20240305") == (False, "with hyphens, please: 2024-03-05", True)


@pytest.mark.parametrize(
    "answer", ["Paris.", "It is Paris.", "Paris is the capital.", "France's capital city is Paris"]
)
def test_right_fact_passes_however_worded(answer: str):
    assert task_of("What is the capital of France?").check(answer).ok


@pytest.mark.parametrize("answer", ["A spider has 8 legs.", "Eight legs.", "Spiders have eight of them."])
def test_number_of_a_fact_may_be_spelled(answer: str):
    assert task_of("How many legs does a spider have?").check(answer).ok


@pytest.mark.parametrize("answer", ["A spider has 80 legs.", "Eighteen.", "Six legs.", ""])
def test_wrong_number_of_a_fact_fails(answer: str):
    assert not task_of("How many legs does a spider have?").check(answer).right


def test_words_of_the_question_and_refused_words_do_not_count_as_an_answer():
    assert not task_of("What is a river?").check("A river is a river.").right
    assert not task_of("Which planet do we live on?").check("Earth, or perhaps Mars.").right
    assert not check_words(["ice"], asked="What is frozen water?")("It is Iceland.").right


def test_right_answer_is_rated_5_and_left_alone():
    assert judge(task_of("12 km in m"), "It is 12000 m.") == (5, None, None)


def test_right_answer_that_is_too_long_is_rated_3_and_corrected():
    task = task_of("What is a bicycle?")
    judgement = judge(task, "A bicycle is a vehicle with two wheels that people ride on roads and on paths. It is old.")
    assert judgement == (3, task.correction, "too long: 14 words at most")


def test_wrong_answer_is_rated_1_and_corrected():
    assert judge(task_of("12 km in m"), "It is 120 m.") == (1, "12 km = 12000 m.", "wrong: it is 12000 m")


def test_report_counts_passed_and_right_by_family():
    answers = [task.correction for task in HELD_OUT]
    assert [(row.passed, row.right) for row in rule_report(HELD_OUT, answers)] == [(4, 4)] * 4 + [(16, 16)]
    answers[2] += " And so on, and so on."
    rows = {row.family: row for row in rule_report(HELD_OUT, answers)}
    assert rows[HELD_OUT[2].family] == (HELD_OUT[2].family, 3, 4, 4)
    assert rows["all"] == ("all", 15, 16, 16)
    assert list(rows) == [*FAMILIES, "all"]


def test_report_refuses_a_missing_answer():
    with pytest.raises(ValueError, match="shorter"):
        rule_report(HELD_OUT, ["only one"])


def test_a_decimal_point_ends_no_sentence_and_a_new_line_does():
    assert count_sentences("It is 1.5 m, i.e. 150 cm.") == 1
    assert count_sentences("One\n\n- Two") == 2
    assert count_sentences("") == 0


def test_numbers_are_spelled_in_english():
    assert [spell_number(value) for value in (0, 19, 42, 800, 16000)] == [
        "zero", "nineteen", "forty two", "eight hundred", "sixteen thousand",
    ]  # fmt: skip
