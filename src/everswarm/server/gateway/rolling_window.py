"""Arithmetic of the rolling window: 60 slots and the one that is partly out. Pure; moments are whole microseconds.

What a call used is booked in the slot of the moment when it is *settled*; until then all that it may use is held.
So in no interval of one window is more granted than the limit, wherever between the reserving and the settling of a
call the provider counts it: take an interval and, of the calls counted in it, the one that was reserved last. At that
moment each of the others was either held still, or settled no more than one window before; both were counted.
"""

from __future__ import annotations

SLOTS = 60  # of a window
KEPT = SLOTS + 1  # the oldest is partly out, and counts as a whole

Series = list[int]  # the newest slot's number, then what was used in each of the KEPT slots, oldest first


def slot_of(now_us: int, window_us: int) -> int:
    """Return the number of the slot that holds `now_us`; a slot is 1/60 of the window wide."""
    return now_us * SLOTS // window_us


def empty_series(slot: int) -> Series:
    """Return a window in which nothing was used."""
    return [slot] + [0] * KEPT


def advance(series: Series, slot: int) -> bool:
    """Move the window on to `slot`, in place; return whether that has to be saved even if nothing else changes.

    A clock that went back frees nothing: the window waits for it. One that went back more than a window was wrong
    before, so all use counts as of now, or it would count for as long as the clock was wrong.
    """
    ahead = slot - series[0]
    if ahead > 0:
        gone = min(ahead, KEPT)
        series[:] = [slot, *series[1 + gone :], *[0] * gone]
    elif ahead < -SLOTS:
        series[:] = [slot, *[0] * SLOTS, used(series)]
        return True  # or the next would find the wrong clock again, and count anew
    return False


def used(series: Series) -> int:
    """Return what counts now."""
    return sum(series) - series[0]


def microseconds_until(series: Series, *, need: int, held: int, allowed: int, now_us: int, window_us: int) -> int:
    """Return when `need` more fits in `allowed`, if nothing is given back; 0 for at once.

    What is held counts as if it were used now. More than `allowed` goes out in portions, a whole window apart.
    """
    portions, rest = divmod(need - 1, allowed) if need > 0 else (0, -1)
    short = used(series) + held + rest + 1 - allowed
    if short <= 0 and portions == 0:
        return 0
    free = series[0]
    for booked in series[1:] if short > 0 else ():
        if short <= 0:
            break
        short -= booked
        free += 1
    if short > 0:  # what is held has to go too, and it is as new as can be
        free = series[0] + KEPT
    free += portions * KEPT
    return max(1, -(-free * window_us // SLOTS) - now_us)
