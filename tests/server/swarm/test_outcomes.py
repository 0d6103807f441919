"""From judged answers to a router, on a real database."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import pytest

from everswarm.identifiers import new_id
from everswarm.server.feedback.tables import feedback, interactions
from everswarm.server.swarm.classifier import FEATURE_NAMES, Outcome, load
from everswarm.server.swarm.outcomes import learn_router, read_outcomes, split, weigh
from everswarm.server.swarm.routing import route
from everswarm.server.swarm.signals import read_signals

NOW = datetime(2026, 7, 1, 12, tzinfo=UTC)
GERMAN = "Schreibe eine Python Funktion, die das liest und mir sagt, was der Inhalt ist"
ENGLISH = "Write a Python function that reads the file and returns what is in it"
GOOD_AT = {"primary": [], "specialist": ["code"]}


class Log:
    """Rows of chats and of what was thought of them, stored at once."""

    def __init__(self, database):
        self.database = database
        self.chats, self.judgements = [], []

    def chat(self, *, text=ENGLISH, role="specialist", user="ann", strategy=None, **more):
        row = {
            "id": new_id(),
            "user": user,
            "sender": None,
            "source": "web",
            "created_at": NOW + timedelta(seconds=len(self.chats)),
            "role": role,
            "model": "org/model",
            "endpoint": "up",
            "messages": [{"role": "user", "content": text}],
            "response": "An answer.",
            "state": "complete",
            "strategy": strategy,
        }
        self.chats.append({**row, **more})
        return row["id"]

    def judge(self, chat, rating=None, *, correction=None, user="ann", consent=True):
        moment = NOW + timedelta(days=1, seconds=len(self.judgements))
        self.judgements.append({
            "id": new_id(), "interaction_id": chat, "user": user, "created_at": moment, "rating": rating,
            "correction": correction, "comment": None, "preferred_over": None, "consent": consent,
        })  # fmt: skip

    def store(self):
        with self.database.transaction() as connection:
            connection.execute(interactions.insert(), self.chats)
            connection.execute(feedback.insert(), self.judgements)

    def outcomes(self):
        self.store()
        with self.database.read() as connection:
            return list(read_outcomes(connection))


@pytest.fixture
def log(database):
    return Log(database)


@pytest.mark.parametrize(
    ("judgements", "is_good"),
    [
        ([(5, None)], True),
        ([(4, None)], True),
        ([(2, None)], False),
        ([(None, "better")], False),
        ([(3, "better")], False),
        ([(1, None), (5, None)], True),
        ([(5, None), (1, None)], False),
        ([(3, None)], None),
        ([(5, "better")], None),
        ([(None, None)], None),
    ],
)
def test_what_people_thought_is_good_or_bad_or_left_out(log, judgements, is_good):
    chat = log.chat()
    for rating, correction in judgements:
        log.judge(chat, rating, correction=correction)
    assert [outcome.is_good for outcome in log.outcomes()] == ([] if is_good is None else [is_good])


def test_answers_that_say_nothing_of_one_role_are_left_out(log):
    for strategy in (None, "single"):
        log.judge(log.chat(strategy=strategy), 5)
    for more in (
        {"role": None},
        {"source": "device"},
        {"state": "cut"},
        {"strategy": "vote"},
        {"strategy": "calculate"},
    ):
        log.judge(log.chat(**more), 5)
    log.chat()
    assert len(log.outcomes()) == 2


@pytest.mark.postgres
def test_postgres_reads_the_same_outcomes(postgres_database):
    test_answers_that_say_nothing_of_one_role_are_left_out(Log(postgres_database))
    test_nothing_is_learnt_from_who_does_not_consent(Log(postgres_database), before=2)


def test_nothing_is_learnt_from_who_does_not_consent(log, before=0):
    withdrawn, of_another, by_sender = log.chat(), log.chat(), log.chat(sender="app")
    log.judge(log.chat(), 5, consent=False)
    log.judge(withdrawn, 5)
    log.judge(withdrawn, consent=False)
    log.judge(of_another, 5, user="admin")
    log.judge(by_sender, 5, user="app")
    assert len(log.outcomes()) == before + 1


def test_outcome_has_the_features_of_its_question(log):
    log.judge(log.chat(text=GERMAN, user="bea"), 1, user="bea")
    (found,) = log.outcomes()
    named = dict(zip(FEATURE_NAMES, found.features, strict=True))
    assert (found.role, found.user, named["german"], named["code"]) == ("specialist", "bea", 1, 1)


def test_heavy_user_weighs_more_but_not_as_much_as_all_they_say():
    outcomes = [Outcome((), "primary", True, user="heavy")] * 100 + [Outcome((), "primary", True, user="light")]
    found = weigh(outcomes)
    heavy = sum(outcome.weight for outcome in found if outcome.user == "heavy")
    assert heavy / found[-1].weight == pytest.approx(10)
    assert sum(outcome.weight for outcome in found) == pytest.approx(101)


def test_no_user_is_on_both_sides_and_few_users_are_split_by_time():
    many = [Outcome((), "primary", True, user=f"u{at % 30}") for at in range(300)]
    training, test, way = split(many, seed=1)
    assert way == "users"
    assert not {outcome.user for outcome in training} & {outcome.user for outcome in test}
    assert (len(training), len(test)) == (240, 60)
    assert split(many, seed=1) == (training, test, way)
    few = [Outcome((float(at),), "primary", True, user=f"u{at % 3}") for at in range(100)]
    assert split(few, seed=1) == (few[:80], few[80:], "newest")


def fill(log, skill, *, users, each, seed=1):
    chance = random.Random(seed)
    for user in (f"user{at}" for at in range(users)):
        for _ in range(each):
            text, role = chance.choice([GERMAN, ENGLISH]), chance.choice(list(GOOD_AT))
            is_good = chance.random() < skill(text, role)
            log.judge(log.chat(text=text, role=role, user=user), 5 if is_good else 1, user=user)
    log.store()


def bad_at_german(text, role):
    return 0.1 if (text, role) == (GERMAN, "specialist") else 0.9


@pytest.mark.parametrize(("users", "each", "held_out"), [(40, 10, "users"), (1, 400, "newest")])
def test_router_that_knows_better_is_saved_and_routes(log, database, tmp_path, users, each, held_out):
    fill(log, bad_at_german, users=users, each=each)
    path = tmp_path / "router.json"
    learnt = learn_router(database, path, now=NOW)
    assert learnt.saved, learnt.reason
    assert (learnt.outcomes, learnt.users, learnt.held_out) == (400, users, held_out)
    assert (learnt.trained, learnt.tested) == (320, 80)
    assert learnt.score.log_loss < min(learnt.score.by_role, learnt.score.by_request)
    assert learnt.score.auc > 0.7
    assert learnt.choices.same_liked > 0.7 > learnt.choices.other_liked
    classifier = load(path)
    assert classifier.trained_at == NOW
    for text, role in ((GERMAN, "primary"), (ENGLISH, "specialist")):
        signals = read_signals([{"role": "user", "content": text}])
        found = route(signals, good_at=GOOD_AT, served=list(GOOD_AT), strategies={}, classifier=classifier)
        assert found.role == role


@pytest.mark.parametrize(
    ("skill", "why"),
    [
        (lambda _text, _role: 0.6, "how often each role is liked"),
        (lambda text, _role: 0.9 if text == GERMAN else 0.2, "equally good"),
    ],
)
def test_router_is_not_saved_where_the_roles_are_alike(log, database, tmp_path, skill, why):
    fill(log, skill, users=40, each=10)
    learnt = learn_router(database, tmp_path / "router.json", now=NOW)
    assert not learnt.saved
    assert why in learnt.reason
    assert learnt.score is not None
    assert not (tmp_path / "router.json").exists()


def test_router_says_what_is_missing_to_learn(log, database, tmp_path):
    assert "0 judged answers" in learn_router(database, tmp_path / "r.json", now=NOW).reason
    fill(log, bad_at_german, users=2, each=40)
    assert (
        "64 judged answers to learn from and 16 to try" in learn_router(database, tmp_path / "r.json", now=NOW).reason
    )


def test_one_role_alone_teaches_nothing(log, database, tmp_path):
    for at in range(200):
        log.judge(log.chat(), 5 if at % 2 else 1)
    log.store()
    learnt = learn_router(database, tmp_path / "r.json", now=NOW)
    assert (learnt.saved, learnt.by_role) == (False, {"specialist": 200})
    assert "Fewer than two roles" in learnt.reason


def test_learning_again_gives_the_same(log, database, tmp_path):
    fill(log, bad_at_german, users=40, each=10)
    first = learn_router(database, tmp_path / "a.json", now=NOW)
    assert learn_router(database, tmp_path / "b.json", now=NOW) == first
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
