"""Tools of servers that speak the Model Context Protocol: kept connected, listed, called.

One task a server, its keeper, enters and leaves the SDK's client (its scopes must be left where they were entered) and
connects again, with growing pauses, whatever happens to the server. Calls of other tasks go straight to the client.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from everswarm.llm.control_tokens import clean, clean_values
from everswarm.server.swarm.tools.mcp_streams import (
    VariableMissingError,
    child_environment,
    http_streams,
    process_streams,
    variable,
)
from everswarm.server.swarm.tools.tool import Arguments, Tool, ToolFailedError, plain_name
from everswarm.settings.swarm import ToolServerSettings

if TYPE_CHECKING:
    from mcp import Client
    from mcp_types import CallToolResult

START_SECONDS = 30.0  # to start, agree on a version and list tools
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0  # before it is tried again
LIST_SECONDS = 60.0  # between two looks at what tools there are
CLOSE_SECONDS = 4.0  # for all servers to leave
MOST_TOOLS = 128  # of one server
NAME_CHARACTERS = 64
DESCRIPTION_CHARACTERS = 500
SCHEMA_CHARACTERS = 8000  # of one tool: models read it with each question
OPERATIONAL = "operational"

_log = logging.getLogger(__name__)


class ToolServers:
    """All servers that are configured, and the tools that they have now."""

    def __init__(self, settings: Mapping[str, ToolServerSettings], *, log_folder: Path | None = None) -> None:
        """`log_folder` takes what commands say on standard error, a file a server; without it nobody reads that."""
        self.version = 0  # grows whenever a tool comes or goes
        self._servers = [_Server(name, one, log_folder, self._changed) for name, one in settings.items()]
        self._keepers: list[asyncio.Task[None]] = []
        self._tools: dict[str, list[Tool]] = {}

    def start(self) -> None:
        """Begin to connect; returns at once. What became of it is in `states()`."""
        if self._servers and not self._keepers:
            library = asyncio.create_task(asyncio.to_thread(_import_library), name="tools-library")
            self._keepers = [
                asyncio.create_task(server.keep(library), name=f"tools-{server.name}") for server in self._servers
            ]

    async def close(self) -> None:
        """Disconnect; the commands that were started are gone afterwards."""
        keepers, self._keepers = self._keepers, []
        for wait_seconds in (CLOSE_SECONDS, 0.5):  # the second time for one that hangs in its farewell
            waiting = [keeper for keeper in keepers if not keeper.done()]
            for keeper in waiting:
                keeper.cancel()
            if waiting:
                await asyncio.wait(waiting, timeout=wait_seconds)
        for server in self._servers:
            server.disconnect("stopped")

    def by_server(self) -> Mapping[str, list[Tool]]:
        """Return the tools by the name of their server; each server that is configured is there."""
        if not self._tools:
            self._tools = {server.name: list(server.tools.values()) for server in self._servers}
        return self._tools

    def states(self) -> dict[str, str]:
        """Return 'operational', or what each server waits for, in words that hold no secret."""
        return {server.name: server.state for server in self._servers}

    def _changed(self) -> None:
        self.version += 1
        self._tools = {}


class _Server:
    """One server, with or without a connection at this moment."""

    def __init__(
        self, name: str, settings: ToolServerSettings, log_folder: Path | None, changed: Callable[[], None]
    ) -> None:
        self.name = name
        self.state = "not started"
        self.tools: dict[str, Tool] = {}
        self._settings = settings
        self._log_path = log_folder / f"tools-{plain_name(name)}.log" if log_folder and settings.command else None
        self._changed = changed
        self._client: Client | None = None
        self._calls = 0  # in flight
        self._stirred = asyncio.Event()  # something happened that the keeper should look at
        self._lost = ""  # why there is no connection any more
        self._status = 0  # of the last HTTP answer that refused us

    async def keep(self, library: asyncio.Task[None]) -> None:
        """Be connected, again and again, until cancelled."""
        self.state = "starting…"
        try:
            await asyncio.shield(library)
        except ImportError:
            self.state = "needs the 'server' extra: pip install 'everswarm[server]'"
            return
        loop, pause_seconds, said = asyncio.get_running_loop(), FIRST_PAUSE_SECONDS, ""
        while True:
            began = loop.time()
            try:
                await self._stay_connected()
            except VariableMissingError as error:  # the environment of a process does not change: no second try
                self.state = f"not started: {error}; set it and restart"
                return
            except Exception as error:
                reason = self._lost or _words(error, self._settings, self._status)
            else:
                reason = self._lost
            if loop.time() - began > LONGEST_PAUSE_SECONDS:  # it did work
                pause_seconds = FIRST_PAUSE_SECONDS
            if reason != said:
                _log.warning("tool server %s: %s; trying again in %d s", self.name, reason, pause_seconds)
            said = reason
            self.disconnect(f"{reason}; trying again after {pause_seconds:.0f} s")
            await asyncio.sleep(pause_seconds)
            pause_seconds = min(2 * pause_seconds, LONGEST_PAUSE_SECONDS)

    async def _stay_connected(self) -> None:
        """Connect, list the tools, and return when the connection is lost.

        Raises:
            VariableMissingError: a variable that it needs is not set.
            Exception: whatever the system or the SDK says of a server that does not work.
        """
        from mcp import Client

        self._lost, self._status = "", 0
        self._stirred.clear()
        async with contextlib.AsyncExitStack() as stack:
            client = Client(self._streams(stack), cache=None)
            async with asyncio.timeout(START_SECONDS):
                await stack.enter_async_context(client)
                tools = await self._list(client)
            self._client = client
            self._have(tools)
            self.state = OPERATIONAL
            while not self._lost:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LIST_SECONDS):
                        await self._stirred.wait()
                if not self._lost and (self._stirred.is_set() or not self._calls):  # a busy one may answer late
                    self._stirred.clear()
                    async with asyncio.timeout(START_SECONDS):
                        self._have(await self._list(client))

    def _streams(self, stack: contextlib.ExitStack | contextlib.AsyncExitStack) -> Any:
        settings = self._settings
        if settings.url:
            return http_streams(
                settings.url,
                token=variable(settings.token_env) if settings.token_env else None,
                answer_seconds=max(300.0, settings.timeout_seconds),
                refused=self._refused,
            )
        log = stack.enter_context(_opened(self._log_path))
        return process_streams(
            settings.command, environment=child_environment(settings.env), log=log, lost=self._is_lost
        )

    def _is_lost(self, reason: str) -> None:
        self._lost = reason
        self.disconnect(f"{reason}; connecting again")
        self._stirred.set()

    def disconnect(self, state: str) -> None:
        """Have no tools from now on, and say why."""
        self.state, self._client = state, None
        self._have({})

    def _refused(self, status: int) -> None:
        self._status = status

    def _have(self, tools: dict[str, Tool]) -> None:
        def described(some: Mapping[str, Tool]) -> list[tuple[Any, ...]]:
            return [(tool.name, tool.allow_name, tool.description, tool.parameters) for tool in some.values()]

        if described(tools) != described(self.tools):
            self.tools = tools
            self._changed()

    async def _list(self, client: Client) -> dict[str, Tool]:
        """Return the server's tools by the name that models call them by, those that can be used."""
        found: dict[str, Tool] = {}
        left_out: list[str] = []
        cursor: str | None = None
        for _page in range(MOST_TOOLS):
            page = await client.list_tools(cursor=cursor)
            for one in page.tools:
                tool = self._as_tool(one.name, one.description or one.title or "", one.input_schema)
                if tool is not None and tool.name not in found and len(found) < MOST_TOOLS:
                    found[tool.name] = tool
                else:
                    left_out.append(one.name[:80])
            cursor = page.next_cursor
            if cursor is None or len(found) >= MOST_TOOLS:
                break
        if left_out and not self.tools:  # said once a connection, not with each look
            _log.warning("tool server %s: %d tools are left out, such as %r", self.name, len(left_out), left_out[:5])
        return found

    def _as_tool(self, name: str, description: str, schema: Mapping[str, Any]) -> Tool | None:
        """Return the tool, or None where its name or its schema cannot be used."""
        if not name.isprintable() or not 0 < len(name) <= 200 or schema.get("type", "object") != "object":
            return None
        if len(json.dumps(schema)) > SCHEMA_CHARACTERS:
            return None

        async def run(arguments: Arguments, _user: str) -> str:
            return await self._call(name, arguments)

        return Tool(
            name=_callable_name(self.name, name),
            description=" ".join(clean(description[: 4 * DESCRIPTION_CHARACTERS]).split())[:DESCRIPTION_CHARACTERS],
            parameters=clean_values(schema),  # models read it: no control tokens
            run=run,
            allow_name=f"{self.name}.{name}",
            timeout_seconds=self._settings.timeout_seconds,
            result_characters=self._settings.result_characters,
        )

    async def _call(self, tool: str, arguments: Arguments) -> str:
        """Return what the tool said; who calls it gives it up when `timeout_seconds` are over.

        Raises:
            ToolFailedError: it failed, or its server did.
        """
        from mcp import MCPError
        from mcp_types import CONNECTION_CLOSED

        if self._client is None:
            raise ToolFailedError(f"the tool server '{self.name}' is not connected: {self.state}")
        self._calls += 1
        try:
            result = await self._client.call_tool(tool, dict(arguments))
        except asyncio.CancelledError:  # given up, perhaps because it hangs
            if self._calls == 1:  # a busy one may be late
                self._stirred.set()
            raise
        except MCPError as error:
            self._stirred.set()
            if error.code == CONNECTION_CLOSED:
                self._is_lost(self._lost or "the connection was lost")
                raise ToolFailedError(
                    f"the tool server '{self.name}' ended during the call; it is being connected again"
                ) from error
            raise ToolFailedError(error.message) from error
        except Exception as error:
            _log.warning("tool server %s: an answer cannot be used: %s", self.name, type(error).__name__)
            raise ToolFailedError(f"the tool server '{self.name}' gave an answer that cannot be used") from error
        finally:
            self._calls -= 1
        return result_text(result)


