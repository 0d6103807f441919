"""What the swarm adds to one call: `Gateway.chat` beside the same through `Swarm`, in one process, turn about.

Run as a child on a core of its own: `python -m benchmarks.gateway.orchestration CONFIG ROUNDS CALLS`; prints JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from benchmarks.gateway.contenders import EVERSWARM_TOML, UPSTREAM_KEY, Mock
from benchmarks.gateway.processes import cores, pinned

SIDE_BY_SIDE = 32
QUESTION = "Question {number:08d}: what is the capital of France? Answer in one short sentence, please, and say why."


def measure_orchestration(folder: Path, mock: Mock, *, rounds: int, calls: int) -> dict[str, list[float]]:
    """Return CPU milliseconds a call, one figure a round, of `gateway` and of `swarm`.

    Raises:
        SystemExit: the child failed; its words are in the message.
    """
    config = folder / "orchestration.toml"
    config.write_text(EVERSWARM_TOML.format(base_url=mock.base_url), encoding="utf-8")
    command = [sys.executable, "-m", "benchmarks.gateway.orchestration", str(config), str(rounds), str(calls)]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("EVERSWARM_")},
        "EVERSWARM_CONFIG": str(config),
        "BENCH_UPSTREAM_KEY": UPSTREAM_KEY,
        "PYTHONPATH": os.pathsep.join(str(Path(entry).resolve()) for entry in sys.path if entry),
    }
    with pinned(cores()[1]):
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"orchestration: {done.stderr[-2000:]}")
    found: dict[str, list[float]] = json.loads(done.stdout)
    return found


async def _measure(rounds: int, calls: int) -> dict[str, list[float]]:
    from everswarm.server.database import Database
    from everswarm.server.gateway import Call, Gateway
    from everswarm.server.swarm.service import Swarm
    from everswarm.settings import load_settings

    found: dict[str, list[float]] = {"gateway": [], "swarm": []}
    with tempfile.TemporaryDirectory() as home:
        settings = load_settings(home=Path(home))
        database = Database(settings.sqlalchemy_url, key_file=settings.text_key_file)
        database.migrate()
        gateway = Gateway.from_settings(settings)
        await gateway.start()
        swarm = Swarm(gateway, database, settings)
        while "operational" not in gateway.states().values():
            await asyncio.sleep(0.05)
        asked = iter(range(10**8))

        def call(targets: tuple[str, ...]) -> Call:
            messages = [
                {"role": "system", "content": "You answer briefly."},
                {"role": "user", "content": QUESTION.format(number=next(asked))},
            ]
            payload = {"model": "everswarm", "messages": messages, "temperature": 0, "max_tokens": 128}
            return Call(payload, targets, user="bench")

        ways: dict[str, Callable[[], Awaitable[Any]]] = {
            "gateway": lambda: gateway.chat(call(("primary",))),
            "swarm": lambda: swarm.try_out(call(())),
        }
        for number in range(rounds + 1):  # the first warms up
            for name, way in ways.items():
                spent = await _cpu_ms(way, calls)
                if number:
                    found[name].append(spent)
        await gateway.close()
        database.close()
    return found


async def _cpu_ms(way: Callable[[], Awaitable[Any]], calls: int) -> float:
    async def several(count: int) -> None:
        for _ in range(count):
            await way()

    before = time.process_time()
    async with asyncio.TaskGroup() as group:
        for _ in range(SIDE_BY_SIDE):
            group.create_task(several(calls // SIDE_BY_SIDE))
    return (time.process_time() - before) * 1e3 / (calls // SIDE_BY_SIDE * SIDE_BY_SIDE)


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_measure(int(sys.argv[2]), int(sys.argv[3])))))
