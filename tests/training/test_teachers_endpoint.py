"""The teacher behind an endpoint: how its answers are read, how it is asked, and over the real server's batches."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes.upstream import Behaviour, FakeUpstream
from tests.flow.served_gateway import ServedGateway, until

from everswarm.client import EverswarmClient, batches
from everswarm.errors import NotFoundError, StageFailedError, UnavailableError
from everswarm.schemas.dataset import Example
from everswarm.schemas.server import Scope
from everswarm.server.auth import create_key
from everswarm.settings import EndpointSettings, Settings
from everswarm.training.distillation.scored_text import END_OF_TURN, ScoredText
from everswarm.training.distillation.target_shards import check_scored
from everswarm.training.distillation.teachers import Text
from everswarm.training.distillation.teachers.endpoint import EndpointTeacher
from everswarm.training.distillation.teachers.endpoint_answer import AnswerScorer, end_names, read_answer
from everswarm.training.workspace import AnswerBatch, HttpWorkspace, LocalWorkspace

MakeExamples = Callable[[int], list[Example]]
Ask = Callable[[dict[str, Any]], tuple[int, dict[str, Any]]]


def told(
    token: str, logprob: float, *rivals: tuple[str, float], data: bytes | None = None, **more: Any
) -> dict[str, Any]:
    """One token in OpenAI's shape, the likeliest of its candidates."""
    own = {"token": token, "bytes": list(token.encode() if data is None else data), "logprob": logprob}
    others = [{"token": rival, "bytes": list(rival.encode()), "logprob": other} for rival, other in rivals]
    return {**own, "top_logprobs": [{**own, **more}, *others], **more}


def completion(content: str, *tokens: dict[str, Any], finish: str = "stop") -> dict[str, Any]:
    logprobs = {"content": list(tokens)} if tokens else None
    choice = {"message": {"role": "assistant", "content": content}, "finish_reason": finish, "logprobs": logprobs}
    return {"object": "chat.completion", "choices": [{"index": 0, **choice}]}


PARIS = completion(
    "Paris.",
    told("Paris", -0.5, ("London", -2.0), ("", -3.0)),
    told(".", -0.1, ("!", -2.5)),
    told("", -0.25, (" It", -2.0)),
)


def scored(answer: dict[str, Any], *, top_k: int = 4) -> ScoredText:
    read = read_answer(answer)
    assert read is not None
    found = AnswerScorer(top_k=top_k, ends=end_names([read])).score("a", read)
    check_scored(found)
    return found


def candidates(text: ScoredText, place: int) -> list[bytes]:
    return [text.vocabulary[number] for number in text.top[place] if number >= 0]


# --- how an answer is read


def test_answer_with_its_end_of_turn_as_llama_cpp_tells_it() -> None:
    text = scored(PARIS)
    assert (text.text, text.ended, text.source, text.end.tolist()) == (b"Paris.", True, "teacher", [5, 6, 6])
    assert candidates(text, 0) == [b"Paris", b"London", END_OF_TURN]
    assert candidates(text, 2) == [END_OF_TURN, b" It"]
    np.testing.assert_allclose(text.logprob, [-0.5, -0.1, -0.25])
    rest = 1 - math.exp(-0.5) - math.exp(-2.0) - math.exp(-3.0)
    assert text.tail_logprob[0] == pytest.approx(math.log(rest))


def test_end_of_turn_by_its_name_as_vllm_tells_it() -> None:
    text = scored(completion("Hi", told("Hi", -0.5, ("<|im_end|>", -1.5)), told("<|im_end|>", -0.2)))
    assert text.end.tolist() == [2, 2]
    assert candidates(text, 0) == [b"Hi", END_OF_TURN]
    assert candidates(text, 1) == [END_OF_TURN]


def test_answer_that_ended_without_a_told_end_says_nothing_of_how_likely_that_was() -> None:
    text = scored(completion("Hi", told("Hi", -0.5)))
    assert (text.ended, text.end.tolist(), candidates(text, 1)) == (True, [2, 2], [])
    assert (float(text.logprob[1]), float(text.tail_logprob[1])) == (0.0, 0.0)


def test_answer_cut_by_our_limit_has_not_ended() -> None:
    text = scored(completion("Hi", told("Hi", -0.5), finish="length"))
    assert (text.ended, text.end.tolist()) == (False, [2])


