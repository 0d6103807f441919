"""The curation that is measured: one run, as a process of its own.

`python -m benchmarks.feedback.curation_run LINES FOLDER PROCESSES` prints what came of it as JSON, with the seconds of
each step.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from everswarm.schemas.artifact import Artifact, ArtifactKind
from everswarm.schemas.dataset import Snapshot
from everswarm.training.curation import LocalEngine, curate

STEPS = {  # what `curate` calls after it has read the lines
    "with_clusters": "questions alike",
    "drop_duplicates": "duplicates",
    "_set_aside": "poisoning",
    "drop_further_answers": "further answers",
    "balance": "balance",
    "_split": "split",
    "with_preference_split": "preferences",
    "write_files": "writing",
}


def main() -> None:
    """Curate, and print the account."""
    lines, folder, processes = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    with lines.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        count = sum(1 for _ in file)
    data = Artifact(sha256=sha256, size_bytes=lines.stat().st_size, kind=ArtifactKind.SNAPSHOT, name=lines.name)
    snapshot = Snapshot(data=data, interactions=count, incumbent=None, split_of_user={})
    seconds: dict[str, float] = {}
    _time_steps(seconds)
    begun = time.perf_counter()
    curated = curate(
        lines,
        snapshot,
        out_dir=folder,
        seed=0,
        minimum_examples=24,
        engine=LocalEngine(processes=processes),
        on_progress=lambda _done, _total: seconds.update(reading=time.perf_counter() - begun),
    )
    result = {
        "wall_seconds": time.perf_counter() - begun,
        "kept": sum(curated.card.examples.values()),
        "dropped": {f"{one.step}: {one.reason}": one.count for one in curated.card.dropped},
        "steps": seconds,
    }
    print(json.dumps(result), flush=True)


def _time_steps(seconds: dict[str, float]) -> None:
    """Note in `seconds` how long each step takes."""
    module = importlib.import_module("everswarm.training.curation.curate")  # the package has a function of this name
    for name, step in STEPS.items():
        setattr(module, name, _timed(getattr(module, name), step, seconds))


def _timed(function: Callable[..., Any], step: str, seconds: dict[str, float]) -> Callable[..., Any]:
    def timed(*arguments: Any, **options: Any) -> Any:
        begun = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            seconds[step] = seconds.get(step, 0.0) + time.perf_counter() - begun

    return timed


if __name__ == "__main__":
    main()
