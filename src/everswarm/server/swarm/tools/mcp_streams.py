"""The two ways to a server of tools: a child process that speaks over its pipes, and HTTP. Both are bounded.

The process is ours rather than the SDK's `stdio_client`: that reads a line of any length into memory, hands the child
more of our environment than was asked for, and does not say when a child ends between two calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

from dotenv import dotenv_values

if TYPE_CHECKING:
    import httpx2
    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
    from mcp.shared.message import SessionMessage

    Incoming = MemoryObjectSendStream[SessionMessage | Exception]
    Outgoing = MemoryObjectReceiveStream[SessionMessage]

MESSAGE_BYTES = 16 * 1024 * 1024  # of one message from a server; who sends more is cut off
LOG_BYTES = 1024 * 1024  # of what a command said on standard error; then the file starts anew
LOG_ANEW_SECONDS = 60.0  # it does so at most once in these: what a flood says in between is dropped
LAST_WORDS_SECONDS = 0.5  # to read what a child that has ended still said
LEAVE_SECONDS = 1.0  # that a child has to leave by itself, then after SIGTERM
CONNECT_SECONDS = 10.0
BASIC_VARIABLES = (  # what a program needs to find its files; nothing of ours
    "PATH",
    "HOME",
    "LANG",
    "LANGUAGE",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "TMPDIR",
    "TEMP",
    "TMP",
    "USER",
    "LOGNAME",
    "SHELL",
    "SYSTEMROOT",
    "SYSTEMDRIVE",
    "WINDIR",
    "COMSPEC",
    "PATHEXT",
    "APPDATA",
    "LOCALAPPDATA",
    "PROGRAMDATA",
    "PROGRAMFILES",
    "USERPROFILE",
    "USERNAME",
    "HOMEDRIVE",
    "HOMEPATH",
)
LAUNCHER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG; it outlives the exec
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""

_log = logging.getLogger(__name__)


class VariableMissingError(Exception):
    """A variable that a server needs is not set; the text says which."""


def child_environment(names: Sequence[str]) -> dict[str, str]:
    """Return the variables of a command: what every program needs, and `names`.

    Raises:
        VariableMissingError: one of `names` is not set.
    """
    basic = {name: os.environ[name] for name in BASIC_VARIABLES if name in os.environ}
    return basic | {name: variable(name) for name in names}


def variable(name: str) -> str:
    """Return the value of `name` in our environment, or else in the file `.env`.

    Raises:
        VariableMissingError: it is not set.
    """
    value = os.environ.get(name) or dotenv_values(".env").get(name)
    if not value:
        raise VariableMissingError(f"the variable {name} is not set")
    return value


@contextlib.asynccontextmanager
async def process_streams(
    command: Sequence[str], *, environment: Mapping[str, str], log: BinaryIO | None, lost: Callable[[str], None]
) -> AsyncIterator[Any]:
    """Start `command` and yield the SDK's pair of streams to it; at the end it and its children are gone.

    `log` takes what it says on standard error, at most `LOG_BYTES`; `lost` is told, in words, when it can be spoken to
    no more.

    Raises:
        OSError: it cannot be started.
    """
    import anyio

    process = await asyncio.create_subprocess_exec(
        *_command_line(command, path=environment.get("PATH")),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL if log is None else asyncio.subprocess.PIPE,
        env=dict(environment),
        start_new_session=True,  # so that all that it starts can be ended with it
        limit=MESSAGE_BYTES,
    )
    incoming, read = anyio.create_memory_object_stream[Any](0)
    write, outgoing = anyio.create_memory_object_stream[Any](0)
    tasks = [
        asyncio.create_task(_read(process, incoming, lost)),
        asyncio.create_task(_write(process, outgoing)),
    ]
    logging_task = asyncio.create_task(_keep_log(process, log))
    try:
        yield read, write
    finally:
        for task in tasks:
            task.cancel()
        for stream in (read, write, outgoing, incoming):
            stream.close()
        try:
            await _end(process)
            await asyncio.wait([logging_task], timeout=LAST_WORDS_SECONDS)
        finally:
            logging_task.cancel()
            with contextlib.suppress(AttributeError, PermissionError):
                process._transport.close()  # type: ignore[attr-defined]  # nothing public closes its pipes


def _command_line(command: Sequence[str], *, path: str | None) -> list[str]:
    """Return what to start: on Linux by way of a launcher, so that the child is told to leave when we are killed.

    The end of its input alone does not make one leave that is busy.
    """
    program = shutil.which(command[0], path=path)
    if program is None or not sys.platform.startswith("linux"):
        return [program or command[0], *command[1:]]
    return [sys.executable, "-I", "-S", "-c", LAUNCHER, str(os.getpid()), program, *command[1:]]


async def _keep_log(process: asyncio.subprocess.Process, log: BinaryIO | None) -> None:
    """Write to `log` what the child says on standard error; read on when it is full, so that the child never waits."""
    if log is None or process.stderr is None:
        return
    clock = asyncio.get_running_loop().time
    size_bytes, anew_at = os.fstat(log.fileno()).st_size, clock()
    while piece := await process.stderr.read(LOG_BYTES):
        with contextlib.suppress(OSError):  # a disk that is full stops nobody
            if size_bytes + len(piece) > LOG_BYTES and clock() >= anew_at:
                log.truncate(0)
                size_bytes, anew_at = 0, clock() + LOG_ANEW_SECONDS
            if size_bytes + len(piece) <= LOG_BYTES:
                size_bytes += log.write(piece)


async def _read(process: asyncio.subprocess.Process, incoming: Incoming, lost: Callable[[str], None]) -> None:
    """Hand on what the server says, a message a line, until it says no more."""
    import anyio
    from mcp.shared.message import SessionMessage
    from mcp_types import jsonrpc_message_adapter

    assert process.stdout is not None
    reason = "it ended"
    with incoming, contextlib.suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):
        while True:
            try:
                line = await process.stdout.readuntil(b"\n")
            except asyncio.LimitOverrunError:
                reason = f"it sent more than {MESSAGE_BYTES // 1024 // 1024} MB in one message"
                break
            except (asyncio.IncompleteReadError, ConnectionError):
                break
            try:
                message = jsonrpc_message_adapter.validate_json(line, by_name=False)
            except ValueError:  # some print to it what is meant for people
                _log.debug("a line of %d bytes from a tool server is no message", len(line))
                continue
            await incoming.send(SessionMessage(message))
        if reason == "it ended" and await _has_ended(process, 0.5):
            reason = f"{reason} with exit code {process.returncode}"
        lost(reason)


async def _write(process: asyncio.subprocess.Process, outgoing: Outgoing) -> None:
    assert process.stdin is not None
    with outgoing, contextlib.suppress(ConnectionError, RuntimeError):  # it is gone: who reads its output notices
        async for message in outgoing:
            text = message.message.model_dump_json(by_alias=True, exclude_unset=True)
            process.stdin.write(text.encode() + b"\n")
            await process.stdin.drain()


async def _end(process: asyncio.subprocess.Process) -> None:
    """Let the child leave, then ask it, then kill it and all that it started; at most some 3 s."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        for ask in (None, process.terminate, process.kill):
            if ask is not None and process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    ask()
            if await _has_ended(process, LEAVE_SECONDS):
                return
    finally:
        if sys.platform != "win32":
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)


