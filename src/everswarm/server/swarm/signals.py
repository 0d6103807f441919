"""What a request shows on its face: language, code, mathematics, parts and so on, read without a model. Pure.

It runs for every chat: each word is looked up once, and a pattern is tried only where its words are there. Whatever the
text, no pattern takes more than a time proportional to its length, and no more than READ_CHARACTERS are read.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from everswarm.server.swarm.tools.calculator import read_sum
from everswarm.server.swarm.vocabulary import (
    ASKED,
    CODE_COMPANIONS,
    CODE_LINE,
    CODE_MARKS,
    CODE_WORDS,
    DOCUMENT_WORDS,
    DOCUMENTS,
    EQUATION,
    EQUATION_SIGNS,
    HOW_MANY,
    HOW_MANY_WORDS,
    LANGUAGES,
    LANGUAGES_OF,
    LINE_STARTS,
    LIST_ITEM,
    MATHEMATICS_WORDS,
    MAYBE_CODE_WORDS,
    NUMBER,
    NUMBER_WORDS,
    OF_THE_FOLLOWING,
    OPTION,
    OWNERS,
    PLAN,
    PLAN_CLUES,
    PLAN_WORDS,
    QUANTITY_WORDS,
    REQUEST_WORDS,
    SCRIPT_CHARACTERS,
    SCRIPTS,
    TABLE_WORDS,
    TALK,
    TALK_FILLERS,
    TALK_WORDS,
    TEXT_TASK_WORDS,
    THANKS,
    TIME,
    TIME_WORDS,
    VOCABULARY,
    WORD,
    YEAR,
)

READ_CHARACTERS = 4000  # of a question; of a longer one its beginning and its end, where the question often stands
_END_CHARACTERS = 1000  # of these
PARTS = 3  # questions or list items that make a request one of many parts
_ASCII_WORDS = {code: chr(code) if chr(code).isalpha() else " " for code in range(128)}
_SUM_CHARACTERS, _SUM_WORDS = 300, 20  # a longer message is not one sum, and to find that out costs time
_SMALL_TALK_WORDS = 12  # of the longest small talk
_GREETING_WORDS = 8  # of thanks with something kind behind it
_WORDS_AFTER_TALK = 4  # such as `how are you doing this fine day`
_NEAR_CHARACTERS = 200  # between two words that belong together, such as `first` and `then`


class Signals(NamedTuple):
    """What can be seen of a request without understanding it."""

    known: frozenset[str] = frozenset()  # its words that mean something to the rules
    script: str = "latin"  # its name: cyrillic, han, arabic…
    sum: str | None = None  # the expression, where the whole question is one sum
    code: bool = False
    code_fence: bool = False
    mathematics: bool = False  # a problem with a number as its answer
    numbers: int = 0  # in digits or words; years are none
    choice: bool = False  # A, B or C
    planning: bool = False
    parts: int = 0  # questions, or items of a list, whichever are more
    time: bool = False  # needs the date or the time of now
    documents: bool = False  # asks for what stands in the user's own documents
    small_talk: bool = False
    words: int = 0  # of the question, as far as it is read
    characters: int = 0  # of the whole question
    turns: int = 0  # of the user, with this one
    earlier_code: bool = False  # the last answer before this question had code
    has_system: bool = False
    wants_tools: bool = False  # the client's own
    wants_json: bool = False

    @property
    def language(self) -> str:
        """en, de, fr, es, it, pt, nl; `other` for a script that is not latin; empty where unknown."""
        return _language(self.known, self.words) if self.script == "latin" else "other"


def read_signals(
    messages: Sequence[Mapping[str, Any]], *, wants_tools: bool = False, wants_json: bool = False
) -> Signals:
    """Read the last question of a conversation in OpenAI's shape.

    Args:
        messages: the conversation; parts that are not text are skipped.
        wants_tools: the request brings tools of its own.
        wants_json: the request has a `response_format` other than text.
    """
    position = _last_question(messages)
    whole = "" if position is None else _text(messages[position])
    text = whole if len(whole) <= READ_CHARACTERS else _ends(whole)
    lowered = text.lower().replace("’", "'")
    words = lowered.translate(_ASCII_WORDS).split() if lowered.isascii() else WORD.findall(lowered)
    known = VOCABULARY.intersection(words)
    numbers = _count_numbers(lowered) + len(known & NUMBER_WORDS)
    script = "latin" if lowered.isascii() else _script(lowered)
    is_choice = _is_choice(lowered)
    roles = [message.get("role") for message in messages]
    return Signals(
        known=known,
        script=script,
        sum=read_sum(whole) if numbers and len(words) <= _SUM_WORDS and len(whole) <= _SUM_CHARACTERS else None,
        code=_is_code(text, lowered, known),
        code_fence="```" in text,
        mathematics=_is_mathematics(lowered, known, numbers, is_text_task=not TEXT_TASK_WORDS.isdisjoint(words[:2])),
        numbers=numbers,
        choice=is_choice,
        planning=_is_planning(lowered, known),
        parts=_count_parts(text, is_choice=is_choice),
        time=not known.isdisjoint(TIME_WORDS) and TIME.search(lowered) is not None,
        documents=_asks_documents(lowered, known),
        small_talk=len(words) <= _SMALL_TALK_WORDS and _is_small_talk(lowered, words),
        words=len(words),
        characters=len(whole),
        turns=roles.count("user"),
        earlier_code=_has_earlier_code(messages[:position]) if len(messages) > 1 else False,
        has_system="system" in roles or "developer" in roles,
        wants_tools=wants_tools,
        wants_json=wants_json,
    )


FEATURE_NAMES = (
    "english",
    "german",
    "french",
    "spanish",
    "italian",
    "portuguese",
    "dutch",
    "other_script",
    "code",
    "code_fence",
    "mathematics",
    "numbers",
    "choice",
    "planning",
    "parts",
    "time",
    "documents",
    "small_talk",
    "length",
    "long",
    "turns",
    "earlier_code",
    "has_system",
)


def features(signals: Signals) -> tuple[float, ...]:
    """Return what a classifier reads of `signals`, each in [0, 1], in the order of FEATURE_NAMES.

    Tools and formats that a request brings are left out: they are not stored with it, so nothing is learnt from them.
    """
    spoken = signals.language
    length = min(1.0, math.log1p(signals.words) / math.log1p(READ_CHARACTERS / 5))
    return (
        *(1.0 if spoken == language else 0.0 for language in LANGUAGES),
        float(spoken == "other"),
        float(signals.code),
        float(signals.code_fence),
        float(signals.mathematics),
        min(signals.numbers, 5) / 5,
        float(signals.choice),
        float(signals.planning),
        min(signals.parts, 5) / 5,
        float(signals.time),
        float(signals.documents),
        float(signals.small_talk),
        length,
        length * length,
        min(signals.turns, 10) / 10,
        float(signals.earlier_code),
        float(signals.has_system),
    )


def question_of(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return the text of the last message of the user."""
    position = _last_question(messages)
    return "" if position is None else _text(messages[position])


