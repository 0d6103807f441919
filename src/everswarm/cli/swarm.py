"""`everswarm swarm`: measure the ways of answering, and learn from what they gave."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, cast

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from everswarm.cli.local import HomeOption, settings_of
from everswarm.cli.screen import JsonOption, console, errors, print_json
from everswarm.errors import BadRequestError, ConfigurationError, UnavailableError
from everswarm.settings import STRATEGIES, Settings, meant

if TYPE_CHECKING:
    from everswarm.cli.swarm_tables import Evaluated
    from everswarm.schemas.gateway import QuotaView
    from everswarm.server.gateway import Call
    from everswarm.server.swarm.evaluation import Ask, Attempt, Run
    from everswarm.server.swarm.evaluation_files import KindOf, Messages, Prompt, PromptFile
    from everswarm.server.swarm.kinds import StrategyName
    from everswarm.server.swarm.outcomes import LearntRouter
    from everswarm.server.swarm.requests import Wishes
    from everswarm.server.swarm.routing import Route
    from everswarm.server.swarm.service import Swarm

app = typer.Typer(help="Measure the ways of answering, and learn who answers what.", no_args_is_help=True)
LOOK_EVERY_SECONDS = 0.2  # at endpoints that start
READY_SECONDS = 600.0  # a model may have to be fetched first
TOOLS_READY_SECONDS = 10.0  # of the servers of tools; without one the questions are asked all the same
USER = "swarm-eval"
EVAL_EXAMPLES = """Examples:

everswarm swarm eval judged.jsonl --limit 40

everswarm swarm eval questions.jsonl --strategies single,vote --output measured.json --yes
"""


class Options(NamedTuple):
    """How the questions are asked."""

    strategies: tuple[str, ...]
    max_tokens: int
    temperature: float
    concurrency: int
    seed: int


class Asker(NamedTuple):
    """What answers the questions: a gateway that is open, and perhaps not started."""

    ask: Ask
    worst_case: Callable[[Prompt, str], int | None]  # tokens; None where nothing can be said
    quotas: Callable[[], Awaitable[list[QuotaView]]]
    start: Callable[[], Awaitable[None]]  # bring the endpoints up; return at once
    states: Callable[[], dict[str, str]]
    tool_states: Callable[[], dict[str, str]]  # of the servers of tools


class Plan(NamedTuple):
    """What an evaluation may cost."""

    answers: int
    worst_case_tokens: int | None  # None where a strategy cannot say
    left_tokens: int | None  # of the scarcest quota, now; None where none is limited
    is_priced: bool  # some endpoint costs money

    @property
    def needs_consent(self) -> bool:
        """Whether it costs money, or more than is left of a quota."""
        if self.is_priced or self.left_tokens is None:
            return self.is_priced
        return self.worst_case_tokens is None or self.worst_case_tokens > self.left_tokens


@app.command(name="eval", epilog=EVAL_EXAMPLES)
def evaluate_strategies(  # noqa: PLR0913, PLR0917  # the options of a command
    file: Annotated[Path, typer.Argument(help="JSON lines: judged interactions, or questions with references.")],
    strategies: Annotated[
        str, typer.Option(help=f"Which to compare, with commas between them: {', '.join(STRATEGIES)}.")
    ] = "single,cascade,vote",
    limit: Annotated[int, typer.Option(min=1, help="The most questions to ask.")] = 40,
    max_tokens: Annotated[int, typer.Option(min=1, help="The most tokens of one answer.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, max=2.0, help="How freely the models choose words.")] = 0.0,
    concurrency: Annotated[int, typer.Option(min=1, max=64, help="Answers made side by side.")] = 2,
    seed: Annotated[int, typer.Option(help="Of the intervals, and of --shuffle.")] = 0,
    shuffle: Annotated[
        bool, typer.Option("--shuffle", help="Take questions from the whole file, not its top.")
    ] = False,
    output: Annotated[Path | None, typer.Option(help="Write everything, the answers too, to this JSON file.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would cost, and stop.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before quota or money is spent.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare strategies on questions with references: quality, tokens, calls, seconds, and what they are worth.

    All answer the same questions, with the models that this machine's settings name. Intervals are 95 %.
    """
    from everswarm.cli.swarm_tables import as_data, evaluated, print_evaluated, print_file
    from everswarm.server.swarm.evaluation_files import read_prompts

    options = Options(_strategies(strategies), max_tokens, temperature, concurrency, seed)
    settings = _local_settings(home)
    _check_output(output)
    questions = read_prompts(file, kind_of=_kind_of(settings), limit=limit, shuffle_seed=seed if shuffle else None)
    plan = asyncio.run(_plan(settings, options, questions))
    if not as_json:
        print_file(questions)
        _print_plan(plan, questions, options)
    if dry_run:
        if as_json:
            print_json({"file": _file_data(file, questions), "plan": plan._asdict()})
        return
    _ask_consent(plan, yes=yes)
    runs = _run(settings, options, questions.prompts)
    if not runs:
        raise typer.Exit(130)
    found = evaluated(runs, options.strategies, asked=len(questions.prompts), seed=seed)
    about = {"file": _file_data(file, questions), "options": options._asdict(), "plan": plan._asdict()}
    if output is not None:
        _write(output, {"schema_version": 1, "at": datetime.now(UTC), **about, **as_data(found, with_runs=True)})
    if as_json:
        print_json({**about, **as_data(found)})
    else:
        print_evaluated(found)
    _end(found)


