"""How likely people are to like an answer of each role to a request like this one, learnt from what they said before.

Two logistic regressions, one upon the other: what makes a request hard for every role, then how a role differs from
that. A role that few have judged stays near the others, and where it was never seen it is not compared at all.
Plain Python: 20,000 outcomes take seconds, and a server needs no library for it.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from everswarm.identifiers import new_id
from everswarm.server.swarm.signals import FEATURE_NAMES, Signals, features

SCHEMA_VERSION = 1
MARGIN = 0.15  # by how much a role must be likelier to be liked before it is preferred to that of the rules
MIN_OUTCOMES = 20  # of a role, and of a role with each topic of a request, before it is compared
SHARED_L2 = 1.0  # in outcomes of weight 1
ROLE_L2 = 5.0  # more: a role is as the others until enough outcomes say otherwise
MAX_STEPS = 25  # of Newton's method; mostly 6 are enough
_CLOSE_ENOUGH = 1e-6  # a step in which no weight moves more is the last
_LARGEST_STEP = 4.0  # of one weight, so that nearly separable outcomes do not overshoot
_MAX_FILE_BYTES = 4 * 1024 * 1024
_NOT_TOPICS = frozenset({"numbers", "parts", "length", "long", "turns", "has_system"})  # seen with every role
_TOPICS = tuple(at for at, name in enumerate(FEATURE_NAMES) if name not in _NOT_TOPICS)

_log = logging.getLogger(__name__)


class Outcome(NamedTuple):
    """What somebody thought of one answer."""

    features: tuple[float, ...]  # of the request, in the order of FEATURE_NAMES
    role: str  # that answered
    is_good: bool
    weight: float = 1.0
    user: str = ""


@dataclass(frozen=True)
class RoleWeights:
    """How one role differs from all."""

    weights: tuple[float, ...]  # by feature, then the bias
    outcomes: int
    seen: tuple[int, ...]  # outcomes of this role by feature: with how many it was there


@dataclass(frozen=True)
class Classifier:
    """Gives the probability that an answer is liked, by request and role."""

    shared: tuple[float, ...]  # by feature, then the bias
    roles: Mapping[str, RoleWeights]
    trained_at: datetime

    def probability(self, values: Sequence[float], role: str | None) -> float:
        """Return the probability of a good answer; with no role, or one that it does not know, that of any."""
        logit = _dot(self.shared, values)
        own = self.roles.get(role) if role is not None else None
        if own is not None:
            logit += _dot(own.weights, values)
        return _sigmoid(logit)

    def prefer(self, signals: Signals, candidates: Collection[str], *, over: str) -> tuple[str, float] | None:
        """Return the role most likely to be liked, and by how much likelier than `over`, the choice of the rules.

        None where `over` is the likeliest, or where too little is known to say. Only roles that were seen at least
        MIN_OUTCOMES times are compared, and that often with each topic of this request: else what a role does well
        would be taken to hold for what it never did.
        """
        return self.prefer_by(features(signals), candidates, over=over)

    def prefer_by(self, values: Sequence[float], candidates: Collection[str], *, over: str) -> tuple[str, float] | None:
        """Return what `prefer` does, by the features of a request."""
        topics = [at for at in _TOPICS if values[at]]
        if not self._knows(over, topics):
            return None
        known = [role for role in candidates if role != over and self._knows(role, topics)]
        if not known:
            return None
        probabilities = {role: self.probability(values, role) for role in known}
        best = max(known, key=probabilities.__getitem__)
        margin = probabilities[best] - self.probability(values, over)
        return (best, margin) if margin > 0 else None

    def save(self, path: Path) -> None:
        """Write the file that `load` reads, readable by its owner only; a reader sees the old one or the new one.

        Raises:
            OSError: it cannot be written.
        """
        record = {
            "schema_version": SCHEMA_VERSION,
            "trained_at": self.trained_at.isoformat(),
            "feature_names": FEATURE_NAMES,
            "shared": self.shared,
            "roles": {
                name: {"weights": role.weights, "outcomes": role.outcomes, "seen": role.seen}
                for name, role in self.roles.items()
            },
        }
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{new_id()}")
        try:
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
                json.dump(record, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def _knows(self, role: str, topics: Sequence[int]) -> bool:
        known = self.roles.get(role)
        return known is not None and min([known.outcomes, *(known.seen[at] for at in topics)]) >= MIN_OUTCOMES


def load(path: Path) -> Classifier | None:
    """Return the classifier in `path`; None, and a line in the log, where there is none that can be used."""
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
        if len(content) > _MAX_FILE_BYTES:
            raise ValueError(f"it is larger than {_MAX_FILE_BYTES} bytes")
        return _read(json.loads(content))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        _log.warning("%s is not used, the rules alone route: %s. Train it again.", path, error)
        return None


def train(outcomes: Sequence[Outcome], *, now: datetime | None = None) -> Classifier:
    """Learn from `outcomes`, each as important as its weight. The same outcomes always give the same classifier."""
    everybody = [_Row.of(outcome) for outcome in outcomes]
    shared = _fit(everybody, [0.0] * len(everybody), l2=SHARED_L2)
    roles: dict[str, RoleWeights] = {}
    for name in sorted({outcome.role for outcome in outcomes}):
        own = [outcome for outcome in outcomes if outcome.role == name]
        offsets = [_dot(shared, outcome.features) for outcome in own]
        weights = _fit([_Row.of(outcome) for outcome in own], offsets, l2=ROLE_L2)
        seen = tuple(sum(1 for outcome in own if outcome.features[at]) for at in range(len(FEATURE_NAMES)))
        roles[name] = RoleWeights(tuple(weights), len(own), seen)
    return Classifier(tuple(shared), roles, now or datetime.now(UTC))


class _Row(NamedTuple):
    """An outcome without its zeros, and with the bias as a last feature that is always 1."""

    values: list[tuple[int, float]]
    target: float
    weight: float

    @classmethod
    def of(cls, outcome: Outcome) -> _Row:
        values = [(at, value) for at, value in enumerate(outcome.features) if value]
        return cls([*values, (len(outcome.features), 1.0)], float(outcome.is_good), outcome.weight)


def _fit(rows: Sequence[_Row], offsets: Sequence[float], *, l2: float) -> list[float]:
    """Return the weights with the least weighted log-loss plus `l2`/2 times their squares, by Newton's method."""
    size = len(FEATURE_NAMES) + 1
    weights = [0.0] * size
    for _ in range(MAX_STEPS):
        gradient = [l2 * weight for weight in weights]
        hessian = [[l2 if at == other else 0.0 for other in range(size)] for at in range(size)]
        for row, offset in zip(rows, offsets, strict=True):
            chance = _sigmoid(offset + sum(weights[at] * value for at, value in row.values))
            error = row.weight * (chance - row.target)
            curve = row.weight * chance * (1 - chance)
            for at, value in row.values:
                gradient[at] += error * value
                line, slope = hessian[at], curve * value
                for other, other_value in row.values:
                    line[other] += slope * other_value
        step = _solve(hessian, gradient)
        scale = min(1.0, _LARGEST_STEP / max(_CLOSE_ENOUGH, *map(abs, step)))
        weights = [weight - scale * change for weight, change in zip(weights, step, strict=True)]
        if max(map(abs, step)) < _CLOSE_ENOUGH:
            break
    return weights


