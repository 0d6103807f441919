"""The peer: LiteLLM's proxy, pinned, in a virtual environment of its own, with one worker and no database or Redis.

That is its cheapest mode: no keys beside the master key, no limits, no cache, no log of calls.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gateway.contenders import MODEL, UPSTREAM_KEY, Contender, Mock, wait_until_answered
from benchmarks.gateway.processes import cores, cpu_seconds, free_port, running
from benchmarks.report import ROOT

VERSION = "1.106.2"
OWN_ENVIRONMENT = ROOT.parent / "var" / f"litellm-{VERSION}"


def prepare(environment: Path | None) -> Path:
    """Return the virtual environment to use; without one, make it under `var` (0.6 GB, some minutes, once).

    Raises:
        SystemExit: it has no LiteLLM of the pinned version, or that cannot be installed.
    """
    folder = environment or OWN_ENVIRONMENT
    if environment is None and _version(folder) is None:
        print(f"Installing litellm[proxy]=={VERSION} into {folder} (0.6 GB) …", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "-q"]
        if subprocess.run([*pip, f"litellm[proxy]=={VERSION}"], check=False).returncode:
            raise SystemExit(f"litellm[proxy]=={VERSION} could not be installed into {folder}; run without --litellm.")
    found = _version(folder)
    if found != VERSION:
        raise SystemExit(
            f"{folder} has litellm {found}, not {VERSION}, which the comparison is pinned to. Name another."
        )
    return folder


@contextlib.contextmanager
def litellm_running(folder: Path, mock: Mock, environment: Path) -> Iterator[Contender]:
    """Run the proxy of the virtual environment `environment`, with the mock behind two deployments of one model."""
    folder.mkdir()
    port, log, key = free_port(), folder / "litellm.log", "sk-" + secrets.token_urlsafe(32)
    deployment = {
        "model_name": MODEL,
        "litellm_params": {"model": f"openai/{MODEL}", "api_base": mock.base_url, "api_key": UPSTREAM_KEY},
    }
    config = folder / "config.yaml"  # JSON is YAML
    config.write_text(json.dumps({"model_list": [deployment, deployment]}), encoding="utf-8")
    program = environment.absolute() / "bin" / "litellm"
    command = [str(program), "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    variables = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "LITELLM_MASTER_KEY": key,
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_LOG": "ERROR",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # the list in the package; the newest one is on the network
    }
    with running(command, core=cores()[1], folder=folder, log=log, environment=variables) as child:
        wait_until_answered(f"http://127.0.0.1:{port}/health/liveliness", child, log)
        yield Contender("litellm", port, child.pid, MODEL, key, cpu_seconds(child.pid))


def _version(environment: Path) -> str | None:
    program = environment / "bin" / "python"
    if not program.exists():
        return None
    ask = "import importlib.metadata as installed; print(installed.version('litellm'))"
    done = subprocess.run([str(program), "-c", ask], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
