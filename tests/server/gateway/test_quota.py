"""The rolling window and what it decides, against a slow exact twin."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everswarm.schemas.gateway import Priority
from everswarm.server.gateway.quota import MICROSECONDS, Limit, Quota, Refusal
from everswarm.server.gateway.quota_ledger import Ledger, load_ledger
from everswarm.server.gateway.rate_headers import Correction
from everswarm.server.gateway.rolling_window import SLOTS

LEASE_US = 60 * MICROSECONDS
PEOPLE, BATCH = Priority.INTERACTIVE, Priority.BATCH


class Book:
    """A ledger over time, saved and loaded at each step, with several owners."""

    def __init__(self, quota: Quota, *, now: float = 1_000_000.0) -> None:
        self.quota = quota
        self.now_us = round(now * MICROSECONDS)
        self.state: bytes | None = None
        self.held: dict[str, list[int]] = {}

    def load(self) -> Ledger:
        return Ledger(self.state, now_us=self.now_us, lease_us=LEASE_US)

    def save(self, ledger: Ledger, owner: str) -> None:
        held = self.held.get(owner, [])
        ledger.hold(owner, tokens=sum(held), requests=len(held))
        self.state = ledger.save()

    def reserve(self, tokens: int, *, priority: Priority = PEOPLE, owner: str = "me") -> Refusal | None:
        ledger = self.load()
        refusal = ledger.refusal(self.quota, tokens, priority=priority)
        if refusal is None:
            self.held.setdefault(owner, []).append(tokens)
        if refusal is None or ledger.changed:
            self.save(ledger, owner)
        return refusal

    def settle(self, reserved: int, used: int | None, *, owner: str = "me") -> None:
        self.held[owner].remove(reserved)
        ledger = self.load()
        if used is not None:
            ledger.book(self.quota, used)
        self.save(ledger, owner)

    def use(self, tokens: int) -> None:
        assert self.reserve(tokens) is None
        self.settle(tokens, tokens)

    def pass_seconds(self, seconds: float) -> None:
        self.now_us += round(seconds * MICROSECONDS)
        for owner in self.held:
            if self.held[owner]:
                self.save(self.load(), owner)  # a beat

    def view(self):
        return self.load().view(self.quota)

    def change(self, work) -> None:
        ledger = self.load()
        work(ledger)
        if ledger.changed:
            self.save(ledger, "me")


def tokens(amount: int, window: float = 60.0, **more) -> Limit:
    return Limit("tokens", amount, window, **more)


def requests(amount: int, window: float = 60.0, **more) -> Limit:
    return Limit("requests", amount, window, **more)


LIMITS = st.lists(
    st.builds(
        Limit, st.sampled_from(["tokens", "requests"]), st.integers(1, 60), st.sampled_from([1.0, 7.0, 60.0, 0.25])
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda limit: limit.name,
)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "reserve", "reserve", "settle", "settle", "cancel"]),
        st.floats(0, 3) | st.just(0.0) | st.sampled_from([0.25, 1.0, 7.0, 60.0]),  # seconds before it
        st.integers(0, 40),  # tokens, or which of the held
        st.floats(0, 1),  # share of the reserved that is used; and where the provider counts it
        st.sampled_from([PEOPLE, BATCH]),
        st.sampled_from(["a", "b"]),
    ),
    max_size=60,
)


class Twin:
    """Slow and exact: all calls ever, each with its moments."""

    def __init__(self, quota: Quota) -> None:
        self.quota = quota
        self.calls: list[list] = []  # reserved at, settled at (None: runs), tokens

    def counted(self, limit: Limit, now_us: int, *, window: int) -> int:
        since = now_us - window
        return sum(
            1 if limit.unit == "requests" else call[2] for call in self.calls if call[1] is None or call[1] >= since
        )

    def fits(self, need: int, now_us: int, priority: Priority, *, slots: int) -> bool:
        return all(
            self.counted(limit, now_us, window=-(-limit.window_us * slots // SLOTS))
            + (1 if limit.unit == "requests" else need)
            <= self.quota.allowed(limit.amount, priority)
            for limit in self.quota.limits
        )


@settings(max_examples=300, deadline=None)
@given(LIMITS, STEPS)
def test_no_window_holds_more_than_its_limit_and_nothing_is_kept_back_needlessly(limits, steps):
    book = Book(Quota("k", tuple(limits)))
    twin = Twin(book.quota)
    held: list[tuple[list, str]] = []
    done: list[tuple[list, float]] = []
    for step, seconds, number, share, priority, owner in steps:
        book.pass_seconds(seconds)
        if step == "reserve":
            granted = book.reserve(number, priority=priority, owner=owner) is None
            if granted:
                assert twin.fits(number, book.now_us, priority, slots=SLOTS), "granted too much"
                held.append(([book.now_us, None, number], owner))
                twin.calls.append(held[-1][0])
            else:
                assert not twin.fits(number, book.now_us, priority, slots=SLOTS + 1), "kept back too much"
        elif held:
            call, its_owner = held.pop(number % len(held))
            used = int(call[2] * share) if step == "settle" else None
            book.settle(call[2], used, owner=its_owner)
            if used is None:
                twin.calls = [other for other in twin.calls if other is not call]
            else:
                call[1:] = [book.now_us, used]
                done.append((call, share))
    for count_at in (lambda call, share: call[0], lambda call, share: call[1], between):
        for limit in limits:
            check_windows(limit, [(count_at(call, share), call[2]) for call, share in done])


def between(call: list, share: float) -> int:
    return call[0] + int((call[1] - call[0]) * share)


def check_windows(limit: Limit, counted: list[tuple[int, int]]) -> None:
    """Whenever the provider counts a call, no interval of one window holds more than the limit."""
    for start, _ in counted:
        inside = [used for at, used in counted if start <= at <= start + limit.window_us]
        assert (len(inside) if limit.unit == "requests" else sum(inside)) <= limit.amount


@settings(max_examples=200, deadline=None)
@given(LIMITS, STEPS, st.integers(0, 60), st.sampled_from([PEOPLE, BATCH]))
def test_eta_is_exact_if_nothing_is_given_back(limits, steps, need, priority):
    book = Book(Quota("k", tuple(limits)))
    for step, seconds, number, share, its_priority, _ in steps:
        book.pass_seconds(seconds)
        if step == "reserve":
            book.reserve(number, priority=its_priority)
        elif book.held.get("me"):
            reserved = book.held["me"][number % len(book.held["me"])]
            book.settle(reserved, int(reserved * share) if step == "settle" else None)
    refusal = book.load().refusal(book.quota, need, priority=priority)
    wait_us = book.load().microseconds_until(book.quota, need, requests=1, priority=priority)
    if refusal is None:
        assert wait_us == 0
        return
    if refusal.never:
        return
    assert wait_us == round(refusal.retry_after_seconds * MICROSECONDS) > 0
    for reserved in list(book.held.get("me", [])):
        book.settle(reserved, reserved)  # what is held is used, as late as the estimate says: now
    book.now_us += wait_us - 1
    assert book.load().refusal(book.quota, need, priority=priority) is not None
    book.now_us += 1
    assert book.load().refusal(book.quota, need, priority=priority) is None


def test_eta_of_a_line_longer_than_the_limit_adds_whole_windows():
    book = Book(Quota("k", (tokens(100),)), now=6_000.0)
    book.use(60)

    def eta(need: int) -> float:
        return book.load().microseconds_until(book.quota, need, requests=1, priority=PEOPLE) / MICROSECONDS

    assert eta(40) == 0
    assert eta(41) == 61
    assert eta(100) == 61
    assert eta(101) == eta(140) == 61  # 40 go at once; the rest when the window has moved on
    assert eta(141) == eta(240) == 122
    assert eta(1_040) == 61 * 10


def test_a_fifth_is_kept_for_interactive_use():
    book = Book(Quota("k", (tokens(100),)))
    assert book.reserve(80, priority=BATCH) is None
    refusal = book.reserve(1, priority=Priority.DEVICE)
    assert refusal is not None and "kept for interactive use" in refusal.reason
    assert book.reserve(20, priority=PEOPLE) is None
    assert book.reserve(1, priority=PEOPLE) is not None


def test_what_people_use_counts_against_the_share_of_batches():
    book = Book(Quota("k", (tokens(100),)))
    book.use(75)
    assert book.reserve(6, priority=BATCH) is not None
    assert book.reserve(5, priority=BATCH) is None


def test_a_limit_of_one_request_is_not_closed_to_batches():
    book = Book(Quota("k", (requests(1),)))
    assert book.reserve(5, priority=BATCH) is None


def test_all_limits_hold_at_once():
    book = Book(Quota("k", (requests(3, 1.0), tokens(100, 60.0), tokens(150, 3600.0))))
    for _ in range(3):
        book.use(10)
    assert book.reserve(10) is not None  # the third request of this second
    book.pass_seconds(1.1)
    book.use(70)
    assert book.reserve(1) is not None  # the minute is full
    book.pass_seconds(62)
    book.use(50)
    refusal = book.reserve(1)  # the hour is full
    assert refusal is not None and refusal.retry_after_seconds > 3_000


def test_request_larger_than_the_limit_never_fits():
    book = Book(Quota("k", (tokens(100),)))
    refusal = book.reserve(101)
    assert refusal is not None and refusal.never
    assert refusal.reason == (
        "Asked for 101 tokens, and the endpoint's quota is 100 in 60 s: it can never fit. Send a shorter prompt or a "
        "smaller max_tokens, or raise the endpoint's quota."
    )
    batch = book.reserve(81, priority=BATCH)
    assert batch is not None and batch.never and "20 are kept for interactive use" in batch.reason


def test_refusal_says_what_was_asked_what_is_left_and_when():
    book = Book(Quota("k", (tokens(100),)), now=6_000.0)
    book.use(90)
    refusal = book.reserve(20)
    assert refusal is not None and not refusal.never and not refusal.closed
    assert refusal.reason == "Asked for 20 tokens; 10 of 100 tokens in 60 s are left. It fits in 61 s."
    assert refusal.retry_after_seconds == 61


def test_unused_share_comes_back_at_once():
    book = Book(Quota("k", (tokens(100),)))
    assert book.reserve(100) is None
    book.settle(100, 10)
    assert book.reserve(90) is None
    book.settle(90, None)
    assert book.reserve(90) is None


def test_more_than_was_reserved_is_counted():
    book = Book(Quota("k", (tokens(100),)))
    assert book.reserve(10) is None
    book.settle(10, 130)
    assert book.view().limits[0].used == 130
    assert book.view().limits[0].left == 0
    assert book.reserve(1) is not None


def test_clock_that_goes_back_frees_nothing():
    book = Book(Quota("k", (tokens(100),)))
    book.use(100)
    for seconds in (-1, -58, -3_600):
        book.now_us += seconds * MICROSECONDS
        assert book.reserve(1) is not None
        assert book.view().limits[0].used == 100


def test_clock_that_was_far_ahead_does_not_close_the_quota_for_long():
    book = Book(Quota("k", (tokens(100),)))
    book.now_us += 365 * 86_400 * MICROSECONDS
    book.use(100)
    book.now_us -= 365 * 86_400 * MICROSECONDS
    refusal = book.reserve(1)
    assert refusal is not None and refusal.retry_after_seconds <= 61
    book.pass_seconds(refusal.retry_after_seconds)
    assert book.reserve(100) is None


def test_holds_of_a_silent_owner_do_not_count():
    book = Book(Quota("k", (tokens(100),)))
    assert book.reserve(100, owner="dead") is None
    del book.held["dead"]
    book.now_us += LEASE_US - 1
    assert book.reserve(1) is not None
    book.now_us += 1
    assert book.reserve(100) is None


def test_closure_refuses_all_and_a_shorter_one_does_not_open_it():
    book = Book(Quota("k", (tokens(100),)))
    book.change(lambda ledger: ledger.close(seconds=100, reason="It says 402: no credit."))
    book.change(lambda ledger: ledger.close(seconds=10, reason="It says 429."))
    refusal = book.reserve(1)
    assert refusal == Refusal(100.0, "It says 402: no credit.", closed=True)
    state = book.view()
    assert state.closed_reason == "It says 402: no credit."
    assert state.closed_until is not None and state.closed_until.timestamp() == 1_000_100
    book.pass_seconds(100)
    assert book.reserve(1) is None
    assert book.view().closed_until is None


def test_endpoint_that_says_less_is_believed_until_its_reset():
    book = Book(Quota("k", (tokens(100),)))
    book.use(10)
    book.change(lambda ledger: ledger.correct(book.quota, [Correction("tokens", 30, 20.0)]))
    assert book.view().limits[0].left == 30
    book.use(10)
    assert book.reserve(15) is None
    refusal = book.reserve(6)  # 10 were used since, 15 are held
    assert refusal is not None and "The endpoint itself" in refusal.reason
    assert refusal.retry_after_seconds == 20.0
    book.pass_seconds(20)
    assert book.reserve(60) is None


def test_endpoint_that_says_more_changes_nothing():
    book = Book(Quota("k", (tokens(100),)))
    book.use(10)
    before = book.state
    book.change(lambda ledger: ledger.correct(book.quota, [Correction("tokens", 95, 20.0)]))
    assert book.state == before
    assert book.view().limits[0].left == 90


def test_newer_word_of_the_endpoint_replaces_the_older():
    book = Book(Quota("k", (tokens(100),)))
    book.change(lambda ledger: ledger.correct(book.quota, [Correction("tokens", 5, 20.0)]))
    assert book.reserve(6) is not None
    book.change(lambda ledger: ledger.correct(book.quota, [Correction("tokens", 50, 20.0)]))
    assert book.reserve(50) is None


def test_unit_without_a_limit_is_held_to_what_the_endpoint_says():
    book = Book(Quota("k", (tokens(100),)))
    book.change(lambda ledger: ledger.correct(book.quota, [Correction("requests", 1, 20.0)]))
    assert book.reserve(1) is None
    refusal = book.reserve(1)
    assert refusal is not None and refusal.retry_after_seconds == 20.0


def test_share_of_interactive_use_holds_for_what_the_endpoint_says():
    book = Book(Quota("k", (tokens(100),)))
    book.change(lambda ledger: ledger.correct(book.quota, [Correction("tokens", 30, 20.0, limit=100)]))
    assert book.reserve(11, priority=BATCH) is not None
    assert book.reserve(10, priority=BATCH) is None
    assert book.reserve(20, priority=PEOPLE) is None


@pytest.mark.parametrize(("source", "amount"), [("the dated table", 500), ("configuration", 100)])
def test_amount_that_the_endpoint_tells_replaces_a_default_but_not_a_setting(source, amount):
    book = Book(Quota("k", (tokens(100, source=source),)))
    told = Correction("tokens", 480, 20.0, limit=500, window_seconds=60.0)
    book.change(lambda ledger: ledger.correct(book.quota, [told]))
    (limit,) = book.view().limits
    assert limit.amount == amount
    assert limit.source == ("the endpoint's headers" if amount == 500 else "configuration")


def test_limit_that_only_another_process_has_counts_on():
    both = Quota("k", (tokens(100), tokens(500, 3600.0)))
    book = Book(both)
    book.use(50)
    book.quota = Quota("k", (tokens(100),))
    book.use(50)
    book.quota = both
    assert [limit.used for limit in book.view().limits] == [100, 100]


def test_state_that_cannot_be_read_is_begun_anew(caplog):
    for state in (b"", b"{}", b"[9,{},{},{},{},null]", b'[1,{},{"a":3},{},{},null]', b"\xff"):
        ledger = load_ledger(state, now_us=10**15, lease_us=LEASE_US)
        assert ledger.refusal(Quota("k", (tokens(1),)), 1, priority=PEOPLE) is None
        assert "begun anew" in caplog.text
        caplog.clear()


@pytest.mark.parametrize(("amount", "window"), [(0, 60.0), (-5, 60.0), (5, 0.0)])
def test_limit_that_holds_nothing_is_refused(amount, window):
    with pytest.raises(ValueError, match="Both must be positive"):
        Limit("tokens", amount, window)


def test_share_of_the_whole_is_exact():
    quota = Quota("k", (), interactive_share=0.2)
    assert [quota.allowed(amount, BATCH) for amount in (1, 2, 5, 10, 30_000)] == [1, 1, 4, 8, 24_000]
    assert math.isclose(quota.allowed(10**12, BATCH), 8 * 10**11)