def result_text(result: CallToolResult) -> str:
    """Return a result as text; what is no text is named, not shown.

    Raises:
        ToolFailedError: the result says that the tool failed.
    """
    parts = [_part_text(part) for part in result.content]
    if result.structured_content is not None and not any(part.type == "text" for part in result.content):
        parts.append(json.dumps(result.structured_content, ensure_ascii=False))
    text = "\n".join(parts)
    if result.is_error:
        raise ToolFailedError(text or "the tool failed and did not say why")
    return text


def _part_text(part: Any) -> str:
    """Return the words for one part of a result: text, image, audio, link or an embedded resource."""
    if part.type == "text":
        return str(part.text)
    if part.type == "resource_link":
        return f"({part.name}: {part.uri})"
    if part.type == "resource" and (text := getattr(part.resource, "text", None)) is not None:
        return str(text)
    base64, kind = (
        (part.resource.blob, part.resource.mime_type) if part.type == "resource" else (part.data, part.mime_type)
    )
    size_bytes = len(base64) * 3 // 4 - base64[-2:].count("=")
    return f"({kind or 'no text'}, {size_bytes} bytes: not shown)"


def _callable_name(server: str, tool: str) -> str:
    """Return a name that models may call: letters, digits, _ and -, at most 64, and no two alike."""
    plain = f"{server}__{tool}"
    safe = plain_name(plain)
    one_meaning = "__" not in server and not server.endswith("_")  # the first __ is where the server's name ends
    if safe == plain and one_meaning and len(safe) <= NAME_CHARACTERS:
        return safe
    digest = hashlib.sha256(f"{len(server)}:{plain}".encode()).hexdigest()[:8]
    return f"{safe[: NAME_CHARACTERS - 9]}_{digest}"


