"""A user's own texts, which the swarm can search.

Takes texts and stores them whole and in passages; gives the passages that fit a question, to nobody but their owner.
Knows nothing of models, tools or prompts.
"""

from everswarm.server.documents.service import has_documents, search_text

__all__ = ["has_documents", "search_text"]
