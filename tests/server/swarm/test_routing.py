"""Who answers, by rules."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from everswarm.server.swarm.classifier import Classifier, RoleWeights
from everswarm.server.swarm.routing import Route, route
from everswarm.server.swarm.signals import FEATURE_NAMES, Signals, read_signals

GOOD_AT = {"primary": [], "coordinator": ["planning", "parts"], "specialist": ["code", "mathematics"]}
NONE = (0.0,) * len(FEATURE_NAMES)
OFTEN = (100,) * len(FEATURE_NAMES)


def routed(text, **options) -> Route:
    signals = text if isinstance(text, Signals) else read_signals([{"role": "user", "content": text}])
    return route(signals, **{"good_at": GOOD_AT, "served": list(GOOD_AT), "strategies": {}, **options})


def likes(**biases) -> Classifier:
    """Return a classifier that likes each role by so much, whatever the question."""
    roles = {name: RoleWeights((*NONE, bias), 100, OFTEN) for name, bias in biases.items()}
    return Classifier((*NONE, 0.0), roles, datetime.now(UTC))


@pytest.mark.parametrize(
    ("text", "kind", "role"),
    [
        ("What is the capital of France?", "other", "primary"),
        ("Thanks, that was kind!", "conversation", "primary"),
        ("Why does this fail?\n```\nx = 1\n```", "code", "specialist"),
        ("Write a Python function that sorts a list", "code", "specialist"),
        ("def f(x): return x", "code", "specialist"),
        ("Plan a weekend in Rome", "planning", "coordinator"),
        ("1. book a room\n2. find a speaker\n3. invite people", "parts", "coordinator"),
        ("Who was Ada? Where did she live? What did she write?", "parts", "coordinator"),
        ("Ann had 12 apples and gave 5 away. How many are left?", "mathematics", "specialist"),
        ("What time is it?", "time", "primary"),
    ],
)
def test_swarm_chooses_by_the_question(text, kind, role):
    found = routed(text)
    assert (found.kind, found.role, found.strategy, found.is_sure) == (kind, role, "single", True)


def test_sum_is_calculated_unless_it_can_only_be_passed_on():
    assert routed("What is 12 * (3 + 4)?")[:4] == ("arithmetic", "primary", "calculate", "a sum")
    assert routed("What is 12 * (3 + 4)?", only_single=True).strategy == "single"


def test_strategy_is_that_of_the_settings_for_the_kind():
    asked = "Ann had 12 apples and gave 5 away. How many are left?"
    assert routed(asked, strategies={"mathematics": "vote"}).strategy == "vote"
    assert routed(asked, strategies={"mathematics": "vote"}, only_single=True).strategy == "single"
    assert routed(asked, strategies={"mathematics": "calculate"}).strategy == "single"
    assert routed("What is 12 * (3 + 4)?", strategies={"arithmetic": "vote"}).strategy == "vote"


def test_role_that_is_not_served_is_replaced_and_the_reason_says_so():
    found = routed("fix my Python", served=["coordinator", "primary"])
    assert found.role == "primary"
    assert found.reason == "code; the specialist, which is good at code, has no endpoint"
    assert routed("fix my Python", served=["coordinator"]).role == "coordinator"
    assert routed("fix my Python", served=[]).role == "primary"


def test_fourth_role_gets_what_it_is_good_at():
    good_at = {"poet": ["conversation", "code"], **GOOD_AT}
    assert routed("Hello there", good_at=good_at, served=list(good_at)).role == "poet"
    assert routed("fix my Python", good_at=good_at, served=list(GOOD_AT)).role == "specialist"


def test_lookups_are_what_the_answer_needs():
    assert routed("What time is it?").lookups == ("clock",)
    assert routed("What do my notes say about Rome?", has_documents=True).lookups == ("documents",)
    assert routed("What do my notes say about today's date?", has_documents=True).lookups == ("documents", "clock")
    assert routed("Plan a week from today's date on").lookups == ("clock",)
    assert routed("Write Python code that prints the current date").lookups == ()
    assert routed("What time is it?", only_single=True).lookups == ()


def test_documents_are_nothing_to_who_has_none():
    assert routed("What do my notes say about Rome?").kind == "other"
    assert routed("What do my notes say about Rome?", has_documents=True).kind == "documents"


def test_tool_that_is_wanted_wins_and_tools_of_a_client_only_where_nothing_else_is_seen():
    assert routed("fix my Python", tools_wanted=True).kind == "tools"
    own = {"content": "fix my Python", "role": "user"}
    assert routed(read_signals([own], wants_tools=True), only_single=True).kind == "code"
    own["content"] = "Order a pizza"
    assert routed(read_signals([own], wants_tools=True), only_single=True).kind == "tools"


def test_conflict_that_would_lead_elsewhere_is_unsure():
    asked = "Plan the refactoring: refactor the Python class, organise the milestones"
    found = routed(asked)
    assert (found.kind, found.role, found.is_sure) == ("code", "specialist", False)
    assert routed(asked, good_at={"primary": ["code", "planning"]}).is_sure
    both = "Write Python code: Ann had 12 apples and gave 5 away, how many are left?"
    assert routed(both).is_sure
    assert not routed(both, strategies={"mathematics": "vote"}).is_sure


@pytest.mark.parametrize(
    "text",
    [
        "Write a Python program that\n1. reads a file\n2. sorts it\n3. prints it",
        "First Ann pays 12 for her phone plan, then 5 for tea. How much money is left of 40?",
    ],
)
def test_what_belongs_to_a_kind_is_no_conflict(text):
    assert routed(text).is_sure


def test_rules_are_unsure_where_they_cannot_see():
    assert not routed("The old man walked along the river and thought of home. " * 15).is_sure
    assert not routed("Напиши мне что-нибудь о старом городе").is_sure
    turns = [
        {"role": "user", "content": "fix my Python"},
        {"role": "assistant", "content": "```python\nx\n```"},
        {"role": "user", "content": "and now faster"},
    ]
    assert not routed(read_signals(turns)).is_sure


def test_classifier_is_heeded_only_where_it_is_clear_and_never_for_a_sum():
    clear, slight = likes(primary=2.0, specialist=-1.0), likes(primary=0.3, specialist=0.0)
    found = routed("fix my Python", classifier=clear)
    assert found.role == "primary"
    assert found.reason == "code; such answers of the primary were liked more than those of the specialist"
    assert routed("fix my Python", classifier=slight).role == "specialist"
    assert routed("fix my Python", classifier=clear, served=["specialist"]).role == "specialist"
    assert "liked" not in routed("What is 12 * (3 + 4)?", classifier=likes(primary=-2.0, specialist=2.0)).reason
