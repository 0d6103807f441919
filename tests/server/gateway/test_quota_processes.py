"""Four processes hammer one quota: never more than its limit is granted, and a killed one's share comes back.

Run as a script, this file is one of the processes.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from everswarm.schemas.gateway import Priority
from everswarm.server.gateway.quota import Limit, Quota, Reservation
from everswarm.server.gateway.quota_store import open_quota_store

PROCESSES = 4
LEASE_SECONDS = 2.0
BEAT_SECONDS = 0.3
PATIENCE_SECONDS = 60.0  # of the test, with a busy machine
WHOLE = 3_000  # tokens


def quota(amount: int, window_seconds: float) -> Quota:
    return Quota("one endpoint", (Limit("tokens", amount, window_seconds),))


def open_store(home: str | Path, url: str | None):
    return open_quota_store(home=Path(home), database_url=url, lease_seconds=LEASE_SECONDS)


async def hammer(store, wanted: Quota, *, until: float | None) -> None:
    """Call and call, until the quota is spent or, where given, until that moment. Tell what each call used."""
    refusals = 0
    while refusals < 30 if until is None else time.time() < until:
        decision = await store.reserve(wanted, random.randint(1, 1 if refusals else 50), priority=Priority.INTERACTIVE)
        if not isinstance(decision, Reservation):
            refusals += 1
            await asyncio.sleep(random.uniform(0, 0.005))
            continue
        refusals, began = 0, time.time()
        await asyncio.sleep(random.uniform(0, 0.004))
        used, ended = random.randint(1, decision.tokens), time.time()
        await store.settle(wanted, decision, used)
        tell(began=began, ended=ended, used=used)


async def keep(store, wanted: Quota, tokens: int) -> None:
    """Reserve, and stay alive."""
    decision = await store.reserve(wanted, tokens, priority=Priority.INTERACTIVE)
    tell(kept=isinstance(decision, Reservation))
    while True:
        await asyncio.sleep(BEAT_SECONDS)
        await store.beat()


def tell(**what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


async def be_one_of_them(home: str, url: str, amount: str, window_seconds: str, work: str, number: str) -> None:
    store, wanted = open_store(home, url or None), quota(int(amount), float(window_seconds))
    tell(ready=True)
    sys.stdin.readline()
    if work == "keep":
        await keep(store, wanted, int(number))
    await hammer(store, wanted, until=float(number) or None)
    await store.close()


class Team:
    """The processes; none of them outlives the test."""

    def __init__(self, home: Path, url: str | None, wanted: Quota) -> None:
        (limit,) = wanted.limits
        self._arguments = [str(home), url or "", str(limit.amount), str(limit.window_seconds)]
        self.members: list[subprocess.Popen[str]] = []

    def start(self, work: str, number: float) -> subprocess.Popen[str]:
        member = subprocess.Popen(
            [sys.executable, __file__, *self._arguments, work, f"{number:.0f}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        self.members.append(member)
        return member

    def go(self) -> None:
        """Let all begin at once."""
        for member in self.members:
            assert self.hear(member) == {"ready": True}
        for member in self.members:
            assert member.stdin is not None
            member.stdin.write("go\n")
            member.stdin.flush()

    def hear(self, member: subprocess.Popen[str]) -> dict:
        assert member.stdout is not None
        return json.loads(member.stdout.readline())

    def hear_all(self, member: subprocess.Popen[str]) -> list[dict]:
        told, _ = member.communicate(timeout=PATIENCE_SECONDS)
        return [json.loads(line) for line in told.splitlines() if line.endswith("}")]


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def url(request: pytest.FixtureRequest) -> str | None:
    return request.getfixturevalue("postgres_url") if request.param == "postgres" else None


@pytest.fixture
def make_team(tmp_path, url):
    teams = []

    def make(wanted: Quota) -> Team:
        teams.append(Team(tmp_path, url, wanted))
        return teams[-1]

    yield make
    for member in (member for team in teams for member in team.members):
        member.kill()
        member.wait()


@pytest.fixture
async def store(tmp_path, url):
    opened = open_store(tmp_path, url)
    yield opened
    await opened.close()


async def until(condition) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not await condition():
        assert time.monotonic() < deadline, "did not happen"
        await asyncio.sleep(0.05)


async def test_four_processes_spend_the_quota_to_the_last_token_and_no_more(make_team, store):
    wanted = quota(WHOLE, 3600.0)
    team = make_team(wanted)
    for _ in range(PROCESSES):
        team.start("hammer", 0)
    team.go()
    told = [team.hear_all(member) for member in team.members]
    assert all(told), "one of them got nothing"
    assert sum(call["used"] for calls in told for call in calls) == WHOLE
    (limit,) = (await store.view(wanted)).limits
    assert (limit.used, limit.held, limit.left) == (WHOLE, 0, 0)


async def test_four_processes_never_cross_a_window_that_moves(make_team):
    wanted = quota(400, 1.0)
    team = make_team(wanted)
    for _ in range(PROCESSES):
        team.start("hammer", time.time() + 6)
    team.go()
    calls = [call for member in team.members for call in team.hear_all(member)]
    assert sum(call["used"] for call in calls) > 400, "the window moved on and nothing was granted"
    for moment in ("began", "ended"):  # the provider may count at either
        for call in calls:
            since = call[moment]
            assert sum(other["used"] for other in calls if since <= other[moment] <= since + 1.0) <= 400


async def test_killed_process_gives_back_its_share_when_its_lease_ends(make_team, store):
    wanted = quota(WHOLE, 3600.0)
    team = make_team(wanted)
    keeper = team.start("keep", WHOLE / 2)
    team.go()
    assert team.hear(keeper) == {"kept": True}
    others = make_team(wanted)
    for _ in range(PROCESSES - 1):
        others.start("hammer", 0)
    others.go()
    told = [call for member in others.members for call in others.hear_all(member)]
    assert sum(call["used"] for call in told) == WHOLE / 2  # what the first holds is nobody else's
    await asyncio.sleep(LEASE_SECONDS)
    assert not await fits(store, wanted, 1), "a process that lives lost its share"
    keeper.send_signal(signal.SIGKILL)
    keeper.wait()
    await until(lambda: fits(store, wanted, WHOLE // 2))
    assert not await fits(store, wanted, WHOLE // 2 + 1)


async def test_process_killed_in_the_middle_leaves_a_whole_store(make_team, store):
    wanted = quota(WHOLE, 3600.0)
    team = make_team(wanted)
    for _ in range(PROCESSES):
        team.start("hammer", 0)
    team.go()
    victim = team.members[0]
    heard = [team.hear(victim) for _ in range(5)]
    victim.send_signal(signal.SIGKILL)
    told = heard + [call for member in team.members for call in team.hear_all(member)]
    await until(lambda: nothing_held(store, wanted))
    (limit,) = (await store.view(wanted)).limits
    assert sum(call["used"] for call in told) <= limit.used <= WHOLE
    assert limit.used + limit.left == WHOLE
    assert limit.left == 0 or await fits(store, wanted, limit.left)


async def fits(store, wanted: Quota, tokens: int) -> bool:
    decision = await store.reserve(wanted, tokens, priority=Priority.INTERACTIVE)
    if isinstance(decision, Reservation):
        await store.cancel(decision)
        return True
    return False


async def nothing_held(store, wanted: Quota) -> bool:
    return (await store.view(wanted)).limits[0].held == 0


if __name__ == "__main__":
    asyncio.run(be_one_of_them(*sys.argv[1:]))
