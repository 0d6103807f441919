"""The cache of soft targets: what comes back, what it costs on disk, and what is refused."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from everswarm.errors import NoSpaceError, StageFailedError
from everswarm.schemas.targets import Teacher
from everswarm.settings.teacher import TeacherSettings
from everswarm.training.distillation.scored_text import END_OF_TURN, ScoredText
from everswarm.training.distillation.target_shards import check_scored, read_shards, text_key, write_shard

np = pytest.importorskip("numpy", reason="needs the extra 'training'")
pa = pytest.importorskip("pyarrow", reason="needs the extra 'training'")
pq = pytest.importorskip("pyarrow.parquet", reason="needs the extra 'training'")

TEACHER = Teacher(
    asked=TeacherSettings(), model="tiny", revision="0" * 64, quantization="float32", template="ask-again-1"
)
AGAIN = "Label again, in a new cycle: everswarm cycle run"
WORDS = [END_OF_TURN, *(bytes([byte]) for byte in range(256)), *(f" {n}".encode() for n in range(3000))]


def scored(seed: int = 0, *, tokens: int = 6, k: int = 4, pads: int = 0, sharpness: float = 3.0) -> ScoredText:
    """Return what a teacher with random logits says of a random text; the last `pads` candidates are none."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(tokens, len(WORDS))) * sharpness
    logprob = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    top = np.argsort(-logprob, axis=1)[:, :k]
    own = rng.integers(1, len(WORDS), size=max(tokens - 1, 0)).tolist()
    top_logprob = np.take_along_axis(logprob, top, axis=1)
    top[:, k - pads :], top_logprob[:, k - pads :] = -1, -np.inf
    ends = np.cumsum([len(WORDS[number]) for number in own] + [0] * min(tokens, 1))
    return ScoredText(
        id=f"example-{seed}",
        source="target",
        text=b"".join(WORDS[number] for number in own),
        ended=tokens > 0,
        end=ends.astype(np.int32),
        logprob=logprob[np.arange(tokens), [*own, 0][:tokens]].astype(np.float32),
        vocabulary=WORDS,
        top=top.astype(np.int32),
        top_logprob=top_logprob.astype(np.float32),
        tail_logprob=np.log1p(-np.minimum(np.exp(top_logprob).sum(-1), 1 - 1e-9)).astype(np.float32),
    )


def text_only(answer: bytes = b"Paris.") -> ScoredText:
    """Return the answer of an endpoint that gives no log-probabilities."""
    none, no_rows = np.zeros(0, np.float32), np.zeros((0, 0), np.float32)
    return ScoredText(
        id="example-text",
        source="teacher",
        text=answer,
        ended=True,
        end=none.astype(np.int32),
        logprob=none,
        vocabulary=[],
        top=no_rows.astype(np.int32),
        top_logprob=no_rows,
        tail_logprob=none,
    )


def candidates(text: ScoredText) -> list[list[bytes | None]]:
    """Return each token's candidates by their bytes; None is a pad."""
    return [[text.vocabulary[number] if number >= 0 else None for number in row] for row in text.top.tolist()]


def refusal(*paths: Path, **asked: Any) -> str:
    """Return the text with which the shards are refused."""
    with pytest.raises(StageFailedError) as refused:
        list(read_shards(paths, **asked))
    return str(refused.value)


shapes = st.tuples(
    st.integers(0, 2**16), st.integers(0, 9), st.integers(0, 6), st.integers(0, 6), st.sampled_from([0.1, 2.0, 8.0])
)