def test_space_that_sentencepiece_puts_in_front_counts_for_nothing() -> None:
    text = scored(completion("Hi you", told(" Hi", -0.5, (" Ho", -2.0)), told(" you", -0.5), finish="length"))
    assert text.end.tolist() == [2, 6]
    assert candidates(text, 0) == [b"Hi", b"Ho"]
    assert candidates(text, 1) == [b" you"]


def test_without_candidates_the_token_itself_is_the_only_one() -> None:
    plain = {"token": "Hi", "bytes": None, "logprob": -0.5, "top_logprobs": []}
    text = scored(completion("Hi", plain, finish="length"))
    assert candidates(text, 0) == [b"Hi"]
    assert math.exp(float(text.tail_logprob[0])) == pytest.approx(1 - math.exp(-0.5))


def test_equal_candidates_count_once_and_certainty_leaves_a_floor() -> None:
    text = scored(completion("Hi", told("Hi", 0.0, ("", -30.0), ("", -31.0)), finish="length"))
    assert candidates(text, 0) == [b"Hi", END_OF_TURN]
    assert float(text.tail_logprob[0]) == pytest.approx(math.log(1e-7))


@pytest.mark.parametrize(
    "answer",
    [
        completion("Hi"),
        completion("Hi", told("Ho", -0.5)),
        completion("Hi", {"token": "Hi"}),
        completion("Hi", told("Hi", None)),  # type: ignore[arg-type]
        completion("Hi", {**told("Hi", -0.5), "bytes": 10**12}),
        completion("Hi", {**told("Hi", -0.5), "bytes": [300]}),
        completion("Hi", {**told("Hi", -0.5), "bytes": "Hi"}),
        completion("Hi", {**told("Hi", -0.5), "top_logprobs": 5}),
        completion("Hi", {**told("Hi", -0.5), "logprob": 10**400}),
        completion("Hi", 5, None),  # type: ignore[arg-type]
        {"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop", "logprobs": [1]}]},
        {"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop", "logprobs": {"content": 7}}]},
        # OpenAI: its own token was not among the likeliest
        completion("Hi", told("Hi", -9999.0, ("Ho", -0.1)), told("", -0.1)),
        completion("Hi \ufffd", told("Hi", -0.5), {"token": " \ufffd", "logprob": -1.0}),
        # llama.cpp: three tokens made this character, and the log-probability is that of the last byte alone
        completion("😉", {**told("😉", -1.0, data="😉".encode()[-1:], id=7), "bytes": list("😉".encode())}),
        completion("😉", {**told("😉", -1.0, id=7), "top_logprobs": []}),
    ],
)
def test_what_cannot_be_read_for_certain_teaches_by_its_text_alone(answer: dict[str, Any]) -> None:
    text = scored(answer)
    assert text.text.decode() == answer["choices"][0]["message"]["content"]
    assert (text.ended, text.tokens, text.top.shape) == (True, 0, (0, 0))


def test_character_of_one_token_is_no_joined_one() -> None:
    text = scored(completion("😉", told("😉", -1.0, id=7), finish="length"))
    assert text.end.tolist() == [4]


def test_candidate_that_is_impossible_is_none() -> None:
    text = scored(completion("Hi", told("Hi", -0.5, ("Ho", -9999.0)), finish="length"))
    assert candidates(text, 0) == [b"Hi"]


@pytest.mark.parametrize(
    "answer",
    [
        completion(""),
        completion(" \n"),
        {"choices": []},
        {},
        {"choices": [None]},
        {"choices": 3},
        {"choices": [{"message": "Hi"}]},
        ["Hi"],
    ],
)
def test_empty_answer_is_none(answer: object) -> None:
    assert read_answer(answer) is None


@given(st.text(min_size=1).filter(str.strip), st.data())
def test_tokens_cover_any_text_and_probabilities_sum_to_one(content: str, data: st.DataObject) -> None:
    whole = content.encode("utf-8", "replace")
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(whole) - 1)), max_size=6)) - {len(whole)})
    pieces = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    tokens = [told("?", data.draw(st.floats(-20, 0)), data=piece) for piece in pieces]
    text = scored(completion(content, *tokens))
    assert text.end.tolist() == [*cuts, len(whole), len(whole)]
    mass = np.exp(text.top_logprob).sum(1) + np.exp(text.tail_logprob)
    np.testing.assert_allclose(mass, 1.0, atol=1e-6)


# --- how it is asked


