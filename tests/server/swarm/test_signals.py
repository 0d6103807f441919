"""What is read of a request without a model."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everswarm.server.swarm.signals import FEATURE_NAMES, READ_CHARACTERS, Signals, features, read_signals


def read(text, **more) -> Signals:
    return read_signals([{"role": "user", "content": text}], **more)


def test_parts_of_a_message_are_read_as_one_text_and_pictures_are_skipped():
    parts = [
        {"type": "text", "text": "Fix my Python"},
        {"type": "image_url", "image_url": {"url": "data:"}},
        {"type": "text", "text": "please"},
    ]
    assert read(parts) == read("Fix my Python\nplease")


def test_only_the_last_question_counts_and_the_conversation_is_measured():
    turns = [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": "Write a Python function"},
        {"role": "assistant", "content": "```python\npass\n```"},
        {"role": "user", "content": "Is Rome old?"},
    ]
    found = read_signals(turns)
    assert (found.code, found.turns, found.has_system, found.earlier_code) == (False, 2, True, True)
    assert not read_signals(turns[:2]).earlier_code


@pytest.mark.parametrize("messages", [[], [{"role": "system", "content": "x"}], [{"role": "user", "content": None}]])
def test_conversation_without_a_question_has_no_signals(messages):
    found = read_signals(messages)
    assert (found.words, found.language, found.sum, found.code) == (0, "", None, False)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("What is the capital of France?", "en"),
        ("Wie heißt die Hauptstadt von Frankreich und wer wohnt dort?", "de"),
        ("Quelle est la capitale de la France et pourquoi est-ce que je dois y aller ?", "fr"),
        ("¿Cuál es la capital de Francia y por qué está en el norte?", "es"),
        ("Qual è la capitale della Francia e perché non è nel sud?", "it"),
        ("Qual é a capital da França e por que não é em outro lugar?", "pt"),
        ("Wat is de hoofdstad van Frankrijk en waarom is het niet een dorp?", "nl"),
        ("xyzzy plugh", ""),
    ],
)
def test_language_is_told_by_its_frequent_words(text, language):
    found = read(text)
    assert (found.language, found.script) == (language, "latin")


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Какая столица Франции?", "cyrillic"),
        ("法国的首都是什么？", "han"),
        ("フランスの首都はどこですか", "kana"),
        ("프랑스의 수도는 어디입니까?", "hangul"),
        ("ما هي عاصمة فرنسا؟", "arabic"),
        ("Ποια είναι η πρωτεύουσα;", "greek"),
        ("फ्रांस की राजधानी क्या है?", "devanagari"),
    ],
)
def test_other_script_is_named(text, script):
    found = read(text)
    assert (found.language, found.script) == ("other", script)


def test_emoji_and_a_foreign_word_do_not_make_another_script():
    assert read("What does the word дом mean? 😀😀").script == "latin"


@pytest.mark.parametrize(
    "text",
    [
        "Why does this fail?\n```\nx = 1\n```",
        "Write a Python function that sorts a list",
        "def f(x): return x",
        "fix my Python",
        "SELECT name FROM people WHERE age > 3",
        "Schreibe ein Programm mit einer Funktion für Listen",
        "How do I handle errors in a Rust function?",
        "import numpy\nprint(1)",
        "public static void main",
    ],
)
def test_code_is_seen(text):
    assert read(text).code


@pytest.mark.parametrize(
    "text",
    [
        "From Paris to Rome, how far is it?",
        "Import taxes in Germany: who pays them?",
        "Please select the best gift from this list of toys",
        "How do I remove rust from iron?",
        "Is Java an island?",
        "Class of 1999: where are they now?",
        "Public transport in Berlin",
        "Write a script for a school play",
    ],
)
def test_words_that_are_also_english_are_not_code(text):
    assert not read(text).code


@pytest.mark.parametrize(
    "text",
    [
        "Ann had 12 apples and gave 5 to Bob. How many apples are left?",
        "A shirt costs $20 and is reduced by 15%. What is the new price?",
        "Solve 3x + 4 = 19",
        "Tom has twice as many books as Jane, who has 7. How many do they have altogether?",
        "Wie viele Äpfel bleiben insgesamt, wenn 3 von 10 fehlen? Wie viel sind das?",
        "What is the derivative of x^2?",
    ],
)
def test_mathematics_is_seen(text):
    assert read(text).mathematics


@pytest.mark.parametrize(
    "text",
    [
        "How many people live in Rome?",
        "Who ruled between 1815 and 1848?",
        "How many people died in Rome in 1600 and in 1700?",
        "Summarize this: shares rose 3% to $20, total sales were 5 million, did they cost more?",
        "What percentage of people like cats?",
        "An integral part of the team",
    ],
)
def test_numbers_alone_are_not_mathematics(text):
    assert not read(text).mathematics


def test_whole_message_that_is_a_sum_is_read_as_an_expression():
    assert read("What is 12 * (3 + 4)?").sum
    assert read("Ann had 12 apples and gave 5 to Bob. How many are left?").sum is None
    assert read("12 * 3 " + "and so on " * 40).sum is None


def test_choice_is_no_list_of_parts():
    letters = read("Which is a fruit?\nA) stone\nB) apple\nC) iron")
    numbers = read("Which of the following is a fruit?\n1. stone\n2. apple\n3. iron")
    assert (letters.choice, numbers.choice) == (True, True)
    assert (letters.parts, numbers.parts) == (1, 1)
    assert not read("Plan B is bad. A: no.").choice


def test_questions_and_list_items_are_counted():
    assert read("Who was Ada? Where did she live? What did she write?").parts == 3
    assert read("1. book a room\n2. find a speaker\n3. invite people").parts == 3
    assert read("- a\n* b\n• c\n- d").parts == 4


@pytest.mark.parametrize(
    "text",
    [
        "Plan a weekend in Rome",
        "Explain it step by step",
        "What are the pros and cons of cats?",
        "First we eat and then we leave, who does what?",
    ],
)
def test_planning_is_seen(text):
    assert read(text).planning


@pytest.mark.parametrize(
    "text",
    [
        "What day is it?",
        "What's the time?",
        "what time is it in Tokyo?",
        "Tell me today's date",
        "What is the current date and time?",
        "How many days until Christmas?",
        "What’s the date today?",
        "Wie spät ist es?",
        "Quelle heure est-il ?",
        "¿Qué hora es?",
        "Che ore sono?",
        "Que horas são?",
        "Hoe laat is het?",
    ],
)
def test_question_about_now_is_seen(text):
    assert read(text).time


@pytest.mark.parametrize(
    "text",
    [
        "How much time does it take to boil an egg?",
        "What time does the shop open on a usual day?",
        "What day of the week was 4 July 1776?",
        "What is the best time of the year to visit Rome?",
        "What date did the war end?",
    ],
)
def test_question_with_a_time_in_it_is_not_about_now(text):
    assert not read(text).time


@pytest.mark.parametrize(
    "text",
    [
        "What do my notes say about Rome?",
        "According to my contract, when may I leave?",
        "Look in my documents for the invoice",
        "Summarise our uploaded files",
        "Was steht in meinen Unterlagen über Rom?",
        "Que dit le contrat dans mes documents ?",
    ],
)
def test_question_for_their_own_documents_is_seen(text):
    assert read(text).documents


@pytest.mark.parametrize("text", ["According to my doctor I should rest", "What is a file?", "My notes are lost"])
def test_other_possessions_are_no_documents(text):
    assert not read(text).documents


@pytest.mark.parametrize(
    "text",
    [
        "Hi!",
        "Hello there",
        "How are you?",
        "Thanks, that was kind!",
        "who are you",
        "Good morning, my friend",
        "Danke!",
    ],
)
def test_small_talk_is_seen(text):
    assert read(text).small_talk


@pytest.mark.parametrize(
    "text",
    [
        "Hi, what is the capital of France?",
        "Thanks, now write it in French",
        "Write a good morning message for my boss",
        "How are you able to compute integrals of any function?",
        "ok, go on",
    ],
)
def test_question_behind_a_greeting_is_not_small_talk(text):
    assert not read(text).small_talk


def test_of_a_long_text_the_beginning_and_the_end_are_read():
    found = read("Here is a story. " + "word " * 5000 + "Rewrite it as a Python program")
    assert found.code
    assert found.characters > 25_000
    assert found.words < READ_CHARACTERS


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "piece",
    [
        *(
            "first ",
            "\n",
            "select ",
            "def\n",
            "1. ",
            "a) ",
            "what is the time",
            "in my ",
            "my notes ",
            "import a.",
            "; ",
        ),
        *("1+", "(1", "((", "x =", "how many days ", "😀", "я ", "1,1,", "how are you ", " ", "9", "select * from "),
    ],
)
def test_no_text_keeps_the_router_busy(piece):
    for _ in range(100):
        read(piece * (READ_CHARACTERS // len(piece)))
        read(piece * 50)


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=400), turns=st.integers(1, 30))
def test_features_are_bounded_and_in_order_for_any_text(text, turns):
    values = features(read_signals([{"role": "user", "content": text}] * turns))
    assert len(values) == len(FEATURE_NAMES)
    assert all(0 <= value <= 1 for value in values)


def test_features_have_their_names():
    found = features(read("Wie schreibe ich die Funktion und das Programm in Python?"))
    named = dict(zip(FEATURE_NAMES, found, strict=True))
    assert (named["german"], named["english"], named["code"], named["small_talk"]) == (1, 0, 1, 0)
