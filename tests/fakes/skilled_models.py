"""Fakes: models of known skill, and generated questions whose right answers are known. No model is behind them.

Whether a model is right is a table by model, question and sample, drawn from a rate for each kind of question. Nobody
else sees the table: routers, checks and strategies see texts only. Words count as tokens.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from everswarm.llm.fake import FakeChatModel
from everswarm.llm.protocol import ChatModel, Chunk, Payload
from everswarm.server.database import Database
from everswarm.server.gateway import Answered, Call, Gateway
from everswarm.server.gateway.endpoints import Endpoint
from everswarm.server.gateway.quota import Quota
from everswarm.server.gateway.quota_store import open_quota_store
from everswarm.server.swarm.comparing import agree, comparable
from everswarm.server.swarm.kinds import StrategyName
from everswarm.server.swarm.requests import Wishes
from everswarm.server.swarm.run import text_of
from everswarm.server.swarm.service import Swarm
from everswarm.server.swarm.trace import Traced
from everswarm.settings import GatewaySettings, RoleSettings, Settings, SwarmSettings

Subject = Literal["mathematics", "code", "other"]
REFUSAL = "I'm not able to answer that with certainty, because I do not have enough information about it."
MOST_TRIES = 10_000  # to find a question that is not there yet
STAYS_RIGHT, TURNS_RIGHT = 0.92, 0.2  # of a sample at a temperature, where the table says right, and wrong
_BLOCK = re.compile(r"```python\n(.*?)(?:\n```|\Z)", re.DOTALL)
_FENCED = re.compile(r'<data source="[^"]*" id="(\w+)">\n(.*?)\n</data id="\1">', re.DOTALL)
_CHECKED = re.compile(r"\AQuestion:\n=====\n(.*?)\n=====\nAnswer:\n=====\n(.*)\n=====\nText between", re.DOTALL)


@dataclass(frozen=True)
class Question:
    """A question, its right answer, and wrong ones by what is wrong in them."""

    id: str
    subject: Subject
    text: str
    final: str  # what tells a right answer: a number, a program, a few words
    right: str
    wrong: Mapping[str, str]

    def is_right(self, answer: str) -> bool:
        """Say whether `answer` comes to the right result, however it is worded."""
        if self.subject == "mathematics":
            said = comparable(answer, kind="mathematics")
            return said is not None and agree(said, self.final)
        if self.subject == "code":
            return any(block.strip() == self.final for block in _BLOCK.findall(answer))
        return self.final in answer

    def result_of(self, answer: str) -> str:
        """Return what two answers that say the same have in common."""
        if self.subject == "mathematics":
            return comparable(answer, kind="mathematics") or ""
        return "".join(_BLOCK.findall(answer)) or answer


def make_questions(count: int, *, seed: int = 0) -> list[Question]:
    """Return `count` questions of each subject, all different; the same for the same seed."""
    chance = random.Random(f"questions {seed}")
    makers = (_word_problem, _code_question, _fact)
    questions: list[Question] = []
    for make in makers:
        made: dict[str, Question] = {}
        for _ in range(MOST_TRIES):
            question = make(chance)
            made.setdefault(question.text, question)
            if len(made) == count:
                break
        else:
            raise ValueError(f"there are no {count} different questions of this kind; ask for fewer")
        questions += made.values()
    return questions


def halves(questions: Sequence[Question]) -> tuple[list[Question], list[Question]]:
    """Return the questions to tune on, and those to test on."""
    return list(questions[::2]), list(questions[1::2])


class SkilledModel(FakeChatModel):
    """A fake: answers questions right at a known rate, and the prompts of the swarm as a model would."""

    def __init__(
        self,
        name: str,
        questions: Sequence[Question],
        *,
        skill: Mapping[Subject, float],
        checks: float = 0.9,
        is_confident: bool = False,
        padding: int = 0,
        seed: int = 0,
    ) -> None:
        """Know `questions`.

        Args:
            name: of the model.
            questions: all that it may be asked; to any other it says something short.
            skill: by subject, the share that it answers right at temperature 0.
            checks: the share of answers that it judges well when it is asked yes or no.
            is_confident: it never refuses, and says yes to whatever it checks.
            padding: words that it adds to each answer.
            seed: of its table.
        """
        super().__init__(self._say, model=name)
        self._by_text = {question.text: question for question in questions}
        self._skill, self._checks, self._is_confident = dict(skill), checks, is_confident
        self._padding, self._seed = padding, seed

    def is_right(self, question: Question, sample: int = 0) -> bool:
        """Return the entry of the table; sample 0 is the one at temperature 0."""
        base = self._draw(question.id).random() < self._skill[question.subject]
        if not sample:
            return base
        return self._draw(question.id, sample).random() < (STAYS_RIGHT if base else TURNS_RIGHT)

    def answer(self, question: Question, sample: int = 0) -> str:
        """Return what it says to `question`."""
        if self.is_right(question, sample):
            return question.right
        kinds = [kind for kind in question.wrong if not (self._is_confident and kind in ("refusal", "unparsable"))]
        return question.wrong[self._draw("wrong", question.id, sample).choice(kinds)]

    async def chat(self, payload: Payload, *, heard: dict[str, str] | None = None) -> dict[str, Any]:
        """Return the answer, cut at the limit of the request as a real endpoint cuts it."""
        response = await super().chat(payload, heard=heard)
        choice = response["choices"][0]
        whole, limit = choice["message"]["content"], _limit(payload)
        if len(whole.split()) > limit:
            choice["message"]["content"] = _first_words(whole, limit)
            choice["finish_reason"] = "length"
            usage = response["usage"]
            usage["completion_tokens"] = limit
            usage["total_tokens"] = usage["prompt_tokens"] + limit
        return response

    async def stream(
        self, payload: Payload, *, heard: dict[str, str] | None = None
    ) -> AsyncGenerator[list[Chunk], None]:
        """Yield the answer that `chat` gives, word by word."""
        response = await self.chat(payload)
        text = response["choices"][0]["message"]["content"]
        told = FakeChatModel([text], model=self.model)
        async for together in told.stream(payload):
            for chunk in together:
                if "usage" in chunk:
                    chunk["usage"] = response["usage"]
            yield together

    def _say(self, payload: Payload) -> str:
        messages = payload["messages"]
        last = _text(messages[-1])
        if (checked := _CHECKED.match(last)) is not None:
            return self._judge(checked[1], checked[2])
        if "Choose the assistant" in _text(messages[0]):
            return self._decide(_text(messages[0]), last)
        if "Name the 2 to" in last:
            return json.dumps({"parts": [line for line in last.splitlines() if line in self._by_text][:4]})
        if "drafts of an answer" in last or "answers to the parts" in last:
            return self._write(last)
        question = self._find(last)
        if question is None:
            return "That is all that there is to say about it."
        sample = int(payload.get("seed") or 0) if payload.get("temperature") else 0
        return self.answer(question, sample) + " indeed" * self._padding

    def _judge(self, asked: str, shown: str) -> str:
        question = self._find(asked)
        if self._is_confident or question is None:
            return "Yes"
        is_seen = self._draw("check", question.id, shown).random() < self._checks
        return "Yes" if question.is_right(shown) is is_seen else "No"

    def _decide(self, told: str, asked: str) -> str:
        """Name who is said to be good at the subject, as a coordinator reads it; a tenth of the time, badly."""
        question, kinds = self._find(asked), dict(re.findall(r"^- (\w+): (.*)$", told, re.MULTILINE))
        if question is None or self._draw("decide", asked).random() < 0.1:
            return "I think it depends on the question."
        good = [name for name, good_at in kinds.items() if question.subject in good_at]
        return json.dumps({"role": (good or list(kinds))[0]})

    def _write(self, last: str) -> str:
        """Put parts side by side; of drafts say what most of them say."""
        texts = [str(text) for _, text in _FENCED.findall(last)]
        if "answers to the parts" in last:
            return "\n\n".join(texts)
        question = self._find(last)
        results = [text if question is None else question.result_of(text) for text in texts]
        return texts[results.index(Counter(results).most_common(1)[0][0])]

    def _find(self, text: str) -> Question | None:
        """Return the question that stands last in `text`."""
        if text in self._by_text:
            return self._by_text[text]
        within = [(text.rfind(known), question) for known, question in self._by_text.items() if known in text]
        return max(within, key=lambda found: found[0])[1] if within else None

    def _draw(self, *about: object) -> random.Random:
        return random.Random(f"{self._seed} {self.model} {about}")


class ToldModel(FakeChatModel):
    """A fake that says what a function of the payload says: a text, a message, an error to raise; None: it hangs."""

    def __init__(self, tell: Callable[[Payload], str | dict[str, Any] | Exception | None], *, model: str) -> None:
        super().__init__(lambda payload: "", model=model)
        self._tell = tell

    async def chat(self, payload: Payload, *, heard: dict[str, str] | None = None) -> dict[str, Any]:
        """Return what it is told to say."""
        response = await super().chat(payload, heard=heard)
        await asyncio.sleep(0)  # as whoever is asked over a wire
        told = self._tell(payload)
        if isinstance(told, Exception):
            raise told
        if told is None:
            await asyncio.Event().wait()
        message = {"role": "assistant", "content": told} if isinstance(told, str) else told
        prompt, answer = response["usage"]["prompt_tokens"], len(str(told).split())
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
        return {**response, "choices": [choice], "usage": usage}

    async def stream(
        self, payload: Payload, *, heard: dict[str, str] | None = None
    ) -> AsyncGenerator[list[Chunk], None]:
        """Yield the text word by word."""
        response = await self.chat(payload)
        async for together in FakeChatModel([response["choices"][0]["message"]["content"]]).stream(payload):
            for chunk in together:
                if "usage" in chunk:
                    chunk["usage"] = response["usage"]
            yield together


class Asked(NamedTuple):
    """An answer, and how it came about."""

    answered: Answered
    trace: Traced

    @property
    def text(self) -> str:
        """What was said."""
        return text_of(self.answered)

    @property
    def tokens(self) -> int:
        """Of all calls."""
        return self.trace.prompt_tokens + self.trace.completion_tokens


class FakeSwarm:
    """The real swarm and gateway in this process, with fakes where the models would be."""

    def __init__(
        self,
        home: Path,
        database: Database,
        models: Mapping[str, ChatModel],
        *,
        roles: Mapping[str, RoleSettings] | None = None,
        swarm: SwarmSettings | None = None,
        quotas: Mapping[str, Quota] | None = None,
        retries: int = 0,
    ) -> None:
        """Serve each role of `models` by an endpoint of that name."""
        endpoints = [
            Endpoint(
                role, model=getattr(client, "model", role), roles=[role], client=client, quota=(quotas or {}).get(role)
            )
            for role, client in models.items()
        ]
        self.gateway = Gateway(
            endpoints, store=open_quota_store(home=home, database_url=None), settings=GatewaySettings(retries=retries)
        )
        settings = Settings(home=home, roles=dict(roles or {}), swarm=swarm or SwarmSettings())
        self.swarm = Swarm(self.gateway, database, settings)

    async def ask(
        self,
        said: str | Sequence[Mapping[str, Any]],
        strategy: StrategyName | None = None,
        *,
        model: str = "everswarm",
        **fields: Any,
    ) -> Asked:
        """Return the answer to a text or to a conversation."""
        messages = [{"role": "user", "content": said}] if isinstance(said, str) else list(said)
        call = Call({"model": model, "messages": messages, **fields}, (), user="ann")
        return Asked(*await self.swarm.try_out(call, Wishes(strategy=strategy)))


def _limit(payload: Payload) -> int:
    return int(payload.get("max_tokens") or payload.get("max_completion_tokens") or 10**9)


def _first_words(text: str, count: int) -> str:
    found = re.match(rf"(?:\s*\S+){{{count}}}", text)
    return found[0] if found else text


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content)
    return str(content or "")


_PEOPLE = ("Anna", "Ben", "Carla", "David", "Emma", "Farid", "Grace", "Hiro", "Ines", "Jonas")
_THINGS = ("marbles", "pencils", "stickers", "apples", "cookies", "stamps", "cards", "shells")


def _word_problem(chance: random.Random) -> Question:
    """A problem of three steps: a product, less something, and more of something."""
    who, what = chance.choice(_PEOPLE), chance.choice(_THINGS)
    a, b = chance.randint(6, 24), chance.randint(7, 19)
    less, more = chance.randint(11, 35), chance.randint(12, 48)
    text, begin, middle, end = chance.choice(_STORIES)
    names = {"who": who, "what": what, "a": a, "b": b, "less": less, "more": more}
    product, rest = a * b, a * b - less
    final = rest + more
    slip = chance.choice((-10, 10, 20))

    def worked(first: int, second: int, last: int, *, ending: str | None = None) -> str:
        steps = (
            f"Let's go through it step by step, so that nothing is left out. {begin.format(**names)}, so we multiply "
            f"the two numbers: {a} * {b} = {first}. {middle.format(**names)}, which has to be taken away from what was "
            f"there at the beginning: {first} - {less} = {second}. "
        )
        added = f"{end.format(**names)}, and that is added in the end: {second} + {more} = {last}. "
        return steps + (ending if ending is not None else added + f"So the answer is {last}.")

    wrong = {
        "equation": worked(product + slip, rest + slip, final + slip),
        "forgotten": worked(product, rest, final, ending=f"Nothing else changes it. So the answer is {rest}."),
        "misread": (
            f"Let's think about what is asked here. {begin.format(**names)}. {middle.format(**names)}, but that was "
            f"there from the start and does not change the total. So the answer is {product + more}."
        ),
        "refusal": REFUSAL,
    }
    asked = text.format(**names)
    return Question(asked, "mathematics", asked, str(final), worked(product, rest, final), wrong)


_STORIES = (
    (
        "{who} has {a} boxes with {b} {what} in each box. On Monday {who} gives {less} of the {what} to a friend, and "
        "on Tuesday {who} buys {more} new ones. How many {what} does {who} have now?",
        "There are {a} boxes, and each of them holds {b} {what}",
        "Then {less} of them are given to a friend",
        "On the next day {who} buys {more} new {what}",
    ),
    (
        "A shop gets {a} crates of {what} with {b} in every crate. {less} of them are broken and thrown away. Later "
        "{who} brings {more} more to the shop. How many {what} can the shop sell altogether?",
        "The shop gets {a} crates, and in every crate there are {b} {what}",
        "Of these, {less} are broken and cannot be sold at all",
        "After that {who} brings {more} more of them to the shop",
    ),
    (
        "{who} puts {b} {what} a day into a jar for {a} days. Then {who} takes {less} out for a party, and a neighbour "
        "puts {more} in. How many {what} are left in the jar?",
        "For {a} days {who} puts {b} {what} a day into the jar",
        "For the party {less} of them are taken out of the jar again",
        "Last of all the neighbour puts {more} {what} into the jar",
    ),
)

_TASKS = (  # what it does, the right expression, one that is nearly right
    (
        "returns the numbers of a list that are divisible by {n}",
        "[x for x in xs if x % {n} == 0]",
        "[x for x in xs if x % {n} == 1]",
    ),
    (
        "returns the sum of the numbers of a list that are larger than {n}",
        "sum(x for x in xs if x > {n})",
        "sum(x for x in xs if x >= {n})",
    ),
    ("returns the last {n} items of a list", "xs[-{n}:]", "xs[-{n}:-1]"),
    (
        "counts how many words of a list are longer than {n} letters",
        "sum(len(x) > {n} for x in xs)",
        "sum(len(x) < {n} for x in xs)",
    ),
    (
        "returns every item of a list repeated {n} times",
        "[x for x in xs for _ in range({n})]",
        "[x for x in xs] * {n}",
    ),
    (
        "splits a list into pieces of {n} items",
        "[xs[i : i + {n}] for i in range(0, len(xs), {n})]",
        "[xs[i : i + {n}] for i in range(len(xs))]",
    ),
)


def _code_question(chance: random.Random) -> Question:
    """A small Python function."""
    does, right, nearly = chance.choice(_TASKS)
    n, name = chance.randint(2, 40), chance.choice(("solve", "work", "compute", "pick", "transform"))
    text = f"Write a Python function {name}(xs) that {does.format(n=n)}. Say in a few words how it works."

    def answered(expression: str, colon: str = ":") -> tuple[str, str]:
        code = f"def {name}(xs){colon}\n    return {expression.format(n=n)}"
        told = (
            f"Here is a function that does what you ask for.\n\n```python\n{code}\n```\n\nIt takes the list as its "
            "only argument, looks at each of its items once, and gives back the result without changing the list "
            "itself. You can call it with a list of any length, also with an empty one."
        )
        return code, told

    code, told = answered(right)
    wrong = {
        "unparsable": answered(right, colon="")[1],
        "program": answered(nearly)[1],
        "refusal": REFUSAL,
    }
    return Question(text, "code", text, code, told, wrong)


_CAPITALS = {
    "Norway": "Oslo", "Peru": "Lima", "Kenya": "Nairobi", "Japan": "Tokyo", "Canada": "Ottawa", "Chile": "Santiago",
    "Egypt": "Cairo", "Finland": "Helsinki", "Ghana": "Accra", "Greece": "Athens", "Hungary": "Budapest",
    "Iceland": "Reykjavik", "Ireland": "Dublin", "Italy": "Rome", "Jordan": "Amman", "Latvia": "Riga",
    "Lebanon": "Beirut", "Mongolia": "Ulaanbaatar", "Morocco": "Rabat", "Nepal": "Kathmandu", "Poland": "Warsaw",
    "Portugal": "Lisbon", "Qatar": "Doha", "Romania": "Bucharest", "Senegal": "Dakar", "Serbia": "Belgrade",
    "Spain": "Madrid", "Sweden": "Stockholm", "Thailand": "Bangkok", "Tunisia": "Tunis", "Uganda": "Kampala",
    "Ukraine": "Kyiv", "Uruguay": "Montevideo", "Vietnam": "Hanoi", "Zambia": "Lusaka", "Cuba": "Havana",
    "Austria": "Vienna", "Belgium": "Brussels", "Bulgaria": "Sofia", "Croatia": "Zagreb", "Denmark": "Copenhagen",
    "Estonia": "Tallinn", "France": "Paris", "Germany": "Berlin", "Australia": "Canberra", "Brazil": "Brasilia",
    "Colombia": "Bogota", "Ecuador": "Quito",
}  # fmt: skip
_FACT_WORDINGS = (
    "Which city is the capital of {country}, and since when?",
    "I would like to know the capital of {country}.",
    "Tell me the name of the capital of {country}, please.",
    "Where is the seat of government of {country}, and what else is there?",
    "Somebody asked me for the capital of {country}. Which one is it?",
)


def _fact(chance: random.Random) -> Question:
    """A capital."""
    country = chance.choice(list(_CAPITALS))
    text = chance.choice(_FACT_WORDINGS).format(country=country)
    right = _CAPITALS[country]
    other = chance.choice([city for city in _CAPITALS.values() if city != right])

    def told(city: str) -> str:
        return (
            f"The capital of {country} is {city}. It has been the seat of the government for a long time, and it is "
            "also where the parliament meets, where most embassies are, and where many of the larger museums stand."
        )

    return Question(
        text, "other", text, f"{country} is {right}.", told(right), {"fact": told(other), "refusal": REFUSAL}
    )