@app.command(epilog="Example: everswarm swarm train")
def train(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Learn from judged answers who answers what best; used only where that is shown to be better than the rules."""
    from everswarm.server.database import Database
    from everswarm.server.swarm.outcomes import learn_router
    from everswarm.server.swarm.service import router_path

    settings = _local_settings(home)
    database = Database(settings.sqlalchemy_url, key_file=settings.text_key_file)
    database.migrate()
    path = router_path(settings)
    try:
        learnt = learn_router(database, path, now=datetime.now(UTC))
    finally:
        database.close()
    if as_json:
        print_json(_as_data(learnt))
        return
    console.print(
        f"{learnt.outcomes} outcomes of {learnt.users} people: {learnt.trained} to learn from, "
        f"{learnt.tested} held out to test on"
    )
    console.print(learnt.reason, markup=False)
    if learnt.saved:
        console.print(f"saved to {path}", markup=False)


def _as_data(learnt: LearntRouter) -> dict[str, Any]:
    inner = {"score": learnt.score, "choices": learnt.choices}
    return {**learnt._asdict(), **{name: value and value._asdict() for name, value in inner.items()}}


def _strategies(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = next((name for name in names if name not in STRATEGIES), None)
    if unknown is not None or not names:
        raise BadRequestError(
            f"'{unknown or text}' is no strategy; there are {', '.join(STRATEGIES)}{meant(unknown or '', STRATEGIES)}. "
            "Write several with commas: --strategies single,vote"
        )
    return names


def _local_settings(home: Path | None) -> Settings:
    """The models are asked from here, with this machine's settings; never those of a server elsewhere."""
    if os.environ.get("EVERSWARM_SERVER"):
        raise ConfigurationError(
            "This command works with the settings and the home of this machine, and EVERSWARM_SERVER names a server "
            "elsewhere. Run it on that server's machine, or unset the variable."
        )
    return settings_of(home)


def _check_output(output: Path | None) -> None:
    """Find out before anything is spent."""
    if output is not None and (output.is_dir() or not output.absolute().parent.is_dir()):
        raise BadRequestError(f"{output} cannot be written: give the path of a file in a folder that is there.")


def _write(output: Path, data: dict[str, Any]) -> None:
    output.write_text(json.dumps(data, ensure_ascii=False, indent=2, default=str) + "\n", encoding="utf-8")
    errors.print(f"written to {output}", markup=False)


def _file_data(file: Path, questions: PromptFile) -> dict[str, Any]:
    counts = {name: getattr(questions, name) for name in ("read", "distinct", "repeated", "unjudged", "error_count")}
    told = [{"line": line, "message": message} for line, message in questions.errors]
    return {"name": file.name, **counts, "errors": told, "prompts": len(questions.prompts)}


async def _plan(settings: Settings, options: Options, questions: PromptFile) -> Plan:
    from everswarm.server.gateway.profiles import expand

    async with _open_asker(settings, options) as asker:
        views = await asker.quotas()
        costs = [asker.worst_case(prompt, name) for prompt in questions.prompts for name in options.strategies]
    known = [cost for cost in costs if cost is not None]
    left = [limit.left for view in views for limit in view.limits if limit.unit == "tokens"]
    return Plan(
        answers=len(costs),
        worst_case_tokens=sum(known) if len(known) == len(costs) else None,
        left_tokens=min(left, default=None),
        is_priced=any(
            entry.price_per_million_prompt_tokens or entry.price_per_million_answer_tokens for entry in expand(settings)
        ),
    )


def _print_plan(plan: Plan, questions: PromptFile, options: Options) -> None:
    most = "unknown" if plan.worst_case_tokens is None else f"{plan.worst_case_tokens:,}"
    left = "no limit" if plan.left_tokens is None else f"{plan.left_tokens:,} tokens"
    console.print(
        f"{_number(len(questions.prompts), 'question')}, each with {', '.join(options.strategies)}: "
        f"{_number(plan.answers, 'answer')}; "
        f"tokens at worst: {most}; left of the scarcest quota: {left}",
        markup=False,
    )


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _ask_consent(plan: Plan, *, yes: bool) -> None:
    if yes or not plan.needs_consent:
        return
    why = "An endpoint costs money." if plan.is_priced else "It may need more than is left of a quota, and then waits."
    if not os.isatty(0):
        raise BadRequestError(f"{why} Nobody is there to be asked: add --yes to run it, or --limit for less.")
    if not typer.confirm(f"{why} Run it?"):
        raise typer.Exit(1)


def _run(settings: Settings, options: Options, prompts: list[Prompt]) -> list[Run]:
    """Return what ended, also when it is interrupted."""
    runs: list[Run] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True) as progress:
        task = progress.add_task("starting the models", total=len(prompts) * len(options.strategies))
        try:
            asyncio.run(_ask_all(settings, options, prompts, runs, progress, task))
        except KeyboardInterrupt:
            progress.stop()
            errors.print(f"Interrupted after {_number(len(runs), 'answer')}.", style="yellow")
    return runs