def _last_question(messages: Sequence[Mapping[str, Any]]) -> int | None:
    return next((at for at in range(len(messages) - 1, -1, -1) if messages[at].get("role") == "user"), None)


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content if part.get("type") == "text")
    return content or ""


def _ends(text: str) -> str:
    return f"{text[: READ_CHARACTERS - _END_CHARACTERS - 1]}\n{text[-_END_CHARACTERS:]}"


def _language(known: frozenset[str], words: int) -> str:
    """Return the language most of whose words are there, if there are enough and no other has as many."""
    counts = dict.fromkeys(LANGUAGES, 0)
    for word in known:
        for language in LANGUAGES_OF.get(word, ()):
            counts[language] += 1
    second, first = sorted(counts.values())[-2:]
    if first == second or first < (1 if words <= 4 else 2):
        return ""
    return max(counts, key=counts.__getitem__)


def _script(text: str) -> str:
    """Return the script of most letters at the beginning of `text`."""
    letters = [character for character in text[: 2 * SCRIPT_CHARACTERS] if character.isalpha()][:SCRIPT_CHARACTERS]
    found = Counter(_script_of(ord(letter)) for letter in letters)
    found.pop("", None)
    if not found or 2 * found.total() < len(letters):
        return "latin"
    return found.most_common(1)[0][0]


