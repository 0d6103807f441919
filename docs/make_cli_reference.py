"""Write `docs/guides/cli.md` from the command's own help, so that the two never differ.

    python docs/make_cli_reference.py

Takes the Typer app, gives Markdown. Knows nothing of what the commands do.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

from typer.main import get_command

from everswarm.cli.main import app

TARGET = Path(__file__).parent / "guides" / "cli.md"
HEAD = """# The command line

Made from the help of the commands by `python docs/make_cli_reference.py`; do not edit by hand.

`--help` on any command prints the same. `--json` prints the result as data, for programs. The exit code is 0 when
everything is done, 1 when something failed, 2 for wrong usage or configuration.
"""


def reference() -> str:
    """Return the whole page."""
    return "\n".join([HEAD, *(_section(path, command) for path, command in commands())])


def commands() -> Iterator[tuple[str, Any]]:
    """Yield every command that can be run, as ("everswarm cycle run", its click command), in the order of the help."""
    yield from _walk("everswarm", get_command(app))


def _walk(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    children = getattr(command, "commands", None)
    if children is None:
        yield path, command
        return
    for name, child in children.items():
        yield from _walk(f"{path} {name}", child)


def _section(path: str, command: Any) -> str:
    parameters = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
    arguments = [parameter for parameter in parameters if parameter.param_type_name == "argument"]
    usage = " ".join([path, *(_argument(argument) for argument in arguments)])
    lines = [f"## {path}", "", f"`{usage}`", "", *_paragraphs(command.help), ""]
    rows = [_row(parameter) for parameter in parameters]
    if rows:
        lines += ["| | what | default |", "|---|---|---|", *rows, ""]
    if command.epilog:
        lines += [*_example_block(command.epilog), ""]
    return "\n".join(lines)


def _argument(argument: Any) -> str:
    name = argument.name.upper()
    return name if argument.required else f"[{name}]"


def _paragraphs(text: str | None) -> list[str]:
    """Return the help with each paragraph on one line."""
    paragraphs = [" ".join(part.split()) for part in (text or "").strip().split("\n\n")]
    return "\n\n".join(paragraphs).split("\n")


def _row(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        name = _code(_argument(parameter))
    else:
        name = ", ".join(_code(option) for option in [*parameter.opts, *parameter.secondary_opts])
    what = [parameter.help or ""]
    if isinstance(parameter.default, Enum):
        what.append("One of: " + ", ".join(_code(str(choice.value)) for choice in type(parameter.default)) + ".")
    if parameter.envvar:
        what.append(f"Variable: {_code(parameter.envvar)}.")
    return f"| {name} | {' '.join(filter(None, what)).replace('|', '/')} | {_default(parameter)} |"


def _default(parameter: Any) -> str:
    if isinstance(parameter.show_default, str):
        return parameter.show_default
    if parameter.required:
        return "needed"
    value = getattr(parameter.default, "value", parameter.default)
    if value is True:
        return _code(parameter.opts[0])
    return "" if value is None or value is False or value == "" or callable(value) else _code(str(value))


def _example_block(epilog: str) -> list[str]:
    lines = [line for line in epilog.strip().splitlines() if line.strip() and line.strip() != "Examples:"]
    return ["```", *(line.removeprefix("Example: ") for line in lines), "```"]


def _code(text: str) -> str:
    return f"`{text}`"


if __name__ == "__main__":
    TARGET.write_text(reference(), encoding="utf-8")
    print(f"{TARGET.name} is written")
