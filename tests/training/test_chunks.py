from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
from benchmarks.distill.aligner import agreement, embedded_tokenizer, mistral_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.training.tokenizer_families import FAMILIES, any_text
from transformers import PreTrainedTokenizerBase

from everswarm.settings import load_settings
from everswarm.training.chat_tokens import answer_ids
from everswarm.training.distillation.chunks import common_chunks
from everswarm.training.distillation.token_bytes import token_bytes, token_ends

any_ends = st.lists(st.integers(0, 30), max_size=20).map(sorted)


def chunks_of(*ends: Sequence[int]) -> list[list[int]]:
    return [chunks.tolist() for chunks in common_chunks(*(np.asarray(end, dtype=np.int32) for end in ends))]


def plain_chunks(*ends: Sequence[int]) -> list[list[int]]:
    """The same, as one would say it."""
    common = sorted(set.intersection(*(set(end) for end in ends)))
    return [[sum(byte <= boundary for byte in end) for boundary in common] for end in ends]


@given(ends=st.lists(any_ends, min_size=1, max_size=4))
def test_chunks_are_those_of_the_plain_way(ends: list[list[int]]) -> None:
    assert chunks_of(*ends) == plain_chunks(*ends)


@given(ends=st.lists(any_ends, min_size=2, max_size=4))
def test_order_of_the_sequences_does_not_matter(ends: list[list[int]]) -> None:
    assert chunks_of(*reversed(ends)) == chunks_of(*ends)[::-1]


@given(ends=any_ends.map(lambda ends: sorted(set(ends))))
def test_text_cut_twice_in_the_same_way_gives_a_chunk_a_token(ends: list[int]) -> None:
    assert chunks_of(ends, ends) == [list(range(1, len(ends) + 1))] * 2


def test_chunks_of_one_word_cut_in_two_ways() -> None:
    # "un|bel|iev|able|!" and "unbel|ieva|ble|!"
    assert chunks_of([2, 5, 8, 12, 13], [5, 9, 12, 13]) == [[2, 4, 5], [1, 3, 4]]


def test_token_without_bytes_belongs_to_the_chunk_that_ends_at_or_behind_it() -> None:
    assert chunks_of([0, 3, 5], [3, 5]) == [[2, 3], [1, 2]]
    assert chunks_of([0, 3, 3, 5], [0, 3, 5, 5]) == [[1, 3, 4], [1, 2, 4]]


def test_what_follows_the_last_common_end_is_in_no_chunk() -> None:
    assert chunks_of([2, 4, 6], [2, 5]) == [[1], [1]]
    assert chunks_of([2, 4], []) == [[], []]
    assert common_chunks(np.zeros(0, np.int32), np.zeros(0, np.int32))[0].dtype == np.int64


def test_any_text_under_any_two_tokenizers_joins_back_from_minimal_chunks() -> None:
    check_texts([make() for make in FAMILIES.values()], max_examples=60)


@pytest.mark.model
def test_any_text_under_real_tokenizers_joins_back_from_minimal_chunks() -> None:
    real = [embedded_tokenizer(), mistral_tokenizer(load_settings().models_dir)]
    check_texts([*real, FAMILIES["llama 3"](), FAMILIES["gemma"]()], max_examples=150)


def check_texts(tokenizers: Sequence[PreTrainedTokenizerBase], *, max_examples: int) -> None:
    known = [(tokenizer, token_bytes(tokenizer)) for tokenizer in tokenizers]

    @settings(max_examples=max_examples, deadline=None)
    @given(text=any_text)
    def check(text: str) -> None:
        data = text.encode()
        all_ends = [token_ends(answer_ids(tokenizer, text), pieces, data) for tokenizer, pieces in known]
        for pair in [*combinations(all_ends, 2), tuple(all_ends)]:
            if all(len(ends) for ends in pair):
                assert_covers(pair, data)

    check()


def assert_covers(all_ends: Sequence[np.ndarray], data: bytes) -> None:
    chunks = common_chunks(*all_ends)
    cuts = [ends[upto - 1].tolist() for ends, upto in zip(all_ends, chunks, strict=True)]
    assert all(cut == cuts[0] for cut in cuts)
    assert cuts[0] == sorted(set(cuts[0]))
    assert b"".join(data[start:end] for start, end in zip([0, *cuts[0]], cuts[0], strict=False)) == data
    assert [upto[-1] for upto in chunks] == [len(ends) for ends in all_ends]
    inner = [set(ends.tolist()) - set(cuts[0]) for ends in all_ends]
    assert not set.intersection(*inner)


@pytest.mark.model
def test_nearly_every_english_token_of_mistral_is_one_of_smollm2() -> None:
    texts = ["The cake costs $11, so each of the 24 children pays less than half a dollar.", "She didn't know why."]
    agreed = agreement(mistral_tokenizer(load_settings().models_dir), embedded_tokenizer(), texts)
    assert agreed.mapped > 0.95
    assert agreed.tokens >= agreed.chunks > 0.8 * agreed.tokens
