"""How several models answer one request: plain functions over a `Run`, each with its worst case declared beforehand.

A strategy takes a run and returns the answer, whole or as it comes. It never spends more than it declared: the run's
budget sees to that. What the evidence says of each: docs/experiments.md.
"""

from everswarm.server.swarm.strategies.answering import answer, declared_tokens
from everswarm.server.swarm.strategies.table import STRATEGIES, Strategy

__all__ = ["STRATEGIES", "Strategy", "answer", "declared_tokens"]
