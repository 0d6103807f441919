"""A cycle as tables: what happened at each stage, and what came of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from everswarm.cli.screen import console, print_table, seconds, size
from everswarm.schemas.adapter import Adapter, ExportedAdapter
from everswarm.schemas.dataset import SPLITS, Dataset, Snapshot
from everswarm.schemas.evaluation import Evaluation, Score
from everswarm.schemas.job import Cycle, Stage, StageStatus
from everswarm.schemas.targets import SoftTargets, TeacherCache

METRIC_NAMES = {"bits_per_byte": "bits per byte", "perplexity": "perplexity", "bleu": "BLEU", "rouge_l": "ROUGE-L"}


def print_cycle(cycle: Cycle) -> None:
    """Print the stages, the scores and the decision."""
    rows = [stage_row(status) for status in cycle.stages]
    print_table(f"Cycle {cycle.id}", ["stage", "state", "what came of it", "#time", "#CPU", "#memory", "#size"], rows)
    evaluation = evaluation_of(cycle)
    if evaluation is not None:
        print_scores(evaluation)
    print_outcome(cycle)


def print_outcome(cycle: Cycle) -> None:
    """Print how the cycle ended, in the gate's own words where it spoke."""
    color = {"released": "green", "held": "yellow", "failed": "red"}.get(cycle.state, "white")
    spoke = cycle.state in {"released", "held"}
    words = cycle.reason if spoke and cycle.reason else ": ".join(filter(None, (cycle.state, cycle.reason)))
    console.print(words, style=f"bold {color}", markup=False)


def evaluation_of(cycle: Cycle) -> Evaluation | None:
    """Return the evaluation, once there is one."""
    for status in cycle.stages:
        if status.stage == Stage.EVALUATE and status.result:
            return Evaluation.model_validate(status.result)
    return None


def print_scores(evaluation: Evaluation) -> None:
    """Print base and candidate side by side, with 95 % intervals."""
    found = {(score.suite, score.weights, score.metric, score.subject): score for score in evaluation.scores}
    rows = []
    for suite, weights, metric, subject in found:
        if subject != "base":
            continue
        candidate = found.get((suite, weights, metric, "candidate"))
        incumbent = found.get((suite, weights, metric, "incumbent"))
        base = found[suite, weights, metric, "base"]
        what = f"{METRIC_NAMES.get(metric, metric)} ({'↓' if base.better == 'lower' else '↑'})"
        where = {"hf": "full precision", "gguf": "what ships"}[weights]
        rows.append((suite, where, what, _interval(base), _interval(incumbent), _interval(candidate)))
    columns = ["suite", "weights", "score", "#base", "#in use", "#candidate"]
    keep = [0, 1, 2, 3, 5] if evaluation.incumbent_gguf is None else [0, 1, 2, 3, 4, 5]
    print_table(
        "Scores on held-out questions (95 % interval)",
        [columns[index] for index in keep],
        [[row[index] for index in keep] for row in rows],
    )


def stage_row(status: StageStatus) -> tuple[str, ...]:
    """Return one line of the table of stages."""
    spent = status.spent
    return (
        status.stage.value,
        status.state,
        status.error if status.state == "failed" and status.error else _summary(status),
        seconds(spent.wall_seconds) if spent else "",
        seconds(spent.cpu_seconds) if spent else "",
        size(spent.peak_memory_bytes) if spent else "",
        _stage_size(status),
    )


def _interval(score: Score | None) -> str:
    if score is None:
        return ""
    return f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"


def _summary(status: StageStatus) -> str:
    """Say in one line what the stage made."""
    if not status.result:
        return status.progress.note if status.progress else ""
    return SUMMARIES[status.stage](status.result)


def _curated(result: dict[str, Any]) -> str:
    card = Dataset.model_validate(result).card
    splits = " / ".join(str(card.examples[split]) for split in SPLITS)
    return f"{splits} examples (train / validation / test), {sum(d.count for d in card.dropped)} dropped"


def _labelled(result: dict[str, Any]) -> str:
    return "\n".join(_taught(cache) for cache in SoftTargets.model_validate(result).caches)


def _taught(cache: TeacherCache) -> str:
    """Say what one teacher gave; a long path or name is told by its last part."""
    asked = cache.teacher.asked
    model = re.split(r"[/\\]", asked.model.rstrip("/\\"))[-1]
    who = f"{asked.source} {model}".strip() + (" in hindsight" if asked.hindsight else "")
    texts = f"{sum(cache.texts.values())} texts, " if cache.texts else ""  # not counted when there was one teacher
    if not cache.tokens:
        return f"{who}: {texts}no log-probabilities"
    return f"{who}: {texts}{cache.tokens} tokens, top {cache.top_k} hold {cache.top_k_mass:.1%}"


def _distilled(result: dict[str, Any]) -> str:
    adapter = Adapter.model_validate(result)
    # not the loss: it changes with what the teachers are heard on
    nats = [point.cross_entropy for point in adapter.curve]
    losses = f", {nats[0]:.2f} → {nats[-1]:.2f} nats a token" if nats else ""
    return f"{adapter.steps} steps, {adapter.trained_tokens} tokens{losses}"


def _exported(result: dict[str, Any]) -> str:
    exported = ExportedAdapter.model_validate(result)
    share = exported.adapter_gguf.size_bytes / exported.base_gguf.size_bytes
    return f"adapter {share:.1%} of the base ({exported.quantization})"


def _released(result: dict[str, Any]) -> str:
    release = result.get("release")
    return f"release {release['version']}" if release else "not released"


SUMMARIES: dict[Stage, Callable[[dict[str, Any]], str]] = {
    Stage.SNAPSHOT: lambda result: f"{Snapshot.model_validate(result).interactions} judged interactions frozen",
    Stage.CURATE: _curated,
    Stage.LABEL: _labelled,
    Stage.DISTILL: _distilled,
    Stage.EXPORT: _exported,
    Stage.EVALUATE: lambda result: f"{len(Evaluation.model_validate(result).scores)} scores with intervals",
    Stage.RELEASE: _released,
}


def _stage_size(status: StageStatus) -> str:
    result = status.result
    if not result:
        return ""
    match status.stage:
        case Stage.SNAPSHOT | Stage.CURATE:
            return size(result["data"]["size_bytes"])
        case Stage.LABEL:
            caches = SoftTargets.model_validate(result).caches
            return size(sum(shard.size_bytes for cache in caches for shard in cache.shards))
        case Stage.DISTILL:
            return size(result["weights"]["size_bytes"])
        case Stage.EXPORT:
            return size(result["adapter_gguf"]["size_bytes"])
        case _:
            return ""
