"""`python -m everswarm.training.stage_child JOB_FILE`: one stage in a process of its own.

Torch and llama.cpp live and crash here; the worker that holds the lease does not. It prints JSON lines, one of:
`{"progress": …}`, `{"checkpoint": …}`, and last `{"result": …}` or `{"error": …, "final": …}`.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from everswarm.client.api import client_from_environment
from everswarm.errors import EverswarmError, NoSpaceError, UnavailableError
from everswarm.processes import leave_with_parent
from everswarm.schemas.job import Job
from everswarm.settings import load_settings


def main() -> int:
    """Run the stage that the job file names."""
    leave_with_parent()
    lines = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1, encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print must not mix with our lines

    def emit(line: dict[str, Any]) -> None:
        lines.write(json.dumps(line) + "\n")

    try:
        emit(run(Job.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8")), emit))
    except EverswarmError as error:
        # a full disk or a server that is away may mend; the same input gives the same refusal
        emit({"error": str(error), "final": not isinstance(error, UnavailableError | NoSpaceError)})
        return 1
    except Exception as error:
        traceback.print_exc()
        emit({"error": f"{type(error).__name__}: {error}", "final": False})
        return 1
    return 0


def run(job: Job, emit: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Do the stage; return its last line."""
    settings = load_settings()
    os.environ.setdefault("OMP_NUM_THREADS", str(settings.worker.threads))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from everswarm.training.pipeline import run_stage
    from everswarm.training.workspace import HttpWorkspace

    folder = Path(os.environ["EVERSWARM_STAGE_FOLDER"])
    with contextlib.closing(client_from_environment(timeout_seconds=300.0)) as client:
        workspace = HttpWorkspace(
            client, folder=folder / "scratch", cache=Path(os.environ["EVERSWARM_STAGE_CACHE"]), emit=emit
        )
        record = run_stage(job, workspace, settings)
        workspace.finish()
    return {
        "result": record.model_dump(mode="json"),
        "uploaded_bytes": workspace.uploaded_bytes,
        "downloaded_bytes": workspace.downloaded_bytes,
    }


if __name__ == "__main__":
    sys.exit(main())
