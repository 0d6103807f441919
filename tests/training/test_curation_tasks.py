"""The task of a question, on questions of our own in four languages, and on real ones."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everswarm.training.curation.tasks import TASKS, tasks

SHARED = Path(__file__).parents[3] / "shared" / "data"
LABELLED = {
    "mathematics": [
        "What is 17 * 23?",
        "Solve for x: 2x + 5 = 11",
        "A shop sells pens at 3 for $2. How much do 12 pens cost?",
        "Anna has twice as many stamps as Bea, and Bea has 14. How many do they have together?",
        "Is 91 a prime number?",
        "What is 15% of 80?",
        "Compute the derivative of x^2 sin(x).",
        "Wie viele Äpfel bleiben, wenn ich von 12 Äpfeln 5 esse?",
        "Berechne 144 / 12",
        "Löse die Gleichung 3x - 4 = 8",
        "Combien font 8 fois 7 ?",
        "Résous l'équation x + 3 = 10",
        "¿Cuánto es 25 + 37?",
        "Si tengo 20 euros y gasto 7, ¿cuántos euros me quedan?",
        "Convert 5 miles to kilometres",
        "A train covers 120 km in 1.5 hours. What is its average speed?",
        "Find the roots of x^2 - 5x + 6 = 0",
        "Un rectángulo mide 4 por 6. ¿Cuál es su área?",
        "If 3 painters need 6 days, how many days do 9 painters need?",
        "Was ist die Wurzel aus 225?",
        "simplify 4(x+2)-3x",
        "¿Cuál es el 20% de 150?",
    ],
    "code": [
        "Write a Python function that reverses a string.",
        "Why does this JavaScript code print undefined?",
        "Fix my SQL: SELECT * FORM users",
        "```\nfor i in range(3): print(i\n```\nWhat is wrong?",
        "How do I undo the last commit in git?",
        "Write a bash script that renames all files in a folder.",
        "Explain this regex: ^a+$",
        "Schreibe eine Funktion, die eine Liste sortiert.",
        "Écris une fonction qui inverse une liste.",
        "Escribe una función que sume dos números.",
        "My React component re-renders on every keystroke, how can I stop it?",
        "Was bedeutet NullPointerException in Java?",
        "convert this curl command to python requests",
        "How to center a div with CSS?",
        "what does segmentation fault (core dumped) mean",
        "Crée une classe Python pour un compte bancaire",
        "Optimiere diese SQL-Abfrage",
    ],
    "translation": [
        "Translate 'good morning' into Italian.",
        "How do you say thank you in Japanese?",
        "Übersetze diesen Satz ins Englische: Der Hund schläft.",
        "Wie sagt man 'Danke' auf Spanisch?",
        "Traduis cette phrase en anglais : le chat dort.",
        "Comment dit-on 'bonjour' en allemand ?",
        "Traduce al inglés: el perro duerme.",
        "¿Cómo se dice 'gato' en francés?",
        "What is the translation of this Latin proverb?",
        "Could you put this into Spanish: I miss you",
        "Was heißt 'butterfly' auf Deutsch?",
        "translate to german: where is the station",
        "Übersetze: I am hungry",
        "¿Qué significa 'serendipity' en español?",
    ],
    "summary": [
        "Summarize this article in three sentences.",
        "Give me a summary of the French Revolution.",
        "TL;DR please: the meeting began at nine and went on and on.",
        "What are the key points of this text?",
        "Fasse den folgenden Text zusammen.",
        "Schreib eine Zusammenfassung dieses Kapitels.",
        "Résume ce texte en deux phrases.",
        "Resume el siguiente artículo.",
        "Haz un resumen de este capítulo.",
        "Can you sum up chapter three for me?",
        "Kannst du mir das kurz zusammenfassen?",
        "Shorten this report to five bullet points",
        "Écris un résumé de ce chapitre",
        "Give the main idea of the passage.",
    ],
    "rewriting": [
        "Rewrite this paragraph so that a child understands it.",
        "Correct the grammar: He go to school.",
        "Make this email more polite: Send me the file.",
        "Rephrase: I can not come today.",
        "Proofread my cover letter.",
        "Formuliere diesen Satz um: Ich kann nicht.",
        "Korrigiere meinen Text.",
        "Reformule cette phrase.",
        "Corrige les fautes : il sont parti.",
        "Reescribe este párrafo con un tono formal.",
        "Make it sound friendlier: no refunds.",
        "Améliore ce paragraphe.",
        "Can you make this paragraph sound more formal?",
        "Überarbeite meinen Lebenslauf.",
        "Fix the typos in this mail",
    ],
    "extraction": [
        "Extract all dates from the text below.",
        "Classify the sentiment of this review: I loved it.",
        "List all the people mentioned in this paragraph.",
        "Which category? Classify the mail as spam or not.",
        "Identify the verbs in this sentence.",
        "Extrahiere alle Namen aus dem Text.",
        "Klassifiziere diese Bewertung als positiv oder negativ.",
        "Extrais les noms propres du texte.",
        "Extrae las fechas de este texto.",
        "Pull out the phone numbers from the text below",
        "Is this tweet positive or negative? 'Worst day ever'",
        "Which people are named in this article? List them.",
        "Label each sentence as fact or opinion.",
        "Extrae los nombres de las empresas",
    ],
    "creative": [
        "Write a poem about autumn.",
        "Tell me a joke about cats.",
        "Come up with a slogan for a bakery.",
        "Write a short story about a lost robot.",
        "Draft an email to my landlord about the heating.",
        "Schreibe ein Gedicht über das Meer.",
        "Erfinde ein Märchen mit einem Drachen.",
        "Écris un poème sur la pluie.",
        "Raconte-moi une histoire de pirates.",
        "Escribe un cuento sobre un gato.",
        "Write a limerick about a doctor.",
        "Give me a name for my new café",
        "Rédige une lettre de motivation pour un poste de vendeur",
        "Write lyrics about rain in April",
        "Write a birthday message for my 60 year old dad",
        "Write a bedtime story for my daughter",
        "Schreib mir eine lustige Einladung zum Geburtstag",
        "Inventa un eslogan para una panadería",
        "Pretend you are a pirate and greet me",
    ],
    "question": [
        "What is the capital of Australia?",
        "Why is the sky blue?",
        "Explain how a fridge works.",
        "Who wrote Faust?",
        "What's the difference between a crocodile and an alligator?",
        "Recommend a book about Rome.",
        "Was ist ein schwarzes Loch?",
        "Warum ist der Himmel blau?",
        "Erkläre mir die Relativitätstheorie.",
        "Quelle est la capitale du Pérou ?",
        "Pourquoi les feuilles tombent-elles ?",
        "¿Quién pintó el Guernica?",
        "¿Por qué es salado el mar?",
        "Does coffee stunt growth?",
        "how do vaccines work",
        "Welche Sprache spricht man in Brasilien?",
        "Explica qué es la inflación",
        "Who won the 1998 World Cup and what was the score in the final?",
        "What is the population of France in 2020 compared to 1990?",
        "How much protein is in an egg?",
        "How long do I boil 2 eggs?",
        "When did the Berlin Wall fall?",
        "Où se trouve le Kilimandjaro ?",
        "What are the side effects of ibuprofen?",
        "Is it safe to eat raw eggs?",
        "Erkläre den Unterschied zwischen Wetter und Klima",
    ],
    "chat": [
        "Hi!",
        "Hello, how are you?",
        "Thanks a lot",
        "Good morning",
        "I'm so bored",
        "Who are you?",
        "Hallo, wie geht es dir?",
        "Danke schön",
        "Bonjour, ça va ?",
        "Merci beaucoup",
        "Hola, ¿qué tal?",
        "Gracias",
        "lol",
        "hey there",
        "you're funny",
        "Buenas noches",
        "ok thanks",
        "Good evening!",
        "Ça va bien ?",
        "thank you so much",
    ],
    "other": ["asdf", "", "Lisbon", "👍", "Banana, apple, pear"],
}


def test_every_task_is_labelled_and_there_are_enough_questions() -> None:
    assert tuple(LABELLED) == TASKS
    assert sum(map(len, LABELLED.values())) >= 80


def test_most_labelled_questions_are_told() -> None:
    pairs = [(task, question) for task, questions in LABELLED.items() for question in questions]
    found = tasks(pl.Series([question for _, question in pairs])).to_list()
    wrong = [(question, task, got) for (task, question), got in zip(pairs, found, strict=True) if got != task]
    assert len(wrong) <= 0.05 * len(pairs), wrong


def test_missing_question_is_other() -> None:
    assert tasks(pl.Series([None, ""], dtype=pl.String)).to_list() == ["other", "other"]
    assert tasks(pl.Series([], dtype=pl.String)).to_list() == []


@pytest.mark.parametrize("filler", ["The sea was calm. ", "Das Meer war ruhig. ", "海很平静。"])
def test_task_is_told_whether_it_comes_before_or_after_a_long_text(filler: str) -> None:
    text = filler * 100
    found = tasks(pl.Series([f"Summarize the following.\n\n{text}", f"{text}\n\nSummarize the text above."]))
    assert found.to_list() == ["summary", "summary"]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from([text for texts in LABELLED.values() for text in texts]) | st.text(max_size=40)),
    st.integers(0, 20),
)
def test_task_of_a_question_does_not_depend_on_the_others(questions: list[str], cut: int) -> None:
    whole, parts = pl.Series(questions, dtype=pl.String), (questions[:cut], questions[cut:])
    found = [task for part in parts for task in tasks(pl.Series(part, dtype=pl.String))]
    assert tasks(whole).to_list() == found
    assert set(found) <= set(TASKS)


def real_questions(name: str) -> list[str]:
    with (SHARED / name).open(encoding="utf-8") as lines:
        return [json.loads(line)["messages"][-1]["content"] for line in lines]


@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is not here")
def test_real_word_problems_are_mathematics() -> None:
    found = tasks(pl.Series(real_questions("feedback-math.jsonl"))).to_list()
    assert found.count("mathematics") >= 0.99 * len(found)


@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is not here")
def test_real_instructions_are_of_many_tasks() -> None:
    found = tasks(pl.Series(real_questions("feedback-instructions.jsonl"))).to_list()
    assert len(set(found)) >= 8
    assert found.count("mathematics") <= 0.1 * len(found)
    assert found.count("other") <= 0.2 * len(found)
