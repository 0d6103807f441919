"""`/api/artifacts`: files by digest. They never change, so caches may keep them and downloads may resume."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, BinaryIO

from fastapi import APIRouter, Depends, Header, Request, Response, status
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, StreamingResponse

from everswarm.errors import ForbiddenError, NoSpaceError
from everswarm.schemas.artifact import Artifact, ArtifactKind
from everswarm.schemas.base import Sha256
from everswarm.schemas.server import Scope
from everswarm.server.auth import Principal, PrincipalDep, require
from everswarm.server.registry.service import (
    CHUNK_BYTES,
    MAX_ARTIFACT_BYTES,
    ArtifactsDep,
    ArtifactStore,
    Upload,
    file_is_gone,
    too_large,
)

CACHE_CONTROL = "private, max-age=31536000, immutable"
SHIPPED_KINDS = (ArtifactKind.BASE_GGUF, ArtifactKind.ADAPTER_GGUF)
_ONE_RANGE = re.compile(r"bytes=(\d+)-(\d*)")

router = APIRouter(prefix="/api/artifacts", tags=["artifacts"])


class ArtifactFile(FileResponse):
    """A file in large pieces: Starlette's 64 KiB cost more than twice the CPU."""

    chunk_size = CHUNK_BYTES


@router.head("/{sha256}", include_in_schema=False)
@router.get("/{sha256}", response_class=FileResponse)
def download_artifact(store: ArtifactsDep, principal: PrincipalDep, request: Request, sha256: Sha256) -> Response:
    """The file. `Range` resumes a download, `If-None-Match` asks whether it must be sent at all."""
    artifact = _readable(store.get(sha256), principal)
    etag = f'"sha256-{sha256}"'
    headers = {"ETag": etag, "Cache-Control": CACHE_CONTROL}
    if _names(request.headers.get("if-none-match", ""), etag):
        return Response(status_code=status.HTTP_304_NOT_MODIFIED, headers=headers)
    path = store.local_path(sha256)
    if path is None and request.method == "HEAD" and store.find(sha256) is None:
        raise file_is_gone(artifact)
    if path is not None:
        return ArtifactFile(path, headers=headers, media_type="application/octet-stream", filename=artifact.name)
    return _stream(store, artifact, request, headers)


@router.get("/{sha256}/meta")
def describe_artifact(store: ArtifactsDep, principal: PrincipalDep, sha256: Sha256) -> Artifact:
    """Size, kind and name of the file."""
    return _readable(store.get(sha256), principal)


@router.put(
    "/{sha256}",
    dependencies=[Depends(require(Scope.WORKER))],
    responses={201: {"model": Artifact, "description": "Stored"}},
    openapi_extra={"requestBody": {"required": True, "content": {"application/octet-stream": {}}}},
)
async def upload_artifact(
    store: ArtifactsDep,
    request: Request,
    response: Response,
    sha256: Sha256,
    kind: Annotated[ArtifactKind, Header(alias="X-Artifact-Kind")],
    name: Annotated[str, Header(alias="X-Artifact-Name", min_length=1, max_length=200)],
) -> Artifact:
    """Store a file. 201 when it is new, 200 when it was there already."""
    promised_bytes = request.headers.get("content-length", "")
    if promised_bytes.isdecimal() and int(promised_bytes) > MAX_ARTIFACT_BYTES:
        raise too_large(name, limit_bytes=MAX_ARTIFACT_BYTES)
    existing = await run_in_threadpool(store.find, sha256)
    if existing is not None:
        await _read_to_end(request.stream())
        return existing
    upload = await run_in_threadpool(store.begin, sha256, kind=kind, name=name, size_limit=MAX_ARTIFACT_BYTES)
    response.status_code = status.HTTP_201_CREATED
    return await _receive(upload, request.stream())


async def _receive(upload: Upload, body: AsyncIterator[bytes]) -> Artifact:
    """Write `body` to `upload`, on threads, so that a slow disk does not stop other requests."""
    try:
        async for piece in _pieces(body):
            await run_in_threadpool(upload.write, piece)
        return await run_in_threadpool(upload.finish)
    except NoSpaceError:
        await _read_to_end(body)  # else the sender meets a broken pipe instead of our answer
        raise
    finally:
        await run_in_threadpool(upload.discard)


async def _pieces(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Join the network's small chunks into pieces worth a thread switch."""
    waiting = bytearray()
    async for chunk in body:
        waiting += chunk
        if len(waiting) >= CHUNK_BYTES:
            yield bytes(waiting)
            waiting.clear()
    if waiting:
        yield bytes(waiting)


async def _read_to_end(body: AsyncIterator[bytes]) -> None:
    async for _ in body:
        pass


def _readable(artifact: Artifact, principal: Principal) -> Artifact:
    """Snapshots and datasets hold what people wrote: only administrators and workers read more than what ships."""
    if principal.scope in (Scope.USER, Scope.DEVICE) and artifact.kind not in SHIPPED_KINDS:
        raise ForbiddenError(
            f"This artifact is a {artifact.kind.value}; a {principal.scope.value} key may fetch "
            f"{' and '.join(kind.value for kind in SHIPPED_KINDS)} only. Use an admin key."
        )
    return artifact


def _names(if_none_match: str, etag: str) -> bool:
    """Say whether the header names `etag` (RFC 9110, section 13.1.2: weak comparison)."""
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return etag in tags or "*" in tags


def _stream(store: ArtifactStore, artifact: Artifact, request: Request, headers: dict[str, str]) -> Response:
    """Pass on a file that lies behind a URL; of ranges, the one that a resumed download asks for."""
    start, end, code = 0, artifact.size_bytes, status.HTTP_200_OK
    wanted = _ONE_RANGE.fullmatch(request.headers.get("range", ""))
    if wanted and request.headers.get("if-range", headers["ETag"]) == headers["ETag"]:
        start, code = int(wanted[1]), status.HTTP_206_PARTIAL_CONTENT
        end = min(int(wanted[2]) + 1, end) if wanted[2] else end
        if start >= end:
            return Response(status_code=416, headers={"Content-Range": f"bytes */{artifact.size_bytes}"})
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{artifact.size_bytes}"
    headers |= {"Content-Length": str(end - start), "Accept-Ranges": "bytes"}
    if request.method == "HEAD":
        return Response(status_code=code, headers=headers, media_type="application/octet-stream")
    body = _read_range(store.open(artifact.sha256), start, end)
    return StreamingResponse(body, status_code=code, headers=headers, media_type="application/octet-stream")


def _read_range(file: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    with file:
        file.seek(start, os.SEEK_SET)
        while start < end and (piece := file.read(min(CHUNK_BYTES, end - start))):
            start += len(piece)
            yield piece
