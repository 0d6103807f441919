"""`everswarm demo`: the whole loop on this machine, with a real model, real answers and a real cycle."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from everswarm.cli import demo_scenario as scenario
from everswarm.cli.cycle import watch
from everswarm.cli.demo_report import DemoReport, DeviceAnswer, FamilyScore, Step, print_report
from everswarm.cli.demo_server import DemoServer, start_or_join, wait_operational
from everswarm.cli.local import connect_home
from everswarm.cli.screen import JsonOption, console, print_json
from everswarm.cli.serve import show_sign_in
from everswarm.cli.supervise import training_is_installed
from everswarm.errors import BadRequestError, MissingExtraError, StageFailedError
from everswarm.processes import reap_child, start_python_child
from everswarm.schemas.interaction import FeedbackRequest, Message
from everswarm.schemas.server import KeyCreate, Scope
from everswarm.settings import Settings, load_settings

EXAMPLES = """Examples:

everswarm demo                        people, corrections, a cycle, a device; then the server stays up

everswarm demo --no-serve --json      the same as data, and ends

everswarm demo --feedback judged.jsonl --train-examples 400      learns from your own feedback file
"""
DEMO_HOME = Path.home() / ".everswarm-demo"
DEVICE_KEY_LABEL = "demo device"
SILENT_STEPS = {"server", "base model", "first sync"}  # those without a bar of their own
SCRIPTED_EPOCHS = 2  # so few examples are seen twice; real feedback once


def demo(
    home: Annotated[
        Path | None,
        typer.Option(
            "--home", envvar="EVERSWARM_HOME", help="Folder for the demo's state.", show_default="~/.everswarm-demo"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same people, same split, same adapter.")] = 0,
    feedback: Annotated[
        Path | None, typer.Option("--feedback", help="Learn from this JSON lines file instead of the scripted people.")
    ] = None,
    train_examples: Annotated[int | None, typer.Option(help="Use at most this many training examples.", min=8)] = None,
    recipe: Annotated[str | None, typer.Option(help="seed, all-linear or on-policy.")] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            min=1, max=20, help="Passes over the training examples.", show_default="2 for the few scripted ones, else 1"
        ),
    ] = None,
    serve: Annotated[
        bool | None,
        typer.Option(
            "--serve/--no-serve", help="Leave the server running at the end.", show_default="if a terminal watches"
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the whole loop: people correct a model, a student learns, is measured and released, a device improves."""
    if not training_is_installed():
        raise MissingExtraError("The demo trains a model and", "training")
    if recipe is not None:
        from everswarm.training.recipes import load_recipe

        load_recipe(recipe)  # a misspelt one is told now, not after the labels are made
    if feedback is not None and not feedback.is_file():
        raise BadRequestError(f"There is no file {feedback}. Give the path of a JSON lines file.")
    base = (home or DEMO_HOME).expanduser().resolve()
    settings = load_settings(home=base / (feedback.stem if feedback else "people"))
    stay = serve if serve is not None else sys.stdout.isatty() and not as_json
    console.quiet = as_json
    started = time.monotonic()
    console.print(f"[bold]everswarm demo[/]  state in {settings.home}")
    server = start_or_join(settings)
    report = DemoReport(server=server.url, home=str(settings.home), seed=seed)
    try:
        _Demo(settings, server, report).run(
            feedback,
            _wish(
                recipe=recipe,
                train_examples=train_examples,
                epochs=epochs or (1 if feedback else SCRIPTED_EPOCHS),
                seed=seed,
            ),
        )
        report.wall_seconds = time.monotonic() - started
        if not stay:
            _add_cost(report, server)
        print_report(report)
        if as_json:
            print_json(report.as_dict())
        if stay:
            _stay(server, settings.home)
    finally:
        server.stop()
    if report.cycle is not None and report.cycle.state == "failed":
        raise typer.Exit(1)


