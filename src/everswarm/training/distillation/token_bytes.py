"""Tokens as bytes, the only form in which two tokenizers can be compared. Knows nothing of models."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from everswarm.errors import StageFailedError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

_KINDS = ("BPE", "Unigram")
_BYTE_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE_MARK = "▁"  # SentencePiece writes a space so
# what SentencePiece takes for a space, or Unigram for one byte, when a person types it
_STAND_INS = (re.compile("▁".encode()), re.compile("▁|<0x([0-9A-F]{2})>".encode()))


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> list[bytes]:
    """Return the bytes of every token id; `b""` for an id that has no token.

    Reads byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM) and SentencePiece style (Llama 2, Mistral, Phi-3, Gemma).
    Added tokens, such as end of turn, are the text by which they are written.

    Raises:
        StageFailedError: the tokenizer is of a kind whose tokens are not simply bytes, such as WordPiece.
    """
    bytes_of = _from_byte_level if _is_byte_level(tokenizer) else _from_sentencepiece
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    vocabulary = tokenizer.get_vocab()
    pieces = [b""] * (max(vocabulary.values(), default=-1) + 1)
    for token, number in vocabulary.items():
        pieces[number] = bytes_of(token, added=token in added)
    return pieces


def fallback_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the ids of single bytes, such as `<0x2E>`, that SentencePiece falls back on where it has no piece."""
    if _is_byte_level(tokenizer):
        return set()
    return {number for token, number in tokenizer.get_vocab().items() if _BYTE_FALLBACK.fullmatch(token)}


def ids_by_bytes(pieces: Sequence[bytes], last_ids: Iterable[int]) -> dict[bytes, int]:
    """Return the token id of each byte string; of two with the same bytes one not in `last_ids`, then the lower one.

    Args:
        pieces: the bytes of every token id.
        last_ids: special tokens and `fallback_ids`: no text is cut into them that can be cut into others.
    """
    last = set(last_ids)
    in_order = sorted(range(len(pieces)), key=lambda number: (number in last, number))
    ids: dict[bytes, int] = {}
    for number in in_order:
        if pieces[number]:
            ids.setdefault(pieces[number], number)
    return ids


def token_ends(ids: Sequence[int], pieces: Sequence[bytes], text: bytes) -> NDArray[np.int32]:
    """Return the byte of `text` behind each token of `ids`, (tokens,): token `i` covers `end[i - 1]` to `end[i]`.

    The ends never fall, and the last one is the length of the text. A space that the tokenizer put in front counts for
    nothing, so a token that is only this space ends at 0. A byte that the tokenizer has no token for, as SmolLM2 for
    some control characters, is part of the token around or behind it, at the end of the text of the one before. Where
    SentencePiece took a "▁" of the text for a space, the token covers that mark.

    Args:
        ids: the text's tokens, without any that a chat template adds.
        pieces: the bytes of every token id, as `token_bytes` gives.
        text: UTF-8.

    Raises:
        StageFailedError: the tokens do not spell the text, as with a tokenizer that rewrites what it reads.
    """
    import numpy as np

    spelled = [pieces[number] for number in ids]
    joined = b"".join(spelled)
    lengths = np.fromiter(map(len, spelled), dtype=np.int32, count=len(spelled))
    ends: NDArray[np.int32] = lengths.cumsum(dtype=np.int32)
    if joined == text:
        return ends
    spaces, behind = _reading(joined, pieces, text)
    ends = behind[np.maximum(ends - spaces, 0)]
    ends[-1:] = len(text)
    return ends


def space_in_front(ids: Sequence[int], pieces: Sequence[bytes], text: bytes) -> bool:
    """Tell whether the tokenizer put a space in front of `text`. Then what rivals its first token begins with one too.

    Raises:
        StageFailedError: the tokens do not spell the text.
    """
    joined = b"".join([pieces[number] for number in ids])
    return joined != text and _reading(joined, pieces, text)[0] == 1


