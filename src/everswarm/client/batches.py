"""Work that the server does when its quotas allow: one file of questions in, one file of answers out, over restarts."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from pydantic import BaseModel, Field

from everswarm.client.api import EverswarmClient
from everswarm.client.problems import raise_for_problem, unreachable
from everswarm.errors import EverswarmError, NotFoundError, StageFailedError, UnavailableError

log = logging.getLogger(__name__)
ENDPOINT = "/v1/chat/completions"
ENDED = ("completed", "failed", "expired", "cancelled")
FIRST_PAUSE_SECONDS = 0.5  # between two looks at a batch; it grows
LONGEST_PAUSE_SECONDS = 5.0
PAUSE_GROWTH = 1.5
AWAY_SECONDS = 900.0  # that a server may be silent while it answers a batch: it restarts
KEPT_SECONDS = 2 * 24 * 3600  # of files that nobody deletes; a batch itself has a day
UPLOAD_SECONDS = 300.0

Tell = Callable[[str], None]


class Batch(BaseModel):
    """What the server says of a batch, as far as we read it."""

    id: str
    status: str
    input_file_id: str
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: dict[str, Any] | None = None  # of the input; `data` has one a line
    request_counts: dict[str, int] = Field(default_factory=dict)
    everswarm: dict[str, Any] = Field(default_factory=dict)

    @property
    def files(self) -> list[str]:
        """Return what should be deleted when its answers are kept elsewhere."""
        return [name for name in (self.input_file_id, self.output_file_id, self.error_file_id) if name]

    @property
    def progress(self) -> str:
        """Return how far it is, what it waits for, and how long that may take."""
        if self.status == "validating":
            return "the questions are read"
        told = f"{self.request_counts.get('completed', 0)} of {self.request_counts.get('total', 0)} answered"
        if self.everswarm.get("eta_seconds") is not None:
            told += f", about {max(1, round(self.everswarm['eta_seconds'] / 60))} min left"
        waiting = self.everswarm.get("waiting_for")
        return f"{told}; {waiting}" if waiting else told


class Answers(NamedTuple):
    """A batch that has ended, and its lines."""

    batch: Batch
    path: Path  # JSON lines of OpenAI's batch output, those of the error file behind


def answer_batch(
    client: EverswarmClient, requests: Path, out: Path, *, batch: str | None, on_batch: Tell, on_wait: Tell
) -> Answers:
    """Have `requests` answered and the answers written to `out`; waits as long as the quotas make it wait.

    Args:
        client: of the server, with a key of a user or a worker.
        requests: JSON lines in OpenAI's batch form, all for chats.
        out: file to write.
        batch: what an earlier try began; it is asked anew, once, if the server no longer has it or refused it.
        on_batch: told the id of a new batch as soon as there is one, so that a later try finds it.
        on_wait: told now and then what it waits for.

    Raises:
        StageFailedError: the server cannot use the requests.
        UnavailableError: it did not answer for 15 minutes.
    """
    found = None if batch is None else _earlier(client, batch, on_wait)
    if found is None:
        found = begin_batch(client, requests)
        on_batch(found.id)
        found = wait_for_batch(client, found.id, on_wait)
    if found.status == "failed":
        delete_files(client, found.files)
        reasons = [str(error.get("message")) for error in (found.errors or {}).get("data", [])]
        raise StageFailedError(
            f"The server did not take the questions for the teacher: {' '.join(reasons[:3]) or 'it does not say why.'} "
            "See docs/guides/batches.md for its limits."
        )
    return Answers(found, _download(client, found, out))


def begin_batch(client: EverswarmClient, requests: Path) -> Batch:
    """Upload `requests` and begin a batch over them; its files delete themselves after two days."""
    expiry = {"expires_after[anchor]": "created_at", "expires_after[seconds]": str(KEPT_SECONDS)}
    try:
        with requests.open("rb") as file:
            response = client.http.post(
                "/v1/files",
                files={"file": (requests.name, file, "application/jsonl")},
                data={"purpose": "batch", **expiry},
                timeout=UPLOAD_SECONDS,
            )
    except httpx.RequestError as error:
        raise unreachable(client.base_url, error) from error
    raise_for_problem(response)
    wanted = {
        "input_file_id": response.json()["id"],
        "endpoint": ENDPOINT,
        "completion_window": "24h",
        "output_expires_after": {"anchor": "created_at", "seconds": KEPT_SECONDS},
    }
    return Batch.model_validate(client.request("POST", "/v1/batches", json=wanted))


def get_batch(client: EverswarmClient, batch_id: str) -> Batch:
    """`GET /v1/batches/{id}`.

    Raises:
        NotFoundError: the server does not know it.
    """
    return Batch.model_validate(client.request("GET", f"/v1/batches/{batch_id}"))


def wait_for_batch(client: EverswarmClient, batch_id: str, on_wait: Tell) -> Batch:
    """Return the batch when it has ended, however that was.

    Raises:
        NotFoundError: the server does not know it.
        UnavailableError: the server did not answer for 15 minutes.
    """
    pause_seconds = FIRST_PAUSE_SECONDS
    heard_at = time.monotonic()
    while True:
        try:
            batch = get_batch(client, batch_id)
        except UnavailableError as error:
            if time.monotonic() - heard_at > AWAY_SECONDS:
                raise
            on_wait(str(error))
        else:
            heard_at = time.monotonic()
            if batch.status in ENDED:
                return batch
            on_wait(batch.progress)
        time.sleep(pause_seconds)
        pause_seconds = min(pause_seconds * PAUSE_GROWTH, LONGEST_PAUSE_SECONDS)


def delete_files(client: EverswarmClient, file_ids: list[str]) -> None:
    """Delete files of a batch. One that cannot be deleted now deletes itself later."""
    for file_id in file_ids:
        try:
            client.request("DELETE", f"/v1/files/{file_id}")
        except NotFoundError:
            continue
        except EverswarmError as error:
            log.warning("the file %s is not deleted yet: %s", file_id, error)


def _earlier(client: EverswarmClient, batch_id: str, on_wait: Tell) -> Batch | None:
    """Return a batch of an earlier try when it has ended; None where it, or what it answered, is gone."""
    try:
        batch = wait_for_batch(client, batch_id, on_wait)
        for name in (batch.output_file_id, batch.error_file_id):
            if name:
                client.request("GET", f"/v1/files/{name}")
    except NotFoundError:
        return None
    if batch.status == "failed":
        delete_files(client, batch.files)
        return None
    return batch


def _download(client: EverswarmClient, batch: Batch, out: Path) -> Path:
    """Write all lines of the batch to `out`, in one step."""
    partial = out.with_name(f"{out.name}.part")
    with partial.open("wb") as file:
        for file_id in (batch.output_file_id, batch.error_file_id):
            if not file_id:
                continue
            try:
                with client.http.stream("GET", f"/v1/files/{file_id}/content") as response:
                    raise_for_problem(response)
                    for piece in response.iter_bytes():
                        file.write(piece)
            except httpx.RequestError as error:
                raise unreachable(client.base_url, error) from error
    partial.replace(out)
    return out