class _Demo:
    """The steps of the story, in order."""

    def __init__(self, settings: Settings, server: DemoServer, report: DemoReport) -> None:
        self.settings = settings
        self.server = server
        self.report = report
        self.device_home = settings.home / "device"

    def run(self, feedback: Path | None, wish: dict[str, Any]) -> None:
        with self._step("server", size=None) as say:
            health = wait_operational(self.server, say)
            say(f"{', '.join(health.endpoints)} operational, cycles ready")
        with self._step("base model", size=None) as say:
            self._prepare_base(say)
            say("quantised for devices, once")
        with self._step("first sync", size=None) as say:
            say(self._first_sync())
        if feedback is None:
            with self._step("people", size=None) as say:
                say(self._people_chat(wish["seed"]))
        else:
            with self._step("import", size=feedback.stat().st_size) as say:
                say(self._import(feedback))
        with self._step("cycle", size=None):
            cycle = self.server.client.start_cycle(wish, trigger="demo")
            self.report.cycle = watch(lambda: connect_home(self.settings), cycle.id, quiet=console.quiet)
        if self.report.cycle.state != "failed":
            with self._step("device", size=None) as say:
                say(self._update_device(feedback is None))

    @contextlib.contextmanager
    def _step(self, name: str, *, size: int | None) -> Iterator[Callable[[str], None]]:
        step = Step(name=name, what="", seconds=0.0, size_bytes=size)
        started = time.monotonic()
        waiting = console.status(name)

        def say(what: str) -> None:
            step.what = what
            waiting.update(f"{name}: {escape(what)}")

        with waiting if name in SILENT_STEPS else contextlib.nullcontext():
            yield say
        step.seconds = time.monotonic() - started
        self.report.steps.append(step)
        if step.what:
            console.print(f"[green]✓[/] {name}: {step.what} ({step.seconds:.1f} s)")

    def _prepare_base(self, say: Callable[[str], None]) -> None:
        """Make the quantised base in a process of its own: it needs torch, and torch is heavy."""
        child = start_python_child(
            ["-m", "everswarm.cli.main", "models", "quantize", "--home", str(self.settings.home)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        line = "no output"
        for line in child.stdout or ():
            say(line.strip())
        reap_child(child, patience_seconds=30.0)
        if child.returncode:
            raise StageFailedError(f"The base model could not be prepared: {line.strip()}")

    def _first_sync(self) -> str:
        from everswarm.device.state import DeviceHome
        from everswarm.device.sync import enroll, sync

        if not DeviceHome(self.device_home).state_path.exists():
            key = self.server.client.create_key(KeyCreate(scope=Scope.DEVICE, label=DEVICE_KEY_LABEL)).key
        else:
            key = DeviceHome(self.device_home).load_key()
        enroll(self.device_home, self.server.url, key=key, name="demo device")
        done = sync(self.device_home)
        self.report.base_bytes = done.base_bytes
        self.report.first_sync_bytes = done.base_downloaded_bytes
        return f"enrolled and synced {done.model or 'nothing yet'} {done.version or ''}".rstrip()

    def _people_chat(self, seed: int) -> str:
        people = scenario.scripted_people(seed)
        counts = {"right": 0, "corrected": 0}
        shown: set[str] = set()
        with self._bar("people chat", sum(len(person.tasks) for person in people)) as advance:
            for person in people:
                for task in person.tasks:
                    answer = self.server.client.chat(
                        [{"role": "user", "content": task.question}],
                        max_tokens=scenario.ANSWER_TOKENS,
                        temperature=0,
                        user=person.name,
                    )
                    text = answer["choices"][0]["message"]["content"]
                    judgement = scenario.judge(task, text)
                    self.server.client.feedback(
                        FeedbackRequest(
                            interaction_id=answer["id"],
                            rating=judgement.rating,
                            correction=judgement.correction,
                            comment=judgement.comment,
                            consent=True,
                        )
                    )
                    counts["corrected" if judgement.correction else "right"] += 1
                    if judgement.correction and task.family not in shown:
                        shown.add(task.family)
                        _print_exchange(person.name, task.question, text, judgement)
                    advance()
        answers = f"{sum(counts.values())} answers: {counts['right']} right, {counts['corrected']} corrected"
        return f"{len(people)} people, {answers}"

    def _import(self, path: Path) -> str:
        from everswarm.server.database import Database
        from everswarm.server.feedback.files.importer import import_file
        from everswarm.server.feedback.scrubbing import text_mask

        settings = self.settings
        database = Database(settings.sqlalchemy_url, key_file=settings.text_key_file, mask=text_mask(settings.feedback))
        with self._bar("import", path.stat().st_size) as advance:
            report = import_file(database, path, on_progress=advance)
        database.close()
        for line, message in report.errors:
            console.print(f"  line {line}: {message}", markup=False)
        return (
            f"{report.stored} judged interactions, {report.duplicates} were there, {report.error_count} lines unusable"
        )

    def _update_device(self, scripted: bool) -> str:
        from everswarm.device.runtime import DeviceRuntime
        from everswarm.device.sync import sync

        done = sync(self.device_home)
        self.report.adapter_bytes = done.adapter_bytes
        self.report.update_bytes = done.downloaded_bytes
        questions = [task.question for task in scenario.HELD_OUT] if scripted else self._held_out_questions()
        tokens = scenario.ANSWER_TOKENS if scripted else 128
        with DeviceRuntime(self.device_home) as runtime, self._bar("held-out questions", 2 * len(questions)) as advance:

            def ask(question: str, *, adapter: bool) -> str:
                answer = runtime.answer([Message(role="user", content=question)], max_tokens=tokens, adapter=adapter)
                advance()
                return answer.text

            before = [ask(question, adapter=False) for question in questions]
            after = [ask(question, adapter=True) for question in questions]
        self._compare(questions, before, after, scripted=scripted)
        return f"release {done.version}, {done.downloaded_bytes:,} bytes received"

    def _held_out_questions(self) -> list[str]:
        from everswarm.cli.cycle_table import evaluation_of

        assert self.report.cycle is not None
        evaluation = evaluation_of(self.report.cycle)
        return [answer.question for answer in evaluation.answers[: self.report.shown]] if evaluation else []

    def _compare(self, questions: list[str], before: list[str], after: list[str], *, scripted: bool) -> None:
        if not scripted:
            self.report.answers = [
                DeviceAnswer(question, old, new, None, None)
                for question, old, new in zip(questions, before, after, strict=True)
            ]
            return
        tasks = list(scenario.HELD_OUT)
        order = [tasks.index(task) for task in scenario.SHOWN]
        order += [index for index in range(len(tasks)) if index not in order]
        self.report.answers = [
            DeviceAnswer(
                questions[index],
                before[index],
                after[index],
                tasks[index].check(before[index]).ok,
                tasks[index].check(after[index]).ok,
            )
            for index in order
        ]
        self.report.shown = len(scenario.SHOWN)
        self.report.families = [
            FamilyScore(family=old.family, before=old.passed, after=new.passed, total=old.total)
            for old, new in zip(scenario.rule_report(tasks, before), scenario.rule_report(tasks, after), strict=True)
        ]

    @contextlib.contextmanager
    def _bar(self, name: str, total: int) -> Iterator[Callable[..., None]]:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True, disable=console.quiet) as progress:
            bar = progress.add_task(name, total=total)

            def advance(completed: int | None = None) -> None:
                progress.update(bar, completed=completed, advance=1 if completed is None else None)

            yield advance


def _wish(**parameters: Any) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if value is not None}