def _solve(matrix: Sequence[Sequence[float]], right: Sequence[float]) -> list[float]:
    """Return x with matrix · x = right, for a symmetric positive definite matrix, by elimination."""
    size = len(right)
    rows = [[*line, value] for line, value in zip(matrix, right, strict=True)]
    for at in range(size):
        pivot = rows[at]
        for below in rows[at + 1 :]:
            factor = below[at] / pivot[at]
            if factor:
                for column in range(at, size + 1):
                    below[column] -= factor * pivot[column]
    solution = [0.0] * size
    for at in reversed(range(size)):
        known = sum(rows[at][column] * solution[column] for column in range(at + 1, size))
        solution[at] = (rows[at][size] - known) / rows[at][at]
    return solution


def _dot(weights: Sequence[float], values: Sequence[float]) -> float:
    return weights[-1] + sum(weight * value for weight, value in zip(weights, values, strict=False) if value)


def _sigmoid(logit: float) -> float:
    return 1.0 / (1.0 + math.exp(-max(-30.0, min(30.0, logit))))


def _read(record: Mapping[str, Any]) -> Classifier:
    """Return the classifier that `save` wrote as `record`; raises ValueError where it is another thing."""
    if record["schema_version"] != SCHEMA_VERSION:
        raise ValueError(f"its version is {record['schema_version']!r}, and this everswarm reads {SCHEMA_VERSION}")
    if tuple(record["feature_names"]) != FEATURE_NAMES:
        raise ValueError("it was trained on other features")
    roles = {
        str(name): RoleWeights(
            _numbers(role["weights"], len(FEATURE_NAMES) + 1),
            int(role["outcomes"]),
            tuple(map(int, _numbers(role["seen"], len(FEATURE_NAMES)))),
        )
        for name, role in record["roles"].items()
    }
    shared = _numbers(record["shared"], len(FEATURE_NAMES) + 1)
    return Classifier(shared, roles, datetime.fromisoformat(record["trained_at"]))


def _numbers(values: Sequence[Any], count: int) -> tuple[float, ...]:
    numbers = tuple(map(float, values))
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise ValueError(f"it should have {count} finite numbers where it has {len(numbers)}")
    return numbers
