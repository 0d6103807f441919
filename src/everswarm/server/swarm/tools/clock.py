"""The date and time, in any zone, in words that a model understands."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from zoneinfo import ZoneInfo, available_timezones

from everswarm.server.swarm.tools.tool import Arguments, Tool, ToolFailedError

_LONGEST_NAME = 64  # characters of a zone's name that are looked at
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")  # whatever the locale says


def clock_tool(now: Callable[[], datetime]) -> Tool:
    """Return the tool that says the date and time; `now` gives the moment, with its zone."""

    async def tell(arguments: Arguments, user: str) -> str:
        name = arguments.get("time_zone") or "UTC"
        if not isinstance(name, str):
            raise ToolFailedError(f'time_zone should be text such as "Europe/Berlin", not {type(name).__name__}.')
        return told(now(), name.strip())

    return Tool(
        name="clock",
        description="Tells the date, time, day of the week and ISO week of now, in UTC or in the time zone asked for.",
        parameters={
            "type": "object",
            "properties": {
                "time_zone": {"type": "string", "description": "IANA name, such as Europe/Berlin", "default": "UTC"}
            },
            "additionalProperties": False,
        },
        run=tell,
        allow_name="clock",
    )


def told(moment: datetime, time_zone: str) -> str:
    """Return `moment` (with its zone) in `time_zone`, such as "2026-11-22 21:05 Sunday, week 47, UTC".

    Raises:
        ToolFailedError: there is no such zone; the text names close ones.
    """
    local = moment.astimezone(_zone(time_zone))
    offset = f"{local:%z}"
    where = time_zone if time_zone == "UTC" else f"{time_zone} (UTC{offset[:3]}:{offset[3:5]})"
    return f"{local:%Y-%m-%d %H:%M} {_DAYS[local.weekday()]}, week {local.isocalendar().week}, {where}"


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # unknown; no name of a zone at all; a folder of zones such as 'Europe'
        asked = "".join(character for character in name[:_LONGEST_NAME] if character.isprintable())
        close = _close_names(asked)
        advice = f"did you mean {', '.join(close)}?" if close else "use an IANA name such as Europe/Berlin or UTC."
        raise ToolFailedError(f"there is no time zone '{asked}'; {advice}") from None


def _close_names(asked: str) -> list[str]:
    """Return up to four zones that look like `asked`: by the whole name, or by the city."""
    wanted = asked.lower().replace(" ", "_")
    names = _names()
    by_key = {name.lower(): name for name in names} | {name.rpartition("/")[2].lower(): name for name in names}
    keys = difflib.get_close_matches(wanted, by_key, n=4, cutoff=0.7)
    return list(dict.fromkeys(by_key[key] for key in keys))


@cache
def _names() -> tuple[str, ...]:
    """Return the zones known to this machine, those of a continent and a city last, so that they win over aliases."""
    return tuple(sorted(available_timezones(), key=lambda name: ("/" in name, not name.startswith("Etc/"), name)))


CLOCK = clock_tool(lambda: datetime.now(UTC))
