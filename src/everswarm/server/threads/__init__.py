"""Conversations that are kept for their user, and how a long one is made short enough for a model.

Takes questions with their answers; gives a conversation back, whole or compacted to a number of tokens.
Knows nothing of who answers: the call that writes a summary is handed in.
"""

from everswarm.server.threads.compaction import Compacted, Summarise, compact
from everswarm.server.threads.history import History, Turn
from everswarm.server.threads.service import (
    NEW,
    append_turns,
    drop_empty_thread,
    forget_late_answer,
    keep_summary,
    open_thread,
)
from everswarm.server.threads.summary import SUMMARY_PROMPT, summary_request, summary_tokens

__all__ = [
    "NEW",
    "SUMMARY_PROMPT",
    "Compacted",
    "History",
    "Summarise",
    "Turn",
    "append_turns",
    "compact",
    "drop_empty_thread",
    "forget_late_answer",
    "keep_summary",
    "open_thread",
    "summary_request",
    "summary_tokens",
]
