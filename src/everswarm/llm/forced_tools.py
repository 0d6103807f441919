"""Has a model call a tool when the request demands it, by a JSON schema of the arguments. A `ChatModel` around another.

For llama.cpp, which demands nothing of a model whose chat template knows no tools, and takes a function that
`tool_choice` names for `auto` (ggml-org/llama.cpp, issue 27217 and pull request 26849). A request that leaves the
choice to the model passes unchanged.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from everswarm.errors import BadRequestError
from everswarm.identifiers import new_id
from everswarm.llm.protocol import ChatModel, Chunk, Payload

ANY_ARGUMENTS = {"type": "object", "properties": {}}

Function = Mapping[str, Any]  # name, description, parameters


class ForcedTools:
    """Asks `model` for the arguments where the request demands a call."""

    def __init__(self, model: ChatModel) -> None:
        self._model = model

    async def chat(self, payload: Payload, *, heard: dict[str, str] | None = None) -> dict[str, Any]:
        """Return the whole answer; see `ChatModel.chat`."""
        functions = demanded_functions(payload)
        if not functions:
            return await self._model.chat(payload, heard=heard)
        answer = await self._model.chat(_asking_for_arguments(payload, functions), heard=heard)
        return {**answer, "choices": [_choice_with_call(choice, functions) for choice in answer["choices"]]}

    async def stream(
        self, payload: Payload, *, heard: dict[str, str] | None = None
    ) -> AsyncGenerator[list[Chunk], None]:
        """Yield the answer piece by piece, the arguments too; see `ChatModel.stream`."""
        functions = demanded_functions(payload)
        asked = _asking_for_arguments(payload, functions) if functions else payload
        calls = _StreamedCalls(functions)
        async with contextlib.aclosing(self._model.stream(asked, heard=heard)) as chunks:
            async for together in chunks:
                yield [calls.rewritten(chunk) for chunk in together] if functions else together

    async def close(self) -> None:
        """Close the model."""
        await self._model.close()


def demanded_functions(payload: Payload) -> list[Function]:
    """Return the functions of which one has to be called; none where the model may choose not to.

    Raises:
        BadRequestError: `tool_choice` demands one that is not among the `tools`.
    """
    choice = payload.get("tool_choice")
    name = _name_in(choice)
    if choice != "required" and name is None:
        return []
    tools = payload.get("tools") or []
    functions = [tool["function"] for tool in tools if isinstance(tool.get("function"), dict)]
    found = [function for function in functions if "name" in function and name in (None, function["name"])]
    if not found:
        names = ", ".join(str(function.get("name")) for function in functions) or "none"
        wanted = "a call" if name is None else f"a call of '{name}'"
        raise BadRequestError(f"tool_choice demands {wanted}, and the functions in tools are: {names}. Add it there.")
    return found


def _name_in(choice: Any) -> str | None:
    function = choice.get("function") if isinstance(choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None


def _asking_for_arguments(payload: Payload, functions: Sequence[Function]) -> dict[str, Any]:
    told = "\n".join(json.dumps(function, ensure_ascii=False) for function in functions)
    what = "the arguments" if len(functions) == 1 else 'an object with the "name" of one and its "arguments"'
    system = {"role": "system", "content": f"Call a function: answer with {what} as JSON.\n{told}"}
    shape = {"name": "call", "strict": True, "schema": _schema(functions)}
    rest = {name: value for name, value in payload.items() if name not in ("tools", "tool_choice")}
    return {
        **rest,
        "messages": [system, *payload["messages"]],
        "response_format": {"type": "json_schema", "json_schema": shape},
    }


def _schema(functions: Sequence[Function]) -> dict[str, Any]:
    schemas = [function.get("parameters") or ANY_ARGUMENTS for function in functions]
    if len(schemas) == 1:
        return dict(schemas[0])
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": function["name"]}, "arguments": schema},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for function, schema in zip(functions, schemas, strict=True)
    ]
    return {"anyOf": calls}


def _choice_with_call(choice: Mapping[str, Any], functions: Sequence[Function]) -> dict[str, Any]:
    text = choice["message"].get("content") or ""
    message = {**choice["message"], "content": None, "tool_calls": [_call(text, functions)]}
    return {**choice, "message": message, "finish_reason": _reason(choice.get("finish_reason"))}


def _call(text: str, functions: Sequence[Function]) -> dict[str, Any]:
    """Return the call that `text` says; one that was cut has arguments that are cut too."""
    name, arguments = functions[0]["name"], text
    if len(functions) > 1:
        try:
            said = json.loads(text)
            name, arguments = said["name"], json.dumps(said["arguments"], ensure_ascii=False)
        except (ValueError, LookupError, TypeError):
            arguments = ""
    return {"id": f"call_{new_id()}", "type": "function", "function": {"name": name, "arguments": arguments}}


def _reason(reason: Any) -> Any:
    return "tool_calls" if reason == "stop" else reason


class _StreamedCalls:
    """Rewrites the chunks of a stream: of one function the arguments as they come, of several the call at the end."""

    def __init__(self, functions: Sequence[Function]) -> None:
        self._functions = functions
        self._begun: set[int] = set()
        self._texts: dict[int, str] = {}

    def rewritten(self, chunk: Chunk) -> Chunk:
        return {**chunk, "choices": [self._choice(choice) for choice in chunk.get("choices") or ()]}

    def _choice(self, choice: Mapping[str, Any]) -> dict[str, Any]:
        index, reason = choice.get("index") or 0, choice.get("finish_reason")
        said = dict(choice.get("delta") or {})
        text = said.pop("content", None) or ""
        if len(self._functions) > 1:
            text, self._texts[index] = ("", self._texts.get(index, "") + text)
            calls = [{"index": 0, **_call(self._texts[index], self._functions)}] if reason else []
        else:
            calls = self._pieces(index, text)
        delta = {**said, "tool_calls": calls} if calls else said
        return {**choice, "delta": delta, "finish_reason": _reason(reason)}

    def _pieces(self, index: int, text: str) -> list[dict[str, Any]]:
        if not text:
            return []
        if index in self._begun:
            return [{"index": 0, "function": {"arguments": text}}]
        self._begun.add(index)
        return [{"index": 0, **_call(text, self._functions)}]
