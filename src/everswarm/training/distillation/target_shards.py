"""One shard of soft targets as a parquet file, and back. Knows nothing of tokenizers or models.

A shard is plain parquet (zstd, one row group) that any reader opens; one row is one text of one teacher. What the file
says of itself stands in its key-value metadata: `everswarm.format` and `everswarm.teacher` (JSON). All numbers are
int32, all lists flat. With `tokens` the length of `end_step` and k the length of `candidate` / tokens:

| column | is |
|---|---|
| key | 32 bytes: sha256 of the teacher's identity, a zero byte and the text (`text_key`). No prompt is in it |
| id, source, text, ended | as in `ScoredText` |
| end_step | (tokens,) bytes of each token; the running sum is where it ends |
| logprob | (tokens,) of the text's own token, in steps of 1/1024 nat below 0 |
| candidate | (tokens, k) by rows: where each candidate stands in the vocabulary, likeliest first; -1 pads |
| top_first | (tokens,) log-prob of the first candidate, in steps of 1/1024 nat below 0; none where k is 0 |
| top_drop | (tokens, k-1) by rows: from each candidate down to the next, in steps of 1/256 nat |
| tail_logprob | (tokens,) of everything else, in steps of 1/1024 nat below 0; -1 is minus infinity |
| vocabulary | in the first row: bytes of each candidate of the shard, most frequent first; none: end of turn |

So `top_logprob[i, j] = -top_first[i] / 1024 - sum(top_drop[i, :j]) / 256`. What is lost: the own token, the first
candidate and the tail are off by at most 2^-11 nat (0.05 % of the probability), the other candidates by at most 2^-9
(0.2 %), at any size; errors do not add up along a row. A candidate that rises above the one before it, which is
rounding, is written level with it. A text that was read writes the same numbers again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from everswarm.errors import StageFailedError
from everswarm.llm.verified_files import FULL_DISK, no_space
from everswarm.schemas.targets import Teacher
from everswarm.training.distillation.scored_text import ScoredText

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

FORMAT = "soft-targets-2"
# a retry of the stage that reads them reads the same ones
LABEL_AGAIN = "Label again, in a new cycle: everswarm cycle run"
IDENTITY = {"model", "revision", "quantization", "template"}  # of a teacher: what its scores depend on
FORMAT_KEY, TEACHER_KEY = b"everswarm.format", b"everswarm.teacher"
FINE_STEPS = 1024  # a nat
DROP_STEPS = 256  # a nat
LOWEST_LOGPROB = -100_000.0  # nats; some servers write -9999 for "impossible"
ROUNDING = 1e-3  # nats that a log-probability may be above 0, and a candidate above the one before
HIGHEST_MASS = 1.01  # probability of a row, candidates and tail
KEPT_MASS = 1.02  # the same of what was written: rounding may have added 0.2 %
ZSTD_LEVEL = 15
LISTS = ("end_step", "logprob", "candidate", "top_first", "top_drop", "tail_logprob")


def write_shard(texts: Sequence[ScoredText], path: Path, *, teacher: Teacher) -> None:
    """Write `texts` to `path`, whole or not at all; the same texts and teacher give the same bytes.

    Raises:
        StageFailedError: a text is nonsense (see `check_scored`).
        NoSpaceError: the disk is full.
    """
    import pyarrow.parquet as pq

    for text in texts:
        check_scored(text)
    table = _table_of(texts, teacher)
    part = path.with_name(f"{path.name}.part")
    try:
        with pq.ParquetWriter(
            part,
            table.schema,
            compression="zstd",
            compression_level=ZSTD_LEVEL,
            use_dictionary=False,
            column_encoding={f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in LISTS},
            write_statistics=False,
            write_page_checksum=True,
            store_schema=False,  # it would say the same once more, in 2 KB
        ) as writer:
            writer.write_table(table, row_group_size=max(len(texts), 1))
            writer.add_key_value_metadata({FORMAT_KEY: FORMAT.encode(), TEACHER_KEY: _json_of(teacher)})
        part.replace(path)
    except OSError as error:
        if error.errno in FULL_DISK:
            raise no_space(path.parent) from error
        raise
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def read_shards(
    paths: Sequence[Path], *, teacher: Teacher | None = None, digests: Sequence[str] | None = None
) -> Iterator[ScoredText]:
    """Yield the texts of `paths` in order; those of one shard share their `vocabulary`.

    Args:
        paths: shards, in the order of their record.
        teacher: who must have scored them; None takes any.
        digests: sha256 of each file in hexadecimal; None trusts the files, whose pages have checksums of their own.

    Raises:
        StageFailedError: a file is missing, cut off, damaged or another one, is of another teacher or format, or
            holds nonsense.
    """
    if digests is not None and len(digests) != len(paths):
        raise StageFailedError(
            f"The record of the soft targets names {len(digests)} shards and {len(paths)} are here. Fetch them again."
        )
    for number, path in enumerate(paths):
        yield from _read(path, teacher, None if digests is None else digests[number])


def check_scored(text: ScoredText, *, highest_mass: float = HIGHEST_MASS) -> None:
    """Return if `text` is what a teacher can have meant.

    Raises:
        StageFailedError: arrays that do not fit together, ends that fall or pass the text, candidates that are not in
            the vocabulary or rise by more than 1e-3 nat, log-probabilities that are not finite (-inf is right for a
            pad, and for a tail that nothing is left for) or above 1e-3, or a row whose probabilities sum to over
            `highest_mass`.
    """
    if wrong := _misfit(text) or _nonsense(text, highest_mass):
        raise StageFailedError(
            f"What the teacher said of example '{text.id}' cannot be used: {wrong}. Check how the teacher is served "
            "(half precision may overflow: use float32, or another quantization) and label again."
        )


def text_key(teacher: Teacher, text: bytes) -> bytes:
    """Return 32 bytes that tell readers of several shards that a row is of the same text and the same teacher.

    They are a sha256 over the teacher's `model`, `quantization`, `revision` and `template` (JSON, sorted) and the text;
    its weight and its address change no score. Nothing looks rows up by it: each cycle labels its own dataset.
    """
    identity = json.dumps(teacher.model_dump(mode="json", include=IDENTITY), sort_keys=True)
    return hashlib.sha256(identity.encode() + b"\0" + text).digest()


def _misfit(text: ScoredText) -> str | None:
    """Return what does not fit together, for a reader."""
    tokens, k = len(text.end), text.top.shape[-1]
    shapes = [text.logprob.shape, text.tail_logprob.shape, text.top.shape, text.top_logprob.shape]
    if shapes != [(tokens,), (tokens,), (tokens, k), (tokens, k)]:
        return f"its arrays have the shapes {shapes} for {tokens} tokens"
    if not tokens:
        return None
    if int(text.end[0]) < 0 or bool((text.end[1:] < text.end[:-1]).any()):
        return "its tokens end before they begin"
    last = int(text.end[-1])
    if last > len(text.text) or (text.ended and last < len(text.text)):
        return f"its tokens end at byte {last} of a text of {len(text.text)} bytes"
    if k and not -1 <= int(text.top.min()) <= int(text.top.max()) < len(text.vocabulary):
        return f"it has candidates that are not in its vocabulary of {len(text.vocabulary)}"
    return None


def _nonsense(text: ScoredText, highest_mass: float) -> str | None:
    """Return which log-probability cannot be one, for a reader."""
    import numpy as np

    pads = text.top < 0
    named = np.where(pads, 0.0, text.top_logprob)
    tail = np.where(np.isneginf(text.tail_logprob), 0.0, text.tail_logprob)
    for values in (text.logprob, named, tail):
        sound = (values >= LOWEST_LOGPROB) & (values <= ROUNDING)  # false for NaN
        if not sound.all():
            return f"it has a log-probability of {float(values[~sound][0]):.6g}"
    if not np.isneginf(text.top_logprob[pads]).all():
        return "it has a log-probability without a candidate"
    if (text.top_logprob[:, 1:] > text.top_logprob[:, :-1] + ROUNDING).any():
        return "its candidates are not in order of probability"
    mass = np.exp(text.top_logprob, dtype=np.float64).sum(-1) + np.exp(text.tail_logprob, dtype=np.float64)
    if mass.size and mass.max() > highest_mass:
        return f"the probabilities of one token sum to {mass.max():.4g}, more than {highest_mass}"
    return None


def _table_of(texts: Sequence[ScoredText], teacher: Teacher) -> pa.Table:
    import numpy as np
    import pyarrow as pa

    vocabulary, candidates = _shared_vocabulary(texts)
    columns: dict[str, list[Any]] = {name: [] for name in LISTS}
    for text, candidate in zip(texts, candidates, strict=True):
        first, drop = _top_steps(text.top_logprob, candidate)
        tail = np.where(np.isneginf(text.tail_logprob), -1, _fine_steps(text.tail_logprob))
        ends = np.diff(text.end, prepend=0)
        row: list[NDArray[Any]] = [ends, _fine_steps(text.logprob), candidate, first, drop, tail]
        for name, values in zip(LISTS, row, strict=True):
            columns[name].append(values.astype(np.int32).ravel())
    arrays: list[list[Any]] = [
        [text_key(teacher, text.text) for text in texts],
        [text.id for text in texts],
        [text.source for text in texts],
        [text.text for text in texts],
        [text.ended for text in texts],
        *columns.values(),
        [vocabulary if number == 0 else [] for number in range(len(texts))],
    ]
    schema = _schema()
    filled = [pa.array(values, field.type) for values, field in zip(arrays, schema, strict=True)]
    return pa.Table.from_arrays(filled, schema=schema)


def _shared_vocabulary(texts: Sequence[ScoredText]) -> tuple[list[bytes], list[NDArray[np.int64]]]:
    """Return the distinct candidates of all texts, most frequent first, and each text's `top` (tokens, k) in it."""
    import numpy as np

    used = [np.unique(text.top[text.top >= 0], return_counts=True) for text in texts]
    counts: Counter[bytes] = Counter()
    for text, (numbers, times) in zip(texts, used, strict=True):
        for number, time in zip(numbers.tolist(), times.tolist(), strict=True):
            counts[text.vocabulary[number]] += time
    vocabulary = sorted(counts, key=lambda piece: (-counts[piece], piece))
    place = {piece: number for number, piece in enumerate(vocabulary)}
    candidates = []
    for text, (numbers, _) in zip(texts, used, strict=True):
        places = np.array([place[text.vocabulary[number]] for number in numbers.tolist()] + [-1])
        # a pad is found nowhere and takes the last place, which is -1
        found = np.where(text.top < 0, len(numbers), np.searchsorted(numbers, text.top))
        candidates.append(places[found])
    return vocabulary, candidates