@given(st.lists(shapes, max_size=5))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_was_written_comes_back_within_the_promised_error(
    tmp_path: Path, drawn: list[tuple[int, int, int, int, float]]
) -> None:
    texts = [
        scored(seed, tokens=tokens, k=k, pads=min(pads, k), sharpness=sharpness)
        for seed, tokens, k, pads, sharpness in drawn
    ]
    write_shard(texts, tmp_path / "a", teacher=TEACHER)
    back = list(read_shards([tmp_path / "a"], teacher=TEACHER))
    for text, read in zip(texts, back, strict=True):
        assert (read.id, read.source, read.text, read.ended) == (text.id, text.source, text.text, text.ended)
        assert read.end.tolist() == text.end.tolist()
        assert candidates(read) == (candidates(text) if text.tokens else [])
        np.testing.assert_allclose(read.logprob, text.logprob, rtol=0, atol=2**-11 + 1e-6)
        np.testing.assert_allclose(read.tail_logprob, text.tail_logprob, rtol=0, atol=2**-11 + 1e-6)
        if text.top_logprob.size:
            np.testing.assert_allclose(read.top_logprob, text.top_logprob, rtol=0, atol=2**-9 + 1e-6)
            np.testing.assert_allclose(read.top_logprob[:, 0], text.top_logprob[:, 0], rtol=0, atol=2**-11 + 1e-6)
        assert (np.diff(read.top_logprob[np.isfinite(read.top_logprob).all(-1)], axis=1) <= 0).all()
    write_shard(back, tmp_path / "b", teacher=TEACHER)
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()


def test_the_same_texts_give_the_same_bytes_whatever_their_vocabulary_is_called(tmp_path: Path) -> None:
    texts = [scored(seed) for seed in range(3)]
    turned = [replace(text, vocabulary=WORDS[::-1], top=len(WORDS) - 1 - text.top) for text in texts]
    for name, written in (("a", texts), ("b", texts), ("c", turned)):
        write_shard(written, tmp_path / name, teacher=TEACHER)
    assert len({(tmp_path / name).read_bytes() for name in "abc"}) == 1


def test_minus_infinity_survives_in_the_tail_and_in_pads(tmp_path: Path) -> None:
    text = scored(pads=1)
    text.tail_logprob[:] = -np.inf
    write_shard([text], tmp_path / "a", teacher=TEACHER)
    (back,) = read_shards([tmp_path / "a"])
    assert np.isneginf(back.tail_logprob).all()
    assert np.isneginf(back.top_logprob).tolist() == (text.top < 0).tolist() == (back.top < 0).tolist()


def test_a_rise_and_a_probability_above_one_that_are_rounding_are_cut_off(tmp_path: Path) -> None:
    text = scored(tokens=2, k=2)
    text.top_logprob[:] = [[5e-4, -9.0], [-1.0, -0.9995]]
    text.tail_logprob[:] = -10.0
    write_shard([text], tmp_path / "a", teacher=TEACHER)
    (back,) = read_shards([tmp_path / "a"])
    assert back.top_logprob.tolist() == [[0.0, -9.0], [-1.0, -1.0]]


def test_text_only_comes_back_beside_scored_texts(tmp_path: Path) -> None:
    write_shard([text_only(), scored(1)], tmp_path / "a", teacher=TEACHER)
    alone, after = read_shards([tmp_path / "a"], teacher=TEACHER)
    assert (alone.text, alone.source, alone.tokens, alone.top.shape) == (b"Paris.", "teacher", 0, (0, 0))
    assert candidates(after) == candidates(scored(1))


def test_shards_come_in_the_order_of_their_paths(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("b", "a")]
    for number, path in enumerate(paths):
        write_shard([scored(number)], path, teacher=TEACHER)
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    assert [text.id for text in read_shards(paths, teacher=TEACHER, digests=digests)] == ["example-0", "example-1"]


