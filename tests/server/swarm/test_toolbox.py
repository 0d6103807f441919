from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from everswarm.server.swarm.tools.calculator import CALCULATOR
from everswarm.server.swarm.tools.clock import CLOCK
from everswarm.server.swarm.tools.mcp_servers import ToolServers
from everswarm.server.swarm.tools.tool import Arguments, Tool, ToolFailedError
from everswarm.server.swarm.tools.toolbox import ARGUMENT_CHARACTERS, Toolbox

NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}


def tool(name: str, run: Any = None, *, description: str = "", parameters: Mapping[str, Any] | None = None) -> Tool:
    async def say(arguments: Arguments, user: str) -> str:
        return json.dumps([dict(arguments), user])

    return Tool(
        name=name.replace(".", "__"),
        description=description,
        parameters=parameters or {"type": "object"},
        run=run or say,
        allow_name=name,
        timeout_seconds=0.2,
        result_characters=1000,
    )


class Servers:
    """Tools of servers as if they were connected."""

    def __init__(self, **servers: Sequence[Tool]) -> None:
        self.version = 0
        self.servers = {name: list(tools) for name, tools in servers.items()}

    def by_server(self) -> Mapping[str, list[Tool]]:
        return self.servers


def toolbox(built_in: Sequence[Tool] = (), **servers: Sequence[Tool]) -> Toolbox:
    return Toolbox(built_in, cast(ToolServers, Servers(**servers)))


def alone(one: Tool) -> tuple[Toolbox, dict[str, Tool]]:
    box = Toolbox([one])
    return box, box.allowed([one.allow_name])


def raising(error: BaseException) -> Tool:
    async def run(arguments: Arguments, user: str) -> str:
        raise error

    return tool("bad", run)


def saying(text: Any) -> Tool:
    async def run(arguments: Arguments, user: str) -> Any:
        return text

    return tool("talker", run)


# who may use what


def test_an_allow_list_names_built_in_tools_servers_and_single_tools() -> None:
    box = toolbox(
        [CALCULATOR, CLOCK], files=[tool("files.read"), tool("files.write")], web=[tool("web.get"), tool("web.post")]
    )
    assert set(box.allowed([])) == set()
    assert set(box.allowed(["calculator"])) == {"calculator"}
    assert set(box.allowed(["clock", "files"])) == {"clock", "files__read", "files__write"}
    assert set(box.allowed(["web.get"])) == {"web__get"}
    assert set(box.allowed(["nobody", "web.", "we", "files.*"])) == set()


def test_a_server_cannot_pass_for_a_built_in_tool() -> None:
    box = toolbox([CALCULATOR], calculator=[tool("calculator.evil")], other=[tool("calculator")])
    assert box.allowed(["calculator", "other"]) == {"calculator": CALCULATOR}


def test_an_allow_list_for_one_tool_does_not_open_a_server_of_a_like_name() -> None:
    box = toolbox([], **{"a": [tool("a.b")], "a.c": [tool("a.c.d")]})
    assert set(box.allowed(["a"])) == {"a__b"}


def test_tools_that_come_and_go_are_noticed() -> None:
    servers = Servers(web=[])
    box = Toolbox([], cast(ToolServers, servers))
    assert box.allowed(["web"]) == {}
    servers.servers, servers.version = {"web": [tool("web.get", description="")]}, 1
    assert set(box.allowed(["web"])) == {"web__get"}
    assert box.wanted("get the web page, please get", box.allowed(["web"])) == []


def test_changing_what_was_handed_out_changes_nothing_for_the_next() -> None:
    box = Toolbox([CALCULATOR, CLOCK])
    box.allowed(["calculator"])["clock"] = CLOCK
    assert set(box.allowed(["calculator"])) == {"calculator"}


# calls


async def test_a_call_gives_text_arguments_and_time() -> None:
    box, allowed = alone(CALCULATOR)
    result = await box.call(allowed, "calculator", {"expression": "17*23"}, user="ada")
    assert (result.name, result.arguments, result.outcome) == ("calculator", {"expression": "17*23"}, "done")
    assert "391" in result.text
    assert result.seconds >= 0


