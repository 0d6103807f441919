"""The client against a real HTTP upstream that misbehaves."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest
from tests.fakes.upstream import Behaviour, FakeUpstream

from everswarm.errors import BadRequestError, QuotaSpentError, TooLargeError, UnavailableError
from everswarm.llm.fake import FakeChatModel
from everswarm.llm.openai_client import OpenAIClient
from everswarm.llm.protocol import ChatModel
from everswarm.llm.upstream_errors import retry_after_seconds

ASK = {"model": "m", "messages": [{"role": "user", "content": "capital of France?"}]}


@pytest.fixture
def upstream():
    with FakeUpstream() as running:
        yield running


@pytest.fixture
async def client(upstream):
    made = OpenAIClient(upstream.base_url, name="the upstream", api_key="s3cret", timeout_seconds=5)
    yield made
    await made.close()


async def collect(model: ChatModel, payload=ASK):
    return [chunk async for together in model.stream(payload) for chunk in together]


def text_of(chunks):
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


async def test_whole_answer_and_credential(client, upstream):
    answer = await client.chat(ASK)
    assert answer["choices"][0]["message"]["content"] == "The capital of France is Paris."
    assert upstream.request_headers[0]["Authorization"] == "Bearer s3cret"
    assert upstream.requests[0]["stream"] is False


async def test_stream_gives_the_same_text_in_pieces(client):
    chunks = await collect(client)
    assert len(chunks) > 5
    assert text_of(chunks) == "The capital of France is Paris."


async def test_fields_that_we_do_not_know_reach_the_upstream(client, upstream):
    await client.chat({**ASK, "lora": [{"id": 0, "scale": 0}], "seed": 7})
    assert upstream.requests[0]["lora"] == [{"id": 0, "scale": 0}]
    assert upstream.requests[0]["seed"] == 7


async def test_long_lines_are_read(client, upstream):
    upstream.behaviour.answer = "x" * 3_000_000
    assert len(text_of(await collect(client))) == 3_000_000


async def test_refused_request_is_the_callers_to_mend(client, upstream):
    upstream.behaviour = Behaviour(status=400, body=b'{"error":{"message":"temperature must be a number"}}')
    with pytest.raises(BadRequestError, match="the upstream cannot use this request: temperature must be a number"):
        await client.chat(ASK)


async def test_conversation_over_the_context_is_said_with_its_length(client, upstream):
    body = b'{"error":{"type":"exceed_context_size_error","message":"too long","n_prompt_tokens":3031,"n_ctx":512}}'
    upstream.behaviour = Behaviour(status=400, body=body)
    with pytest.raises(BadRequestError, match=r"has 3031 tokens, the model reads 512\. Shorten it"):
        await collect(client)


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (413, TooLargeError, "too large for the upstream"),
        (429, QuotaSpentError, "takes no more requests now"),
        (402, QuotaSpentError, "takes no more requests now"),
        (401, UnavailableError, "refuses our credential"),
        (500, UnavailableError, "answered with 500: no explanation"),
    ],
)
async def test_refusals_say_who_must_act(client, upstream, status, kind, words):
    upstream.behaviour = Behaviour(status=status)
    with pytest.raises(kind, match=words):
        await client.chat(ASK)


async def test_spent_quota_says_when_to_come_again(client, upstream):
    upstream.behaviour = Behaviour(status=429, headers={"Retry-After": "17"})
    with pytest.raises(QuotaSpentError) as caught:
        await client.chat(ASK)
    assert caught.value.retry_after_seconds == 17


def test_retry_after_may_be_a_date_or_nonsense():
    assert retry_after_seconds({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 1
    assert retry_after_seconds({"Retry-After": "soon"}) is None
    assert retry_after_seconds({}) is None


@pytest.mark.parametrize(
    "text", ["\u00b2", "soon", "", "-5", "1" * 5000, "99999999999999999", "Wed, 21 Oct 99999 07:28:00 GMT"]
)
def test_retry_after_that_nobody_can_mean_harms_nobody(text):
    assert retry_after_seconds({"retry-after": text}) in (None, 1, 32 * 86_400)


def test_retry_after_may_be_a_unix_time():
    assert retry_after_seconds({"Retry-After": str(int(time.time()) + 100)}) in range(95, 102)


async def test_web_page_is_not_repeated_to_the_reader(client, upstream):
    upstream.behaviour = Behaviour(status=501, body=b"<!DOCTYPE HTML><p>Unsupported method")
    with pytest.raises(UnavailableError, match=r"501: a web page, not the OpenAI protocol; does base_url end in /v1\?"):
        await client.chat(ASK)


async def test_what_a_model_does_not_support_is_the_callers_to_mend(client, upstream):
    upstream.behaviour = Behaviour(status=500, body=b'{"error":{"message":"image input is not supported"}}')
    with pytest.raises(BadRequestError, match="image input is not supported"):
        await client.chat(ASK)


async def test_nobody_listening_is_unavailable():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        client = OpenAIClient(f"http://127.0.0.1:{free.getsockname()[1]}/v1", name="the upstream")
    with pytest.raises(UnavailableError, match=r"the upstream does not answer: .*refused"):
        await client.chat(ASK)
    await client.close()


async def test_silence_is_unavailable(upstream):
    upstream.behaviour.delay_seconds = 30
    client = OpenAIClient(upstream.base_url, timeout_seconds=0.1)
    with pytest.raises(UnavailableError, match="did not answer within"):
        await client.chat(ASK)
    with pytest.raises(UnavailableError, match="did not answer within"):
        await collect(client)
    await client.close()


async def test_cut_stream_is_an_error_after_its_pieces(client, upstream):
    upstream.behaviour.cut_after_pieces = 3
    pieces = []
    with pytest.raises(UnavailableError, match="the upstream broke off"):
        async for together in client.stream(ASK):
            pieces += together
    assert text_of(pieces) == "The capital"


@pytest.mark.parametrize("body", [b"<html>", b"[1]", b'{"ok":true}'])
async def test_answer_that_is_no_completion_is_unavailable(client, upstream, body):
    upstream.behaviour = Behaviour(body=body)
    with pytest.raises(UnavailableError, match="answered with something"):
        await client.chat(ASK)


async def test_closing_the_stream_ends_the_work_upstream(client, upstream):
    upstream.behaviour = Behaviour(repeat_forever=True, delay_seconds=0.01)
    chunks = client.stream(ASK)
    await anext(chunks)
    await chunks.aclose()
    assert await asyncio.to_thread(upstream.reader_left.wait, 10)


async def test_fake_follows_the_protocol():
    fake: ChatModel = FakeChatModel(["one two", "three"])
    assert (await fake.chat(ASK))["choices"][0]["message"]["content"] == "one two"
    assert text_of(await collect(fake)) == "three"
    with_usage = await collect(fake, {**ASK, "stream_options": {"include_usage": True}})
    assert with_usage[-1]["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