class Answering:
    """Answers batches by a function of a request's body, as `answer_batch` would; keeps what it was asked."""

    def __init__(self, ask: Ask) -> None:
        self.ask = ask
        self.asked: list[list[dict[str, Any]]] = []
        self.kept: dict[str, Path] = {}

    def __call__(
        self, requests: Path, *, batch: str | None, on_batch: Callable[[str], None], on_wait: Callable[[str], None]
    ) -> Path:
        on_wait("1 of 2 answered")
        if batch in self.kept:
            return self.kept[batch]
        lines = [json.loads(line) for line in requests.read_text().splitlines()]
        self.asked.append(lines)
        name = f"batch_{len(self.asked)}"
        on_batch(name)
        self.kept[name] = requests.with_name(f"{name}.jsonl")
        self.kept[name].write_text("".join(json.dumps(self._answer(line)) + "\n" for line in lines))
        return self.kept[name]

    def _answer(self, line: dict[str, Any]) -> dict[str, Any]:
        status, body = self.ask(line["body"])
        if not status:
            error = {"code": "batch_expired", "message": "too late"}
            return {"custom_id": line["custom_id"], "response": None, "error": error}
        return {"custom_id": line["custom_id"], "response": {"status_code": status, "body": body}, "error": None}


def refusal(message: str) -> tuple[int, dict[str, Any]]:
    return 422, {"error": {"message": message}}


@pytest.fixture
def texts(make_examples: MakeExamples) -> list[Text]:
    return [Text(example, example.target, "target") for example in make_examples(4)]


def teacher(answer: AnswerBatch, tmp_path: Path, **options: Any) -> EndpointTeacher:
    return EndpointTeacher("org/model", **{"hindsight": False, "answer_batch": answer, "folder": tmp_path, **options})


def label(teacher: EndpointTeacher, texts: list[Text], batch: str | None = None) -> tuple[list[ScoredText], list[str]]:
    remembered: list[str] = []
    return list(teacher.label(texts, batch=batch, on_batch=remembered.append)), remembered


def test_questions_are_asked_once_each_and_rollouts_not_at_all(tmp_path: Path, texts: list[Text]) -> None:
    answering = Answering(lambda _: (200, PARIS))
    waits: list[str] = []
    asked = teacher(answering, tmp_path, on_wait=waits.append)
    rollout = texts[0]._replace(completion="Hm.", source="rollout")
    found, remembered = label(asked, [texts[0], rollout, *texts[1:]])
    assert [text.id for text in found] == [text.example.id for text in texts]
    assert {text.source for text in found} == {"teacher"}
    assert remembered == ["batch_1"]
    assert answering.asked[0][0] == {
        "custom_id": "example-1",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {
            "model": "org/model",
            "messages": [{"role": "user", "content": "How many metres are 1 km?"}],
            "temperature": 1.0,
            "max_tokens": 512,
            "logprobs": True,
            "top_logprobs": 20,
        },
    }
    assert waits[-1] == "waiting for endpoint org/model: 1 of 2 answered"
    assert (asked.scores_given_text, asked.top_k) == (False, 20)


def test_with_hindsight_it_reads_the_correction_and_keeps_to_it(tmp_path: Path, texts: list[Text]) -> None:
    answering = Answering(lambda _: (200, PARIS))
    label(teacher(answering, tmp_path, hindsight=True), texts)
    body = answering.asked[0][0]["body"]
    assert [message["content"] for message in body["messages"]][1:2] == [texts[0].completion]
    assert body["temperature"] == 0.3


