"""`python -m everswarm.training.export.quantize_child IN.gguf OUT.gguf Q4_K_M`: quantises, in a process of its own.

Of its own, since two builds of llama.cpp in one process would share their symbols.
"""

from __future__ import annotations

import sys

# llama.h, enum llama_ftype
FILE_TYPES = {"Q8_0": 7, "Q3_K_M": 12, "Q4_K_M": 15}


def main(source: str, target: str, quantization: str) -> None:
    """Write `target`, the quantised `source`."""
    from cyllama.llama.llama_cpp import LlamaModelQuantizeParams, model_quantize

    parameters = LlamaModelQuantizeParams()
    parameters.ftype = FILE_TYPES[quantization]
    parameters.nthread = 1
    model_quantize(source, target, parameters)


if __name__ == "__main__":
    main(*sys.argv[1:])
