"""Identifiers that sort by time, so that rows made together lie together."""

from __future__ import annotations

import os
import time

RANDOM_BYTES = 10  # of one identifier
FETCHED = 256  # so many at a time, because asking the kernel costs more than the rest


def new_id() -> str:
    """Return a UUIDv7 as text (RFC 9562, section 5.7): 48 bits of Unix milliseconds, then random bits."""
    random_bits = _random_bits()
    value = (time.time_ns() // 1_000_000 & ((1 << 48) - 1)) << 80 | random_bits
    value = value & ~(0xF << 76) | 0x7 << 76
    text = f"{value & ~(0x3 << 62) | 0x2 << 62:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


_source: list[int] = []


def _random_bits() -> int:
    """Return 80 bits that nobody else gets: taking from a list is one step, whatever the threads do."""
    try:
        return _source.pop()
    except IndexError:
        fetched = os.urandom(RANDOM_BYTES * FETCHED)
        starts = range(RANDOM_BYTES, len(fetched), RANDOM_BYTES)
        _source.extend(int.from_bytes(fetched[start : start + RANDOM_BYTES], "big") for start in starts)
        return int.from_bytes(fetched[:RANDOM_BYTES], "big")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_source.clear)  # or parent and child would make the same
