"""Teachers in the whole loop: a GGUF and an endpoint by the commands that people type, and `kill -9` of one at work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from examples.tiny_student import make_tiny_student
from tests.fakes.local_server import CYCLE, LocalServer
from tests.fakes.stage_results import result_of

from everswarm.cli.local import connect
from everswarm.client import EverswarmClient
from everswarm.errors import EverswarmError
from everswarm.llm.pull import pull_gguf
from everswarm.processes import start_python_child
from everswarm.schemas.artifact import ArtifactKind
from everswarm.schemas.dataset import Example
from everswarm.schemas.interaction import Message
from everswarm.schemas.job import Cycle, CycleParameters, Stage
from everswarm.schemas.targets import LabelCheckpoint, SoftTargets
from everswarm.server.cycles import repository
from everswarm.settings import EMBEDDED_MODEL, TeacherSettings, WorkerSettings, load_settings
from everswarm.training import worker as worker_module
from everswarm.training.distillation import label
from everswarm.training.distillation.teachers.weights import open_weights_teacher
from everswarm.training.worker import Worker
from everswarm.training.workspace import LocalWorkspace

PATIENCE_SECONDS = 240.0
COMMAND = [sys.executable, "-m", "everswarm.cli.main"]


def until(found: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if value := found():
            return value
        time.sleep(0.05)
    raise AssertionError(f"waited {PATIENCE_SECONDS} s for {what}")


# --- the loop, by its commands


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A server with the embedded engine and a worker, which people have given 30 corrections."""
    folder = tmp_path / "home"
    folder.mkdir()
    write_feedback(folder / "feedback.jsonl")
    run("feedback", "import", folder / "feedback.jsonl", home=folder)
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [*COMMAND, "serve", "--port", "0", "--home", str(folder)],
            env={**os.environ, "EVERSWARM_CYCLE__MINIMUM_EXAMPLES": "8"},
            stdout=log,
            stderr=log,
        )
        try:
            until(lambda: is_ready(folder), "the server to answer")
            yield folder
        finally:
            server.terminate()
            server.wait(30)


def write_feedback(path: Path) -> None:
    words = ["red", "blue", "green", "old", "new"]
    lines = [
        {
            "id": f"interaction-{number:03}",
            "device_id": f"person-{number % 10:02}",
            "timestamp": f"2026-11-01T12:{number:02}:00Z",
            "messages": [{"role": "user", "content": f"Say {words[number % 5]} and the number {number}."}],
            "response": "I do not know.",
            "model": "test",
            "rating": 1,
            "correction": f"{words[number % 5].upper()}: {number}.",
            "consent": True,
        }
        for number in range(30)
    ]
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n", encoding="utf-8")


def is_ready(home: Path) -> bool:
    try:
        with connect(load_settings(home=home)) as client:
            health = client.health()
            return health.cycles == "ready" and health.models == "operational"
    except EverswarmError:
        return False