def test_choosy_endpoint_is_asked_for_less_and_that_is_remembered(tmp_path: Path, texts: list[Text]) -> None:
    def ask(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if body.get("top_logprobs", 0) > 5:
            return refusal("up cannot use this request: top_logprobs must be at most 5")
        return 200, PARIS

    answering = Answering(ask)
    asked = teacher(answering, tmp_path)
    found, remembered = label(asked, texts)
    assert (len(found), remembered) == (4, ["batch_1", "batch_1 batch_2"])
    label(asked, texts)
    assert [lines[0]["body"]["top_logprobs"] for lines in answering.asked] == [20, 5, 5]


def test_endpoint_without_any_log_probabilities_teaches_by_text(tmp_path: Path, texts: list[Text]) -> None:
    def ask(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        return refusal("logprobs is not supported") if "logprobs" in body else (200, completion("Paris."))

    answering = Answering(ask)
    found, _ = label(teacher(answering, tmp_path), texts)
    assert len(answering.asked) == 4
    assert [text.text for text in found] == [b"Paris."] * 4
    assert all(text.ended and not text.tokens for text in found)


def test_only_what_is_missing_is_asked_again(tmp_path: Path, texts: list[Text]) -> None:
    late = {"How many metres are 2 km?"}

    def ask(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        question = body["messages"][0]["content"]
        if question in late:
            late.remove(question)
            return 0, {}
        return 200, PARIS

    answering = Answering(ask)
    found, _ = label(teacher(answering, tmp_path), texts)
    assert len(found) == 4
    assert [[line["custom_id"] for line in lines] for lines in answering.asked[1:]] == [["example-2"]]


def test_killed_worker_pays_for_nothing_twice(tmp_path: Path, texts: list[Text]) -> None:
    def ask(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        return refusal("top_logprobs is too large") if body.get("top_logprobs") == 20 else (200, PARIS)

    answering = Answering(ask)
    first, remembered = label(teacher(answering, tmp_path), texts)
    again, more = label(teacher(answering, tmp_path), texts, batch=remembered[-1])
    assert (len(answering.asked), more) == (2, [])
    for one, other in zip(first, again, strict=True):
        assert (one.id, one.text, one.vocabulary) == (other.id, other.text, other.vocabulary)
        np.testing.assert_array_equal(one.top_logprob, other.top_logprob)
    label(teacher(answering, tmp_path), texts, batch="batch_1")  # killed between the two
    assert len(answering.asked) == 3


def test_few_failures_are_left_out_and_told(
    tmp_path: Path, texts: list[Text], caplog: pytest.LogCaptureFixture
) -> None:
    answers = iter([(200, PARIS), refusal("too long"), (200, completion("")), (200, completion("Hi"))])
    found, _ = label(teacher(Answering(lambda _: next(answers)), tmp_path), texts)
    assert [text.id for text in found] == ["example-1", "example-4"]
    assert "org/model: 1 answers are empty, 1 failed: too long" in caplog.text
    assert "org/model: 1 answers teach by their text alone: the endpoint gave none" in caplog.text


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            refusal("there is no such model"),
            r"left 8 of 8 questions without an answer, more than half: there is no such",
        ),
        ((200, completion("")), r"more than half: the answers were empty\. Look at it with: everswarm doctor"),
        ((0, {}), r"the server did not come to them in a day"),
    ],
)
def test_silent_endpoint_is_refused(
    tmp_path: Path, make_examples: MakeExamples, answer: tuple[int, dict[str, Any]], message: str
) -> None:
    texts = [Text(example, example.target, "target") for example in make_examples(8)]
    with pytest.raises(StageFailedError, match=message):
        label(teacher(Answering(lambda _: answer), tmp_path), texts)


@pytest.mark.parametrize("said", [{"error": "no such model"}, ["odd"], "odd", None])
def test_few_questions_of_a_last_shard_without_an_answer_are_left_out(
    tmp_path: Path, texts: list[Text], said: Any
) -> None:
    found, _ = label(teacher(Answering(lambda _: (422, said)), tmp_path), texts[:1])
    assert found == []


@pytest.mark.parametrize(
    "nonsense", [told("Hi", 3.0), told("Hi", math.nan), told("Hi", -0.1, ("Ho", -0.1), ("Ha", -0.1))]
)
def test_nonsense_is_refused_by_the_name_of_its_endpoint(
    tmp_path: Path, texts: list[Text], nonsense: dict[str, Any]
) -> None:
    answering = Answering(lambda _: (200, completion("Hi", nonsense)))
    with pytest.raises(StageFailedError, match=r"The endpoint of model 'org/model' answers nonsense\. .*'example-1'"):
        label(teacher(answering, tmp_path), texts)


def test_folder_without_a_server_says_who_could_answer(tmp_path: Path, texts: list[Text]) -> None:
    with pytest.raises(StageFailedError, match=r"this workspace has no server\. Give LocalWorkspace\(answer=…\)"):
        label(teacher(LocalWorkspace(tmp_path).answer_batch, tmp_path), texts)
    answering = Answering(lambda _: (200, PARIS))
    assert len(label(teacher(LocalWorkspace(tmp_path, answer=answering).answer_batch, tmp_path), texts)[0]) == 4


# --- over the real server


@pytest.fixture
def upstream() -> Iterator[FakeUpstream]:
    with FakeUpstream(body=json.dumps({**PARIS, "id": "1", "usage": {}}).encode()) as running:
        yield running


@pytest.fixture
def workspace(upstream: FakeUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HttpWorkspace]:
    """That of a worker whose server has one endpoint."""
    monkeypatch.setattr(batches, "FIRST_PAUSE_SECONDS", 0.02)
    endpoint = EndpointSettings(name="up", base_url=upstream.base_url, model="org/model", timeout_seconds=30)
    server = ServedGateway(Settings(home=tmp_path / "home", endpoints=[endpoint]))
    server.start()
    with EverswarmClient(server.url, worker_key(server)) as client:
        yield HttpWorkspace(client, folder=tmp_path / "scratch", cache=tmp_path / "cache", emit=lambda _: None)
    server.stop()


def worker_key(server: ServedGateway) -> str:
    return create_key(server.app.state.database, scope=Scope.WORKER, label="worker").key


def test_worker_labels_over_the_servers_batches_and_leaves_no_files(
    workspace: HttpWorkspace, upstream: FakeUpstream, texts: list[Text]
) -> None:
    upstream.script.extend([Behaviour(status=400, body=b'{"error": {"message": "top_logprobs: at most 5"}}')] * 4)
    asked = teacher(workspace.answer_batch, workspace.folder)
    checkpoints: list[str] = []

    def remember(batch: str) -> None:
        checkpoints.append(batch)
        workspace.save_checkpoint({"batch": batch})

    found = list(asked.label(texts, batch=None, on_batch=remember))
    assert [text.text for text in found] == [b"Paris."] * 4
    assert [request["top_logprobs"] for request in upstream.requests] == [20] * 4 + [5] * 4

    again = teacher(workspace.answer_batch, workspace.folder)  # a worker that was killed before the shard was stored
    assert len(list(again.label(texts, batch=checkpoints[-1], on_batch=remember))) == 4
    assert len(upstream.requests) == 8

    answered = [name for batch in checkpoints[-1].split() for name in batches.get_batch(workspace.client, batch).files]
    workspace.save_checkpoint({"shards": ["stored"]})  # not with the server yet: a worker that is killed now needs them
    for name in answered:
        workspace.client.request("GET", f"/v1/files/{name}")
    workspace.finish()
    for name in answered:
        with pytest.raises(NotFoundError):
            workspace.client.request("GET", f"/v1/files/{name}")


def test_killed_while_it_waits_the_next_try_finds_the_batch(
    workspace: HttpWorkspace, upstream: FakeUpstream, texts: list[Text]
) -> None:
    upstream.behaviour.delay_seconds = 0.0
    upstream.behaviour.first_byte_seconds = 0.3
    remembered: list[str] = []

    def die(text: str) -> None:
        if "answered" in text:
            raise KeyboardInterrupt

    killed = teacher(workspace.answer_batch, workspace.folder, on_wait=die)
    with pytest.raises(KeyboardInterrupt):
        list(killed.label(texts, batch=None, on_batch=remembered.append))
    found, more = label(teacher(workspace.answer_batch, workspace.folder), texts, batch=remembered[0])
    assert (len(found), more, len(upstream.requests)) == (4, [], 4)


def test_server_that_is_away_is_no_failure_of_the_stage(workspace: HttpWorkspace, texts: list[Text]) -> None:
    workspace.client = EverswarmClient("http://127.0.0.1:9", "esw_worker")
    with pytest.raises(UnavailableError, match="does not answer"):
        label(teacher(workspace.answer_batch, workspace.folder), texts)


@pytest.mark.model
def test_embedded_model_teaches_over_http_with_its_log_probabilities(tmp_path: Path, texts: list[Text]) -> None:
    server = ServedGateway(Settings(home=tmp_path / "home"))
    server.start()
    try:
        states = server.app.state.gateway.states
        until(lambda: states() == {"embedded": "operational"}, what="the engine", seconds=120)
        with EverswarmClient(server.url, worker_key(server)) as client:
            workspace = HttpWorkspace(client, folder=tmp_path / "s", cache=tmp_path / "c", emit=lambda _: None)
            asked = EndpointTeacher(
                "primary",
                hindsight=True,
                answer_batch=workspace.answer_batch,
                folder=workspace.folder,
                answer_tokens=40,
            )
            found, _ = label(asked, texts)
    finally:
        server.stop()
    for text in found:
        check_scored(text)
        assert text.tokens > 3
        assert text.top.shape[1] == 20
        assert 0.5 < text.top_k_mass / text.tokens <= 1.0
        assert text.end[-1] == len(text.text)
    ended = [text for text in found if text.ended]
    assert ended, "with the answer in sight a short answer ends by itself"
    assert all(END_OF_TURN in candidates(text, text.tokens - 1) for text in ended)
