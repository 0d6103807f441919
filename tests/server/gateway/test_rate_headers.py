"""What endpoints say of their limits, in the spellings that are in use."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everswarm.server.gateway.rate_headers import LONGEST_SECONDS, Correction, read_corrections

NOW = 1_795_000_000.0


def test_openai_headers_say_tokens_and_requests():
    headers = {
        "content-type": "application/json",
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "150000",
        "x-ratelimit-remaining-tokens": "149984",
        "x-ratelimit-reset-tokens": "6m0s",
    }
    assert sorted(read_corrections(headers), key=lambda correction: correction.unit) == [
        Correction("requests", 59, 1.0, 60),
        Correction("tokens", 149_984, 360.0, 150_000),
    ]


@pytest.mark.parametrize(
    ("reset", "seconds"),
    [
        ("12", 12.0),
        ("1.5", 1.5),
        ("1.5s", 1.5),
        ("120ms", 0.12),
        ("6m0s", 360.0),
        ("1h2m3.5s", 3_723.5),
        ("1d", 86_400.0),
        (str(int(NOW) + 30), 30.0),
        (str((int(NOW) + 30) * 1000), 30.0),
    ],
)
def test_reset_is_a_duration_or_a_moment(reset, seconds):
    headers = {"x-ratelimit-remaining": "5", "x-ratelimit-reset": reset}
    (correction,) = read_corrections(headers, now=NOW)
    assert correction.unit == "requests"
    assert correction.reset_seconds == pytest.approx(seconds)


def test_window_in_the_name_is_known():
    headers = {
        "x-ratelimit-limit-tokens-minute": "60000",
        "x-ratelimit-remaining-tokens-minute": "100",
        "x-ratelimit-reset-tokens-minute": "11.38",
        "x-ratelimit-remaining-requests-day": "0",
    }
    assert sorted(read_corrections(headers), key=lambda correction: correction.unit) == [
        Correction("requests", 0, 86_400.0, None, 86_400.0),
        Correction("tokens", 100, 11.38, 60_000, 60.0),
    ]


def test_draft_with_policies():
    headers = {
        "ratelimit": '"burst";r=50;t=30, "spent";r=900;t=12;pk=:cHJv:, "bytes";r=1;t=1',
        "ratelimit-policy": '"burst";q=100;w=60, "spent";q=1000;w=3600;qu="tokens", "bytes";q=9;qu="content-bytes"',
    }
    assert read_corrections(headers) == [
        Correction("requests", 50, 30.0, 100, 60.0),
        Correction("tokens", 900, 12.0, 1000, 3600.0),
    ]


def test_draft_without_a_reset_takes_the_window():
    headers = {"ratelimit": '"default";r=50', "ratelimit-policy": '"default";q=100;w=60'}
    assert read_corrections(headers) == [Correction("requests", 50, 60.0, 100, 60.0)]


def test_older_drafts():
    assert read_corrections({"ratelimit": "limit=100, remaining=50, reset=5"}) == [Correction("requests", 50, 5.0, 100)]
    headers = {"ratelimit-limit": "100, 100;w=60", "ratelimit-remaining": "7", "ratelimit-reset": "9"}
    assert read_corrections(headers) == [Correction("requests", 7, 9.0, 100, 60.0)]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "application/json"},
        {"x-ratelimit-remaining-tokens": "5"},  # until when?
        {"x-ratelimit-remaining-tokens": "-1", "x-ratelimit-reset-tokens": "5"},
        {"x-ratelimit-remaining-tokens": "many", "x-ratelimit-reset-tokens": "5"},
        {"x-ratelimit-remaining-tokens": "5", "x-ratelimit-reset-tokens": "soon"},
        {"x-ratelimit-remaining-tokens": "5", "x-ratelimit-reset-tokens": "nan"},
        {"x-ratelimit-remaining-tokens": "inf", "x-ratelimit-reset-tokens": "5"},
        {"x-ratelimit-remaining-tokens": "5", "x-ratelimit-reset-tokens": "0"},
        {"x-ratelimit-remaining-tokens": "5", "x-ratelimit-reset-tokens": "6m 0s"},
        {"x-ratelimit-remaining": "5", "x-ratelimit-reset": str(int(NOW) - 5)},
        {"x-ratelimit-remaining": "5", "x-ratelimit-reset": str(LONGEST_SECONDS + 1)},
        {"ratelimit": '"default";r=;t=30'},
        {"ratelimit": "\x00\x01"},
        {"x-ratelimit-remaining-tokens": "", "x-ratelimit-reset-tokens": ""},
    ],
)
def test_what_cannot_be_read_is_ignored(headers):
    assert read_corrections(headers, now=NOW) == []


@given(
    st.dictionaries(
        st.sampled_from(
            [
                "ratelimit",
                "ratelimit-policy",
                "ratelimit-remaining",
                "ratelimit-limit",
                "ratelimit-reset",
                "x-ratelimit-remaining-tokens",
                "x-ratelimit-reset-tokens",
                "x-ratelimit-limit-tokens",
            ]
        ),
        st.text(max_size=30) | st.from_regex(r'("?\w*"?(;[a-z]=\d*)*,? ?){1,3}', fullmatch=True) | st.just("5"),
    )
)
def test_any_text_is_read_or_ignored(headers):
    for correction in read_corrections(headers, now=NOW):
        assert correction.remaining >= 0
        assert 0 < correction.reset_seconds <= LONGEST_SECONDS
        assert correction.limit is None or correction.limit >= 1
