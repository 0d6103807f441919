"""That the strategies pick, check and escalate as they should: on models whose skill is known to the test alone.

One model is good at arithmetic, one at code, one is wrong with confidence. Half of the questions was there to tune on;
all that is asserted is of the other half. Tables are drawn from seeds, so every figure is the same in every run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.fakes.skilled_models import Asked, FakeSwarm, Question, SkilledModel, Subject, halves, make_questions

from everswarm.llm.protocol import Payload
from everswarm.schemas.gateway import Priority
from everswarm.schemas.interaction import FeedbackRequest
from everswarm.schemas.server import Scope
from everswarm.server.auth import Principal
from everswarm.server.database import Database
from everswarm.server.feedback import record_feedback
from everswarm.server.gateway.prompt_size import estimate_prompt_tokens
from everswarm.server.swarm.kinds import StrategyName
from everswarm.server.swarm.outcomes import learn_router
from everswarm.server.swarm.recording import Asker
from everswarm.server.swarm.requests import Chat, Wishes
from everswarm.server.swarm.run import text_of
from everswarm.server.swarm.service import ROUTER_FILE
from everswarm.settings import RoleSettings

QUESTIONS = make_questions(200)
TUNE, TEST = halves(QUESTIONS)
SUBJECTS: tuple[Subject, ...] = ("mathematics", "code", "other")
CALCULATING: dict[Subject, float] = {"mathematics": 0.88, "code": 0.3, "other": 0.85}
CODING: dict[Subject, float] = {"mathematics": 0.6, "code": 0.88, "other": 0.6}
CONFIDENT: dict[Subject, float] = {"mathematics": 0.5, "code": 0.4, "other": 0.5}
NOBODY_IS_GOOD = {"primary": RoleSettings(), "specialist": RoleSettings(good_at=[]), "coordinator": RoleSettings()}
TOLERANCE = 0.02  # of accuracy: two questions of a hundred
EARLIER = [  # 200 words
    {
        "role": "user",
        "content": "I have some questions, and here is why I ask. " + "It is for a lesson at school. " * 13,
    },
    {"role": "assistant", "content": "With pleasure. " + "Tell me what you want to know about it. " * 11},
]

Open = Callable[..., FakeSwarm]


def calculating() -> SkilledModel:
    return SkilledModel("calculating", QUESTIONS, skill=CALCULATING)


def coding() -> SkilledModel:
    return SkilledModel("coding", QUESTIONS, skill=CODING)


def confident() -> SkilledModel:
    return SkilledModel("confident", QUESTIONS, skill=CONFIDENT, is_confident=True)


@pytest.fixture
def open_swarm(tmp_path: Path, database: Database) -> Open:
    def opened(models: Mapping[str, SkilledModel], **options: Any) -> FakeSwarm:
        return FakeSwarm(tmp_path, database, models, **options)

    return opened


class Figures(NamedTuple):
    accuracy: float
    tokens: float  # a question, mean
    asked: list[tuple[Question, Asked]]


async def measure(
    swarm: FakeSwarm,
    strategy: StrategyName | None = None,
    *,
    subject: Subject | None = None,
    model: str = "everswarm",
    questions: list[Question] | None = None,
    earlier: list[dict[str, str]] | None = None,
    **fields: Any,
) -> Figures:
    chosen = [question for question in questions or TEST if subject in (None, question.subject)]
    asked = [
        (
            question,
            await swarm.ask(
                [*(earlier or ()), {"role": "user", "content": question.text}], strategy, model=model, **fields
            ),
        )
        for question in chosen
    ]
    right = sum(question.is_right(one.text) for question, one in asked)
    return Figures(right / len(asked), sum(one.tokens for _, one in asked) / len(asked), asked)


# --- the fakes themselves


def test_fakes_have_the_skill_that_their_table_says() -> None:
    for model, skill in ((calculating(), CALCULATING), (coding(), CODING), (confident(), CONFIDENT)):
        for subject in SUBJECTS:
            own = [question for question in QUESTIONS if question.subject == subject]
            right = sum(question.is_right(model.answer(question)) for question in own)
            assert right == sum(model.is_right(question) for question in own)
            assert abs(right / len(own) - skill[subject]) < 0.1


def test_halves_share_no_question_and_every_right_answer_is_right() -> None:
    assert not {question.text for question in TUNE} & {question.text for question in TEST}
    for question in QUESTIONS:
        assert question.is_right(question.right)
        assert not any(question.is_right(wrong) for wrong in question.wrong.values())


# --- routing


async def test_rules_send_each_kind_to_its_specialist_and_beat_every_single_model(open_swarm: Open) -> None:
    roles = {
        "primary": RoleSettings(),
        "specialist": RoleSettings(good_at=["mathematics"]),
        "coder": RoleSettings(good_at=["code"]),
    }
    swarm = open_swarm({"primary": confident(), "specialist": calculating(), "coder": coding()}, roles=roles)
    routed = await measure(swarm)
    by_subject = {"mathematics": "specialist", "code": "coder", "other": "primary"}
    assert all(one.answered.role == by_subject[question.subject] for question, one in routed.asked)
    assert all(one.trace.model_calls == 1 for _, one in routed.asked)
    for role in roles:
        alone = await measure(swarm, model=role)
        assert routed.accuracy > alone.accuracy + 0.03
        assert routed.tokens < 1.1 * alone.tokens


async def test_router_learns_from_judged_answers_a_skill_that_the_rules_do_not_know(
    open_swarm: Open, database: Database, tmp_path: Path
) -> None:
    roles = {"specialist": RoleSettings(good_at=["mathematics"]), "coordinator": RoleSettings(good_at=[])}
    models = {"primary": coding(), "specialist": calculating()}
    swarm = open_swarm(models, roles=roles)
    before = await measure(swarm)
    for number, question in enumerate(TUNE):
        for role in models:
            await _answer_and_judge(swarm, database, question, role=role, person=number % 40)
    learnt = learn_router(database, tmp_path / ROUTER_FILE, now=datetime(2026, 7, 1, tzinfo=UTC))
    assert learnt.saved, learnt.reason
    after = await measure(open_swarm(models, roles=roles))
    facts = [one.answered.role for question, one in after.asked if question.subject == "other"]
    assert facts.count("specialist") > 0.7 * len(facts)
    assert after.accuracy > before.accuracy + 0.05
    assert {one.answered.role for question, one in after.asked if question.subject == "code"} == {"primary"}


async def _answer_and_judge(
    swarm: FakeSwarm, database: Database, question: Question, *, role: str, person: int
) -> None:
    judge = Principal(key_id=f"019a0000-0000-7000-8000-{person:012}", scope=Scope.USER, label="somebody")
    payload = {"model": role, "messages": [{"role": "user", "content": question.text}]}
    turn = await swarm.swarm.begin(
        Chat(payload, False, False, None), asker=Asker(judge.user), wishes=Wishes(), priority=Priority.INTERACTIVE
    )
    answered = await swarm.swarm.answer(turn)
    rating = 5 if question.is_right(text_of(answered)) else 1
    assert turn.recording is not None
    record_feedback(database, judge, FeedbackRequest(interaction_id=turn.recording.id, rating=rating, consent=True))


# --- cascade


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("subject", SUBJECTS)
async def test_within_a_conversation_cascade_reaches_the_skilled_model_at_less_than_twice_the_tokens(
    open_swarm: Open, subject: Subject, seed: int
) -> None:
    """Twice what one call costs, of the skilled model and of the weak one alike."""
    swarm, questions = weak_and_skilled(open_swarm, subject, seed)
    weak, skilled = [
        await measure(swarm, model=role, questions=questions, earlier=EARLIER) for role in ("primary", "specialist")
    ]
    cascade = await measure(swarm, "cascade", questions=questions, earlier=EARLIER)
    assert cascade.accuracy >= skilled.accuracy - TOLERANCE
    assert cascade.accuracy > weak.accuracy + 0.1
    assert cascade.tokens < 2 * min(weak.tokens, skilled.tokens)
    assert all(one.trace.model_calls <= 3 for _, one in cascade.asked)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("subject", SUBJECTS)
async def test_cascade_of_a_short_question_alone_reaches_the_skilled_model_at_less_than_twice_its_tokens(
    open_swarm: Open, subject: Subject, seed: int
) -> None:
    """A check reads question and answer again: where nothing stands before them, another answer is as cheap."""
    swarm, questions = weak_and_skilled(open_swarm, subject, seed)
    skilled = await measure(swarm, model="specialist", questions=questions)
    cascade = await measure(swarm, "cascade", questions=questions)
    assert cascade.accuracy >= skilled.accuracy - TOLERANCE
    assert cascade.tokens < 2 * skilled.tokens


def weak_and_skilled(open_swarm: Open, subject: Subject, seed: int) -> tuple[FakeSwarm, list[Question]]:
    """Return a swarm that asks the weak model first, and the questions of `subject` to test on."""
    made = make_questions(200, seed=seed)
    skills = (CODING, CALCULATING) if subject != "code" else (CALCULATING, CODING)
    names = ("coding", "calculating") if subject != "code" else ("calculating", "coding")
    weak, skilled = [
        SkilledModel(name, made, skill=skill, seed=seed) for name, skill in zip(names, skills, strict=True)
    ]
    swarm = open_swarm({"primary": weak, "specialist": skilled}, roles=NOBODY_IS_GOOD)
    return swarm, [question for question in halves(made)[1] if question.subject == subject]


async def test_free_checks_spare_the_question_to_a_model(open_swarm: Open) -> None:
    models = {"primary": coding(), "specialist": calculating()}
    cascade = await measure(open_swarm(models, roles=NOBODY_IS_GOOD), "cascade", earlier=EARLIER)
    for question, one in cascade.asked:
        first = models["primary"].answer(question)
        is_seen_free = any(first == question.wrong.get(kind) for kind in ("equation", "unparsable", "refusal"))
        purposes = [step.purpose for step in one.trace.steps if step.role is not None]
        assert purposes[:2] == (["answer", "escalation"] if is_seen_free else ["answer", "check"])


async def test_a_checker_that_always_says_yes_makes_nothing_worse(open_swarm: Open) -> None:
    swarm = open_swarm({"primary": calculating(), "specialist": confident()}, roles=NOBODY_IS_GOOD)
    first = await measure(swarm, model="primary", earlier=EARLIER)
    cascade = await measure(swarm, "cascade", earlier=EARLIER)
    assert cascade.accuracy >= first.accuracy


async def test_a_confident_first_model_is_corrected_as_well(open_swarm: Open) -> None:
    swarm = open_swarm({"primary": confident(), "specialist": calculating()}, roles=NOBODY_IS_GOOD)
    skilled = await measure(swarm, model="specialist", subject="mathematics")
    cascade = await measure(swarm, "cascade", subject="mathematics")
    assert cascade.accuracy >= skilled.accuracy - TOLERANCE


# --- vote


@pytest.mark.parametrize("model", [calculating, coding, confident])
async def test_vote_stops_at_two_in_most_easy_cases_and_is_no_worse_than_one(
    open_swarm: Open, model: Callable[[], SkilledModel]
) -> None:
    asked = model()
    swarm = open_swarm({"primary": asked}, roles=NOBODY_IS_GOOD)
    single = await measure(swarm, "single", subject="mathematics")
    vote = await measure(swarm, "vote", subject="mathematics")
    assert vote.accuracy >= single.accuracy
    easy = [one for question, one in vote.asked if sum(asked.is_right(question, sample) for sample in range(3)) >= 2]
    stopped = [one for one in easy if one.trace.model_calls == 2]
    assert len(stopped) > len(easy) / 2
    assert all(one.trace.model_calls <= 3 for _, one in vote.asked)


async def test_vote_does_not_vote_where_answers_cannot_be_compared(open_swarm: Open) -> None:
    swarm = open_swarm({"primary": coding()}, roles=NOBODY_IS_GOOD)
    vote = await measure(swarm, "vote", subject="code")
    assert all((one.trace.strategy, one.trace.wished_strategy) == ("single", "vote") for _, one in vote.asked)


# --- split and synthesise


async def test_parts_go_to_who_is_good_at_each(open_swarm: Open) -> None:
    roles = {"primary": RoleSettings(), "specialist": RoleSettings(good_at=["mathematics"])}
    models = {"primary": coding(), "specialist": calculating()}
    swarm = open_swarm(models, roles=roles)
    sums, facts = ([one for one in TEST if one.subject == subject] for subject in ("mathematics", "other"))
    right = 0
    for sum_, fact in zip(sums, facts, strict=True):
        one = await swarm.ask(f"1. {sum_.text}\n2. {fact.text}", "split")
        parts = {step.why: step.role for step in one.trace.steps if step.purpose == "part"}
        assert parts == {sum_.text[:80]: "specialist", fact.text[:80]: "primary"}
        expected = models["primary"].is_right(fact)
        assert (fact.final in one.text) is expected
        right += sum_.final in one.text
    assert right / len(sums) > CALCULATING["mathematics"] - 0.1


async def test_synthesis_is_no_worse_than_one_draft(open_swarm: Open) -> None:
    swarm = open_swarm({"primary": calculating()}, roles=NOBODY_IS_GOOD)
    single, written = [await measure(swarm, strategy, subject="mathematics") for strategy in ("single", "synthesise")]
    assert written.accuracy >= single.accuracy
    assert all(one.trace.model_calls == 4 for _, one in written.asked)


# --- the declared cost


class Costly(SkilledModel):
    """A fake that takes all it may: a prompt as large as the estimate, an answer as long as the limit."""

    async def chat(self, payload: Payload, *, heard: dict[str, str] | None = None) -> dict[str, Any]:
        response = await super().chat(payload, heard=heard)
        prompt, answer = estimate_prompt_tokens(payload), int(payload["max_tokens"])
        response["usage"] = {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
        return response


@pytest.mark.parametrize("strategy", ["cascade", "vote", "split", "synthesise"])
@pytest.mark.parametrize(
    ("fields", "is_long", "padding"),
    [({}, False, 0), ({}, False, 3000), ({"max_tokens": 16}, False, 50), ({"max_completion_tokens": 300}, True, 3000)],
)
@pytest.mark.parametrize("kind", [SkilledModel, Costly])
async def test_no_strategy_crosses_its_declared_cost(
    open_swarm: Open,
    strategy: StrategyName,
    fields: dict[str, int],
    is_long: bool,
    padding: int,
    kind: type[SkilledModel],
) -> None:
    prompted = {"system_prompt": "You are careful, and you never say more than you know. " * 20}
    roles = {name: RoleSettings(good_at=[], **prompted) for name in ("primary", "specialist", "coordinator")}
    models = {
        name: kind(name, QUESTIONS, skill=CODING, padding=padding) for name in ("primary", "specialist", "coordinator")
    }
    swarm = open_swarm(models, roles=roles)
    spent = await measure(swarm, strategy, questions=TEST[::6], earlier=EARLIER if is_long else None, **fields)
    for _, one in spent.asked:
        if one.trace.worst_case_tokens is not None:
            assert one.tokens <= one.trace.worst_case_tokens
        assert one.text


@pytest.mark.parametrize("text", ["数", "🙂", "é", "9", "the "])
@pytest.mark.parametrize("strategy", ["cascade", "vote", "split", "synthesise"])
async def test_declared_cost_holds_in_any_script(open_swarm: Open, strategy: StrategyName, text: str) -> None:
    question = Question("x", "other", "", "", f"{text * 3000} 5", {})
    models = {name: Costly(name, [question], skill=dict.fromkeys(SUBJECTS, 1.0)) for name in ("primary", "specialist")}
    swarm = open_swarm(models)
    asked = f"How many are 3 boxes of 4? Only the number. {text * 400}"
    for said in (asked, f"1. {asked}\n2. {asked} again\n3. {asked}"):
        one = await swarm.ask(said, strategy)
        if one.trace.worst_case_tokens is not None:
            assert one.tokens <= one.trace.worst_case_tokens
        assert one.text
