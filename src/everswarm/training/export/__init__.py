"""The adapter and its base in the format that ships: GGUF, for llama.cpp.

Takes PEFT files and HF weights; gives files with the same bytes each time. Does not know how they were trained.
"""

from everswarm.training.export.adapter import export_adapter
from everswarm.training.export.base import BaseGguf, base_gguf

__all__ = ["BaseGguf", "base_gguf", "export_adapter"]
