"""The clock tells the moment in any zone, and names close zones where there is none."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from everswarm.server.swarm.tools.clock import CLOCK, clock_tool
from everswarm.server.swarm.tools.tool import ToolFailedError

TOOL = clock_tool(lambda: datetime(2026, 11, 22, 21, 5, tzinfo=UTC))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "2026-11-22 21:05 Sunday, week 47, UTC"),
        ({"time_zone": None}, "2026-11-22 21:05 Sunday, week 47, UTC"),
        ({"time_zone": " Europe/Berlin "}, "2026-11-22 22:05 Sunday, week 47, Europe/Berlin (UTC+01:00)"),
        ({"time_zone": "Asia/Kolkata"}, "2026-11-23 02:35 Monday, week 48, Asia/Kolkata (UTC+05:30)"),
        ({"time_zone": "America/New_York"}, "2026-11-22 16:05 Sunday, week 47, America/New_York (UTC-05:00)"),
    ],
)
async def test_moment_is_told_in_the_zone(arguments: dict[str, object], said: str) -> None:
    assert await TOOL.run(arguments, "user") == said


@pytest.mark.parametrize(
    ("asked", "meant"),
    [("Berlin", "Europe/Berlin"), ("Tokio", "Asia/Tokyo"), ("new york", "America/New_York"), ("Europe", "Europe/")],
)
async def test_unknown_zone_names_close_ones(asked: str, meant: str) -> None:
    with pytest.raises(ToolFailedError, match=f"no time zone '{asked}'; did you mean .*{meant}"):
        await TOOL.run({"time_zone": asked}, "user")


@pytest.mark.parametrize("asked", ["/etc/passwd", "../../etc/passwd", "\x00", "\ud800", "x" * 100_000, "a\nb"])
async def test_name_that_is_no_zone_is_refused_in_a_short_text(asked: str) -> None:
    with pytest.raises(ToolFailedError, match="IANA name") as refused:
        await TOOL.run({"time_zone": asked}, "user")
    assert len(str(refused.value)) < 200
    assert str(refused.value).isprintable()


async def test_zone_that_is_no_text_is_refused() -> None:
    with pytest.raises(ToolFailedError, match="not int"):
        await TOOL.run({"time_zone": 5}, "user")


async def test_clock_of_the_machine_tells_now() -> None:
    before = datetime.now(UTC)
    told = datetime.strptime((await CLOCK.run({}, "user"))[:16], "%Y-%m-%d %H:%M").replace(tzinfo=UTC)
    assert before.replace(second=0, microsecond=0) <= told <= datetime.now(UTC)
