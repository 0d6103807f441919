"""Teachers' views over the student's tokens: exact where both cut alike, chunks elsewhere, the mean of several."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from everswarm.training.distillation.alignment import LONGEST_CHUNK_TOKENS, Aligned, View, align
from everswarm.training.distillation.scored_text import END_OF_TURN, ScoredText

STUDENT = [b"un", b"believ", b"able", b"!", b"unbeliev", b" x", END_OF_TURN]  # the index is the token's id
LN = np.log


def scored(
    pieces: Sequence[bytes],
    candidates: Sequence[dict[bytes, float]] | None = None,
    *,
    logprob: Sequence[float] | None = None,
    ended: bool = False,
) -> ScoredText:
    """A text in the teacher's `pieces`, each with its candidates; the tail is what they leave."""
    count = len(pieces) + ended
    told = list(candidates or [{}] * count)
    vocabulary = sorted({piece for row in told for piece in row})
    k = max((len(row) for row in told), default=0)
    top, top_logprob = np.full((count, k), -1, dtype=np.int32), np.full((count, k), -np.inf, dtype=np.float32)
    for row, places in enumerate(told):
        best = sorted(places, key=lambda piece: -places[piece])
        top[row, : len(best)] = [vocabulary.index(piece) for piece in best]
        top_logprob[row, : len(best)] = [LN(places[piece]) for piece in best]
    with np.errstate(divide="ignore"):
        tail = LN([max(1 - sum(row.values()), 0.0) for row in told]).astype(np.float32)
    ends = np.cumsum([len(piece) for piece in pieces])
    return ScoredText(
        id="example-1",
        source="target",
        text=b"".join(pieces),
        ended=ended,
        end=np.append(ends, ends[-1:] if ended else []).astype(np.int32),
        logprob=np.asarray(logprob if logprob is not None else [-1.0] * count, dtype=np.float32),
        vocabulary=vocabulary,
        top=top,
        top_logprob=top_logprob,
        tail_logprob=tail,
    )


def view(text: ScoredText, weight: float = 1.0) -> View:
    ids = [STUDENT.index(piece) if piece in STUDENT else -1 for piece in text.vocabulary]
    return View(text, np.asarray(ids, dtype=np.int64), np.asarray(ids, dtype=np.int64), weight)


def over(pieces: Sequence[bytes], *views: View, ended: bool = False) -> Aligned:
    return align(views, np.cumsum([len(piece) for piece in pieces]).astype(np.int32), ended=ended)


def distribution(found: Aligned, row: int) -> dict[int, float]:
    """The candidates of a token with their probabilities; -1 is the tail."""
    real = found.top_logprobs[row] > -np.inf
    told = zip(found.top_ids[row][real].tolist(), np.exp(found.top_logprobs[row][real]).tolist(), strict=True)
    return {**dict(told), -1: float(np.exp(found.tail_logprob[row]))}


def test_tokens_that_both_cut_alike_carry_the_whole_distribution() -> None:
    teacher = scored([b"un", b"believ"], [{b"un": 0.6, b"able": 0.3}, {b"believ": 0.9}])
    found = over([b"un", b"believ"], view(teacher))
    assert found.exact.tolist() == [True, True]
    assert found.chunk.tolist() == [-1, -1]
    assert distribution(found, 0) == pytest.approx({0: 0.6, 2: 0.3, -1: 0.1}, abs=1e-6)
    assert distribution(found, 1) == pytest.approx({1: 0.9, -1: 0.1}, abs=1e-6)


def test_candidate_that_the_student_has_no_token_for_goes_to_the_tail() -> None:
    teacher = scored([b"un"], [{b"foreign": 0.5, b"un": 0.3}])
    assert distribution(over([b"un"], view(teacher)), 0) == pytest.approx({0: 0.3, -1: 0.7}, abs=1e-6)


def test_token_without_a_candidate_for_the_student_is_silent() -> None:
    teacher = scored([b"un"], [{b"foreign": 0.9}])
    found = over([b"un"], view(teacher))
    assert np.isneginf(found.top_logprobs).all()
    assert np.isneginf(found.tail_logprob).all()


def test_pieces_cut_differently_become_a_chunk_with_the_likelihood_of_its_bytes() -> None:
    teacher = scored([b"unbeliev", b"able", b"!"], [{b"un": 0.2, b"unbeliev": 0.5}, {b"able": 0.9}, {b"!": 0.8}],
                     logprob=[-0.7, -0.1, -0.2])  # fmt: skip
    found = over([b"un", b"believ", b"able", b"!"], view(teacher))
    assert found.exact.tolist() == [False, False, True, True]
    assert found.chunk.tolist() == [0, 0, -1, -1]
    assert found.chunk_logprob.tolist() == pytest.approx([-0.7])
    assert found.first.tolist() == [True, False, False, False]
    assert distribution(found, 0) == pytest.approx({4: 0.5, 0: 0.2, -1: 0.3}, abs=1e-6)
    assert np.isneginf(found.top_logprobs[1]).all()


def test_student_that_joins_what_the_teacher_cuts_gets_the_product() -> None:
    teacher = scored([b"un", b"believ", b"able"], logprob=[-1.0, -0.5, -0.1])
    found = over([b"unbeliev", b"able"], view(teacher))
    assert found.chunk.tolist() == [0, -1]
    assert found.chunk_logprob.tolist() == pytest.approx([-1.5])