async def _has_ended(process: asyncio.subprocess.Process, within_seconds: float) -> bool:
    """Wait a moment for the end. Not `process.wait()`: a grandchild that holds the pipe would hold us."""
    deadline = asyncio.get_running_loop().time() + within_seconds
    while process.returncode is None and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(0.01)
    return process.returncode is not None


@contextlib.asynccontextmanager
async def http_streams(
    url: str, *, token: str | None, answer_seconds: float, refused: Callable[[int], None]
) -> AsyncIterator[Any]:
    """Yield the SDK's pair of streams to the server at `url`; `refused` is told of each HTTP status from 400 on."""
    import httpx2
    from mcp.client.streamable_http import streamable_http_client

    async def check(response: httpx2.Response) -> None:
        response.headers.pop("content-encoding", None)  # none was asked for: a little could unpack to anything
        if response.status_code >= 400:
            refused(response.status_code)
        if not response.headers.get("content-type", "").startswith("text/event-stream"):  # the SDK bounds its events
            response.stream = _bounded(response.stream)

    client = httpx2.AsyncClient(
        headers={"Accept-Encoding": "identity", **({"Authorization": f"Bearer {token}"} if token else {})},
        timeout=httpx2.Timeout(CONNECT_SECONDS, read=answer_seconds),
        event_hooks={"response": [check]},
    )
    async with client, streamable_http_client(url, http_client=client, max_sse_event_size=MESSAGE_BYTES) as streams:
        yield streams


def _bounded(stream: Any) -> Any:
    """Return a body that fails after `MESSAGE_BYTES`."""
    import httpx2

    class Bounded(httpx2.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            taken_bytes = 0
            async for piece in stream:
                taken_bytes += len(piece)
                if taken_bytes > MESSAGE_BYTES:
                    raise httpx2.StreamError(f"more than {MESSAGE_BYTES // 1024 // 1024} MB")
                yield piece

        async def aclose(self) -> None:
            await stream.aclose()

    return Bounded()
