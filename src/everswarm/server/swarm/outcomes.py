"""From what people thought of answers to a router that knows better than its rules, if there is one in it."""

from __future__ import annotations

import bisect
import logging
import math
import random
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sqlalchemy import Connection, Row

from everswarm.server.database import Database
from everswarm.server.swarm import repository
from everswarm.server.swarm.classifier import MARGIN, MIN_OUTCOMES, Classifier, Outcome, train
from everswarm.server.swarm.signals import features, read_signals

GOOD_RATING, BAD_RATING = 4, 2  # at least, at most; what lies between says nothing
MOST_OUTCOMES = 20_000  # the newest; older ones were of other models
HELD_OUT = 0.2  # of the users, or of the time
MIN_TRAINED, MIN_TESTED = 100, 25  # outcomes
MIN_USERS = 25  # from here on users are held out, else the newest outcomes
BOOTSTRAPS = 500
_CONFIDENCE = 0.9  # that the improvement is one
_NOT_LIKELY = 1e-6  # no probability is nearer to 0 or 1

_log = logging.getLogger(__name__)

Guess = Callable[[Outcome], float]  # the probability that an outcome is good


class Score(NamedTuple):
    """How well the probabilities fit outcomes that they were not made from; a smaller log-loss is better."""

    log_loss: float
    by_role: float  # log-loss of knowing only how often each role is liked
    by_request: float  # log-loss of knowing only the request, and not who answered
    better_than_role: float  # lower bound of the improvement over each, with a confidence of 90 %
    better_than_request: float
    auc: float | None  # the chance that a good answer is likelier than a bad one; None where all are alike


class Choices(NamedTuple):
    """How held-out answers were liked where the classifier would have asked the same role, and where another."""

    same: int
    same_liked: float | None  # share of them
    other: int
    other_liked: float | None


class LearntRouter(NamedTuple):
    """What came of training a router."""

    outcomes: int
    users: int
    by_role: Mapping[str, int]
    trained: int  # outcomes learnt from
    tested: int  # outcomes held out
    held_out: Literal["users", "newest"]
    score: Score | None  # None where there was too little to try
    choices: Choices | None
    saved: bool
    reason: str  # why it was saved, or was not


def read_outcomes(connection: Connection) -> Iterator[Outcome]:
    """Yield what people thought of answers, the oldest first, where they said it clearly and consent to its use.

    Good: the last rating is 4 or 5. Bad: it is 1 or 2, or there is a correction. Left out: all else, such as a rating
    of 3, or a 5 with a correction. Of consent the latest by who asked counts, as for all training.
    """
    for _, rows in groupby(repository.judged_answers(connection), key=lambda row: row.id):
        outcome = _folded(list(rows))
        if outcome is not None:
            yield outcome