def _fine_steps(logprob: NDArray[np.float32]) -> NDArray[np.int32]:
    import numpy as np

    return np.rint(np.clip(logprob, LOWEST_LOGPROB, 0.0).astype(np.float64) * -FINE_STEPS).astype(np.int32)


def _top_steps(
    top_logprob: NDArray[np.float32], candidate: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return `top_first` (tokens, 1) and `top_drop` (tokens, k-1). A pad drops by nothing."""
    import numpy as np

    first = _fine_steps(np.where(candidate[:, :1] < 0, 0.0, top_logprob[:, :1]))
    fallen = -first / FINE_STEPS - np.where(candidate < 0, LOWEST_LOGPROB, top_logprob)
    steps = np.maximum.accumulate(np.rint(fallen * DROP_STEPS).astype(np.int64), axis=1)
    return first, np.where(candidate[:, 1:] < 0, 0, np.diff(steps, axis=1))


def _read(path: Path, teacher: Teacher | None, digest: str | None) -> Iterator[ScoredText]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise StageFailedError(f"{path.name} is not there. Fetch the soft targets again, or label again.") from error
    if digest is not None and (found := hashlib.sha256(data).hexdigest()) != digest:
        raise StageFailedError(
            f"{path.name} is not the shard that was promised: its sha256 is {found}, not {digest}. Fetch it again."
        )
    try:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        _check_told(path, file.metadata.metadata or {}, teacher)
        if file.schema_arrow.remove_metadata() != _schema():
            raise StageFailedError(f"{path.name} is not a shard of soft targets: its columns are others. {LABEL_AGAIN}")
        table = file.read(use_threads=False)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise StageFailedError(
            f"{path.name} is not a shard of soft targets, or was cut off or damaged: {error}. Fetch it again, or label "
            "again."
        ) from error
    try:
        for text in _texts_of(table):
            check_scored(text, highest_mass=KEPT_MASS)
            yield text
    except StageFailedError as error:
        raise StageFailedError(f"{path.name}: {error}") from error


def _check_told(path: Path, told: dict[bytes, bytes], teacher: Teacher | None) -> None:
    """Refuse a file that is no shard, of another format, or of another teacher than `teacher`."""
    found = told.get(FORMAT_KEY)
    if found is None:
        raise StageFailedError(f"{path.name} is not a shard of soft targets in the format '{FORMAT}'. {LABEL_AGAIN}")
    if found != FORMAT.encode():
        raise StageFailedError(
            f"{path.name} has the format '{found.decode(errors='replace')}'; this everswarm reads '{FORMAT}'. "
            f"{LABEL_AGAIN}"
        )
    if teacher is None:
        return
    try:
        scored_by = Teacher.model_validate_json(told.get(TEACHER_KEY, b""))
    except ValidationError as error:
        raise StageFailedError(f"{path.name} does not say which teacher scored it. {LABEL_AGAIN}") from error
    if scored_by != teacher:
        raise StageFailedError(
            f"{path.name} was scored by {_named(scored_by)}, and what is asked for is {_named(teacher)}. {LABEL_AGAIN}"
        )


def _texts_of(table: pa.Table) -> Iterator[ScoredText]:
    import numpy as np

    lists = {name: _numbers(table, name) for name in LISTS}
    plain = {name: table.column(name).to_pylist() for name in ("id", "source", "text", "ended")}
    vocabulary = [piece for row in table.column("vocabulary").to_pylist() for piece in row]
    for number, identifier in enumerate(plain["id"]):
        step, logprob, candidate, first, drop, tail = (
            values[offsets[number] : offsets[number + 1]] for offsets, values in lists.values()
        )
        k = len(candidate) // max(len(step), 1)
        if (len(candidate), len(first), len(drop)) != tuple(len(step) * n for n in (k, min(k, 1), max(k - 1, 0))):
            raise StageFailedError(
                f"the candidates of example '{identifier}' do not fit its {len(step)} tokens. {LABEL_AGAIN}"
            )
        top = candidate.reshape(-1, k) if k else np.empty((len(step), 0), dtype=np.int32)
        yield ScoredText(
            id=identifier,
            source=plain["source"][number],
            text=plain["text"][number],
            ended=plain["ended"][number],
            end=step.cumsum(dtype=np.int32),
            logprob=(logprob / -FINE_STEPS).astype(np.float32),
            vocabulary=vocabulary,
            top=top,
            top_logprob=_top_logprob(top, first, drop),
            tail_logprob=np.where(tail == -1, -np.inf, tail / -FINE_STEPS).astype(np.float32),
        )


def _top_logprob(top: NDArray[np.int32], first: NDArray[np.int32], drop: NDArray[np.int32]) -> NDArray[np.float32]:
    """Return what `_top_steps` wrote, in nats (tokens, k)."""
    import numpy as np

    logprob = np.empty(top.shape, dtype=np.float32)
    if logprob.size:
        logprob[:, 0] = first / -FINE_STEPS
        fallen = drop.reshape(len(top), -1).cumsum(axis=1, dtype=np.int64)
        logprob[:, 1:] = logprob[:, :1] - fallen / DROP_STEPS
    logprob[top < 0] = -np.inf
    return logprob


def _numbers(table: pa.Table, name: str) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return where each row's numbers begin (rows + 1,), and the numbers of all rows."""
    import numpy as np

    column = table.column(name).combine_chunks()
    return np.asarray(column.offsets), np.asarray(column.values)


def _named(teacher: Teacher) -> str:
    return f"{teacher.model} ({teacher.quantization}, {teacher.template}, {teacher.revision[:12]})"


def _json_of(teacher: Teacher) -> bytes:
    return json.dumps(teacher.model_dump(mode="json"), sort_keys=True).encode()


def _schema() -> pa.Schema:
    import pyarrow as pa

    def required(name: str, kind: pa.DataType) -> pa.Field:
        return pa.field(name, kind, nullable=False)

    return pa.schema(
        [
            required("key", pa.binary()),
            required("id", pa.string()),
            required("source", pa.string()),
            required("text", pa.binary()),
            required("ended", pa.bool_()),
            *(required(name, pa.list_(required("element", pa.int32()))) for name in LISTS),
            required("vocabulary", pa.list_(required("element", pa.binary()))),
        ]
    )
