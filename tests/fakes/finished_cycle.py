"""A cycle that went all the way, written straight into a database: what the page and the commands show afterwards."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from tests.fakes.stage_results import EVALUATION, result_of

from everswarm.schemas.evaluation import Evaluation
from everswarm.schemas.job import WORKER_STAGES, CycleParameters, Stage
from everswarm.server.cycles import repository
from everswarm.server.database import Database
from everswarm.server.experiments.promotion import decide


def score(subject: str, weights: str, value: float) -> dict[str, Any]:
    return {
        "suite": "test",
        "subject": subject,
        "weights": weights,
        "metric": "bits_per_byte",
        "value": value,
        "low": value - 0.1,
        "high": value + 0.1,
        "standard_error": 0.05,
        "examples": 12,
        "better": "lower",
    }


def measured(answer: str) -> dict[str, Any]:
    """An evaluation whose scores and answers can be told apart on the screen; the base model said `answer`."""
    answers = {
        "base/gguf": answer,
        "candidate/gguf": "2 km = 2000 m.",
        "base/hf": "said in full precision",
        "candidate/hf": "said in full precision",
    }
    return {
        **EVALUATION,
        "scores": [score("base", "gguf", 1.0), score("candidate", "gguf", 0.8), score("base", "hf", 0.9)],
        "answers": [{"id": "i1", "question": "How long is 2 km?", "reference": "2000 m", "answers": answers}],
    }


def add_finished_cycle(database: Database, *, answer: str) -> None:
    """Add the cycle `c1`, released."""
    now = datetime.now(UTC)
    evaluation = measured(answer)
    decision = decide(Evaluation.model_validate(evaluation), margin=0.01)
    results = {stage: result_of(stage) for stage in WORKER_STAGES} | {
        Stage.SNAPSHOT: {"interactions": 30},
        Stage.EVALUATE: evaluation,
        Stage.RELEASE: {"decision": decision.model_dump(mode="json"), "release": {"version": "v1.0"}},
    }
    with database.transaction() as connection:
        parameters = CycleParameters(student="tiny/student")
        repository.insert_cycle(connection, "c1", parameters=parameters, trigger="manual", created_at=now)
        for stage, result in results.items():
            repository.insert_stage(connection, "c1", stage, state="done", inputs={}, created_at=now)
            told = {"result": result, "spent": {"wall_seconds": 61.4}, "finished_at": now}
            repository.update_stage(connection, repository.stage_id("c1", stage), **told)
        repository.update_cycle(connection, "c1", state="released", reason=decision.reason, finished_at=now)
