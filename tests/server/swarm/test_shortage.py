"""Whether the calls of a strategy fit into what is left of the quotas, on the real store."""

from __future__ import annotations

from pathlib import Path

import pytest

from everswarm.llm.fake import FakeChatModel
from everswarm.schemas.gateway import Priority
from everswarm.server.gateway import Gateway
from everswarm.server.gateway.endpoints import Endpoint
from everswarm.server.gateway.quota import Limit, Quota
from everswarm.server.gateway.quota_store import open_quota_store


def endpoint(name: str, *roles: str, tokens: int | None = None, requests: int | None = None, key: str = "") -> Endpoint:
    limits = [Limit(unit, amount, 3600) for unit, amount in (("tokens", tokens), ("requests", requests)) if amount]
    quota = Quota(key or name, tuple(limits)) if limits else None
    return Endpoint(name, model=f"org/{name}", roles=roles, client=FakeChatModel(["x"]), quota=quota)


@pytest.fixture
def shortage(tmp_path: Path):
    def ask(*endpoints: Endpoint, needs, priority: Priority = Priority.INTERACTIVE):
        gateway = Gateway(list(endpoints), store=open_quota_store(home=tmp_path, database_url=None))
        return gateway.shortage(needs, priority=priority)

    return ask


async def test_without_a_quota_everything_fits(shortage) -> None:
    assert await shortage(endpoint("a", "primary"), needs=[("primary", 10**9)] * 9) is None


async def test_calls_fit_together_or_not_at_all(shortage) -> None:
    one = endpoint("a", "primary", tokens=1000)
    assert await shortage(one, needs=[("primary", 500)] * 2) is None
    told = await shortage(one, needs=[("primary", 500)] * 3)
    assert told == "the quota of 'primary' has 0 tokens left, and 500 tokens may be needed"


async def test_requests_are_counted_as_well(shortage) -> None:
    one = endpoint("a", "primary", tokens=10_000, requests=2)
    assert await shortage(one, needs=[("primary", 5)] * 2) is None
    told = await shortage(one, needs=[("primary", 5)] * 3)
    assert told == "the quota of 'primary' has no requests left, and 5 tokens may be needed"


async def test_roles_on_one_quota_share_it(shortage) -> None:
    both = endpoint("a", "primary", key="k", tokens=1000), endpoint("b", "specialist", key="k", tokens=1000)
    assert await shortage(*both, needs=[("primary", 600), ("specialist", 300)]) is None
    assert "'specialist' has 400 tokens left" in await shortage(*both, needs=[("primary", 600), ("specialist", 500)])


async def test_endpoints_of_one_role_help_each_other(shortage) -> None:
    both = endpoint("a", "primary", tokens=1000), endpoint("b", "primary", tokens=600)
    assert await shortage(*both, needs=[("primary", 600), ("primary", 600)]) is None
    assert await shortage(*both, needs=[("primary", 600)] * 3) is not None
    assert await shortage(*both, endpoint("c", "primary"), needs=[("primary", 600)] * 3) is None


async def test_endpoint_with_tokens_but_no_requests_does_not_hide_one_that_has_both(shortage) -> None:
    both = endpoint("a", "primary", requests=1), endpoint("b", "primary", tokens=600)
    assert await shortage(*both, needs=[("primary", 100)] * 4) is None


async def test_role_that_nobody_serves_needs_nothing_and_a_model_is_found_by_its_name(shortage) -> None:
    one = endpoint("a", "primary", tokens=100)
    assert await shortage(one, needs=[("coordinator", 10**6)]) is None
    assert "'org/a' has 100 tokens left" in await shortage(one, needs=[("org/a", 101)])


async def test_devices_and_batches_leave_the_share_of_people_alone(shortage) -> None:
    one = endpoint("a", "primary", tokens=1000)
    assert await shortage(one, needs=[("primary", 900)]) is None
    told = await shortage(one, needs=[("primary", 900)], priority=Priority.BATCH)
    assert told == "the quota of 'primary' has 800 tokens left, and 900 tokens may be needed"


async def test_what_others_hold_and_what_is_closed_does_not_count_as_left(tmp_path: Path) -> None:
    one = endpoint("a", "primary", tokens=1000)
    store = open_quota_store(home=tmp_path, database_url=None)
    gateway = Gateway([one], store=store)
    assert one.quota is not None
    await store.reserve(one.quota, 700, priority=Priority.INTERACTIVE)
    told = await gateway.shortage([("primary", 400)], priority=Priority.INTERACTIVE)
    assert told == "the quota of 'primary' has 300 tokens left, and 400 tokens may be needed"
    await store.close_key(one.quota.key, seconds=60, reason="it said so")
    assert "has 0 tokens left" in str(await gateway.shortage([("primary", 10)], priority=Priority.INTERACTIVE))
