"""The teacher on a vLLM server: against a fake that speaks its protocol with the logits of a real small model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from tests.fakes.vllm_server import FakeVllmServer, Manners

from everswarm.errors import StageFailedError, UnavailableError
from everswarm.schemas.dataset import Example
from everswarm.training.distillation.scored_text import END_OF_TURN, ScoredText
from everswarm.training.distillation.teachers import Text, vllm_server
from everswarm.training.distillation.teachers.vllm import VllmTeacher
from everswarm.training.distillation.token_bytes import token_bytes

MakeExamples = Callable[[int], list[Example]]


@pytest.fixture(scope="module")
def serving(tiny_student: Path) -> Iterator[FakeVllmServer]:
    with FakeVllmServer(tiny_student) as server:
        yield server


@pytest.fixture
def server(serving: FakeVllmServer, monkeypatch: pytest.MonkeyPatch) -> FakeVllmServer:
    """One server for all tests, with good manners again."""
    monkeypatch.setattr(vllm_server, "FIRST_PAUSE_SECONDS", 0.0)
    serving.manners = Manners()
    serving.seen.bodies.clear()
    serving.seen.keys.clear()
    return serving


def label(server: FakeVllmServer, *texts: Text, **options: Any) -> list[ScoredText]:
    asked = {"hindsight": False, **options}
    model = asked.pop("model", server.model)
    teacher = VllmTeacher(model, base_url=server.base_url, tokenizer=server.tokenizer, **asked)
    return list(teacher.label(texts, batch=None, on_batch=lambda _: pytest.fail("vLLM has no batches")))


@pytest.fixture
def text(make_examples: MakeExamples) -> Text:
    [example] = make_examples(1)
    return Text(example, example.target, "target")


def test_text_is_scored_as_the_model_itself_would(server: FakeVllmServer, text: Text) -> None:
    [scored] = label(server, text)
    tokenizer = server.tokenizer
    turns = [message.model_dump() for message in text.example.messages]
    prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    answer = [*tokenizer(text.completion)["input_ids"], tokenizer.convert_tokens_to_ids("<|im_end|>")]
    ids = [*tokenizer(prompt)["input_ids"], *answer]
    true = server._logprobs(ids)[-len(answer) - 1 : -1].numpy().astype(np.float64)
    assert (scored.id, scored.source, scored.ended, scored.text) == ("example-1", "target", True, b"1 km are 1000 m.")
    assert scored.end[-2:].tolist() == [16, 16]
    np.testing.assert_allclose(scored.logprob, true[np.arange(len(answer)), answer], atol=1e-5)
    order = np.argsort(-true, axis=1, kind="stable")[:, :20]
    np.testing.assert_allclose(scored.top_logprob, np.take_along_axis(true, order, 1), atol=1e-5)
    rest = 1 - np.exp(np.take_along_axis(true, order, 1)).sum(1)
    np.testing.assert_allclose(np.exp(scored.tail_logprob), rest, atol=1e-5)
    pieces = token_bytes(tokenizer)
    pieces[answer[-1]] = END_OF_TURN
    assert [scored.vocabulary[number] for number in scored.top[0]] == [pieces[number] for number in order[0]]
    assert server.seen.bodies == [
        {"model": "org/teacher", "prompt": ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 20}
    ]


def test_with_hindsight_it_has_read_the_target_and_a_rollout_is_scored_too(server: FakeVllmServer, text: Text) -> None:
    rollout = text._replace(completion="I do not know.", source="rollout")
    [target, own] = label(server, text, rollout, hindsight=True, top_k=3)
    assert (own.source, own.text, own.top.shape[1]) == ("rollout", b"I do not know.", 3)
    for body in server.seen.bodies:
        assert text.example.target in server.tokenizer.decode(body["prompt"][: -len(own.end)])
    assert target.tokens > 0


def test_of_a_prompt_over_the_context_the_end_counts(server: FakeVllmServer, text: Text) -> None:
    label(server, text)
    server.manners.max_model_len = 32
    [scored] = label(server, text)
    whole, cut = (body["prompt"] for body in server.seen.bodies)
    assert len(cut) == 31
    assert cut == [whole[0], *whole[-30:]]
    assert scored.text == b"1 km are 1000 m."


def test_answer_takes_half_of_the_context_at_most(server: FakeVllmServer, text: Text) -> None:
    server.manners.max_model_len = 40
    [scored] = label(server, text._replace(completion="1 km are 1000 m. " * 9))
    assert (len(scored.end), scored.ended) == (20, False)
    assert len(server.seen.bodies[0]["prompt"]) == 39


def test_protocol_is_that_which_the_official_client_speaks(server: FakeVllmServer) -> None:
    client = openai.OpenAI(base_url=server.base_url, api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == ["org/teacher"]
    ids = server.tokenizer("3 km are 3000 m.")["input_ids"]
    answer = client.completions.create(
        model="org/teacher", prompt=ids, max_tokens=1, temperature=0, extra_body={"prompt_logprobs": 2}
    )
    told = answer.choices[0].model_extra["prompt_logprobs"]  # type: ignore[index]
    assert told[0] is None
    assert len(told) == len(ids)
    assert all(str(token) in row and 2 <= len(row) <= 3 for token, row in zip(ids[1:], told[1:], strict=True))
    with pytest.raises(openai.BadRequestError, match="greater than max allowed: 20"):
        client.completions.create(model="org/teacher", prompt=ids, max_tokens=1, extra_body={"prompt_logprobs": 21})


@pytest.mark.parametrize(
    ("manners", "options", "message"),
    [
        (
            {"tells_prompt_logprobs": False},
            {},
            r"The vLLM server at http\S+ gave no prompt_logprobs for \d+ tokens, so it cannot score given text\. "
            r"Use a vLLM server \(version 0\.6 or newer\), or configure it as an endpoint",
        ),
        (
            {"max_logprobs": 5},
            {},
            r"gives at most 5 candidates a token, 20 are wanted\. Start it with --max-logprobs 20",
        ),
        ({"spells_otherwise": True}, {}, r"the tokenizer given for the teacher is not that of 'org/teacher'"),
        ({"lifted": 9.0}, {}, r"What the teacher said of example 'example-1' cannot be used"),
        ({"key": "secret"}, {}, r"refuses our key \(Unauthorized\)\. Set EVERSWARM_TEACHER_KEY where the worker runs"),
        ({}, {"model": "org/other"}, r"serves org/teacher, not 'org/other'\. Name one that it serves"),
    ],
)
def test_server_that_cannot_teach_is_refused(
    server: FakeVllmServer, text: Text, manners: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    server.manners = Manners(**manners)
    with pytest.raises(StageFailedError, match=message):
        label(server, text, **options)


@pytest.mark.parametrize(
    ("method", "said", "headers", "message"),
    [
        ("models", {"data": None}, {}, r"serves no model, not 'org/teacher'"),
        ("models", {"data": [None, 3]}, {}, r"serves no model, not 'org/teacher'"),
        ("completions", {"choices": [None]}, {}, r"gave no prompt_logprobs for \d+ tokens"),
        ("completions", {"choices": 5}, {}, r"gave no prompt_logprobs for \d+ tokens"),
        ("models", {}, {"Content-Encoding": "gzip"}, r"The vLLM server at http\S+ answers with something .* unpacked"),
    ],
)
def test_odd_answer_is_refused_by_the_name_of_its_server(
    server: FakeVllmServer,
    text: Text,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    said: Any,
    headers: dict[str, str],
    message: str,
) -> None:
    monkeypatch.setattr(server, method, lambda *_: said if method == "models" else (200, said))
    server.manners.headers = headers
    with pytest.raises(StageFailedError, match=message):
        label(server, text)


def test_closed_teacher_holds_no_connection(server: FakeVllmServer, text: Text) -> None:
    teacher = VllmTeacher(server.model, base_url=server.base_url, tokenizer=server.tokenizer, hindsight=False)
    list(teacher.label([text], batch=None, on_batch=lambda _: None))
    teacher.close()
    with pytest.raises(RuntimeError, match="closed"):
        list(teacher.label([text], batch=None, on_batch=lambda _: None))


def test_key_of_the_environment_is_sent(server: FakeVllmServer, text: Text, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERSWARM_TEACHER_KEY", "secret")
    server.manners.key = "secret"
    assert label(server, text)
    assert set(server.seen.keys) == {"secret"}


def test_busy_server_is_asked_again_but_not_for_ever(server: FakeVllmServer, text: Text) -> None:
    server.manners.answers_busy = 3
    assert label(server, text)
    server.manners.answers_busy = 99
    with pytest.raises(UnavailableError, match=r"did not answer in 6 tries \(503: overloaded\)\. Is it running\?"):
        label(server, text)


def test_empty_completion_is_refused(server: FakeVllmServer, text: Text) -> None:
    with pytest.raises(StageFailedError, match="Example 'example-1' has an empty completion"):
        label(server, text._replace(completion=""))