def test_a_stranger_with_the_docstring_can_read_the_file(tmp_path: Path) -> None:
    text = scored(3)
    write_shard([text], tmp_path / "a.parquet", teacher=TEACHER)
    told = pq.read_metadata(tmp_path / "a.parquet").metadata
    assert told[b"everswarm.format"] == b"soft-targets-2"
    assert Teacher.model_validate_json(told[b"everswarm.teacher"]) == TEACHER
    (row,) = pq.read_table(tmp_path / "a.parquet").to_pylist()
    k = len(row["candidate"]) // len(row["end_step"])
    assert [row["vocabulary"][number] for number in row["candidate"][:k]] == candidates(text)[0]
    first = -row["top_first"][0] / 1024 - sum(row["top_drop"][: k - 1]) / 256
    assert first == pytest.approx(float(text.top_logprob[0, -1]), abs=2**-9)
    assert list(itertools.accumulate(row["end_step"])) == text.end.tolist()
    identity = '{"model": "tiny", "quantization": "float32", "revision": "%s", "template": "ask-again-1"}' % ("0" * 64)
    key = hashlib.sha256(identity.encode() + b"\0" + row["text"]).digest()
    assert row["key"] == key == text_key(TEACHER, text.text)


def test_the_weight_of_an_opinion_is_no_part_of_a_rows_key() -> None:
    heavier = TEACHER.model_copy(update={"asked": TeacherSettings(weight=3.0)})
    assert text_key(heavier, b"Hi") == text_key(TEACHER, b"Hi")
    assert text_key(TEACHER.model_copy(update={"template": "other"}), b"Hi") != text_key(TEACHER, b"Hi")


def test_twenty_candidates_of_a_spread_out_teacher_stay_within_90_bytes_a_token(tmp_path: Path) -> None:
    texts = [scored(seed, tokens=110, k=20, sharpness=4.0) for seed in range(24)]
    write_shard(texts, tmp_path / "a", teacher=TEACHER)
    assert (tmp_path / "a").stat().st_size / sum(text.tokens for text in texts) <= 90


def with_numbers(name: str, place: object, value: float) -> ScoredText:
    """Return a good text of which a few numbers are others."""
    text = scored(tokens=3, k=3)
    getattr(text, name)[place] = value
    return text


NONSENSE = [
    ("its arrays have the shapes", replace(scored(), logprob=np.zeros(5, np.float32))),
    ("for 6 tokens", replace(scored(), top_logprob=np.zeros((6, 3), np.float32))),
    ("its tokens end before they begin", with_numbers("end", 1, 0)),
    ("its tokens end before they begin", with_numbers("end", 0, -1)),
    ("its tokens end at byte 99 of a text of", with_numbers("end", -1, 99)),
    ("its tokens end at byte 0 of a text of 1 bytes", replace(scored(tokens=1), text=b"a")),
    ("candidates that are not in its vocabulary of 3257", with_numbers("top", (0, 0), len(WORDS))),
    ("candidates that are not in its vocabulary of", with_numbers("top", (0, 2), -2)),
    ("it has a log-probability of nan", with_numbers("logprob", 1, np.nan)),
    ("it has a log-probability of -inf", with_numbers("logprob", 1, -np.inf)),
    ("a log-probability of -inf", with_numbers("top_logprob", (1, 2), -np.inf)),
    ("a log-probability of inf", with_numbers("tail_logprob", 1, np.inf)),
    ("a log-probability of nan", with_numbers("tail_logprob", 1, np.nan)),
    ("a log-probability of 0.002", with_numbers("logprob", 1, 0.002)),
    ("a log-probability of -1e+30", with_numbers("logprob", 1, -1e30)),
    ("it has a log-probability without a candidate", with_numbers("top", (1, 2), -1)),
    ("its candidates are not in order of probability", with_numbers("top_logprob", (1, 0), -30.0)),
    ("the probabilities of one token sum to 1.", with_numbers("tail_logprob", 1, 0.0)),
]


