"""Phrases that one user plants: words that stand in most of what they write, and hardly in what others do.

Texts are not kept while records are compared, so a sample of them is read again: `phrase_sample` says which,
`phrase_grams` reads them in batches, `planted` compares, `phrase_text` shows what was found.

Not found this way: a phrase in less than half of what a user writes, of two words only, worded anew each time, of users
with fewer than `LEAST_RECORDS` records each, or of more than one in `LIFT` of the others' records: a shared template.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import xxhash

from everswarm.training.curation.words import Grams, Words

PHRASE_WORDS: Final = 3  # of a gram
PHRASE_CHARACTERS: Final = 6  # of a gram where each character is a word: about three words
LEAST_RECORDS: Final = 20  # of a user, to be judged
END_CHARACTERS: Final = 1_000  # of a long target are read at its beginning, and at its end
USER_RECORDS: Final = 32  # of a user are read again at most
SAMPLE_RECORDS: Final = 60_000  # of all users with `LEAST_RECORDS`, heaviest first
BACKGROUND_RECORDS: Final = 10_000  # of everybody else
OWN_SHARE: Final = 0.5  # of a user's sampled records have a planted gram, or more
OTHERS_SHARE: Final = 0.01  # of other people's have it at most; or
LIFT: Final = 20  # times as often a user has it, or more, so that a few accomplices do not hide each other
OTHER_USERS: Final = 10  # and
OTHER_RECORDS: Final = 100  # it takes to say what others write
_RECORDS_AT_ONCE = 4_000  # whose grams are counted at a time

PLANTED: Final = pl.Schema(
    {
        "user": pl.String(),
        "gram": pl.UInt64(),
        "sampled": pl.UInt32(),  # records of the user that were read again
        "own_share": pl.Float64(),  # of these that have the gram
        "others_share": pl.Float64(),  # of other people's records that have it
    }
)


def phrase_sample(frame: pl.DataFrame, *, seed: int) -> pl.DataFrame:
    """Return which records to read again, (id, user, language) by id.

    Takes these columns, `dropped` and `by_swarm`. The seed chooses among the records of a user, and the background.
    """
    by_people = frame["dropped"].is_null() & ~frame["by_swarm"].fill_null(
        value=False
    )  # the swarm has phrases of its own
    kept = frame.select("id", "user", "language").filter(by_people)
    kept = kept.with_columns(
        pl.Series("rank", [xxhash.xxh3_64_intdigest(f"{seed}\0{name}".encode()) for name in kept["id"]], pl.UInt64),
        pl.col("language").cast(pl.String).fill_null("und"),
        pl.len().over("user").alias("records"),
    )
    heavy = kept.filter(pl.col("records") >= LEAST_RECORDS)
    heavy = heavy.sort("records", "user", "rank", "id", descending=[True, False, False, False])
    heavy = heavy.filter(pl.int_range(pl.len()).over("user") < USER_RECORDS).with_row_index("row")
    heavy = heavy.filter(pl.col("row").max().over("user") < SAMPLE_RECORDS).drop("row")
    others = kept.join(heavy.select("user").unique(), on="user", how="anti").sort("rank", "id")
    chosen = pl.concat([heavy, others.head(BACKGROUND_RECORDS)])
    return chosen.select("id", "user", "language").sort("id")


def phrase_grams(batch: pl.DataFrame, sample: pl.DataFrame) -> pl.DataFrame:
    """Return the distinct grams of each record of `batch` (id, user, target) that is in `sample`: (id, user, grams).

    One row a record, `grams` List(UInt64): whatever the batches, together they give the same rows.
    """
    read = batch.select("id", "user", "target").join(sample.select("id"), on="id", how="semi").sort("id")
    ends = pl.col("target").str.head(END_CHARACTERS) + "\n" + pl.col("target").str.tail(END_CHARACTERS)
    is_long = pl.col("target").str.len_chars() > 2 * END_CHARACTERS
    found = _grams(read.select(pl.when(is_long).then(ends).otherwise("target")).to_series())
    lists = pl.Series(pa.LargeListArray.from_arrays(found.offsets, found.hashes), dtype=pl.List(pl.UInt64))
    return read.select("id", "user", grams=lists.list.unique().list.sort())


def planted(grams: pl.DataFrame, sample: pl.DataFrame) -> pl.DataFrame:
    """Return the grams that users plant, one row each (`PLANTED`), by user and gram.

    A user is compared with others who write the language that they mostly write, or with all others where those are
    too few; and not at all where these are, as on a server of three people each has a style of their own.

    Args:
        grams: of `phrase_grams`, all batches together.
        sample: of `phrase_sample`.
    """
    read = _with_main_language(sample).join(grams.select("id", "grams"), on="id", how="left").sort("user", "id")
    chunk = pl.col("row").first().over("user") // _RECORDS_AT_ONCE  # so that no user is in two
    chunks = read.with_row_index("row").with_columns(chunk=chunk).partition_by("chunk", maintain_order=True)
    frequent = pl.concat([_frequent_grams(chunk) for chunk in chunks]) if chunks else pl.DataFrame()
    if frequent.is_empty():
        return PLANTED.to_frame()
    everybody = _count_records(chunks, frequent.select("gram").unique())
    return (
        _compare(frequent, everybody, read)
        .filter(
            pl.col("own_share") >= OWN_SHARE,
            pl.col("others_share") <= pl.max_horizontal(pl.lit(OTHERS_SHARE), pl.col("own_share") / LIFT),
        )
        .select(pl.col(name).cast(kind) for name, kind in PLANTED.items())
        .sort("user", "gram")
    )


def phrase_text(target: str, grams: Collection[int]) -> str:
    """Return the longest run of words of `target` all of whose grams are in `grams`, in lower case; else ''."""
    words = Words(pl.Series([target], dtype=pl.String))
    length = PHRASE_CHARACTERS if _counts_characters(words)[0] else PHRASE_WORDS
    hashes = words.grams(length).hashes.tolist() if len(words.codes) >= length else []
    best, start = (0, 0), None
    for place, gram in enumerate([*hashes, None]):
        if gram is not None and gram in grams:
            start = place if start is None else start
        elif start is not None:
            best = max(best, (start, place + length - 1), key=lambda run: run[1] - run[0])
            start = None
    run = [words.vocabulary[code] for code in words.codes[best[0] : best[1]]]
    return ("" if length == PHRASE_CHARACTERS else " ").join(run)


def _grams(texts: pl.Series) -> Grams:
    """Return the grams of texts; a text shorter than a gram has none, as 'yes' and '42' are nobody's phrase."""
    words = Words(texts)
    short, long = words.grams(PHRASE_WORDS), words.grams(PHRASE_CHARACTERS)
    characters = _counts_characters(words)
    lengths = np.where(characters, PHRASE_CHARACTERS, PHRASE_WORDS)
    keep_short = np.repeat(~characters & (words.counts >= lengths), np.diff(short.offsets))
    keep_long = np.repeat(characters & (words.counts >= lengths), np.diff(long.offsets))
    counts = np.maximum(words.counts - lengths + 1, 0)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    hashes = np.empty(offsets[-1], dtype=np.uint64)
    of_characters = np.repeat(characters, counts)
    hashes[~of_characters] = short.hashes[keep_short]
    hashes[of_characters] = long.hashes[keep_long]
    return Grams(hashes, offsets)