def weigh(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Return `outcomes`, each user's weighing 1/√(how many are theirs), so that one alone does not decide; mean 1."""
    known = list(outcomes)
    counts = Counter(outcome.user for outcome in known)
    total = sum(math.sqrt(count) for count in counts.values())
    return [outcome._replace(weight=len(known) / total / math.sqrt(counts[outcome.user])) for outcome in known]


def learn_router(database: Database, path: Path, *, now: datetime, seed: int = 0) -> LearntRouter:
    """Train a classifier on what people thought, and save it where it is better on what it was not trained on.

    A fifth of the users is held out; where there are fewer than MIN_USERS, the newest fifth of the outcomes. It has to
    tell good answers from bad ones better than how often each role is liked, and better than the request alone: else
    there is nothing in it about who should answer. A classifier that was saved before stays where this one is not.

    Raises:
        OSError: the file cannot be written.
    """
    with database.read() as connection:
        outcomes = weigh(deque(read_outcomes(connection), maxlen=MOST_OUTCOMES))
    training, test, held_out = split(outcomes, seed=seed)
    about = LearntRouter(
        outcomes=len(outcomes),
        users=len({outcome.user for outcome in outcomes}),
        by_role=dict(sorted(Counter(outcome.role for outcome in outcomes).items())),
        trained=len(training),
        tested=len(test),
        held_out=held_out,
        score=None,
        choices=None,
        saved=False,
        reason="",
    )
    missing = _missing(training, test)
    if missing:
        return about._replace(reason=missing)
    classifier = train(training, now=now)
    score = evaluate(classifier, test, trained_on=training, by_user=held_out == "users", seed=seed)
    is_better, reason = _verdict(score)
    if is_better:
        classifier.save(path)
    return about._replace(score=score, choices=compare_choices(classifier, test), saved=is_better, reason=reason)


def split(outcomes: Sequence[Outcome], *, seed: int) -> tuple[list[Outcome], list[Outcome], Literal["users", "newest"]]:
    """Return what to learn from and what to hold out, with no user in both; with few users, nothing older held out."""
    users = sorted({outcome.user for outcome in outcomes})
    if len(users) < MIN_USERS:
        newest = round(len(outcomes) * (1 - HELD_OUT))
        return list(outcomes[:newest]), list(outcomes[newest:]), "newest"
    held_out = set(random.Random(seed).sample(users, round(len(users) * HELD_OUT)))
    training = [outcome for outcome in outcomes if outcome.user not in held_out]
    return training, [outcome for outcome in outcomes if outcome.user in held_out], "users"


def evaluate(
    classifier: Classifier, outcomes: Sequence[Outcome], *, trained_on: Sequence[Outcome], by_user: bool, seed: int = 0
) -> Score:
    """Compare `classifier` with guesses that know less, over `outcomes` that it has not seen.

    Args:
        classifier: what is tried.
        outcomes: at least one.
        trained_on: what it was trained on, for the base rates.
        by_user: draw whole users in the bootstrap, since the outcomes of one are alike; else single outcomes.
        seed: of the bootstrap.
    """
    rates = _rates(trained_on)
    losses = _losses(outcomes, lambda outcome: classifier.probability(outcome.features, outcome.role))
    of_role = _losses(outcomes, lambda outcome: rates.get(outcome.role, rates[""]))
    of_request = _losses(outcomes, lambda outcome: classifier.probability(outcome.features, None))
    groups: dict[object, list[int]] = defaultdict(list)
    for at, outcome in enumerate(outcomes):
        groups[outcome.user if by_user else at].append(at)
    drawn = list(groups.values())

    def bound(others: Sequence[float]) -> float:
        gains = [other - own for other, own in zip(others, losses, strict=True)]
        return _lower_bound(gains, [outcome.weight for outcome in outcomes], drawn, seed=seed)

    return Score(
        log_loss=_mean(losses, outcomes),
        by_role=_mean(of_role, outcomes),
        by_request=_mean(of_request, outcomes),
        better_than_role=bound(of_role),
        better_than_request=bound(of_request),
        auc=_auc([(classifier.probability(outcome.features, outcome.role), outcome.is_good) for outcome in outcomes]),
    )


def compare_choices(classifier: Classifier, outcomes: Sequence[Outcome]) -> Choices:
    """Say how the answers that were given were liked, by whether the classifier would have asked another role."""
    liked: dict[bool, list[bool]] = {False: [], True: []}
    for outcome in outcomes:
        preferred = classifier.prefer_by(outcome.features, classifier.roles, over=outcome.role)
        liked[preferred is not None and preferred[1] >= MARGIN].append(outcome.is_good)
    return Choices(len(liked[False]), _share(liked[False]), len(liked[True]), _share(liked[True]))


def _folded(rows: Sequence[Row[Any]]) -> Outcome | None:
    """Return the outcome that the judgements of one answer, the latest last, add up to."""
    first = rows[0]
    consents = [bool(row.consent) for row in rows if row.may_consent]
    ratings = [row.rating for row in rows if row.rating is not None]
    is_corrected = any(row.is_corrected for row in rows)
    is_good = bool(ratings) and ratings[-1] >= GOOD_RATING
    is_bad = is_corrected or (bool(ratings) and ratings[-1] <= BAD_RATING)
    if is_good == is_bad or not (consents and consents[-1]):
        return None
    return Outcome(features(read_signals(first.messages)), first.role, is_good, user=first.user)


def _missing(training: Sequence[Outcome], test: Sequence[Outcome]) -> str:
    """Say what is missing to learn anything; nothing where there is enough."""
    counts = Counter(outcome.role for outcome in training)
    if len(training) < MIN_TRAINED or len(test) < MIN_TESTED:
        return (
            f"There are {len(training)} judged answers to learn from and {len(test)} to try it on; {MIN_TRAINED} and "
            f"{MIN_TESTED} are needed. The rules route until more answers are rated, with consent."
        )
    if sum(1 for count in counts.values() if count >= MIN_OUTCOMES) < 2:
        return (
            f"Fewer than two roles have {MIN_OUTCOMES} judged answers to learn from, so there is nothing to compare. "
            "Ask another role by its name now and then, and rate what it says."
        )
    return ""


def _verdict(score: Score) -> tuple[bool, str]:
    compared = f"log-loss {score.log_loss:.3f} on what was held out"
    if score.better_than_role <= 0:
        return False, (
            f"Not saved: {compared}, which is not surely better than {score.by_role:.3f}, that of knowing only how "
            "often each role is liked. The router stays as it was."
        )
    if score.better_than_request <= 0:
        return False, (
            f"Not saved: {compared}, which is not surely better than {score.by_request:.3f}, that of not knowing who "
            "answered: as far as can be seen the roles are equally good. The router stays as it was."
        )
    return (
        True,
        f"Saved: {compared}, surely better than {score.by_role:.3f} by role and {score.by_request:.3f} by request.",
    )


def _rates(outcomes: Collection[Outcome]) -> dict[str, float]:
    """Return the share of good answers by role, and under "" that of all; one good and one bad are added to each."""
    sums: dict[str, list[float]] = defaultdict(lambda: [1.0, 2.0])
    for outcome in outcomes:
        for name in ("", outcome.role):
            sums[name][0] += outcome.weight * outcome.is_good
            sums[name][1] += outcome.weight
    return {name: good / total for name, (good, total) in sums.items()}


def _losses(outcomes: Iterable[Outcome], guess: Guess) -> list[float]:
    return [
        -math.log(max(_NOT_LIKELY, chance if outcome.is_good else 1 - chance))
        for outcome, chance in ((outcome, guess(outcome)) for outcome in outcomes)
    ]


def _mean(values: Sequence[float], outcomes: Sequence[Outcome]) -> float:
    total = sum(outcome.weight for outcome in outcomes)
    return sum(value * outcome.weight for value, outcome in zip(values, outcomes, strict=True)) / total


def _lower_bound(
    gains: Sequence[float], weights: Sequence[float], groups: Sequence[Sequence[int]], *, seed: int
) -> float:
    """Return the weighted mean gain that 90 of 100 draws of as many groups exceed (the bootstrap's percentile)."""
    chance = random.Random(seed)
    sums = [(sum(gains[at] * weights[at] for at in group), sum(weights[at] for at in group)) for group in groups]
    means = []
    for _ in range(BOOTSTRAPS):
        drawn = chance.choices(sums, k=len(sums))
        means.append(sum(gain for gain, _ in drawn) / sum(weight for _, weight in drawn))
    return sorted(means)[int(BOOTSTRAPS * (1 - _CONFIDENCE))]


def _auc(scored: Iterable[tuple[float, bool]]) -> float | None:
    """Return the chance that a good one has the higher score; equal ones count half."""
    known = list(scored)
    good = [chance for chance, is_good in known if is_good]
    bad = sorted(chance for chance, is_good in known if not is_good)
    if not good or not bad:
        return None
    wins = sum(bisect.bisect_left(bad, chance) + bisect.bisect_right(bad, chance) for chance in good)
    return wins / 2 / (len(good) * len(bad))


def _share(liked: Sequence[bool]) -> float | None:
    return sum(liked) / len(liked) if liked else None
