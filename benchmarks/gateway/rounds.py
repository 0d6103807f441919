"""The measurement: scenarios, taken by all contenders in turn, round after round."""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gateway.contenders import Contender, Mock, bare_running, everswarm_running, mock_running
from benchmarks.gateway.litellm import litellm_running
from benchmarks.gateway.orchestration import measure_orchestration
from benchmarks.gateway.processes import cores, cpu_seconds, memory_mb, pinned

WARM_REQUESTS = 200
FEWEST_REQUESTS = 40  # of a measurement
SETTLE_SECONDS = 0.2  # what is written a moment after the answer is part of its cost
IDLE_SECONDS = 5.0  # after which memory at rest is read
MEMORY_BATCHES = 20
ORCHESTRATED_PER_SECOND = 1000  # calls in one process, for each second of a scenario

Told = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """How long it is measured."""

    rounds: int = 5
    seconds: float = 3.0  # of one scenario of one contender
    memory_requests: int = 100_000  # 0: memory is not measured
    starts: int = 3  # of everswarm, for what a start costs


QUICK = Plan(rounds=2, seconds=1.0, memory_requests=0, starts=1)


@dataclass(frozen=True)
class Scenario:
    """What is asked of a contender, and how."""

    name: str
    connections: int
    stream: bool = False
    same: bool = False  # all ask the same, so that the cache answers
    per_second: float = 0.0  # open loop at this rate; 0: closed loop
    delay_seconds: float = 0.0  # of the mock before each answer
    pace_seconds: float = 0.0  # of the mock between two chunks
    who: tuple[str, ...] = ("bare", "everswarm", "litellm")


MISS = Scenario("miss", 32)
ALONE = Scenario("alone", 1, who=("bare", "everswarm"))
STREAM = Scenario("stream", 8, stream=True)
PACED = Scenario("paced stream", 32, stream=True, pace_seconds=0.005, who=("bare", "everswarm"))
HIT = Scenario("hit", 32, same=True, who=("everswarm",))
OPEN = Scenario("open loop", 16, per_second=20.0, delay_seconds=0.020, who=("direct", "bare", "everswarm", "litellm"))
SCENARIOS = (MISS, ALONE, STREAM, PACED, HIT, OPEN)


class Sample(NamedTuple):
    """One contender, one scenario, one round."""

    cpu_ms: float  # of the whole process tree, for each completed request
    p50_ms: float
    upstream_tokens: int  # of all requests together


