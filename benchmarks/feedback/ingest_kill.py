"""`kill -9` under load: a server that dies again and again, and devices that send until they are answered.

In the end every record that was acknowledged must be there once, with its judgement once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from benchmarks.feedback.ingest_load import RECORDS_A_BATCH, Batch, Connection, Writer
from benchmarks.feedback.ingest_served import Served, served
from benchmarks.gateway.processes import free_port

DEVICES = 8
MOMENT_SECONDS = (0.02, 0.6)  # under load, before the kill
AGAIN_SECONDS = 0.05  # how long a device waits before it tries again


class KillReport(NamedTuple):
    """What became of the records."""

    kills: int
    acknowledged: int
    sent_again: int  # records of batches whose answer did not come
    lost: int
    doubled: int


@dataclass
class _Device:
    """One device: sends batch after batch, each until it is acknowledged."""

    number: int
    connection: Connection
    acknowledged: list[str] = field(default_factory=list)
    sent_again: int = 0

    async def send_until(self, over: asyncio.Event) -> None:
        """Send until `over`, and until the batch that was begun then is acknowledged."""
        writer = Writer(self.number)
        while not over.is_set():
            await self._send(writer.batch(f"device-{self.number}"))
        self.connection.close()

    async def _send(self, batch: Batch) -> None:
        while True:
            try:
                answer = await self.connection.post(batch.body)
            except (OSError, EOFError):
                self.sent_again += len(batch.ids)
                await asyncio.sleep(AGAIN_SECONDS)
                continue
            said = answer.content
            if answer.status == 200 and said["stored"] + said["duplicates"] == RECORDS_A_BATCH:
                self.acknowledged += batch.ids
                return
            if answer.status != 503:
                raise AssertionError(f"status {answer.status}: {said}")
            await asyncio.sleep(AGAIN_SECONDS)


def kill_runs(
    folder: Path, kills: int, *, seed: int = 1, tell: Callable[[str], None] = lambda _text: None
) -> KillReport:
    """Kill the server so many times at random moments under load; count what was lost and what is there twice.

    Args:
        folder: for its home.
        kills: how often.
        seed: of the moments.
        tell: is told what goes on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return asyncio.run(_kill_runs(folder, kills, random.Random(seed), tell))


async def _kill_runs(folder: Path, kills: int, moments: random.Random, tell: Callable[[str], None]) -> KillReport:
    port, over = free_port(), asyncio.Event()
    devices: list[_Device] = []
    sending: list[asyncio.Task[None]] = []
    for number in range(kills + 1):  # the last one stays alive
        tell(f"ingest: kill {number} of {kills}")
        with contextlib.ExitStack() as stack:
            server = await asyncio.to_thread(stack.enter_context, served(folder, port=port))
            if not devices:
                devices = [_Device(one, Connection(port, server.device_key(one))) for one in range(DEVICES)]
                sending = [asyncio.create_task(device.send_until(over)) for device in devices]
            await asyncio.wait(sending, timeout=moments.uniform(*MOMENT_SECONDS))  # returns early where one failed
            if number < kills:
                os.kill(server.pid, signal.SIGKILL)
            else:
                over.set()
                await asyncio.gather(*sending)
            await asyncio.to_thread(stack.close)
    return _counted(server, devices, kills)


def _counted(server: Served, devices: Sequence[_Device], kills: int) -> KillReport:
    acknowledged = [id_ for device in devices for id_ in device.acknowledged]
    with contextlib.closing(sqlite3.connect(server.database_file)) as connection:
        stored = [row[0] for row in connection.execute("SELECT id FROM interactions")]
        judged = [row[0] for row in connection.execute("SELECT interaction_id FROM feedback")]
    whole = set(stored) & set(judged)
    return KillReport(
        kills=kills,
        acknowledged=len(acknowledged),
        sent_again=sum(device.sent_again for device in devices),
        lost=len([id_ for id_ in acknowledged if id_ not in whole]),
        doubled=len(stored) - len(set(stored)) + len(judged) - len(set(judged)),
    )
