"""The pauses between tries."""

from __future__ import annotations

from random import Random
from statistics import mean

from hypothesis import given
from hypothesis import strategies as st

from everswarm.server.gateway.backoff import BASE_SECONDS, CAP_SECONDS, pause_seconds

attempts = st.integers(min_value=0, max_value=10_000)
seeds = st.integers(min_value=0, max_value=2**32)


@given(attempt=attempts, seed=seeds)
def test_pause_is_between_nothing_and_its_bound(attempt, seed):
    pause = pause_seconds(attempt, retry_after_seconds=None, random=Random(seed))
    assert 0 <= pause <= min(CAP_SECONDS, BASE_SECONDS * 2 ** min(attempt, 10))


@given(attempt=attempts, seed=seeds, retry_after=st.floats(min_value=0, max_value=1e6))
def test_pause_is_never_sooner_than_retry_after(attempt, seed, retry_after):
    pause = pause_seconds(attempt, retry_after_seconds=retry_after, random=Random(seed))
    assert retry_after <= pause <= retry_after + CAP_SECONDS


def test_jitter_fills_the_whole_range_and_the_range_doubles():
    random = Random(3)
    for attempt, bound in enumerate((0.25, 0.5, 1, 2, 4, 8, 8)):
        pauses = [pause_seconds(attempt, retry_after_seconds=None, random=random) for _ in range(2000)]
        assert min(pauses) < 0.02 * bound
        assert 0.98 * bound < max(pauses) <= bound
        assert abs(mean(pauses) - bound / 2) < 0.05 * bound


def test_clients_that_heard_one_retry_after_do_not_return_together():
    random = Random(4)
    assert len({pause_seconds(2, retry_after_seconds=30, random=random) for _ in range(100)}) == 100


def test_negative_retry_after_counts_as_none():
    assert pause_seconds(0, retry_after_seconds=-5, random=Random(1)) >= 0