async def _ask_all(
    settings: Settings, options: Options, prompts: list[Prompt], runs: list[Run], progress: Progress, task: TaskID
) -> None:
    from everswarm.server.swarm.evaluation import evaluate

    def note(run: Run) -> None:
        runs.append(run)
        progress.advance(task)

    async with _open_asker(settings, options) as asker:
        await asker.start()
        await _until_ready(asker, lambda words: progress.update(task, description=words))
        await _until_tools(asker, lambda words: progress.update(task, description=words))
        progress.update(task, description="asking")
        await evaluate(prompts, options.strategies, asker.ask, concurrency=options.concurrency, on_progress=note)


async def _until_ready(asker: Asker, say: Callable[[str], None]) -> None:
    """Wait while endpoints start; one that answers is enough, for a role without any fails in its own words."""
    deadline = asyncio.get_running_loop().time() + READY_SECONDS
    while True:
        states = asker.states()
        starting = [name for name, state in states.items() if state.startswith("starting")]
        if not starting or asyncio.get_running_loop().time() > deadline:
            break
        say(f"waiting for {', '.join(starting)}")
        await asyncio.sleep(LOOK_EVERY_SECONDS)
    if "operational" not in states.values():
        told = "; ".join(f"'{name}': {state}" for name, state in states.items()) or "there are none"
        raise UnavailableError(f"No endpoint can answer. {told}. See what is wrong with: everswarm doctor")