async def test_arguments_may_be_the_json_text_that_models_send() -> None:
    box, allowed = alone(tool("echo"))
    for sent in ('{"n": 1}', {"n": 1}, b'{"n": 1}'):
        assert (await box.call(allowed, "echo", sent, user="ada")).text == '[{"n": 1}, "ada"]'
    for none in (None, "", {}):
        assert (await box.call(allowed, "echo", none, user="ada")).arguments == {}


async def test_a_tool_that_is_not_allowed_is_refused_and_never_run() -> None:
    ran = []

    async def run(arguments: Arguments, user: str) -> str:
        ran.append(user)
        return ""

    box = Toolbox([tool("secret", run), CLOCK, CALCULATOR])
    result = await box.call(box.allowed(["clock", "calculator"]), "secret", {}, user="ada")
    assert (result.outcome, ran) == ("refused", [])
    assert result.text == "'secret' is not allowed here. There are: calculator, clock."
    assert (
        await box.call({}, "x" * 5000, {}, user="ada")
    ).text == f"'{'x' * 100}' is not allowed here. There are none."


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("2+2", "the arguments should be a JSON object, not int"),
        ("n=1", "the arguments are not JSON"),
        ('{"n": NaN}', "the arguments are not JSON"),
        ("[" * 19_000, "the arguments are not JSON"),
        ([1], "should be a JSON object, not list"),
        ({1: 2}, "should be a JSON object, not dict"),
        ('{"n": "\\ud800"}', "something that is not JSON"),
        ({"n": 2**70}, "something that is not JSON"),
        ({"n": object()}, "something that is not JSON"),
        ('{"n": "' + "x" * ARGUMENT_CHARACTERS + '"}', "longer than 20000 characters"),
        ({"n": "x" * 3 * ARGUMENT_CHARACTERS}, "longer than 20000 characters"),
        ({"n": "one"}, "the arguments do not fit: n: 'one' is not of type 'integer'"),
        ({}, "the arguments do not fit: 'n' is a required property"),
        ({"n": 1, "m": 2}, "Additional properties are not allowed"),
    ],
)
async def test_arguments_that_cannot_be_used_fail_with_words(arguments: object, says: str) -> None:
    arguments = "2" if arguments == "2+2" else arguments
    box, allowed = alone(tool("number", parameters=NUMBER))
    result = await box.call(allowed, "number", arguments, user="ada")
    assert result.outcome == "failed"
    assert says in result.text


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nonsense"},
        {"type": "object", "required": "n"},
        {"type": "object", "properties": {"n": {"$ref": "#/nowhere"}}},
        {"type": "object", "properties": {"n": {"$ref": "http://127.0.0.1:9/schema.json"}}},
        {"$schema": "http://127.0.0.1:9/meta", "type": "object"},
        {"$ref": "#"},
        {"type": "object", "properties": {"n": {"pattern": "(a+)+$"}}},
        {"allOf": [{"$ref": "#/$defs/d0"}] * 2}
        | {"$defs": {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(40)}},
    ],
)
async def test_a_schema_that_is_broken_or_a_trap_is_not_used(schema: dict[str, Any]) -> None:
    box, allowed = alone(tool("odd", parameters=schema))
    async with asyncio.timeout(5):
        assert (await box.call(allowed, "odd", {"n": "a" * 40 + "!"}, user="ada")).outcome == "done"


async def test_a_tool_that_hangs_fails_after_its_time() -> None:
    async def hang(arguments: Arguments, user: str) -> str:
        await asyncio.sleep(60)
        return ""

    box, allowed = alone(tool("slow", hang))
    result = await box.call(allowed, "slow", {}, user="ada")
    assert (result.outcome, result.text) == ("failed", "did not answer within 0.2 s")


async def test_a_caller_who_leaves_is_not_held() -> None:
    box, allowed = alone(raising(asyncio.CancelledError()))
    with pytest.raises(asyncio.CancelledError):
        await box.call(allowed, "bad", {}, user="ada")


async def test_a_tool_that_fails_says_its_own_words_and_one_that_breaks_only_its_kind() -> None:
    box, allowed = alone(raising(ToolFailedError("no such city")))
    assert (await box.call(allowed, "bad", {}, user="ada"))[2:4] == ("no such city", "failed")
    box, allowed = alone(raising(ValueError("password=hunter2")))
    assert (await box.call(allowed, "bad", {}, user="ada"))[2:4] == ("the tool failed (ValueError)", "failed")


