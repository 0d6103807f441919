"""Soft targets of a teacher, and a student that learns from them.

Takes examples, weights and a recipe; gives a cache of soft targets, then a LoRA adapter.
Does not know where examples come from, nor what becomes of the adapter.
"""

from everswarm.training.distillation.distill import Distilled, distill
from everswarm.training.distillation.label import label
from everswarm.training.distillation.rollouts import StudentWriter
from everswarm.training.recipes import load_recipe, recipe_names

__all__ = ["Distilled", "StudentWriter", "distill", "label", "load_recipe", "recipe_names"]
