"""Takes held-out examples, the base and the adapters; gives scores with intervals, comparisons and answers.

What ships is what is scored: the base GGUF with the adapter GGUF in llama.cpp, beside the weights that were trained.
Does not know whether a candidate is good enough: the promotion gate does.
"""

from everswarm.training.evaluation.evaluate import EvaluationPieces, evaluate
from everswarm.training.evaluation.findings import AdapterFiles
from everswarm.training.evaluation.suites import GeneralExample, general_suite

__all__ = ["AdapterFiles", "EvaluationPieces", "GeneralExample", "evaluate", "general_suite"]
