"""A router that learns what its rules do not know, and nothing that is not there."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime

import pytest

from everswarm.server.swarm.classifier import MARGIN, Outcome, load, train
from everswarm.server.swarm.signals import FEATURE_NAMES, features, read_signals

NOW = datetime(2026, 7, 1, tzinfo=UTC)
QUESTIONS = {
    ("en", "code"): "Write a Python function that reads the file and returns what is in it",
    ("de", "code"): "Schreibe eine Python Funktion, die das liest und mir sagt, was der Inhalt ist",
    ("en", "talk"): "What is the nicest thing to do in Rome with my parents",
    ("de", "talk"): "Was ist das Schönste, was ich mit den Eltern in Rom machen kann",
}
ROLES = ["primary", "specialist"]


def signals_of(language, topic):
    return read_signals([{"role": "user", "content": QUESTIONS[language, topic]}])


def world(skill, *, count, seed, roles=ROLES):
    """Return outcomes of random questions to random roles, good with a chance of `skill(language, topic, role)`."""
    chance = random.Random(seed)
    known = {key: features(signals_of(*key)) for key in QUESTIONS}
    found = []
    for at in range(count):
        key, role = chance.choice(list(QUESTIONS)), chance.choice(roles)
        is_good = chance.random() < skill(*key, role)
        found.append(Outcome(known[key], role, is_good, user=f"u{at % 40}"))
    return found


def bad_at_german(language, _topic, role):
    return 0.25 if (role, language) == ("specialist", "de") else 0.75


def test_skill_that_the_rules_do_not_know_is_learnt():
    found = train(world(bad_at_german, count=600, seed=1))
    german = found.prefer(signals_of("de", "code"), ROLES, over="specialist")
    assert german is not None
    assert german[0] == "primary"
    assert german[1] > 2 * MARGIN
    english = found.prefer(signals_of("en", "code"), ROLES, over="specialist")
    assert english is None or english[1] < MARGIN
    assert found.prefer(signals_of("de", "code"), ROLES, over="primary") is None


def test_probabilities_hold_for_outcomes_that_were_not_trained_on():
    found = train(world(bad_at_german, count=1500, seed=2))
    for key in QUESTIONS:
        for role in ROLES:
            likely = found.probability(features(signals_of(*key)), role)
            assert likely == pytest.approx(bad_at_german(*key, role), abs=0.12)


def test_without_a_difference_the_rules_are_hardly_ever_overruled():
    overruled = 0
    for seed in range(20):
        found = train(world(lambda *_: 0.6, count=200, seed=seed))
        for key in QUESTIONS:
            preferred = found.prefer(signals_of(*key), ROLES, over="specialist")
            overruled += preferred is not None and preferred[1] >= MARGIN
    assert overruled <= 4  # of 80


def test_hard_questions_are_not_the_fault_of_who_gets_them():
    """The specialist got all code, which is hard, and the primary all else: nothing follows for code."""
    outcomes = [
        outcome
        for outcome in world(lambda _language, topic, _role: 0.4 if topic == "code" else 0.9, count=800, seed=3)
        if (outcome.role == "specialist") == bool(outcome.features[FEATURE_NAMES.index("code")])
    ]
    assert train(outcomes).prefer(signals_of("en", "code"), ROLES, over="specialist") is None


def test_role_that_few_have_judged_is_not_compared():
    outcomes = world(lambda *_: 0.2, count=400, seed=4, roles=["specialist"])
    few = world(lambda *_: 1.0, count=15, seed=5, roles=["primary"])
    assert train(outcomes + few).prefer(signals_of("en", "talk"), ROLES, over="specialist") is None
    assert train(outcomes + few * 8).prefer(signals_of("en", "talk"), ROLES, over="specialist") is not None


def test_only_candidates_are_preferred():
    found = train(world(lambda _language, _topic, role: 0.9 if role == "primary" else 0.2, count=400, seed=6))
    assert found.prefer(signals_of("en", "code"), ["specialist"], over="specialist") is None
    assert found.prefer(signals_of("en", "code"), ROLES, over="nobody") is None


def test_same_outcomes_give_the_same_classifier():
    outcomes = world(bad_at_german, count=300, seed=7)
    assert train(outcomes, now=NOW) == train(outcomes, now=NOW)


def test_outcomes_count_by_their_weight():
    good = world(lambda *_: 1.0, count=100, seed=8, roles=["primary"])
    bad = [outcome._replace(is_good=False, weight=0.1) for outcome in good]
    values = good[0].features
    assert train(good + bad).probability(values, "primary") > 0.8


def test_outcomes_that_are_all_alike_can_be_learnt():
    found = train(world(lambda *_: 1.0, count=300, seed=9))
    assert 0.9 < found.probability(features(signals_of("en", "code")), "primary") < 1
    assert train([]).probability(features(signals_of("en", "code")), "primary") == 0.5


def test_file_gives_back_what_was_saved_and_is_private(tmp_path):
    path = tmp_path / "home" / "router.json"
    found = train(world(bad_at_german, count=300, seed=10), now=NOW)
    found.save(path)
    found.save(path)
    assert load(path) == found
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["router.json"]


def change(**fields):
    return lambda text: json.dumps({**json.loads(text), **fields})


@pytest.mark.parametrize(
    "broken",
    [
        lambda text: text[:50],
        lambda text: "",
        lambda text: "[]",
        lambda text: "[" * 100_000,
        lambda text: "\udcff",
        change(schema_version=2),
        change(feature_names=["other"]),
        change(shared=[1.0]),
        change(shared=[float("nan")] * (len(FEATURE_NAMES) + 1)),
        change(roles={"primary": {}}),
        change(roles=7),
        change(trained_at="yesterday"),
    ],
)
def test_file_that_cannot_be_used_is_left_alone_and_logged(tmp_path, caplog, broken):
    path = tmp_path / "router.json"
    train(world(bad_at_german, count=100, seed=11)).save(path)
    path.write_bytes(broken(path.read_text()).encode("utf-8", "surrogateescape"))
    assert load(path) is None
    assert "the rules alone route" in caplog.text


def test_missing_file_is_no_trouble(tmp_path, caplog):
    assert load(tmp_path / "router.json") is None
    assert not caplog.text
