"""One method a route. Errors of the server come back as the errors that it meant (`everswarm.errors`)."""

from __future__ import annotations

import gzip
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from pydantic import TypeAdapter

from everswarm.client.download import download_artifact
from everswarm.client.loopback import is_loopback
from everswarm.client.problems import raise_for_problem, unreachable
from everswarm.schemas.artifact import Artifact, ArtifactKind
from everswarm.schemas.escalation import Escalated, Escalation
from everswarm.schemas.interaction import FeedbackAccepted, FeedbackRequest
from everswarm.schemas.job import Beat, Cycle, JobDone, JobFailed, Lease, LeaseRequest
from everswarm.schemas.release import Release
from everswarm.schemas.server import Health, KeyCreate, KeyCreated, KeyView
from everswarm.schemas.sync import Device, DeviceEnrolment, MobileModel, TrainingFeedback, TrainingFeedbackAccepted

CHUNK_BYTES = 1 << 20
PACKED_FROM_BYTES = 1_400  # a body below that is one packet on the wire, packed or not
NOT_UNPACKED = (400, 415)  # what a server answers that cannot read gzip


class EverswarmClient:
    """A connection to one server with one key. Not for use by several threads at once."""

    def __init__(self, base_url: str, key: str | None = None, *, timeout_seconds: float = 30.0) -> None:
        self.base_url = base_url.rstrip("/")
        self.key = key
        self._reads_gzip = True  # until the server says that it does not
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.http = httpx.Client(
            base_url=self.base_url,
            headers=headers,
            timeout=timeout_seconds,
            trust_env=not is_loopback(self.base_url),  # no proxy on the way to ourselves
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self.http.close()

    def request(self, method: str, path: str, *, json: Any = None, params: dict[str, Any] | None = None) -> Any:
        """Send one request and return its JSON, or None for 204.

        Raises:
            EverswarmError: the kind that the server's status stands for; UnavailableError when nobody answers.
        """
        try:
            response = self.http.request(method, path, json=json, params=params)
        except httpx.RequestError as error:
            raise unreachable(self.base_url, error) from error
        raise_for_problem(response)
        return None if response.status_code == 204 else response.json()

    # --- what the server says of itself

    def health(self) -> Health:
        """`GET /api/health`; needs no key."""
        return Health.model_validate(self.request("GET", "/api/health"))

    def create_key(self, create: KeyCreate) -> KeyCreated:
        """`POST /api/keys` (admin)."""
        return KeyCreated.model_validate(self.request("POST", "/api/keys", json=create.model_dump(mode="json")))

    def keys(self) -> list[KeyView]:
        """`GET /api/keys` (admin)."""
        return TypeAdapter(list[KeyView]).validate_python(self.request("GET", "/api/keys"))

    def revoke_key(self, key_id: str) -> None:
        """`DELETE /api/keys/{id}` (admin)."""
        self.request("DELETE", f"/api/keys/{key_id}")

    # --- chat and judgement

    def chat(self, messages: list[dict[str, str]], *, model: str = "everswarm", **options: Any) -> dict[str, Any]:
        """`POST /v1/chat/completions`, not streaming; returns the OpenAI response object."""
        body = {"model": model, "messages": messages, **options}
        answer: dict[str, Any] = self.request("POST", "/v1/chat/completions", json=body)
        return answer

    def feedback(self, feedback: FeedbackRequest) -> FeedbackAccepted:
        """`POST /api/feedback`."""
        body = feedback.model_dump(mode="json", exclude_none=True)
        return FeedbackAccepted.model_validate(self.request("POST", "/api/feedback", json=body))

    def escalate(self, escalation: Escalation) -> Escalated:
        """`POST /api/escalations`; the same one again gives the same answer."""
        body = escalation.model_dump(mode="json")
        return Escalated.model_validate(self.request("POST", "/api/escalations", json=body))

    # --- devices

    def enroll_device(self, enrolment: DeviceEnrolment) -> Device:
        """`POST /api/devices`."""
        return Device.model_validate(self.request("POST", "/api/devices", json=enrolment.model_dump(mode="json")))

    def mobile_latest(self, device_id: str) -> dict[str, MobileModel]:
        """`GET /api/models/mobile/latest`: by model slug."""
        found = self.request("GET", "/api/models/mobile/latest", params={"device_id": device_id})
        return {slug: MobileModel.model_validate(value) for slug, value in found.items()}

    def training_feedback(self, batch: TrainingFeedback) -> TrainingFeedbackAccepted:
        """`POST /api/training/feedback`: packed with gzip where that is smaller and the server reads it.

        Raises:
            EverswarmError: as `request` does.
        """
        content = batch.model_dump_json().encode()
        if self._reads_gzip and len(content) >= PACKED_FROM_BYTES:
            packed = gzip.compress(content, mtime=0)
            if len(packed) < len(content):
                response = self._post_training_feedback(packed, is_packed=True)
                if response.status_code not in NOT_UNPACKED:
                    return _accepted(response)
                self._reads_gzip = False
        return _accepted(self._post_training_feedback(content, is_packed=False))

    def _post_training_feedback(self, content: bytes, *, is_packed: bool) -> httpx.Response:
        headers = {"Content-Type": "application/json"} | ({"Content-Encoding": "gzip"} if is_packed else {})
        try:
            return self.http.post("/api/training/feedback", content=content, headers=headers)
        except httpx.RequestError as error:
            raise unreachable(self.base_url, error) from error

    def releases(self) -> list[Release]:
        """`GET /api/releases`, newest first."""
        return TypeAdapter(list[Release]).validate_python(self.request("GET", "/api/releases"))

    # --- artifacts

    def fetch_artifact(self, artifact: Artifact, path: Path, *, on_bytes: Callable[[int], None] | None = None) -> int:
        """Bring `artifact` to `path`, resuming a broken download; returns the bytes that crossed the wire.

        Raises:
            DigestMismatchError: the bytes are not the ones promised; nothing is left at `path`.
        """
        return download_artifact(self.http, artifact, path, on_bytes=on_bytes)

    def put_artifact(self, path: Path, *, kind: ArtifactKind) -> Artifact:
        """Upload the file at `path`; again is harmless."""
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        headers = {
            "X-Artifact-Kind": kind.value,
            "X-Artifact-Name": path.name,
            "Content-Length": str(path.stat().st_size),
        }
        try:
            response = self.http.put(
                f"/api/artifacts/{sha256}", content=_chunks(path), headers=headers, timeout=httpx.Timeout(300.0)
            )
        except httpx.RequestError as error:
            raise unreachable(self.base_url, error) from error
        raise_for_problem(response)
        return Artifact.model_validate(response.json())

    def has_artifact(self, sha256: str) -> bool:
        """Say whether the server holds the artifact."""
        try:
            return self.http.head(f"/api/artifacts/{sha256}").status_code == 200
        except httpx.RequestError as error:
            raise unreachable(self.base_url, error) from error

    # --- cycles and jobs

    def start_cycle(self, parameters: dict[str, Any] | None = None, *, trigger: str = "manual") -> Cycle:
        """`POST /api/cycles` (admin); `parameters`: fields of `CycleParameters`, the settings give the rest."""
        body = {"trigger": trigger, **(parameters or {})}
        return Cycle.model_validate(self.request("POST", "/api/cycles", json=body))

    def cycles(self, *, limit: int = 20) -> list[Cycle]:
        """`GET /api/cycles`, newest first."""
        found = self.request("GET", "/api/cycles", params={"limit": limit})
        return TypeAdapter(list[Cycle]).validate_python(found)

    def cycle(self, cycle_id: str) -> Cycle:
        """`GET /api/cycles/{id}`."""
        return Cycle.model_validate(self.request("GET", f"/api/cycles/{cycle_id}"))

    def retry_cycle(self, cycle_id: str) -> Cycle:
        """`POST /api/cycles/{id}/retry`: go on with the stage that failed."""
        return Cycle.model_validate(self.request("POST", f"/api/cycles/{cycle_id}/retry"))

    def cancel_cycle(self, cycle_id: str) -> Cycle:
        """`POST /api/cycles/{id}/cancel`."""
        return Cycle.model_validate(self.request("POST", f"/api/cycles/{cycle_id}/cancel"))

    def lease(self, request: LeaseRequest) -> Lease | None:
        """`POST /api/jobs/lease`: a job, or None when there is nothing to do."""
        found = self.request("POST", "/api/jobs/lease", json=request.model_dump(mode="json"))
        return None if found is None else Lease.model_validate(found)

    def beat(self, job_id: str, beat: Beat) -> None:
        """`POST /api/jobs/{id}/beat`.

        Raises:
            ConflictError: the lease is no longer ours.
        """
        self.request("POST", f"/api/jobs/{job_id}/beat", json=beat.model_dump(mode="json"))

    def job_done(self, job_id: str, done: JobDone) -> None:
        """`POST /api/jobs/{id}/done`."""
        self.request("POST", f"/api/jobs/{job_id}/done", json=done.model_dump(mode="json"))

    def job_failed(self, job_id: str, failed: JobFailed) -> None:
        """`POST /api/jobs/{id}/failed`."""
        self.request("POST", f"/api/jobs/{job_id}/failed", json=failed.model_dump(mode="json"))


def _accepted(response: httpx.Response) -> TrainingFeedbackAccepted:
    raise_for_problem(response)
    return TrainingFeedbackAccepted.model_validate(response.json())


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def client_from_environment(*, timeout_seconds: float = 60.0) -> EverswarmClient:
    """Return the client that the parent process meant: EVERSWARM_SERVER and EVERSWARM_KEY."""
    return EverswarmClient(os.environ["EVERSWARM_SERVER"], os.environ["EVERSWARM_KEY"], timeout_seconds=timeout_seconds)
