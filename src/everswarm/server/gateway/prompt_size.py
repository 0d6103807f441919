"""About how many tokens a prompt has, rather too many than too few; the real number comes with the answer.

Knows no tokenizer: it weighs bytes by their kind. The weights were fitted to the tokenizer of SmolLM2, whose vocabulary
is small and English, so that others need fewer tokens. Only text without words (random letters) is estimated too low.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

LOWER_CASE, UPPER_CASE = 0.36, 0.75  # tokens a letter; spaces are as lower case letters
OTHER_ASCII = 1.1  # digits, punctuation
NOT_ASCII = 0.9  # each byte
FOREIGN_LETTER = 0.2  # more for each letter of a language that is not English: so many letters near one NOT_ASCII byte
LETTERS_NEAR = 16
MESSAGE_TOKENS = 8  # around each message, in any template
REQUEST_TOKENS = 8
OWN_SYSTEM_TOKENS = 24  # of the system prompt that many templates add where a request has none
TOOLS_TOKENS = 150  # how templates explain to the model that it has tools
ATTACHMENT_TOKENS = 1024  # a picture or a sound

_LOWER = bytes(range(ord("a"), ord("z") + 1)) + b" "
_LETTERS = _LOWER + bytes(range(ord("A"), ord("Z") + 1)) + b"\n\t\r"
_ASCII = bytes(range(128))
_PARTS = ("tool_calls", "function_call", "name", "refusal")  # of a message, beside its content


def estimate_prompt_tokens(payload: Mapping[str, Any]) -> int:
    """Return about how many tokens the messages, tools and response format of `payload` have.

    What has a wrong type counts as nothing; others refuse it.
    """
    texts: list[bytes] = []
    tokens = REQUEST_TOKENS
    messages = payload.get("messages")
    if not _begins_with_system(messages):
        tokens += OWN_SYSTEM_TOKENS
    for message in messages if isinstance(messages, list) else ():
        tokens += MESSAGE_TOKENS
        if isinstance(message, Mapping):
            tokens += _read_message(message, texts)
    for name in ("tools", "functions", "response_format"):
        if value := payload.get(name):
            texts.append(_encoded(value))
            tokens += 0 if name == "response_format" else TOOLS_TOKENS
    return tokens + _tokens_of(b"".join(texts))


def _begins_with_system(messages: object) -> bool:
    first = messages[0] if isinstance(messages, list) and messages else None
    return isinstance(first, Mapping) and first.get("role") in ("system", "developer")


def _read_message(message: Mapping[str, Any], texts: list[bytes]) -> int:
    """Add the texts of `message`; return the tokens of what is no text."""
    tokens = 0
    content = message.get("content")
    if isinstance(content, str):
        texts.append(content.encode("utf-8", "surrogatepass"))
    elif isinstance(content, list):
        tokens = sum(_read_parts(content, texts))
    texts.extend(_encoded(message[name]) for name in _PARTS if message.get(name))
    return tokens


def _read_parts(parts: list[Any], texts: list[bytes]) -> Iterator[int]:
    for part in parts:
        text = part.get("text") if isinstance(part, Mapping) else part
        if isinstance(text, str):
            texts.append(text.encode("utf-8", "surrogatepass"))
        elif isinstance(part, Mapping):
            yield ATTACHMENT_TOKENS


def _tokens_of(text: bytes) -> int:
    size = len(text)
    not_lower = len(text.translate(None, _LOWER))
    not_letters = len(text.translate(None, _LETTERS))
    foreign = 0 if text.isascii() else len(text.translate(None, _ASCII))
    lower = size - not_lower
    return int(
        lower * LOWER_CASE
        + (not_lower - not_letters) * UPPER_CASE
        + (not_letters - foreign) * OTHER_ASCII
        + foreign * NOT_ASCII
        + min(lower, foreign * LETTERS_NEAR) * FOREIGN_LETTER
    )


def _encoded(value: object) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:  # a lone surrogate, or what is no JSON: nothing that a model gets
        return str(value).encode("utf-8", "surrogatepass")