@dataclass
class Measured:
    """All samples, in the order of the rounds, and what is not measured in rounds."""

    samples: dict[tuple[str, str], list[Sample]] = field(default_factory=lambda: defaultdict(list))
    mock_requests_per_second: float = 0.0
    start_cpu_seconds: list[float] = field(default_factory=list)
    memory_mb: list[float] = field(default_factory=list)  # at rest, then after each batch
    orchestration_ms: dict[str, list[float]] = field(default_factory=dict)  # CPU a call, of `gateway` and of `swarm`

    def cpu_ms(self, scenario: Scenario, who: str) -> list[float]:
        """Return CPU milliseconds a request, one figure a round."""
        return [sample.cpu_ms for sample in self.samples[scenario.name, who]]

    def cpu_ratios(self, scenario: Scenario, who: str, other: str) -> list[float]:
        """Return the ratio of CPU a request within each round."""
        return [
            ours / theirs for ours, theirs in zip(self.cpu_ms(scenario, who), self.cpu_ms(scenario, other), strict=True)
        ]

    def p50_ratios(self, scenario: Scenario, who: str, other: str) -> list[float]:
        """Return the ratio of the median latency within each round."""
        pairs = zip(self.samples[scenario.name, who], self.samples[scenario.name, other], strict=True)
        return [ours.p50_ms / theirs.p50_ms for ours, theirs in pairs]

    def memory_slope_mb(self) -> float:
        """Return what a straight line through the samples of the last half gains over that half, in MB."""
        half = self.memory_mb[len(self.memory_mb) // 2 :]
        return statistics.linear_regression(range(len(half)), half).slope * (len(half) - 1)


class Load:
    """The load generator. Never asks the same question twice, unless a scenario wants that."""

    def __init__(self, program: Path) -> None:
        """Use the compiled `program`."""
        self._program = program
        self._asked = 1

    def run(self, contender: Contender, scenario: Scenario, requests: int) -> dict[str, Any]:
        """Send `requests` and return what the generator prints.

        Raises:
            SystemExit: a request was not answered in full; says how.
        """
        command = [str(self._program), "--port", str(contender.port), "--requests", str(requests)]
        command += ["--connections", str(scenario.connections), "--rate", str(scenario.per_second)]
        command += ["--model", contender.model, "--key", contender.key]
        command += ["--first", str(0 if scenario.same else self._asked)]
        command += ["--stream"] * scenario.stream + ["--same"] * scenario.same
        self._asked += requests
        with pinned(cores()[0]):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{contender.name}, {scenario.name}: {done.stderr.strip()}")
        found: dict[str, Any] = json.loads(done.stdout)
        if found["errors"]:
            raise SystemExit(
                f"{contender.name}, {scenario.name}: {found['errors']} of {requests} requests were not answered; "
                f"the first: {found['complaint']}"
            )
        return found


def measure(folder: Path, plan: Plan, *, litellm: Path | None = None, tell: Told = lambda text: None) -> Measured:
    """Measure all contenders with the programs compiled into `folder`.

    Args:
        folder: also takes homes and logs.
        plan: how long.
        litellm: virtual environment of the peer; None leaves it out.
        tell: is told each step.
    """
    measured, load = Measured(), Load(folder / "load")
    with mock_running(folder) as mock:
        with contextlib.ExitStack() as stack:
            tell("starting")
            contenders = [Contender("direct", mock.port), stack.enter_context(bare_running(folder, mock))]
            ours = stack.enter_context(everswarm_running(folder / "rounds", mock))
            measured.start_cpu_seconds.append(ours.start_cpu_seconds)
            contenders.append(ours)
            if litellm is not None:
                contenders.append(stack.enter_context(litellm_running(folder / "litellm", mock, litellm)))
            measured.mock_requests_per_second = load.run(contenders[0], MISS, 60_000)["requests_per_second"]
            _measure_rounds(measured, load, mock, contenders, plan, tell)
        tell("orchestration")
        measured.orchestration_ms = measure_orchestration(
            folder, mock, rounds=plan.rounds, calls=round(ORCHESTRATED_PER_SECOND * plan.seconds)
        )
        for number in range(1, plan.starts):
            tell(f"start {number + 1}")
            with everswarm_running(folder / f"start-{number}", mock) as ours:
                measured.start_cpu_seconds.append(ours.start_cpu_seconds)
                if number == 1 and plan.memory_requests:
                    _measure_memory(measured, load, ours, plan.memory_requests, tell)
    return measured


def _measure_rounds(
    measured: Measured, load: Load, mock: Mock, contenders: Sequence[Contender], plan: Plan, tell: Told
) -> None:
    counts: dict[tuple[str, str], int] = {}
    for number in range(plan.rounds + 1):  # the first one warms up, and finds how many requests fill the time
        for scenario in SCENARIOS:
            for contender in contenders:
                if contender.name not in scenario.who:
                    continue
                tell(f"round {number} of {plan.rounds}: {scenario.name}, {contender.name}" if number else "warming up")
                place = scenario.name, contender.name
                with mock.paced(delay_seconds=scenario.delay_seconds, pace_seconds=scenario.pace_seconds):
                    if number:
                        measured.samples[place].append(_sample(load, mock, contender, scenario, counts[place]))
                    else:
                        counts[place] = _warm(load, contender, scenario, plan.seconds)


def _warm(load: Load, contender: Contender, scenario: Scenario, seconds: float) -> int:
    """Return how many requests take about `seconds`."""
    if scenario.per_second:
        return max(FEWEST_REQUESTS, round(scenario.per_second * seconds))
    load.run(contender, scenario, FEWEST_REQUESTS)
    requests = FEWEST_REQUESTS if contender.name == "litellm" else WARM_REQUESTS
    per_second: float = load.run(contender, scenario, requests)["requests_per_second"]
    return max(FEWEST_REQUESTS, round(per_second * seconds))


def _sample(load: Load, mock: Mock, contender: Contender, scenario: Scenario, requests: int) -> Sample:
    tokens = mock.counts()["tokens"]
    before = cpu_seconds(contender.pid) if contender.pid else 0.0
    found = load.run(contender, scenario, requests)
    time.sleep(SETTLE_SECONDS)
    spent = cpu_seconds(contender.pid) - before if contender.pid else 0.0
    return Sample(spent * 1e3 / found["completed"], found["p50_us"] / 1e3, mock.counts()["tokens"] - tokens)


def _measure_memory(measured: Measured, load: Load, ours: Contender, requests: int, tell: Told) -> None:
    assert ours.pid is not None
    time.sleep(IDLE_SECONDS)
    measured.memory_mb.append(memory_mb(ours.pid))
    for batch in range(MEMORY_BATCHES):
        tell(f"memory: {batch * requests // MEMORY_BATCHES} of {requests} requests")
        load.run(ours, MISS, requests // MEMORY_BATCHES)
        time.sleep(SETTLE_SECONDS)
        measured.memory_mb.append(memory_mb(ours.pid))