def _words(error: BaseException, settings: ToolServerSettings, status: int) -> str:
    """Return what is wrong with a server, without what its own texts may hold."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    where = f"the server at {settings.url}" if settings.url else f"'{settings.command[0]}'"
    if status in {401, 403}:
        token = f"is the token in {settings.token_env} right?" if settings.token_env else "set token_env to a variable"
        return f"{where} refuses us (HTTP {status}); {token}"
    if status >= 400:
        return f"{where} answers with HTTP {status}"
    if settings.url:
        return f"{where} does not answer as a tool server ({type(error).__name__})"
    if isinstance(error, TimeoutError):
        return f"{where} did not answer within {START_SECONDS:.0f} s"
    if isinstance(error, OSError):
        return f"cannot be started: {where}: {os.strerror(error.errno) if error.errno else type(error).__name__}"
    return f"{where} does not speak the protocol ({type(error).__name__})"


@contextlib.contextmanager
def _opened(path: Path | None) -> Iterator[BinaryIO | None]:
    """Yield the file for what a command says on standard error, readable by us alone; None where nobody reads it."""
    if path is None:
        yield None
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    with os.fdopen(os.open(path, flags, 0o600), "ab", buffering=0) as file:
        yield file


def _import_library() -> None:
    """Load the SDK: half a second of CPU, in a thread so that nobody waits for it."""
    for module in ("mcp", "mcp.client.streamable_http"):
        importlib.import_module(module)
    logging.getLogger("mcp.client").setLevel(logging.CRITICAL)  # we say what is wrong; its tracebacks may hold payloads
