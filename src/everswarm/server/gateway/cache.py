"""Answers that were given before, word for word the same request.

A cache may lose anything at any time and is never a reason for a request to fail: what cannot be read is not there,
what cannot be written is not kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from everswarm.server.gateway.cache_file import AnswerFile, CacheRow, CacheStats
from everswarm.server.gateway.completions import is_whole

KEY_VERSION = 1  # of the form that is hashed
GATHER_SECONDS = 1.0  # answers are written together: a page of an index is then written once for many
GATHER_ENTRIES = 256
GATHER_BYTES = 1024 * 1024
HOT_ENTRIES = 64  # that are found without the file
HOT_BYTES = 16 * 1024  # the largest of them
CLOSING_TRIES = 25  # to write what is held, while another process writes
CLOSING_PAUSE_SECONDS = 0.02
HELD_TIMES = 8  # so many times as much is held while another process writes; then it is let go
TOUCH_SECONDS = 60.0  # how exactly 'least recently used' is known
LOOK_SECONDS = 60.0  # between two looks at whether the file is still ours and what in it is too old
LARGEST_SHARE = 10  # an answer over one part in so many of the cache is not kept

# what is not part of the question: who asks, how the answer travels, what the provider keeps of it
_LEFT_OUT = frozenset(
    {"model", "stream", "stream_options", "user", "metadata", "store", "service_tier", "safety_identifier",
     "prompt_cache_key", "prompt_cache_retention"}
)  # fmt: skip
# null says the same as nothing, for these certainly
_NULLABLE = frozenset(
    {"n", "stop", "temperature", "top_p", "max_tokens", "max_completion_tokens", "seed", "logprobs", "top_logprobs",
     "presence_penalty", "frequency_penalty", "logit_bias", "tools", "tool_choice", "response_format",
     "parallel_tool_calls", "functions", "function_call", "reasoning_effort", "verbosity", "modalities", "audio",
     "prediction"}
)  # fmt: skip
_DEFAULTS: dict[str, Any] = {"n": 1, "logprobs": False, "response_format": {"type": "text"}}
_NONE = object()  # equal to nothing
_FRACTIONS = frozenset({"temperature", "top_p", "presence_penalty", "frequency_penalty"})  # 1 and 1.0 are the same


class Remembered(NamedTuple):
    """An earlier answer."""

    completion: dict[str, Any]  # without an `id`: it is empty, the reader has its own; `created` now
    about: dict[str, Any]  # what was said beside it


def cache_key(
    payload: Mapping[str, Any], *, targets: Sequence[str], user: str | None, on_request: bool = False
) -> bytes | None:
    """Return what is equal for requests that have the same answer (32 bytes); None where the answer is not determined.

    It is determined at temperature 0, which must be said: left out it is 1. The order of names in messages and options
    does not matter; within tools and schemas it does, because the model sees it.

    Args:
        payload: the request in OpenAI's shape.
        targets: who is asked, instead of the payload's `model`.
        user: whose answers these are; None to share them among all.
        on_request: the asker is content with an earlier answer at any temperature.
    """
    temperature = payload.get("temperature")
    if not on_request and (temperature is None or temperature != 0):
        return None
    options: dict[str, Any] = {}
    ordered: list[tuple[str, Any]] = []
    for name, value in payload.items():
        if name in _LEFT_OUT or (value is None and name in _NULLABLE) or value == _DEFAULTS.get(name, _NONE):
            continue
        if name in _FRACTIONS and isinstance(value, int | float):
            options[name] = float(value) + 0.0  # never -0.0
        elif name == "stop":
            options[name] = [value] if isinstance(value, str) else value
        elif name == "messages" or not isinstance(value, dict | list):
            options[name] = value
        else:
            ordered.append((name, value))
    ordered.sort(key=itemgetter(0))
    try:
        canonical = orjson.dumps([KEY_VERSION, user, list(targets), options], option=orjson.OPT_SORT_KEYS)
        return hashlib.sha256(canonical + orjson.dumps(ordered)).digest()
    except TypeError:  # half a character, a number of more than 64 bits
        return None


class AnswerCache:
    """Answers in a file of their own. For the thread of the event loop.

    A second process may use the file, and finds what was in it when it opened it, and what it puts itself.

    Only `forget_user` and `clear` may be called from any thread.
    """

    def __init__(
        self, path: Path, *, ttl_seconds: float, size_bytes: int, clock: Callable[[], float] = time.time
    ) -> None:
        """Open the cache at `path`; make it when it is not there, and anew when it is damaged."""
        self._ttl_seconds = ttl_seconds
        self._largest_bytes = size_bytes // LARGEST_SHARE
        self._gather_bytes = min(GATHER_BYTES, size_bytes // 16)
        self._clock = clock
        self._file = AnswerFile(path, size_bytes=size_bytes)
        self._held: dict[bytes, CacheRow] = {}  # put, not yet written
        self._held_bytes = 0
        self._hot: dict[bytes, CacheRow] = {}  # read a moment ago; what is asked twice is asked again
        self._touched: set[bytes] = set()  # read; their last use is not yet written
        self._timer: asyncio.TimerHandle | None = None
        self._look_at = 0.0  # by the clock
        self._expiry_due = False
        self._look_if_due(clock())

    def get(self, key: bytes) -> Remembered | None:
        """Return the answer that was put under `key`, unless it is too old or let go."""
        now = self._clock()
        self._look_if_due(now)
        row = self._held.get(key) or self._hot.get(key) or self._find(key)
        if row is None or row.created + self._ttl_seconds <= now:
            return None
        if row.used + TOUCH_SECONDS <= now and len(self._touched) < GATHER_ENTRIES * HELD_TIMES:
            self._touched.add(key)
            self._hot.pop(key, None)
            self._write_soon()
        try:
            completion = {"id": "", "created": int(now), **orjson.loads(row.completion)}
            return Remembered(completion, orjson.loads(row.about))
        except (ValueError, TypeError):  # damaged within a row; the next put mends it
            return None

    def put(
        self, key: bytes, *, user: str, completion: Mapping[str, Any], about: Mapping[str, Any] | None = None
    ) -> None:
        """Keep `completion` under `key`; `get` sees it at once.

        Not kept: an answer that was cut (a choice has no `finish_reason`), or is larger than a tenth of the cache.

        Args:
            key: from `cache_key`.
            user: whose answer it is; it goes when the user is forgotten, also where it is shared.
            completion: a `chat.completion`; its `id` and `created` are not kept.
            about: more to say with it, such as who gave it.
        """
        now = self._clock()
        self._look_if_due(now)
        if not self._file.is_open or not is_whole(completion):
            return
        try:
            kept = {name: value for name, value in completion.items() if name not in {"id", "created"}}
            row = CacheRow(user.encode().decode(), now, now, orjson.dumps(dict(about or {})), orjson.dumps(kept))
        except (TypeError, UnicodeError):  # half a character
            return
        if len(row.completion) > self._largest_bytes:
            return
        self._hot.pop(key, None)
        self._held[key] = row
        self._held_bytes += len(row.completion)
        if len(self._held) >= GATHER_ENTRIES or self._held_bytes >= self._gather_bytes:
            self._write()
        else:
            self._write_soon()

    def forget_user(self, user: str) -> None:
        """Erase all answers of `user`; waits up to 5 s for another writer, and rather erases all than none.

        Raises:
            UnavailableError: the file can be neither written nor removed.
        """
        self._erase("DELETE FROM answers WHERE user = ?", user)

    def clear(self) -> None:
        """Erase all answers; raises as `forget_user` does."""
        self._erase("DELETE FROM answers")

    def stats(self) -> CacheStats:
        """Return how many answers are kept, and their size on disk; zeros where that cannot be known."""
        self._write()
        return self._file.stats()

    def close(self) -> None:
        """Write what is held, and close the file; afterwards nothing is found or kept. Waits a little for a writer."""
        for _ in range(CLOSING_TRIES):
            self._write()
            if not self._held:
                break
            time.sleep(CLOSING_PAUSE_SECONDS)
        self._look_at = math.inf
        self._hot.clear()
        self._let_go()
        self._file.close()

    def _find(self, key: bytes) -> CacheRow | None:
        row = self._file.find(key)
        if row is not None and len(row.completion) <= HOT_BYTES:
            if len(self._hot) >= HOT_ENTRIES:
                del self._hot[next(iter(self._hot))]
            self._hot[key] = row
        return row

    def _look_if_due(self, now: float) -> None:
        if now >= self._look_at:
            self._look_at = now + LOOK_SECONDS
            self._expiry_due = True
            self._hot.clear()
            self._file.look()
            self._write_soon()

    def _write_soon(self) -> None:
        if self._timer is None:
            try:
                self._timer = asyncio.get_running_loop().call_later(GATHER_SECONDS, self._write)
            except RuntimeError:  # no event loop: a command line
                self._write()

    def _write(self) -> None:
        """Write what is held and what was used; while another process writes, hold it a little longer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._clock()
        expired_before = now - self._ttl_seconds if self._expiry_due else None
        if not self._file.write(self._held, self._touched, now=now, expired_before=expired_before) and (
            len(self._held) < GATHER_ENTRIES * HELD_TIMES and self._held_bytes < self._gather_bytes * HELD_TIMES
        ):
            with contextlib.suppress(RuntimeError):  # without an event loop, at the next put
                self._timer = asyncio.get_running_loop().call_later(GATHER_SECONDS, self._write)
            return
        self._expiry_due = False
        self._let_go()

    def _let_go(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._held.clear()
        self._held_bytes = 0
        self._touched.clear()

    def _erase(self, statement: str, *users: str) -> None:
        def let_go() -> None:  # while no other thread can write what is held
            for key, row in list(self._held.items()):
                if not users or row.user in users:
                    self._held.pop(key, None)
            self._hot.clear()

        try:
            self._file.erase(statement, users, let_go)
        finally:
            if self._look_at < math.inf:  # not closed: the file may be another now
                self._look_at = 0.0
