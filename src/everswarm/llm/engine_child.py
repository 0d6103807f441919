"""The embedded llama.cpp: a child process that serves the OpenAI protocol on loopback. `embedded.py` starts it.

Prints one line of JSON when it answers: `{"address": "http://127.0.0.1:PORT"}`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

from everswarm.processes import leave_with_parent

QUIET = -1  # llama.cpp's verbosity: errors only
HTTP_THREADS = 8  # a streaming request keeps one


def main() -> None:
    """Load the model, say where it answers, and serve until the parent leaves or asks us to."""
    leave_with_parent()
    arguments = _parse()
    from xllamacpp import Server

    server = Server(_parameters(arguments))
    print(json.dumps({"address": server.listening_address}), flush=True)
    asked_to_stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked_to_stop.set())
    asked_to_stop.wait()
    os._exit(0)  # llama.cpp's destructor would wait for the requests in flight


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m everswarm.llm.engine_child", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="GGUF file")
    parser.add_argument("--name", required=True, help="name of the model in answers")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--context", type=int, required=True, help="tokens, shared by the parallel slots")
    parser.add_argument("--parallel", type=int, required=True, help="requests answered side by side")
    parser.add_argument("--answer-tokens", type=int, default=-1, help="limit where a request sets none; -1: no limit")
    parser.add_argument("--adapter", type=Path, help="LoRA GGUF; a request's `lora` sets its scale")
    return parser.parse_args()


def _parameters(arguments: argparse.Namespace) -> Any:
    from xllamacpp import CommonAdapterLoraInfo, CommonParams

    parameters = CommonParams()
    parameters.model.path = str(arguments.model)
    parameters.model_alias = {arguments.name}
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0  # any free one
    parameters.ui = False
    parameters.endpoint_slots = False
    parameters.cors_origins = "http://everswarm.invalid"  # no page has this origin; sandboxed frames have "null"
    parameters.use_jinja = True
    parameters.verbosity = QUIET
    parameters.n_ctx = arguments.context
    parameters.n_parallel = arguments.parallel
    parameters.n_predict = arguments.answer_tokens
    parameters.kv_unified = True  # one long conversation may use the context that the others leave free
    parameters.cache_ram_mib = 0  # by default it keeps old prompts in up to 8 GB
    parameters.fit_params = False
    parameters.n_threads_http = HTTP_THREADS
    parameters.cpuparams.n_threads = arguments.threads
    parameters.cpuparams_batch.n_threads = arguments.threads
    if arguments.adapter is not None:
        adapter = CommonAdapterLoraInfo()
        adapter.path = str(arguments.adapter)
        adapter.scale = 1.0
        parameters.lora_adapters = [adapter]
    return parameters


if __name__ == "__main__":
    main()
