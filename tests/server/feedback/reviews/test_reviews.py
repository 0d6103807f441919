"""Records that people should look at, and what they decide."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from tests.server.feedback.reviews.reviewing import (
    ANN,
    BEN,
    CLEO,
    DAN,
    DATASET,
    NEXT_DATASET,
    QUESTION,
    decided,
    erase,
    in_threads,
    judge,
    judged,
    open_review,
    queued,
    say,
    suspect,
    suspicion,
)

from everswarm.errors import NotFoundError
from everswarm.schemas.interaction import JudgedInteraction
from everswarm.schemas.review import DecisionRequest
from everswarm.server.database import Database
from everswarm.server.feedback import store_batch
from everswarm.server.feedback.repository import insert_feedback
from everswarm.server.feedback.reviews.service import (
    decide,
    find_review,
    outcome,
    sample_doubtful,
)
from everswarm.server.feedback.tables import feedback, review_decisions


def test_suspicion_is_queued_with_what_was_said_and_why(database: Database):
    id_ = judged(database, rating=2, correction="Under the oak.")
    assert suspect(database, suspicion(id_, reason="planted phrase", score=0.75)) == 1
    (review,) = queued(database).reviews
    assert (review.interaction_id, review.user, review.response) == (id_, ANN.user, "In the cave.")
    assert [turn.content for turn in review.messages] == ["Where is the treasure?"]
    assert (review.correction, review.rating) == ("Under the oak.", 2)
    assert (review.reason, review.score, review.campaign) == ("planted phrase", 0.75, "c-1")
    assert (review.detail, review.dataset) == ("2,000 within an hour", DATASET)
    assert (review.state, review.decided_at, review.decisions) == ("open", None, [])
    assert find_review(database, review.id) == review


def test_interaction_is_queued_once_and_an_open_review_says_the_newest_reason(database: Database):
    id_ = judged(database, rating=5)
    assert suspect(database, suspicion(id_), suspicion(id_, reason="near copies", score=0.9)) == 1
    (first,) = queued(database).reviews
    assert (first.reason, first.score) == ("near copies", 0.9)
    say(database, BEN, first.id, "reject")
    assert suspect(database, suspicion(id_, detail="3,000 within an hour", score=0.4), dataset=NEXT_DATASET) == 0
    (again,) = queued(database).reviews
    assert (again.id, again.created_at) == (first.id, first.created_at)
    assert (again.reason, again.score, again.detail) == ("burst", 0.4, "3,000 within an hour")
    assert again.dataset == NEXT_DATASET
    assert len(again.decisions) == 1


def test_decided_review_stays_as_it_is_when_its_interaction_is_suspected_again(database: Database):
    id_ = open_review(database)
    for reviewer in (BEN, CLEO):
        decision = say(database, reviewer, id_, "accept")
    assert suspect(database, suspicion(decision.interaction_id, reason="disagreement"), dataset=NEXT_DATASET) == 0
    assert find_review(database, id_) == decision


def test_doubtful_review_becomes_a_suspicious_one_when_curation_suspects_it(database: Database):
    id_ = judged(database, rating=3)
    sample_doubtful(database, limit=9)
    suspect(database, suspicion(id_))
    assert [review.reason for review in queued(database).reviews] == ["burst"]


def test_suspicions_about_erased_interactions_are_passed_over(database: Database):
    kept, erased = judged(database, rating=5), judged(database, rating=5)
    erase(database, erased)
    assert suspect(database, suspicion(erased), suspicion(kept), suspicion("never-there")) == 1
    assert [review.interaction_id for review in queued(database).reviews] == [kept]


def test_more_suspicions_than_one_statement_takes_are_all_stored_once(database: Database):
    records = [
        JudgedInteraction.model_validate(
            {"id": f"i-{number}", "device_id": "d", "timestamp": 0, "messages": QUESTION, "rating": 5}
        )
        for number in range(1_100)
    ]
    store_batch(database, records, source="import")
    everything = [suspicion(record.id) for record in records]
    assert (suspect(database, *everything), suspect(database, *everything)) == (1_100, 0)
    assert queued(database).open == 1_100


def test_campaign_and_detail_that_a_database_cannot_hold_are_cut_to_what_it_can(database: Database):
    id_ = judged(database, rating=5)
    suspect(database, suspicion(id_, campaign="c" * 100, detail="nul\x00here"))
    (review,) = queued(database).reviews
    assert (review.campaign, review.detail) == ("c" * 64, "nulhere")


def test_queue_shows_the_highest_score_first_and_what_the_reviewer_decided_last(database: Database):
    scores = {open_review(database, score=score): score for score in (0.2, 0.9, 0.5)}
    highest = max(scores, key=lambda id_: scores[id_])
    assert [review.score for review in queued(database).reviews] == [0.9, 0.5, 0.2]
    say(database, BEN, highest, "accept")
    assert [review.score for review in queued(database).reviews] == [0.5, 0.2, 0.9]
    assert [review.score for review in queued(database, reviewer=CLEO.user).reviews] == [0.9, 0.5, 0.2]
    assert [review.score for review in queued(database, limit=1).reviews] == [0.5]


def test_queue_is_filtered_by_state_and_reason_and_counts_everything(database: Database):
    accepted, disputed = open_review(database), open_review(database)
    open_review(database, reason="near copies")
    for reviewer, other in ((BEN, "accept"), (CLEO, "reject")):
        say(database, reviewer, accepted, "accept")
        say(database, reviewer, disputed, other)
    found = queued(database, state="accepted")
    assert (found.open, found.accepted, found.rejected, found.disputed) == (1, 1, 0, 1)
    assert [review.id for review in found.reviews] == [accepted]
    assert [review.id for review in queued(database, state="disputed", reason="burst").reviews] == [disputed]
    assert queued(database, reason="burst").reviews == []
    assert [review.reason for review in queued(database, reason="near copies").reviews] == ["near copies"]


def test_empty_queue_has_no_agreement_to_show(database: Database):
    assert queued(database).model_dump() == {
        "open": 0,
        "accepted": 0,
        "rejected": 0,
        "disputed": 0,
        "agreement": {
            "reviewed": 0,
            "reviewed_by_several": 0,
            "agreeing_share": None,
            "krippendorff_alpha": None,
        },
        "reviews": [],
    }


def test_agreement_counts_the_latest_verdicts_of_several_reviewers(database: Database):
    ids = [open_review(database) for _ in range(5)]
    for id_, of_ben, of_cleo in zip(ids, ("accept", "reject", "accept", "accept"), (*"ar", *"ra"), strict=False):
        say(database, BEN, id_, of_ben)
        say(database, CLEO, id_, {"a": "accept", "r": "reject"}[of_cleo])
    say(database, BEN, ids[4], "accept")
    found = queued(database).agreement
    assert (found.reviewed, found.reviewed_by_several, found.agreeing_share) == (5, 4, 0.75)
    assert found.krippendorff_alpha == pytest.approx(1 - (2 / 8) / (30 / 56))
    say(database, CLEO, ids[2], "accept")
    assert queued(database).agreement.agreeing_share == 1


def test_review_stays_open_until_as_many_have_decided_as_the_settings_ask(database: Database):
    id_ = open_review(database)
    assert say(database, BEN, id_, "accept").state == "open"
    assert decided(database) == {}
    review = say(database, CLEO, id_, "accept", "fine")
    assert (review.state, decided(database)) == ("accepted", {review.interaction_id: "accepted"})
    assert review.decided_at is not None and review.decided_at >= review.created_at
    assert [(said.reviewer, said.verdict, said.comment) for said in review.decisions] == [
        (BEN.user, "accept", None),
        (CLEO.user, "accept", "fine"),
    ]
    assert find_review(database, id_) == review


def test_one_admin_alone_decides_where_the_settings_ask_for_one(database: Database):
    id_ = open_review(database)
    assert decide(database, BEN, id_, DecisionRequest(verdict="reject"), reviewers=1).state == "rejected"
    assert list(decided(database).values()) == ["rejected"]


def test_reviewers_who_disagree_leave_it_disputed_until_two_thirds_are_of_one_mind(database: Database):
    id_ = open_review(database)
    say(database, BEN, id_, "accept")
    disputed = say(database, CLEO, id_, "reject")
    assert (disputed.state, disputed.decided_at, decided(database)) == ("disputed", None, {})
    review = say(database, DAN, id_, "reject")
    assert (review.state, decided(database)) == ("rejected", {review.interaction_id: "rejected"})


def test_changed_mind_is_traced_and_opens_a_decided_review(database: Database):
    id_ = open_review(database)
    say(database, BEN, id_, "accept")
    say(database, CLEO, id_, "accept")
    changed = say(database, BEN, id_, "reject", "looked again")
    assert (changed.state, changed.decided_at, decided(database)) == ("disputed", None, {})
    agreed = say(database, CLEO, id_, "reject")
    assert agreed.state == "rejected"
    assert [(said.reviewer, said.verdict) for said in agreed.decisions] == [
        (BEN.user, "accept"),
        (CLEO.user, "accept"),
        (BEN.user, "reject"),
        (CLEO.user, "reject"),
    ]
    moments = [said.created_at for said in agreed.decisions]
    assert moments == sorted(set(moments))


def test_latest_decision_counts_even_where_the_clock_went_back(database: Database):
    id_ = open_review(database)
    say(database, BEN, id_, "accept")
    ahead = datetime(2100, 1, 1, tzinfo=UTC)
    with database.transaction() as connection:
        connection.execute(sa.update(review_decisions).values(created_at=ahead))
    assert [said.verdict for said in say(database, BEN, id_, "reject").decisions] == ["accept", "reject"]
    assert say(database, CLEO, id_, "reject").state == "rejected"


def test_decision_that_is_sent_again_adds_nothing(database: Database):
    id_ = open_review(database)
    first = say(database, BEN, id_, "accept", "fine")
    assert say(database, BEN, id_, "accept", "fine") == first
    assert len(say(database, BEN, id_, "accept", "more words").decisions) == 2


def test_further_vote_of_the_same_mind_keeps_the_moment_of_the_decision(database: Database):
    id_ = open_review(database)
    say(database, BEN, id_, "accept")
    first = say(database, CLEO, id_, "accept")
    assert say(database, DAN, id_, "accept").decided_at == first.decided_at


def test_unknown_or_erased_review_says_where_to_look(database: Database):
    id_ = open_review(database)
    interaction_id = find_review(database, id_).interaction_id
    erase(database, interaction_id)
    with pytest.raises(NotFoundError, match="GET /api/reviews"):
        say(database, BEN, id_, "accept", "secret words")
    with pytest.raises(NotFoundError, match=r"There is no review 'nothing'"):
        find_review(database, "nothing")


def test_two_who_decide_at_the_same_moment_both_count(database: Database):
    for _ in range(5):
        id_ = open_review(database)
        found = in_threads(
            lambda review_id=id_: say(database, BEN, review_id, "accept"),
            lambda review_id=id_: say(database, CLEO, review_id, "accept"),
        )
        assert sorted(review.state for review in found) == ["accepted", "open"]
        assert find_review(database, id_).state == "accepted"


def test_two_cycles_that_suspect_the_same_at_the_same_moment_open_one_review(database: Database):
    ids = [judged(database, rating=5) for _ in range(20)]
    there, back = [suspicion(id_) for id_ in ids], [suspicion(id_) for id_ in reversed(ids)]
    found = in_threads(lambda: suspect(database, *there), lambda: suspect(database, *back))
    assert sum(found) == 20
    assert queued(database).open == 20


@pytest.mark.parametrize(
    ("votes", "reviewers", "expected"),
    [
        ("", 1, "open"),
        ("a", 1, "accepted"),
        ("ar", 1, "disputed"),
        ("arr", 1, "rejected"),
        ("a", 2, "open"),
        ("ar", 2, "disputed"),
        ("aar", 2, "accepted"),
        ("aarr", 2, "disputed"),
        ("aaarr", 2, "disputed"),
        ("aaaarr", 2, "accepted"),
        ("aar", 3, "disputed"),  # as many as must agree, and they do not
        ("rrra", 3, "rejected"),
    ],
)
def test_outcome_of_the_votes(votes: str, reviewers: int, expected: str):
    assert outcome([{"a": "accept", "r": "reject"}[vote] for vote in votes], reviewers=reviewers) == expected


@given(st.lists(st.sampled_from(["accept", "reject"]), max_size=12), st.integers(1, 5))
def test_outcome_takes_no_side(votes: list[Any], reviewers: int):
    mirrored: list[Any] = ["reject" if vote == "accept" else "accept" for vote in reversed(votes)]
    names = {"accepted": "rejected", "rejected": "accepted", "open": "open", "disputed": "disputed"}
    assert outcome(mirrored, reviewers=reviewers) == names[outcome(votes, reviewers=reviewers)]


def imported(database: Database, **values: Any) -> str:
    fields = {"id": "i-1", "device_id": "d", "timestamp": 0, "messages": QUESTION, "response": "In the cave."}
    record = JudgedInteraction.model_validate({**fields, **values})
    store_batch(database, [record], source="import")
    with database.transaction() as connection:
        weak = {"judge_score": record.judge_score, "copied": record.copied, "regenerated": record.regenerated}
        connection.execute(sa.update(feedback).values(liked=record.liked, **weak))
    return record.id


@pytest.mark.parametrize(
    ("values", "detail"),
    [
        ({"rating": 4, "liked": False}, "It has a thumb down, and is rated 4 or 5."),
        ({"rating": 5, "correction": "No."}, "It is rated 5, and corrected."),
        ({"rating": 4, "correction": "No."}, "It is rated 4, and corrected."),
        ({"rating": 1, "judge_score": 0.9}, "A model judged it good, a person bad."),
        ({"rating": 5, "judge_score": 0.1}, "A model judged it bad, a person good."),
        ({"rating": 4, "regenerated": True}, "It is rated 4 or 5, and another answer was asked for."),
        ({"rating": 2, "copied": True}, "It is rated 1 or 2, and was copied."),
        ({"rating": 3}, "It is rated 3: neither good nor bad."),
        ({"rating": 3, "response": None}, None),
        ({"rating": 3, "response": ""}, None),
        ({"rating": 1, "correction": "No."}, None),
        ({"rating": 5, "liked": True, "copied": True, "judge_score": 0.9}, None),
        ({"rating": 3, "consent": False}, None),
    ],
)
def test_judgements_that_contradict_themselves_or_say_little_are_doubtful(
    database: Database, values: dict[str, Any], detail: str | None
):
    imported(database, **{"consent": True, **values})
    assert sample_doubtful(database, limit=9).added == (detail is not None)
    found = queued(database, reason="doubt").reviews
    assert [review.detail for review in found] == ([] if detail is None else [detail])
    assert all(0 < review.score < 1 and review.dataset is None and review.campaign is None for review in found)


def test_ratings_that_differ_by_three_or_more_are_doubtful(database: Database):
    judged(database, also=[{"rating": 1}], rating=5)
    judged(database, also=[{"rating": 5}], rating=2)
    judged(database, also=[{"rating": 4}], rating=2)
    sample_doubtful(database, limit=9)
    assert [review.detail for review in queued(database).reviews] == [
        "It is rated 1 and 5.",
        "Two ratings of it differ by 3.",
    ]


def test_rating_that_was_taken_back_contradicts_no_correction(database: Database):
    judged(database, also=[{"rating": 4}], rating=2, correction="No.")
    assert sample_doubtful(database, limit=9).added == 0


def test_correction_of_the_swarm_is_no_contradiction_and_is_shown_where_no_person_gave_one(database: Database):
    id_ = judged(database, rating=4)
    row = {"id": "s", "interaction_id": id_, "user": "swarm", "created_at": datetime.now(UTC), "consent": False}
    with database.transaction() as connection:
        insert_feedback(connection, [row | {"correction": "The swarm's.", "author": "swarm"}])
    assert sample_doubtful(database, limit=9).added == 0
    suspect(database, suspicion(id_))
    assert [review.correction for review in queued(database).reviews] == ["The swarm's."]
    judge(database, id_, correction="A person's.", rating=1)
    assert [(review.correction, review.rating) for review in queued(database).reviews] == [("A person's.", 1)]


def test_sample_takes_the_most_doubtful_first_and_never_twice(database: Database):
    judged(database, rating=3)
    newer = judged(database, rating=3)
    worst = judged(database, rating=5, correction="No.")
    begun = datetime.now(UTC)
    assert sample_doubtful(database, limit=2).added == 2
    assert [review.interaction_id for review in queued(database).reviews] == [worst, newer]
    assert all(begun <= review.created_at <= datetime.now(UTC) for review in queued(database).reviews)
    assert [sample_doubtful(database, limit=2).added for _ in range(2)] == [1, 0]


def test_interaction_with_a_review_is_not_sampled_again(database: Database):
    id_ = judged(database, rating=3)
    suspect(database, suspicion(id_))
    assert sample_doubtful(database, limit=9).added == 0
    assert [review.reason for review in queued(database).reviews] == ["burst"]


def test_withdrawn_consent_keeps_what_was_said_from_reviewers(database: Database):
    id_ = judged(database, rating=3)
    judge(database, id_, comment="do not use it", consent=False)
    assert sample_doubtful(database, limit=9).added == 0


def test_text_of_the_reviews_is_sealed_in_the_database(database: Database):
    id_ = open_review(database, detail="the words 'blue moon' everywhere")
    say(database, BEN, id_, "reject", "it says blue moon")
    with database.read() as connection:
        stored = [
            bytes(connection.execute(sa.text(statement)).scalar_one())
            for statement in ("SELECT detail FROM reviews", "SELECT comment FROM review_decisions")
        ]
    assert not any(b"blue moon" in text for text in stored)