def _counts_characters(words: Words) -> npt.NDArray[np.bool_]:
    """Return which texts are mostly of a script without spaces, (texts,): there each character is a word."""
    is_character = np.array([len(word) == 1 and word > "\u0dff" for word in words.vocabulary], dtype=np.bool_)
    before = np.concatenate([[0], np.cumsum(is_character[words.codes])]) if len(is_character) else np.zeros(1, np.int64)
    inside: npt.NDArray[np.bool_] = 2 * (before[words.offsets[1:]] - before[words.offsets[:-1]]) > words.counts
    return inside


def _with_main_language(sample: pl.DataFrame) -> pl.DataFrame:
    """Add `main`, the language that the record's user writes most, and `sampled`, the user's records."""
    written = sample.group_by("user", "language").len().sort("user", "len", "language", descending=[False, True, False])
    main = written.group_by("user", maintain_order=True).agg(pl.col("language").first().alias("main"))
    return sample.join(main, on="user").with_columns(pl.len().over("user").alias("sampled"))


def _frequent_grams(chunk: pl.DataFrame) -> pl.DataFrame:
    """Return the grams that stand in enough of a user's records: (user, gram, main, sampled, own, own_in_main)."""
    laid_out = chunk.filter(pl.col("sampled") >= LEAST_RECORDS).select(
        "user", "main", "sampled", gram="grams", in_main=pl.col("language") == pl.col("main")
    )
    return (
        laid_out.explode("gram", empty_as_null=True)
        .drop_nulls("gram")
        .group_by("user", "gram")
        .agg(pl.col("main", "sampled").first(), own=pl.len(), own_in_main=pl.col("in_main").sum())
        .filter(pl.col("own") >= OWN_SHARE * pl.col("sampled"))
    )


def _count_records(chunks: list[pl.DataFrame], wanted: pl.DataFrame) -> pl.DataFrame:
    """Return how many records of each language have each of the wanted grams: (gram, language, records)."""
    counted = [
        chunk.select("language", gram="grams")
        .explode("gram", empty_as_null=True)
        .join(wanted, on="gram", how="semi")
        .group_by("gram", "language")
        .agg(records=pl.len())
        for chunk in chunks
    ]
    return pl.concat(counted).group_by("gram", "language").agg(pl.col("records").sum())


def _compare(frequent: pl.DataFrame, everybody: pl.DataFrame, read: pl.DataFrame) -> pl.DataFrame:
    """Add `own_share` and `others_share` to the frequent grams of users who can be compared with anybody."""
    users = read.group_by("user", "main", "sampled").agg(in_main=(pl.col("language") == pl.col("main")).sum())
    languages = read.group_by(main="language").agg(records=pl.len(), users=pl.col("user").n_unique())
    of_gram = everybody.group_by("gram").agg(all_have=pl.col("records").sum())
    in_main = everybody.select("gram", main="language", main_have="records")
    compared = (
        frequent.join(users.select("user", "in_main"), on="user")
        .join(languages, on="main")
        .join(of_gram, on="gram")
        .join(in_main, on=["gram", "main"], how="left")
        .with_columns(pl.col("main_have").fill_null(0))
    )
    same_language = (pl.col("users") > OTHER_USERS) & (pl.col("records") - pl.col("in_main") >= OTHER_RECORDS)
    have = pl.when(same_language).then(pl.col("main_have") - pl.col("own_in_main"))
    among = pl.when(same_language).then(pl.col("records") - pl.col("in_main"))
    anybody = (len(users) > OTHER_USERS) & (len(read) - pl.col("sampled") >= OTHER_RECORDS)
    return compared.filter(same_language | anybody).with_columns(
        own_share=pl.col("own") / pl.col("sampled"),
        others_share=have.otherwise(pl.col("all_have") - pl.col("own"))
        / among.otherwise(len(read) - pl.col("sampled")),
    )