def test_end_of_turn_is_compared_whatever_it_is_called() -> None:
    teacher = scored([b"un"], [{b"un": 0.9}, {END_OF_TURN: 0.7, b" x": 0.2}], ended=True)
    found = over([b"un"], view(teacher), ended=True)
    assert found.exact.tolist() == [True, True]
    assert distribution(found, 1) == pytest.approx({6: 0.7, 5: 0.2, -1: 0.1}, abs=1e-6)


def test_end_of_turn_that_the_teacher_has_not_scored_is_silent() -> None:
    teacher = scored([b"un"], [{b"un": 0.9}])
    found = over([b"un"], view(teacher), ended=True)
    assert found.exact.tolist() == [True, False]
    assert np.isneginf(found.top_logprobs[1]).all()


def test_what_a_shorter_view_does_not_cover_is_silent() -> None:
    found = over([b"un", b"believ", b"able"], view(scored([b"un", b"believ"], [{b"un": 0.9}, {b"believ": 0.9}])))
    assert found.exact.tolist() == [True, True, False]
    assert found.chunk.tolist() == [-1, -1, -1]


def test_teachers_are_averaged_in_probability_by_their_weights() -> None:
    one = scored([b"un"], [{b"un": 0.8, b"able": 0.1}], logprob=[LN(0.8)])
    two = scored([b"un"], [{b"un": 0.2, b"foreign": 0.5}], logprob=[LN(0.2)])
    found = over([b"un"], view(one, 3.0), view(two, 1.0))
    expected = {0: 0.75 * 0.8 + 0.25 * 0.2, 2: 0.75 * 0.1, -1: 0.75 * 0.1 + 0.25 * 0.8}
    assert distribution(found, 0) == pytest.approx(expected, abs=1e-6)


def test_teachers_that_cut_differently_are_averaged_over_what_all_have_in_common() -> None:
    one = scored([b"unbeliev", b"able"], logprob=[LN(0.4), -0.1])
    two = scored([b"un", b"believ", b"able"], logprob=[LN(0.5), LN(0.4), -0.1])
    found = over([b"un", b"believ", b"able"], view(one), view(two))
    assert found.exact.tolist() == [False, False, True]
    assert found.chunk.tolist() == [0, 0, -1]
    assert np.exp(found.chunk_logprob).tolist() == pytest.approx([0.5 * 0.4 + 0.5 * 0.2])


def test_candidates_of_the_same_bytes_are_one() -> None:
    text = scored([b"un"], [{b"un": 0.5, b"able": 0.2}])
    same = np.asarray([0, 0], dtype=np.int64)
    twice = View(text, same, same, 1.0)
    assert distribution(over([b"un"], twice), 0) == pytest.approx({0: 0.7, -1: 0.3}, abs=1e-6)


def test_first_token_is_looked_up_with_the_space_that_the_student_puts_in_front() -> None:
    text = scored([b"un", b"able"], [{b"un": 0.9}, {b"able": 0.9}])
    inside, after_space = np.asarray([2, 0], dtype=np.int64), np.asarray([-1, 5], dtype=np.int64)
    found = over([b"un", b"able"], View(text, inside, after_space, 1.0))
    assert distribution(found, 0) == pytest.approx({5: 0.9, -1: 0.1}, abs=1e-6)
    assert distribution(found, 1) == pytest.approx({2: 0.9, -1: 0.1}, abs=1e-6)


def test_chunk_that_is_too_long_to_say_much_is_left_to_the_text() -> None:
    letters = [b"a"] * (LONGEST_CHUNK_TOKENS + 1)
    found = over([*letters, b"!"], view(scored([b"".join(letters), b"!"])))
    assert set(found.chunk.tolist()) == {-1}
    assert found.exact.tolist()[-1]
    assert not found.chunk_logprob.size


@given(st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=12), min_size=2, max_size=4), st.data())
def test_every_token_is_exact_in_a_chunk_or_silent_and_mass_is_kept(cuts: list[list[int]], data: st.DataObject) -> None:
    total = min(sum(lengths) for lengths in cuts)
    text = bytes(data.draw(st.lists(st.integers(97, 122), min_size=total, max_size=total)))
    pieces = []
    for lengths in cuts:
        ends = [end for end in np.cumsum(lengths).tolist() if end <= total]
        pieces.append([text[start:end] for start, end in zip([0, *ends], ends, strict=False)])
    for parts in pieces:
        parts.append(text[sum(map(len, parts)) :])
    student, *teachers = [[part for part in parts if part] for parts in pieces]
    views = []
    for parts in teachers:
        told = [{part: 0.5, b"foreign": 0.25} for part in parts]
        seen = scored(parts, told, logprob=[LN(0.5)] * len(parts))
        ids = np.asarray([100 + index if piece in student else -1 for index, piece in enumerate(seen.vocabulary)])
        views.append(View(seen, ids, ids, 1.0))
    found = over(student, *views)
    assert not (found.exact & (found.chunk >= 0)).any()
    assert (found.exact | (found.chunk >= 0)).all()  # all end together, so nothing is left over
    speaks = found.top_logprobs[:, 0] > -np.inf
    mass = np.exp(found.top_logprobs).sum(axis=1) + np.exp(found.tail_logprob)
    assert mass[speaks] == pytest.approx(1.0, abs=1e-5)
    assert np.diff(found.chunk[found.chunk >= 0]).min(initial=0) >= 0
    assert len(found.chunk_logprob) == len(set(found.chunk.tolist()) - {-1})
    assert (found.chunk_logprob <= 1e-6).all()