def _reading(joined: bytes, pieces: Sequence[bytes], text: bytes) -> tuple[int, NDArray[np.int32]]:
    """Find out how the tokenizer read `text`.

    Returns:
        How many spaces it put in front, and the byte of `text` behind the first 0, 1, 2 … bytes that it read.
    """
    for read, behind in _readings(pieces, text):
        if joined == read:
            return 0, behind
        if joined == b" " + read:
            return 1, behind
    same = next(
        (place for place, (a, b) in enumerate(zip(text, joined, strict=False)) if a != b), min(len(text), len(joined))
    )
    raise StageFailedError(  # the text is a person's: it is not repeated
        f"The tokenizer does not give a text of {len(text)} bytes back: it differs from byte {same} on. Only "
        "tokenizers that keep every byte (byte-level BPE, SentencePiece without normalisation) can be distilled."
    )


def _readings(pieces: Sequence[bytes], text: bytes) -> Iterator[tuple[bytes, NDArray[np.int32]]]:
    """Yield what a tokenizer may have read for `text`: all, its marks as spaces, only bytes that it knows, composed."""
    import numpy as np

    behind = np.arange(len(text) + 1, dtype=np.int32)
    yield text, behind
    for stand_in in _STAND_INS:
        # of the bytes that are read as one, that one is the last
        swallowed = [place for match in stand_in.finditer(text) for place in range(match.start(), match.end() - 1)]
        if swallowed:
            yield stand_in.sub(_stood_for, text), np.delete(behind, np.asarray(swallowed) + 1)
    known = np.zeros(256, dtype=bool)
    known[[piece[0] for piece in pieces if len(piece) == 1]] = True
    letters = np.frombuffer(text, dtype=np.uint8)
    yield letters[known[letters]].tobytes(), behind[np.append(True, known[letters])]
    yield _composed(text.decode())


def _stood_for(match: re.Match[bytes]) -> bytes:
    return bytes([int(match[1], 16)]) if match.lastindex else b" "


def _composed(text: str) -> tuple[bytes, NDArray[np.int32]]:
    """Return `text` in Unicode's form NFC, as Qwen reads it. What was composed lies, whole, at the end of its parts."""
    import numpy as np

    composed: list[bytes] = []
    behind, done = [0], 0
    for parts in _characters(text):
        before, after = parts.encode(), unicodedata.normalize("NFC", parts).encode()
        places = range(1, len(before) + 1) if before == after else [len(before)] * len(after)
        behind += [done + place for place in places]
        done += len(before)
        composed.append(after)
    return b"".join(composed), np.asarray(behind, dtype=np.int32)


def _characters(text: str) -> list[str]:
    """Cut `text` into characters, each with those behind it that may be composed with it: marks, and Korean jamo."""
    characters: list[str] = []
    for character in text:
        if characters and (unicodedata.category(character)[0] == "M" or "\u1160" <= character <= "\u11ff"):
            characters[-1] += character
        else:
            characters.append(character)
    return characters


def _is_byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise StageFailedError(
            f"{type(tokenizer).__name__} is not a fast tokenizer, so the bytes of its tokens are not known. "
            "Use a model that comes with a tokenizer.json."
        )
    kind = type(backend.model).__name__
    if kind not in _KINDS:
        raise StageFailedError(
            f"{type(tokenizer).__name__} is a {kind} tokenizer, whose tokens do not spell the text. Only "
            f"{' and '.join(_KINDS)} can be distilled; use a model with one of these."
        )
    return "ByteLevel" in repr(backend.decoder) or "ByteLevel" in repr(backend.pre_tokenizer)


def _byte_of_character() -> dict[str, int]:
    """Return GPT-2's byte map, reversed: printable bytes stand for themselves, characters from 256 on for the rest."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


_BYTES = _byte_of_character()


def _from_byte_level(token: str, *, added: bool) -> bytes:
    if added or not _BYTES.keys() >= set(token):
        return token.encode()
    return bytes([_BYTES[character] for character in token])


def _from_sentencepiece(token: str, *, added: bool) -> bytes:
    fallback = None if added else _BYTE_FALLBACK.fullmatch(token)
    return bytes([int(fallback[1], 16)]) if fallback else token.replace(_SPACE_MARK, " ").encode()