def _script_of(code: int) -> str:
    return next((name for end, name in SCRIPTS if code < end), "")


def _is_code(text: str, lowered: str, known: frozenset[str]) -> bool:
    if not known.isdisjoint(CODE_WORDS) or any(mark in lowered for mark in CODE_MARKS):
        return True
    companions = len(known & CODE_COMPANIONS)
    if companions > 1 or (companions and not known.isdisjoint(MAYBE_CODE_WORDS)):
        return True
    if (not known.isdisjoint(LINE_STARTS) or "()" in text or ";" in text) and CODE_LINE.search(text):
        return True
    return _is_query(lowered, known)


def _is_query(lowered: str, known: frozenset[str]) -> bool:
    if not ("select" in known and "from" in known and ("*" in lowered or not known.isdisjoint(TABLE_WORDS))):
        return False
    return _are_near(lowered, "select", "from")


def _are_near(lowered: str, first: str, then: str) -> bool:
    start = lowered.find(first)
    return 0 <= start < lowered.find(then, start, start + _NEAR_CHARACTERS)


def _count_numbers(lowered: str) -> int:
    return sum(1 for number in NUMBER.findall(lowered) if not YEAR.fullmatch(number))


def _is_mathematics(lowered: str, known: frozenset[str], numbers: int, *, is_text_task: bool) -> bool:
    if not known.isdisjoint(MATHEMATICS_WORDS) and (numbers or "=" in lowered or "^" in lowered):
        return True
    if not numbers or is_text_task:
        return False
    if numbers > 1 and (not known.isdisjoint(HOW_MANY_WORDS) or any(words in lowered for words in HOW_MANY)):
        return True
    is_quantity = not known.isdisjoint(QUANTITY_WORDS) or "%" in lowered or "$" in lowered
    if numbers > 1 and is_quantity and any(words in lowered for words in ASKED):
        return True
    return any(sign in lowered for sign in EQUATION_SIGNS) and EQUATION.search(lowered) is not None


def _asks_documents(lowered: str, known: frozenset[str]) -> bool:
    if known.isdisjoint(OWNERS) or known.isdisjoint(DOCUMENT_WORDS):
        return False
    return DOCUMENTS.search(lowered) is not None


def _is_choice(lowered: str) -> bool:
    if any(words in lowered for words in OF_THE_FOLLOWING):
        return True
    if not ("b)" in lowered or "b." in lowered or "b:" in lowered):
        return False
    return {"a", "b"} <= set(OPTION.findall(lowered))


def _is_planning(lowered: str, known: frozenset[str]) -> bool:
    if not known.isdisjoint(PLAN_WORDS):
        return True
    if known.isdisjoint(PLAN_CLUES):
        return False
    if PLAN.search(lowered):
        return True
    return "then" in known and "first" in known and _are_near(lowered, "first", "then")


def _count_parts(text: str, *, is_choice: bool) -> int:
    questions = text.count("?")
    if is_choice or text.count("\n") < PARTS - 1:
        return questions
    return max(questions, len(LIST_ITEM.findall(text)))


def _is_small_talk(lowered: str, words: list[str]) -> bool:
    if not words:
        return False
    phrase = TALK.search(lowered)
    if phrase:  # and nothing much around it: `good morning`, but not `write a good morning song`
        after = WORD.findall(lowered, phrase.end())
        return len(after) <= _WORDS_AFTER_TALK and all(map(_is_kind, WORD.findall(lowered, 0, phrase.start())))
    if words[0] in THANKS and "?" not in lowered and len(words) <= _GREETING_WORDS:
        return REQUEST_WORDS.isdisjoint(words)
    return all(map(_is_kind, words))


def _is_kind(word: str) -> bool:
    return word in TALK_WORDS or word in TALK_FILLERS


def _has_earlier_code(earlier: Sequence[Mapping[str, Any]]) -> bool:
    answer = next((message for message in reversed(earlier) if message.get("role") == "assistant"), None)
    return answer is not None and "```" in _text(answer)[:READ_CHARACTERS]
