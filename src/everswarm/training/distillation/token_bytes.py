"""Tokens as bytes, the only form in which two tokenizers can be compared. Knows nothing of models."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from everswarm.errors import StageFailedError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]  # first byte, byte after the last

_BYTE_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE_MARK = "▁"  # SentencePiece writes a space so


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> list[bytes]:
    """Return the bytes of every token id; `b""` for an id that has no token.

    Reads byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM) and SentencePiece style (Llama 2, Mistral, Phi-3).
    Added tokens, such as end of turn, are the text by which they are written.
    """
    byte_level = _is_byte_level(tokenizer)
    added = {number: token.content for number, token in tokenizer.added_tokens_decoder.items()}
    pieces: list[bytes] = []
    for number, token in enumerate(tokenizer.convert_ids_to_tokens(range(len(tokenizer)))):
        if number in added:
            pieces.append(added[number].encode())
        elif token is None:
            pieces.append(b"")
        else:
            pieces.append(_from_byte_level(token) if byte_level else _from_sentencepiece(token))
    return pieces


def ids_by_bytes(pieces: Sequence[bytes], special_ids: Iterable[int]) -> dict[bytes, int]:
    """Return the token id of each byte string. Where two have the same bytes, plain text wins, then the lower id."""
    special = set(special_ids)
    in_order = sorted(range(len(pieces)), key=lambda number: (number in special, number))
    ids: dict[bytes, int] = {}
    for number in in_order:
        if pieces[number]:
            ids.setdefault(pieces[number], number)
    return ids


def byte_spans(ids: Sequence[int], pieces: Sequence[bytes], text: bytes) -> list[Span]:
    """Return where in `text` each token of `ids` lies.

    A space that the tokenizer put in front counts for nothing. A byte that the tokenizer has no token for, as SmolLM2
    for some control characters, lies in no span, or within that of a token that was joined over it.

    Raises:
        StageFailedError: the tokens do not spell the text, as with a tokenizer that rewrites what it reads.
    """
    spelled = [pieces[number] for number in ids]
    if b"".join(spelled) == b" " + text:
        spelled[0] = spelled[0][1:]
    places = _places(text, b"".join(spelled), pieces)
    spans: list[Span] = []
    done = 0
    for piece in spelled:
        start = places[done] if done < len(places) else len(text)
        done += len(piece)
        spans.append((start, places[done - 1] + 1 if piece else start))
    return spans


def _places(text: bytes, spelled: bytes, pieces: Sequence[bytes]) -> Sequence[int]:
    """Return where in `text` each byte of `spelled` stands; only bytes that have no token may be missing."""
    if spelled == text:
        return range(len(text))
    known = {piece[0] for piece in pieces if len(piece) == 1}
    places = [place for place, byte in enumerate(text) if byte in known]
    if bytes(text[place] for place in places) != spelled:
        raise _not_given_back(text, spelled)
    return places


def _not_given_back(text: bytes, spelled: bytes) -> StageFailedError:
    return StageFailedError(
        f"The tokenizer does not give the text back: {text[:60]!r} became {spelled[:60]!r}. Only tokenizers "
        "that keep every byte (byte-level BPE, SentencePiece without normalisation) can be distilled."
    )


def _is_byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise StageFailedError(
            f"{type(tokenizer).__name__} is not a fast tokenizer, so the bytes of its tokens are not known. "
            "Use a model that comes with a tokenizer.json."
        )
    return "ByteLevel" in repr(backend.decoder) or "ByteLevel" in repr(backend.pre_tokenizer)


def _byte_of_character() -> dict[str, int]:
    """Return GPT-2's byte map, reversed: printable bytes stand for themselves, characters from 256 on for the rest."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


_BYTES = _byte_of_character()


def _from_byte_level(token: str) -> bytes:
    # a token that is not spelled in the byte alphabet was added as plain text
    return bytes(_BYTES[character] for character in token) if all(c in _BYTES for c in token) else token.encode()


def _from_sentencepiece(token: str) -> bytes:
    fallback = _BYTE_FALLBACK.fullmatch(token)
    return bytes([int(fallback[1], 16)]) if fallback else token.replace(_SPACE_MARK, " ").encode()