def run(*arguments: object, home: Path) -> dict[str, Any]:
    command = [*COMMAND, *map(str, arguments), "--home", str(home), "--json"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def record_of(cycle: Cycle, stage: Stage) -> dict[str, Any] | None:
    return next(status.result for status in cycle.stages if status.stage == stage)


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_gguf_teaches_a_whole_cycle_and_an_endpoint_teaches_by_its_own_answers(home: Path) -> None:
    gguf = pull_gguf(EMBEDDED_MODEL, load_settings().models_dir).path
    wish = ("--train-examples", 8, "--epochs", 1)

    told = run("cycle", "run", "--teacher", f"gguf:{gguf}", *wish, home=home)

    cycle = Cycle.model_validate(told)
    assert cycle.state in {"released", "held"}, cycle.reason
    [cache] = SoftTargets.model_validate(record_of(cycle, Stage.LABEL)).caches
    assert (cache.teacher.model, cache.texts) == (str(gguf), {"target": 8})
    assert (cache.top_k, cache.tokens > 8, cache.top_k_mass > 0.5) == (20, True, True)

    started = run("cycle", "run", "--teacher", "endpoint:primary", "--no-hindsight", "--no-wait", *wish, home=home)
    with connect(load_settings(home=home)) as client:
        until(lambda: learnt_or_ended(client, started["id"]), "the student to have learnt")
        cycle = client.cycle(started["id"])
        assert cycle.state == "running", cycle.reason
        client.cancel_cycle(cycle.id)  # what follows is as above
    [cache] = SoftTargets.model_validate(record_of(cycle, Stage.LABEL)).caches
    assert cache.teacher.asked == TeacherSettings(source="endpoint", model="primary", hindsight=False)
    assert (cache.teacher.revision, list(cache.texts)) == ("as served", ["teacher"])
    assert cache.tokens > cache.texts["teacher"]
    adapter = record_of(cycle, Stage.DISTILL)
    assert adapter is not None
    assert adapter["soft_targets"] == SoftTargets.model_validate(record_of(cycle, Stage.LABEL)).digest


def learnt_or_ended(client: EverswarmClient, cycle_id: str) -> bool:
    cycle = client.cycle(cycle_id)
    return cycle.state != "running" or record_of(cycle, Stage.DISTILL) is not None


# --- kill -9 while the teacher is at it

TINY = "tiny/student"
STAGE = """
import os, sys, time
from pathlib import Path
from everswarm.training import pipeline, stage_child
from everswarm.training.distillation.teachers.weights import WeightsTeacher
from everswarm.training.models import StudentWeights

student, told = Path({student!r}), Path({told!r})
pipeline._student = lambda *_: StudentWeights(student, "0" * 64, student, "0" * 64)
score, texts = WeightsTeacher.score, []

def score_until_killed(self, text):
    texts.append(text)
    if len(texts) == 70 and not told.exists():
        told.write_text(str(os.getpid()))
        time.sleep(600)
    return score(self, text)

WeightsTeacher.score = score_until_killed
sys.exit(stage_child.main())
"""


def corrected(count: int) -> list[Example]:
    return [
        Example(
            id=f"example-{number:03}",
            user="ada",
            split="train",
            messages=[Message(role="user", content=f"How many metres are {number} km?")],
            target=f"{number} km are {number * 1000} m.",
            source="correction",
        )
        for number in range(count)
    ]


def write_dataset(examples: Sequence[Example], path: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [example.model_dump() | {"messages": json.dumps(example.model_dump()["messages"])} for example in examples]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LocalServer]:
    made = LocalServer(tmp_path / "server", worker=WorkerSettings(lease_seconds=60, beat_seconds=1, attempts=2))
    made.start()
    yield made
    made.close()


def queue_labelling(server: LocalServer, dataset: dict[str, Any]) -> str:
    now = datetime.now(UTC)
    with server.database.transaction() as connection:
        parameters = CycleParameters(student=TINY)
        repository.insert_cycle(connection, CYCLE, parameters=parameters, trigger="manual", created_at=now)
        repository.insert_stage(
            connection, CYCLE, Stage.LABEL, state="queued", inputs={Stage.CURATE: dataset}, created_at=now
        )
    return repository.stage_id(CYCLE, Stage.LABEL)


def undisturbed(examples: Sequence[Example], dataset: str, student: Path, workspace: LocalWorkspace) -> SoftTargets:
    teacher = open_weights_teacher(TeacherSettings(), folder=student, model=TINY, revision="0" * 64, threads=1)
    return label(
        examples,
        dataset=dataset,
        teachers=[teacher],
        out_dir=workspace.folder,
        done=LabelCheckpoint(),
        store_shard=lambda path: workspace.store(path, kind=ArtifactKind.SOFT_TARGETS),
        on_checkpoint=lambda _done: None,
    )


@pytest.mark.slow
def test_labelling_that_was_killed_goes_on_after_its_last_shard_to_the_same_digest(
    server: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, told, examples = make_tiny_student(tmp_path / "student"), tmp_path / "pid", corrected(80)
    script = tmp_path / "stage.py"
    script.write_text(STAGE.format(student=str(student), told=str(told)), encoding="utf-8")
    monkeypatch.setattr(
        worker_module, "start_python_child", lambda arguments, **options: start_python_child(
            [str(script), arguments[-1]], **options
        )
    )  # fmt: skip
    with server.client() as client:
        data = client.put_artifact(write_dataset(examples, tmp_path / "dataset.parquet"), kind=ArtifactKind.DATASET)
        dataset = {**result_of(Stage.CURATE), "data": data.model_dump(mode="json")}
        job_id = queue_labelling(server, dataset)
        worker = Worker(client=client, worker_id="w1", home=tmp_path / "worker", on_event=lambda _text: None)
        thread = threading.Thread(target=worker.run, kwargs={"once": True}, daemon=True)
        thread.start()
        pid = int(until(lambda: told.exists() and told.read_text(), "the 70th text"))
        first, *_ = until(lambda: server.stage(job_id).checkpoint, "the first shard")["shards"]

        os.kill(pid, signal.SIGKILL)
        until(lambda: server.stage(job_id).state in {"done", "failed"}, "the second try")
        worker.stopping.set()
        thread.join(30)

    stage = server.stage(job_id)
    assert (stage.state, stage.attempts) == ("done", 2), stage.error
    found = SoftTargets.model_validate(stage.result)
    expected = undisturbed(examples, data.sha256, student, LocalWorkspace(tmp_path / "peace"))
    assert found.digest == expected.digest
    assert found.caches[0].shards[0].sha256 == first["sha256"]
    assert found.caches[0].model_dump(exclude={"shards"}) == expected.caches[0].model_dump(exclude={"shards"})