def _print_exchange(name: str, question: str, answer: str, judgement: scenario.Judgement) -> None:
    """Show one real exchange a family, so that people see what is judged and how."""
    console.print(f"  [bold]{name}[/] asks: ", end="")
    console.print(question, markup=False)
    console.print("    [dim]the model says[/] ", end="")
    console.print(" ".join(answer.split()), markup=False)
    console.print(f"    [dim]{name} rates {judgement.rating} of 5 ({judgement.comment}) and corrects:[/] ", end="")
    console.print(judgement.correction or "", markup=False)


def _add_cost(report: DemoReport, server: DemoServer) -> None:
    """Stop the server and read what all processes have cost; only then does the kernel know."""
    try:
        import resource
    except ImportError:  # Windows
        return
    if server.child is None:
        return
    server.stop()
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    report.cpu_seconds = sum(usage.ru_utime + usage.ru_stime for usage in (own, children))
    unit = 1 if sys.platform == "darwin" else 1024
    report.peak_memory_bytes = max(own.ru_maxrss, children.ru_maxrss) * unit


def _stay(server: DemoServer, home: Path) -> None:
    """Leave the server to the person who watches."""
    if server.child is None:
        console.print(f"The server was running before the demo and goes on: [cyan]{server.url}[/]")
        return
    key = server.client.create_key(KeyCreate(scope=Scope.ADMIN, label="demo sign-in")).key
    console.print(f"\nThe server runs at [cyan]{server.url}[/].")
    show_sign_in(home, f"{server.url}/#key={key}")
    console.print("Ctrl-C stops it.")
    with contextlib.suppress(KeyboardInterrupt):
        server.child.wait()