async def _until_tools(asker: Asker, say: Callable[[str], None]) -> None:
    """Wait a little while servers of tools start, and name those that are not there."""
    deadline = asyncio.get_running_loop().time() + TOOLS_READY_SECONDS
    while asyncio.get_running_loop().time() < deadline:
        starting = [name for name, state in asker.tool_states().items() if state in {"not started", "starting…"}]
        if not starting:
            break
        say(f"waiting for tool servers: {', '.join(starting)}")
        await asyncio.sleep(LOOK_EVERY_SECONDS)
    for name, state in asker.tool_states().items():
        if state != "operational":
            errors.print(f"Asked without the tools of '{name}': {state}", style="yellow", markup=False)


def _end(found: Evaluated) -> None:
    """Set the exit code: 130 when interrupted, 1 when nothing was answered."""
    if found.answered < found.asked:
        raise typer.Exit(130)
    if all(run.is_failed for run in found.runs):
        raise typer.Exit(1)


def _kind_of(settings: Settings) -> KindOf:
    """Return what says what a conversation is about where its line does not: the rules of the swarm."""
    return lambda messages: _route(settings, messages, served=settings.roles).kind


def _route(settings: Settings, messages: Messages, *, served: Collection[str]) -> Route:
    from everswarm.server.swarm.routing import route
    from everswarm.server.swarm.signals import read_signals

    good_at = {name: role.good_at for name, role in settings.roles.items()}
    return route(read_signals(messages), good_at=good_at, served=served, strategies={}, only_single=True)


@asynccontextmanager
async def _open_asker(settings: Settings, options: Options) -> AsyncGenerator[Asker]:
    """Open what answers: the swarm as the server has it, on the records of this home."""
    from everswarm.server.database import Database
    from everswarm.server.gateway import Gateway
    from everswarm.server.swarm.service import Swarm

    async with AsyncExitStack() as opened:
        database = Database(settings.sqlalchemy_url, key_file=settings.text_key_file)
        opened.callback(database.close)
        database.migrate()
        gateway = Gateway.from_settings(settings)
        opened.push_async_callback(gateway.close)
        swarm = Swarm(gateway, database, settings)
        opened.push_async_callback(swarm.close)

        async def start() -> None:
            await gateway.start()
            await swarm.start()

        yield Asker(
            ask=lambda prompt, strategy: _ask(swarm, options, prompt, strategy),
            worst_case=lambda prompt, strategy: swarm.worst_case_tokens(*_call(options, prompt, strategy)),
            quotas=gateway.quotas,
            start=start,
            states=gateway.states,
            tool_states=swarm.servers.states,
        )


async def _ask(swarm: Swarm, options: Options, prompt: Prompt, strategy: str) -> Attempt:
    from everswarm.server.swarm.evaluation import Attempt

    began = time.perf_counter()
    answered, trace = await swarm.try_out(*_call(options, prompt, strategy))
    return Attempt(
        text=answered.response["choices"][0]["message"].get("content") or "",
        prompt_tokens=trace.prompt_tokens,
        completion_tokens=trace.completion_tokens,
        calls=trace.model_calls,
        seconds=time.perf_counter() - began,
        strategy_used=trace.strategy,
        degraded="; ".join(trace.notes) or None,
    )


def _call(options: Options, prompt: Prompt, strategy: str) -> tuple[Call, Wishes]:
    """Return the request: each answer is made anew, whatever another strategy was given."""
    from everswarm.server.gateway import Call
    from everswarm.server.swarm.requests import Wishes

    payload = {"messages": prompt.messages, "max_tokens": options.max_tokens, "temperature": options.temperature}
    call = Call(payload, (), user=USER, wait_seconds=None, cache="off")
    return call, Wishes(strategy=cast("StrategyName", strategy))