async def test_a_flood_is_cut_and_the_note_says_how_much() -> None:
    box, allowed = alone(saying("x" * 5_000_000))
    text = (await box.call(allowed, "talker", {}, user="ada")).text
    assert text.startswith("x" * 1000)
    assert "4999000 of 5000000 characters left out" in text
    assert len(text) < 1100
    box, allowed = alone(raising(ToolFailedError("y" * 5_000_000)))
    assert len((await box.call(allowed, "bad", {}, user="ada")).text) < 1100


async def test_half_a_character_in_a_result_can_still_be_stored() -> None:
    box, allowed = alone(saying("18 degrees \ud83c"))
    assert (await box.call(allowed, "talker", {}, user="ada")).text == "18 degrees ?"


@pytest.mark.parametrize("binary", ["a\x00b", b"\xff\xfe\x00", "\x01\x02\x03" * 100_000])
async def test_binary_is_named_not_shown(binary: str | bytes) -> None:
    box, allowed = alone(saying(binary))
    text = (await box.call(allowed, "talker", {}, user="ada")).text
    assert text == f"(binary data, {len(binary)} bytes: not shown)"


@given(
    name=st.one_of(st.text(), st.none(), st.integers()),
    arguments=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
    ),
)
async def test_nothing_that_a_model_sends_raises(name: Any, arguments: Any) -> None:
    box = Toolbox([CALCULATOR, CLOCK, tool("number", parameters=NUMBER)])
    allowed = box.allowed(["calculator", "clock", "number"])
    orjson.dumps(tuple(await box.call(allowed, name, arguments, user="ada")))
    for known in allowed:
        result = await box.call(allowed, known, arguments, user="ada")
        assert result.outcome in {"failed", "done"}
        orjson.dumps(tuple(result))  # can be stored and sent


# which tools a question wants

WEB = [
    tool("web.get_weather", description="Tell the current weather and the temperature of a city."),
    tool("web.searchRepositories", description="Search public code repositories by keyword."),
    tool("web.create_issue", description="Open an issue in a repository of the tracker."),
    tool("web.send_mail", description="Send an electronic letter to a person."),
]


@pytest.mark.parametrize(
    ("question", "names"),
    [
        ("What's the weather in Paris?", ["web__get_weather"]),
        ("Current temperature in Oslo?", ["web__get_weather"]),  # two words of the description
        ("Which repositories of ours are public?", ["web__searchRepositories"]),
        ("Open issues in the repository tracker", ["web__create_issue", "web__searchRepositories"]),
        ("Name the capital city of France.", []),  # one word of a description is not enough
        ("Write a poem about the sea", []),
        ("Tell me what you want to have done with this", []),
        ("", []),
        ("\x00\ud800 ¡!", []),
    ],
)
def test_a_question_finds_the_tools_that_share_its_words(question: str, names: list[str]) -> None:
    box = toolbox([CALCULATOR], web=WEB)
    assert [found.name for found in box.wanted(question, box.allowed(["calculator", "web"]))] == names


def test_built_in_tools_and_those_not_allowed_are_never_wanted() -> None:
    box = toolbox([tool("weather", description="weather")], web=WEB)
    assert [found.name for found in box.wanted("the weather, please", box.allowed(["weather", "web.send_mail"]))] == []
    assert Toolbox([CALCULATOR]).wanted("use the calculator", {"calculator": CALCULATOR}) == []


def test_a_rare_word_counts_more_than_a_common_one_and_most_limits() -> None:
    tools = [tool(f"s.document_{i}", description="Works on documents.") for i in range(20)]
    tools.append(tool("s.document_translate", description="Translate documents."))
    box = toolbox([], s=tools)
    found = box.wanted("translate this document", box.allowed(["s"]), most=3)
    assert len(found) == 3
    assert found[0].name == "s__document_translate"


def test_a_long_text_does_not_find_tools_by_chance() -> None:
    box = toolbox([], web=WEB)
    pasted = " ".join(f"unrelated{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(100)) + " current city person"
    assert box.wanted(pasted, box.allowed(["web"])) == []
    asked = [found.name for found in box.wanted(pasted * 50 + " What about the weather?", box.allowed(["web"]))]
    assert asked == ["web__get_weather"]
