"""Strategies are compared on the same questions, with numbers that can be worked out by hand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everswarm.errors import BadRequestError, ConfigurationError, UnavailableError
from everswarm.server.swarm.evaluation import Attempt, Run, evaluate
from everswarm.server.swarm.evaluation_figures import StrategyFigures, best_shown, judge, measure, paired
from everswarm.server.swarm.evaluation_files import Prompt, read_prompts
from everswarm.server.swarm.kinds import Kind
from everswarm.server.swarm.scoring import Scored, score, token_f1


def prompt(
    number: int = 1, *, reference: str = "42", kind: Kind = "mathematics", question: str = "How many?"
) -> Prompt:
    return Prompt(number, number, [{"role": "user", "content": question}], (reference,), kind)


def attempt(strategy: str, text: str = "42", *, tokens: int = 100, error: str | None = None) -> Attempt:
    return Attempt(text, tokens - 10, 10, 1, 0.5, strategy, error=error)


def made(strategy: str, qualities: Sequence[float], tokens: int | Sequence[int] = 100) -> list[Run]:
    """Return runs with these qualities, one for each question."""
    used = [tokens] * len(qualities) if isinstance(tokens, int) else tokens
    return [
        Run(prompt(number), strategy, attempt(strategy, tokens=used[number - 1]), Scored(quality, True))
        for number, quality in enumerate(qualities, start=1)
    ]


def figures(**runs: list[Run]) -> dict[str, StrategyFigures]:
    return {row.strategy: row for row in measure([run for own in runs.values() for run in own], list(runs))}


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines), "utf-8")
    return path


def other(_messages: object) -> Kind:
    return "other"


# --- reading


def judged(question: str, **said: object) -> dict[str, object]:
    return {"id": "x", "messages": [{"role": "user", "content": question}], "response": None, "rating": None} | said


def test_import_format_gives_the_correction_or_the_answer_that_got_a_five(tmp_path: Path) -> None:
    file = write(
        tmp_path / "judged.jsonl",
        judged("one", correction="right", response="wrong", rating=1),
        judged("two", response="good", rating=5),
        judged("three", response="fair", rating=4),
        judged("four"),
        judged("one", correction="another"),
    )
    found = read_prompts(file, kind_of=other)
    assert [(item.question, item.references, item.line) for item in found.prompts] == [
        ("one", ("right",), 1),
        ("two", ("good",), 2),
    ]
    assert (found.read, found.distinct, found.repeated, found.unjudged, found.error_count) == (5, 2, 1, 2, 0)


def test_first_judgement_of_a_question_that_says_what_is_right_counts(tmp_path: Path) -> None:
    file = write(tmp_path / "judged.jsonl", judged("one", rating=2, response="x"), judged("one", correction="right"))
    found = read_prompts(file, kind_of=other)
    assert [item.references for item in found.prompts] == [("right",)]
    assert (found.unjudged, found.repeated) == (1, 0)


@pytest.mark.parametrize(
    ("line", "question", "references"),
    [
        ({"prompt": "a?", "reference": "b"}, "a?", ("b",)),
        ({"question": "a?", "answer": 7}, "a?", ("7",)),
        ({"input": "a?", "output": "b"}, "a?", ("b",)),
        ({"input": [{"role": "user", "content": "a?"}], "ideal": ["b", "c"]}, "a?", ("b", "c")),
        ({"instruction": "Sum up.", "input": "Much.", "output": "m"}, "Sum up.\n\nMuch.", ("m",)),
        ({"prompt": "a?", "target": "b", "unknown": 1}, "a?", ("b",)),
        ({"messages": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]}, "a?", ("b",)),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a?"}]}], "answer": "b"}, "a?", ("b",)),
    ],
)
def test_common_shapes_of_a_question_are_read(
    tmp_path: Path, line: object, question: str, references: tuple[str, ...]
) -> None:
    (found,) = read_prompts(write(tmp_path / "q.jsonl", line), kind_of=other).prompts
    assert (found.question, found.references) == (question, references)


def test_kind_of_the_line_wins(tmp_path: Path) -> None:
    file = write(
        tmp_path / "q.jsonl", {"prompt": "a", "answer": "b", "kind": "code"}, {"prompt": "c", "answer": "d", "kind": ""}
    )
    assert [item.kind for item in read_prompts(file, kind_of=lambda _: "planning").prompts] == ["code", "planning"]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{broken", "not JSON: "),
        ("[" * 100_000, "not JSON"),
        ("[1]", "a JSON object is needed"),
        ({"answer": "b"}, "has no question"),
        ({"prompt": "a"}, "has no reference"),
        ({"prompt": "a", "answer": ["", {}]}, "has no reference"),
        ({"prompt": 3, "answer": "b"}, "prompt is a text, or a list of"),
        ({"prompt": "  ", "answer": "b"}, "prompt does not end with what a user asks"),
        ({"messages": ["a"], "answer": "b"}, "messages is a text, or a list of"),
        ({"messages": [{"role": "system", "content": "a"}], "answer": "b"}, "does not end with what a user asks"),
        ({"prompt": "a", "answer": "b", "kind": "maths"}, "'maths' is no kind of request; there are arithmetic"),
    ],
)
def test_broken_line_is_named_and_the_rest_is_used(tmp_path: Path, line: object, told: str) -> None:
    file = write(tmp_path / "q.jsonl", "", line, {"prompt": "a", "answer": "b"})
    found = read_prompts(file, kind_of=other)
    assert [item.question for item in found.prompts] == ["a"]
    (error,) = found.errors
    assert error.line == 2
    assert told in error.message


def test_lines_that_are_no_text_or_too_long_are_named(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    long = b'{"prompt": "' + b"x" * (2 * 1024 * 1024) + b'", "answer": "b"}'
    file.write_bytes(b"\n".join([b'\xef\xbb\xbf{"prompt": "a", "answer": "b"}', b"\xff\xfe", long]))
    found = read_prompts(file, kind_of=other)
    assert [item.question for item in found.prompts] == ["a"]
    assert [(error.line, error.message.split(";")[0]) for error in found.errors] == [
        (2, "not UTF-8 text at byte 1 of the line"),
        (3, "longer than 2 MB"),
    ]


def test_half_of_a_surrogate_pair_in_a_reference_does_no_harm(tmp_path: Path) -> None:
    (found,) = read_prompts(write(tmp_path / "q.jsonl", r'{"prompt": "a\ud800", "answer": "\ud800"}'), kind_of=other)[0]
    assert (found.question, found.references) == ("a?", ("?",))


@pytest.mark.parametrize("lines", [(), ("{",), (judged("one"),)])
def test_file_with_nothing_to_ask_says_what_a_line_looks_like(tmp_path: Path, lines: tuple[object, ...]) -> None:
    with pytest.raises(BadRequestError, match=r'A line looks like this: \{"question": "What is 17 \+ 25\?"'):
        read_prompts(write(tmp_path / "q.jsonl", *lines), kind_of=other)


def test_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(BadRequestError, match=f"{path.name} cannot be read: "):
            read_prompts(path, kind_of=other)


def test_limit_takes_the_first_questions_or_as_the_seed_says(tmp_path: Path) -> None:
    file = write(tmp_path / "q.jsonl", *({"prompt": str(n // 2), "answer": "b"} for n in range(40)))
    first = read_prompts(file, kind_of=other, limit=5)
    assert [item.question for item in first.prompts] == ["0", "1", "2", "3", "4"]
    assert (first.distinct, first.repeated) == (20, 20)
    one, again, another = (read_prompts(file, kind_of=other, limit=5, shuffle_seed=seed).prompts for seed in (1, 1, 2))
    assert one == again
    assert [item.question for item in one] not in ([item.question for item in another], ["0", "1", "2", "3", "4"])
    assert [item.number for item in one] == [1, 2, 3, 4, 5]


# --- scoring


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("The cat sat.", "a cat sat", 1.0),
        ("cat", "the cat sat", 2 / 3),
        ("cat cat", "cat", 2 / 3),
        ("dog", "cat", 0.0),
        ("", "cat", 0.0),
        ("!", "?", 1.0),
    ],
)
def test_token_f1_counts_shared_words(answer: str, reference: str, expected: float) -> None:
    assert token_f1(answer, reference) == pytest.approx(expected)


@given(st.text(max_size=60), st.text(max_size=60))
def test_token_f1_is_symmetric_and_between_0_and_1(one: str, two: str) -> None:
    assert 0 <= token_f1(one, two) <= 1
    assert token_f1(one, two) == token_f1(two, one)
    assert token_f1(one, one) == 1


@pytest.mark.parametrize("kind", ["mathematics", "other"])
def test_final_number_is_right_or_wrong_whatever_stands_before_it(kind: Kind) -> None:
    asked = prompt(reference="There are 24 - 14 = 10 left.\nA: 10", kind=kind)
    assert score(asked, "So 4 + 6 = 10.\nA: 10") == Scored(1.0, True)
    assert score(asked, "That makes 24 - 14 = 10 liters.") == Scored(1.0, True)
    assert score(asked, "There are 24 - 14 = 11 left.\nA: 11") == Scored(0.0, True)
    assert score(asked, "") == Scored(0.0, True)


def test_words_are_compared_as_words_where_a_sentence_is_as_good() -> None:
    asked = prompt(reference="Paris", kind="other", question="What is the capital of France?")
    found = score(asked, "The capital of France is Paris.")
    assert not found.is_exact
    assert 0 < found.quality < 1


def test_best_of_several_references_counts() -> None:
    asked = prompt()._replace(references=("41", "42"))
    assert score(asked, "A: 42").quality == 1


# --- running


async def test_all_strategies_are_asked_all_questions_side_by_side_within_bounds() -> None:
    running = most = 0

    async def ask(asked: Prompt, strategy: str) -> Attempt:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        is_right = strategy == "vote" or asked.number % 2 == 0  # single knows every second answer
        return attempt(strategy, "A: 42" if is_right else "A: 41")

    prompts = [prompt(number) for number in range(1, 11)]
    ended: list[Run] = []
    runs = await evaluate(prompts, ["single", "vote"], ask, concurrency=3, on_progress=ended.append)
    assert most == 3
    assert [(run.prompt.number, run.strategy) for run in runs] == [
        (number, name) for number in range(1, 11) for name in ("single", "vote")
    ]
    assert sorted(ended) == sorted(runs)
    found = {row.strategy: row for row in measure(runs, ["single", "vote"])}
    assert (found["single"].quality.value, found["vote"].quality.value) == (0.5, 1.0)


async def test_questions_come_one_after_the_other_and_another_strategy_is_first_each_time() -> None:
    order: list[tuple[int, str]] = []

    async def ask(asked: Prompt, strategy: str) -> Attempt:
        order.append((asked.number, strategy))
        return attempt(strategy)

    await evaluate([prompt(1), prompt(2)], ["a", "b"], ask, concurrency=1, on_progress=lambda _: None)
    assert order == [(1, "a"), (1, "b"), (2, "b"), (2, "a")]


async def test_attempt_that_fails_scores_0_and_says_why() -> None:
    async def ask(asked: Prompt, strategy: str) -> Attempt:
        if asked.number == 1:
            raise UnavailableError("nobody is there")
        return attempt(strategy, error="half an answer") if asked.number == 2 else attempt(strategy)

    prompts = [prompt(number) for number in (1, 2, 3)]
    runs = await evaluate(prompts, ["single"], ask, concurrency=1, on_progress=lambda _: None)
    assert [(run.scored.quality, run.attempt.error) for run in runs] == [
        (0.0, "nobody is there"),
        (0.0, "half an answer"),
        (1.0, None),
    ]
    assert measure(runs, ["single"])[0].failed == 2


async def test_what_is_wrong_with_the_configuration_ends_it() -> None:
    async def ask(_asked: Prompt, _strategy: str) -> Attempt:
        raise ConfigurationError("mend it")

    with pytest.raises(ConfigurationError, match="mend it"):
        await evaluate([prompt(1), prompt(2)], ["single"], ask, concurrency=2, on_progress=lambda _: None)


async def test_cancelled_evaluation_has_told_of_all_that_is_finished() -> None:
    stuck = asyncio.Event()
    ended: list[Run] = []

    async def ask(asked: Prompt, strategy: str) -> Attempt:
        if (asked.number, strategy) == (3, "vote"):
            stuck.set()
            await asyncio.Event().wait()
        return attempt(strategy)

    prompts = [prompt(number) for number in range(1, 6)]
    work = evaluate(prompts, ["single", "vote"], ask, concurrency=1, on_progress=ended.append)
    task = asyncio.create_task(work)
    await stuck.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(ended) == 5
    assert {run.prompt.number for run in paired(ended, ["single", "vote"])} == {1, 2}


# --- figures


def test_figures_are_those_worked_out_by_hand() -> None:
    found = figures(single=made("single", [1, 0, 1, 0], [50, 100, 150, 100]), vote=made("vote", [1, 1, 1, 0], 300))
    single, vote = found["single"], found["vote"]
    assert (single.prompts, single.quality.value, single.tokens, single.calls, single.seconds) == (4, 0.5, 100, 1, 0.5)
    assert single.quality_per_thousand_tokens is not None
    assert single.quality_per_thousand_tokens.value == pytest.approx(1000 * 2 / 400)
    assert (single.quality_difference, single.per_thousand_difference) == (None, None)
    assert vote.quality_difference is not None
    assert vote.quality_difference.value == 0.25
    assert vote.per_thousand_difference is not None
    assert vote.per_thousand_difference.value == pytest.approx(1000 * 3 / 1200 - 5)


def test_interval_of_a_share_is_that_of_the_binomial() -> None:
    found = figures(single=made("single", [1.0] * 50 + [0.0] * 50))["single"].quality
    assert (found.low, found.high) == (pytest.approx(0.4, abs=0.011), pytest.approx(0.6, abs=0.011))


def test_paired_difference_is_narrower_than_the_qualities_say() -> None:
    single = [1.0, 0.0] * 50
    vote = [1.0, *single[1:]]
    vote[1] = 1.0
    found = figures(single=made("single", single), vote=made("vote", vote))["vote"].quality_difference
    assert found is not None
    assert (found.low, found.high) == (0.0, pytest.approx(0.03, abs=0.011))  # unpaired it were about 0.2 wide


def test_same_seed_gives_the_same_figures() -> None:
    runs = made("single", [0.1, 0.7, 0.4, 0.9, 0.3], [10, 90, 40, 70, 30])
    one, again, another = (measure(runs, ["single"], seed=seed) for seed in (1, 1, 2))
    assert one == again
    assert one != another


def test_strategy_without_tokens_has_no_quality_per_token() -> None:
    found = figures(single=made("single", [1, 0]), calculate=made("calculate", [1, 1], 0))["calculate"]
    assert (found.quality_per_thousand_tokens, found.per_thousand_difference) == (None, None)
    assert found.quality_difference is not None


def test_nothing_finished_gives_no_figures() -> None:
    assert measure([], ["single"]) == []
    assert measure(made("single", [1.0]), ["single", "vote"]) == []


outcomes = st.lists(st.tuples(st.floats(0, 1), st.integers(1, 5000)), min_size=1, max_size=30)


@settings(max_examples=40, deadline=None)
@given(outcomes)
def test_interval_contains_its_number_and_a_strategy_does_not_differ_from_itself(
    pairs: list[tuple[float, int]],
) -> None:
    qualities, tokens = [quality for quality, _ in pairs], [used for _, used in pairs]
    runs = made("single", qualities, tokens) + made("vote", qualities, tokens)
    single, vote = measure(runs, ["single", "vote"], resamples=400)
    for found in (single.quality, single.quality_per_thousand_tokens):
        assert found is not None
        slack = 1e-9 * max(1.0, abs(found.value))
        assert found.low - slack <= found.value <= found.high + slack
    for difference in (vote.quality_difference, vote.per_thousand_difference):
        assert difference is not None
        assert (difference.value, difference.low, difference.high) == (0, 0, 0)


# --- verdicts


def verdict(single: list[Run], vote: list[Run]) -> tuple[bool, str]:
    (found,) = judge(measure(single + vote, ["single", "vote"]), kind="mathematics")
    return found.is_shown, found.words


HALF = [1.0, 0.0] * 20


def test_as_good_for_no_more_tokens_is_shown() -> None:
    assert verdict(made("single", HALF), made("vote", HALF)) == (
        True,
        "at or above single: not worse, for no more tokens",
    )


def test_much_better_is_shown_when_it_is_worth_its_tokens() -> None:
    weak = [1.0] * 5 + [0.0] * 35
    is_shown, words = verdict(made("single", weak), made("vote", [1.0] * 40, 150))
    assert (is_shown, words) == (True, "at or above single at equal tokens: not less quality per 1,000 tokens")


def test_better_for_too_many_tokens_is_not_shown() -> None:
    is_shown, words = verdict(made("single", HALF), made("vote", [1.0] * 40, 300))
    assert (is_shown, words) == (False, "not shown: better, for 3.0 times the tokens")


@pytest.mark.parametrize(
    ("single", "vote", "told"),
    [
        (made("single", [1.0] * 19), made("vote", [1.0] * 19), "19 questions are too few; at least 20"),
        (made("single", [0.0] * 40), made("vote", [0.0] * 40), "neither it nor single had anything right"),
        (made("single", [1.0] * 40, 900), made("vote", HALF, 10), "its answers are worse than those of single"),
        (made("single", HALF), made("vote", HALF, 101), "not shown to be as good or better, for 1.0 times"),
    ],
)
def test_what_proves_nothing_is_not_shown(single: list[Run], vote: list[Run], told: str) -> None:
    is_shown, words = verdict(single, vote)
    assert not is_shown
    assert told in words


def test_strategy_that_fails_more_often_or_mostly_gave_way_is_not_shown() -> None:
    failing = [run._replace(attempt=attempt("vote", error="no")) for run in made("vote", HALF)[:1]]
    assert "it failed 1 times, single 0 times" in verdict(made("single", HALF), failing + made("vote", HALF)[1:])[1]
    cheap = Attempt("42", 50, 50, 1, 0.5, "single", degraded="the quota is short")
    gave_way = [run._replace(attempt=cheap) for run in made("vote", HALF)]
    assert "40 of 40 were answered with a cheaper strategy" in verdict(made("single", HALF), gave_way)[1]


def test_without_single_there_is_no_verdict() -> None:
    assert judge(measure(made("vote", HALF), ["vote"]), kind="code") == []


def test_best_and_then_cheapest_of_what_is_shown_is_turned_on() -> None:
    runs = made("single", HALF, 100) + made("cascade", [1.0] * 40, 90) + made("vote", [1.0] * 40, 80)
    found = measure(runs, ["single", "cascade", "vote"])
    assert best_shown(judge(found, kind="code"), {"code": found, "other": found}) == {"code": "vote"}
