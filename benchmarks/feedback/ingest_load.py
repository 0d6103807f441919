"""Devices that upload: batches of made-up records, and connections that send them as fast as they are answered.

`python -m benchmarks.feedback.ingest_load PORT BATCHES_EACH KEY…`: one connection a key. Says `ready` when the batches
are made, begins at a line of its standard input, and prints what came back as JSON.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from everswarm.identifiers import new_id

RECORDS_A_BATCH = 20
RECORD_CHARACTERS = 1000  # about
SYLLABLES = ("ka", "lo", "mi", "ren", "tu", "sol", "ve", "dan", "pri", "qua", "zen", "bo", "fil", "gar", "hum", "nes")


class Batch(NamedTuple):
    """One request."""

    ids: list[str]
    body: bytes


class Answer(NamedTuple):
    """What came back."""

    status: int
    content: dict[str, Any]


@dataclass
class Connection:
    """One device, which keeps its connection open."""

    port: int
    key: str
    _streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = field(default=None, repr=False)

    async def post(self, body: bytes) -> Answer:
        """Send one batch; raises `OSError` or `EOFError` where the server is gone."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20)
        reader, writer = self._streams
        try:
            writer.write(
                b"POST /api/training/feedback HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %b\r\n"
                b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (self.key.encode(), len(body)) + body
            )
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            return Answer(int(head.split(b" ", 2)[1]), json.loads(await reader.readexactly(length)))
        except (OSError, EOFError):
            self.close()
            raise

    def close(self) -> None:
        """Close the connection; the next batch opens another."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


class Writer:
    """Makes up records; the same `seed` gives the same texts, and ids are always new."""

    def __init__(self, seed: int) -> None:
        """Begin."""
        self._random = random.Random(seed)
        self._words = ["".join(self._random.choices(SYLLABLES, k=self._random.randint(1, 4))) for _ in range(2000)]

    def text(self, characters: int) -> str:
        """Return about so many characters of words."""
        return " ".join(self._random.choices(self._words, k=characters // 7))

    def record(self) -> dict[str, Any]:
        """Return a corrected interaction of about 1 KB as JSON."""
        return {
            "id": new_id(),
            "timestamp": "2026-11-02T03:04:05.678Z",
            "messages": [{"role": "user", "content": self.text(210)}],
            "response": self.text(300),
            "model": "tiny-model@v1.3",
            "rating": self._random.randint(1, 5),
            "correction": self.text(260),
            "language": "en",
            "consent": True,
        }

    def batch(self, device_id: str, records: int = RECORDS_A_BATCH) -> Batch:
        """Return one request of `device_id`."""
        items = [self.record() for _ in range(records)]
        body = {"device_id": device_id, "interactions": items, "timestamp": "2026-11-02T04:00:00Z"}
        return Batch([item["id"] for item in items], json.dumps(body).encode())


async def _send_all(connection: Connection, batches: Sequence[Batch], latencies: list[float]) -> int:
    stored = 0
    for batch in batches:
        begun = time.perf_counter()
        answer = await connection.post(batch.body)
        latencies.append(time.perf_counter() - begun)
        if answer.status != 200:
            raise SystemExit(f"status {answer.status}: {answer.content}")
        stored += answer.content["stored"]
    connection.close()
    return stored


async def _run(port: int, batches_each: int, keys: Sequence[str]) -> dict[str, Any]:
    writer = Writer(len(keys))
    batches: list[list[Batch]] = [[] for _ in keys]
    for _ in range(batches_each):  # in turns, as they would be made: ids begin with the time
        for number, mine in enumerate(batches):
            mine.append(writer.batch(f"device-{number}"))
    print("ready", flush=True)
    sys.stdin.readline()
    latencies: list[float] = []
    begun = time.perf_counter()
    sending = [_send_all(Connection(port, key), mine, latencies) for key, mine in zip(keys, batches, strict=True)]
    stored = sum(await asyncio.gather(*sending))
    seconds = time.perf_counter() - begun
    latencies.sort()
    return {
        "stored": stored,
        "bytes": sum(len(batch.body) for mine in batches for batch in mine),
        "seconds": seconds,
        "p50_ms": latencies[len(latencies) // 2] * 1e3,
        "p99_ms": latencies[len(latencies) * 99 // 100] * 1e3,
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_run(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))), flush=True)
