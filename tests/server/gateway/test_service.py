"""Which endpoint answers, and what happens when it does not."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from sqlalchemy import select
from tests.fakes.upstream import Behaviour, FakeUpstream

from everswarm.errors import (
    BadRequestError,
    ConfigurationError,
    DigestMismatchError,
    MissingExtraError,
    NotFoundError,
    QuotaSpentError,
    UnavailableError,
)
from everswarm.llm.fake import FakeChatModel
from everswarm.schemas.gateway import Priority
from everswarm.server.gateway import Call, Gateway, Usage, embedded, record_usage
from everswarm.server.gateway.breaker import FAILURES_IN_A_ROW
from everswarm.server.gateway.cache import AnswerCache
from everswarm.server.gateway.embedded import EmbeddedEndpoint
from everswarm.server.gateway.endpoints import Endpoint
from everswarm.server.gateway.quota import Limit, Quota
from everswarm.server.gateway.quota_store import open_quota_store
from everswarm.server.gateway.tables import usage
from everswarm.settings import EMBEDDED_MODEL, EndpointSettings, EngineSettings, GatewaySettings, Settings

ASK = {"model": "primary", "messages": [{"role": "user", "content": "capital of France?"}]}
ROLES = ("primary", "coordinator", "specialist")


def endpoint(name: str, *, model: str = "org/model", roles=ROLES) -> Endpoint:
    return Endpoint(name, model=model, roles=roles, client=FakeChatModel([f"from {name}"], model=model))


def remote(name: str, upstream: FakeUpstream, **options) -> EndpointSettings:
    return EndpointSettings(name=name, base_url=upstream.base_url, timeout_seconds=5, **options)


def said(answered) -> str:
    return answered.response["choices"][0]["message"]["content"]


async def until(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "did not happen"
        await asyncio.sleep(0.01)


@pytest.fixture
def two_upstreams():
    with FakeUpstream(answer="from first") as first, FakeUpstream(answer="from second") as second:
        yield first, second


@pytest.fixture
def with_endpoints(tmp_path):
    """Return a function that makes a gateway of endpoints, with a quota store of its own."""

    def make(endpoints, **options):
        return Gateway(endpoints, store=open_quota_store(home=tmp_path, database_url=None), **options)

    return make


@pytest.fixture
async def gateway(two_upstreams):
    """Two endpoints for the same roles; the second only where the first cannot."""
    first, second = two_upstreams
    one, two = remote("first", first, model="org/one"), remote("second", second, model="org/two", weight=0)
    settings = Settings(endpoints=[one, two], gateway=GatewaySettings(wait_seconds=0, retries=0))
    running = Gateway.from_settings(settings)
    await running.start()
    await until(lambda: set(running.states().values()) == {"operational"})
    yield running
    await running.close()


async def test_role_is_answered_by_the_first_endpoint_with_its_model(gateway, two_upstreams):
    answered = await gateway.chat(Call(ASK, ["primary"]))
    assert (answered.endpoint, answered.model, answered.role) == ("first", "org/one", "primary")
    assert said(answered) == "from first"
    assert two_upstreams[0].requests[0]["model"] == "org/one"


async def test_full_model_name_is_answered_by_its_endpoint(gateway):
    answered = await gateway.chat(Call(ASK, ["org/two"]))
    assert (answered.endpoint, answered.role) == ("second", None)


async def test_next_endpoint_answers_when_the_first_fails_and_the_first_is_named(gateway, two_upstreams):
    two_upstreams[0].behaviour = Behaviour(status=500, body=b'{"error":{"message":"boom"}}')
    answered = await gateway.chat(Call(ASK, ["primary"]))
    assert said(answered) == "from second"
    assert gateway.states() == {"first": "the endpoint 'first' answered with 500: boom", "second": "operational"}
    for _ in range(5):
        await gateway.chat(Call(ASK, ["primary"]))
    assert len(two_upstreams[0].requests) == FAILURES_IN_A_ROW, "after these nobody asks it for a while"


async def test_endpoint_that_answers_again_is_operational_again(gateway, two_upstreams):
    two_upstreams[0].behaviour = Behaviour(status=500)
    await gateway.chat(Call(ASK, ["org/two", "org/one"]))
    with pytest.raises(UnavailableError):
        await gateway.chat(Call(ASK, ["org/one"]))
    two_upstreams[0].behaviour = Behaviour()
    await gateway.chat(Call(ASK, ["org/one"]))
    assert gateway.states()["first"] == "operational"


async def test_stream_falls_back_before_its_first_piece(gateway, two_upstreams):
    two_upstreams[0].behaviour = Behaviour(cut_after_pieces=0)
    answered = await gateway.chat_stream(Call(ASK, ["primary"]))
    pieces = [chunk async for together in answered.chunks for chunk in together]
    assert answered.endpoint == "second"
    assert pieces[0]["choices"][0]["delta"]["role"] == "assistant"


async def test_stream_does_not_fall_back_after_its_first_piece(gateway, two_upstreams):
    two_upstreams[0].behaviour = Behaviour(cut_after_pieces=2)
    answered = await gateway.chat_stream(Call(ASK, ["primary"]))
    with pytest.raises(UnavailableError, match="broke off"):
        [chunk async for chunk in answered.chunks]
    assert two_upstreams[1].requests == []


async def test_refused_request_is_not_tried_elsewhere(gateway, two_upstreams):
    two_upstreams[0].behaviour = Behaviour(status=400, body=b'{"error":{"message":"bad"}}')
    with pytest.raises(BadRequestError, match="bad"):
        await gateway.chat(Call(ASK, ["primary"]))
    assert two_upstreams[1].requests == []
    assert gateway.states()["first"] == "operational"


async def test_quota_is_spent_only_when_everyones_is(gateway, two_upstreams):
    two_upstreams[0].behaviour = Behaviour(status=429, headers={"Retry-After": "40"})
    assert said(await gateway.chat(Call(ASK, ["primary"]))) == "from second"
    two_upstreams[1].behaviour = Behaviour(status=429, headers={"Retry-After": "20"})
    with pytest.raises(
        QuotaSpentError, match=r"No endpoint can answer for 'primary' now\..*Try again in 20 s"
    ) as caught:
        await gateway.chat(Call(ASK, ["primary"]))
    assert (caught.value.status, caught.value.retry_after_seconds) == (429, 20)


async def test_unknown_model_lists_what_there_is(gateway):
    with pytest.raises(
        NotFoundError,
        match=r"no model 'gpt-9' here\. There are: everswarm, primary, coordinator, specialist, org/one, org/two",
    ):
        await gateway.chat(Call(ASK, ["gpt-9"]))


async def test_second_target_is_used_when_the_first_has_no_working_endpoint(with_endpoints):
    dead = endpoint("dead", roles=["specialist"])
    dead.client = BrokenModel()
    gateway = with_endpoints([dead, endpoint("alive", roles=["primary"])])
    answered = await gateway.chat(Call(ASK, ["specialist", "primary"]))
    assert (answered.endpoint, answered.role) == ("alive", "primary")


class BrokenModel(FakeChatModel):
    def __init__(self) -> None:
        super().__init__([""])

    async def chat(self, payload, *, heard=None):
        raise UnavailableError("the cable is cut", retry_after_seconds=9)


async def test_gateway_lists_roles_and_models(with_endpoints):
    gateway = with_endpoints(
        [endpoint("a", model="x/one", roles=["primary"]), endpoint("b", model="x/two", roles=["specialist"])]
    )
    assert [(model.name, model.roles) for model in gateway.models()] == [
        ("primary", ()),
        ("specialist", ()),
        ("x/one", ("primary",)),
        ("x/two", ("specialist",)),
    ]


async def test_no_endpoint_at_all_says_what_to_configure():
    gateway = Gateway.from_settings(Settings(engine=EngineSettings(enabled=False)))
    assert gateway.states() == {}
    with pytest.raises(UnavailableError, match=r"Enable \[engine\], or add \[\[endpoints\]\]"):
        await gateway.chat(Call(ASK, ["primary"]))


def test_two_endpoints_with_one_name_are_refused(with_endpoints):
    with pytest.raises(ConfigurationError, match="Two endpoints have the name 'a'"):
        with_endpoints([endpoint("a"), endpoint("a")])


def test_credential_comes_from_its_variable(monkeypatch):
    made = EndpointSettings(name="router", base_url="http://127.0.0.1:1/v1", model="m", api_key_env="ROUTER_KEY")
    monkeypatch.delenv("ROUTER_KEY", raising=False)
    with pytest.raises(ConfigurationError, match="its credential from the variable ROUTER_KEY, which is not set"):
        Gateway.from_settings(Settings(endpoints=[made]))
    monkeypatch.setenv("ROUTER_KEY", "secret")
    assert Gateway.from_settings(Settings(endpoints=[made])).states() == {"router": "starting"}


async def test_embedded_endpoint_says_that_it_fetches_and_then_that_the_engine_starts(
    with_endpoints, tmp_path, monkeypatch
):
    fetching = asyncio.Event()
    loop = asyncio.get_running_loop()
    let_go = threading.Event()

    def slow_pull(model, models_dir, *, on_progress):
        on_progress(f"fetching {model} (98 MB) from the Hub")
        loop.call_soon_threadsafe(fetching.set)
        let_go.wait(30)
        raise UnavailableError("No source gave it.")

    monkeypatch.setattr(embedded, "pull_gguf", slow_pull)
    gateway = with_endpoints([EmbeddedEndpoint(EngineSettings(), models_dir=tmp_path)])
    assert gateway.states() == {"embedded": "starting"}
    await gateway.start()
    await fetching.wait()
    assert gateway.states()["embedded"] == f"starting: fetching {EMBEDDED_MODEL} (98 MB) from the Hub"
    with pytest.raises(UnavailableError, match=r"'embedded' is not ready: starting: fetching .*Try again in 5 s"):
        await gateway.chat(Call(ASK, ["primary"]))
    let_go.set()
    await until(lambda: "No source gave it. Trying again every 60 s" in gateway.states()["embedded"])
    await gateway.close()


@pytest.mark.parametrize(
    "error",
    [
        DigestMismatchError("model.gguf", expected="a" * 64, found="b" * 64),
        MissingExtraError("The embedded engine", "engine"),
    ],
)
async def test_embedded_endpoint_that_the_operator_must_mend_says_why(with_endpoints, tmp_path, monkeypatch, error):
    def refuse(*_args, **_options):
        raise error

    monkeypatch.setattr(embedded, "pull_gguf", refuse)
    gateway = with_endpoints([EmbeddedEndpoint(EngineSettings(), models_dir=tmp_path)])
    await gateway.start()
    await until(lambda: gateway.states()["embedded"] == str(error))
    await gateway.close()


def test_usage_is_stored(database):
    record_usage(database, Usage("embedded", "primary", "m", "interactive", "answered", 12, 5, 0.5))
    with database.read() as connection:
        row = connection.execute(select(usage)).one()
    assert (row.endpoint, row.prompt_tokens, row.completion_tokens, row.outcome) == ("embedded", 12, 5, "answered")
    assert row.created_at.tzinfo is not None


@pytest.mark.model
async def test_embedded_profile_answers_every_role_with_nothing_configured(tmp_path):
    gateway = Gateway.from_settings(Settings(home=tmp_path))
    await gateway.start()
    try:
        await until(lambda: gateway.states() == {"embedded": "operational"})
        for role in ROLES:
            answered = await gateway.chat(Call({**ASK, "max_tokens": 4}, [role]))
            assert said(answered)
            assert answered.model == EMBEDDED_MODEL
    finally:
        await gateway.close()


class Speaking(FakeChatModel):
    """Streams what it is told; an error among the pieces is raised."""

    def __init__(self, *pieces) -> None:
        super().__init__(["whole"])
        self.pieces = pieces

    async def stream(self, payload, *, heard=None):
        for piece in self.pieces:
            if isinstance(piece, Exception):
                raise piece
            yield [{"choices": [{"index": 0, "delta": piece, "finish_reason": None}]}]


def counted(name: str, client, **options) -> Endpoint:
    quota = Quota(name, (Limit("tokens", 10_000, 3600.0),))
    return Endpoint(name, model="org/model", roles=ROLES, client=client, quota=quota, **options)


async def text_of(answered) -> str:
    chunks = [chunk async for together in answered.chunks for chunk in together]
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


async def held_and_used(gateway) -> list[tuple[int, int]]:
    return [(limit.held, limit.used) for view in await gateway.quotas() for limit in view.limits]


async def test_stream_that_ends_after_its_role_is_begun_elsewhere(with_endpoints):
    cut = UnavailableError("the cable is cut")
    broken = endpoint("broken")
    broken.client = Speaking({"role": "assistant", "content": ""}, cut)
    gateway = with_endpoints(
        [broken, Endpoint("good", model="m", roles=ROLES, client=Speaking({"content": "hi"}), weight=0)]
    )
    answered = await gateway.chat_stream(Call(ASK, ["primary"]))
    assert (answered.endpoint, await text_of(answered)) == ("good", "hi")


async def test_endpoint_that_cuts_every_stream_rests(with_endpoints):
    cutting = endpoint("cutting")
    cutting.client = Speaking({"content": "half"}, UnavailableError("cut"))
    gateway = with_endpoints([cutting])
    for _ in range(FAILURES_IN_A_ROW):
        with pytest.raises(UnavailableError):
            await text_of(await gateway.chat_stream(Call(ASK, ["primary"])))
    assert cutting.breaker.state == "open"


async def test_request_that_fails_again_and_again_does_not_close_the_door_for_others(with_endpoints):
    place = endpoint("a")
    place.client = BrokenModel()
    gateway = with_endpoints([place], settings=GatewaySettings(retries=2))
    with pytest.raises(UnavailableError):
        await gateway.chat(Call(ASK, ["primary"]))
    assert place.breaker.state == "closed"


async def test_reservation_is_settled_though_the_usage_cannot_be_stored(with_endpoints):
    def full(_usage):
        raise UnavailableError("20,000 rows wait")

    gateway = with_endpoints([counted("a", FakeChatModel(["one two"]))], record=full)
    assert said(await gateway.chat(Call(ASK, ["primary"]))) == "one two"
    assert await held_and_used(gateway) == [(0, 5)]


async def test_reader_who_leaves_while_an_endpoint_closes_itself_leaves_nothing_held(with_endpoints):
    class Closing(FakeChatModel):
        async def chat(self, payload, *, heard=None):
            raise QuotaSpentError("429", retry_after_seconds=40)

    gateway = with_endpoints([counted("a", Closing([""]))])
    task = asyncio.create_task(gateway.chat(Call(ASK, ["primary"], wait_seconds=100)))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await held_and_used(gateway) == [(0, 0)]
    assert "closed until" in gateway.states()["a"]


async def test_larger_of_two_limits_is_reserved(with_endpoints):
    gateway = with_endpoints([counted("a", FakeChatModel(["one"]))])
    with pytest.raises(BadRequestError, match=r"'a': Asked for 200\d\d tokens.*never fit"):
        await gateway.chat(Call({**ASK, "max_completion_tokens": 1, "max_tokens": 20_000}, ["primary"]))


async def test_person_does_not_wait_with_a_batch_that_asks_the_same(with_endpoints, tmp_path):
    cache = AnswerCache(tmp_path / "cache.sqlite", ttl_seconds=60, size_bytes=10**6)
    slow = Quota("a", (Limit("tokens", 1000, 3600.0),), interactive_share=0.5)
    place = Endpoint("a", model="m", roles=ROLES, client=FakeChatModel(["yes"]), quota=slow, answer_tokens=400)
    gateway = with_endpoints([place], cache=cache)
    first = await gateway._store.reserve(slow, 400, priority=Priority.BATCH)
    same = {**ASK, "temperature": 0}
    batch = asyncio.create_task(gateway.chat(Call(same, ["primary"], priority=Priority.BATCH, wait_seconds=None)))
    await asyncio.sleep(0.05)
    assert gateway.waiting()[Priority.BATCH] == 1
    assert said(await gateway.chat(Call(same, ["primary"], wait_seconds=1))) == "yes"
    batch.cancel()
    assert first.tokens == 400


async def test_default_answer_is_never_longer_than_half_of_a_limit():
    small = Quota("a", (Limit("tokens", 300, 60.0),))
    assert Endpoint("a", model="m", roles=ROLES, client=FakeChatModel([""]), quota=small).answer_tokens == 150


async def test_health_does_not_repeat_what_an_endpoint_said(with_endpoints):
    place = endpoint("a")
    place.note_failure(UnavailableError("the endpoint 'a' answered with 500: secret prompt"))
    gateway = with_endpoints([place])
    assert gateway.states_in_short() == {"a": "the endpoint 'a' answered with 500"}
