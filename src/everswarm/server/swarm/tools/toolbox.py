"""Hands tools to roles, and has done what models ask for: within the allow-list, checked, timed, and bounded."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import orjson

from everswarm.server.swarm.tools.fence import cut, readable
from everswarm.server.swarm.tools.tool import Tool, ToolFailedError, strict_json
from everswarm.server.swarm.tools.wanted import WordIndex

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

    from everswarm.server.swarm.tools.mcp_servers import ToolServers

ARGUMENT_CHARACTERS = 20_000  # of one call, as JSON
NAME_CHARACTERS = 100  # of a name that a model made up, as it is repeated
REASON_CHARACTERS = 300  # of what is wrong with arguments
CHECKED_REFERENCES = 20  # in a schema; one with more could be made to take for ever, its server checks for itself
KEPT = 256  # schemas and allow-lists that are kept ready

_log = logging.getLogger(__name__)


class ToolResult(NamedTuple):
    """What became of one call. The text is data: for the model, fenced, and for the trace."""

    name: str
    arguments: dict[str, Any]
    text: str
    outcome: Literal["done", "failed", "refused"]
    seconds: float


class _BadArgumentsError(Exception):
    """The arguments cannot be used; the text is for the model."""


class Toolbox:
    """All tools there are: built in, and those of servers as they come and go."""

    def __init__(self, built_in: Sequence[Tool], servers: ToolServers | None = None) -> None:
        self._built_in = {tool.name: tool for tool in built_in}
        self._servers = servers
        self._version = -1
        self._allowed: dict[tuple[str, ...], dict[str, Tool]] = {}
        self._indexes: dict[tuple[str, ...], WordIndex] = {}
        self._checks: dict[int, tuple[Tool, Validator | None]] = {}

    def allowed(self, names: Sequence[str]) -> dict[str, Tool]:
        """Return the tools on an allow-list by the name that models call: `built_in`, `server` or `server.tool`."""
        self._forget_changed()
        key = tuple(names)
        if key not in self._allowed:
            if len(self._allowed) >= KEPT:
                self._allowed.clear()
            self._allowed[key] = self._find(set(names))
        return dict(self._allowed[key])

    def _find(self, names: set[str]) -> dict[str, Tool]:
        built_in = {tool.allow_name or tool.name for tool in self._built_in.values()}
        found = {name: tool for name, tool in self._built_in.items() if (tool.allow_name or name) in names}
        for server, tools in (self._servers.by_server() if self._servers else {}).items():
            whole = server in names and server not in built_in  # a server cannot take the name of what is built in
            for tool in tools:
                if (whole or tool.allow_name in names) and tool.name not in self._built_in:
                    found[tool.name] = tool
        return found

    def _forget_changed(self) -> None:
        version = self._servers.version if self._servers else 0
        if version != self._version:
            self._version = version
            self._allowed.clear()
            self._indexes.clear()
            self._checks.clear()

    def wanted(self, text: str, allowed: Mapping[str, Tool], *, most: int = 8) -> list[Tool]:
        """Return the tools of servers among `allowed` that a question seems to want, best first; no model is asked."""
        if self._servers is None:
            return []
        self._forget_changed()
        key = tuple(allowed)
        if key not in self._indexes:
            if len(self._indexes) >= KEPT:
                self._indexes.clear()
            self._indexes[key] = WordIndex([tool for name, tool in allowed.items() if name not in self._built_in])
        return self._indexes[key].best(text, most=most)

    async def call(self, allowed: Mapping[str, Tool], name: str, arguments: object, *, user: str) -> ToolResult:
        """Return what became of a model's call of `name`; whatever goes wrong is said in the result, never raised.

        `arguments` is an object, or the JSON text of one, as models send it.
        """
        began = time.monotonic()
        taken: dict[str, Any] = {}
        tool = allowed.get(name) if isinstance(name, str) else None
        outcome: Literal["done", "failed", "refused"] = "failed"
        try:
            if tool is None:
                text, outcome = _refusal(name, allowed), "refused"
            else:
                taken = _read_arguments(arguments)
                await self._check(tool, taken)
                async with asyncio.timeout(tool.timeout_seconds):
                    text = await tool.run(taken, user)
                outcome = "done"
        except (ToolFailedError, _BadArgumentsError) as error:
            text = str(error)
        except TimeoutError:
            text = f"did not answer within {tool.timeout_seconds:g} s" if tool else ""
        except Exception as error:  # its text may hold what nobody should read
            _log.warning("tool %.64s failed: %s", name, type(error).__name__)
            text = f"the tool failed ({type(error).__name__})"
        text = _bounded(text, tool.result_characters if tool else ARGUMENT_CHARACTERS)
        return ToolResult(_whole(readable(str(name)[:NAME_CHARACTERS])), taken, text, outcome, time.monotonic() - began)

    async def _check(self, tool: Tool, arguments: dict[str, Any]) -> None:
        """Compare arguments with the schema of their tool; a schema that is itself broken says nothing.

        Raises:
            _BadArgumentsError: they do not fit.
        """
        if id(tool) not in self._checks:
            if len(self._checks) >= KEPT:
                self._checks.clear()
            self._checks[id(tool)] = (tool, await asyncio.to_thread(_compile, tool.parameters))
        validator = self._checks[id(tool)][1]
        if validator is None:
            return
        try:
            wrong = next(iter(validator.iter_errors(arguments)), None)
        except Exception as error:  # a reference that leads nowhere, or round in a circle
            _log.debug("arguments of %s are not checked: %s", tool.name, type(error).__name__)
            return
        if wrong is not None:
            where = ".".join(str(part) for part in wrong.absolute_path)
            text = f"{where}: {wrong.message}" if where else wrong.message
            raise _BadArgumentsError(f"the arguments do not fit: {text[:REASON_CHARACTERS]}")


def _bounded(text: object, characters: int) -> str:
    """Return at most `characters` of a result as text that can be read; no flood is copied or searched whole."""
    if not isinstance(text, str):
        text = readable(text) if isinstance(text, bytes) else str(text)
    start = text[:characters]
    return _whole(cut(text, characters) if readable(start) == start else readable(text))


def _whole(text: str) -> str:
    """Return `text` without halves of characters, which could be neither sent nor stored."""
    return text.encode(errors="replace").decode()


def _refusal(name: object, allowed: Mapping[str, Tool]) -> str:
    there = f"There are: {', '.join(sorted(allowed))}." if allowed else "There are none."
    return f"'{str(name)[:NAME_CHARACTERS]}' is not allowed here. {there}"


def _read_arguments(arguments: object) -> dict[str, Any]:
    """Return arguments as an object of their own.

    Raises:
        _BadArgumentsError: they are none, or too long.
    """
    too_long = _BadArgumentsError(
        f"the arguments are longer than {ARGUMENT_CHARACTERS} characters; send less, or in several calls"
    )
    if isinstance(arguments, bytes):
        arguments = arguments[: ARGUMENT_CHARACTERS + 1].decode(errors="replace")
    if isinstance(arguments, str):
        if len(arguments) > ARGUMENT_CHARACTERS:
            raise too_long
        try:
            arguments = strict_json(arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise _BadArgumentsError(
                'the arguments are not JSON; send an object such as {"expression": "2+2"}'
            ) from error
    if arguments is None:
        return {}
    if not isinstance(arguments, Mapping) or not all(isinstance(key, str) for key in arguments):
        raise _BadArgumentsError(f"the arguments should be a JSON object, not {type(arguments).__name__}")
    try:
        if len(orjson.dumps(dict(arguments)).decode()) > ARGUMENT_CHARACTERS:
            raise too_long
    except orjson.JSONEncodeError as error:  # half a character, a number of 65 bits: nobody could store them
        raise _BadArgumentsError("the arguments hold something that is not JSON") from error
    return dict(arguments)


def _compile(schema: Mapping[str, Any]) -> Validator | None:
    """Return a check for `schema` that never leaves the machine; None where the schema cannot be used.

    Patterns are left to the tool itself: one that a server wrote could keep us busy for ever.
    """
    try:
        from jsonschema import validators
        from referencing import Registry

        if json.dumps(schema).count('"$ref"') > CHECKED_REFERENCES:
            return None
        kind = validators.validator_for(schema, default=validators.validator_for({}))
        kind.check_schema(schema)
        without_patterns = validators.extend(kind, {"pattern": _says_nothing, "patternProperties": _says_nothing})
        return without_patterns(dict(schema), registry=Registry())
    except Exception as error:
        _log.debug("a schema is not used to check arguments: %s", type(error).__name__)
        return None


def _says_nothing(*_all: Any) -> tuple[()]:
    return ()
