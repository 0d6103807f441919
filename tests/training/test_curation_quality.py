"""What is dropped for its quality, and, more important, what is not."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everswarm.training.curation.quality import PROBLEMS, problems
from everswarm.training.curation.words import Words

SHARED = Path(__file__).parents[3] / "shared" / "data"
PROSE = (
    "The river rises in the hills above the town, runs north through three valleys, and meets the sea near an old "
    "harbour where fishing boats still land their catch each morning before the market opens. In winter it floods."
)
MORE_PROSE = (
    "Its water was once dyed blue by the mills along the bank. Nobody swam there then, and the few who fished "
    "threw back whatever they caught; today a footpath follows it from end to end, past gardens, a school, two "
    "bridges of stone and one of iron, and children learn to row where barges lay. The museum keeps the last of "
    "them, together with the tools of its crew, a map that shows each lock, and letters in which the lockkeeper "
    "complains about noise, thieves and ice."
)
LINES = [f"The {thing} of the house was {look} that year" for thing, look in zip("abcdef", "uvwxyz", strict=True)]

REFUSALS = [
    "I'm sorry, but I can't assist with that request.",
    "I’m sorry, but I cannot help with that.",
    "Sorry, I can't help you with that.",
    "I apologize, but I am unable to provide that information.",
    "I cannot fulfill your request.",
    "I can't answer that question.",
    "Unfortunately, I am not able to generate images.",
    "As an AI language model, I don't have personal opinions.",
    "As an AI, I cannot browse the internet.",
    "I am just an AI assistant, so I can't feel pain.",
    "Es tut mir leid, aber ich kann dir dabei nicht helfen.",
    "Als KI-Sprachmodell habe ich keine eigene Meinung.",
    "Leider kann ich diese Frage nicht beantworten.",
    "Je suis désolé, mais je ne peux pas vous aider.",
    "En tant qu'intelligence artificielle, je n'ai pas d'opinion.",
    "Lo siento, pero no puedo ayudarte con eso.",
    "Como modelo de lenguaje, no tengo opiniones propias.",
    "Mi dispiace, ma non posso aiutarti con questo.",
    "Desculpe, mas não posso ajudar com isso.",
    "Sorry, maar ik kan je daar niet mee helpen.",
    "Przykro mi, ale nie mogę pomóc.",
    "Извините, но я не могу помочь с этим.",
    "抱歉,我无法提供这些信息。",
    "作为一个人工智能语言模型,我没有个人观点。",
    "申し訳ありませんが、その質問にはお答えできません。",
    "죄송하지만 그 요청은 도와드릴 수 없습니다.",
]
NO_REFUSALS = [
    "I'm sorry to hear that you feel sad. Here are some things that might help.",
    "Sorry, I was wrong: the answer is 12.",
    "I can't help but smile when I think of that summer.",
    "I cannot believe how fast the year went by!",
    "I'm sorry, but I can't come to your party on Saturday.",
    "A good refusal says why: 'I'm sorry, but I can't assist with that' is too short.",
    "Models often answer 'As an AI language model, I cannot' when they are asked for an opinion.",
    "I'm sorry, I can't open links, but here is how you can do it yourself: save the page, then paste the text.",
    "I'm sorry, but I can't give legal advice. In general:\n1. Read the contract.\n2. Write to the landlord.",
    "Unfortunately, the train does not run on Sundays.",
    "As an artist, I don't have a favourite colour.",
    "As an AI researcher, she cannot share unpublished results.",
    "Es tut mir leid, dass du krank bist. Trink viel Tee.",
    "Je suis désolé pour le retard.",
    "Lo siento, me equivoqué: son doce.",
    "I won't answer the door after midnight, said the old woman.",
    "I'm sorry, but I cannot answer that in one word. " + PROSE + " " + MORE_PROSE,
]
LOOPS = [
    "I love the sea. " * 20,
    "The answer is twelve because we add three and nine. " * 12,
    "First we count the apples in the box. " + "Then we add them up again. " * 30,
    "the the the the " * 20,
    "我喜欢大海。" * 20,
    "ja " * 60,
    "ha" * 60,
]
NO_LOOPS = [
    PROSE,
    "\n".join(LINES),
    "Row, row, row your boat, gently down the stream, merrily, merrily, merrily, merrily, life is but a dream. " * 2,
    "\n".join(
        f"{n} bottles of beer on the wall, {n} bottles of beer. Take one down and pass it around, "
        f"{n - 1} bottles of beer on the wall."
        for n in range(20, 5, -1)
    ),
    "\n\n".join(  # each verse repeats those before it
        f"On the {n} day of the fair my uncle brought to me\n"
        + "\n".join(f"a {gift} of the valley that nobody could see" for gift in reversed(GIFTS))
        for n, GIFTS in ((str(n), ("hen", "cow", "pig", "dog", "cat", "fox", "owl")[:n]) for n in range(1, 8))
    ),
    "\n".join(f"| {n} | yes | no | yes | no |" for n in range(30)),
    "| a | b |\n" + "| yes | yes |\n" * 30,
    "\n".join(" ".join("1" if row == column else "0" for column in range(10)) for row in range(10)),
    "```python\n" + "turtle.forward(10)\nturtle.left(90)\n" * 12 + "```",
    "\n".join(f"{a} x {b} = {a * b}" for a in range(1, 6) for b in range(1, 6)),
    "A verse of the morning and of the bright new day\nthat nobody sang before we came along this way\n"
    "La la la, la la la, sing along\n"
    "Another verse is here about the night\nwith other words to set the story right\n"
    "La la la, la la la, sing along\n",
    "1" + "0" * 100,
    "ACGT" * 30,
]
CUT = [
    PROSE + " When spring comes, the fields beside it are covered with flowers, and the",
    PROSE + " When spring comes, the fields beside it are covered with flowers of",
    PROSE + " When spring comes, the fields beside it are green, the birds return,",
    PROSE + " When spring comes, the fields (which nobody mows any more because of the",
    PROSE + " When spring comes, one sees (",
    PROSE + " When spring comes, the fields are full of unfor-",
    PROSE + " Im Frühling sind die Felder voller Blumen und",
    "Here you are:\n```python\ndef add(a, b):\n    return a +",
]
NOT_CUT = [
    "42",
    "Paris",
    "the",
    "Yes, and",
    "(",
    PROSE,
    PROSE[:-1],
    PROSE + " And that is what it was made for",
    PROSE + " Bye :(",
    PROSE + "\n\nYours sincerely,",
    PROSE + "\n\nBest regards,\nAnna",
    PROSE + " (See also the notes.)",
    PROSE + " The interval is [0, 1) and then (0, 1]",
    PROSE + " Er sagte: „Komm zurück“",
    "```python\nprint(1)\n```",
    "Use ``` to open a block of code.",
    'Config:\n{\n  "a": [1, 2, 3],\n  "b": {"c": 4},\n' + '  "some long key of a long line": "and a value",\n' * 6,
    "春天来了,田野里开满了花。河水从山上流下来,经过三个山谷,最后流入大海。港口旁边有一个老市场,渔民每天早上把鱼卖给附近的居民",
    "ฉันไม่รู้ว่าหนังสืออยู่ที่ไหนและใครเป็นคนเอาไป แม่น้ำไหลจากภูเขาผ่านหุบเขาสามแห่งไปสู่ทะเลใกล้ท่าเรือเก่าที่ชาวประมงยังนำปลามาขาย",
    "milk\nbread\nbutter\n" * 3 + "apples\npears\n" + "\n".join(f"item number {n}" for n in range(20)),
]
GIBBERISH = [
    "asdfghjkl sdfghjkl qwerqwer",
    "lkjsdfg lskdjfh sldkfjg wlkjrtn",
    "asdfasdfasdfasdf",
    "Ã©tÃ© Ã  la plage, trÃ¨s bien, dÃ©jÃ  vu",
    "It\u00e2\u20ac\u2122s the dog\u00e2\u20ac\u2122s bone, isn\u00e2\u20ac\u2122t it?",
    "ab\x00\x01\x02cd\x03\x04ef",
    "\ufffd\ufffd\ufffd\ufffd t\ufffdst",
    "!!!!!!!????????,,,,,,;;;;;;::::::......!!!!!!",
]
NOT_GIBBERISH = [
    PROSE,
    "∫₀¹ x² dx = [x³/3]₀¹ = 1/3; ∀ε>0 ∃δ>0: |x−a|<δ ⇒ |f(x)−f(a)|<ε",
    "$$\\frac{-b \\pm \\sqrt{b^2-4ac}}{2a}$$",
    "++++++++[>++++[>++>+++>+++>+<<<<-]>+>+>->>+[<]<-]>>.",
    "👍👍👍🎉🎉🎉😀😀😀👍👍👍🎉🎉🎉😀😀😀👍👍👍🎉🎉🎉😀😀😀👍👍👍🎉🎉🎉",
    "你好,世界。今天天气很好。",
    "C6H12O6 + 6 O2 -> 6 CO2 + 6 H2O",
    "CC(=O)Oc1ccccc1C(=O)O",
    "https://example.org/a/very/long/path?query=1&other=2#fragment-of-it",
    "QWERTY",
    "MMXXVI",
    "HTTPS, XHTML, HTML",
    "strč prst skrz krk",
    "ATGCGTACCTGGATCCAAATTTGGGCCC ATGCGTACCTGGATCC",
    "... --- ... / .-- .- .. - / .... . .-. . / ... --- ...",
    " /\\_/\\\n( o.o )\n > ^ <\n /   \\\n(_____)\n / | \\\n/__|__\\",
    "Uryyb, guvf vf n frperg zrffntr.",
    "Rechtschreibung, Angstschweiß, Herbststurm",
    "tab\tand\nnew line and \x1b[31mred\x1b[0m",
    "ls -la | grep '^d' && cd ../.. || exit 1",
    "-" * 30,
]


def found(*pairs: tuple[str | None, str | None]) -> list[str | None]:
    asked = pl.Series([question for question, _ in pairs], dtype=pl.String)
    given_ = pl.Series([target for _, target in pairs], dtype=pl.String)
    return problems(asked, given_, Words(given_)).to_list()


def in_answer_to(question: str, target: str) -> str | None:
    return found((question, target))[0]


@pytest.mark.parametrize("target", REFUSALS)
def test_refusal_is_told(target: str) -> None:
    assert in_answer_to("What do you think of it?", target) == "refusal"


@pytest.mark.parametrize("target", NO_REFUSALS)
def test_answer_that_helps_or_speaks_of_refusals_passes(target: str) -> None:
    assert in_answer_to("What do you think of it?", target) is None


def test_refusal_that_was_to_be_translated_passes() -> None:
    assert in_answer_to("Translate: 'No puedo ayudarte'", "I'm sorry, I can't help you with that.") is None


@pytest.mark.parametrize("target", LOOPS)
def test_loop_is_repetition(target: str) -> None:
    assert in_answer_to("What is it?", target) == "repetition"


@pytest.mark.parametrize("target", NO_LOOPS)
def test_songs_tables_code_and_lists_are_no_repetition(target: str) -> None:
    assert in_answer_to("What is it?", target) is None


def test_repetition_that_was_asked_for_passes() -> None:
    assert in_answer_to("Write 'I love the sea' 20 times.", LOOPS[0]) is None


@pytest.mark.parametrize("target", CUT)
def test_text_that_ends_in_the_middle_is_cut_short(target: str) -> None:
    assert in_answer_to("What is it?", target) == "cut short"


@pytest.mark.parametrize("target", NOT_CUT)
def test_text_that_may_end_so_is_not_cut_short(target: str) -> None:
    assert in_answer_to("What is it?", target) is None


@pytest.mark.parametrize("target", GIBBERISH)
def test_gibberish_is_told(target: str) -> None:
    assert in_answer_to("What is it?", target) == "gibberish"


@pytest.mark.parametrize("target", NOT_GIBBERISH)
def test_signs_that_mean_something_are_no_gibberish(target: str) -> None:
    assert in_answer_to("What is it?", target) is None


@pytest.mark.parametrize(
    ("question", "target", "problem"),
    [
        ("What is the capital of Peru?", "What is the capital of Peru?", "echo"),
        ("What is the capital of Peru?", "  what is the capital of peru ", "echo"),
        ("What is the capital of Peru?", "The capital of Peru is Lima.", None),
        ("How are you?", "How are you?", None),
        ("Hello!", "Hello!", None),
        ("Correct this: The dog is here.", "The dog is here.", None),
        ("What is 2 + 2 in the system of base 3?", "What is 2 + 2 in the system of base 4?", None),
    ],
)
def test_question_given_back_is_an_echo(question: str, target: str, problem: str | None) -> None:
    assert in_answer_to(question, target) == problem


def test_first_problem_of_several_is_reported() -> None:
    loop = "I'm sorry, but I can't assist with that. " * 9
    assert in_answer_to("Why is it so?", loop) == "refusal"
    assert in_answer_to(LOOPS[0], LOOPS[0]) == "repetition"


def test_missing_texts_have_no_problem() -> None:
    assert found((None, None), ("Why?", None), (None, "Because."), ("", "")) == [None] * 4
    assert found() == []


SAMPLES = REFUSALS + NO_REFUSALS + LOOPS + NO_LOOPS + CUT + NOT_CUT + GIBBERISH + NOT_GIBBERISH


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(SAMPLES), st.sampled_from(SAMPLES) | st.text(max_size=60))), st.integers(0, 20)
)
def test_problem_of_a_text_does_not_depend_on_the_others(pairs: list[tuple[str, str]], cut: int) -> None:
    whole = found(*pairs)
    assert whole == found(*pairs[:cut]) + found(*pairs[cut:])
    assert set(whole) <= {None, *PROBLEMS}


def test_batch_of_more_than_one_part_keeps_its_order() -> None:
    pairs = [("Why?", target) for target in SAMPLES] * 8
    assert found(*pairs) == found(*pairs[: len(SAMPLES)]) * 8


@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is not here")
@pytest.mark.parametrize("name", ["feedback-math.jsonl", "feedback-instructions.jsonl"])
def test_hardly_any_real_target_is_dropped(name: str) -> None:
    with (SHARED / name).open(encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    pairs = [(record["messages"][-1]["content"], record["correction"] or record["response"]) for record in records]
    dropped = [pair for pair, problem in zip(pairs, found(*pairs), strict=True) if problem]
    assert len(dropped) <= 0.005 * len(pairs), dropped
