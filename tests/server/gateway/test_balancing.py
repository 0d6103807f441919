"""Which endpoint is asked first, over many requests of a simulated day."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everswarm.server.gateway.balancing import (
    PRIOR_SECONDS,
    STALE_SECONDS,
    Load,
    comparable_seconds,
    order,
)


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass(eq=False)
class Place:
    """An endpoint that takes so long as `seconds` says at this moment."""

    name: str
    load: Load
    seconds: Callable[[], float]
    weight: float = 1.0
    left: float = 1.0


@dataclass
class Day:
    """Requests that come when the simulation says; calls end on its clock."""

    random: Random
    clock: Clock = field(default_factory=Clock)
    places: list[Place] = field(default_factory=list)
    asked: Counter[str] = field(default_factory=Counter)
    ends: list[tuple[float, int, Place, float]] = field(default_factory=list)

    def add(self, name: str, seconds: float | Callable[[], float], **kwargs: float) -> Place:
        duration = seconds if callable(seconds) else lambda: seconds * self.random.uniform(0.8, 1.2)
        self.places.append(Place(name, Load(clock=self.clock), duration, **kwargs))
        return self.places[-1]

    def ask(self) -> Place:
        chosen = order(
            self.places,
            cost=lambda place: place.load.cost(place.weight),
            left_share=lambda place: place.left,
            is_stale=lambda place: place.load.is_stale,
            random=self.random,
        )[0]
        self.asked[chosen.name] += 1
        chosen.load.begin()
        seconds = chosen.seconds()
        heapq.heappush(self.ends, (self.clock.now + seconds, sum(self.asked.values()), chosen, seconds))
        return chosen

    def end_next(self) -> None:
        self.clock.now, _, place, seconds = heapq.heappop(self.ends)
        place.load.end(seconds)

    def arrivals(self, *, requests: int, every_seconds: float) -> None:
        """Requests come by chance, so many seconds apart on average."""
        for _ in range(requests):
            comes = self.clock.now + self.random.expovariate(1 / every_seconds)
            while self.ends and self.ends[0][0] <= comes:
                self.end_next()
            self.clock.now = comes
            self.ask()

    def closed_loop(self, *, requests: int, together: int) -> None:
        """So many calls are always in flight."""
        for _ in range(requests):
            self.ask()
            while len(self.ends) >= together:
                self.end_next()


@pytest.fixture
def day() -> Day:
    return Day(Random(7))


@pytest.mark.parametrize("every_seconds", [0.2, 2.0, 60.0, 3600.0])
def test_most_requests_go_to_the_fast_one_and_the_slow_one_is_still_measured(day, every_seconds):
    day.add("slow", 1.0)
    day.add("fast", 0.2)
    day.arrivals(requests=3000, every_seconds=every_seconds)
    assert day.asked["fast"] > 0.8 * 3000
    assert day.asked["slow"] >= 10


def test_two_fast_ones_of_three_share_what_the_slow_one_does_not_get(day):
    for name, seconds in (("a", 0.2), ("b", 0.2), ("slow", 1.0)):
        day.add(name, seconds)
    day.closed_loop(requests=6000, together=6)
    assert day.asked["slow"] < 0.15 * 6000
    assert 0.8 < day.asked["a"] / day.asked["b"] < 1.25


def test_weights_three_to_one_give_about_three_to_one(day):
    day.add("heavy", 0.5, weight=3.0)
    day.add("light", 0.5, weight=1.0)
    day.closed_loop(requests=8000, together=32)
    assert 2.6 < day.asked["heavy"] / day.asked["light"] < 4.0


def test_equals_are_used_equally(day):
    for name in "ab":
        day.add(name, 0.5)
    day.closed_loop(requests=4000, together=8)
    assert 0.85 < day.asked["a"] / day.asked["b"] < 1.18


@pytest.mark.parametrize("every_seconds", [0.5, 20.0])
def test_dead_slow_one_recovers_when_it_is_fast_again(day, every_seconds):
    took = {"seconds": 60.0}
    day.add("was slow", lambda: took["seconds"])
    day.add("steady", 0.5)
    day.arrivals(requests=1000, every_seconds=every_seconds)
    assert day.asked["was slow"] < 0.12 * 1000
    took["seconds"] = 0.05
    day.arrivals(requests=200, every_seconds=every_seconds)  # until it is looked at again
    day.asked.clear()
    day.arrivals(requests=1000, every_seconds=every_seconds)
    assert day.asked["was slow"] > 0.8 * 1000


def test_quotas_of_equal_endpoints_are_used_evenly(day):
    first, second = day.add("first", lambda: 0.5), day.add("second", lambda: 0.5)
    second.left = 0.4
    day.clock.now += 1
    for _ in range(1000):
        chosen = day.ask()
        chosen.left = max(0.0, chosen.left - 0.001)
        day.end_next()
    assert first.left == pytest.approx(0.2, abs=0.05)
    assert second.left == pytest.approx(0.2, abs=0.05)


def test_spent_quota_loses_against_a_slower_one_that_has_some(day):
    day.add("spent", 0.2, left=0.0)
    day.add("slower", 1.0)
    day.closed_loop(requests=500, together=1)
    assert day.asked["slower"] > 0.9 * 500


def test_busy_one_loses_against_an_idle_one():
    busy, idle = Load(), Load()
    for load in (busy, idle):
        load.begin()
        load.end(0.5)
    busy.begin()
    assert (idle.running, busy.running) == (0, 1)
    assert busy.cost(1.0) == pytest.approx(2 * idle.cost(1.0))


def test_latency_jumps_up_at_once_and_falls_with_time():
    clock = Clock()
    load = Load(clock=clock)

    def sample(seconds: float) -> float:
        load.begin()
        load.end(seconds)
        assert load.latency_seconds is not None
        return load.latency_seconds

    assert sample(1.0) == 1.0
    assert sample(5.0) == 5.0
    assert sample(1.0) == 5.0  # no time has passed
    clock.now += 10
    assert sample(1.0) == pytest.approx(1 + 4 / 2.718281828)
    clock.now += 100
    assert sample(1.0) == pytest.approx(1.0, abs=0.01)


def test_failed_call_gives_no_sample_and_ends():
    load = Load()
    load.begin()
    load.end(None)
    assert (load.running, load.latency_seconds, load.cost(1.0)) == (0, None, PRIOR_SECONDS)


def test_end_without_begin_says_so():
    with pytest.raises(ValueError, match=r"end\(\) without begin\(\)"):
        Load().end(1.0)


def test_stale_is_what_nobody_calls_and_nobody_measured_lately():
    clock = Clock()
    load = Load(clock=clock)
    assert load.is_stale
    load.begin()
    assert not load.is_stale
    load.end(1.0)
    assert not load.is_stale
    clock.now += STALE_SECONDS
    assert load.is_stale


def test_answer_of_one_word_does_not_look_slow_nor_does_a_long_one():
    assert comparable_seconds(0.3, 1) == pytest.approx(0.3, rel=0.05)
    short, long = (comparable_seconds(0.3 + tokens * 0.02, tokens) for tokens in (64, 2000))
    assert long == pytest.approx(short, rel=0.6)
    assert comparable_seconds(0.3) == 0.3


@given(
    costs=st.lists(st.floats(min_value=0, max_value=1e6), max_size=8),
    seed=st.integers(min_value=0, max_value=2**32),
    left=st.floats(min_value=0, max_value=1),
    stale=st.booleans(),
)
def test_order_keeps_every_candidate_once_and_the_rest_as_declared(costs, seed, left, stale):
    candidates = list(range(len(costs)))
    ordered = order(
        candidates,
        cost=costs.__getitem__,
        left_share=lambda _: left,
        is_stale=lambda _: stale,
        random=Random(seed),
    )
    assert sorted(ordered) == candidates
    assert ordered[1:] == sorted(ordered[1:])


@given(costs=st.lists(st.floats(min_value=0, max_value=1e6), min_size=2, max_size=8), seed=st.integers(0, 2**32))
def test_dearest_of_all_is_never_first_unless_it_is_stale_or_equal(costs, seed):
    first = order(
        range(len(costs)),
        cost=costs.__getitem__,
        left_share=lambda _: 1.0,
        is_stale=lambda _: False,
        random=Random(seed),
    )[0]
    assert costs[first] < max(costs) or costs.count(max(costs)) > 1
