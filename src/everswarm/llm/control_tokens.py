"""Text of others made safe to stand in a prompt: nothing unseen in it, nothing that a model reads as its own tokens.

What models read as control tokens is broken, not removed, so that a text about them still reads well.
"""

from __future__ import annotations

import re
from typing import Any

_ANSI = re.compile(r"\x1b\[[0-9;?]{0,32}[A-Za-z]")
_LINE_ENDS = re.compile("\r\n|[\r\u2028\u2029]")
_SURROGATES = re.compile("[\ud800-\udfff]")
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters, but not tab and new line
    "\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb"  # invisible, and those that reorder
    "\U000e0000-\U000e007f\U000e0100-\U000e01ef]"  # tags and variation selectors, which can carry a hidden text
)
_TAG = re.compile(  # an opening bracket before our delimiter, or before a token of a chat template
    r"""[<＜﹤](?=\s*+(?:[|｜¦]|[/／\\]?\s*+(?:
        [dｄ][aａ][tｔ][aａ](?![a-z])
        |(?:s|bos|eos|unk|pad|mask|sys|[be]os_token|[a-z]{1,8}_of_[a-z]{1,10}|im_(?:start|end|sep)
          |system|user|assistant|human|think|thinking|tools?|tool_[a-z]{1,16}|function[a-z_]{0,16}|instructions?
          |(?:extra_id|special|reserved|unused)_?[0-9]{1,4}|seed:[a-z_]{1,16}|sop|eop|eo[ah]|sep|cls)
        \s*+[|｜>＞﹥])))""",
    re.IGNORECASE | re.VERBOSE,
)
_SQUARE = re.compile(  # Mistral's and Llama 2's
    r"""\[\s{0,8}(/?)\s{0,8}(INST|SYS|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT
        |MODEL_SETTINGS|THINK|PREFIX|SUFFIX|MIDDLE|IMG|ARGS|CALL_ID|gMASK|sMASK)\s{0,8}\]""",
    re.IGNORECASE | re.VERBOSE,
)
_BARRED = re.compile(r"\[(?=\s*+[|｜]\s*+(?:system|user|assistant|tool|endofturn)\s*+[|｜])", re.IGNORECASE)  # EXAONE's


def clean(text: str) -> str:
    """Return `text` without what a person would not see, and with control tokens and our delimiters broken.

    Cleaning twice changes nothing more.
    """
    text = _LINE_ENDS.sub("\n", _ANSI.sub("", text))
    text = _UNSEEN.sub("", _SURROGATES.sub("\ufffd", text))
    return _BARRED.sub("(", _SQUARE.sub(r"(\1\2)", _TAG.sub("‹", text)))


def clean_values(value: Any) -> Any:
    """Return a JSON value with every text in it clean, names too.

    Its JSON text cannot be cleaned instead: there a control token may hide in escapes.
    """
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list):
        return [clean_values(item) for item in value]
    if isinstance(value, dict):
        return {clean_values(name): clean_values(item) for name, item in value.items()}
    return value
