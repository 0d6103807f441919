"""Plain TRL SFT as its documentation shows it: what a cycle must match on the same examples.

LoRA r=16 alpha=32 dropout 0 on q_proj,v_proj, one epoch, batch 4, learning rate 2e-4 cosine, float32, loss on the
answer only. `python -m benchmarks.yardstick DATASET.parquet WEIGHTS OUT` trains on the dataset's train split, in its
order, and leaves a PEFT adapter in OUT. It runs in a process of its own, so that its CPU time is its own.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def main(dataset_path: Path, weights: Path, out: Path) -> None:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from everswarm.training.curation import read_examples

    torch.set_num_threads(1)
    rows = [
        {
            "prompt": [message.model_dump() for message in example.messages],
            "completion": [{"role": "assistant", "content": example.target}],
        }
        for example in read_examples(dataset_path, split="train")
    ]
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(weights),
        train_dataset=Dataset.from_list(rows),
        args=SFTConfig(
            output_dir=str(out / "run"),
            num_train_epochs=1,
            per_device_train_batch_size=4,
            learning_rate=2e-4,
            lr_scheduler_type="cosine",
            completion_only_loss=True,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to=[],
            logging_steps=10,
            seed=0,
            disable_tqdm=True,
        ),
        peft_config=LoraConfig(
            r=16, lora_alpha=32, lora_dropout=0.0, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
        ),
    )
    started = time.process_time()
    trainer.train()
    trainer.model.save_pretrained(out)
    (out / "cost.json").write_text(json.dumps({"cpu_seconds": time.process_time() - started}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
