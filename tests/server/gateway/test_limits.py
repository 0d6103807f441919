"""What an endpoint allows, by its configuration or by the dated table."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everswarm.server.gateway.limits import default_limits, limit_table, next_credit_reset, quota_of
from everswarm.server.gateway.quota import Limit, Quota
from everswarm.settings import EndpointSettings

HF = "https://router.huggingface.co/v1"
OPENROUTER = "https://openrouter.ai/api/v1"
LOCAL = "http://127.0.0.1:11434/v1"
NOON = datetime(2026, 12, 15, 12, tzinfo=UTC)


def endpoint(base_url: str, *, name: str = "a", model: str = "org/m", **said: object) -> EndpointSettings:
    return EndpointSettings.model_validate({"name": name, "base_url": base_url, "model": model, **said})


def quota(made: EndpointSettings, credential: str | None = "key") -> Quota:
    found = quota_of(made, credential, interactive_share=0.2)
    assert found is not None
    return found


def limits(made: EndpointSettings) -> set[tuple[str, int, float]]:
    return {(limit.unit, limit.amount, limit.window_seconds) for limit in quota(made).limits}


def test_every_row_of_the_table_has_a_date_a_source_and_something_to_say() -> None:
    for row in limit_table():
        assert row.as_of <= datetime.now(UTC).date()
        assert row.source
        assert row.limits.model_fields_set or row.credit_reset


def test_hf_row_is_marked_as_the_figure_of_the_plan() -> None:
    row = default_limits(HF, "org/m")
    assert row is not None
    assert row.limits.tokens_per_hour == 30_000
    assert row.source == "the plan of this project"
    assert "the provider documents no such limit" in row.note
    [limit] = quota(endpoint(HF)).limits
    assert limit == Limit("tokens", 30_000, 3600.0, f"default of {row.as_of}, the plan of this project")


def test_row_may_be_for_some_models_only() -> None:
    assert limits(endpoint(OPENROUTER, model="x/y:free")) == {("requests", 20, 60.0), ("requests", 50, 86_400.0)}
    assert limits(endpoint(OPENROUTER, model="x/y")) == set()


def test_other_hosts_have_no_default_limits() -> None:
    assert default_limits("https://router.huggingface.co.example.org/v1") is None
    assert limits(endpoint("https://example.org/v1")) == set()


def test_configuration_replaces_the_table_whole() -> None:
    assert limits(endpoint(HF, quota={"requests_per_second": 2, "tokens_per_day": 9})) == {
        ("requests", 2, 1.0),
        ("tokens", 9, 86_400.0),
    }
    assert {limit.source for limit in quota(endpoint(HF, quota={"tokens_per_day": 9})).limits} == {"configuration"}


def test_empty_quota_means_no_limits_whatever_the_table_says() -> None:
    assert limits(endpoint(HF, quota={})) == set()


def test_endpoint_elsewhere_has_a_quota_without_limits_so_that_it_can_be_closed() -> None:
    assert quota(endpoint("https://example.org/v1")).limits == ()


@pytest.mark.parametrize("said", [{}, {"quota": {}}])
def test_endpoint_of_this_machine_without_limits_can_still_close_itself(said: dict[str, object]) -> None:
    found = quota_of(endpoint(LOCAL, **said), None, interactive_share=0.2)
    assert found is not None
    assert found.limits == ()


def test_endpoint_of_this_machine_with_limits_is_counted() -> None:
    assert limits(endpoint(LOCAL, quota={"tokens_per_hour": 7})) == {("tokens", 7, 3600.0)}


def test_key_is_the_name_and_a_fingerprint_that_does_not_give_the_credential_away() -> None:
    made = endpoint(HF, name="router", quota={"tokens_per_hour": 7})
    assert quota(made, "hf_secret").key == "router:108bb086b4d2"
    assert quota(made, None).key == "router:none"
    assert quota(made, "hf_other").key != quota(made, "hf_secret").key


def test_shared_word_makes_one_quota_of_several_endpoints_with_one_credential() -> None:
    one, two = (endpoint(HF, name=name, quota={"tokens_per_hour": 7, "shared": "account"}) for name in "ab")
    assert quota(one) == quota(two)
    assert quota(one, "other").key != quota(two).key


def test_default_limits_hold_for_what_the_row_says_however_endpoints_are_named() -> None:
    assert quota(endpoint(HF, name="a")) == quota(endpoint(HF, name="b"))
    assert quota(endpoint(HF, name="a", model="org/one")).key != quota(endpoint(HF, name="a", model="org/two")).key
    free = [endpoint(OPENROUTER, name=name, model=f"x/{name}:free") for name in "ab"]
    assert quota(free[0]) == quota(free[1])


def test_credit_of_hf_comes_back_with_the_next_month() -> None:
    assert next_credit_reset(HF, now=NOON) == datetime(2027, 1, 1, tzinfo=UTC)


def test_credit_of_an_unknown_endpoint_is_asked_for_in_an_hour() -> None:
    assert next_credit_reset("https://example.org/v1", now=NOON) == NOON + timedelta(hours=1)


@given(st.datetimes(datetime(2020, 1, 1), datetime(2090, 1, 1), timezones=st.just(timezone(timedelta(hours=5)))))  # noqa: DTZ001
def test_credit_resets_in_the_future_and_within_a_month(now: datetime) -> None:
    reset = next_credit_reset(HF, now=now)
    assert now < reset <= now + timedelta(days=31)
    assert (reset.day, reset.hour, reset.utcoffset()) == (1, 0, timedelta(0))
