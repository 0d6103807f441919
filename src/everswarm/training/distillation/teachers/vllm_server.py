"""A vLLM server over HTTP, as far as a teacher needs it: which models it serves, and what it thinks of a prompt."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from typing import Any

import httpx

from everswarm.client.loopback import is_loopback
from everswarm.errors import StageFailedError, UnavailableError

KEY_VARIABLE = "EVERSWARM_TEACHER_KEY"
TIMEOUT = httpx.Timeout(600.0, connect=10.0)  # a long prompt on a busy server
TRIES = 6
FIRST_PAUSE_SECONDS = 1.0  # after a refusal that names no other; doubles
LONGEST_PAUSE_SECONDS = 60.0  # whatever the server says
BUSY = (429, 502, 503, 504)
REFUSED_KEY = (401, 403)


class VllmServer:
    """The two requests that we send, sent again while the server is busy."""

    def __init__(self, base_url: str) -> None:
        key = os.environ.get(KEY_VARIABLE)
        self.name = f"The vLLM server at {base_url}"
        self._http = httpx.Client(
            base_url=base_url.rstrip("/"),
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=TIMEOUT,
            trust_env=not is_loopback(base_url),  # no proxy on the way to this machine
        )

    def context_tokens(self, model: str) -> int:
        """Return how many tokens the model reads, 0 where the server does not say.

        Raises:
            StageFailedError: it serves no such model; names those that it does.
        """
        told = self._ask("GET", "/models").get("data")
        entries = told if isinstance(told, list) else []
        served = {str(entry.get("id")): entry for entry in entries if isinstance(entry, dict)}
        if model not in served:
            raise StageFailedError(
                f"{self.name} serves {', '.join(sorted(served)) or 'no model'}, not '{model}'. Name one that it "
                "serves, or start it with --served-model-name."
            )
        limit = served[model].get("max_model_len")
        return limit if isinstance(limit, int) else 0

    def prompt_logprobs(self, model: str, ids: Sequence[int], top_k: int) -> Sequence[Any]:
        """Return an entry for each of `ids`, the first of them None.

        Raises:
            StageFailedError: the server gives none, or not so many.
        """
        wanted = {"model": model, "prompt": list(ids), "max_tokens": 1, "temperature": 0, "prompt_logprobs": top_k}
        answer = self._ask("POST", "/completions", wanted)
        try:
            told = answer["choices"][0]["prompt_logprobs"]
        except (LookupError, TypeError):
            told = None
        if not isinstance(told, list) or len(told) != len(ids):
            given = f"{len(told)} prompt_logprobs" if isinstance(told, list) else "no prompt_logprobs"
            raise StageFailedError(
                f"{self.name} gave {given} for {len(ids)} tokens, so it cannot score given text. Use a vLLM server "
                "(version 0.6 or newer), or configure it as an endpoint and name the teacher endpoint:MODEL, which "
                "learns from its own answers."
            )
        return told

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the JSON of the answer.

        Raises:
            StageFailedError: the server refuses.
            UnavailableError: it does not answer, or stays busy.
        """
        pause_seconds = FIRST_PAUSE_SECONDS
        for attempt in range(TRIES):
            try:
                response = self._http.request(method, path, json=body)
            except httpx.DecodingError as error:
                raise StageFailedError(
                    f"{self.name} answers with something that cannot be unpacked ({error}). Look at what stands "
                    "between it and the worker."
                ) from error
            except httpx.RequestError as error:
                problem, wanted = str(error) or type(error).__name__, ""
            else:
                if response.status_code not in BUSY:
                    return self._read(response)
                problem, wanted = (
                    f"{response.status_code}: {_message(response)}",
                    response.headers.get("Retry-After", ""),
                )
            if attempt < TRIES - 1:
                time.sleep(min(float(wanted) if wanted.isdecimal() else pause_seconds, LONGEST_PAUSE_SECONDS))
                pause_seconds *= 2
        raise UnavailableError(
            f"{self.name} did not answer in {TRIES} tries ({problem}). Is it running? What is labelled is kept.",
            retry_after_seconds=int(LONGEST_PAUSE_SECONDS),
        )

    def _read(self, response: httpx.Response) -> dict[str, Any]:
        message = _message(response)
        if response.status_code in REFUSED_KEY:
            raise StageFailedError(
                f"{self.name} refuses our key ({message}). Set {KEY_VARIABLE} where the worker runs."
            )
        if limit := re.search(r"logprobs of (\d+).*max allowed: (\d+)", message):
            raise StageFailedError(
                f"{self.name} gives at most {limit[2]} candidates a token, {limit[1]} are wanted. Start it with "
                f"--max-logprobs {limit[1]}."
            )
        if response.status_code >= 400:
            raise StageFailedError(f"{self.name} refuses to score ({response.status_code}: {message}).")
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise StageFailedError(
                f"{self.name} answers with something that is no JSON object. Does its URL end in /v1?"
            )
        return answer


def _message(response: httpx.Response) -> str:
    """Return what a refusal says, in the forms that vLLM has had."""
    if response.status_code < 400:
        return ""
    try:
        body = response.json()
        error = body.get("error", body)
        return str(error.get("message") if isinstance(error, dict) else error)[:500]
    except (ValueError, AttributeError):
        return response.text[:500] or response.reason_phrase
