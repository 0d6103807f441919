"""`everswarm device …`: the phone's part of the loop, on this machine."""

from __future__ import annotations

import socket
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from everswarm.cli.screen import JsonOption, console, errors, print_json, size
from everswarm.device import outbox
from everswarm.device.state import DEFAULT_ROLE, MOBILE_ROLES, DeviceHome, DeviceState, Installed, default_home
from everswarm.errors import BadRequestError
from everswarm.schemas.interaction import Message

if TYPE_CHECKING:
    from everswarm.device.escalation import BetterAnswer
    from everswarm.device.runtime import Answer, DeviceRuntime
    from everswarm.device.sync import SyncReport

app = typer.Typer(
    no_args_is_help=True,
    help="A device: fetches releases, answers offline, sends judgements when there is a line.",
)

HomeOption = Annotated[
    Path | None,
    typer.Option("--home", help="Folder of the device. Default: EVERSWARM_DEVICE_HOME, then ~/.everswarm-device."),
]


def _examples(*commands: str) -> str:
    return "Examples:\n\n" + "\n\n".join(commands)


@app.command(
    epilog=_examples(
        "everswarm keys create --scope device --label phone",
        "everswarm device enroll http://127.0.0.1:8000 --name phone",
    )
)
def enroll(
    server: Annotated[str, typer.Argument(help="Address of the server; on this machine, until updates are signed.")],
    key: Annotated[
        str,
        typer.Option(
            envvar="EVERSWARM_KEY",
            prompt="Device key",
            hide_input=True,
            show_default=False,
            help="A key with the scope 'device'. Better in the variable or at the prompt than in the shell's history.",
        ),
    ],
    name: Annotated[str | None, typer.Option(help="What to call this device. Default: the host's name.")] = None,
    role: Annotated[str, typer.Option(help="Which mobile model: primary, fast or ultralight.")] = DEFAULT_ROLE,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make this machine a device of a server."""
    from everswarm.device.sync import enroll as enroll_device

    if role not in MOBILE_ROLES:
        raise BadRequestError(f"There is no mobile role '{role}'. Choose one of: {', '.join(MOBILE_ROLES)}.")
    place = home or default_home()
    state = enroll_device(place, server, key=key.strip(), name=name or socket.gethostname() or "device", role=role)
    if as_json:
        print_json(state.model_dump(mode="json"))
        return
    console.print(f"Enrolled [bold]{escape(state.name)}[/] ({state.device_id}) at {state.server}; its home is {place}.")
    console.print("Next: [bold]everswarm device sync[/]")


@app.command(
    epilog=_examples(
        "everswarm device sync",
        "everswarm device sync --json",
    )
)
def sync(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Fetch the latest release and send the judgements that wait.

    The base comes once, adapters after; a broken download goes on where it stopped.
    """
    report = _sync_with_progress(home or default_home(), quiet=as_json)
    if as_json:
        print_json({**asdict(report), "downloaded_bytes": report.downloaded_bytes})
        return
    if report.version:
        word = "now in use" if report.changed else "already in use"
        console.print(f"[bold]{report.model} {report.version}[/]: {word}.")
    if report.note:
        console.print(report.note)
    console.print(
        f"Downloaded {size(report.downloaded_bytes)} (base {size(report.base_downloaded_bytes)}, "
        f"adapter {size(report.adapter_downloaded_bytes)}); sent {report.feedback_sent} judgements, "
        f"{report.feedback_rejected} turned down; {report.seconds:.1f} s."
    )


def _sync_with_progress(home: Path, *, quiet: bool) -> SyncReport:
    """Sync, with a bar for each file that is on its way."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

    from everswarm.device.sync import sync as sync_device
    from everswarm.schemas.artifact import Artifact

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=errors, transient=True, disable=quiet) as progress:
        bars: dict[str, TaskID] = {}

        def advance(artifact: Artifact, size_bytes: int) -> None:
            if artifact.sha256 not in bars:
                bars[artifact.sha256] = progress.add_task(artifact.name, total=artifact.size_bytes)
            progress.advance(bars[artifact.sha256], size_bytes)

        return sync_device(home, on_bytes=advance)


@app.command(
    epilog=_examples(
        'everswarm device chat "How many metres are 3 km?"',
        'everswarm device chat "How many metres are 3 km?" --base --json',
        "everswarm device chat",
    )
)
def chat(
    question: Annotated[str | None, typer.Argument(help="What to ask. Without it: a conversation.")] = None,
    base: Annotated[bool, typer.Option("--base", help="Answer without the adapter, to compare.")] = False,
    max_tokens: Annotated[int, typer.Option(min=1, max=1024, help="Length of an answer at most.")] = 256,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of the engine.")] = 1,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask the model on this device. Needs no server and no network."""
    from everswarm.device.runtime import DeviceRuntime

    if question is not None and not question.strip():
        raise BadRequestError('The question is empty. Write it in quotes: everswarm device chat "…"')
    if as_json and question is None:
        raise BadRequestError("--json needs a question: a conversation cannot be printed as one result.")
    with DeviceRuntime(home or default_home(), threads=threads) as runtime:
        if question is None:
            _converse(runtime, adapter=not base, max_tokens=max_tokens)
        else:
            _ask_once(runtime, question, adapter=not base, max_tokens=max_tokens, as_json=as_json)


def _ask_once(runtime: DeviceRuntime, question: str, *, adapter: bool, max_tokens: int, as_json: bool) -> None:
    messages = [Message(role="user", content=question)]
    if as_json:
        print_json(asdict(runtime.answer(messages, max_tokens=max_tokens, adapter=adapter)))
        return
    _say(runtime, messages, adapter=adapter, max_tokens=max_tokens)


def _say(runtime: DeviceRuntime, messages: list[Message], *, adapter: bool, max_tokens: int) -> Answer:
    """Print the answer while it comes, then what it took."""

    def show(piece: str) -> None:
        sys.stdout.write(piece)
        sys.stdout.flush()

    answer = runtime.answer(messages, max_tokens=max_tokens, adapter=adapter, on_token=show)
    sys.stdout.write("\n")
    console.print(f"[dim]{answer.model}, {answer.tokens} tokens, {answer.seconds:.1f} s[/]")
    return answer


def _converse(runtime: DeviceRuntime, *, adapter: bool, max_tokens: int) -> None:
    """Talk until the end of input; Ctrl-C stops an answer."""
    console.print("[dim]An empty line or Ctrl-D ends. Judge the last answer with: everswarm device rate --last[/]")
    messages: list[Message] = []
    while question := _next_question():
        messages.append(Message(role="user", content=question))
        try:
            answer = _answer_in_context(runtime, messages, adapter=adapter, max_tokens=max_tokens)
        except KeyboardInterrupt:
            sys.stdout.write("\n")
            messages.pop()
            continue
        messages.append(Message(role="assistant", content=answer.text))


def _next_question() -> str:
    try:
        return console.input("[bold]> [/]").strip()
    except (EOFError, KeyboardInterrupt):
        return ""


def _answer_in_context(runtime: DeviceRuntime, messages: list[Message], *, adapter: bool, max_tokens: int) -> Answer:
    """Answer; where the conversation has outgrown the model, forget its oldest turns."""
    while True:
        try:
            return _say(runtime, messages, adapter=adapter, max_tokens=max_tokens)
        except BadRequestError:
            if len(messages) < 3:
                raise
            del messages[:2]
            console.print("[dim]The conversation is longer than the model's context; its oldest turn is left out.[/]")


@app.command(
    epilog=_examples(
        "everswarm device rate --last --rating 5 --consent",
        'everswarm device rate --last --rating 2 --correction "3 km are 3000 m." --consent',
        "everswarm device rate --last --like",
    )
)
def rate(  # noqa: PLR0913, PLR0917  # the options of a command
    last: Annotated[bool, typer.Option("--last", help="Judge the last answer.")] = False,
    interaction: Annotated[str | None, typer.Option("--id", help="Judge the answer with this id.")] = None,
    rating: Annotated[int | None, typer.Option(min=1, max=5, help="1 (bad) to 5 (good).")] = None,
    liked: Annotated[bool | None, typer.Option("--like/--dislike", help="A thumb, up or down.")] = None,
    correction: Annotated[str | None, typer.Option(help="What the answer should have been.")] = None,
    comment: Annotated[str | None, typer.Option(help="Anything else.")] = None,
    consent: Annotated[
        bool | None,
        typer.Option(
            "--consent/--no-consent",
            help="It may be used for training. Default: as you said when you escalated it, else it may not.",
        ),
    ] = None,
    language: Annotated[
        str | None, typer.Option(help="Of question and answer, such as en or pt-BR. Default: found out by the server.")
    ] = None,
    keep_days: Annotated[
        int | None, typer.Option(min=1, max=36_500, help="So many days after the answer the server erases it.")
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Judge an answer of this device. Kept here until the next sync, then sent once.

    Question, answer and judgement go to your server; without --consent nothing is trained on them.
    """
    if last == (interaction is not None):
        raise BadRequestError("Say which answer: either --last, or --id with the id that 'chat --json' printed.")
    place = DeviceHome((home or default_home()).expanduser())
    judged = outbox.judge(
        place.journal_path,
        place.load().device_id,
        interaction_id=interaction,
        rating=rating,
        liked=liked,
        correction=correction,
        comment=comment,
        consent=consent,
        language=language,
        keep_days=keep_days,
    )
    queued = outbox.count(place.journal_path).queued
    if as_json:
        print_json({**judged.model_dump(mode="json", exclude_none=True), "queued": queued})
        return
    use = "may be used for training" if judged.consent else "not for training (add --consent to allow it)"
    console.print(f"Kept: {use}. {queued} waiting for: [bold]everswarm device sync[/]")


@app.command(
    epilog=_examples(
        "everswarm device escalate --consent",
        "everswarm device escalate 0199c0de-0000-7000-8000-000000000001 --json",
    )
)
def escalate(
    interaction: Annotated[
        str | None, typer.Argument(metavar="ID", help="Of an answer, as 'chat --json' prints it. Default: the last.")
    ] = None,
    consent: Annotated[
        bool | None,
        typer.Option(
            "--consent/--no-consent",
            help="Question and both answers may be used for training. Default: as you said when you rated it, else "
            "they may not.",
        ),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, max=100_000, help="Length of the server's answer at most.")
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask the server's larger models what this device has answered, and see both answers. Each is asked once.

    Question and answer go to your server; with --consent the model of this device learns from the better answer.
    """
    from everswarm.device.escalation import escalate as ask_the_server

    better = ask_the_server(home or default_home(), interaction, consent=consent, max_tokens=max_tokens)
    if as_json:
        print_json(asdict(better))
        return
    _show_both(better, changes_consent=better.asked_before and consent not in (None, better.consent))


def _show_both(better: BetterAnswer, *, changes_consent: bool) -> None:
    who = ", ".join(part for part in (better.role, better.strategy, better.answered_by) if part)
    console.print(Text(better.question, style="dim"))
    console.print(Text(f"This device ({better.model}):", style="bold"))
    console.print(Text(better.attempt or "(no answer)"))
    console.print(Text(f"The swarm ({who}):" if who else "The swarm:", style="bold"))
    console.print(Text(better.response))
    use = "may be used for training" if better.consent else "not for training"
    console.print(f"[dim]{'Asked before' if better.asked_before else 'Kept'}: {use}.[/]")
    if changes_consent:
        flag = "--no-consent" if better.consent else "--consent"
        console.print(f"That was said then. Change it with: [bold]everswarm device rate --id {better.id} {flag}[/]")


@app.command(
    epilog=_examples(
        "everswarm device status",
        "everswarm device status --json",
    )
)
def status(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show who this device is, what is installed and what waits to be sent."""
    place = DeviceHome((home or default_home()).expanduser())
    state, counts = place.load(), outbox.count(place.journal_path)
    rejected = outbox.rejections(place.journal_path)
    if as_json:
        reasons = [item._asdict() for item in rejected]
        print_json({**state.model_dump(mode="json"), "feedback": counts._asdict(), "rejected": reasons})
        return
    console.print(_status_table(place, state, counts))
    for item in rejected:
        console.print(f"turned down: {item.interaction_id}: {item.reason}", markup=False)


def _status_table(place: DeviceHome, state: DeviceState, counts: outbox.OutboxCounts) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    synced = f"{state.synced_at:%Y-%m-%d %H:%M} UTC" if state.synced_at else "never"
    lines = {
        "device": f"{state.name} ({state.device_id})",
        "home": str(place.path),
        "server": state.server,
        "role": state.role,
        "in use": _describe(state.current),
        "before": _describe(state.previous),
        "last sync": synced,
        "judgements": f"{counts.queued} waiting, {counts.sent} sent, {counts.rejected} turned down",
    }
    for name, value in lines.items():
        table.add_row(f"[dim]{name}[/]", Text(value))
    return table


def _describe(installed: Installed | None) -> str:
    if installed is None:
        return "nothing"
    adapter = f" + adapter {size(installed.adapter.size_bytes)}" if installed.adapter else ""
    base = f"base {size(installed.base.size_bytes)} {installed.quantization}"
    return f"{installed.model} {installed.version} ({base}{adapter})"
