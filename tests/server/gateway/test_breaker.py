"""The circuit breaker: when it opens, whom it lets through, when it closes."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from everswarm.server.gateway.breaker import LONGEST_PAUSE_SECONDS, LONGEST_RETRY_AFTER_SECONDS, Breaker


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(clock=clock, random=Random(1))


def open_it(breaker: Breaker) -> None:
    for _ in range(3):
        breaker.failed()


def wait_for_probe(breaker: Breaker, clock: Clock) -> None:
    clock.now += breaker.seconds_until_probe + 1e-6


def test_opens_after_three_failures_in_a_row(breaker):
    for _ in range(2):
        breaker.failed()
    assert (breaker.state, breaker.may_try()) == ("closed", True)
    breaker.failed()
    assert (breaker.state, breaker.may_try()) == ("open", False)


def test_success_between_failures_starts_the_count_anew(breaker):
    for _ in range(10):
        breaker.failed()
        breaker.failed()
        breaker.succeeded()
    assert breaker.state == "closed"


def test_refused_connection_opens_at_once(breaker):
    breaker.failed(at_once=True)
    assert breaker.state == "open"
    assert 0.75 <= breaker.seconds_until_probe <= 1


def test_half_open_lets_one_probe_through_at_a_time(breaker, clock):
    open_it(breaker)
    wait_for_probe(breaker, clock)
    assert breaker.state == "half-open"
    assert [breaker.may_try() for _ in range(5)] == [True, False, False, False, False]


def test_probe_that_succeeds_closes_and_resets_the_pause(breaker, clock):
    for _ in range(5):
        breaker.failed(at_once=True)
        wait_for_probe(breaker, clock)
    assert breaker.may_try()
    breaker.succeeded()
    assert (breaker.state, breaker.seconds_until_probe) == ("closed", 0)
    assert breaker.may_try()
    breaker.failed(at_once=True)
    assert breaker.seconds_until_probe <= 1


def test_pause_doubles_to_a_minute_with_jitter(breaker, clock):
    pauses = []
    for _ in range(10):
        breaker.failed(at_once=True)
        pauses.append(breaker.seconds_until_probe)
        wait_for_probe(breaker, clock)
        assert breaker.may_try()
    for pause, bound in zip(pauses, (1, 2, 4, 8, 16, 32, 60, 60, 60, 60), strict=True):
        assert 0.75 * bound <= pause <= bound
    assert len({pause / 60 for pause in pauses[6:]}) == 4


def test_released_probe_gives_its_place_to_the_next(breaker, clock):
    open_it(breaker)
    wait_for_probe(breaker, clock)
    assert breaker.may_try()
    breaker.released()
    assert breaker.state == "half-open"
    assert breaker.may_try()
    assert not breaker.may_try()


def test_released_call_neither_opens_nor_counts_as_success(breaker):
    breaker.failed()
    breaker.failed()
    breaker.released()
    assert breaker.state == "closed"
    breaker.failed()
    assert breaker.state == "open"


def test_many_calls_that_die_together_open_for_one_pause_only(breaker):
    for _ in range(20):
        breaker.failed()
    assert breaker.seconds_until_probe <= 1


def test_retry_after_opens_at_once_for_at_least_so_long(breaker):
    breaker.failed(retry_after_seconds=20)
    assert breaker.state == "open"
    assert breaker.seconds_until_probe == pytest.approx(20)


def test_retry_after_of_a_late_answer_extends_the_pause(breaker):
    open_it(breaker)
    breaker.failed(retry_after_seconds=40)
    assert breaker.seconds_until_probe == pytest.approx(40)


def test_short_retry_after_does_not_shorten_the_pause(breaker):
    open_it(breaker)
    breaker.failed(retry_after_seconds=0.01)
    assert breaker.seconds_until_probe >= 0.75


@pytest.mark.parametrize("said", [1e9, float("inf")])
def test_retry_after_of_days_is_looked_at_within_the_hour(breaker, said):
    breaker.failed(retry_after_seconds=said)
    assert breaker.seconds_until_probe == pytest.approx(LONGEST_RETRY_AFTER_SECONDS)


@pytest.mark.parametrize("said", [-3.0, 0.0, float("nan")])
def test_retry_after_that_says_nothing_is_one_more_failure(breaker, said):
    breaker.failed(retry_after_seconds=said)
    assert breaker.state == "closed"


def test_pause_survives_very_many_openings(breaker, clock):
    for _ in range(2000):
        breaker.failed(at_once=True)
        wait_for_probe(breaker, clock)
    breaker.failed()
    assert breaker.seconds_until_probe <= LONGEST_PAUSE_SECONDS


class BreakerMachine(RuleBasedStateMachine):
    """Calls in any order; each granted one ends in one of three ways, some of them late."""

    @initialize(seed=st.integers(min_value=0, max_value=2**32))
    def begin(self, seed: int) -> None:
        self.clock = Clock()
        self.breaker = Breaker(clock=self.clock, random=Random(seed))
        self.running = 0  # granted and not over
        self.probing = False
        self.in_a_row = 0

    @rule()
    def ask(self) -> None:
        state = self.breaker.state
        granted = self.breaker.may_try()
        assert granted == (state == "closed" or (state == "half-open" and not self.probing))
        self.running += granted
        self.probing = self.probing or (granted and state == "half-open")
        assert self.breaker.state == state

    @precondition(lambda self: self.running)
    @rule()
    def succeed(self) -> None:
        self.running -= 1
        self.breaker.succeeded()
        self.probing, self.in_a_row = False, 0
        assert self.breaker.state == "closed"

    @precondition(lambda self: self.running)
    @rule(at_once=st.booleans(), retry_after=st.none() | st.floats(min_value=0, max_value=7200))
    def fail(self, at_once: bool, retry_after: float | None) -> None:
        before, left = self.breaker.state, self.breaker.seconds_until_probe
        self.running -= 1
        self.breaker.failed(at_once=at_once, retry_after_seconds=retry_after)
        asked = min(retry_after or 0.0, LONGEST_RETRY_AFTER_SECONDS)
        if before == "open":  # nothing but Retry-After counts
            assert self.breaker.seconds_until_probe == pytest.approx(max(left, asked))
            return
        self.probing = False
        self.in_a_row += 1
        opens = before == "half-open" or at_once or asked > 0 or self.in_a_row >= 3
        assert self.breaker.state == ("open" if opens else "closed")
        if opens:
            self.in_a_row = 0
            assert self.breaker.seconds_until_probe >= max(0.75, asked) - 1e-6

    @precondition(lambda self: self.running)
    @rule()
    def release(self) -> None:
        state = self.breaker.state
        self.running -= 1
        self.breaker.released()
        self.probing = False
        assert self.breaker.state == state

    @rule(seconds=st.floats(min_value=0, max_value=100))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @invariant()
    def pause_is_bounded_and_ends_in_a_probe(self) -> None:
        left = self.breaker.seconds_until_probe
        assert 0 <= left <= max(LONGEST_PAUSE_SECONDS, LONGEST_RETRY_AFTER_SECONDS) + 1e-6
        assert (left > 0) == (self.breaker.state == "open")


TestBreakerMachine = BreakerMachine.TestCase
