from __future__ import annotations

import pytest

from everswarm.errors import QuotaSpentError
from everswarm.server.feedback import rate
from everswarm.server.feedback.rate import RecordLimit


class Clock:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_refusal_says_the_limit_and_when_it_is_over(clock: Clock):
    limit = RecordLimit(3600, clock=clock)
    limit.take("phone", 3600)
    with pytest.raises(QuotaSpentError) as refused:
        limit.take("phone", 20)
    assert refused.value.retry_after_seconds == 20
    assert "sent 20 records and may send 0 now: the limit is 3,600 records an hour" in str(refused.value)
    assert "in 20 s" in str(refused.value)
    clock.seconds += 20
    limit.take("phone", 20)


def test_a_refused_batch_counts_nothing(clock: Clock):
    limit = RecordLimit(100, clock=clock)
    limit.take("phone", 60)
    with pytest.raises(QuotaSpentError):
        limit.take("phone", 60)
    limit.take("phone", 40)


def test_keys_do_not_share_a_bucket(clock: Clock):
    limit = RecordLimit(10, clock=clock)
    limit.take("phone", 10)
    limit.take("tablet", 10)


def test_a_batch_over_the_limit_passes_when_the_bucket_is_full_and_is_paid_off_later(clock: Clock):
    limit = RecordLimit(10, clock=clock)
    limit.take("phone", 30)
    with pytest.raises(QuotaSpentError) as refused:
        limit.take("phone", 1)
    assert refused.value.retry_after_seconds == 21 * 360
    clock.seconds += 21 * 360
    limit.take("phone", 1)


def test_an_empty_bucket_is_refused_before_the_body_is_read(clock: Clock):
    limit = RecordLimit(10, clock=clock)
    limit.check("phone")
    limit.take("phone", 10)
    with pytest.raises(QuotaSpentError, match="may send none now"):
        limit.check("phone")


def test_what_could_not_be_stored_is_given_back(clock: Clock):
    limit = RecordLimit(10, clock=clock)
    limit.take("phone", 10)
    limit.give_back("phone", 10)
    limit.take("phone", 10)
    limit.give_back("stranger", 10)  # never over the full bucket
    limit.take("stranger", 10)
    with pytest.raises(QuotaSpentError):
        limit.take("stranger", 1)


def test_memory_is_bounded(clock: Clock, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rate, "MAX_KEYS", 3)
    limit = RecordLimit(10, clock=clock)
    for number in range(10):
        limit.take(f"phone-{number}", 10)
    assert len(limit._left) == 3
    limit.take("phone-0", 10)  # was forgotten
    with pytest.raises(QuotaSpentError):
        limit.take("phone-9", 1)
