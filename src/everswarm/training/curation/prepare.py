"""What can be said of one record without the others: whether it may be learnt from, and what the later steps compare.

A pure function of lines, rules and seed: the same for any batch, in any process.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import xxhash
from pydantic import ValidationError

from everswarm.errors import BadRequestError
from everswarm.schemas.dataset import FrozenInteraction, Source
from everswarm.settings import CurationRules
from everswarm.training.curation import language, quality, tasks
from everswarm.training.curation.marks import drop, drop_with, kept
from everswarm.training.curation.similarity import BANDS, MINIMA, as_columns, fingerprints
from everswarm.training.curation.words import ANY_WORD, Hashes, Words

_NUMBER = re.compile(r"\d+")
LIKED_RATING = 4  # from here on an answer without a correction is worth learning
DISLIKED_RATING = 2  # up to here an answer is undesirable

READ: dict[str, Any] = {
    "id": pl.String,
    "user": pl.String,
    "timestamp": pl.Datetime("us", "UTC"),
    "messages": pl.String,  # JSON
    "setting": pl.UInt64,  # of the last question: what was said before it, without regard to spelling, and its numbers
    "conversation": pl.String,  # all that was said before the answer
    "question": pl.String,  # the last message
    "characters": pl.Int64,  # of all messages
    "target": pl.String,
    "source": pl.String,
    "by_swarm": pl.Boolean,
    "response": pl.String,
    "better_than": pl.List(pl.String),
    "rating": pl.Int8,
    "liked": pl.Boolean,
    "judge_score": pl.Float64,
    "declared_language": pl.String,
    "consent": pl.Boolean,
    "looked_up": pl.Boolean,
    "review": pl.String,
    "rank": pl.UInt64,
}
NARROW: dict[str, Any] = {
    **{
        name: READ[name]
        for name in ("id", "user", "timestamp", "source", "by_swarm", "rating", "liked", "looked_up", "review", "rank")
    },
    "dropped": pl.String,
    "usable": pl.Boolean,  # may be looked at: with consent, of the right length, not turned down by reviewers
    "language": pl.String,
    "task": pl.String,
    "exact": pl.UInt64,
    "setting": pl.UInt64,
    "votes": pl.UInt8,  # answers that lost against this one
    "question_words": pl.UInt32,
    "target_words": pl.UInt32,
    "question_bands": pl.Array(pl.UInt64, BANDS),
    "question_sketch": pl.Array(pl.UInt8, MINIMA),
    "target_bands": pl.Array(pl.UInt64, BANDS),
    "target_sketch": pl.Array(pl.UInt8, MINIMA),
    "agreement": pl.Float32,
    "contaminated": pl.Boolean,
}
WIDE = ("messages", "target", "response", "better_than")


class Preparation(NamedTuple):
    """What `prepare` needs to know beside the lines; travels to other processes."""

    rules: CurationRules
    seed: int
    suite_hashes: Hashes  # sorted
    suite_words: int  # of one gram of the suites
    name: str  # of the file, for error messages


def prepare(lines: Sequence[bytes], first_number: int, preparation: Preparation) -> pl.DataFrame:
    """Return one row a line, with the columns of `NARROW` and `WIDE`.

    Args:
        lines: of a snapshot; blank ones are passed over.
        first_number: of the first line in its file.
        preparation: rules, seed, and what the evaluation suites are made of.

    Raises:
        BadRequestError: a line is no `FrozenInteraction`; names the line.
    """
    frame = _read(lines, first_number, preparation)
    frame = _drop_unusable(frame, preparation.rules)
    questions, targets = Words(_spelt(frame["question"])), Words(frame["target"])
    said = Words(frame["conversation"] + "\n" + frame["response"].fill_null(""))
    frame = frame.with_columns(
        language.languages(targets).alias("of_target"),
        language.languages(said).alias("of_question"),
        tasks.tasks(frame["question"]).alias("task"),
        quality.problems(frame["question"], frame["target"], targets).alias("problem"),
    )
    frame = _drop_by_language_and_quality(frame, preparation.rules)
    columns = {
        **as_columns(fingerprints(questions), "question"),
        **as_columns(fingerprints(targets), "target"),
        "question_words": pl.Series(questions.counts, dtype=pl.UInt32),
        "target_words": pl.Series(targets.counts, dtype=pl.UInt32),
        "agreement": _agreement(targets, said),
        "contaminated": _contains((questions, targets, said), preparation),
        "exact": _exact(frame),
        "votes": frame["better_than"].list.len().cast(pl.UInt8),
    }
    fits = pl.col("response").str.len_chars() <= preparation.rules.max_characters
    frame = frame.with_columns(response=pl.when(fits).then("response"))
    hidden = [pl.when("usable").then(pl.col(name)).alias(name) for name in WIDE]
    return frame.with_columns(**columns).with_columns(hidden).select(*NARROW, *WIDE)


def _read(lines: Sequence[bytes], first_number: int, preparation: Preparation) -> pl.DataFrame:
    rows = []
    for number, line in enumerate(lines, start=first_number):
        if not line.strip():
            continue
        try:
            record = FrozenInteraction.model_validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the line"
            raise BadRequestError(
                f"{preparation.name}, line {number}: {where}: {first['msg']}. Mend or remove the line, then start "
                "again."
            ) from error
        rows.append(_row(record, preparation.seed))
    return pl.DataFrame(rows, schema=READ, orient="row")


def _row(record: FrozenInteraction, seed: int) -> tuple[Any, ...]:
    """Return the values of `READ`, in its order."""
    target, source = target_of(record)
    contents = [message.content for message in record.messages]
    messages = [{"role": message.role, "content": message.content} for message in record.messages]
    return (
        record.id,
        record.device_id,
        record.timestamp,
        json.dumps(messages, ensure_ascii=False),
        _setting(record),
        "\n".join(contents),
        contents[-1],
        sum(map(len, contents)),
        target,
        source,
        record.written_by == "swarm",
        record.response,
        record.better_than,
        record.rating,
        record.liked,
        record.judge_score,
        _two_letters(record.language),
        record.consent,
        record.looked_up,
        record.review,
        xxhash.xxh3_64_intdigest(f"{seed}\0{record.id}".encode()),
    )


def _two_letters(declared: str | None) -> str | None:
    """Return the language of `declared`, such as pt-BR; null where its code has three letters."""
    code = (declared or "").partition("-")[0]
    return code if len(code) == 2 else None


def _setting(record: FrozenInteraction) -> int:
    earlier = [" ".join(turn.content.casefold().split()) for turn in record.messages[:-1] if turn.role != "system"]
    numbers = _NUMBER.findall(record.messages[-1].content)
    return xxhash.xxh3_64_intdigest("\0".join([*earlier, *numbers]).encode())


def target_of(record: FrozenInteraction) -> tuple[str | None, Source | None]:
    """Return what to learn from a record: the correction, else an answer that was liked."""
    if record.correction is not None and record.correction.strip():
        return record.correction.strip(), "correction"
    is_liked = record.rating >= LIKED_RATING if record.rating is not None else record.liked is True
    if record.response is not None and is_liked:
        return record.response.strip(), "answer"
    return None, None


def _drop_unusable(frame: pl.DataFrame, rules: CurationRules) -> pl.DataFrame:
    limit = rules.max_characters
    frame = frame.with_columns(dropped=pl.lit(None, pl.String))
    frame = drop(frame, "consent", {"no consent to training": ~pl.col("consent")})
    frame = drop(frame, "review", {"turned down by reviewers": pl.col("review") == "rejected"})
    frame = drop(
        frame,
        "length",
        {
            "blank question": pl.col("question").str.strip_chars() == "",
            f"conversation over {limit} characters": pl.col("characters") > limit,
            f"target over {limit} characters": pl.col("target").str.len_chars() > limit,
        },
    ).with_columns(usable=kept)
    return drop(
        frame,
        "target",
        {
            "nothing to learn from": pl.col("target").is_null(),
            "blank target": pl.col("target") == "",
            "rests on what a tool found": (pl.col("source") == "answer") & pl.col("looked_up"),
        },
    )


def _drop_by_language_and_quality(frame: pl.DataFrame, rules: CurationRules) -> pl.DataFrame:
    detected = pl.when(pl.col("of_target") != language.UNDETERMINED).then("of_target").otherwise("of_question")
    frame = frame.with_columns(language=pl.coalesce("declared_language", detected))
    if rules.languages:
        wanted = [*rules.languages, language.UNDETERMINED]
        frame = drop(frame, "language", {"not one of the wanted": ~pl.col("language").is_in(wanted)})
    if rules.minimum_judge_score is not None:
        frame = drop(
            frame,
            "quality",
            {f"judged below {rules.minimum_judge_score}": pl.col("judge_score") < rules.minimum_judge_score},
        )
    if rules.quality:
        frame = drop_with(frame, "quality", pl.col("problem"))
    return frame


def _spelt(conversations: pl.Series) -> pl.Series:
    """Give what is said in signs alone, such as '?!' or '🙂', a word of its own, so that the same is found again."""
    said = [
        text if has_words else xxhash.xxh3_128_hexdigest("".join(text.split()).encode())
        for text, has_words in zip(conversations, conversations.str.contains(ANY_WORD), strict=True)
    ]
    return pl.Series(said, dtype=pl.String)


def _exact(frame: pl.DataFrame) -> pl.Series:
    pairs = zip(frame["messages"], frame["target"], strict=True)
    return pl.Series(
        [xxhash.xxh3_64_intdigest(f"{messages}\0{target or ''}".encode()) for messages, target in pairs],
        dtype=pl.UInt64,
    )


def _agreement(targets: Words, contexts: Words) -> pl.Series:
    """Return the share of each target's words that question or answer have too; null where it has none."""
    rows = np.repeat(np.arange(len(targets.counts), dtype=np.uint64), targets.counts)
    others = np.repeat(np.arange(len(contexts.counts), dtype=np.uint64), contexts.counts)
    known = pl.Series(_in_row(contexts.hashes, others)).implode()
    shared = pl.Series(_in_row(targets.hashes, rows)).is_in(known).to_numpy()  # ten times as fast as numpy's
    counts = np.bincount(rows.astype(np.int64), weights=shared, minlength=len(targets.counts))
    shares = np.divide(counts, targets.counts, out=np.full(len(counts), np.nan), where=targets.counts > 0)
    return pl.Series(shares, dtype=pl.Float32, nan_to_null=True)


def _in_row(hashes: Hashes, rows: Hashes) -> Hashes:
    return hashes ^ (rows * np.uint64(0x9E3779B97F4A7C15))


def _contains(texts: Sequence[Words], preparation: Preparation) -> pl.Series:
    found = np.zeros(len(texts[0].counts), dtype=bool)
    if len(preparation.suite_hashes):
        for words in texts:
            grams = words.grams(preparation.suite_words)
            place = np.minimum(
                np.searchsorted(preparation.suite_hashes, grams.hashes), len(preparation.suite_hashes) - 1
            )
            is_known = preparation.suite_hashes[place] == grams.hashes
            rows = np.repeat(np.arange(len(found)), np.diff(grams.offsets))
            found[rows[is_known]] = True
    return pl.Series(found)