@pytest.mark.parametrize(("wrong", "text"), NONSENSE)
def test_nonsense_is_refused_before_it_is_cached(wrong: str, text: ScoredText, tmp_path: Path) -> None:
    with pytest.raises(StageFailedError) as refused:
        check_scored(text)
    assert f"What the teacher said of example '{text.id}' cannot be used: " in str(refused.value)
    assert wrong in str(refused.value)
    assert str(refused.value).endswith("use float32, or another quantization) and label again.")
    with pytest.raises(StageFailedError):
        write_shard([scored(), text], tmp_path / "a", teacher=TEACHER)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("column", "value", "wrong"),
    [
        ("logprob", -50, "it has a log-probability of 0.048"),
        ("tail_logprob", -2, "it has a log-probability of 0.00195"),
        ("end_step", -1, "its tokens end before they begin"),
        ("candidate", 4000, "it has candidates that are not in its vocabulary"),
        ("top_drop", -300, "its candidates are not in order of probability"),
        ("top_drop", None, "the candidates of example 'example-0' do not fit its 6 tokens. " + AGAIN),
    ],
)
def test_nonsense_that_another_program_wrote_is_refused(
    column: str, value: int | None, wrong: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.parquet"
    write_shard([scored()], path, teacher=TEACHER)
    table, told = pq.read_table(path), pq.read_metadata(path).metadata
    (row,) = table.to_pylist()
    row[column] = row[column][1:] if value is None else [value, *row[column][1:]]
    changed = pa.Table.from_pylist([row], schema=table.schema)
    with pq.ParquetWriter(path, changed.schema, store_schema=False) as writer:
        writer.write_table(changed)
        writer.add_key_value_metadata(told)
    assert refusal(path, teacher=TEACHER).startswith("a.parquet: ")
    assert wrong in refusal(path)


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_shard([scored()], path, teacher=TEACHER)
    whole = path.read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        assert "a.parquet is not a shard of soft targets, or was cut off or damaged: " in refusal(path)
        assert refusal(path).endswith("Fetch it again, or label again.")


def test_a_damaged_page_is_refused_even_without_a_digest(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_shard([scored(tokens=200, k=20)], path, teacher=TEACHER)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    path.write_bytes(damaged)
    assert "was cut off or damaged" in refusal(path)


def test_another_file_than_the_promised_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_shard([scored()], path, teacher=TEACHER)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    assert refusal(path, digests=["f" * 64]) == (
        f"a.parquet is not the shard that was promised: its sha256 is {found}, not {'f' * 64}. Fetch it again."
    )
    assert refusal(path, digests=[found, found]) == (
        "The record of the soft targets names 2 shards and 1 are here. Fetch them again."
    )
    assert refusal(tmp_path / "b.parquet") == ("b.parquet is not there. Fetch the soft targets again, or label again.")


def test_the_shard_of_another_teacher_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_shard([scored()], path, teacher=TEACHER)
    assert refusal(path, teacher=TEACHER.model_copy(update={"quantization": "float16"})) == (
        "a.parquet was scored by tiny (float32, ask-again-1, 000000000000), and what is asked for is "
        "tiny (float16, ask-again-1, 000000000000). " + AGAIN
    )


@pytest.mark.parametrize(
    ("told", "text"),
    [
        ({}, "a.parquet is not a shard of soft targets in the format 'soft-targets-2'. " + AGAIN),
        (
            {"everswarm.format": "soft-targets-3"},
            "a.parquet has the format 'soft-targets-3'; this everswarm reads 'soft-targets-2'. " + AGAIN,
        ),
        (
            {"everswarm.format": "soft-targets-2"},
            "a.parquet does not say which teacher scored it. " + AGAIN,
        ),
        (
            {"everswarm.format": "soft-targets-2", "everswarm.teacher": TEACHER.model_dump_json()},
            "a.parquet is not a shard of soft targets: its columns are others. " + AGAIN,
        ),
    ],
)
def test_another_parquet_file_is_refused(told: dict[str, str], text: str, tmp_path: Path) -> None:
    table = pa.table({"id": ["example-1"]}).replace_schema_metadata(told)
    pq.write_table(table, tmp_path / "a.parquet")
    assert refusal(tmp_path / "a.parquet", teacher=TEACHER) == text


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's device that is always full")
def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "a.parquet.part").symlink_to("/dev/full")
    with pytest.raises(NoSpaceError, match=r"is full\. Nothing was half-written; make room"):
        write_shard([scored()], tmp_path / "a.parquet", teacher=TEACHER)
    assert not list(tmp_path.iterdir())
