"""Fake records of the worker's stages: the right shapes, made-up numbers."""

from __future__ import annotations

from typing import Any

from everswarm.schemas.job import Stage


def artifact(letter: str, kind: str) -> dict[str, Any]:
    return {"sha256": letter * 64, "size_bytes": 10, "kind": kind, "name": f"{kind}.bin"}


RECIPE = {
    "name": "seed",
    "rank": 16,
    "alpha": 32,
    "dropout": 0.05,
    "target_modules": ["q_proj", "v_proj"],
    "learning_rate": 2e-4,
    "batch_size": 4,
    "epochs": 1,
    "max_tokens": 512,
    "soft_target_weight": 0.7,
    "checkpoint_every_steps": 10,
}
ADAPTER = {
    "student": "tiny",
    "base_weights_sha256": "1" * 64,
    "weights": artifact("2", "adapter"),
    "config": artifact("3", "adapter-config"),
    "recipe": RECIPE,
    "seed": 0,
    "dataset": "b" * 64,
    "soft_targets": "c" * 64,
    "steps": 1,
    "trained_tokens": 10,
    "trainable_parameters": 10,
    "curve": [],
}


def comparison(suite: str, weights: str) -> dict[str, Any]:
    return {
        "suite": suite,
        "weights": weights,
        "metric": "bits_per_byte",
        "baseline": "base",
        "baseline_value": 1.0,
        "difference": -0.2,
        "low": -0.3,
        "high": -0.1,
        "better": "lower",
    }


EVALUATION = {
    "dataset": "b" * 64,
    "adapter": "2" * 64,
    "adapter_gguf": "4" * 64,
    "base_gguf": "5" * 64,
    "incumbent_gguf": None,
    "engines": {"hf": "torch", "gguf": "llama.cpp"},
    "scores": [],
    "comparisons": [comparison(suite, weights) for suite in ("test", "general") for weights in ("hf", "gguf")],
    "answers": [],
}
RESULTS: dict[Stage, dict[str, Any]] = {
    Stage.CURATE: {
        "data": artifact("b", "dataset"),
        "card": {
            "read": 10,
            "dropped": [],
            "examples": {"train": 8, "validation": 1, "test": 1},
            "users": {"train": 1, "validation": 1, "test": 1},
            "shares": {"train": 0.8, "validation": 0.1, "test": 0.1},
            "sources": {"correction": 10},
            "seed": 0,
            "parents": ["a" * 64],
        },
        "split_of_user": {"user0": "train"},
    },
    Stage.LABEL: {
        "dataset": "b" * 64,
        "caches": [
            {
                "teacher": {
                    "asked": {},
                    "model": "tiny",
                    "revision": "1" * 64,
                    "quantization": "float32",
                    "template": "chat-1/ask-again-1",
                },
                "shards": [artifact("6", "soft-targets")],
                "texts": {"target": 8},
                "tokens": 10,
                "text_bytes": 40,
                "top_k": 20,
                "top_k_mass": 0.99,
            }
        ],
        "digest": "c" * 64,
    },
    Stage.DISTILL: ADAPTER,
    Stage.EXPORT: {
        "adapter": ADAPTER,
        "adapter_gguf": artifact("4", "adapter-gguf"),
        "base_gguf": artifact("5", "base-gguf"),
        "quantization": "Q4_K_M",
    },
    Stage.EVALUATE: EVALUATION,
}


def result_of(stage: Stage) -> dict[str, Any]:
    """Return the fake record of `stage`."""
    return RESULTS[stage]
