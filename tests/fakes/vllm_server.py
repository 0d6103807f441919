"""A fake vLLM server: its real protocol over real HTTP, with the real logits of a small model on the CPU."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

CLAMPED = -9999.0  # what vLLM writes for minus infinity


@dataclass
class Manners:
    """How it behaves from now on."""

    max_logprobs: int = 20  # vLLM's --max-logprobs
    max_model_len: int = 2048
    tells_prompt_logprobs: bool = True  # False: the field is unknown, and ignored
    answers_busy: int = 0  # so many requests, then it serves
    key: str | None = None
    spells_otherwise: bool = False  # as a model with another tokenizer
    lifted: float = 0.0  # added to every log-probability
    headers: dict[str, str] = field(default_factory=dict)  # that it adds


@dataclass
class Seen:
    """What it was asked."""

    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)


class FakeVllmServer:
    """A context manager that serves the Hugging Face folder `weights` as `model`."""

    def __init__(self, weights: Path, *, model: str = "org/teacher", **manners: Any) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.model, self.manners, self.seen = model, Manners(**manners), Seen()
        self.tokenizer = AutoTokenizer.from_pretrained(weights)
        self._weights = AutoModelForCausalLM.from_pretrained(weights).eval()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._serve(lambda _body: (200, fake.models()))

            def do_POST(self) -> None:
                self._serve(fake.completions)

            def _serve(self, answer: Any) -> None:
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
                key = (self.headers["Authorization"] or "").removeprefix("Bearer ") or None
                fake.seen.keys.append(key)
                more = dict(fake.manners.headers)
                if fake.manners.answers_busy:
                    fake.manners.answers_busy -= 1
                    status, said = 503, _error("overloaded", 503)
                    more["Retry-After"] = "0"
                elif fake.manners.key not in (None, key):
                    status, said = 401, {"error": "Unauthorized"}
                else:
                    status, said = answer(body)
                data = json.dumps(said).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **more}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_arguments: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.base_url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def __enter__(self) -> Self:
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.shutdown()
        self._http.server_close()

    def models(self) -> dict[str, Any]:
        """`GET /v1/models`."""
        entry = {"id": self.model, "object": "model", "max_model_len": self.manners.max_model_len}
        return {"object": "list", "data": [entry]}

    def completions(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """`POST /v1/completions`, for a prompt of token ids and one token of answer."""
        self.seen.bodies.append(body)
        ids, wanted = body["prompt"], body.get("prompt_logprobs")
        if wanted is not None and wanted > self.manners.max_logprobs:
            limit = f"which is greater than max allowed: {self.manners.max_logprobs}"
            return 400, _error(f"Requested prompt logprobs of {wanted}, {limit}", 400)
        if len(ids) + body["max_tokens"] > self.manners.max_model_len:
            limit = f"This model's maximum context length is {self.manners.max_model_len} tokens."
            return 400, _error(f"{limit} However, your request has {len(ids)} input tokens.", 400)
        logprobs = self._logprobs(ids)
        choice: dict[str, Any] = {
            "index": 0,
            "text": self.tokenizer.decode([int(logprobs[-1].argmax())]),
            "logprobs": None,
            "finish_reason": "length",
            "stop_reason": None,
        }
        if wanted is not None and self.manners.tells_prompt_logprobs:
            rows = zip(ids[1:], logprobs[:-1], strict=True)
            choice["prompt_logprobs"] = [None, *(self._told(token, row, wanted) for token, row in rows)]
        usage = {"prompt_tokens": len(ids), "completion_tokens": 1, "total_tokens": len(ids) + 1}
        frame = {"id": "cmpl-1", "object": "text_completion", "created": 0, "model": self.model}
        return 200, {**frame, "choices": [choice], "usage": usage}

    def _logprobs(self, ids: list[int]) -> Any:
        import torch

        with torch.inference_mode():
            return self._weights(torch.tensor([ids])).logits[0].float().log_softmax(-1)

    def _told(self, token: int, row: Any, wanted: int) -> dict[str, Any]:
        """The token itself first, then the likeliest, as vLLM's dictionaries are."""
        order = row.argsort(descending=True, stable=True).tolist()
        told = dict.fromkeys([token, *order[:wanted]])
        return {str(number): self._entry(number, row, order.index(number) + 1) for number in told}

    def _entry(self, number: int, row: Any, rank: int) -> dict[str, Any]:
        decoded = self.tokenizer.decode([number])
        return {
            "logprob": max(float(row[number]) + self.manners.lifted, CLAMPED),
            "rank": rank,
            "decoded_token": f"<{decoded}>" if self.manners.spells_otherwise else decoded,
        }


def _error(message: str, code: int) -> dict[str, Any]:
    return {"error": {"message": message, "type": "BadRequestError", "param": None, "code": code}}
